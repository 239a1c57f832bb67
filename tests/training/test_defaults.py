import dataclasses

import jax
import pytest
from probes import CHAIN, TABULAR

from trpo_jax import TRPOConfig, init, step
from trpo_jax.networks import (
    MLP,
    CategoricalHead,
    RecurrentPolicy,
    RecurrentValue,
)
from trpo_jax.training.defaults import resolve_sizes

pytestmark = pytest.mark.usefixtures("no_shape_checks")

SMALL = {"num_envs": 4, "rollout_length": 6, "total_timesteps": 48}


@pytest.mark.parametrize(
    ("num_envs", "rollout_length", "stride", "epochs"),
    [
        (1, 8, 1, 10),  # a small batch is worth every state and many passes
        (8, 128, 5, 10),  # two hundred states remain, of all eight environments
        (8, 500, 10, 5),
        (64, 128, 10, 4),
        (1024, 128, 10, 4),  # no more than the paper's tenth
        (4096, 4, 4, 4),  # at least one state of each environment
    ],
)
def test_stride_and_passes_follow_the_batch(num_envs, rollout_length, stride, epochs):
    batch = num_envs * rollout_length
    config = TRPOConfig(
        num_envs=num_envs,
        rollout_length=rollout_length,
        total_timesteps=batch,
    )
    sizes = resolve_sizes(config)
    assert sizes.fisher_stride == sizes.critic_stride == stride
    assert sizes.critic_epochs == epochs
    for name in ("fisher_stride", "critic_stride"):
        by_hand = resolve_sizes(dataclasses.replace(config, **{name: 1}))
        assert by_hand == sizes._replace(**{name: 1})
    first_order = dataclasses.replace(config, critic_fit="first_order", critic_epochs=7)
    assert resolve_sizes(first_order) == sizes._replace(critic_epochs=7)


def test_micro_batches_are_a_caches_worth_on_a_cpu_and_everything_elsewhere(
    monkeypatch,
):
    config = TRPOConfig()
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    set_by_hand = dataclasses.replace(config, micro_batch_size=64)
    assert resolve_sizes(config).micro_batch_size == 8192
    assert resolve_sizes(set_by_hand).micro_batch_size == 64
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert resolve_sizes(config).micro_batch_size is None
    assert resolve_sizes(set_by_hand).micro_batch_size == 64


@pytest.mark.parametrize(
    ("num_envs", "rollout_length", "steps"), [(8, 128, 8), (10, 50, 5), (1, 7, 7)]
)
def test_minibatches_divide_the_rollout(num_envs, rollout_length, steps):
    config = TRPOConfig(
        num_envs=num_envs,
        rollout_length=rollout_length,
        total_timesteps=num_envs * rollout_length,
    )
    assert resolve_sizes(config).critic_minibatches == steps


@pytest.mark.parametrize("critic", [None, RecurrentValue(MLP((4,)), 3)])
def test_sequences_are_not_cut_into_minibatches(critic):
    """Four environments are four sequences: of eight minibatches four are left."""
    memory_size = 3 if critic is None else 0
    config = TRPOConfig(**SMALL, memory_size=memory_size, critic=critic)
    assert config.critic_rows == 4
    assert resolve_sizes(config).critic_minibatches == 4
    first_order = dataclasses.replace(config, critic_fit="first_order")
    with pytest.raises(ValueError, match=r"its sequences .* write 2 or 4"):
        dataclasses.replace(first_order, critic_minibatches=3)
    assert TRPOConfig(**SMALL).critic_rows == 24


def test_rollouts_of_one_step_are_no_sequences():
    """As many transitions as environments; the stride is still checked as steps."""
    config = TRPOConfig(num_envs=4000, rollout_length=1, total_timesteps=4000)
    sizes = resolve_sizes(config)
    assert sizes.fisher_stride == sizes.critic_stride == 1
    for name in STRIDES:
        with pytest.raises(ValueError, match=f"{name}=2 .*the 1 steps of each"):
            dataclasses.replace(config, **{name: 2})


STRIDES = ("fisher_stride", "critic_stride")


@pytest.mark.parametrize("name", STRIDES)
def test_the_stride_of_a_memory_counts_sequences(name):
    config = TRPOConfig(
        num_envs=8, rollout_length=1250, total_timesteps=10_000, memory_size=4
    )
    assert getattr(resolve_sizes(config), name) == 1
    by_hand = dataclasses.replace(config, **{name: 2})
    assert getattr(resolve_sizes(by_hand), name) == 2
    with pytest.raises(ValueError, match=f"{name}=9 is above the 8 sequences"):
        dataclasses.replace(config, **{name: 9})


@pytest.mark.parametrize(
    ("network", "strides"), [("policy", (1, 10)), ("critic", (10, 1))]
)
def test_only_the_network_with_a_memory_has_sequences(network, strides):
    recurrent = {
        "policy": lambda: RecurrentPolicy(MLP((4,)), 3, CategoricalHead(2)),
        "critic": lambda: RecurrentValue(MLP((4,)), 3),
    }[network]()
    config = TRPOConfig(
        num_envs=8, rollout_length=1250, total_timesteps=10_000, **{network: recurrent}
    )
    sizes = resolve_sizes(config)
    assert (sizes.fisher_stride, sizes.critic_stride) == strides


@pytest.mark.parametrize("memory_size", [0, 2])
@pytest.mark.parametrize(
    ("num_envs", "rollout_length"), [(1, 1), (1, 7), (2, 1), (7, 13)]
)
def test_any_sizes_make_a_run(num_envs, rollout_length, memory_size):
    """Strides and minibatches that fit are not for the user to find."""
    config = TRPOConfig(
        env=(TABULAR, CHAIN),
        num_envs=num_envs,
        rollout_length=rollout_length,
        total_timesteps=100,
        hidden_sizes=(3,),
        memory_size=memory_size,
    )
    state = jax.eval_shape(init, config, jax.random.key(0))
    jax.eval_shape(step, config, state)
