"""Constrained policy optimisation: a trust region update that keeps limits on costs."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from trpo_jax.errors import UsageError
from trpo_jax.trust_region.backtracking import Candidate, LineSearchResult, line_search
from trpo_jax.trust_region.cg import CGResult, CGStatus
from trpo_jax.trust_region.checks import check_not_negative, check_positive
from trpo_jax.trust_region.evidence import UpdateInfo, UpdateStatus, evidence
from trpo_jax.trust_region.fisher import (
    OperatorFn,
    PolicyFn,
    gauss_newton_vector_product,
)
from trpo_jax.trust_region.flat import flatten, max_norm, move
from trpo_jax.trust_region.preconditioner import (
    MakePreconditionerFn,
    score_preconditioner,
)
from trpo_jax.trust_region.problem import (
    Batch,
    Comparison,
    OldPolicy,
    Problem,
    surrogate_problem,
    surrogate_with_entropy,
)
from trpo_jax.trust_region.quadratic_program import (
    Combination,
    LinearModel,
    StepFn,
    optimal_step,
    recovery_weights,
)
from trpo_jax.trust_region.step_size import undamped_curvature


class ConstraintInfo(NamedTuple):
    """Evidence of an update about K costs, in units of the cost advantages.

    Attributes:
        excess: c, by how much each cost was above its limit, float[K].
        multipliers: ν, the weight of each cost against the objective, float[K]: of
            optimal and projected steps, L for each unit of cost.
        cost_change: Change of each cost's surrogate at the parameters kept, float[K].
        cost_change_predicted: fraction · b_kᵀs, the linear model's, float[K].
        recovered: Whether the objective was ignored to reduce costs, bool scalar.
    """

    excess: Float[Array, " K"]
    multipliers: Float[Array, " K"]
    cost_change: Float[Array, " K"]
    cost_change_predicted: Float[Array, " K"]
    recovered: Bool[Array, ""]


def constrained_update(
    policy_fn: PolicyFn,
    params: PyTree,
    batch: Batch,
    cost_advantages: Float[Array, "N *T K"],
    excess: Float[Array, " K"],
    *,
    step_fn: StepFn = optimal_step,
    max_kl: Float[Array, ""] | float = 0.01,
    damping: Float[Array, ""] | float = 0.1,
    entropy_coefficient: Float[Array, ""] | float = 0.0,
    cg_iterations: int = 10,
    cg_tolerance: float = 1e-5,
    preconditioner_groups: int = 0,
    make_preconditioner_fn: MakePreconditionerFn = score_preconditioner,
    max_backtracks: int = 10,
    backtrack_factor: float = 0.5,
    interpolate: bool = True,
    line_search_width: int = 1,
    fisher_batch: Batch | None = None,
    micro_batch_size: int | None = None,
    operator_fn: OperatorFn = gauss_newton_vector_product,
    precision: str = "float32",
) -> tuple[PyTree, UpdateInfo, ConstraintInfo]:
    """Take one step of constrained policy optimisation.

    max_θ L(θ)  subject to  mean_s KL(π_old ‖ π_θ) ≤ δ,  c_k + C_k(θ) ≤ 0,
    C_k(θ) = mean[(π_θ(a|s) / π_old(a|s) − 1) · A_k(s, a)]

    solved by  s = argmax gᵀs  subject to  ½ sᵀHs ≤ δ,  c_k + b_kᵀs ≤ 0,
    θ = θ_old + fraction · s,  H = F + λI,  g = ∇L,  b_k = ∇C_k

    The line search accepts a candidate with KL ≤ δ, no cost further above its limit
    than before, and a larger L. While a cost is above its limit, it asks for lower
    costs in place of a larger L; where no step of the trust region keeps the limits,
    the step itself only reduces those costs. Without an active limit the step is that
    of `trust_region_update`. The projected step of PCPO may lead out of the trust
    region, as in its paper; here the search then shortens it.

    Args:
        policy_fn: As all that is not named here, see `trust_region_update`.
        params: θ_old.
        batch: The transitions; their advantages are those of the reward.
        cost_advantages: A_k(s, a) of each transition, float[N, K], or float[N, T, K]
            for sequences.
        excess: c_k, by how much each cost is above its limit, float[K], negative below.
            In units of the advantages: with those of one step, the mean cost of a step
            less its limit.
        step_fn: (model, max_kl) ↦ the step: `optimal_step` of constrained policy
            optimisation (CPO), or `projected_step` of its projection-based relative
            (PCPO).
        max_kl: δ, in nats.
        damping: λ ≥ 0.
        entropy_coefficient: c ≥ 0 of the entropy bonus in L.
        cg_iterations: The largest number of Fisher-vector products; each is made with
            K + 1 vectors at once.
        cg_tolerance: Relative residual at which conjugate gradient stops earlier.
        preconditioner_groups: Gradients that precondition the solve, 0 for none.
        make_preconditioner_fn: The preconditioner made of them.
        max_backtracks: The largest number of fractions that the line search tries.
        backtrack_factor: Ratio of each fraction to the one before.
        interpolate: Whether the line search uses the KL of a candidate to land near δ.
        line_search_width: Candidates evaluated at once.
        fisher_batch: Transitions over which F is computed, None for all.
        micro_batch_size: Rows processed at a time, None for all.
        operator_fn: Products with F.
        precision: Precision of matrix products on accelerators.

    Returns:
        The new parameters, their `UpdateInfo`, whose step size is α of the step
        (0 in a recovery), and the `ConstraintInfo`. If no
        candidate is acceptable, the parameters are the old ones, bit for bit.

    Raises:
        UsageTypeError: As `trust_region_update`.
        UsageError: As `trust_region_update`, or if the shapes of advantages and limits
            do not fit.

    Source: Achiam et al. 2017 (arXiv 1705.10528), section 6; Yang et al. 2020
    (arXiv 2010.03152) for PCPO.
    """
    check_positive(max_kl=max_kl)
    check_not_negative(damping=damping)
    _check_costs(batch, cost_advantages, excess)
    problem, theta_old = surrogate_problem(
        policy_fn,
        params,
        batch,
        entropy_coefficient=entropy_coefficient,
        micro_batch_size=micro_batch_size,
        fisher_batch=fisher_batch,
    )
    with jax.default_matmul_precision(precision):
        # 1. The gradients of objective and costs at θ_old.
        old, gradient = problem.value_and_gradient(theta_old)
        costs_old, cost_gradients = _costs(problem, cost_advantages, theta_old)

        # 2. Their natural directions, in one solve with K + 1 right-hand sides.
        gradients = jax.tree.map(_stack, gradient, cost_gradients)
        solved = jax.vmap(
            lambda gradient: problem.natural_direction(
                theta_old,
                gradient,
                damping=damping,
                cg_iterations=cg_iterations,
                cg_tolerance=cg_tolerance,
                preconditioner_groups=preconditioner_groups,
                make_preconditioner_fn=make_preconditioner_fn,
                operator_fn=operator_fn,
            )
        )(gradients)

        # 3. The step that is best for the linear model. Its radius is the one at which
        # the natural direction of the objective has an undamped KL of δ.
        products = _inner(gradients, solved.x)
        model = LinearModel(products[0, 0], products[1:, 0], products[1:, 1:], excess)
        cg = _worst(solved)
        undamped = undamped_curvature(gradient, cg.x, damping)
        combination = step_fn(model, max_kl * _ratio(model.q, undamped))
        step = combination.step(solved.x)

        # 4. A fraction of it that keeps KL and limits, and improves L, or the costs
        # that are above theirs.
        weights = recovery_weights(model)

        def evaluate(fraction: Float[Array, ""]) -> Candidate:
            theta = move(theta_old, fraction, step)
            candidate = problem.candidate(theta, old)
            moved = max_norm(optax.tree.sub(theta, theta_old)) > 0
            costs, _ = _costs(problem, cost_advantages, theta)
            change = jnp.where(moved, costs - costs_old, 0)
            return _with_limits(candidate, old, change, excess, weights)

        search = line_search(
            evaluate,
            surrogate_old=jnp.zeros_like(old.value),
            max_kl=max_kl,
            max_backtracks=max_backtracks,
            backtrack_factor=backtrack_factor,
            interpolate=interpolate,
            width=line_search_width,
        )

        # 5. Move there, or keep the old parameters.
        moved = move(theta_old, search.fraction, step)
        theta = optax.tree.where(search.accepted, moved, theta_old)
        info, constraints = _describe(
            old, gradient, cg, model, combination, step, search, damping, max_kl
        )
    return problem.params_of(theta), info, constraints


def cost_changes(
    policy_fn: PolicyFn,
    params_old: PyTree,
    params: PyTree,
    batch: Batch,
    cost_advantages: Float[Array, "N *T K"],
    *,
    micro_batch_size: int | None = None,
) -> tuple[Float[Array, " K"], Float[Array, " K"]]:
    """Return the change of each cost's surrogate by any update, and its linear model's.

    C_k(θ) − C_k(θ_old)  and  b_kᵀ(θ − θ_old)

    Args:
        policy_fn: (params, observations [N, …]) ↦ `Distribution` over actions.
        params_old: θ_old.
        params: θ.
        batch: The transitions.
        cost_advantages: A_k(s, a), float[N, K] or [N, T, K].
        micro_batch_size: Rows processed at a time, None for all.
    """
    problem, theta_old = surrogate_problem(
        policy_fn,
        params_old,
        batch,
        entropy_coefficient=0.0,
        micro_batch_size=micro_batch_size,
        fisher_batch=None,
    )
    theta, _ = flatten(params)
    before, gradients = _costs(problem, cost_advantages, theta_old)
    after, _ = _costs(problem, cost_advantages, theta)
    moved = optax.tree.sub(theta, theta_old)
    predicted = jax.vmap(lambda gradient: optax.tree.vdot(gradient, moved))(gradients)
    has_moved = max_norm(moved) > 0
    return jnp.where(has_moved, after - before, 0), jnp.where(has_moved, predicted, 0)


class _Kept(NamedTuple):
    """Evidence of a candidate: L, the comparison, and what it does to each cost."""

    surrogate: Float[Array, ""]
    comparison: Comparison
    cost_change: Float[Array, " K"]
    finite: Bool[Array, ""]
    feasible: Bool[Array, ""]


def _with_limits(
    candidate: Candidate,
    old: OldPolicy,
    change: Float[Array, " K"],
    excess: Float[Array, " K"],
    weights: Float[Array, " K"],
) -> Candidate:
    """Return the candidate as the line search is to see it.

    Its merit is the gain in L or, while there are weights of costs above their limits,
    the weighted fall of these. One that raises a cost further above is not finite.
    """
    gain = candidate.surrogate - old.value
    merit = jnp.where(jnp.any(weights > 0), -weights @ change, gain)
    feasible = jnp.all(change <= jnp.maximum(-excess, 0))
    finite = candidate.finite & jnp.isfinite(gain + jnp.sum(change + excess))
    kept = _Kept(candidate.surrogate, candidate.evidence, change, finite, feasible)
    # As a part of `finite`: with a leaf of its own in every `Candidate`, a step of TRPO
    # took a quarter longer on a CPU.
    return Candidate(merit, candidate.kl, finite & feasible, kept)


def _describe(
    old: OldPolicy,
    gradient: PyTree,
    cg: CGResult,
    model: LinearModel,
    combination: Combination,
    step: PyTree,
    search: LineSearchResult,
    damping: Float[Array, ""] | float,
    max_kl: Float[Array, ""] | float,
) -> tuple[UpdateInfo, ConstraintInfo]:
    """Return the evidence of the update, and that of its costs."""
    kept: _Kept = search.candidate.evidence
    candidate = search.candidate._replace(
        surrogate=kept.surrogate, evidence=kept.comparison, finite=kept.finite
    )
    squared = combination.squared_norm(model)
    info = evidence(
        old,
        gradient,
        cg,
        squared + jnp.sum(0 * model.excess),  # NaN if a limit is
        jnp.where(squared > 0, jnp.ones_like(squared), 0),
        search._replace(candidate=candidate),
        damping,
        max_kl,
    )
    squared = squared - damping * optax.tree.vdot(step, step)
    predicted = (
        search.fraction * optax.tree.vdot(gradient, step),
        0.5 * search.fraction**2 * squared,
        search.fraction * combination.cost_change(model),
        kept.cost_change,
    )
    gain, kl, cost_change_predicted, cost_change = jax.tree.map(
        lambda leaf: jnp.where(search.accepted, leaf, 0), predicted
    )
    refused = info.status == UpdateStatus.NO_IMPROVEMENT
    info = info._replace(
        status=jnp.where(
            refused & ~kept.feasible, UpdateStatus.COST_EXCEEDED, info.status
        ).astype(info.status.dtype),
        expected_improvement=gain,
        kl_predicted=kl,
        step_size=combination.alpha,
    )
    constraints = ConstraintInfo(
        model.excess,
        combination.multipliers,
        cost_change,
        cost_change_predicted,
        ~combination.feasible,
    )
    return info, constraints


def _costs(
    problem: Problem, cost_advantages: Float[Array, "N *T K"], theta: PyTree
) -> tuple[Float[Array, " K"], PyTree]:
    """Return mean[ratio · A_k] for each cost k, and its gradient, leaves [K, …].

    Where the gradients are not used, they are removed from the compiled program.
    """

    def one(advantages: Float[Array, "N *T"]) -> tuple[Float[Array, ""], PyTree]:
        of_cost = problem._replace(
            objective_fn=surrogate_with_entropy(0.0),
            batch=problem.batch._replace(advantages=advantages),
        )
        old, gradient = of_cost.value_and_gradient(theta)
        return old.value, gradient

    return jax.vmap(one, in_axes=-1)(cost_advantages)


def _stack(first: Array, others: Float[Array, "K *P"]) -> Float[Array, "K1 *P"]:
    return jnp.concatenate([first[None], others])


def _inner(left: PyTree, right: PyTree) -> Float[Array, "K1 K1"]:
    """Return the inner product of each with each, of pytrees with leaves [K + 1, …]."""
    by_leaf = jax.tree.map(
        lambda a, b: a.reshape(len(a), -1) @ b.reshape(len(b), -1).T, left, right
    )
    return functools.reduce(jnp.add, jax.tree.leaves(by_leaf))


def _ratio(damped: Float[Array, ""], undamped: Float[Array, ""]) -> Float[Array, ""]:
    """Return damped / undamped if both curvatures are positive, else 1."""
    usable = (undamped > 0) & (damped > 0)
    return jnp.where(usable, damped / jnp.where(usable, undamped, 1), 1)


def _worst(solved: CGResult) -> CGResult:
    """Return the objective's solve, with the worst residual and status of all."""
    objective: CGResult = jax.tree.map(lambda leaf: leaf[0], solved)
    bad = jnp.any(solved.status == CGStatus.NON_FINITE)
    return objective._replace(
        status=jnp.where(bad, CGStatus.NON_FINITE, objective.status),
        iterations=jnp.max(solved.iterations),
        relative_residual=jnp.max(solved.relative_residual),
    )


def _check_costs(batch: Batch, cost_advantages: Array, excess: Array) -> None:
    rows, limits = jnp.shape(batch.log_probs), jnp.shape(excess)
    if len(limits) != 1 or jnp.shape(cost_advantages) != (*rows, *limits):
        raise UsageError(
            f"cost_advantages have the shape {jnp.shape(cost_advantages)} and excess "
            f"{limits}, for log_probs of shape {rows}; write {(*rows, 'K')} and "
            "('K',), with one column and one number for each of K costs."
        )
