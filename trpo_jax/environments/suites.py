"""What the adapters share: finding a suite, naming its environments, types."""

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from trpo_jax.errors import UsageError


def import_suite(module: str, *, extra: str) -> Any:
    """Import `module`, which `pip install "trpo_jax[extra]"` brings.

    Raises:
        ValueError: If it cannot be imported; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{module} cannot be imported ({error}). It comes with: "
            f'pip install "trpo_jax[{extra}]"'
        ) from error


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
