"""One policy update: gradient → conjugate gradient → step size → line search."""

from collections.abc import Callable

import jax
import optax
from jaxtyping import Array, Float, PyTree

from trpo_jax.trust_region.backtracking import line_search
from trpo_jax.trust_region.checks import check_not_negative, check_positive
from trpo_jax.trust_region.evidence import UpdateInfo, evidence
from trpo_jax.trust_region.fisher import (
    OperatorFn,
    PolicyFn,
    gauss_newton_vector_product,
)
from trpo_jax.trust_region.flat import move
from trpo_jax.trust_region.preconditioner import (
    MakePreconditionerFn,
    score_preconditioner,
)
from trpo_jax.trust_region.problem import (
    Batch,
    surrogate_problem,
)
from trpo_jax.trust_region.step_size import (
    trust_region_step_size,
    undamped_curvature,
)

CurvatureFn = Callable[..., Float[Array, ""]]


def trust_region_update(
    policy_fn: PolicyFn,
    params: PyTree,
    batch: Batch,
    *,
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
    step_size_curvature_fn: CurvatureFn = undamped_curvature,
    precision: str = "float32",
) -> tuple[PyTree, UpdateInfo]:
    """Take one step of trust region policy optimisation.

    max_θ L(θ)  subject to  mean_s KL(π_old ‖ π_θ) ≤ δ,
    L(θ) = mean[π_θ(a|s) / π_old(a|s) · A(s, a)] + c · mean_s H(π_θ(·|s))

    solved by  (F + λI) x = g,  β = √(2δ / xᵀFx),  θ = θ_old + fraction · β x.

    Pure; `jit` it with `policy_fn` and the keyword arguments bound. Differentiable in
    params, batch, max_kl, damping and entropy_coefficient, with the accepted fraction
    treated as a constant, which with `interpolate=False` it is between its jumps.
    Derivatives are those of a converged solve: raise `cg_iterations` until the
    residual is small.

    Args:
        policy_fn: (params, observations[N, …]) ↦ `Distribution` over actions, of batch
            [N], or [N, T] for sequences.
        params: θ_old, a pytree of floating arrays, all of which are optimised.
        batch: The transitions, see `Batch`.
        max_kl: δ, the radius of the trust region, in nats.
        damping: λ ≥ 0, added to the Fisher information's diagonal.
        entropy_coefficient: c ≥ 0, the weight of the entropy bonus in L.
        cg_iterations: The largest number of Fisher-vector products.
        cg_tolerance: Relative residual at which conjugate gradient stops earlier.
        preconditioner_groups: Number of gradients that precondition the solve; 0 for
            none.
        make_preconditioner_fn: (policy_fn, params, batch, groups=, damping=) ↦
            (r ↦ P⁻¹ r): `score_preconditioner`, `diagonal_preconditioner`, or
            `kronecker_preconditioner`.
        max_backtracks: The largest number of fractions that the line search tries;
            with interpolation, of rounds of `line_search_width` fractions.
        backtrack_factor: The ratio of a fraction to the one before; with interpolation
            only where the KL says nothing, and its inverse bounds the growth.
        interpolate: Whether the line search uses the KL of a candidate to land near δ.
        line_search_width: Candidates evaluated at once, see `line_search`.
        fisher_batch: Transitions over which the Fisher information is computed, such as
            a tenth of `batch`, None for all; gradient, KL and line search use `batch`.
        micro_batch_size: Rows that gradient, Fisher-vector products and candidates
            process at a time, None for all. It bounds their memory, not that of the
            preconditioner, and changes the result to rounding only.
        operator_fn: (policy_fn, params, batch) ↦ (v ↦ F v), v and F v pytrees like
            params: `gauss_newton_vector_product`, `fisher_vector_product`, or
            `empirical_fisher_vector_product`.
        step_size_curvature_fn: (g, x, damping) ↦ the quadratic form in the step size:
            `undamped_curvature`, or `damped_curvature` as in most implementations. For
            large params g and x are pytrees: use `optax.tree.vdot`.
        precision: Precision of matrix products on accelerators, as in
            `jax.default_matmul_precision`. TF32 loses conjugacy.

    Returns:
        The new parameters and their `UpdateInfo`. If no candidate is acceptable, the
        parameters are the old ones, bit for bit.

    Raises:
        UsageTypeError: If `policy_fn` does not return a distribution, or params are not
            floating.
        UsageError: If the batch's shapes do not agree, or a number is out of range.

    Source: Schulman et al. 2015 (arXiv 1502.05477), section 6 and appendix C.
    """
    check_positive(max_kl=max_kl)
    check_not_negative(damping=damping)
    problem, theta_old = surrogate_problem(
        policy_fn,
        params,
        batch,
        entropy_coefficient=entropy_coefficient,
        micro_batch_size=micro_batch_size,
        fisher_batch=fisher_batch,
    )
    # One precision for gradient, products and candidates: otherwise they would be of
    # different numerical functions.
    with jax.default_matmul_precision(precision):
        # 1. The policy gradient g = ∇L at θ_old.
        old, gradient = problem.value_and_gradient(theta_old)

        # 2. The natural gradient direction x ≈ (F + λI)⁻¹ g, F the Fisher information
        # there, over `fisher_batch`.
        cg = problem.natural_direction(
            theta_old,
            gradient,
            damping=damping,
            cg_iterations=cg_iterations,
            cg_tolerance=cg_tolerance,
            preconditioner_groups=preconditioner_groups,
            make_preconditioner_fn=make_preconditioner_fn,
            operator_fn=operator_fn,
        )

        # 3. The step size β at which the quadratic model of the KL, ½ β² xᵀFx, is δ.
        curvature = step_size_curvature_fn(gradient, cg.x, damping)
        step_size = trust_region_step_size(curvature, max_kl=max_kl)
        step = optax.tree.scale(step_size, cg.x)

        # 4. A fraction of it, at times above 1, that keeps the constraint, near δ, and
        # improves L.
        search = line_search(
            lambda fraction: problem.candidate(move(theta_old, fraction, step), old),
            surrogate_old=old.value,
            max_kl=max_kl,
            max_backtracks=max_backtracks,
            backtrack_factor=backtrack_factor,
            interpolate=interpolate,
            width=line_search_width,
        )

        # 5. Move there, or keep the old parameters: decided in one place.
        moved = move(theta_old, search.fraction, step)
        theta = optax.tree.where(search.accepted, moved, theta_old)
        info = evidence(
            old, gradient, cg, curvature, step_size, search, damping, max_kl
        )
    return problem.params_of(theta), info
