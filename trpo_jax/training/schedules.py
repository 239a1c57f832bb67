"""Factors of a run's floats, from its first update to its last."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

Schedule = Callable[[Int[Array, ""]], Any]

SCHEDULES: dict[str, Callable[[int], Schedule]] = {
    "constant": lambda num_updates: optax.constant_schedule(1.0),
    "linear": lambda num_updates: optax.linear_schedule(1.0, 0.0, num_updates),
    "cosine": lambda num_updates: optax.cosine_decay_schedule(1.0, num_updates),
}
"""Factors from 1 to 0 over a run, by the names that a configuration uses."""


def make_schedule(schedule: str | Schedule, num_updates: int) -> Schedule:
    """Return a schedule that holds its last value once the run's updates are made.

    Past its end a linear schedule is 0. A run that continues there would have a trust
    region of no size, in which every update is rejected.

    Args:
        schedule: A name in `SCHEDULES`, or updates made ↦ factor.
        num_updates: The updates of the run.
    """
    factor_fn = (
        SCHEDULES[schedule](num_updates) if isinstance(schedule, str) else schedule
    )
    return lambda updates: factor_fn(jnp.minimum(updates, num_updates - 1))
