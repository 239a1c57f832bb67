"""Observations: any pytree of arrays, with or without a mask of allowed actions."""

from typing import Any, NamedTuple, TypeAlias

import jax
from jaxtyping import Array, Bool, PyTree, Shaped


class MaskedObservation(NamedTuple):
    """An observation with a mask of allowed actions.

    Attributes:
        values: Input of the networks, an array [*batch, …] or a pytree of such arrays.
        action_mask: True where an action is allowed, bool[*batch, K]. Where an action
            has D dimensions, their masks side by side, bool[*batch, ΣK].
    """

    values: PyTree[Shaped[Array, "..."]]
    action_mask: Bool[Array, "..."]


Observation: TypeAlias = PyTree[Shaped[Array, "..."]] | MaskedObservation
"""An array, or any pytree of arrays; with an action mask where actions are masked."""

Part = str | tuple[str, ...] | None
"""Names of top-level entries of an observation: one, several, or None for all."""


def values_of(observations: Any) -> Any:
    """Return observations, or their shapes, without action masks."""
    if isinstance(observations, MaskedObservation):
        return observations.values
    return observations


def with_values(observations: Any, values: Any) -> Any:
    """Return other values, with the action masks of the observations if they have."""
    if isinstance(observations, MaskedObservation):
        return observations._replace(values=values)
    return values


def masks_of(observations: Observation) -> tuple[Bool[Array, "..."], ...]:
    """Return (action_mask,), or () if observations have none."""
    if isinstance(observations, MaskedObservation):
        return (observations.action_mask,)
    return ()


def entries_of(tree: Any) -> dict[str, Any]:
    """Return the top-level entries of a container by name; {} for an array."""
    below = jax.tree.leaves_with_path(tree, is_leaf=lambda node: node is not tree)
    return {
        jax.tree_util.keystr(path, simple=True): node for path, node in below if path
    }


def part_of(observations: Any, part: Part) -> Any:
    """Return what a network sees of observations: all, one entry, or a dict of several.

    Action masks are kept.
    """
    if part is None:
        return observations
    entries = entries_of(values_of(observations))
    if isinstance(part, str):
        return with_values(observations, entries[part])
    return with_values(observations, {name: entries[name] for name in part})
