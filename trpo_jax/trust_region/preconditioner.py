"""A preconditioner of the solve, from the gradients of a few groups of transitions."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from trpo_jax.errors import UsageError
from trpo_jax.trust_region.checks import check_not_negative, whole
from trpo_jax.trust_region.fisher import MatVec, PolicyFn


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

    # The solution does not depend on the preconditioner, nor do its derivatives.
    params, grouped, damping = jax.lax.stop_gradient((params, grouped, damping))
    gradients = jax.vmap(jax.grad(log_likelihood), (None, 1))(params, grouped)
    g = jax.vmap(lambda tree: ravel_pytree(tree)[0])(gradients)
    # Half precision cannot hold the condition of GGᵀ + μI.
    g = g.astype(jnp.promote_types(g.dtype, jnp.float32))
    g *= grouped.log_probs.size**-0.5
    with jax.default_matmul_precision("float32"):
        gram = g @ g.T
        # G does not see all of the curvature. Of 1, 3, 10 and 30 times λ, 10 left the
        # smallest residual on Breakout and SpaceInvaders. P⁻¹ is a difference of nearly
        # equal terms: with a condition of 10⁴, rounding to float32 changed its sign.
        mu = jnp.maximum(
            10 * jnp.asarray(damping, g.dtype), 1e-3 * jnp.linalg.norm(gram)
        )
        mu = jnp.where(mu > 0, mu, 1)  # G = 0, so that P = I
        inverse = _inverse(gram + mu * jnp.eye(groups, dtype=g.dtype))

    def precondition(residual: PyTree) -> PyTree:
        vector, unravel = ravel_pytree(residual)
        with jax.default_matmul_precision("float32"):
            wide = vector.astype(g.dtype)
            product = wide - (inverse @ (g @ wide)) @ g
        return unravel(product.astype(vector.dtype))

    return precondition


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
