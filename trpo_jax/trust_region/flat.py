"""Parameters as the paper's vector θ: few large operations, not many small."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

# Two layers of 256 units: from there on the arrays as they are were no slower.
_LARGE = 2**16


def flatten(
    params: PyTree,
) -> tuple[Float[Array, " P"] | PyTree, Callable[[PyTree], PyTree]]:
    """Return θ, and θ ↦ params: one vector, or params themselves if they are many.

    The algebra of small arrays costs their number, that of large ones their size, and
    then a vector would only be taken apart and put together again. Arrays of several
    dtypes are one vector, of the widest, however many.
    """
    one_dtype = len({jnp.result_type(leaf) for leaf in jax.tree.leaves(params)}) == 1
    if one_dtype and optax.tree.size(params) >= _LARGE:
        return params, lambda theta: theta
    return ravel_pytree(params)
