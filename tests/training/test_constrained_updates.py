"""Updates that keep limits: the controller, and what they converge to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit
from probes import Toll

import trpo_jax
from trpo_jax import UpdateStatus
from trpo_jax.environments import CostEnvironment
from trpo_jax.training.constrained_updates import Multipliers, next_multipliers
from trpo_jax.training.update_inputs import RolloutCosts

UPDATES = ("cpo", "pcpo", "trpo_lagrangian", "trpo_pid", "crpo")
CONFIG = trpo_jax.TRPOConfig(
    env=Toll(),
    num_envs=32,
    rollout_length=16,
    total_timesteps=32 * 16 * 60,
    hidden_sizes=(4,),
    cost_limits=(1.0, 100.0),
    update="cpo",
)


def costs(episode_cost, limits):
    rows = jnp.zeros((1, len(limits)))
    cost, limits = jnp.float32(episode_cost), jnp.float32(limits)
    return RolloutCosts(rows, cost, jnp.float32(10), 0 * cost, limits)


def test_the_controller_is_its_formula():
    gains = {"proportional": 0.5, "integral": 0.1, "derivative": 0.25}
    state = Multipliers(jnp.zeros(2), jnp.full(2, jnp.inf))
    integral, before = np.zeros(2), np.full(2, np.inf)
    limits = np.array([25.0, 0.0])  # of 0, differences are absolute
    unit = np.array([25.0, 1.0])
    for cost in ([50.0, 1], [20, 0.5], [30, 2], [10, 0], [0, 0]):
        cost = np.array(cost)
        state, found = next_multipliers(state, costs(cost, limits), **gains)
        above = (cost - limits) / unit
        integral = np.maximum(integral + 0.1 * above, 0)
        rise = np.maximum((cost - before) / unit, 0)
        expected = np.maximum(0.5 * above + integral + 0.25 * rise, 0)
        before = cost
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(state.integral, integral, rtol=1e-6, atol=1e-7)


def test_a_cost_that_is_nan_does_not_stay_in_the_controller():
    state = Multipliers(jnp.ones(1), jnp.ones(1))
    gains = {"proportional": 0.5, "integral": 0.1, "derivative": 0.25}
    state, _ = next_multipliers(state, costs([jnp.nan], [1.0]), **gains)
    np.testing.assert_array_equal(state, Multipliers(jnp.ones(1), jnp.ones(1)))


@pytest.mark.parametrize("update", UPDATES)
def test_the_limit_is_kept_and_used(update):
    """The best return under the limit is the limit, 1; without one it would be 4."""
    result = trpo_jax.train(dataclasses.replace(CONFIG, update=update, num_seeds=2))
    metrics = result.metrics
    cost = np.asarray(metrics.episode_cost)[:, -15:]
    assert cost[..., 0].mean() < 1.05
    if update != "trpo_lagrangian":  # which overshoots: it integrates the excess
        assert cost[..., 0].mean() > 0.85
    np.testing.assert_allclose(metrics.episode_return[:, -15:], cost[..., 0], rtol=1e-5)
    np.testing.assert_allclose(cost[..., 1], 2 * cost[..., 0], rtol=1e-5)
    evidence = metrics.constraints
    assert evidence.multipliers[..., 1].max() == 0  # of the limit that never binds
    assert evidence.multipliers[..., 0].max() > 0
    # From the first state, half of the actions cost: above the limit.
    assert evidence.excess[:, 0, 0].min() > 0
    np.testing.assert_allclose(
        evidence.excess[:, 1:, 0], metrics.episode_cost[:, 1:, 0] - 1, atol=1e-5
    )
    assert np.all(metrics.update.kl <= 0.01)
    # Advantages that contain costs promise nothing about the return.
    bounded = np.isfinite(metrics.improvement_bound).all()
    assert bounded == (update in ("cpo", "pcpo"))
    # What the surrogate says comes about in the next rollout.
    change = np.diff(np.asarray(metrics.episode_cost)[..., 0], axis=1)
    predicted = np.asarray(evidence.cost_change)[:, :-1, 0]
    assert np.corrcoef(change.ravel(), predicted.ravel())[0, 1] > 0.6
    if update == "crpo":
        recovered = np.asarray(evidence.recovered)
        np.testing.assert_array_equal(recovered, evidence.excess[..., 0] > 0)


def test_the_multiplier_can_be_swept():
    """Gains are traced: one program, a run for each."""
    config = dataclasses.replace(
        CONFIG, update="trpo_lagrangian", total_timesteps=512 * 3
    )

    def train(gain):
        floats = config.hyperparameters._replace(multiplier_learning_rate=gain)
        return trpo_jax.train(config, hyperparameters=floats).metrics.constraints

    multipliers = fast_jit(jax.vmap(train))(jnp.array([0.1, 0.2])).multipliers
    np.testing.assert_allclose(multipliers[1, 0], 2 * multipliers[0, 0], rtol=1e-5)
    assert multipliers[0, 0, 0] > 0


def one_is_nan(observation, action, following):
    return jnp.array([jnp.nan, 1.0])


def huge(observation, action, following):
    """Costs whose variance overflows."""
    return 1e30 * following[:2]


@pytest.mark.parametrize(
    ("update", "cost_fn"),
    [("cpo", one_is_nan), ("crpo", one_is_nan), ("trpo_pid", huge)],
)
def test_costs_that_are_no_numbers_refuse_updates_and_keep_the_parameters(
    update, cost_fn
):
    config = dataclasses.replace(
        CONFIG,
        env=CostEnvironment("CartPole-v1", cost_fn),
        update=update,
        cost_limits=(1.0, 1.0),
        num_envs=2,
        total_timesteps=64,
    )
    start = jax.jit(trpo_jax.init)(config, jax.random.key(0))
    state, metrics = jax.jit(trpo_jax.step)(config, start)
    assert metrics.update.status == UpdateStatus.NON_FINITE
    jax.tree.map(np.testing.assert_array_equal, state.params, start.params)


@pytest.mark.parametrize("update", UPDATES)
def test_double_precision_changes_no_types(update):
    with jax.enable_x64(True):
        config = dataclasses.replace(CONFIG, update=update)
        state = jax.eval_shape(trpo_jax.init, config, jax.random.key(0))
        following, _ = jax.eval_shape(trpo_jax.step, config, state)
    types = [
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), one)
        for one in (state, following)
    ]
    assert types[0] == types[1]
