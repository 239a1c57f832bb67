import dataclasses

import jax
import jax.numpy as jnp
import pytest
from probes import CHAIN, TABULAR

from trpo_jax import (
    TRPOConfig,
    init,
    train,
)
from trpo_jax.networks import (
    MLP,
    CategoricalHead,
    NetworkFns,
    Policy,
    RecurrentNetworkFns,
    TanhGaussianHead,
)
from trpo_jax.trust_region import Categorical

pytestmark = pytest.mark.usefixtures("no_shape_checks")

SMALL = {"num_envs": 4, "rollout_length": 6, "total_timesteps": 48}


@pytest.mark.parametrize(
    ("env", "fields", "advice"),
    [
        (
            (TABULAR, CHAIN),
            {"action_distribution": "gsde"},
            "is for continuous actions",
        ),
        (
            (TABULAR, CHAIN),
            {"action_distribution": "tanh_gaussian"},
            "is for continuous actions",
        ),
        ((TABULAR, CHAIN), {"channels": (4,)}, "is not an image"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused_when_the_run_starts(env, fields, advice):
    config = TRPOConfig(env=env, **SMALL, fisher_stride=1, **fields)
    with pytest.raises(ValueError, match=advice):
        jax.eval_shape(init, config, jax.random.key(0))


def test_a_deviation_beyond_the_heads_bounds_is_refused():
    with pytest.raises(ValueError, match=r"not between the bounds .* -5.0 and 2.0"):
        TRPOConfig(action_distribution="state_dependent_gaussian", initial_log_std=3.0)


def test_a_squashed_policy_of_ones_own_says_what_it_needs():
    policy = Policy(MLP((4,)), TanhGaussianHead(1))
    config = TRPOConfig(env="Pendulum-v1", **SMALL, policy=policy)
    with pytest.raises(
        ValueError, match="write action_distribution='tanh_gaussian', too"
    ):
        jax.eval_shape(init, config, jax.random.key(0))
    squashed = dataclasses.replace(config, action_distribution="tanh_gaussian")
    jax.eval_shape(init, squashed, jax.random.key(0))


@pytest.mark.parametrize("name", ["policy", "critic"])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_memory_that_changes_its_shape_is_refused(name, shape):
    """The last memory in place of one after each step."""

    def apply(params, memory, observations, starts):
        batch = observations.shape[:2]
        if name == "critic":
            return memory, jnp.zeros(batch)
        return memory, Categorical(jnp.zeros((*batch, 2)))

    network = RecurrentNetworkFns(
        initial_memory=lambda num: jnp.zeros((num, *shape)),
        init=lambda key, memory, observations, starts: (),
        apply=apply,
    )
    config = TRPOConfig(env=(TABULAR, CHAIN), **SMALL, **{name: network})
    with pytest.raises(ValueError, match=rf"the {name} returns the memory .*T, …\]"):
        jax.eval_shape(init, config, jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "apply", "advice"),
    [
        (
            "policy",
            lambda _, x: Categorical(jnp.zeros((1, 2))),
            r"With two: the policy .*\(1,\)",
        ),
        ("critic", lambda _, x: jnp.zeros(1), r"With two: the critic .*\(1,\)"),
        (
            "critic",
            lambda _, x: x.reshape(1, x.shape[-1])[:, 0],
            "With two: cannot reshape",
        ),
        (
            "policy",
            lambda _, x: Categorical(jnp.zeros(2)),
            r"returned .* of shape \(\)",
        ),
        ("critic", lambda _, x: jnp.squeeze(x[..., 0]), r"values of shape \(\)"),
    ],
)
def test_a_network_that_drops_a_batch_of_one_is_refused(name, apply, advice):
    network = NetworkFns(lambda key, x: (), apply)
    settings = SMALL | {"num_envs": 1, name: network}
    with pytest.raises(ValueError, match=advice):
        jax.eval_shape(
            init, TRPOConfig(env=(TABULAR, CHAIN), **settings), jax.random.key(0)
        )


@pytest.mark.parametrize("memory", ["gru", "lru"])
def test_one_environment_is_enough_for_a_memory(memory):
    settings = SMALL | {"num_envs": 1, "memory_size": 4, "memory": memory}
    jax.eval_shape(
        init, TRPOConfig(env=(TABULAR, CHAIN), **settings), jax.random.key(0)
    )


def test_a_critic_without_parameters_needs_a_trust_region_fit():
    critic = NetworkFns(lambda key, x: {}, lambda params, x: jnp.zeros(x.shape[:-1]))
    config = TRPOConfig(
        env=(TABULAR, CHAIN), **SMALL, critic=critic, critic_fit="first_order"
    )
    with pytest.raises(ValueError, match=r"Write critic_fit='trust_region', or"):
        jax.eval_shape(init, config, jax.random.key(0))
    train(dataclasses.replace(config, critic_fit="trust_region", total_timesteps=24))


@pytest.mark.parametrize("name", ["policy", "critic"])
def test_an_integer_parameter_of_a_network_is_named(name):
    network = NetworkFns(
        lambda key, x: {"steps": jnp.int32(0)}, lambda params, x: params["steps"] + x
    )
    config = TRPOConfig(env=(TABULAR, CHAIN), **SMALL, **{name: network})
    with pytest.raises(TypeError, match=rf"{name}'s params\['steps'\] is int32"):
        jax.eval_shape(init, config, jax.random.key(0))


def test_a_policy_in_place_of_the_critic_is_named():
    policy = Policy(MLP((3,)), CategoricalHead(2))
    config = TRPOConfig(env=(TABULAR, CHAIN), **SMALL, critic=policy)
    with pytest.raises(TypeError, match=r"critic returns a Categorical.*array \[4\]"):
        jax.eval_shape(init, config, jax.random.key(0))


def test_the_head_that_is_advised_fits():
    config = TRPOConfig(env=(TABULAR, CHAIN), **SMALL, policy=CategoricalHead(3))
    with pytest.raises(ValueError, match=r"write .*CategoricalHead\(2\)"):
        jax.eval_shape(init, config, jax.random.key(0))
    followed = dataclasses.replace(config, policy=CategoricalHead(2))
    jax.eval_shape(init, followed, jax.random.key(0))
