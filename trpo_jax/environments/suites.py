"""Helpers that the adapters share: similar names, strong types, action bounds."""

import difflib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the names in `known` that look like `name`, or all if none does."""
    lowered = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.4)
    return ", ".join(repr(lowered[other]) for other in near or lowered)


def strong(leaf: Any, dtype: Any = None) -> Array:
    """Return an array with a type that stays the same through a scan.

    States may hold Python numbers, whose weak type changes with the first step.
    """
    array = jnp.asarray(leaf)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return array
    return jax.lax.convert_element_type(array, dtype or array.dtype)


def bound(value: Any, shape: tuple[int, ...]) -> tuple[float, ...] | None:
    """Return one bound for each number of an action, None where it bounds nothing."""
    bound = np.broadcast_to(value, shape).ravel()
    largest = np.finfo(np.float32).max
    return tuple(map(float, bound)) if np.all(np.abs(bound) < largest) else None
