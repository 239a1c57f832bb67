"""Observations: an array, or an array with a mask of allowed actions."""

from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Num


class MaskedObservation(NamedTuple):
    """An observation with a mask of allowed actions.

    Attributes:
        values: Input of the networks, [*batch, …].
        action_mask: True where an action is allowed, bool[*batch, K]. Where an action
            has D dimensions, their masks side by side, bool[*batch, ΣK].
    """

    values: Num[Array, "..."]
    action_mask: Bool[Array, "..."]


Observation = Num[Array, "..."] | MaskedObservation
"""One array, or one with an action mask."""


def values_of(observations: Any) -> Any:
    """Return observations, or their shapes, without action masks."""
    if isinstance(observations, MaskedObservation):
        return observations.values
    return observations


def masks_of(observations: Observation) -> tuple[Bool[Array, "..."], ...]:
    """Return (action_mask,), or () if observations have none."""
    if isinstance(observations, MaskedObservation):
        return (observations.action_mask,)
    return ()
