"""Early errors for numbers out of range; traced values pass, for nothing is known."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from trpo_jax.errors import UsageError


def check_positive(**values: Any) -> None:
    """Raise ValueError naming the first value that is known and is not above 0."""
    for name, value in _known(values):
        if not value > 0:
            raise UsageError(f"{name}={value} is not positive; write more than 0.")


def check_not_negative(**values: Any) -> None:
    """Raise ValueError naming the first value that is known and is below 0."""
    for name, value in _known(values):
        if not value >= 0:
            raise UsageError(f"{name}={value} is negative; write 0 or more.")


def check_fraction(**values: Any) -> None:
    """Raise ValueError naming the first value that is known and is not in [0, 1]."""
    for name, value in _known(values):
        if not 0 <= value <= 1:
            raise UsageError(f"{name}={value} is out of range; write one in [0, 1].")


def _known(values: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield what is not traced; by NumPy, since under `jit` JAX traces comparisons."""
    for name, value in values.items():
        if not isinstance(value, jax.core.Tracer):
            yield name, np.asarray(value)
