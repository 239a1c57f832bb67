"""Bodies drawn at random, in the form of brax and of Playground."""

import dataclasses
import operator
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit
from flax import struct

import trpo_jax
from trpo_jax.environments import BraxEnvironment, VariedEnvironment, randomize_domain
from trpo_jax.environments.varied import reset_batch

LIMIT = 3


@struct.dataclass
class System:
    mass: jax.Array
    gravity: jax.Array


@struct.dataclass
class Fall:
    obs: jax.Array
    reward: jax.Array
    done: jax.Array


class Falling:
    """A mass in brax's form, whose acceleration is the action over the mass."""

    action_size = 1

    def __init__(self, mass=1.0):
        self.sys = System(jnp.float32(mass), jnp.array([0.0, -9.8]))

    def reset(self, rng):
        height = jax.random.uniform(rng, (1,)) * self.sys.mass
        return Fall(height, jnp.zeros(()), jnp.zeros(()))

    def step(self, state, action):
        speed = action / self.sys.mass + self.sys.gravity[1]
        return state.replace(obs=state.obs + 0.1 * speed, reward=speed[0])


class Robot(Falling):
    """The same with the attribute of MuJoCo Playground."""

    def __init__(self, mass=1.0):
        self._mjx_model = System(jnp.float32(mass), jnp.array([0.0, -9.8]))

    @property
    def sys(self):
        return self._mjx_model


def heavier(model, keys):
    masses = jax.vmap(lambda key: 1 + jax.random.uniform(key))(keys)
    axes = jax.tree.map(lambda leaf: None, model)
    return model.replace(mass=masses), axes.replace(mass=0)


def play(environment, keys):
    """Seven steps with the same actions in each row, with two resets."""

    def act(state, index):
        actions = jnp.full((len(keys), 1), 0.1 * index)
        return jax.vmap(environment.step)(keys, state, actions)

    state, first = reset_batch(environment, keys)
    return first, jax.lax.scan(act, state, jnp.arange(7.0))[1]


@pytest.mark.parametrize("body", [Falling, Robot])
def test_each_row_keeps_a_body_of_its_own(body):
    varied = randomize_domain(BraxEnvironment(body(), LIMIT), heavier, num_envs=3)
    keys = jax.random.split(jax.random.key(0), 4)
    first, steps = fast_jit(play, static_argnums=0)(varied, keys)
    masses, _ = heavier(body().sys, jax.random.split(jax.random.PRNGKey(0), 3))
    assert len(np.unique(masses.mass)) == 3
    for row in range(4):
        alone = BraxEnvironment(body(float(masses.mass[row % 3])), LIMIT)
        expected = fast_jit(play, static_argnums=0)(alone, keys[row : row + 1])
        own = jax.tree.map(operator.itemgetter((slice(None), [row])), steps)
        rows = first[row : row + 1], own
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5),
            rows,
            expected,
        )
    assert steps.truncated.sum() == 4 * 2


def test_a_run_trains_and_evaluates_on_them():
    env = randomize_domain(BraxEnvironment(Falling(), LIMIT), heavier, num_envs=2)
    assert isinstance(env, VariedEnvironment)
    config = trpo_jax.TRPOConfig(
        env=env, num_envs=2, rollout_length=4, total_timesteps=16, hidden_sizes=(4,)
    )
    result = trpo_jax.train(config)
    returns = trpo_jax.evaluate(config, result.state, jax.random.key(1), 4)
    assert np.isfinite(returns).all()
    with pytest.raises(ValueError, match="write num_envs=2"):
        trpo_jax.train(dataclasses.replace(config, num_envs=4))


def test_a_robot_of_playground_has_the_function_that_its_registry_names(monkeypatch):
    """With a stand-in for the package, which need not be installed."""
    registry = types.SimpleNamespace(get_domain_randomizer={"Faller": heavier}.get)
    package = types.SimpleNamespace(registry=registry)
    monkeypatch.setitem(sys.modules, "mujoco_playground", package)
    keys = jax.random.split(jax.random.key(0), 3)
    environment = BraxEnvironment(Robot(), LIMIT, "playground/Faller")
    found, given = (
        reset_batch(randomize_domain(environment, fn, num_envs=3), keys)[0].params
        for fn in (None, heavier)
    )
    jax.tree.map(np.testing.assert_array_equal, found, given)
    unnamed = BraxEnvironment(Robot(), LIMIT, "playground/Standing")
    with pytest.raises(ValueError, match="Playground randomises nothing in Standing"):
        randomize_domain(unnamed, num_envs=3)


@pytest.mark.parametrize("num_envs", [0, -1, True])
def test_a_number_of_rows_that_is_none_is_refused(num_envs):
    with pytest.raises(ValueError, match="write a whole number, 1 or more"):
        randomize_domain("brax/hopper", heavier, num_envs=num_envs)


def test_the_seed_draws_the_bodies():
    environment = BraxEnvironment(Falling(), LIMIT)

    def masses(seed):
        env = randomize_domain(environment, heavier, num_envs=2, seed=seed)
        return reset_batch(env, jax.random.split(jax.random.key(0)))[0].params[0]

    np.testing.assert_array_equal(masses(0), masses(0))
    assert not np.any(masses(0) == masses(1))


@pytest.mark.parametrize(
    ("env", "randomization_fn", "advice"),
    [
        ("CartPole-v1", heavier, "which has no model of a body to randomise"),
        (BraxEnvironment(Falling(), LIMIT), None, "has no randomization_fn of its own"),
        (
            BraxEnvironment(Falling(), LIMIT),
            lambda model, keys: (model, model),
            "randomises nothing",
        ),
        (
            BraxEnvironment(Falling(), LIMIT),
            lambda model, keys: model,
            r"returns a System.*; write a pair \(model, axes\)",
        ),
    ],
)
def test_what_cannot_be_randomised_is_refused(env, randomization_fn, advice):
    with pytest.raises((TypeError, ValueError), match=advice):
        randomize_domain(env, randomization_fn, num_envs=2)
