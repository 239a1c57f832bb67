"""Estimates of the cost of an episode, and critics side by side."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from compiling import fast_jit
from probes import Toll

import trpo_jax
from trpo_jax.training import costs
from trpo_jax.training.components import make_components
from trpo_jax.training.costs import CostState
from trpo_jax.training.critics import estimate_advantages, estimate_cost_advantages
from trpo_jax.training.rollouts import RolloutState, Trajectory


def trajectory(done, episode_cost, episode_length):
    """Two steps in two environments, of which the sums matter here."""
    none = jnp.zeros((2, 2))
    done = jnp.array(done, bool)
    return Trajectory(
        none,
        none,
        none,
        none,
        done,
        ~done & False,
        none,
        none,
        jnp.array(episode_length),
        none[..., None],
        jnp.array(episode_cost)[..., None],
    )


def rollout_state(cost, length):
    cost = jnp.array(cost)[:, None]
    return RolloutState((), (), (), jnp.zeros(2), jnp.array(length), cost)


NONE = jnp.zeros(1)
NOTHING = CostState(
    (), (), (), None, NONE, jnp.float32(0), NONE + jnp.nan, NONE, jnp.float32(0)
)
estimate_episode_costs = functools.partial(
    costs.estimate_episode_costs, correction_rate=0.2
)


def test_the_mean_over_the_episodes_that_ended():
    ended = trajectory([[1, 0], [0, 1]], [[4.0, 1], [7, 2]], [[5, 1], [1, 2]])
    state, estimate = estimate_episode_costs(
        NOTHING, ended, rollout_state([7, 0], [1, 0])
    )
    np.testing.assert_allclose(estimate.cost, [3])
    np.testing.assert_allclose(estimate.length, 3.5)
    # A rollout in which none ends keeps it.
    none = trajectory([[0, 0], [0, 0]], [[9.0, 9], [9, 9]], [[1, 1], [2, 2]])
    state, estimate = estimate_episode_costs(state, none, rollout_state([9, 9], [2, 2]))
    np.testing.assert_allclose(estimate.cost, [3])
    np.testing.assert_allclose(state.episode_length, 3.5)


def test_before_any_episode_has_ended_the_unfinished_ones_count():
    none = trajectory([[0, 0], [0, 0]], [[1.0, 2], [3, 4]], [[1, 1], [2, 2]])
    state, estimate = estimate_episode_costs(
        NOTHING, none, rollout_state([3, 5], [2, 2])
    )
    np.testing.assert_allclose(estimate.cost, [4])
    np.testing.assert_allclose(estimate.length, 2)
    assert state.episode_length == 0


def test_predictions_that_are_missed_are_remembered():
    state = NOTHING._replace(
        episode_cost=NONE + 2.5, episode_length=jnp.float32(2), predicted_cost=NONE + 2
    )
    ended = trajectory([[1, 1], [0, 0]], [[3.0, 5], [0, 0]], [[1, 1], [1, 1]])
    after = rollout_state([0, 0], [1, 1])
    _, estimate = estimate_episode_costs(state, ended, after)
    np.testing.assert_allclose(estimate.optimism, [0.2 * 2], rtol=1e-6)
    # Two rollouts in which no episode ends: predictions add up.
    none = trajectory([[0, 0], [0, 0]], [[9.0, 9], [9, 9]], [[1, 1], [2, 2]])
    for predicted in (2.0, 1.5):
        state, estimate = estimate_episode_costs(
            state._replace(predicted_cost=NONE + predicted), none, after
        )
        np.testing.assert_allclose(estimate.cost, [predicted])
        np.testing.assert_allclose(estimate.optimism, 0)
    state = state._replace(predicted_cost=NONE + 1)
    state, estimate = estimate_episode_costs(state, ended, after)
    np.testing.assert_allclose(estimate.cost, [4])
    np.testing.assert_allclose(estimate.optimism, [0.2 * 3 / 3], rtol=1e-6)
    # Nothing is missed without a prediction.
    state = state._replace(predicted_cost=NONE + jnp.nan)
    _, estimate = estimate_episode_costs(state, ended, after)
    np.testing.assert_allclose(estimate.optimism, [0.2], rtol=1e-6)


def test_what_an_update_predicts_is_kept_for_the_next():
    state, metrics = fast_jit(lambda state: trpo_jax.step(CONFIG, state))(STATE)
    predicted = metrics.constraints.excess + jnp.array(CONFIG.cost_limits)
    predicted = predicted + metrics.constraints.cost_change
    np.testing.assert_allclose(state.costs.predicted_cost, predicted, rtol=1e-5)


CONFIG, STATE = tiny.make_state(Toll(), update="cpo", cost_limits=(0.5, 10.0))


@fast_jit
def estimates(state, trajectory, rollout):
    components = make_components(CONFIG)
    scheduled = state.hyperparameters
    config = dataclasses.replace(CONFIG, cost_discount=0.5)
    of_costs = estimate_cost_advantages(
        config, components, state, scheduled, trajectory, rollout
    )
    scheduled = scheduled._replace(discount=0.5)
    of_each = []
    for k in range(2):
        params = jax.tree.map(lambda leaf, k=k: leaf[k], state.costs.critic_params)
        of_cost = state._replace(critic_params=params)
        path = trajectory._replace(reward=trajectory.cost[..., k])
        arguments = (of_cost, scheduled, path, rollout.observation)
        of_each.append(estimate_advantages(CONFIG, components, *arguments)[0])
    return of_costs, of_each


def test_advantages_of_a_cost_are_those_of_a_reward_with_its_discount():
    rng = np.random.default_rng(0)
    shape = (4, 2)

    def draw(*axes):
        return jnp.asarray(rng.normal(size=axes), jnp.float32)

    flags = jnp.zeros(shape, bool)
    rollout = STATE.rollout
    path = Trajectory(
        draw(*shape, *rollout.observation.shape[1:]),
        flags.astype(int),
        draw(*shape),
        draw(*shape),
        flags.at[1, 0].set(True),
        flags.at[2, 1].set(True),
        draw(*shape, *rollout.observation.shape[1:]),
        draw(*shape),
        jnp.ones(shape, int),
        draw(*shape, 2),
        draw(*shape, 2),
    )
    (_, costs), each = estimates(STATE, path, rollout)
    for k, one in enumerate(each):
        np.testing.assert_allclose(costs.advantages[k], one.advantages, atol=1e-6)
        np.testing.assert_allclose(costs.returns[k], one.returns, atol=1e-6)
    rows = costs.as_rows(make_components(CONFIG).policy, CONFIG.cost_limits)
    assert rows.advantages.shape == (8, 2)
    np.testing.assert_allclose(rows.advantages.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(
        rows.advantages[:4, 1],
        costs.advantages[1, :, 0] - costs.advantages[1].mean(),
        atol=1e-6,
    )
    np.testing.assert_allclose(rows.limits, [0.5, 10])


def test_critics_of_costs_start_apart_from_each_other():
    first, second = (
        jax.tree.map(lambda leaf, i=i: leaf[i], STATE.costs.critic_params)
        for i in range(2)
    )
    chex.assert_trees_all_equal_shapes(first, STATE.critic_params)
    assert jax.tree.leaves(first)[-1].tolist() != jax.tree.leaves(second)[-1].tolist()
    assert STATE.costs.episode_length == 0


@pytest.mark.parametrize(
    "fields",
    [{}, {"critic_fit": "first_order", "critic_epochs": 1}, {"memory_size": 3}],
)
def test_a_step_with_any_kind_of_critic(fields):
    config, state = tiny.make_state(
        Toll(), update="cpo", cost_limits=(0.5, 10.0), normalize_returns=True, **fields
    )
    state, metrics = fast_jit(lambda state: trpo_jax.step(config, state))(state)
    chex.assert_tree_all_finite(state.costs)
    assert metrics.episode_cost.shape == (2,)
    before = tiny.init(config, trpo_jax.training.seeds.run_keys(config))
    moved = [
        np.any(a != b)
        for a, b in zip(
            jax.tree.leaves(state.costs.critic_params),
            jax.tree.leaves(before.costs.critic_params),
            strict=True,
        )
    ]
    assert any(moved)


def test_without_limits_nothing_is_kept():
    config = dataclasses.replace(CONFIG, update="trpo", cost_limits=None)
    state = tiny.init(config, trpo_jax.training.seeds.run_keys(config))
    assert state.costs is None
    _, metrics = fast_jit(lambda state: trpo_jax.step(config, state))(state)
    assert metrics.constraints is None
    assert metrics.episode_cost_sum.shape == (2,)
