"""What the rollout asks of an environment, whichever suite it comes from."""

from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float, Key, Num, PyTree

from trpo_jax.networks.protocol import MaskedObservation, Observation

__all__ = [
    "ActionSpace",
    "Box",
    "Discrete",
    "Drawable",
    "Environment",
    "MaskedObservation",
    "MultiDiscrete",
    "Observation",
    "TimeStep",
]


class Discrete(NamedTuple):
    """One choice among `num_actions`; actions are int32 scalars."""

    num_actions: int


class MultiDiscrete(NamedTuple):
    """A choice in each of D dimensions; actions are int32[D]."""

    num_actions: tuple[int, ...]


class Box(NamedTuple):
    """D real numbers; actions are float32[D], flat whatever the environment's shape.

    Attributes:
        size: D.
        low: The least that each number can be, D floats; None where nothing bounds it.
        high: The most, likewise.
    """

    size: int
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None


ActionSpace = Discrete | MultiDiscrete | Box
"""One of the three action spaces."""


class TimeStep(NamedTuple):
    """What one step of one environment returns.

    Attributes:
        observation: What to act on next, float32[…] or a `MaskedObservation`: the
            first of a new episode if the last has ended.
        reward: Float32 scalar.
        terminated: The task ended: nothing is to be had from here, bool scalar. Wins
            where both flags are set.
        truncated: The episode was cut, by a time limit say, bool scalar; never
            together with `terminated`.
        final_observation: What the action led to: `observation`, unless the episode
            ended, then its last. Values are bootstrapped from it.
    """

    observation: Observation
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]
    final_observation: Observation


@runtime_checkable
class Environment(Protocol):
    """One environment that resets itself; the rollout maps it over a batch.

    Instances are static under `jit`: hashable, and equal only to themselves. They take
    the policy's raw action, and clip it if their dynamics need that.
    """

    def __hash__(self) -> int:
        """Return what tells this object from others."""

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of one observation, of its values where it is masked."""

    @property
    def action_space(self) -> ActionSpace:
        """What an action looks like."""

    def reset(self, key: Key[Array, ""]) -> tuple[PyTree, Observation]:
        """Start an episode; consumes `key`.

        Returns:
            The environment's state and the first observation.
        """

    def step(
        self, key: Key[Array, ""], state: PyTree, action: Num[Array, "..."]
    ) -> tuple[PyTree, TimeStep]:
        """Act once, and start the next episode if this one ends; consumes `key`."""


@runtime_checkable
class Drawable(Protocol):
    """What an environment may have besides: a picture of an episode.

    Training does not ask for it; `trpo_jax.pictures.render` does.
    """

    @property
    def picture_suffix(self) -> str | None:
        """What the name of a picture ends in, such as ".gif"; None if it has none."""

    def draw(
        self, states: PyTree, returns: Float[np.ndarray, " T"], path: Path
    ) -> None:
        """Draw one episode of T steps, on the host.

        Args:
            states: The environment's states that were acted in, as `reset` and `step`
                return them, NumPy leaves [T, …].
            returns: The return after each step, float32[T].
            path: The file to write; its name ends in `picture_suffix`.
        """
