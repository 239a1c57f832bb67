"""The protocol between a rollout and an environment of any suite."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float, Key, Num, PyTree

from trpo_jax.errors import UsageError
from trpo_jax.observations import Observation


class Discrete(NamedTuple):
    """Space of one choice among `num_actions`; actions are int32 scalars."""

    num_actions: int


class MultiDiscrete(NamedTuple):
    """Space of one choice in each of D dimensions; actions are int32[D]."""

    num_actions: tuple[int, ...]


class Box(NamedTuple):
    """Space of D real numbers; actions are float32[D], flat in every environment.

    Attributes:
        size: D.
        low: Lower bound of each number, D floats, −inf where there is none; None if no
            number has a bound.
        high: Upper bound of each number, likewise; None if and only if `low` is.
    """

    size: int
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None


ActionSpace = Discrete | MultiDiscrete | Box
"""One of the three action spaces."""


class TimeStep(NamedTuple):
    """Result of one step of one environment.

    Attributes:
        observation: Observation to act on next, an array or any pytree of arrays, or a
            `MaskedObservation` of them: the first of a new episode if this step ended
            one.
        reward: Float32 scalar.
        terminated: Whether the task ended, so that no reward can follow, bool scalar.
            Takes precedence where both flags are set.
        truncated: Whether the episode was cut, as by a time limit, bool scalar; never
            together with `terminated`.
        final_observation: Observation that the action led to: the last of the episode
            if this step ended it, else `observation`. Values are bootstrapped from it.
        cost: Cost of the step, on whose sum a limit may be kept: a float32 scalar, or
            one number for each of K costs, float32[K]; None if there are none.
    """

    observation: Observation
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]
    final_observation: Observation
    cost: Float[Array, "*K"] | None = None


@runtime_checkable
class Environment(Protocol):
    """An environment that resets itself; the rollout maps it over a batch.

    Instances are static under `jit`: hashable, and equal only to themselves. `step`
    takes the action as the policy drew it, and clips it if the dynamics need that.
    """

    def __hash__(self) -> int:
        """Return the hash of this object."""

    @property
    def observation_shape(self) -> PyTree:
        """Shape of one observation, of its values if it is masked.

        Of a pytree, the shapes of its leaves in the same containers, such as
        {"camera": (32, 32, 3), "speed": ()}.
        """

    @property
    def action_space(self) -> ActionSpace:
        """Space of the actions."""

    def reset(self, key: Key[Array, ""]) -> tuple[PyTree, Observation]:
        """Start an episode; consumes `key`.

        Returns:
            The environment's state and the first observation.
        """

    def step(
        self, key: Key[Array, ""], state: PyTree, action: Num[Array, "..."]
    ) -> tuple[PyTree, TimeStep]:
        """Act once, starting the next episode if this one ends; consumes `key`."""


def step_without_reset(environment: Environment) -> Callable[..., Any]:
    """Return `environment.step_without_reset` if it exists, else `step`.

    For evaluations, which play each episode once: a reset takes two thirds of a step of
    CartPole. After the end of an episode it must stay finite.
    """
    return getattr(environment, "step_without_reset", environment.step)


def at_random_time(environment: Environment) -> Callable[..., Any]:
    """Return `environment.at_random_time`, (key, state) ↦ state.

    The state is that of a reset, with a random part of the time limit used up, so that
    a first episode is truncated earlier. Neither observations nor dynamics may depend
    on this clock.

    Raises:
        UsageError: If the environment does not have this method.
    """
    if not hasattr(environment, "at_random_time"):
        raise UsageError(
            "staggered_starts=True sets the clock of each environment, and "
            f"{environment!r} has no method for that; write False, or add the method "
            "at_random_time(key, state), which returns the state with a random part of "
            "the time limit used up. Those of brax and MuJoCo Playground have it."
        )
    return environment.at_random_time


@runtime_checkable
class Drawable(Protocol):
    """An environment that can draw a picture of an episode.

    Training does not use it; `trpo_jax.pictures.render_episode` does.
    """

    @property
    def picture_suffix(self) -> str | None:
        """File suffix of pictures, such as ".gif"; None if there are none."""

    def draw(
        self, states: PyTree, returns: Float[np.ndarray, " T"], path: Path
    ) -> None:
        """Draw one episode of T steps, on the host.

        Args:
            states: The state before each step, as `reset` and `step` return it, NumPy
                leaves [T, …].
            returns: The return after each step, float32[T].
            path: The file to write; its name ends in `picture_suffix`.
        """
