"""What multiplies a float of a run, from its first update to its last."""

from collections.abc import Callable
from typing import Any

import optax
from jaxtyping import Array, Int

Schedule = Callable[[Int[Array, ""]], Any]

SCHEDULES: dict[str, Callable[[int], Schedule]] = {
    "constant": lambda num_updates: optax.constant_schedule(1.0),
    "linear": lambda num_updates: optax.linear_schedule(1.0, 0.0, num_updates),
    "cosine": lambda num_updates: optax.cosine_decay_schedule(1.0, num_updates),
}
"""Factors from 1 to 0 over a run, by the names that a configuration uses."""
