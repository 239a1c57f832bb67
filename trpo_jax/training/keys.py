"""Random keys: typed ones, and the uint32 arrays of older code."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt32

from trpo_jax.errors import UsageTypeError, describe_type

KeyLike = Key[Array, ""] | UInt32[Array, "_"]
"""`jax.random.key(0)`, or `jax.random.PRNGKey(0)`."""


def as_key(key: Any) -> Key[Array, ""]:
    """Return `key` as a typed key, a scalar.

    Args:
        key: `jax.random.key(0)`, or the uint32 array that `jax.random.PRNGKey(0)` is.

    Raises:
        UsageTypeError: If it is neither, or several keys.
    """
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape == ():
            return key
    elif isinstance(key, jax.Array | np.ndarray) and key.dtype == jnp.uint32:
        data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
        if key.shape == data.shape:
            return jax.random.wrap_key_data(jnp.asarray(key))
    raise UsageTypeError(
        f"key is {describe_type(key)}; write one key, jax.random.key(0). For several, "
        "vmap over them."
    )
