"""Evidence of one policy update: what was kept, and why."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from trpo_jax.trust_region.backtracking import Candidate, LineSearchResult
from trpo_jax.trust_region.certificate import (
    ratio_or_nan,
    standard_error,
    upper_quantile,
)
from trpo_jax.trust_region.cg import CGResult, CGStatus
from trpo_jax.trust_region.fisher import PolicyFn
from trpo_jax.trust_region.flat import max_norm
from trpo_jax.trust_region.problem import (
    Batch,
    OldPolicy,
    Problem,
    surrogate_with_entropy,
)
from trpo_jax.trust_region.status import Status
from trpo_jax.trust_region.step_size import undamped_curvature


class UpdateStatus(Status):
    """Outcome of an update, and its reason."""

    ACCEPTED = 0
    """The parameters moved."""
    ZERO_GRADIENT = 1
    """∇L = 0, as when all advantages are zero or there is only one action; or so small
    that its square is 0."""
    NON_FINITE = 2
    """A NaN or an infinity in the batch apart from observations, in the gradient, in δ,
    in the curvature or in the last candidate."""
    NON_POSITIVE_CURVATURE = 3
    """The curvature in the step size is ≤ 0 to rounding: the KL does not depend on the
    direction. Not that of `CGStatus`, whose last good x is used."""
    KL_EXCEEDED = 4
    """Even the last candidate, the smallest, was outside the trust region; or δ ≤ 0."""
    NO_IMPROVEMENT = 5
    """The last candidate, the smallest, did not increase L; or, while a constrained
    update has costs above their limits, it did not reduce those."""
    COST_EXCEEDED = 6
    """Even the last candidate, the smallest, raised a cost above its limit."""


class UpdateInfo(NamedTuple):
    """Evidence of one update.

    L is the objective: the surrogate, plus c · mean_s H(π(·|s)) if the update was
    given an entropy coefficient c. L, KL and entropy are those of the parameters kept:
    after a rejection KLs, share, gain, its error, predictions and fraction are 0, and
    the other fields describe the attempt. Fields of a solve, a search or a full
    gradient are 0 in updates without them; the natural gradient, if accepted, has the
    fraction 1.

    Attributes:
        status: An `UpdateStatus`, int32 scalar.
        surrogate_before: L(θ_old), scalar.
        surrogate_after: L at the parameters kept.
        surrogate_standard_error: Standard error of the gain L − L(θ_old), a mean over
            transitions, see `standard_error`.
        expected_improvement: fraction · gᵀ(βx), the prediction of the linear model.
        kl: mean_s KL(π_old ‖ π), nats.
        kl_95: 95th percentile of KL(π_old ‖ π) over states, nats, see `upper_quantile`.
        kl_max: max_s KL(π_old ‖ π), nats.
        share_beyond: Share of states with KL(π_old ‖ π) > δ, in [0, 1].
        kl_predicted: ½ (fraction · β)² xᵀFx, the prediction of the quadratic model.
        step_size: β; the full step is β x. Of a constrained update α of its step.
        accepted_fraction: The line search's fraction f, above 1 where the full step
            fell short of δ; 0 if the update was rejected.
        evaluations: Number of candidates evaluated, int32 scalar.
        cg_status: A `CGStatus`, int32 scalar.
        cg_iterations: int32 scalar.
        cg_relative_residual: ‖g − (F + λI) x‖ / ‖g‖.
        gradient_norm: ‖∇L(θ_old)‖₂.
        entropy_before: mean_s H(π_old(·|s)), nats.
        entropy: mean_s H(π(·|s)), nats.
    """

    status: Int[Array, ""]
    surrogate_before: Float[Array, ""]
    surrogate_after: Float[Array, ""]
    surrogate_standard_error: Float[Array, ""]
    expected_improvement: Float[Array, ""]
    kl: Float[Array, ""]
    kl_95: Float[Array, ""]
    kl_max: Float[Array, ""]
    share_beyond: Float[Array, ""]
    kl_predicted: Float[Array, ""]
    step_size: Float[Array, ""]
    accepted_fraction: Float[Array, ""]
    evaluations: Int[Array, ""]
    cg_status: Int[Array, ""]
    cg_iterations: Int[Array, ""]
    cg_relative_residual: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    entropy_before: Float[Array, ""]
    entropy: Float[Array, ""]

    @property
    def gain(self) -> Float[Array | np.ndarray, "..."]:
        """L − L(θ_old)."""
        return self.surrogate_after - self.surrogate_before

    @property
    def improvement_ratio(self) -> Float[Array | np.ndarray, "..."]:
        """Gain over its prediction by the linear model; NaN without a prediction."""
        return ratio_or_nan(self.gain, self.expected_improvement)

    @property
    def kl_ratio(self) -> Float[Array | np.ndarray, "..."]:
        """KL over its prediction by the quadratic model; NaN without a prediction."""
        return ratio_or_nan(self.kl, self.kl_predicted)

    @property
    def signal_to_noise(self) -> Float[Array | np.ndarray, "..."]:
        """Gain over its standard error: one below 2 may be chance. NaN without one."""
        return ratio_or_nan(self.gain, self.surrogate_standard_error)


def evidence(
    old: OldPolicy,
    gradient: PyTree,
    cg: CGResult,
    curvature: Float[Array, ""],
    step_size: Float[Array, ""],
    search: LineSearchResult,
    damping: Float[Array, ""] | float,
    max_kl: Float[Array, ""] | float,
) -> UpdateInfo:
    """Describe the parameters that were kept, and the first reason for a rejection."""
    candidate, length = search.candidate, search.fraction * step_size
    predicted = {
        "expected_improvement": length * optax.tree.vdot(gradient, cg.x),
        "kl_predicted": 0.5 * length**2 * undamped_curvature(gradient, cg.x, damping),
    }
    norm = optax.tree.norm(gradient)
    finite = candidate.finite & jnp.isfinite(candidate.surrogate + candidate.kl)
    # The order matters: a later reason is often a consequence of an earlier one.
    reasons: list[tuple[Bool[Array, ""], UpdateStatus]] = [
        (search.accepted, UpdateStatus.ACCEPTED),
        (~(old.finite & jnp.isfinite(max_norm(gradient))), UpdateStatus.NON_FINITE),
        (norm == 0, UpdateStatus.ZERO_GRADIENT),
        (cg.status == CGStatus.NON_FINITE, UpdateStatus.NON_FINITE),
        (jnp.asarray(max_kl) <= 0, UpdateStatus.KL_EXCEEDED),
        (~jnp.isfinite(curvature + max_kl), UpdateStatus.NON_FINITE),
        (step_size == 0, UpdateStatus.NON_POSITIVE_CURVATURE),
        (~finite, UpdateStatus.NON_FINITE),
        (candidate.kl > max_kl, UpdateStatus.KL_EXCEEDED),
    ]
    conditions, values = zip(*reasons, strict=True)
    status = jnp.select(conditions, values, UpdateStatus.NO_IMPROVEMENT)
    return describe(
        old, candidate, search.accepted, status, max_kl, predicted
    )._replace(
        step_size=step_size,
        accepted_fraction=search.fraction,
        evaluations=search.evaluations,
        cg_status=cg.status,
        cg_iterations=cg.iterations,
        cg_relative_residual=cg.relative_residual,
        gradient_norm=norm,
    )


def certify(
    policy_fn: PolicyFn,
    params_old: PyTree,
    params: PyTree,
    batch: Batch,
    *,
    max_kl: Float[Array, ""] | float = 0.01,
    entropy_coefficient: Float[Array, ""] | float = 0.0,
    micro_batch_size: int | None = None,
    finite: Bool[Array, ""] | bool = True,
) -> UpdateInfo:
    """Return the evidence of any update, from the policies before and after it.

    Args:
        policy_fn: (params, observations [N, …]) ↦ `Distribution` over actions.
        params_old: The parameters that collected the batch.
        params: The parameters after the update.
        batch: The transitions, see `Batch`.
        max_kl: δ, a yardstick for the KL in each state, in nats.
        entropy_coefficient: c ≥ 0, the weight of the entropy bonus in L.
        micro_batch_size: Rows processed at a time, None for all.
        finite: Whether all else that the update computed is finite, such as the state
            of an optimiser.

    Returns:
        An `UpdateInfo` without predictions. Its status is ACCEPTED, or NON_FINITE if
        parameters, L, KL or all else are not finite: then it is that of `params_old`.
    """
    objective_fn = surrogate_with_entropy(entropy_coefficient)
    problem = Problem(policy_fn, objective_fn, batch, micro_batch_size=micro_batch_size)
    # The gradient is not used, and is removed from the compiled program.
    old, _ = problem.value_and_gradient(params_old)
    candidate = problem.candidate(params, old)
    measured = candidate.finite & jnp.isfinite(candidate.surrogate + candidate.kl)
    accepted = measured & finite
    status = jnp.where(accepted, UpdateStatus.ACCEPTED, UpdateStatus.NON_FINITE)
    return describe(old, candidate, accepted, status, max_kl)


def describe(
    old: OldPolicy,
    candidate: Candidate,
    accepted: Bool[Array, ""],
    status: Int[Array, ""],
    max_kl: Float[Array, ""] | float,
    predicted: dict[str, Float[Array, ""]] | None = None,
) -> UpdateInfo:
    """Return the fields that all updates have, and 0 in those of solve and search."""
    compared, zero = candidate.evidence, jnp.zeros_like(old.value)
    predicted = predicted or {"expected_improvement": zero, "kl_predicted": zero}
    if_moved = predicted | {
        "surrogate_after": candidate.surrogate,
        "surrogate_standard_error": standard_error(compared.gains),
        "kl": candidate.kl,
        "kl_95": upper_quantile(compared.kl, 0.95),
        "kl_max": jnp.max(compared.kl),
        "share_beyond": jnp.mean(compared.kl > max_kl, dtype=candidate.kl.dtype),
        "entropy": compared.entropy,
    }
    # A candidate that is not accepted may be NaN: selected, never multiplied by 0.
    if_stayed = dict.fromkeys(if_moved, 0.0) | {
        "surrogate_after": old.value,
        "entropy": old.entropy,
    }
    none = jnp.int32(0)
    return UpdateInfo(
        status=status.astype(jnp.int32),
        surrogate_before=old.value,
        entropy_before=old.entropy,
        **optax.tree.where(accepted, if_moved, if_stayed),
        step_size=zero,
        accepted_fraction=zero,
        evaluations=none,
        cg_status=none,
        cg_iterations=none,
        cg_relative_residual=zero,
        gradient_norm=zero,
    )
