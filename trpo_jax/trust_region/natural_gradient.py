"""The natural gradient: trust region policy optimisation without its line search."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from trpo_jax.trust_region.backtracking import LineSearchResult
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
from trpo_jax.trust_region.step_size import trust_region_step_size, undamped_curvature
from trpo_jax.trust_region.update import CurvatureFn


def natural_gradient_update(
    policy_fn: PolicyFn,
    params: PyTree,
    batch: Batch,
    *,
    step_size: Float[Array, ""] | float | None = None,
    max_kl: Float[Array, ""] | float = 0.01,
    damping: Float[Array, ""] | float = 0.1,
    entropy_coefficient: Float[Array, ""] | float = 0.0,
    cg_iterations: int = 10,
    cg_tolerance: float = 1e-5,
    preconditioner_groups: int = 0,
    make_preconditioner_fn: MakePreconditionerFn = score_preconditioner,
    fisher_batch: Batch | None = None,
    micro_batch_size: int | None = None,
    operator_fn: OperatorFn = gauss_newton_vector_product,
    step_size_curvature_fn: CurvatureFn = undamped_curvature,
    precision: str = "float32",
) -> tuple[PyTree, UpdateInfo]:
    """Take one step along the natural gradient, whatever its KL turns out to be.

    θ = θ_old + β x,  (F + λI) x = g

    with a fixed β, the natural policy gradient (NPG); or with β = √(2δ / xᵀFx), at
    which the quadratic model of the KL is δ, the truncated natural policy gradient
    (TNPG). L, g and F are those of `trust_region_update`, whose first candidate is the
    step of TNPG.

    Args:
        policy_fn: As all that follow, see `trust_region_update`.
        params: θ_old.
        batch: The transitions.
        step_size: β of NPG; None for TNPG.
        max_kl: δ of TNPG, in nats; for NPG only a yardstick of the evidence.
        damping: λ ≥ 0.
        entropy_coefficient: c ≥ 0.
        cg_iterations: The largest number of Fisher-vector products.
        cg_tolerance: Relative residual at which conjugate gradient stops earlier.
        preconditioner_groups: Gradients that precondition the solve, 0 for none.
        make_preconditioner_fn: The preconditioner made of them.
        fisher_batch: Transitions over which F is computed, None for all.
        micro_batch_size: Rows processed at a time, None for all.
        operator_fn: Products with F.
        step_size_curvature_fn: The quadratic form in the step size of TNPG.
        precision: Precision of matrix products on accelerators.

    Returns:
        The new parameters and their `UpdateInfo`. A step that is not finite, or of
        length 0, is refused: the parameters are the old ones, bit for bit.

    Raises:
        UsageTypeError: As `trust_region_update`.
        UsageError: As `trust_region_update`.

    Source: Kakade 2001, "A natural policy gradient"; TNPG as in Duan et al. 2016
    (arXiv 1604.06778).
    """
    check_positive(max_kl=max_kl)
    if step_size is not None:
        check_positive(step_size=step_size)
    check_not_negative(damping=damping)
    problem, theta_old = surrogate_problem(
        policy_fn,
        params,
        batch,
        entropy_coefficient=entropy_coefficient,
        micro_batch_size=micro_batch_size,
        fisher_batch=fisher_batch,
    )
    with jax.default_matmul_precision(precision):
        old, gradient = problem.value_and_gradient(theta_old)
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
        curvature = step_size_curvature_fn(gradient, cg.x, damping)
        if step_size is None:
            step_size = trust_region_step_size(curvature, max_kl=max_kl)
        step_size = jnp.asarray(step_size, curvature.dtype)
        one = jnp.ones_like(step_size)
        moved = move(theta_old, one, optax.tree.scale(step_size, cg.x))
        # Evaluated for the evidence alone: no KL and no decrease of L is refused.
        candidate = problem.candidate(moved, old)
        length = step_size * optax.tree.norm(cg.x)
        finite = candidate.finite & jnp.isfinite(candidate.surrogate + candidate.kl)
        accepted = finite & (length > 0)
        theta = optax.tree.where(accepted, moved, theta_old)
        unsearched = LineSearchResult(
            accepted, jnp.where(accepted, one, 0), candidate, jnp.int32(1)
        )
        info = evidence(
            old, gradient, cg, curvature, step_size, unsearched, damping, max_kl
        )
    return problem.params_of(theta), info
