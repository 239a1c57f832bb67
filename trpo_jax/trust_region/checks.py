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
                f"{name}={values[name]} is out of range; write a finite number above "
                f"0{_rounded(values[name], value)}."
            )


def check_not_negative(**values: Any) -> None:
    """Raise UsageError naming the first known value that is not in [0, ∞)."""
    for name, value in _known(values):
        if not 0 <= value < math.inf:
            raise UsageError(
                f"{name}={values[name]} is out of range; write a finite number, 0 or "
                f"more{_rounded(values[name], value)}."
            )


def check_fraction(**values: Any) -> None:
    """Raise UsageError naming the first known value that is not in [0, 1]."""
    for name, value in _known(values):
        if not 0 <= value <= 1:
            raise UsageError(
                f"{name}={values[name]} is out of range; write one in [0, 1]."
            )


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
    """Yield the values that are not traced, as NumPy arrays of JAX's precision.

    Under `jit` a comparison of JAX arrays is traced even if both are known.
    """
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    for name, value in values.items():
        number = isinstance(value, numbers.Real | jax.Array | np.ndarray)
        if not number or isinstance(value, bool) or np.ndim(value):
            raise UsageTypeError(f"{name} is {describe_type(value)}; write one number.")
        if isinstance(value, jax.core.Tracer):
            continue
        try:
            with np.errstate(over="ignore"):
                yield name, np.asarray(value).astype(dtype)
        except OverflowError:  # a whole number beyond all floats
            yield name, np.asarray(math.inf if value > 0 else -math.inf)


def _rounded(given: Any, value: np.ndarray) -> str:
    """Return a remark if a finite number that is not 0 is rounded to 0 or ∞."""
    if isinstance(given, jax.Array):  # a comparison would be traced under `jit`
        given = np.asarray(given)
    lost = given != 0 if value == 0 else np.isinf(value) and abs(given) != math.inf
    return f" (on the device it is {value})" if lost else ""
