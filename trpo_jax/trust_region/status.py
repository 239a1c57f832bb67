"""Statuses: what became of a computation, as a number on the device."""

import enum
import operator
from typing import Any


class Status(enum.IntEnum):
    """Status that an int32 scalar stands for; `Status(array)` returns it."""

    @classmethod
    def _missing_(cls, value: object) -> Any:
        # From Python 3.13 on, an enum does not compare its values with one that has no
        # hash, as an array of JAX.
        try:
            return cls._value2member_map_.get(operator.index(value))  # type: ignore[arg-type]
        except TypeError:
            return None
