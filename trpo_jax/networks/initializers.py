"""Weight initialisation that is safe to batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

# A batched QR under jit can deadlock on a machine with few cores: every thread of the
# pool waits inside the batched LAPACK call for work queued behind it. Under vmap this
# one runs as a loop of single factorisations instead.
_qr = jax.custom_batching.sequential_vmap(lambda matrix: jnp.linalg.qr(matrix))


def orthogonal(scale: float = 1.0) -> Callable[..., Float[Array, "I O"]]:
    """Return an initialiser of random matrices W with orthonormal rows or columns.

    WᵀW = scale² I if W has at least as many rows as columns, otherwise
    W Wᵀ = scale² I; uniformly distributed over all such matrices.

    Args:
        scale: The common singular value.

    Returns:
        (key, shape, dtype) ↦ W, as Flax's initialisers; consumes `key`. Under `vmap`
        it gives what a loop gives.

    Raises:
        ValueError: If the shape is not that of a matrix, when it is called.

    Source: Saxe et al. 2013 (arXiv 1312.6120); Mezzadri 2006 (math-ph/0609050).
    """

    def initialize(
        key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "I O"]:
        if len(shape) != 2:
            raise ValueError(
                f"shape={shape} is not a matrix's; write (inputs, outputs)."
            )
        tall = (max(shape), min(shape))
        q, r = _qr(jax.random.normal(key, tall, dtype))
        # The signs make the factorisation unique, and q uniform.
        q = q * jnp.sign(jnp.diagonal(r))
        return scale * (q if q.shape == shape else q.T)

    return initialize
