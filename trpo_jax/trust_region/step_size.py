"""Step size along the natural direction, at which the quadratic model reaches δ."""

import chex
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree


def undamped_curvature(
    gradient: PyTree, x: PyTree, damping: Float[Array, ""] | float
) -> Float[Array, ""]:
    """Return xᵀFx = gᵀx − λ‖x‖² for the x of conjugate gradient on (F + λI) x = g.

    The iteration starts from zero, so its residual is orthogonal to x at every step
    and xᵀ(F + λI)x = gᵀx in exact arithmetic: the curvature costs no product.

    Args:
        gradient: g, a pytree.
        x: The solution, or any iterate, a pytree like `gradient`.
        damping: λ ≥ 0.

    Returns:
        A scalar, not negative in exact arithmetic.

    Source: Schulman et al. 2015 (arXiv 1502.05477), appendix C, with the damping taken
    out of its sᵀAs.
    """
    return optax.tree.vdot(gradient, x) - damping * optax.tree.vdot(x, x)


def damped_curvature(
    gradient: PyTree, x: PyTree, damping: Float[Array, ""] | float
) -> Float[Array, ""]:
    """Return xᵀ(F + λI)x = gᵀx, as in most implementations: the step undershoots δ.

    Args:
        gradient: g, a pytree.
        x: The solution, or any iterate, a pytree like `gradient`.
        damping: λ, ignored: gᵀx includes it. Here so that both have one signature.

    Returns:
        A scalar, at least `undamped_curvature`.

    Source: as `undamped_curvature`, as implemented in OpenAI Baselines and after it.
    """
    del damping
    return optax.tree.vdot(gradient, x)


def trust_region_step_size(
    curvature: Float[Array, ""], *, max_kl: Float[Array, ""] | float
) -> Float[Array, ""]:
    """Return β = √(2δ / xᵀFx), where the quadratic model ½ β² xᵀFx of the KL is δ.

    Args:
        curvature: xᵀFx, scalar.
        max_kl: δ, in nats.

    Returns:
        β ≥ 0, scalar; 0 where the curvature is not positive or not finite, or δ ≤ 0.

    Source: Schulman et al. 2015 (arXiv 1502.05477), appendix C.
    """
    chex.assert_rank(curvature, 0)
    # The inner `where` keeps a NaN out of the derivative, which the outer one would
    # multiply by 0.
    usable = jnp.isfinite(curvature) & (curvature > 0) & (max_kl > 0)
    squared = jnp.where(usable, 2 * max_kl / jnp.where(usable, curvature, 1), 1)
    return jnp.where(usable, jnp.sqrt(squared), 0)
