"""The curvature's spectrum, from conjugate gradient and from random probes.

Conjugate gradient is the Lanczos iteration: its coefficients are those of a small
tridiagonal matrix whose eigenvalues, the Ritz values, approach those of the matrix.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from trpo_jax.trust_region.certificate import standard_error
from trpo_jax.trust_region.cg import CGResult, conjugate_gradient
from trpo_jax.trust_region.checks import check_positive, whole
from trpo_jax.trust_region.fisher import damped


class RitzValues(NamedTuple):
    """Spectrum of A = F + λI as a right-hand side b sees it, after n iterations.

    Attributes:
        values: Ritz values θ_k in ascending order, float[K]; the last K − n repeat the
            largest.
        weights: τ_k, float[K], of sum 1; 0 for those that repeat. They are the Gauss
            quadrature: Σ τ_k f(θ_k) is b̂ᵀf(A)b̂ with b̂ = b/‖b‖, exact for polynomials of
            a degree below 2n.
        iterations: n, int32 scalar.
    """

    values: Float[Array, " K"]
    weights: Float[Array, " K"]
    iterations: Int[Array, ""]

    @property
    def condition_number(self) -> Float[Array, ""]:
        """θ_n / θ_1: at most the condition number of A, as no value is outside A's."""
        return self.values[-1] / self.values[0]

    def effective_dimension(self, damping: Float[Array, ""] | float) -> Array:
        """Return Σ_k (θ_k − λ)/θ_k: at most the effective dimension tr F (F + λI)⁻¹.

        The k-th largest Ritz value is at most the k-th largest eigenvalue. This is the
        number of directions that the iteration has found, and never above n; see
        `effective_dimension` for an estimate of the trace.

        Args:
            damping: λ, which A contains.
        """
        shares = jnp.where(jnp.arange(self.values.size) < self.iterations, 1, 0)
        return jnp.sum(shares * (self.values - damping) / self.values)


class TraceEstimate(NamedTuple):
    """An estimated trace: its value, and its standard error over the probes."""

    value: Float[Array, ""]
    standard_error: Float[Array, ""]


def lanczos_tridiagonal(
    cg: CGResult,
) -> tuple[Float[Array, " K"], Float[Array, " J"]]:
    """Return the diagonal and the off-diagonal of the Lanczos matrix T.

    T_kk = 1/α_k + β_{k−1}/α_{k−1},  T_{k,k+1} = √β_k / α_k

    T = QᵀAQ, with the normalised residuals of the iteration as Q; with a preconditioner
    P it is that of P^(−½)AP^(−½). It costs no product with A.

    Args:
        cg: Result of n iterations of K.

    Returns:
        The diagonal, float[K], and the off-diagonal, float[K − 1]; 0 beyond the first n
        and n − 1 entries.

    Source: Golub & Van Loan, "Matrix computations", section 10.2; Saad, "Iterative
    methods for sparse linear systems", section 6.7.3.
    """
    made = jnp.arange(cg.alphas.size) < cg.iterations
    inverse = jnp.where(made, 1 / jnp.where(made, cg.alphas, 1), 0)
    carried = (cg.betas * inverse)[:-1]
    diagonal = inverse.at[1:].add(jnp.where(made[1:], carried, 0))
    off_diagonal = jnp.where(made[1:], jnp.sqrt(cg.betas[:-1]) * inverse[:-1], 0)
    return diagonal, off_diagonal


def ritz_values(cg: CGResult) -> RitzValues:
    """Return eigenvalues and weights of the Lanczos matrix of a solve.

    Rounding costs the residuals their orthogonality: from some ten iterations on in
    float32, a large eigenvalue may appear twice. The quadrature remains accurate;
    `RitzValues.effective_dimension` may then count it twice.

    Args:
        cg: Result of `conjugate_gradient`, of at least one iteration, without a
            preconditioner: with one the values are those of P^(−½)AP^(−½).

    Source: Golub & Meurant 2010, "Matrices, moments and quadrature with applications".
    """
    diagonal, off_diagonal = lanczos_tridiagonal(cg)
    made = jnp.arange(diagonal.size) < cg.iterations
    # Ritz values of a positive definite A are positive, so that the empty places come
    # first.
    diagonal = jnp.where(made, diagonal, -1)
    matrix = jnp.diag(diagonal) + jnp.diag(off_diagonal, 1) + jnp.diag(off_diagonal, -1)
    values, vectors = jnp.linalg.eigh(matrix)
    empty = diagonal.size - cg.iterations
    values, weights = (jnp.roll(each, -empty) for each in (values, vectors[0] ** 2))
    return RitzValues(
        jnp.where(made, values, jnp.max(values)),
        jnp.where(made, weights, 0),
        cg.iterations,
    )


def effective_dimension(
    matvec: Callable[[PyTree], PyTree],
    like: PyTree,
    key: Key[Array, ""],
    *,
    damping: Float[Array, ""] | float,
    probes: int = 8,
    iterations: int = 20,
) -> TraceEstimate:
    """Estimate tr F (F + λI)⁻¹ = Σ_i λ_i / (λ_i + λ), the effective dimension.

    It is the number of directions in which the curvature exceeds the damping. By
    stochastic Lanczos quadrature: the mean over probes z of random signs of

    zᵀF (F + λI)⁻¹z ≈ ‖z‖² Σ_k τ_k (θ_k − λ)/θ_k

    with the Ritz values of a solve (F + λI) x = z. Unbiased for as many iterations as
    there are distinct eigenvalues; with fewer, the quadrature overestimates, by little
    where the solve converges.

    Args:
        matvec: v ↦ F v, symmetric and positive semi-definite.
        like: A pytree of floating arrays, such as the parameters.
        key: Randomness of the probes; consumed.
        damping: λ > 0.
        probes: Random vectors, one after the other.
        iterations: Products with F for each of them.

    Returns:
        The estimate with its standard error, 0 for one probe.

    Raises:
        UsageError: If the damping is not positive, or a count is below 1.

    Source: Ubaru, Chen & Saad 2017, "Fast estimation of tr(f(A)) via stochastic Lanczos
    quadrature"; Hutchinson 1990 for the probes.
    """
    check_positive(damping=damping)
    probes, iterations = whole("probes", probes), whole("iterations", iterations)

    def estimate(key: Key[Array, ""]) -> Float[Array, ""]:
        probe = optax.tree.random_like(key, like, sampler=jax.random.rademacher)
        cg = conjugate_gradient(
            damped(matvec, damping), probe, max_iterations=iterations, tolerance=1e-6
        )
        ritz = ritz_values(cg)
        mean = jnp.sum(ritz.weights * (ritz.values - damping) / ritz.values)
        return optax.tree.vdot(probe, probe) * mean

    samples = jax.lax.map(estimate, jax.random.split(key, probes))
    return TraceEstimate(jnp.mean(samples), standard_error(samples))
