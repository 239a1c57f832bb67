"""How far to go along the natural direction before the quadratic model reaches δ."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree


def undamped_curvature(
    gradient: PyTree, x: PyTree, damping: Float[Array, ""] | float
) -> Float[Array, ""]:
    """Return xᵀFx = gᵀx − λ‖x‖² for the x of conjugate gradient on (F + λI) x = g.

    The iteration starts from zero, so its residual is orthogonal to x at every step
    and xᵀ(F + λI)x = gᵀx exactly: the curvature without the damping costs no product.
    """
    return optax.tree.vdot(gradient, x) - damping * optax.tree.vdot(x, x)


def damped_curvature(
    gradient: PyTree, x: PyTree, damping: Float[Array, ""] | float
) -> Float[Array, ""]:
    """Return xᵀ(F + λI)x = gᵀx, as most implementations use: the step falls short of δ.

    `damping` is not used; it is an argument as in `undamped_curvature`.
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
        β ≥ 0, scalar; 0 where the curvature is not positive or not finite.
    """
    usable = jnp.isfinite(curvature) & (curvature > 0)
    return jnp.where(usable, jnp.sqrt(2 * max_kl / jnp.where(usable, curvature, 1)), 0)
