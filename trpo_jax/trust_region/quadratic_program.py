"""The quadratic program of a constrained update, solved in K + 1 directions.

max_s gᵀs  subject to  c_k + b_kᵀs ≤ 0 for k = 1 … K,  ½ sᵀHs ≤ δ

The solution combines the natural directions x = H⁻¹g and y_k = H⁻¹b_k. A program in as
many unknowns as the policy has parameters so becomes one in K of them, small enough to
try every set of active constraints.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PyTree

from trpo_jax.errors import UsageError

MOST_COSTS = 8
"""Largest K: 2⁸ sets of active constraints."""


class LinearModel(NamedTuple):
    """Objective and costs to first order around θ_old, in the metric H of the KL.

    Attributes:
        q: gᵀx, scalar.
        r: b_kᵀx, float[K].
        s: b_kᵀy_j, float[K, K].
        excess: c, by how much each cost is above its limit, float[K]; negative below.
    """

    q: Float[Array, ""]
    r: Float[Array, " K"]
    s: Float[Array, "K K"]
    excess: Float[Array, " K"]


class Combination(NamedTuple):
    """The step α x − Σ_k β_k y_k.

    Attributes:
        alpha: α ≥ 0, scalar.
        beta: β, float[K].
        multipliers: ν ≥ 0, float[K], of the limits; of the optimal step, what L gains
            with each unit of a limit more. In a recovery, the weights of the costs that
            are reduced.
        feasible: Whether a step inside the trust region keeps all limits, bool scalar.
            If none does, this one is a recovery: it reduces the costs that are above
            their limits, and ignores the objective.
    """

    alpha: Float[Array, ""]
    beta: Float[Array, " K"]
    multipliers: Float[Array, " K"]
    feasible: Bool[Array, ""]

    def step(self, directions: PyTree) -> PyTree:
        """Return the step, of directions with leaves [K + 1, …], x first."""
        coefficients = jnp.concatenate([self.alpha[None], -self.beta])
        return jax.tree.map(
            lambda leaf: jnp.tensordot(coefficients, leaf, 1), directions
        )

    def gain(self, model: LinearModel) -> Float[Array, ""]:
        """Return gᵀs, the predicted gain."""
        return self.alpha * model.q - model.r @ self.beta

    def cost_change(self, model: LinearModel) -> Float[Array, " K"]:
        """Return b_kᵀs, the predicted change of each cost."""
        return self.alpha * model.r - model.s @ self.beta

    def squared_norm(self, model: LinearModel) -> Float[Array, ""]:
        """Return sᵀHs, twice the predicted KL."""
        return self.alpha * self.gain(model) - self.beta @ self.cost_change(model)


StepFn = Callable[[LinearModel, Float[Array, ""] | float], Combination]


def optimal_step(model: LinearModel, max_kl: Float[Array, ""] | float) -> Combination:
    """Return the solution of the quadratic program, or a recovery: the step of CPO.

    With the rows and columns of the active constraints alone,

    S u = c,  S v = r,  α = √((2δ − cᵀu) / (q − rᵀv)),  β = αv + u,  ν = v + u/α

    The set of active constraints is the one with ν ≥ 0 whose step keeps all the other
    limits. For K = 1 this is the closed form of the paper.

    Args:
        model: Objective and costs.
        max_kl: δ > 0.

    Source: Achiam et al. 2017 (arXiv 1705.10528), theorem 2 and section 6.
    """
    unit = _Units.of(model, max_kl)
    scaled = unit.scale(model)

    def solve(active: Bool[Array, " K"]) -> tuple[Combination, Float[Array, ""]]:
        u = _solve(scaled.s, scaled.excess, active)
        v = _solve(scaled.s, scaled.r, active)
        left = 1 - scaled.excess @ u
        # The square of what the constraints leave of g, 0 to rounding where they fix
        # the objective.
        ascent = scaled.q - scaled.r @ v
        free = (left > 0) & (ascent > 100 * jnp.finfo(ascent.dtype).eps)
        alpha = jnp.sqrt(jnp.where(free, left / jnp.where(free, ascent, 1), 0))
        ratio = jnp.where(free, u / jnp.where(free, alpha, 1), 0)
        multipliers = jnp.where(scaled.q > 0, v + ratio, u)
        step = Combination(alpha, alpha * v + u, multipliers, left >= 0)
        return step, _violation(scaled, step)

    step = unit.unscale(_least_violated(solve, scaled))
    shortest, violation = _shortest(scaled)
    feasible = (violation < _TOLERANCE) & (shortest.squared_norm(scaled) <= 1)
    recovery = recovery_step(model, max_kl)
    return optax.tree.where(feasible, step, recovery)._replace(feasible=feasible)


def projected_step(model: LinearModel, max_kl: Float[Array, ""] | float) -> Combination:
    """Return the step of TRPO, projected onto the limits in the metric H: that of PCPO.

    min_s ½ (s − s₁)ᵀH(s − s₁)  subject to  c_k + b_kᵀs ≤ 0,  s₁ = √(2δ / q) x

    It may lie outside of the trust region. Where no step at all keeps the limits, a
    recovery.

    Args:
        model: Objective and costs.
        max_kl: δ > 0.

    Source: Yang et al. 2020 (arXiv 2010.03152), section 3.
    """
    unit = _Units.of(model, max_kl)
    scaled = unit.scale(model)
    # In its units the step of TRPO is x, where there is an x.
    beyond = scaled._replace(excess=scaled.excess + scaled.r)
    back, violation = _shortest(beyond)
    step = unit.unscale(back._replace(alpha=jnp.where(scaled.q > 0, 1.0, 0)))
    feasible = violation < _TOLERANCE
    recovery = recovery_step(model, max_kl)
    return optax.tree.where(feasible, step, recovery)._replace(feasible=feasible)


def recovery_step(model: LinearModel, max_kl: Float[Array, ""] | float) -> Combination:
    """Return the step of KL δ that reduces the costs above their limits.

    s = −√(2δ / wᵀSw) Σ_k w_k y_k,  w = `recovery_weights`

    Args:
        model: Objective and costs.
        max_kl: δ > 0.

    Source: Achiam et al. 2017 (arXiv 1705.10528), equation 14, for K = 1.
    """
    weights = recovery_weights(model)
    squared = weights @ model.s @ weights
    moves = squared > 0
    length = jnp.sqrt(jnp.where(moves, 2 * max_kl / jnp.where(moves, squared, 1), 0))
    zero = jnp.zeros_like(model.q)
    return Combination(zero, length * weights, weights, jnp.bool_(False))


def recovery_weights(model: LinearModel) -> Float[Array, " K"]:
    """Return 1 / √S_kk for a cost above its limit, 0 for the others.

    So that all are reduced by about the same share of what the trust region allows,
    whatever their units.
    """
    squared = jnp.diagonal(model.s)
    reduced = (model.excess > 0) & (squared > 0)
    return jnp.where(reduced, 1 / jnp.sqrt(jnp.where(reduced, squared, 1)), 0)


# A violation, as a share of the largest change inside of the trust region, that counts
# as rounding: products of float32 are good for four digits.
_TOLERANCE = 1e-4


class _Units(NamedTuple):
    """Units in which g and b_k have norm 1, and so has the largest step."""

    objective: Float[Array, ""]
    costs: Float[Array, " K"]
    step: Float[Array, ""]

    @classmethod
    def of(cls, model: LinearModel, max_kl: Float[Array, ""] | float) -> "_Units":
        positive = jax.tree.map(
            lambda squared: jnp.sqrt(jnp.where(squared > 0, squared, 1)),
            (model.q, jnp.diagonal(model.s)),
        )
        objective, costs = positive
        step = jnp.sqrt(2 * jnp.asarray(max_kl, model.q.dtype))
        return cls(objective, costs, step)

    def scale(self, model: LinearModel) -> LinearModel:
        excess = model.excess / (self.costs * self.step)
        # A cost that no direction changes cannot be kept, and is not asked for.
        movable = jnp.diagonal(model.s) > 0
        s = model.s / (self.costs[:, None] * self.costs)
        return LinearModel(
            q=jnp.where(model.q > 0, 1.0, 0).astype(model.q.dtype),
            r=model.r / (self.objective * self.costs),
            s=s + jnp.diag(jnp.where(movable, 0, 1).astype(s.dtype)),
            excess=jnp.where(movable, excess, jnp.minimum(excess, 0)),
        )

    def unscale(self, step: Combination) -> Combination:
        return step._replace(
            alpha=step.alpha * self.step / self.objective,
            beta=step.beta * self.step / self.costs,
            multipliers=step.multipliers * self.objective / self.costs,
        )


def _shortest(model: LinearModel) -> tuple[Combination, Float[Array, ""]]:
    """Return the shortest step that keeps all limits, and the violation it is left."""

    def solve(active: Bool[Array, " K"]) -> tuple[Combination, Float[Array, ""]]:
        u = _solve(model.s, model.excess, active)
        step = Combination(jnp.zeros_like(model.q), u, u, jnp.bool_(True))
        return step, _violation(model, step)

    step = _least_violated(solve, model)
    return step, _violation(model, step)


def _violation(model: LinearModel, step: Combination) -> Float[Array, ""]:
    """Return by how much limits and signs of the multipliers are missed at most."""
    above = model.excess + step.cost_change(model)
    worst = jnp.max(jnp.concatenate([above, -step.multipliers]))
    return jnp.where(step.feasible & jnp.isfinite(worst), worst, jnp.inf)


def _least_violated(
    solve: Callable[[Bool[Array, " K"]], tuple[Combination, Float[Array, ""]]],
    model: LinearModel,
) -> Combination:
    """Return the step of the set of active constraints that violates least."""
    num_costs = model.r.shape[0]
    if num_costs > MOST_COSTS:
        raise UsageError(
            f"{num_costs} costs have limits; write at most {MOST_COSTS}, as by adding "
            "some of them up."
        )
    sets = np.array(list(itertools.product((False, True), repeat=num_costs)))
    steps, violations = jax.vmap(solve)(jnp.asarray(sets))
    return jax.tree.map(lambda leaf: leaf[jnp.argmin(violations)], steps)


def _solve(
    matrix: Float[Array, "K K"], right: Float[Array, " K"], active: Bool[Array, " K"]
) -> Float[Array, " K"]:
    """Return the solution in the active rows and columns, 0 in the others.

    NaN if two of the active ones are nearly the same: a step that keeps one limit then
    keeps the other, and both together would be reached by large steps that cancel.

    By Gauss–Jordan elimination, unrolled: K is small, and a call of LAPACK for each of
    2^K sets, or of its counterpart on a GPU, costs more than all the rest.
    """
    both = active[:, None] & active
    left = jnp.where(both, matrix, jnp.eye(len(active), dtype=matrix.dtype))
    rows = jnp.concatenate([left, jnp.where(active, right, 0)[:, None]], axis=1)

    # The diagonal is 1: what is left of it is the square of a sine.
    least = jnp.sqrt(jnp.finfo(matrix.dtype).eps)

    def eliminate(rows: Array, i: int) -> Array:
        diagonal = jnp.where(rows[i, i] > least, rows[i, i], jnp.nan)
        pivot = rows[i] / diagonal
        return (rows - rows[:, i, None] * pivot).at[i].set(pivot)

    return functools.reduce(eliminate, range(len(active)), rows)[:, -1]
