"""Costs that a function computes, in any environment."""

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit
from probes import CHAIN, TABULAR
from tiny import Line

from trpo_jax.environments import (
    Box,
    CostEnvironment,
    Discrete,
    SquashedActions,
    TimeStep,
    make_environment,
)
from trpo_jax.environments.contract import check_environment, num_costs
from trpo_jax.environments.varied import reset_batch
from trpo_jax.training import init_rollout, rollout

KEY = jax.random.key(0)


class Count:
    """Observes its step, from 0; episodes have three. The action is not used."""

    observation_shape = (1,)
    action_space = Box(1, (-2.0,), (2.0,))

    def reset(self, key):
        return jnp.int32(0), jnp.zeros(1, jnp.float32)

    def step(self, key, state, action):
        count = state + 1
        seen, ended = jnp.float32(count)[None], count == 3
        following = jnp.where(ended, 0, count)
        return following, TimeStep(
            observation=jnp.float32(following)[None],
            reward=jnp.float32(1),
            terminated=ended,
            truncated=jnp.array(False),
            final_observation=seen,
        )


COUNT = CostEnvironment(Count(), lambda s, a, s_next: 10 * s[0] + s_next[0])


def play(environment, num_steps, action):
    """Return the steps of a batch of two that always acts alike, [T, B]."""

    def act(key, memory, observation, starts):
        actions = jnp.broadcast_to(jnp.asarray(action), (2, *jnp.shape(action)))
        return memory, actions, jnp.zeros(2)

    @fast_jit
    def run():
        start = init_rollout(environment, KEY, num_envs=2)
        return rollout(act, environment, start, KEY, num_steps=num_steps)[1]

    return run()


def test_the_last_step_of_an_episode_costs_what_led_to_its_end():
    """Not what the first observation of the next episode would."""
    taken = play(COUNT, 5, np.float32([0]))
    np.testing.assert_array_equal(taken.cost[:, 0, 0], [1, 12, 23, 1, 12])
    np.testing.assert_array_equal(taken.episode_cost[:, 0, 0], [1, 13, 36, 1, 13])
    np.testing.assert_array_equal(taken.terminated[:, 0], [0, 0, 1, 0, 0])


@pytest.mark.usefixtures("float64")
def test_costs_have_32_bits_in_double_precision():
    check_environment(COUNT)
    state, _ = COUNT.reset(KEY)
    _, step = COUNT.step(KEY, state, jnp.zeros(1, jnp.float32))
    assert step.cost.dtype == jnp.float32


def test_several_costs_stand_side_by_side():
    def costs(observation, action, following):
        return jnp.stack([following[0] > 1, action[0] > 0, True])

    environment = CostEnvironment(Count(), costs)
    check_environment(environment)
    assert num_costs(environment) == 3
    taken = play(environment, 3, np.float32([0.5]))
    np.testing.assert_array_equal(taken.cost[:, 1], [[0, 1, 1], [1, 1, 1], [1, 1, 1]])
    np.testing.assert_array_equal(taken.episode_cost[2, 1], [2, 3, 3])


def test_the_costs_of_the_environment_inside_are_replaced():
    environment = CostEnvironment("safe/toll_grid", lambda *_: 7)
    taken = play(environment, 1, np.int32(0))
    np.testing.assert_array_equal(taken.cost, 7)


def test_squashed_actions_reach_the_cost_within_their_bounds():
    limited = CostEnvironment(Count(), lambda s, a, s_next: a[0])
    squashed = SquashedActions(limited)
    assert num_costs(squashed) == 1
    taken = play(squashed, 1, np.float32([100]))
    np.testing.assert_array_equal(taken.cost, 2)


def test_rows_keep_their_parameters_beneath_a_cost():
    env, params = gymnax.make("Pendulum-v1")
    varied = make_environment((env, params.replace(g=jnp.array([5.0, 10.0]))))
    limited = CostEnvironment(varied, lambda s, a, s_next: jnp.abs(s_next[2]))
    keys = jax.random.split(KEY, 2)
    for environment in (limited, SquashedActions(limited)):
        assert environment.num_variants == 2
        state, observation = reset_batch(environment, keys)
        np.testing.assert_array_equal(
            jax.tree.leaves(state.env_state.params)[0], [5, 10]
        )
        np.testing.assert_array_equal(observation, reset_batch(varied, keys)[1])


def test_masked_observations_reach_the_cost_whole():
    environment = CostEnvironment(
        Line(Discrete(3), masked=True), lambda s, a, s_next: s_next.action_mask.sum()
    )
    np.testing.assert_array_equal(play(environment, 1, np.int32(1)).cost, 1)


def test_an_entry_of_gymnaxs_info_is_a_cost():
    class WithCost(type(TABULAR)):
        def step_env(self, key, state, action, params):
            *rest, info = super().step_env(key, state, action, params)
            return *rest, info | {"cost": jnp.stack([action, 2 * action])}

    environment = make_environment((WithCost(), CHAIN))
    assert environment.num_costs == 2
    taken = play(environment, 1, np.int32(1))
    np.testing.assert_array_equal(taken.cost, [[[1, 2], [1, 2]]])
    assert taken.cost.dtype == jnp.float32


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("cost_fn", "message"),
    [
        ("speed", r"cost_fn is .*write a function \(observation, action, next"),
        (None, r"cost_fn is None.*write a function"),
        (lambda s, a: 1.0, r"does not take three arguments; write a function"),
        (
            lambda s, a, s_next: jnp.ones((2, 2)),
            r"cost float32\[2, ?2\]; write one",
        ),
        (lambda s, a, s_next: jnp.ones(0), r"cost float32\[0\]; write one number"),
        (
            lambda s, a, s_next: jnp.complex64(1),
            r"cost complex64\[\]; write one",
        ),
        (lambda s, a, s_next: {"speed": s[0]}, r"cost \{'speed': .*; write one"),
        (lambda s, a, s_next: None, r"cost None; write one number"),
    ],
)
def test_what_is_no_cost_is_refused(cost_fn, message):
    with pytest.raises((ValueError, TypeError), match=message):
        CostEnvironment(Count(), cost_fn)


def test_an_environment_on_the_host_is_refused():
    with pytest.raises(ValueError, match=r"stepped on the host.*another suite"):
        CostEnvironment("gymnasium/CartPole-v1", lambda *_: 1)


@pytest.mark.parametrize("cost", [np.int32(1), np.ones((2, 2), np.float32)])
def test_a_step_of_ones_own_has_costs_of_the_right_kind(cost):
    class Costly(Count):
        def step(self, key, state, action):
            state, step = super().step(key, state, action)
            return state, step._replace(cost=jnp.asarray(cost))

    with pytest.raises(
        ValueError, match=r"Costly.step returns the cost .*float32\[K\]"
    ):
        make_environment(Costly())
