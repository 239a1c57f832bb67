"""Preconditioners of the solve, from the gradients of a few groups of transitions.

Each is a P near F + λI whose inverse is cheap, up to a factor. It changes how fast
conjugate gradient converges, and not to what.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from trpo_jax.errors import UsageError
from trpo_jax.trust_region.checks import check_not_negative, whole
from trpo_jax.trust_region.fisher import MatVec, PolicyFn

# (policy_fn, params, batch, *, groups, damping) ↦ (r ↦ P⁻¹ r), r a pytree like params.
MakePreconditionerFn = Callable[..., MatVec]

# Side of a matrix of parameters above which its Kronecker factor is diagonal: the
# inverse takes 80 n³ operations, 1.3 · 10⁹ here.
_MAX_SIDE = 256


def score_preconditioner(
    policy_fn: PolicyFn,
    params: PyTree,
    batch: Any,
    *,
    groups: int,
    damping: Float[Array, ""] | float,
) -> MatVec:
    """Return r ↦ μ (GᵀG + μI)⁻¹ r, where GᵀG estimates the Fisher information.

    G_j = N^(−1/2) Σ_{i in group j} ∇ log π(a_i|s_i)

    The actions are samples of the policy: their scores ∇ log π have the mean 0 and the
    covariance F, so that E[GᵀG] = F if they are drawn independently given the states
    (not with gSDE noise that is kept over steps). By the Woodbury identity

    μ (GᵀG + μI)⁻¹ = I − Gᵀ (GGᵀ + μI)⁻¹ G

    G is an array [groups, P], computed once, at the cost of a few Fisher-vector
    products and with the activations of all N rows in memory. It removes from the solve
    the directions in which the KL changes most: on Breakout, 26 products with 40 groups
    leave the residual that 50 leave without.

    Args:
        policy_fn: (params, observations [N, …]) ↦ `Distribution` with batch [N].
        params: θ_old, of P numbers.
        batch: N transitions or sequences, a `Batch`; actions drawn from θ_old's policy.
        groups: Rows of G, at most N. Rows of the batch beyond a multiple of them are
            left out.
        damping: λ ≥ 0 of the system. μ is 10 λ, but at least ‖GGᵀ‖ / 1000.

    Returns:
        A linear function on pytrees like `params`; symmetric, positive definite.

    Raises:
        UsageError: If there are more groups than rows, or a number is out of range.

    Source: E[∇log π ∇log πᵀ] = F is Amari 1998; random sums of rows as in the Newton
    sketch of Pilanci & Wainwright 2017 (arXiv 1505.02250).
    """
    scores, damping = _grouped_scores(policy_fn, params, batch, groups, damping)
    g = jax.vmap(lambda tree: ravel_pytree(tree)[0])(scores)
    with jax.default_matmul_precision("float32"):
        gram = g @ g.T
        # G does not see all of the curvature. Of 1, 3, 10 and 30 times λ, 10 left the
        # smallest residual on Breakout and SpaceInvaders. P⁻¹ is a difference of nearly
        # equal terms: with a condition of 10⁴, rounding to float32 changed its sign.
        mu = jnp.maximum(
            10 * jnp.asarray(damping, g.dtype), 1e-3 * jnp.linalg.norm(gram)
        )
        mu = jnp.where(mu > 0, mu, 1)  # G = 0, so that P = I
        inverse = _inverse(gram + mu * jnp.eye(len(g), dtype=g.dtype))

    def precondition(residual: PyTree) -> PyTree:
        vector, unravel = ravel_pytree(residual)
        with jax.default_matmul_precision("float32"):
            wide = vector.astype(g.dtype)
            product = wide - (inverse @ (g @ wide)) @ g
        return unravel(product.astype(vector.dtype))

    return precondition


def diagonal_preconditioner(
    policy_fn: PolicyFn,
    params: PyTree,
    batch: Any,
    *,
    groups: int,
    damping: Float[Array, ""] | float,
) -> MatVec:
    """Return r ↦ μ (diag(GᵀG) + μI)⁻¹ r, with the G of `score_preconditioner`.

    It evens out parameters of different scales, and sees no correlations. An entry of
    diag(GᵀG) is a mean of `groups` squares, with a relative error of about √(2/groups).

    Args:
        policy_fn: As all that follow, see `score_preconditioner`.
        params: θ_old.
        batch: N transitions or sequences.
        groups: Rows of G.
        damping: λ ≥ 0 of the system. μ is λ, but at least 10⁻⁶ of the largest entry.

    Returns:
        A linear function on pytrees like `params`; symmetric, positive definite.

    Raises:
        UsageError: If there are more groups than rows, or a number is out of range.
    """
    scores, damping = _grouped_scores(policy_fn, params, batch, groups, damping)
    squares = jax.tree.map(lambda g: jnp.sum(g**2, axis=0), scores)
    mu = _at_least(
        damping, [jnp.max(leaf, initial=0) for leaf in jax.tree.leaves(squares)]
    )

    def precondition(residual: PyTree) -> PyTree:
        return jax.tree.map(_divide(mu), residual, squares)

    return precondition


def kronecker_preconditioner(
    policy_fn: PolicyFn,
    params: PyTree,
    batch: Any,
    *,
    groups: int,
    damping: Float[Array, ""] | float,
) -> MatVec:
    """Return r ↦ μ P⁻¹ r, with a Kronecker-factored P for each matrix of parameters.

    P = (L/√t + π√μ I) ⊗ (R/√t + √μ/π I),  L = Σ_j G_j G_jᵀ,  R = Σ_j G_jᵀ G_j

    G_j [m, n] is the part in the matrix of row j of the G of `score_preconditioner`,
    t = tr L = tr R, and π = √(n/m), so that both factors are damped in proportion to
    their mean eigenvalues. L ⊗ R / t is the Kronecker product nearest to the Fisher
    information of the matrix, to one step of the power iteration. Leaves of more than
    two axes are matrices of their last axis and all others, as convolutions are. Leaves
    of one axis are treated by `diagonal_preconditioner`, as are matrices with a side of
    1. For a side above 256 the factor is its diagonal. Nothing is known of
    correlations between leaves.

    Args:
        policy_fn: As all that follow, see `score_preconditioner`.
        params: θ_old.
        batch: N transitions or sequences.
        groups: Gradients G_j.
        damping: λ ≥ 0 of the system. μ is λ, but at least 10⁻⁶ of the largest trace.

    Returns:
        A linear function on pytrees like `params`; symmetric, positive definite.

    Raises:
        UsageError: If there are more groups than rows, or a number is out of range.

    Source: Gupta et al. 2018 (arXiv 1802.09568) for the factors; Morwani et al. 2024
    (arXiv 2406.17748) for L ⊗ R / t; Martens & Grosse 2015 (arXiv 1503.05671), section
    6.3, for the damping.
    """
    scores, damping = _grouped_scores(policy_fn, params, batch, groups, damping)
    traces = [jnp.sum(g**2) for g in jax.tree.leaves(scores)]
    mu = _at_least(damping, traces)

    def invert(scores: Float[Array, "J *S"]) -> Callable[[Array], Array]:
        g = scores.reshape(len(scores), -1, *scores.shape[-1:])
        if scores.ndim < 3 or 1 in g.shape[1:]:
            squares = jnp.sum(scores**2, axis=0)
            return lambda leaf: _divide(mu)(leaf, squares)
        pi = math.sqrt(g.shape[2] / g.shape[1])
        left = _inverse_factor(jnp.swapaxes(g, 1, 2), pi * jnp.sqrt(mu))
        right = _inverse_factor(g, jnp.sqrt(mu) / pi)

        def solve(leaf: Array) -> Array:
            matrix = leaf.reshape(g.shape[1:]).astype(g.dtype)
            with jax.default_matmul_precision("float32"):
                half = left @ matrix if left.ndim > 1 else left[:, None] * matrix
                product = half @ right if right.ndim > 1 else half * right
            return product.reshape(leaf.shape).astype(leaf.dtype)

        return solve

    solves = jax.tree.map(invert, scores)

    def precondition(residual: PyTree) -> PyTree:
        return jax.tree.map(lambda solve, part: solve(part), solves, residual)

    return precondition


def _grouped_scores(
    policy_fn: PolicyFn,
    params: PyTree,
    batch: Any,
    groups: int,
    damping: Float[Array, ""] | float,
) -> tuple[PyTree, Float[Array, ""] | float]:
    """Return G as a pytree like params, leaves [groups, …], and λ, both constant.

    The solution does not depend on the preconditioner, nor do its derivatives.
    """
    groups = whole("groups", groups)
    check_not_negative(damping=damping)
    rows = batch.log_probs.shape[0]
    if groups > rows:
        raise UsageError(
            f"{groups} groups of a preconditioner are above the {rows} rows of the "
            "(sub)sample; write fewer."
        )
    each = rows // groups
    grouped = jax.tree.map(
        lambda leaf: leaf[: each * groups].reshape(each, groups, *leaf.shape[1:]), batch
    )

    def log_likelihood(params: PyTree, group: Any) -> Float[Array, ""]:
        log_probs = policy_fn(params, group.observations).log_prob(group.actions)
        return jnp.sum(log_probs)

    params, grouped, damping = jax.lax.stop_gradient((params, grouped, damping))
    gradients = jax.vmap(jax.grad(log_likelihood), (None, 1))(params, grouped)

    # Half precision cannot hold the condition of GGᵀ + μI.
    def widen(leaf: Array) -> Array:
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        return wide * grouped.log_probs.size**-0.5

    return jax.tree.map(widen, gradients), damping


def _at_least(
    damping: Float[Array, ""] | float, largest: list[Float[Array, ""]]
) -> Float[Array, ""]:
    """Return λ, but at least 10⁻⁶ of the largest curvature, and 1 if both are 0.

    Where the scores show no curvature at all, the preconditioner is the identity.
    """
    floor = 1e-6 * jnp.max(jnp.stack(largest))
    mu = jnp.maximum(jnp.asarray(damping, floor.dtype), floor)
    return jnp.where(mu > 0, mu, 1)


def _divide(mu: Float[Array, ""]) -> Callable[[Array, Array], Array]:
    """Return (r, d) ↦ μ r / (d + μ), in the dtype of r."""
    return lambda leaf, squares: (leaf * (mu / (squares + mu))).astype(leaf.dtype)


def _inverse_factor(
    g: Float[Array, "J M N"], ridge: Float[Array, ""]
) -> Float[Array, "N N"] | Float[Array, " N"]:
    """Return ρ (Σ_j G_jᵀ G_j / √t + ρI)⁻¹ for t = Σ_j ‖G_j‖².

    It is the diagonal of a diagonal matrix for more than `_MAX_SIDE` rows.
    """
    side, root = g.shape[2], jnp.sqrt(jnp.sum(g**2))
    root = jnp.where(root > 0, root, 1)
    rows = g.reshape(-1, side)
    if side > _MAX_SIDE:
        return ridge / (jnp.sum(rows**2, axis=0) / root + ridge)
    with jax.default_matmul_precision("float32"):
        factor = rows.T @ rows / root
        return ridge * _inverse(factor + ridge * jnp.eye(side, dtype=g.dtype))


def _inverse(matrix: Float[Array, "M M"]) -> Float[Array, "M M"]:
    """Return the inverse of a symmetric positive definite matrix of condition ≲ 10³.

    X += X (I − A X), the iteration of Newton and Schulz, takes matrix products alone.
    After a call of LAPACK, its threads wait busily: on two cores all that followed for
    25 ms took twice as long.
    """

    def improve(_: Array, x: Float[Array, "M M"]) -> Float[Array, "M M"]:
        return 2 * x - x @ matrix @ x

    start = jnp.eye(len(matrix), dtype=matrix.dtype) / jnp.trace(matrix)
    # At most fourteen double the smallest eigenvalue of A X, from 10⁻⁴ to near 1: the
    # trace may be ten times the largest. Then each squares the distance from 1.
    return jax.lax.fori_loop(0, 20, improve, start)
