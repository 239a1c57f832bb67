"""Initialisers of weights: orthogonal ones that are safe under `vmap`, and others."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from trpo_jax.errors import UsageError

Initializer = Callable[..., Array]
"""(key, shape, dtype) ↦ weights, as Flax's."""

ScaledInitializer = Callable[[float], Initializer]
"""The scale of a layer ↦ the initialiser of its weights."""


def orthogonal(
    scale: Float[Array, ""] | float = 1.0,
) -> Initializer:
    """Return an initialiser of random matrices W with orthonormal rows or columns.

    WᵀW = scale² I if W has at least as many rows as columns, otherwise
    W Wᵀ = scale² I; uniformly distributed over all such matrices.

    Args:
        scale: The common singular value.

    Returns:
        (key, shape, dtype) ↦ W, as Flax's initialisers; consumes `key`. Under `vmap`
        equal to a loop, to rounding.

    Raises:
        UsageError: If the shape is not that of a matrix, when it is called.

    Source: Saxe et al. 2013 (arXiv 1312.6120); Mezzadri 2006 (math-ph/0609050).
    """

    def initialize(
        key: Key[Array, ""], shape: Sequence[int], dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "I O"]:
        if len(shape) != 2:
            raise UsageError(
                f"shape={shape} is not a matrix's; write (inputs, outputs)."
            )
        return scale * _orthonormal(key, tuple(shape), dtype)

    return initialize


def xavier_uniform(scale: float = 1.0) -> Initializer:
    """Return Glorot's uniform initialiser, the same for every scale.

    Source: Glorot & Bengio 2010, "Understanding the difficulty of training deep
    feedforward neural networks".
    """
    return _XAVIER


def lecun_normal(scale: float = 1.0) -> Initializer:
    """Return LeCun's normal initialiser, Flax's default, the same for every scale.

    Source: LeCun et al. 1998, "Efficient BackProp".
    """
    return _LECUN


_XAVIER = jax.nn.initializers.xavier_uniform()
_LECUN = jax.nn.initializers.lecun_normal()


# Flax traces an initialiser whenever a layer is applied, to check the shape. Jitted, it
# is traced once for each shape.
@functools.partial(jax.jit, static_argnums=(1, 2))
def _orthonormal(
    key: Key[Array, ""], shape: tuple[int, int], dtype: DTypeLike
) -> Float[Array, "I O"]:
    tall = (max(shape), min(shape))
    q = _orthonormal_columns(jax.random.normal(key, tall, dtype))
    return q if q.shape == shape else q.T


def _orthonormal_columns(matrix: Float[Array, "M N"]) -> Float[Array, "M N"]:
    """Return Q of matrix = Q R, where R has a positive diagonal, by Gram–Schmidt."""
    # Not by LAPACK: on a machine with few cores its batched factorisations can deadlock
    # under jit, each thread of the pool waiting for work that is queued behind it.

    def orthogonalize(j: Int[Array, ""], q: Float[Array, "M N"]) -> Float[Array, "M N"]:
        column = matrix[:, j]
        for _ in range(2):  # the second pass removes what rounding left of the first
            column -= jnp.sum(q * jnp.sum(q * column[:, None], axis=0), axis=1)
        return q.at[:, j].set(column / jnp.linalg.norm(column))

    return jax.lax.fori_loop(0, matrix.shape[1], orthogonalize, jnp.zeros_like(matrix))
