"""The vector θ of the paper: one array, or a pytree if it is large."""

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
