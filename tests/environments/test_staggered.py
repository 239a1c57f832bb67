"""First episodes with a random part of their time limit used up."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from trpo_jax import TRPOConfig, evaluate, init
from trpo_jax.environments import (
    BraxEnvironment,
    CostEnvironment,
    VariedEnvironment,
    make_environment,
)
from trpo_jax.environments.squashed import squash_actions
from trpo_jax.errors import UsageError
from trpo_jax.training import init_rollout

LIMIT, NUM_ENVS = 6, 64


@struct.dataclass
class Rest:
    obs: jax.Array
    reward: jax.Array
    done: jax.Array


class Resting:
    """In brax's form: nothing moves, and no episode ends by itself."""

    action_size = 1

    def reset(self, rng):
        return Rest(jnp.zeros(2), jnp.float32(1), jnp.float32(0))

    def step(self, state, action):
        return state


BRAX = BraxEnvironment(Resting(), LIMIT)
COSTLY = CostEnvironment(BRAX, lambda observation, action, following: following[0])


@pytest.mark.parametrize(
    "environment",
    [
        BRAX,
        squash_actions(BRAX),
        COSTLY,
        VariedEnvironment(lambda _: BRAX, jnp.array([0.5, 1.0])),
        squash_actions(VariedEnvironment(lambda _: BRAX, jnp.array([0.5, 1.0]))),
    ],
    ids=repr,
)
def test_only_first_episodes_are_cut_at_all_phases(environment):
    def act(state, key):
        keys = jax.random.split(key, NUM_ENVS)
        actions = jnp.zeros((NUM_ENVS, 1))
        return jax.vmap(environment.step)(keys, state, actions)

    @functools.partial(jax.jit, static_argnames="staggered")
    def ends(staggered):
        start = init_rollout(
            environment, jax.random.key(0), num_envs=NUM_ENVS, staggered=staggered
        )
        keys = jax.random.split(jax.random.key(1), 3 * LIMIT)
        return jax.lax.scan(act, start.env_state, keys)[1].truncated

    truncated = np.asarray(ends(staggered=True))
    first = truncated.argmax(axis=0)
    np.testing.assert_array_equal(np.unique(first), np.arange(LIMIT))
    # From there on an episode is as long as ever.
    expected = (np.arange(3 * LIMIT)[:, None] - first) % LIMIT == 0
    np.testing.assert_array_equal(truncated, expected)
    assert not np.asarray(ends(staggered=False))[: LIMIT - 1].any()


def test_a_run_is_staggered_and_its_evaluation_is_not():
    config = TRPOConfig(
        env=BRAX, staggered_starts=True, num_envs=NUM_ENVS, hidden_sizes=(4,)
    )
    state = init(config, jax.random.key(0))
    lengths = np.asarray(state.rollout.env_state.length)
    np.testing.assert_array_equal(np.unique(lengths), np.arange(LIMIT))
    returns = evaluate(config, state, jax.random.key(1), num_episodes=4)
    np.testing.assert_array_equal(returns, LIMIT)


@pytest.mark.parametrize("env", ["MemoryChain-bsuite", "gymnasium/CartPole-v1"])
def test_an_environment_without_a_clock_of_its_own_is_refused(env):
    config = TRPOConfig(env=env, staggered_starts=True)
    with pytest.raises(UsageError, match="no method for that; write False"):
        init(config, jax.random.key(0))
    with pytest.raises(UsageError, match="no method for that; write False"):
        TRPOConfig(env=make_environment(env), staggered_starts=True)


def test_costs_of_a_part_are_not_taken_for_those_of_an_episode():
    with pytest.raises(UsageError, match="write staggered_starts=False"):
        TRPOConfig(env=COSTLY, update="cpo", cost_limits=(1.0,), staggered_starts=True)
