"""Constrained updates against dense matrices, and what they must hold."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import policies
import pytest
import reference
from compiling import fast_jit
from scipy.optimize import minimize

from trpo_jax import UpdateStatus, UsageError
from trpo_jax.trust_region import (
    constrained_update,
    cost_changes,
    optimal_step,
    projected_step,
    trust_region_update,
)

N = 12
KINDS = tuple(policies.LINEAR)
STEPS = {"cpo": optimal_step, "pcpo": projected_step}


@partial(fast_jit, static_argnames=("kind", "step", "micro_batch_size"))
def update(
    kind, params, batch, costs, excess, step="cpo", micro_batch_size=None, damping=0.1
):
    return constrained_update(
        policies.LINEAR[kind],
        params,
        batch,
        costs,
        excess,
        step_fn=STEPS[step],
        damping=damping,
        cg_iterations=30,
        cg_tolerance=1e-12,
        micro_batch_size=micro_batch_size,
    )


def make_problem(kind, num_costs=2):
    policy, theta, unravel, batch = policies.linear_problem(kind, N)
    costs = np.random.default_rng(7).normal(size=(N, num_costs))
    costs -= costs.mean(axis=0)
    batch = jax.tree.map(jnp.asarray, batch)
    params = jax.tree.map(jnp.asarray, unravel(theta))
    return policy, theta, unravel, params, batch, jnp.asarray(costs)


def gradients(policy, theta, batch, costs):
    """Return g and the rows b_k, by differences in float64."""
    arguments = (batch.observations, batch.actions, batch.log_probs)
    of = partial(reference.surrogate_gradient, policy, theta, *arguments)
    return of(batch.advantages), np.stack([of(np.asarray(cost)) for cost in costs.T])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("excess", [(-1.0, -1.0), (-0.01, -1.0), (-0.01, 0.01)])
def test_the_first_candidate_solves_the_dense_program(kind, excess, float64):
    """The step of the program, of which the search has taken a fraction."""
    policy, theta, unravel, params, batch, costs = make_problem(kind)
    g, b = gradients(policy, theta, batch, costs)
    fisher = reference.fisher(policy, theta, batch.observations)
    h = fisher + 0.1 * np.eye(len(theta))
    x = np.linalg.solve(h, g)
    radius = 0.01 * (g @ x) / (x @ fisher @ x)
    excess = np.array(excess)
    unit = np.linalg.norm(g)
    best = minimize(
        lambda s: -g @ s / unit,
        np.zeros(len(theta)),
        jac=lambda s: -g / unit,
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-15},
        constraints=[
            {"type": "ineq", "fun": lambda s: -(excess + b @ s), "jac": lambda s: -b},
            {
                "type": "ineq",
                "fun": lambda s: 1 - 0.5 * s @ h @ s / radius,
                "jac": lambda s: -h @ s / radius,
            },
        ],
    )
    moved, info, constraints = update(kind, params, batch, costs, jnp.asarray(excess))
    assert info.status == UpdateStatus.ACCEPTED
    assert not constraints.recovered
    fraction = float(info.accepted_fraction)
    for name, leaf in unravel(theta + fraction * best.x).items():
        np.testing.assert_allclose(moved[name], leaf, atol=1e-6)
    np.testing.assert_allclose(
        constraints.cost_change_predicted, fraction * b @ best.x, atol=1e-7
    )
    np.testing.assert_allclose(info.expected_improvement, fraction * g @ best.x, 1e-5)
    predicted = 0.5 * fraction**2 * best.x @ fisher @ best.x
    np.testing.assert_allclose(info.kl_predicted, predicted, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", STEPS)
def test_without_an_active_limit_it_is_trpo(kind, step, float64):
    *_, params, batch, costs = make_problem(kind)
    moved, info, constraints = update(
        kind, params, batch, costs, jnp.full(2, -100.0), step
    )
    of_trpo, trpo = fast_jit(
        partial(
            trust_region_update,
            policies.LINEAR[kind],
            damping=0.1,
            cg_iterations=30,
            cg_tolerance=1e-12,
        )
    )(params, batch)
    chex.assert_trees_all_close(moved, of_trpo, rtol=1e-9)
    different = {"cg_iterations", "cg_relative_residual", "cg_status"}
    for name in set(info._fields) - different:
        np.testing.assert_allclose(
            getattr(info, name), getattr(trpo, name), rtol=1e-7, atol=1e-12
        )
    np.testing.assert_array_equal(constraints.multipliers, 0)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_accepted_keeps_its_limits(kind, step, float64):
    """KL ≤ δ; a cost below its limit stays there, one above it falls."""
    *_, params, batch, costs = make_problem(kind)
    rng = np.random.default_rng(1)
    accepted = 0
    for _ in range(20):
        excess = jnp.asarray(rng.normal(scale=0.05, size=2))
        moved, info, constraints = update(kind, params, batch, costs, excess, step)
        if info.status != UpdateStatus.ACCEPTED:
            chex.assert_trees_all_equal(moved, params)
            continue
        accepted += 1
        ratio = np.exp(
            policies.LINEAR[kind](moved, batch.observations).log_prob(batch.actions)
            - batch.log_probs
        )
        change = (ratio - 1) @ costs / N
        np.testing.assert_allclose(constraints.cost_change, change, atol=1e-12)
        assert info.kl <= 0.01
        assert (change <= np.maximum(-excess, 0) + 1e-12).all()
        if (excess > 0).any():
            assert change[np.asarray(excess) > 0].min() < 0
        else:
            assert info.gain > 0
    assert accepted > 14


def test_a_recovery_lowers_the_cost_against_the_objective(float64):
    kind = KINDS[0]
    *_, params, batch, costs = make_problem(kind, 1)
    aligned = costs[:, 0]  # all that lowers the cost lowers the objective
    batch = batch._replace(advantages=aligned)
    _, info, constraints = update(kind, params, batch, costs, jnp.array([10.0]))
    assert info.status == UpdateStatus.ACCEPTED
    assert constraints.recovered
    assert constraints.cost_change[0] < 0
    assert info.gain < 0
    np.testing.assert_allclose(constraints.cost_change[0], info.gain, rtol=1e-9)


def test_a_cost_that_no_step_changes_does_not_stop_learning(float64):
    """Above its limit, and with a gradient of zero."""
    kind = KINDS[0]
    *_, params, batch, costs = make_problem(kind, 1)
    _, info, constraints = update(kind, params, batch, 0 * costs, jnp.ones(1))
    assert info.status == UpdateStatus.ACCEPTED
    assert info.gain > 0
    np.testing.assert_array_equal(constraints.cost_change, 0)


def test_a_limit_that_would_be_passed_refuses_and_says_so(float64):
    """At its limit, with an objective that is the cost: no step is left."""
    kind = KINDS[0]
    *_, params, batch, costs = make_problem(kind, 1)
    batch = batch._replace(advantages=costs[:, 0])
    excess = jnp.array([-1e-9])
    moved, info, constraints = update(kind, params, batch, costs, excess)
    assert info.status in (UpdateStatus.COST_EXCEEDED, UpdateStatus.ACCEPTED)
    assert constraints.cost_change[0] <= 1e-9
    if info.status == UpdateStatus.COST_EXCEEDED:
        chex.assert_trees_all_equal(moved, params)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_costs_that_are_not_finite_refuse_the_update(bad):
    kind = "gaussian"
    *_, params, batch, costs = make_problem(kind)
    below = jnp.full(2, -0.1)
    for costs_, excess in (
        (costs.at[3, 1].set(bad), below),
        (costs, below.at[0].set(bad)),
    ):
        moved, info, constraints = update(kind, params, batch, costs_, excess)
        assert info.status == UpdateStatus.NON_FINITE
        chex.assert_trees_all_equal(moved, params)
        np.testing.assert_array_equal(constraints.cost_change, 0)


def test_micro_batches_and_vmap_change_nothing(float64):
    kind = KINDS[-1]
    *_, params, batch, costs = make_problem(kind)
    excesses = jnp.array([[-0.01, 0.01], [-1.0, -1.0], [0.2, 0.2]])
    take = partial(
        constrained_update,
        policies.LINEAR[kind],
        params,
        batch,
        costs,
        cg_iterations=30,
        cg_tolerance=1e-12,
    )
    mapped = fast_jit(jax.vmap(take))(excesses)
    for index, excess in enumerate(excesses):
        one = update(kind, params, batch, costs, excess)
        alone = jax.tree.map(lambda leaf, i=index: leaf[i], mapped)
        chex.assert_trees_all_close(alone, one, rtol=1e-8, atol=1e-12)
        cut = update(kind, params, batch, costs, excess, micro_batch_size=5)
        chex.assert_trees_all_close(cut, one, rtol=1e-8, atol=1e-12)


def test_changes_of_costs_by_any_update(float64):
    kind = KINDS[0]
    *_, params, batch, costs = make_problem(kind)
    moved = jax.tree.map(lambda leaf: leaf + 1e-5 * jnp.cos(leaf), params)
    change, predicted = fast_jit(partial(cost_changes, policies.LINEAR[kind]))(
        params, moved, batch, costs
    )
    np.testing.assert_allclose(change, predicted, rtol=1e-3)
    ratio = np.exp(
        policies.LINEAR[kind](moved, batch.observations).log_prob(batch.actions)
        - batch.log_probs
    )
    np.testing.assert_allclose(change, (ratio - 1) @ costs / N, atol=1e-12)
    still, _ = cost_changes(policies.LINEAR[kind], params, params, batch, costs)
    np.testing.assert_array_equal(still, 0)


@pytest.mark.usefixtures("no_shape_checks")
def test_shapes_that_do_not_fit_are_refused():
    kind = KINDS[0]
    *_, params, batch, costs = make_problem(kind)
    with pytest.raises(UsageError, match=r"one column and one number for each of K"):
        constrained_update(policies.LINEAR[kind], params, batch, costs, jnp.zeros(3))
    with pytest.raises(UsageError, match="cost_advantages have the shape"):
        constrained_update(
            policies.LINEAR[kind], params, batch, costs[:, 0], jnp.zeros(1)
        )
