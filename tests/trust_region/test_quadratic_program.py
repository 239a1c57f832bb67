"""The step of a constrained update against SciPy, and its conditions of optimality."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit
from scipy.optimize import minimize

from trpo_jax import UsageError
from trpo_jax.trust_region import (
    LinearModel,
    optimal_step,
    projected_step,
    recovery_step,
)

SIZE = 6
NUM_PROBLEMS = 200

optimal, projected = fast_jit(optimal_step), fast_jit(projected_step)


class Problem:
    """max gᵀs, c + Bs ≤ 0, ½ sᵀHs ≤ δ with random data; every fifth on an edge."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        costs = (1, 3)[seed % 2]
        root = rng.normal(size=(SIZE, SIZE))
        self.h = root @ root.T + 0.1 * np.eye(SIZE)
        self.g = rng.normal(size=SIZE)
        self.b = rng.normal(size=(costs, SIZE))
        self.max_kl = 10 ** rng.uniform(-3, 0)
        self.x = np.linalg.solve(self.h, self.g)
        self.y = np.linalg.solve(self.h, self.b.T).T
        self.reach = np.sqrt(2 * self.max_kl * np.sum(self.b * self.y, axis=1))
        self.c = rng.normal(size=costs) * 0.7 * self.reach
        if seed % 5 == 0:
            self.c[0] = 0
        model = (self.g @ self.x, self.b @ self.x, self.b @ self.y.T, self.c)
        self.model = LinearModel(*map(jnp.asarray, model))

    def step(self, combination):
        alpha, beta = map(np.asarray, combination[:2])
        return alpha * self.x - beta @ self.y

    def kl(self, step):
        return 0.5 * step @ self.h @ step

    def limits(self):
        return {
            "type": "ineq",
            "fun": lambda s: -(self.c + self.b @ s),
            "jac": lambda s: -self.b,
        }

    def closest(self, point):
        """The s nearest to a point in the metric H that keeps the limits, by SciPy."""
        return minimize(
            lambda s: self.kl(s - point),
            np.zeros(SIZE),
            jac=lambda s: self.h @ (s - point),
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-14},
            constraints=[self.limits()],
        )

    def solve(self):
        """The solution of the program, by SciPy."""
        unit = np.linalg.norm(self.g)
        inside = {
            "type": "ineq",
            "fun": lambda s: (self.max_kl - self.kl(s)) / self.max_kl,
            "jac": lambda s: -self.h @ s / self.max_kl,
        }
        return minimize(
            lambda s: -self.g @ s / unit,
            np.zeros(SIZE),
            jac=lambda s: -self.g / unit,
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-14},
            constraints=[self.limits(), inside],
        )


@pytest.fixture(scope="module")
def problems():
    with jax.enable_x64(True):
        return [Problem(seed) for seed in range(NUM_PROBLEMS)]


def test_the_optimum_is_scipys(problems, float64):
    count = 0
    for problem in problems:
        found = optimal(problem.model, problem.max_kl)
        nearest = problem.closest(np.zeros(SIZE))
        feasible = nearest.success and nearest.fun <= problem.max_kl
        assert bool(found.feasible) == feasible
        if feasible:
            count += 1
            best = problem.g @ problem.solve().x
            np.testing.assert_allclose(
                problem.g @ problem.step(found), best, rtol=1e-6, atol=1e-9
            )
    assert NUM_PROBLEMS // 4 < count < NUM_PROBLEMS


def test_the_conditions_of_optimality_hold(problems, float64):
    """Stationarity, complementary slackness, signs, and both kinds of limits."""
    active = 0
    for problem in problems:
        found = optimal(problem.model, problem.max_kl)
        if not found.feasible:
            continue
        step, multipliers = problem.step(found), np.asarray(found.multipliers)
        slack = (problem.c + problem.b @ step) / problem.reach
        share = multipliers * problem.reach / (problem.g @ problem.x) ** 0.5
        lagrangian = problem.g - problem.h @ step / found.alpha
        lagrangian = lagrangian - multipliers @ problem.b
        assert np.abs(lagrangian).max() < 1e-8 * np.abs(problem.g).max()
        assert np.abs(share * slack).max() < 1e-8
        assert share.min() > -1e-8
        assert slack.max() < 1e-8
        np.testing.assert_allclose(problem.kl(step), problem.max_kl, rtol=1e-8)
        active += (share > 1e-6).any()
    assert active > 20


def test_predictions_are_those_of_the_step(problems, float64):
    for problem in problems[:20]:
        for found in (
            optimal(problem.model, problem.max_kl),
            projected(problem.model, problem.max_kl),
        ):
            step = problem.step(found)
            model = problem.model
            np.testing.assert_allclose(found.gain(model), problem.g @ step, rtol=1e-8)
            np.testing.assert_allclose(
                found.cost_change(model), problem.b @ step, rtol=1e-8, atol=1e-14
            )
            np.testing.assert_allclose(
                found.squared_norm(model), 2 * problem.kl(step), rtol=1e-8
            )


def test_the_projection_is_scipys(problems, float64):
    for problem in problems[:60]:
        found = projected(problem.model, problem.max_kl)
        length = np.sqrt(2 * problem.max_kl / (problem.g @ problem.x))
        nearest = problem.closest(length * problem.x)
        if nearest.success:
            assert found.feasible
            np.testing.assert_allclose(problem.step(found), nearest.x, atol=2e-5)


def test_a_recovery_lowers_the_costs_as_far_as_it_can(problems, float64):
    infeasible = 0
    for problem in problems:
        found = optimal(problem.model, problem.max_kl)
        if found.feasible:
            continue
        infeasible += 1
        step = problem.step(found)
        np.testing.assert_allclose(problem.kl(step), problem.max_kl, rtol=1e-8)
        change = problem.b @ step / problem.reach
        # The least sum of the costs that are too high, each as a share of its reach.
        above = problem.c > 0
        assert change[above].sum() < 0
        weights = np.where(above, 1 / problem.reach, 0) @ problem.b
        least = -np.sqrt(
            2 * problem.max_kl * weights @ np.linalg.solve(problem.h, weights)
        )
        np.testing.assert_allclose(weights @ step, least, rtol=1e-8)
        assert found.alpha == 0
    assert infeasible > 20


def test_one_cost_has_the_closed_form_of_the_paper(problems, float64):
    """Theorem 2 of Achiam et al. 2017."""
    for problem in problems[::2]:
        (r,), ((s,),), (c,) = problem.model.r, problem.model.s, problem.c
        q, delta = problem.model.q, problem.max_kl
        found = optimal(problem.model, delta)
        if not found.feasible:
            assert c > 0
            assert c**2 / s > 2 * delta
            continue
        free = np.sqrt(q / (2 * delta))
        # The dual is concave in λ: with and without the constraint.
        bound = np.sqrt((q - r**2 / s) / max(2 * delta - c**2 / s, 1e-300))
        active = r + bound * c > 0 and c**2 / s < 2 * delta
        lam = bound if active and (c + r / free > 0) else free
        nu = max(0, (lam * c + r) / s) if lam is bound else 0
        np.testing.assert_allclose(found.alpha, 1 / lam, rtol=1e-7)
        np.testing.assert_allclose(found.multipliers[0], nu, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("float64")
def test_without_gradients():
    """The objective, a cost, or both have a gradient of zero."""
    one = jnp.ones(1)
    model = LinearModel(jnp.float64(0), 0 * one, one[None], -one)
    assert optimal(model, 0.5)[:2] == (0, 0)  # nothing to gain, nothing to mend
    still = optimal(model._replace(excess=0.5 * one), 0.5)
    np.testing.assert_allclose(still.beta, 0.5)  # the shortest way back
    assert still.feasible
    flat = model._replace(q=jnp.float64(4), s=0 * one[None], excess=one)
    for solve in (optimal, projected):
        found = solve(flat, 0.5)
        assert found.feasible  # a cost that no step changes is not asked for
        np.testing.assert_allclose(found.alpha, 0.5)
        np.testing.assert_allclose(found.beta, 0)


@pytest.mark.usefixtures("float64")
def test_limits_that_contradict_each_other_recover():
    """Two costs of opposite gradients, both above: no step keeps both limits."""
    model = LinearModel(
        jnp.float64(1),
        jnp.zeros(2),
        jnp.array([[1.0, -1.0], [-1.0, 1.0]]),
        jnp.array([0.1, 0.1]),
    )
    for solve in (optimal, projected):
        found = solve(model, 0.5)
        assert not found.feasible
        chex.assert_tree_all_finite(found)
        assert found.alpha == 0


def test_costs_of_one_direction_share_a_limit():
    """The second is twice the first, to rounding, and the tighter limit binds."""
    twice = np.array([1.0, 2.0], np.float32)
    s = twice[:, None] * twice * np.float32(1 + 1e-7)
    model = LinearModel(
        jnp.float32(1),
        jnp.float32(0.9) * twice,
        jnp.asarray(s),
        jnp.array([-0.1, -50.0], jnp.float32),
    )
    found = optimal(model, 0.5)
    np.testing.assert_allclose(found.cost_change(model), [0.1, 0.2], rtol=1e-4)
    assert found.multipliers[1] == 0
    assert np.abs(found.beta).max() < 2


def test_the_objective_fixed_by_a_limit(float64):
    """g = b: at most, the step spends what the limit leaves."""
    one = jnp.ones(1)
    model = LinearModel(jnp.float64(1), one, one[None], -0.25 * one)
    found = optimal(model, 0.5)
    np.testing.assert_allclose(found.gain(model), 0.25)
    np.testing.assert_allclose(found.cost_change(model), 0.25)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("solve", [optimal_step, projected_step, recovery_step])
def test_units_do_not_matter(solve, problems):
    problem = problems[1]
    costs, objective = jnp.array([1e3, 1.0, 1e-3]), 1e4
    model = problem.model
    scaled = LinearModel(
        model.q * objective**2,
        model.r * objective * costs,
        model.s * costs[:, None] * costs,
        model.excess * costs,
    )
    found, other = fast_jit(solve)(model, 0.01), fast_jit(solve)(scaled, 0.01)
    np.testing.assert_allclose(other.alpha * objective, found.alpha, rtol=1e-9)
    np.testing.assert_allclose(other.beta * costs, found.beta, rtol=1e-9, atol=1e-12)


def test_vmap_is_a_loop_and_jit_changes_nothing(problems, float64):
    some = [problem for problem in problems[:20] if problem.c.size == 3]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(p.model for p in some))
    mapped = fast_jit(jax.vmap(functools.partial(optimal_step, max_kl=0.01)))(stacked)
    for index, problem in enumerate(some):
        one = jax.tree.map(lambda leaf, i=index: leaf[i], mapped)
        chex.assert_trees_all_close(one, optimal(problem.model, 0.01), rtol=1e-9)
    chex.assert_trees_all_close(
        optimal_step(some[0].model, 0.01), optimal(some[0].model, 0.01), rtol=1e-9
    )


def test_too_many_costs_are_refused():
    costs = jnp.ones(9)
    model = LinearModel(jnp.float32(1), costs, jnp.eye(9), costs)
    with pytest.raises(UsageError, match="9 costs have limits; write at most 8"):
        optimal_step(model, 0.01)
