"""The vector θ of the paper, one array or a pytree if it is large, and its algebra."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

# Numbers in two layers of 256 units; with fewer, one vector was as fast or faster.
_LARGE = 2**16


def flatten(
    params: PyTree,
) -> tuple[Float[Array, " P"] | PyTree, Callable[[PyTree], PyTree]]:
    """Return θ, and θ ↦ params: one vector, or params themselves from 2¹⁶ numbers on.

    The cost of vector algebra is in the number of arrays while they are small, and in
    their size when they are large. And where a large gradient is put into one vector,
    XLA fuses the sums over the batch behind each bias into the copy, and on a CPU
    computes them again for each element. Arrays of several dtypes become one vector of
    the widest.
    """
    # Python numbers have no dtype to come back to.
    params = jax.tree.map(jnp.asarray, params)
    leaves = jax.tree.leaves(params)
    size = sum(leaf.size for leaf in leaves)
    if size >= _LARGE and len({leaf.dtype for leaf in leaves}) == 1:
        return params, lambda theta: theta
    return ravel_pytree(params)


def move(theta: PyTree, fraction: Float[Array, ""], step: PyTree) -> PyTree:
    """Return θ + fraction · step, rounded to the dtype of θ."""

    def add(old: Array, change: Array) -> Array:
        new = old + (fraction * change).astype(old.dtype)
        # XLA may keep a half-precision sum in float32: a candidate would then be judged
        # at other parameters than those that are returned.
        dtype = jnp.finfo(old.dtype)
        return jax.lax.reduce_precision(new, dtype.nexp, dtype.nmant)

    return jax.tree.map(add, theta, step)


def max_norm(tree: PyTree) -> Float[Array, ""]:
    """Return ‖·‖∞: not finite if anything in the tree is not."""
    # Integers are finite, and would have to be promoted.
    maxima = [
        jnp.max(jnp.abs(leaf), initial=0)
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    ]
    return functools.reduce(jnp.maximum, maxima, jnp.float32(0))
