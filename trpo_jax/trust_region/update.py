"""One policy update: gradient → conjugate gradient → step length → line search."""

import enum
import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Num, PyTree, Shaped

from trpo_jax.errors import UsageError, UsageTypeError
from trpo_jax.trust_region.backtracking import (
    Candidate,
    LineSearchResult,
    line_search,
)
from trpo_jax.trust_region.cg import (
    CGResult,
    CGStatus,
    conjugate_gradient,
)
from trpo_jax.trust_region.checks import check_not_negative, check_positive
from trpo_jax.trust_region.distributions import Distribution
from trpo_jax.trust_region.fisher import MatVec, gauss_newton_vector_product
from trpo_jax.trust_region.flat import flatten
from trpo_jax.trust_region.micro_batches import micro_batched
from trpo_jax.trust_region.objective import surrogate
from trpo_jax.trust_region.step_size import (
    trust_region_step_size,
    undamped_curvature,
)

PolicyFn = Callable[[PyTree, PyTree[Shaped[Array, "N ..."]]], Distribution]
CurvatureFn = Callable[..., Float[Array, ""]]


@runtime_checkable
class OperatorFn(Protocol):
    """Makes a Fisher-vector product."""

    def __call__(
        self,
        policy_fn: PolicyFn,
        params: PyTree,
        observations: PyTree,
        *,
        num_products: int,
    ) -> MatVec:
        """Return v ↦ F v at `params`, of which about `num_products` are asked for."""


class Batch(NamedTuple):
    """N transitions of the policy that is to be improved, or N sequences of T each.

    A policy with a memory sees sequences whole. Wherever a mean over transitions is
    taken, it is over all N·T of them.

    Attributes:
        observations: What the policy saw, [N, …] or a pytree of such arrays; of
            sequences, all that it needs to go through them again.
        actions: What it did, unclipped and unsquashed, [N] or [N, D]; [N, T] or
            [N, T, D] of sequences.
        log_probs: log π_old(a|s) when it did, float[N]; [N, T] of sequences.
        advantages: A(s, a), float[N] or [N, T]; standardised by convention.
    """

    observations: PyTree[Shaped[Array, "N ..."]]
    actions: Num[Array, "N ..."]
    log_probs: Float[Array, "N *T"]
    advantages: Float[Array, "N *T"]


class UpdateStatus(enum.IntEnum):
    """What became of an update, and why."""

    ACCEPTED = 0
    """The parameters moved."""
    ZERO_GRADIENT = 1
    """∇L = 0: advantages all zero, or a single action. Nothing to improve on."""
    NON_FINITE = 2
    """A NaN or an infinity in the batch, the gradient or every candidate."""
    NON_POSITIVE_CURVATURE = 3
    """xᵀFx ≤ 0 to rounding: the KL does not see the direction; no step length."""
    KL_EXCEEDED = 4
    """The smallest candidate still left the trust region, or δ leaves no room."""
    NO_IMPROVEMENT = 5
    """The smallest candidate did not raise the surrogate."""


class UpdateInfo(NamedTuple):
    """The evidence of one update; all of it describes the parameters that were kept.

    L is what was maximised: the surrogate, plus c · mean_s H(π(·|s)) if the update was
    given an entropy coefficient c.

    Attributes:
        status: An `UpdateStatus`, int32 scalar.
        surrogate_before: L(θ_old), scalar.
        surrogate_after: L at the parameters kept.
        expected_improvement: fraction · gᵀ(βx), what the linear model promised.
        kl: mean_s KL(π_old ‖ π), nats; 0 if the update was rejected.
        kl_max: max_s KL(π_old ‖ π), nats.
        kl_predicted: ½ (fraction · β)² xᵀFx, what the quadratic model promised.
        step_size: β, the length of the full step along x.
        accepted_fraction: The line search's fraction; 0 if the update was rejected.
        evaluations: Candidates that the line search evaluated, int32 scalar.
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

    Pure; `jit` it with `policy_fn` and the keyword arguments bound.

    Args:
        policy_fn: (params, observations[N, …]) ↦ `Distribution` over actions, of batch
            [N], or [N, T] for sequences.
        params: θ_old, a pytree of floating arrays, every one of them optimised.
        batch: The transitions, see `Batch`.
        max_kl: δ, the radius of the trust region, in nats.
        damping: λ ≥ 0, added to the Fisher information's diagonal.
        entropy_coefficient: c ≥ 0; the objective is L(θ) + c · mean_s H(π_θ(·|s)).
        cg_iterations: The largest number of Fisher-vector products.
        cg_tolerance: Relative residual at which conjugate gradient stops earlier.
        max_backtracks: The largest number of fractions that the line search tries.
        backtrack_factor: Ratio of each fraction to the one before.
        line_search_width: Candidates evaluated at once; changes the cost only.
        fisher_stride: The Fisher information is taken over every `fisher_stride`-th
            row of the batch; gradient, KL and line search see them all. Choose a stride
            that does not follow a pattern in the batch.
        micro_batch_size: Rows that gradient, Fisher-vector products and candidates
            take at a time, None for all: bounds the memory, what products would store
            among it; changes the result to rounding only.
        operator_fn: (policy_fn, params, states, num_products=n) ↦ (v ↦ F v), v and F v
            pytrees like `params`; about n products will be asked for. See
            `gauss_newton_vector_product`.
        step_size_curvature_fn: (g, x, damping) ↦ the quadratic form under the step
            length, g and x one vector each or, of large params, pytrees: write it by
            `optax.tree.vdot`. `undamped_curvature`, or `damped_curvature` as in most
            implementations.
        precision: Precision of matrix products on accelerators, as in
            `jax.default_matmul_precision`. TF32 loses conjugacy.

    Returns:
        The new parameters and their `UpdateInfo`. If no candidate is acceptable these
        are the old parameters, bit for bit.

    Raises:
        TypeError: If `policy_fn` returns no distribution, or params are not floating.
        ValueError: If the batch's shapes do not agree, or a number is out of range.

    Source: Schulman et al. 2015 (arXiv 1502.05477), section 6 and appendix C.
    """
    check_positive(fisher_stride=fisher_stride, max_kl=max_kl)
    check_not_negative(damping=damping, entropy_coefficient=entropy_coefficient)
    _check_batch(policy_fn, params, batch)
    theta_old, unravel = flatten(params)
    states = jax.tree.map(lambda leaf: leaf[::fisher_stride], batch.observations)
    # A ratio to an infinite log-probability would be a plain 0, and go unseen.
    batch_finite = jnp.isfinite(batch.log_probs + batch.advantages).all()

    def by_micro_batches(
        fn: Callable, rows: PyTree, is_row: PyTree | None = None
    ) -> tuple[PyTree, PyTree]:
        num_rows = batch.log_probs.shape[0]
        return micro_batched(
            fn, rows, num_rows=num_rows, size=micro_batch_size, is_row=is_row
        )

    # What in a distribution belongs to one row, and what, such as one σ, to all.
    rows_of_each = (
        jax.tree.map(lambda leaf: True, batch),
        _depends_on_rows(policy_fn, params, batch.observations),
    )

    def policy_at(theta: PyTree, observations: PyTree) -> Distribution:
        return policy_fn(unravel(theta), observations)

    def objective_at(
        theta: PyTree, batch: Batch
    ) -> tuple[Float[Array, ""], Distribution]:
        new = policy_at(theta, batch.observations)
        log_probs = new.log_prob(batch.actions)
        value = surrogate(log_probs, batch.log_probs, batch.advantages)
        return value + entropy_coefficient * jnp.mean(new.entropy()), new

    def differentiate(batch: Batch) -> tuple[tuple[Array, PyTree], Distribution]:
        value_and_gradient = jax.value_and_grad(objective_at, has_aux=True)
        (value, old), gradient = value_and_gradient(theta_old, batch)
        return (value, gradient), old

    def fisher_of(states: PyTree, num_products: int) -> MatVec:
        matvec = operator_fn(policy_fn, params, states, num_products=num_products)
        return lambda vector: flatten(matvec(unravel(vector)))[0]

    def move(fraction: Float[Array, ""]) -> PyTree:
        def add(old: Array, change: Array) -> Array:
            new = old + (fraction * change).astype(old.dtype)
            # XLA would judge a sum of half precision before it is rounded.
            format_ = jnp.finfo(old.dtype)
            return jax.lax.reduce_precision(new, format_.nexp, format_.nmant)

        return jax.tree.map(add, theta_old, step)

    def evaluate(fraction: Float[Array, ""]) -> Candidate:
        theta = move(fraction)

        def compare(rows: tuple[Batch, Distribution]) -> tuple[tuple, Array]:
            batch, old = rows
            value, new = objective_at(theta, batch)
            kl = old.kl_divergence(new)
            return (value, jnp.mean(kl), jnp.mean(new.entropy())), kl

        (value, kl, entropy), kl_by_state = by_micro_batches(
            compare, (batch, old), rows_of_each
        )
        # Two compilations of L may differ in the last bit: staying is no improvement.
        distance = _largest(optax.tree.sub(theta, theta_old))
        value = jnp.where(distance == 0, surrogate_old, value)
        finite = jnp.isfinite(distance) & batch_finite
        return Candidate(value, kl, finite, (jnp.max(kl_by_state), entropy))

    with jax.default_matmul_precision(precision):
        # 1. The policy gradient g = ∇L at θ_old.
        (surrogate_old, gradient), old = by_micro_batches(differentiate, batch)

        # 2. The curvature F of the KL there, over a subsample of the states.
        fisher = _micro_batched_operator(
            fisher_of, states, micro_batch_size, num_products=max(1, cg_iterations)
        )

        # 3. The natural direction x ≈ (F + λI)⁻¹ g.
        def damped(vector: PyTree) -> PyTree:
            product = optax.tree.add_scale(fisher(vector), damping, vector)
            return optax.tree.cast_like(product, vector)

        cg = conjugate_gradient(
            damped,
            gradient,
            max_iterations=cg_iterations,
            tolerance=cg_tolerance,
        )

        # 4. The length β at which the quadratic model of the KL reaches δ.
        curvature = step_size_curvature_fn(gradient, cg.x, damping)
        step_size = trust_region_step_size(curvature, max_kl=max_kl)
        step = optax.tree.scale(step_size, cg.x)

        # 5. The first candidate that keeps the constraint and improves.
        search = line_search(
            evaluate,
            surrogate_old=surrogate_old,
            max_kl=max_kl,
            max_backtracks=max_backtracks,
            backtrack_factor=backtrack_factor,
            width=line_search_width,
        )

    # 6. Move there, or stay: the only place that decides.
    def keep(moved: Array, stayed: Array | float) -> Array:
        return jnp.where(search.accepted, moved, stayed)

    theta = jax.tree.map(keep, move(search.fraction), theta_old)
    kl_max, entropy = search.candidate.evidence
    predicted_at_full_step = undamped_curvature(gradient, cg.x, damping) * step_size**2
    info = UpdateInfo(
        status=_status(batch_finite, gradient, cg, step_size, search, max_kl),
        surrogate_before=surrogate_old,
        surrogate_after=keep(search.candidate.surrogate, surrogate_old),
        expected_improvement=keep(
            search.fraction * optax.tree.vdot(gradient, step), 0.0
        ),
        kl=keep(search.candidate.kl, 0.0),
        kl_max=keep(kl_max, 0.0),
        kl_predicted=keep(0.5 * search.fraction**2 * predicted_at_full_step, 0.0),
        step_size=step_size,
        accepted_fraction=search.fraction,
        evaluations=search.evaluations,
        cg_status=cg.status,
        cg_iterations=cg.iterations,
        cg_relative_residual=cg.relative_residual,
        gradient_norm=optax.tree.norm(gradient),
        entropy=keep(entropy, jnp.mean(old.entropy())),
    )
    return unravel(theta), info


def _depends_on_rows(
    policy_fn: PolicyFn, params: PyTree, observations: PyTree
) -> PyTree:
    """Whether each leaf of the distribution changes its shape with the rows."""
    first = jax.tree.map(lambda leaf: leaf[:1], observations)
    one, all_ = (
        jax.eval_shape(policy_fn, params, rows) for rows in (first, observations)
    )
    return jax.tree.map(lambda few, many: few.shape != many.shape, one, all_)


def _micro_batched_operator(
    operator_fn: Callable[[PyTree, int], MatVec],
    states: PyTree,
    size: int | None,
    *,
    num_products: int,
) -> MatVec:
    """Linearise over all states once, or over each micro-batch in every product."""
    num_states = jax.tree.leaves(states)[0].shape[0]
    if size is None or size >= num_states:
        return operator_fn(states, num_products)

    def matvec(vector: PyTree) -> PyTree:
        def multiply(states: PyTree) -> tuple[PyTree, tuple]:
            return operator_fn(states, 1)(vector), ()

        product, _ = micro_batched(multiply, states, num_rows=num_states, size=size)
        return product

    return matvec


def _largest(tree: PyTree) -> Float[Array, ""]:
    """‖·‖∞: not finite if anything in the tree is not, 0 if everything is."""
    maxima = [jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(tree)]
    return functools.reduce(jnp.maximum, maxima, jnp.float32(0))


def _status(
    batch_finite: Bool[Array, ""],
    gradient: PyTree,
    cg: CGResult,
    step_size: Float[Array, ""],
    search: LineSearchResult,
    max_kl: Float[Array, ""] | float,
) -> Int[Array, ""]:
    """Name the first thing that went wrong, in the order of the algorithm."""
    candidate, largest = search.candidate, _largest(gradient)
    finite = candidate.finite & jnp.isfinite(candidate.surrogate + candidate.kl)
    reasons: list[tuple[Bool[Array, ""], UpdateStatus]] = [
        (search.accepted, UpdateStatus.ACCEPTED),
        (~(batch_finite & jnp.isfinite(largest)), UpdateStatus.NON_FINITE),
        (largest == 0, UpdateStatus.ZERO_GRADIENT),
        (cg.status == CGStatus.NON_FINITE, UpdateStatus.NON_FINITE),
        (jnp.asarray(max_kl) <= 0, UpdateStatus.KL_EXCEEDED),
        (step_size == 0, UpdateStatus.NON_POSITIVE_CURVATURE),
        (~finite, UpdateStatus.NON_FINITE),
        (candidate.kl > max_kl, UpdateStatus.KL_EXCEEDED),
    ]
    conditions, values = zip(*reasons, strict=True)
    return jnp.select(conditions, values, UpdateStatus.NO_IMPROVEMENT).astype(jnp.int32)


def _check_batch(policy_fn: PolicyFn, params: PyTree, batch: Batch) -> None:
    """Raise with advice, from shapes alone, before anything is computed."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise UsageTypeError(
                f"params{jax.tree_util.keystr(path)} is {jnp.result_type(leaf)}; every "
                "parameter is optimised and must be floating. Close over constants in "
                "policy_fn instead."
            )
    leading = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    shape = jnp.shape(batch.log_probs)
    if len(leading) > 1 or not shape or jnp.shape(batch.advantages) != shape:
        raise UsageError(
            f"the batch's shapes are {jax.tree.map(jnp.shape, batch)}. Write "
            "observations [N, ...], actions [N] or [N, D], log_probs [N] and "
            "advantages [N] with one N: flatten time and environments to one axis; or "
            "[N, T] for whole sequences."
        )

    def evaluate(params: PyTree) -> Array:
        distribution = policy_fn(params, batch.observations)
        if not isinstance(distribution, Distribution):
            raise UsageTypeError(
                f"policy_fn returned {type(distribution).__name__}, which is not a "
                "distribution. Return trpo_jax.trust_region.Categorical(logits), "
                "trpo_jax.trust_region.DiagonalGaussian(mean, log_std), or a pytree "
                "with sample, mode, log_prob, entropy and kl_divergence."
            )
        return distribution.log_prob(batch.actions)

    log_probs = jax.eval_shape(evaluate, params)
    if log_probs.shape != jnp.shape(batch.log_probs):
        raise UsageError(
            f"policy_fn's distribution gives log_prob(batch.actions) of shape "
            f"{log_probs.shape} for actions of shape {jnp.shape(batch.actions)}; it "
            f"must be {jnp.shape(batch.log_probs)}, one joint log-probability for each "
            "transition. Sum over action dimensions."
        )
