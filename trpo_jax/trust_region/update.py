"""One policy update: gradient → conjugate gradient → step size → line search."""

import enum
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from trpo_jax.errors import UsageError, UsageTypeError, describe_type
from trpo_jax.trust_region.backtracking import LineSearchResult, line_search
from trpo_jax.trust_region.cg import CGResult, CGStatus, conjugate_gradient
from trpo_jax.trust_region.checks import (
    check_not_negative,
    check_positive,
    whole,
)
from trpo_jax.trust_region.distributions import Distribution
from trpo_jax.trust_region.fisher import (
    MatVec,
    OperatorFn,
    PolicyFn,
    gauss_newton_vector_product,
)
from trpo_jax.trust_region.flat import flatten
from trpo_jax.trust_region.objective import surrogate
from trpo_jax.trust_region.problem import (
    Batch,
    OldPolicy,
    Problem,
    check_distribution,
    max_norm,
)
from trpo_jax.trust_region.step_size import (
    trust_region_step_size,
    undamped_curvature,
)

CurvatureFn = Callable[..., Float[Array, ""]]


class UpdateStatus(enum.IntEnum):
    """Outcome of an update, and its reason."""

    ACCEPTED = 0
    """The parameters moved."""
    ZERO_GRADIENT = 1
    """∇L = 0, as when all advantages are zero or there is only one action; or so small
    that its square is 0."""
    NON_FINITE = 2
    """A NaN or an infinity in the batch, in the gradient or in every candidate."""
    NON_POSITIVE_CURVATURE = 3
    """xᵀFx ≤ 0 to rounding: the KL does not depend on the direction, and there is no
    step size. Not that of `CGStatus`, whose last good x is used."""
    KL_EXCEEDED = 4
    """Even the last candidate, the smallest, was outside the trust region; or δ ≤ 0."""
    NO_IMPROVEMENT = 5
    """The last candidate, the smallest, did not increase L."""


class UpdateInfo(NamedTuple):
    """Evidence of one update. All of it describes the parameters that were kept.

    L is the objective: the surrogate, plus c · mean_s H(π(·|s)) if the update was
    given an entropy coefficient c.

    Attributes:
        status: An `UpdateStatus`, int32 scalar.
        surrogate_before: L(θ_old), scalar.
        surrogate_after: L at the parameters kept.
        expected_improvement: fraction · gᵀ(βx), the prediction of the linear model.
        kl: mean_s KL(π_old ‖ π), nats; 0 if the update was rejected.
        kl_max: max_s KL(π_old ‖ π), nats.
        kl_predicted: ½ (fraction · β)² xᵀFx, the prediction of the quadratic model.
        step_size: β, the length of the full step along x.
        accepted_fraction: The line search's fraction; 0 if the update was rejected.
        evaluations: Number of candidates evaluated, int32 scalar.
        cg_status: A `CGStatus`, int32 scalar.
        cg_iterations: int32 scalar.
        cg_relative_residual: ‖g − (F + λI) x‖ / ‖g‖.
        gradient_norm: ‖∇L(θ_old)‖₂.
        entropy: mean_s H(π(·|s)), nats.
    """

    status: Int[Array, ""]
    surrogate_before: Float[Array, ""]
    surrogate_after: Float[Array, ""]
    expected_improvement: Float[Array, ""]
    kl: Float[Array, ""]
    kl_max: Float[Array, ""]
    kl_predicted: Float[Array, ""]
    step_size: Float[Array, ""]
    accepted_fraction: Float[Array, ""]
    evaluations: Int[Array, ""]
    cg_status: Int[Array, ""]
    cg_iterations: Int[Array, ""]
    cg_relative_residual: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    entropy: Float[Array, ""]


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
    max_backtracks: int = 10,
    backtrack_factor: float = 0.5,
    line_search_width: int = 1,
    fisher_stride: int = 1,
    micro_batch_size: int | None = None,
    operator_fn: OperatorFn = gauss_newton_vector_product,
    step_size_curvature_fn: CurvatureFn = undamped_curvature,
    precision: str = "float32",
) -> tuple[PyTree, UpdateInfo]:
    """Take one step of trust region policy optimisation.

    max_θ L(θ)  subject to  mean_s KL(π_old ‖ π_θ) ≤ δ

    solved by  (F + λI) x = g,  β = √(2δ / xᵀFx),  θ = θ_old + fraction · β x.

    Pure; `jit` it with `policy_fn` and the keyword arguments bound. Differentiable in
    params, batch and the floats, with the accepted fraction as a constant. Derivatives
    are those of a converged solve: raise `cg_iterations` until the residual is small.

    Args:
        policy_fn: (params, observations[N, …]) ↦ `Distribution` over actions, of batch
            [N], or [N, T] for sequences.
        params: θ_old, a pytree of floating arrays, all of which are optimised.
        batch: The transitions, see `Batch`.
        max_kl: δ, the radius of the trust region, in nats.
        damping: λ ≥ 0, added to the Fisher information's diagonal.
        entropy_coefficient: c ≥ 0; the objective is L(θ) + c · mean_s H(π_θ(·|s)).
        cg_iterations: The largest number of Fisher-vector products.
        cg_tolerance: Relative residual at which conjugate gradient stops earlier.
        max_backtracks: The largest number of fractions that the line search tries.
        backtrack_factor: Ratio of each fraction to the one before.
        line_search_width: Candidates evaluated at once; changes the cost only.
        fisher_stride: The Fisher information is computed over every `fisher_stride`-th
            row of the batch; gradient, KL and line search use all rows. Choose a stride
            that does not follow a pattern in the batch.
        micro_batch_size: Rows that gradient, Fisher-vector products and candidates
            process at a time, None for all. It bounds the memory, and changes the
            result to rounding only.
        operator_fn: (policy_fn, params, states) ↦ (v ↦ F v), v and F v pytrees like
            params: `gauss_newton_vector_product`, or `fisher_vector_product`.
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
    fisher_stride = whole("fisher_stride", fisher_stride)
    check_not_negative(damping=damping, entropy_coefficient=entropy_coefficient)
    check_batch(policy_fn, params, batch)
    # θ is what the vector algebra of CG and line search works on; the policy, and the
    # caller, keep their params.
    theta_old, params_of = flatten(params)

    def objective_fn(policy: Distribution, batch: Batch) -> Float[Array, ""]:
        log_probs = policy.log_prob(batch.actions)
        value = surrogate(log_probs, batch.log_probs, batch.advantages)
        return value + entropy_coefficient * jnp.mean(policy.entropy())

    problem = Problem(policy_fn, objective_fn, batch, params_of, micro_batch_size)
    # One precision for all: a gradient in TF32 with products in float32 would be of
    # another function than F.
    with jax.default_matmul_precision(precision):
        # 1. The policy gradient g = ∇L at θ_old.
        old, gradient = problem.value_and_gradient(theta_old)

        # 2. The curvature F of the KL there, over a subsample of the states.
        fisher = problem.fisher(
            theta_old, stride=fisher_stride, operator_fn=operator_fn
        )

        # 3. The natural direction x ≈ (F + λI)⁻¹ g.
        cg = conjugate_gradient(
            damped(fisher, damping),
            gradient,
            max_iterations=cg_iterations,
            tolerance=cg_tolerance,
        )

        # 4. The step size β at which the quadratic model of the KL reaches δ.
        curvature = step_size_curvature_fn(gradient, cg.x, damping)
        step_size = trust_region_step_size(curvature, max_kl=max_kl)
        step = optax.tree.scale(step_size, cg.x)

        # 5. The largest fraction of it that keeps the constraint and improves L.
        search = line_search(
            lambda fraction: problem.candidate(move(theta_old, fraction, step), old),
            surrogate_old=old.value,
            max_kl=max_kl,
            max_backtracks=max_backtracks,
            backtrack_factor=backtrack_factor,
            width=line_search_width,
        )

        # 6. Move there, or keep the old parameters: decided in one place.
        moved = move(theta_old, search.fraction, step)
        theta = select(search.accepted, moved, theta_old)
        info = _evidence(
            old, gradient, cg, curvature, step_size, search, damping, max_kl
        )
    return params_of(theta), info


def damped(matvec: MatVec, damping: Float[Array, ""] | float) -> MatVec:
    """Return v ↦ (F + λI) v.

    Args:
        matvec: v ↦ F v.
        damping: λ ≥ 0.
    """

    def product(vector: PyTree) -> PyTree:
        # λ may be wider than a half-precision vector, whose dtype CG must keep.
        total = optax.tree.add_scale(matvec(vector), damping, vector)
        return optax.tree.cast_like(total, vector)

    return product


def move(theta: PyTree, fraction: Float[Array, ""], step: PyTree) -> PyTree:
    """Return θ + fraction · step, rounded to the dtype of θ."""

    def add(old: Array, change: Array) -> Array:
        new = old + (fraction * change).astype(old.dtype)
        # XLA may keep a half-precision sum in float32: a candidate would then be judged
        # at other parameters than those that are returned.
        dtype = jnp.finfo(old.dtype)
        return jax.lax.reduce_precision(new, dtype.nexp, dtype.nmant)

    return jax.tree.map(add, theta, step)


def select(accepted: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """Return `new` if it is accepted, or else `old`, bit for bit."""
    return jax.tree.map(lambda new, old: jnp.where(accepted, new, old), new, old)


def _evidence(
    old: OldPolicy,
    gradient: PyTree,
    cg: CGResult,
    curvature: Float[Array, ""],
    step_size: Float[Array, ""],
    search: LineSearchResult,
    damping: Float[Array, ""] | float,
    max_kl: Float[Array, ""] | float,
) -> UpdateInfo:
    """Describe the parameters that were kept."""
    candidate, length = search.candidate, search.fraction * step_size
    kl_max, entropy = candidate.evidence
    if_moved = {
        "surrogate_after": candidate.surrogate,
        "expected_improvement": length * optax.tree.vdot(gradient, cg.x),
        "kl": candidate.kl,
        "kl_max": kl_max,
        "kl_predicted": 0.5 * length**2 * undamped_curvature(gradient, cg.x, damping),
        "entropy": entropy,
    }
    # A candidate that is not accepted may be NaN: selected, never multiplied by 0.
    if_stayed = dict.fromkeys(if_moved, 0.0) | {
        "surrogate_after": old.value,
        "entropy": old.entropy,
    }
    return UpdateInfo(
        status=_status(old, gradient, cg, curvature, step_size, search, max_kl),
        surrogate_before=old.value,
        **select(search.accepted, if_moved, if_stayed),
        step_size=step_size,
        accepted_fraction=search.fraction,
        evaluations=search.evaluations,
        cg_status=cg.status,
        cg_iterations=cg.iterations,
        cg_relative_residual=cg.relative_residual,
        gradient_norm=optax.tree.norm(gradient),
    )


def _status(
    old: OldPolicy,
    gradient: PyTree,
    cg: CGResult,
    curvature: Float[Array, ""],
    step_size: Float[Array, ""],
    search: LineSearchResult,
    max_kl: Float[Array, ""] | float,
) -> Int[Array, ""]:
    """Return the first reason for a rejection, in the order of the algorithm."""
    candidate, norm = search.candidate, optax.tree.norm(gradient)
    finite = candidate.finite & jnp.isfinite(candidate.surrogate + candidate.kl)
    # The order matters: a later reason is often a consequence of an earlier one.
    reasons: list[tuple[Bool[Array, ""], UpdateStatus]] = [
        (search.accepted, UpdateStatus.ACCEPTED),
        (~(old.finite & jnp.isfinite(max_norm(gradient))), UpdateStatus.NON_FINITE),
        (norm == 0, UpdateStatus.ZERO_GRADIENT),
        (cg.status == CGStatus.NON_FINITE, UpdateStatus.NON_FINITE),
        (jnp.asarray(max_kl) <= 0, UpdateStatus.KL_EXCEEDED),
        (~jnp.isfinite(curvature), UpdateStatus.NON_FINITE),
        (step_size == 0, UpdateStatus.NON_POSITIVE_CURVATURE),
        (~finite, UpdateStatus.NON_FINITE),
        (candidate.kl > max_kl, UpdateStatus.KL_EXCEEDED),
    ]
    conditions, values = zip(*reasons, strict=True)
    return jnp.select(conditions, values, UpdateStatus.NO_IMPROVEMENT).astype(jnp.int32)


def check_batch(policy_fn: PolicyFn, params: PyTree, batch: Batch) -> None:
    """Raise with advice, from shapes alone, before anything is computed."""
    try:
        inspect.signature(policy_fn).bind(params, None)
    except TypeError:  # None, or a Flax module in place of its apply
        raise UsageTypeError(
            f"policy_fn is {describe_type(policy_fn)}; write a function (params, "
            "observations) ↦ distribution, as "
            "trpo_jax.networks.as_network(module).apply."
        ) from None
    if not all(hasattr(batch, name) for name in Batch._fields):
        raise UsageTypeError(
            f"batch is {describe_type(batch)}; write trpo_jax.trust_region.Batch("
            "observations, actions, log_probs, advantages)."
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise UsageTypeError(
                f"params{jax.tree_util.keystr(path)} is {jnp.result_type(leaf)}; every "
                "parameter is optimised and must be floating. Close over constants in "
                "policy_fn instead."
            )
    leading = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    shape = jnp.shape(batch.log_probs)
    if (
        len(leading) > 1
        or not shape
        or not shape[0]
        or jnp.shape(batch.advantages) != shape
    ):
        raise UsageError(
            f"the batch's shapes are {jax.tree.map(jnp.shape, batch)}. Write "
            "observations [N, ...], actions [N] or [N, D], log_probs [N] and "
            "advantages [N] with one N: flatten time and environments to one axis; or "
            "[N, T] for whole sequences."
        )

    def evaluate(params: PyTree) -> Array:
        distribution = policy_fn(params, batch.observations)
        check_distribution("policy_fn", distribution)
        return distribution.log_prob(batch.actions)

    log_probs = jax.eval_shape(evaluate, params)
    if log_probs.shape != jnp.shape(batch.log_probs):
        raise UsageError(
            f"policy_fn's distribution gives log_prob(batch.actions) of shape "
            f"{log_probs.shape} for actions of shape {jnp.shape(batch.actions)}; it "
            f"must be {jnp.shape(batch.log_probs)}, one joint log-probability for each "
            "transition. Sum over action dimensions."
        )
