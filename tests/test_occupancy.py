"""Exact optima: the linear program against linear solves and value iteration."""

import numpy as np
import pytest

from benchmarks.occupancy import Process, evaluate, occupancy, optimum
from trpo_jax.environments import TollGrid

GRID = TollGrid()
TOLL = Process.of(GRID)


def random_process(seed):
    """Six states, three actions, two costs; each step ends the episode in a tenth."""
    generator = np.random.default_rng(seed)
    return Process(
        transition=0.9 * generator.dirichlet(np.full(6, 0.3), (6, 3)),
        reward=generator.normal(size=(6, 3)),
        costs=generator.uniform(size=(2, 6, 3)),
        start=generator.dirichlet(np.ones(6)),
    )


PROCESSES = [TOLL, *map(random_process, range(3))]
EACH = pytest.mark.parametrize("process", PROCESSES, ids=["toll", "0", "1", "2"])


def tight_limits(process):
    """Half of the way from the least costs to those of the best policy."""
    least = [
        optimum(process._replace(reward=-cost)).costs[k]
        for k, cost in enumerate(process.costs)
    ]
    return (optimum(process).costs + least) / 2


@EACH
def test_what_flows_into_a_state_flows_out(process):
    best = optimum(process, 1.5 * tight_limits(process))
    visits = occupancy(process, best.policy)
    inflow = process.start + np.einsum("sa,sat->t", visits, process.transition)
    np.testing.assert_allclose(visits.sum(axis=1), inflow, atol=1e-9)
    assert visits.min() >= -1e-12


@EACH
def test_the_programs_value_is_that_of_its_policy(process):
    for limits in (None, 1.5 * tight_limits(process)):
        best = optimum(process, limits)
        value, costs = evaluate(process, best.policy)
        np.testing.assert_allclose(value, best.value, rtol=1e-7)
        np.testing.assert_allclose(costs, best.costs, rtol=1e-6, atol=1e-7)
        assert limits is None or (costs <= limits + 1e-7).all()


@EACH
def test_without_limits_it_agrees_with_value_iteration(process):
    values = np.zeros(len(process.start))
    for _ in range(2000):
        values = (process.reward + process.transition @ values).max(axis=1)
    np.testing.assert_allclose(optimum(process).value, process.start @ values)


@EACH
def test_a_price_is_what_a_looser_limit_is_worth(process):
    limits = 1.5 * tight_limits(process)
    best = optimum(process, limits)
    looser = optimum(process, limits + 1e-4)
    gain = (looser.value - best.value) / 1e-4
    np.testing.assert_allclose(gain, best.prices.sum(), rtol=1e-4, atol=1e-6)


def test_policies_are_evaluated_side_by_side():
    policies = np.random.default_rng(0).dirichlet(np.ones(4), (2, 3, 18))
    values, costs = evaluate(TOLL, policies)
    assert values.shape == (2, 3)
    assert costs.shape == (2, 3, 1)
    np.testing.assert_allclose(values[1, 2], evaluate(TOLL, policies[1, 2])[0])


def test_limits_that_no_policy_keeps_are_refused():
    with pytest.raises(ValueError, match=r"no policy is within the limits \[-1\]"):
        optimum(TOLL, [-1])


def test_within_the_limit_the_way_is_chosen_at_random():
    free, toll = optimum(TOLL), optimum(TOLL, [1.5])
    assert free.costs[0] > 3 * 1.5
    assert toll.value < 0.85 * free.value
    np.testing.assert_allclose(toll.costs, 1.5)
    up, right, *_ = toll.policy[GRID.start]
    assert min(up, right) > 0.3
    # Nor does a policy that always takes the free way come near.
    always = toll.policy.copy()
    always[GRID.start] = [1, 0, 0, 0]
    assert evaluate(TOLL, always)[0] < 0.9 * toll.value
