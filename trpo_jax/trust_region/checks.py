"""Early errors for numbers out of range. Traced values pass: they are unknown."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from trpo_jax.errors import UsageError


def check_positive(**values: Any) -> None:
    """Raise UsageError naming the first known value that is not positive."""
    for name, value in _known(values):
        if not value > 0:
            raise UsageError(f"{name}={value} is not positive; write more than 0.")


def check_not_negative(**values: Any) -> None:
    """Raise UsageError naming the first known value that is negative."""
    for name, value in _known(values):
        if not value >= 0:
            raise UsageError(f"{name}={value} is negative; write 0 or more.")


def check_fraction(**values: Any) -> None:
    """Raise UsageError naming the first known value that is not in [0, 1]."""
    for name, value in _known(values):
        if not 0 <= value <= 1:
            raise UsageError(f"{name}={value} is out of range; write one in [0, 1].")


def _known(values: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the values that are not traced, as NumPy arrays.

    Under `jit` a comparison of JAX arrays is traced even if both are known.
    """
    for name, value in values.items():
        if not isinstance(value, jax.core.Tracer):
            yield name, np.asarray(value)
