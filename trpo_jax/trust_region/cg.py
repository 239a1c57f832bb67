"""Conjugate gradient on pytrees, for operators known only by their products.

Departures from the textbook, and from `jax.scipy.sparse.linalg.cg`:

- The tolerance is relative to ‖b‖ alone. An absolute one would make the solution depend
  on the scale of b, here on that of the advantages.
- No epsilon is added to a denominator. Each division is guarded, and the iteration
  stops at the last good x, with a status that says why.
- Derivatives are those of the solution, A dx = db − dA x, and not of the iterations:
  `lax.while_loop` has no reverse mode.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from trpo_jax.errors import UsageTypeError, describe_type
from trpo_jax.trust_region.checks import check_not_negative, whole
from trpo_jax.trust_region.flat import max_norm
from trpo_jax.trust_region.status import Status


class CGStatus(Status):
    """Reason for the end of the iteration."""

    CONVERGED = 0
    """‖r‖ ≤ tolerance · ‖b‖."""
    MAX_ITERATIONS = 1
    """The iterations ran out first; x is best in its Krylov space, in A's norm."""
    NON_POSITIVE_CURVATURE = 2
    """pᵀAp ≤ 0 along a direction p, or rᵀP⁻¹r < 0: A or the preconditioner is not
    positive definite. x stops before it."""
    NON_FINITE = 3
    """b, a product, rᵀP⁻¹r or the square of a norm is not finite: x stops before it. Or
    x itself is not: x = 0."""


class CGResult(NamedTuple):
    """Solution, status and residual. Only the solution has derivatives.

    Attributes:
        x: The solution, a pytree like b. Always finite; 0 if the solution is not.
        status: A `CGStatus`, int32 scalar.
        iterations: Products computed and used, int32 scalar.
        relative_residual: ‖b − Ax‖ / ‖b‖ by the recurrence, scalar; 0 for b = 0.
        alphas: α of each iteration, [max_iterations]; 0 for those that were not made.
        betas: β of each iteration, likewise. With α they are what `ritz_values` takes;
            a program that does not use them does not compute them.
    """

    x: PyTree
    status: Int[Array, ""]
    iterations: Int[Array, ""]
    relative_residual: Float[Array, ""]
    alphas: Float[Array, " K"]
    betas: Float[Array, " K"]


class _State(NamedTuple):
    x: PyTree
    residual: PyTree
    direction: PyTree
    rz: Float[Array, ""]  # rᵀz with z = P⁻¹r; without a preconditioner ‖r‖²
    iterations: Int[Array, ""]
    status: Int[Array, ""]
    alphas: Float[Array, " K"]
    betas: Float[Array, " K"]


def conjugate_gradient(
    matvec: Callable[[PyTree], PyTree],
    b: PyTree,
    *,
    preconditioner_fn: Callable[[PyTree], PyTree] | None = None,
    max_iterations: int = 10,
    tolerance: float = 1e-5,
) -> CGResult:
    """Solve A x = b for a symmetric positive definite A, from x₀ = 0.

    r₀ = b;  p₀ = z₀ = P⁻¹b;  α = rᵀz / pᵀAp;  x += α p;  r′ = r − α A p;  z′ = P⁻¹r′;
    β = r′ᵀz′ / rᵀz;  p = z′ + β p

    Scaling b scales x and changes nothing else. Where A turns out indefinite, or a
    number is not finite, the iteration stops at the last good x.

    Differentiable in b, and in what `matvec` closes over, in both modes, at the cost of
    one more solve. The derivative is that of the exact solution: it is right only if
    both solves converge. Raise `max_iterations` before differentiating.

    Args:
        matvec: v ↦ A v on pytrees like `b`.
        b: The right-hand side, a pytree of floating arrays.
        preconditioner_fn: r ↦ P⁻¹r, symmetric and positive definite, for a P near A up
            to a factor; None for P = I. It has no derivative.
        max_iterations: The largest number of products.
        tolerance: Stop when ‖r‖ ≤ tolerance · ‖b‖.

    Returns:
        A `CGResult`. As x comes from zero, r is orthogonal to x in exact arithmetic, so
        that xᵀAx = bᵀx.

    Raises:
        UsageError: If `max_iterations` or `tolerance` is negative.
        UsageTypeError: If b is not floating, or `max_iterations` not a whole number.

    Source: Hestenes & Stiefel 1952; Shewchuk 1994, algorithms B2 and B3.
    """
    check_not_negative(max_iterations=max_iterations, tolerance=tolerance)
    max_iterations = whole("max_iterations", max_iterations, least=0)
    if not callable(matvec):
        raise UsageTypeError(
            f"matvec is {describe_type(matvec)}; write a function, as lambda v: A @ v."
        )
    solve = functools.partial(
        _iterate,
        preconditioner_fn=preconditioner_fn or (lambda residual: residual),
        max_iterations=max_iterations,
        tolerance=tolerance,
    )
    # `symmetric` makes the transposed solve the same one, so that reverse mode needs no
    # transpose of `matvec`.
    for leaf in jax.tree.leaves(b):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise UsageTypeError(f"b has {describe_type(leaf)}; write floats.")
    x, statistics = jax.lax.custom_linear_solve(
        matvec, b, solve, symmetric=True, has_aux=True
    )
    return CGResult(x, *statistics)


def _iterate(
    matvec: Callable[[PyTree], PyTree],
    b: PyTree,
    *,
    preconditioner_fn: Callable[[PyTree], PyTree],
    max_iterations: int,
    tolerance: float,
) -> tuple[PyTree, tuple[Array, ...]]:
    """Return x, and the fields of `CGResult` after it."""
    # Scaled by a power of two, which is exact: the square of a tiny or a huge b, such
    # as the cotangent of a derivative, would under- or overflow.
    scale = _power_of_two(max_norm(b))
    b = optax.tree.cast_like(jax.tree.map(lambda leaf: leaf / scale, b), b)
    b_sq = optax.tree.vdot(b, b)
    z = preconditioner_fn(b)
    # Squares on both sides: no root in the loop, and b = 0 converges at once.
    threshold = tolerance**2 * b_sq

    def proceed(state: _State) -> Array:
        running = state.status == CGStatus.MAX_ITERATIONS
        return running & (state.iterations < max_iterations)

    def iterate(state: _State) -> _State:
        product = matvec(state.direction)
        curvature = optax.tree.vdot(state.direction, product)
        # Guarded, because `where` below evaluates both of its sides.
        alpha = state.rz / jnp.where(curvature > 0, curvature, 1)
        x = optax.tree.add_scale(state.x, alpha, state.direction)
        residual = optax.tree.add_scale(state.residual, -alpha, product)
        residual_sq = optax.tree.vdot(residual, residual)
        z = preconditioner_fn(residual)
        rz = optax.tree.vdot(residual, z)
        # rz > 0 in the loop: a zero residual is within every threshold.
        beta = rz / state.rz
        direction = optax.tree.add_scale(z, beta, state.direction)
        finite = jnp.isfinite(residual_sq) & jnp.isfinite(alpha)
        # `jnp.where`, which fuses: `jnp.select` is a reduction, a kernel of its own.
        # rz is negative only if the preconditioner is not positive definite.
        indefinite = jnp.isfinite(curvature) & ((curvature <= 0) | (state.rz < 0))
        failure = jnp.where(
            indefinite, CGStatus.NON_POSITIVE_CURVATURE, CGStatus.NON_FINITE
        )
        good = ~indefinite & finite & jnp.isfinite(curvature)
        status = jnp.where(good, _progress(residual_sq, threshold), failure)
        status = status.astype(jnp.int32)
        advanced = _State(
            x,
            residual,
            direction,
            rz,
            state.iterations + 1,
            status,
            jnp.where(steps == state.iterations, alpha, state.alphas),
            jnp.where(steps == state.iterations, beta, state.betas),
        )
        stopped = state._replace(status=status)
        # The whole step is kept or dropped: x never holds half of an iteration.
        return jax.tree.map(
            # Of several dtypes, each keeps its own.
            lambda new, old: jnp.where(good, new, old).astype(old.dtype),
            advanced,
            stopped,
        )

    rz = optax.tree.vdot(b, z)
    steps = jnp.arange(max_iterations)
    start = _State(
        x=optax.tree.zeros_like(b),
        residual=b,
        direction=z,
        rz=rz,
        iterations=jnp.int32(0),
        status=jnp.where(
            jnp.isfinite(b_sq) & jnp.isfinite(rz),
            _progress(b_sq, threshold),
            CGStatus.NON_FINITE,
        ).astype(jnp.int32),
        alphas=jnp.zeros(max_iterations, rz.dtype),
        betas=jnp.zeros(max_iterations, rz.dtype),
    )
    end = jax.lax.while_loop(proceed, iterate, start)
    residual_sq = optax.tree.vdot(end.residual, end.residual)
    relative_residual = jnp.sqrt(residual_sq / jnp.where(b_sq > 0, b_sq, 1))
    x = optax.tree.cast_like(jax.tree.map(lambda leaf: leaf * scale, end.x), end.x)
    # A solution that the dtype cannot hold is none.
    finite = jnp.isfinite(sum(jnp.sum(0 * leaf) for leaf in jax.tree.leaves(x)))
    x = jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0), x)
    status = jnp.where(finite, end.status, CGStatus.NON_FINITE)
    return x, (status, end.iterations, relative_residual, end.alphas, end.betas)


def _power_of_two(magnitude: Float[Array, ""]) -> Float[Array, ""]:
    """Return a power of two near a magnitude; 1 for 0."""
    info = jnp.finfo(magnitude.dtype)
    # Without a mantissa, a number is rounded to a power of two; half of it, because the
    # largest would be rounded to infinity.
    power = 2 * jax.lax.reduce_precision(magnitude / 2, info.nexp, 0)
    # XLA multiplies by the reciprocal, which is flushed to 0 if it is subnormal.
    power = jnp.minimum(power, 1 / info.tiny)
    return jnp.where(power > 0, power, 1)


def _progress(residual_sq: Float[Array, ""], threshold: Float[Array, ""]) -> Array:
    """Return CONVERGED, or MAX_ITERATIONS, which is provisional in the loop."""
    converged = residual_sq <= threshold
    return jnp.where(converged, CGStatus.CONVERGED, CGStatus.MAX_ITERATIONS)
