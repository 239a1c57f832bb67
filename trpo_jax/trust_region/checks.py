"""Early errors for numbers out of range. Traced values pass: they are unknown."""

import math
import numbers
import operator
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from trpo_jax.errors import UsageError, UsageTypeError, describe_type


def check_positive(**values: Any) -> None:
    """Raise UsageError naming the first known value that is not in (0, ∞)."""
    for name, value in _known(values):
        if not 0 < value < math.inf:
            raise UsageError(
                f"{name}={value} is out of range; write a finite number above 0."
            )


def check_not_negative(**values: Any) -> None:
    """Raise UsageError naming the first known value that is not in [0, ∞)."""
    for name, value in _known(values):
        if not 0 <= value < math.inf:
            raise UsageError(
                f"{name}={value} is out of range; write a finite number, 0 or more."
            )


def check_fraction(**values: Any) -> None:
    """Raise UsageError naming the first known value that is not in [0, 1]."""
    for name, value in _known(values):
        if not 0 <= value <= 1:
            raise UsageError(f"{name}={value} is out of range; write one in [0, 1].")


def whole(
    name: str, value: Any, *, least: int | None = 1, most: int | float = 2**31 - 1
) -> int:
    """Return a count as an int, whatever type it has.

    Raises:
        UsageTypeError: If it is not a whole number.
        UsageError: If it is below `least`, which may be None, or above `most`, by
            default the largest int32.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        integral = isinstance(value, float | np.floating) and value == int(value)
        count = int(value) if integral else operator.index(value)
    except (TypeError, ValueError, OverflowError):  # traced, too: it decides a shape
        raise UsageTypeError(
            f"{name} is {describe_type(value)}; write a whole number."
        ) from None
    if least is not None and count < least:
        sign = "not positive" if least else "negative"
        raise UsageError(f"{name}={count} is {sign}; write at least {least}.")
    if count > most:
        raise UsageError(f"{name}={count} is too large; write at most {most}.")
    return count


def _known(values: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the values that are not traced, as NumPy arrays.

    Under `jit` a comparison of JAX arrays is traced even if both are known.
    """
    for name, value in values.items():
        number = isinstance(value, numbers.Real | jax.Array | np.ndarray)
        if not number or isinstance(value, bool) or np.ndim(value):
            raise UsageTypeError(f"{name} is {describe_type(value)}; write one number.")
        if not isinstance(value, jax.core.Tracer):
            yield name, np.asarray(value)
