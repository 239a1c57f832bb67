"""Run by test_sharding.py in a process with eight devices."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import policies
import pytest
from compiling import fast_jit
from jax.sharding import NamedSharding, PartitionSpec
from probes import CHAIN, TABULAR, Toll
from tiny import Line

import trpo_jax
from trpo_jax.environments import Discrete
from trpo_jax.training import (
    TRPOConfig,
    rollout,
    standardize,
    update_statistics,
)
from trpo_jax.training.components import make_components
from trpo_jax.training.placement import make_mesh, over_environments
from trpo_jax.training.seeds import init_seeds, run_keys, state_type
from trpo_jax.training.state import make_act_fn
from trpo_jax.training.statistics import init_statistics
from trpo_jax.trust_region import (
    Problem,
    fisher_vector_product,
    gauss_newton_vector_product,
    surrogate_with_entropy,
)

SMALL = {"num_envs": 16, "rollout_length": 16, "total_timesteps": 512}
NORMALIZED = {"normalize_observations": True, "normalize_returns": True}
CONFIGS = {
    "feed-forward": TRPOConfig(**SMALL, **NORMALIZED, hidden_sizes=(8,)),
    "first-order critic": TRPOConfig(
        **SMALL, **NORMALIZED, hidden_sizes=(8,), critic_fit="first_order"
    ),
    "convolutional": TRPOConfig(
        env="Asterix-MinAtar",
        **SMALL,
        **NORMALIZED,
        channels=(2,),
        hidden_sizes=(8,),
    ),
    "masked": TRPOConfig(
        env=Line(Discrete(3), masked=True), **SMALL, **NORMALIZED, hidden_sizes=(8,)
    ),
    "GRU": TRPOConfig(**SMALL, **NORMALIZED, hidden_sizes=(8,), memory_size=4),
    "LRU": TRPOConfig(
        **SMALL, **NORMALIZED, hidden_sizes=(8,), memory_size=4, memory="lru"
    ),
    "gSDE": TRPOConfig(
        env="Pendulum-v1",
        **SMALL,
        **NORMALIZED,
        hidden_sizes=(8,),
        action_distribution="gsde",
        noise_period=4,
    ),
    "PPO": TRPOConfig(
        **SMALL,
        **NORMALIZED,
        hidden_sizes=(8,),
        update="ppo",
        policy_max_gradient_norm=0.5,
        critic_fit="first_order",
        critic_value_clipping=0.2,
        scale_rewards=True,
    ),
    "KL penalty, GRU": TRPOConfig(
        **SMALL,
        hidden_sizes=(8,),
        memory_size=4,
        update="ppo_penalty",
        policy_minibatches=2,
    ),
    "CPO": TRPOConfig(
        env=Toll(),
        **SMALL,
        **NORMALIZED,
        hidden_sizes=(8,),
        update="cpo",
        cost_limits=(1.0, 9.0),
    ),
    "micro-batches": TRPOConfig(**SMALL, hidden_sizes=(8,), micro_batch_size=64),
}
_COLLECTIVE = re.compile(
    r"= (\(.*?\)|\S+) (all-gather|all-reduce|all-to-all|collective-permute|"
    r"collective-broadcast|reduce-scatter|ragged-all-to-all)(?:-start)?\("
)


def collectives(program):
    """Return (kind, bytes) of each collective in a compiled program."""
    found = []
    for shapes, kind in _COLLECTIVE.findall(program.as_text()):
        sizes = re.findall(r"(pred|[a-z]+\d+)\[([\d,]*)\]", shapes)
        found.append((kind, sum(map(num_bytes, *zip(*sizes, strict=True)))))
    return found


def num_bytes(dtype, shape):
    bits = int(re.sub(r"\D", "", dtype) or 8)
    return bits // 8 * math.prod(int(size) for size in shape.split(",") if size)


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_but_sums_the_size_of_parameters_is_exchanged(name):
    config = CONFIGS[name]
    state = state_type(config)
    program = fast_jit(trpo_jax.step).lower(config, state).compile()
    exchanged = collectives(program)
    assert {kind for kind, _ in exchanged} == {"all-reduce"}
    assert len(exchanged) <= 30
    # XLA may join a sum for the policy and one for the critic.
    learnt = (state.params, state.critic_params)
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(learnt))
    # A gradient, and a product with the curvature, of the objective and of each cost.
    num_parameters *= 1 + len(config.cost_limits or ())
    assert max(size for _, size in exchanged) <= 4 * num_parameters + 64
    split = program.output_shardings[0].rollout.observation
    spec = jax.tree.leaves(split)[0].spec
    assert spec == PartitionSpec("environments")


# The others differ in what is learnt from a rollout.
@pytest.mark.parametrize(
    "name", ["feed-forward", "convolutional", "masked", "GRU", "LRU", "gSDE"]
)
def test_a_rollout_exchanges_nothing(name):
    config = CONFIGS[name]

    def act(state, key):
        components = make_components(config)
        return rollout(
            make_act_fn(components, state),
            components.environment,
            state.rollout,
            key,
            num_steps=config.rollout_length,
            noise_period=config.noise_period,
            map_fn=functools.partial(over_environments, config),
        )

    program = fast_jit(act).lower(state_type(config), jax.random.key(0)).compile()
    assert not collectives(program)


@pytest.mark.parametrize("critic_fit", ["trust_region", "first_order"])
def test_each_device_needs_its_share_of_the_memory(critic_fit):
    """A little more than an eighth: parameters are on every device."""
    config = TRPOConfig(
        num_envs=64, rollout_length=64, total_timesteps=4096, critic_fit=critic_fit
    )
    needed = []
    for devices in (1, 8):
        there = dataclasses.replace(config, devices=devices)
        program = fast_jit(trpo_jax.step).lower(there, state_type(there)).compile()
        needed.append(program.memory_analysis().temp_size_in_bytes)
    assert needed[1] <= needed[0] / 6


def mesh_of_eight():
    return make_mesh(TRPOConfig(**SMALL))


def split(tree):
    return jax.device_put(
        tree, NamedSharding(mesh_of_eight(), PartitionSpec("environments"))
    )


def assert_same_when_split(fn, whole, tree):
    """`fn(whole, tree)` must not depend on how the rows of `tree` are placed."""
    alone = fast_jit(fn)(whole, tree)
    whole = jax.device_put(whole, NamedSharding(mesh_of_eight(), PartitionSpec()))
    shared = fast_jit(fn)(whole, split(tree))
    for one, other in zip(*map(jax.tree.leaves, (alone, shared)), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("kind", "size"), [("categorical", 16), ("gaussian", None), ("gsde", None)]
)
def test_each_piece_of_an_update_is_that_of_one_device(kind, size, float64):
    """Alone: conjugate gradient would hide a gradient of the wrong scale."""
    rng = np.random.default_rng(0)
    params = policies.make_params(kind, rng)
    batch = policies.make_batch(kind, rng, params, 64)

    def pieces(params, batch):
        moved = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(leaf), params)
        problem = Problem(
            policies.POLICIES[kind],
            surrogate_with_entropy(0.01),
            batch,
            micro_batch_size=size,
        )
        old, gradient = problem.value_and_gradient(params)
        products = [
            problem.fisher(params, operator_fn=operator_fn)(moved)
            for operator_fn in (gauss_newton_vector_product, fisher_vector_product)
        ]
        candidate = problem.candidate(moved, old)
        return old.value, gradient, products, candidate

    assert_same_when_split(pieces, params, batch)


def test_statistics_and_standardisation_are_those_of_one_device(float64):
    samples = np.random.default_rng(0).normal(5.0, 3.0, size=(64, 7, 3))

    def pieces(statistics, samples):
        by_time = jnp.swapaxes(samples, 0, 1)
        return update_statistics(statistics, by_time), standardize(by_time[..., 0])

    statistics = jax.tree.map(jnp.float64, init_statistics((3,)))
    assert_same_when_split(pieces, statistics, jnp.asarray(samples))


def test_environments_on_the_host_are_left_to_one_device():
    pytest.importorskip("gymnasium")
    assert make_mesh(TRPOConfig(env="gymnasium/CartPole-v1", **SMALL)) is None


@pytest.mark.parametrize(("name", "num_seeds"), [("feed-forward", 2), ("PPO", 1)])
def test_a_run_is_that_of_one_device(name, num_seeds):
    """To the rounding of sums whose order differs; two steps, for it to stay small."""
    config = dataclasses.replace(CONFIGS[name], num_seeds=num_seeds)
    alone = trpo_jax.train(dataclasses.replace(config, devices=1))
    shared = trpo_jax.train(config)
    assert len(shared.state.key.devices()) == 8
    for one, other in zip(
        jax.tree.leaves((alone.state.params, alone.state.critic_params)),
        jax.tree.leaves((shared.state.params, shared.state.critic_params)),
        strict=True,
    ):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        shared.metrics.update.kl, alone.metrics.update.kl, rtol=1e-3
    )
    assert np.all(alone.metrics.update.status == trpo_jax.UpdateStatus.ACCEPTED)


def test_replicas_stay_the_same_bits():
    config = TRPOConfig(
        env=(TABULAR, CHAIN),
        num_envs=8,
        rollout_length=8,
        total_timesteps=50 * 64,
        hidden_sizes=(4,),
    )
    result = trpo_jax.run(config, progress=False)
    for leaf in jax.tree.leaves((result.state.params, result.state.critic_params)):
        replicas = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(replicas) == 8
        for other in replicas[1:]:
            np.testing.assert_array_equal(other, replicas[0])


def test_agents_on_different_devices_exchange_nothing():
    config = dataclasses.replace(CONFIGS["feed-forward"], num_seeds=8)

    def steps(state):
        return trpo_jax.training.seeds.over_seeds(
            config, lambda state: trpo_jax.step(config, state)
        )(state)

    program = fast_jit(steps).lower(state_type(config)).compile()
    assert not collectives(program)


def test_a_mesh_of_the_users_own():
    mesh = jax.make_mesh((2, 4), ("environments", "agents"), devices=jax.devices())
    config = dataclasses.replace(CONFIGS["feed-forward"], devices=mesh, num_seeds=4)
    state = fast_jit(init_seeds)(config, run_keys(config))
    sharding = state.rollout.observation.sharding
    assert dict(sharding.mesh.shape) == {"agents": 4, "environments": 2}
    half = jax.make_mesh((4,), ("environments",), devices=jax.devices()[4:])
    config = dataclasses.replace(CONFIGS["feed-forward"], devices=half)
    state, _ = fast_jit(trpo_jax.step)(config, trpo_jax.init(config, jax.random.key(0)))
    assert state.rollout.observation.devices() == set(jax.devices()[4:])
    returns = trpo_jax.evaluate(config, state, jax.random.key(0), 8)
    alone = dataclasses.replace(config, devices=1)
    here = jax.device_put(state, jax.devices()[0])
    np.testing.assert_array_equal(
        returns, trpo_jax.evaluate(alone, here, jax.random.key(0), 8)
    )


def test_by_default_as_many_devices_as_divide_the_environments():
    for num_envs, used in ((8, 8), (12, 4), (7, 1)):
        config = TRPOConfig(num_envs=num_envs, rollout_length=8, total_timesteps=96)
        state = trpo_jax.init(config, jax.random.key(0))
        assert len(state.rollout.observation.devices()) == used


def test_a_state_on_other_devices_is_refused_with_advice_that_works():
    config = dataclasses.replace(CONFIGS["feed-forward"], devices=8)
    four = dataclasses.replace(config, devices=4)
    state = trpo_jax.init(config, jax.random.key(0))
    key = jax.random.key(1)
    message = r"on 8 devices, and config.devices=4 makes a run on 4; write devices=8"
    for call in (
        lambda state: fast_jit(trpo_jax.step)(four, state)[1].env_steps,
        lambda state: trpo_jax.evaluate(four, state, key, 8),
    ):
        with pytest.raises(ValueError, match=message):
            call(state)
        assert np.isfinite(call(jax.device_get(state))).all()
    with pytest.raises(ValueError, match=message):
        trpo_jax.step(four, state)


def test_more_devices_than_there_are():
    config = TRPOConfig(num_envs=16, devices=16)
    with pytest.raises(ValueError, match=r"devices=16, but JAX has 8; write devices=8"):
        trpo_jax.init(config, jax.random.key(0))
