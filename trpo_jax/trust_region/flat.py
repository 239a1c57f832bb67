"""The paper's vector θ: one array, or many where these are large."""

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
    """Return θ, and θ ↦ params: a vector, or from 2¹⁶ numbers on the arrays themselves.

    The algebra of small arrays costs their number, that of large ones their size. And
    XLA on a CPU sums what goes into a bias's gradient once more for each element of a
    vector that it is put into. Arrays of several dtypes are one vector, of the widest.
    """
    params = jax.tree.map(jnp.asarray, params)
    leaves = jax.tree.leaves(params)
    size = sum(leaf.size for leaf in leaves)
    if size >= _LARGE and len({leaf.dtype for leaf in leaves}) == 1:
        return params, lambda theta: theta
    return ravel_pytree(params)
