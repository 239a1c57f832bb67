"""Wrapper that squashes actions into an environment's bounds."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from trpo_jax.environments.contract import num_costs
from trpo_jax.environments.gymnasium import is_on_host
from trpo_jax.environments.protocol import (
    Box,
    Drawable,
    Environment,
    TimeStep,
    step_without_reset,
)
from trpo_jax.errors import UsageError
from trpo_jax.observations import Observation
from trpo_jax.tracing import cached


class SquashedActions:
    """An environment that takes any real u and acts with a in [low, high].

    a = low + ½ (high − low) (1 + tanh u)
    """

    def __init__(self, environment: Environment):
        """Wrap an environment whose actions are bounded.

        Raises:
            UsageError: If they are not, or a bound is infinite.
        """
        space = environment.action_space
        if not isinstance(space, Box):
            raise UsageError(
                "action_distribution='tanh_gaussian' is for continuous actions, but "
                f"the environment takes {space}; leave it out."
            )
        low, high = space.low, space.high
        if low is None or high is None or not np.isfinite([low, high]).all():
            raise UsageError(
                f"actions cannot be squashed into {space}, which has no bounds for "
                "some of them; write action_distribution='gaussian', or give the "
                "environment's Box a finite low and high for each number."
            )
        self._environment = environment
        # In NumPy: an array made while a program is traced would not outlive it.
        self._low, self._high = np.array([low, high], np.float32)
        self.action_space = Box(space.size)
        # One that varies may be inside of another wrapper.
        for name in ("num_variants", "reset_variant", "at_random_time"):
            if hasattr(environment, name):
                setattr(self, name, getattr(environment, name))
        self.observation_shape = environment.observation_shape
        self.num_costs = num_costs(environment)
        self.on_host = is_on_host(environment)

    def __repr__(self) -> str:
        return f"SquashedActions({self._environment!r})"

    @property
    def picture_suffix(self) -> str | None:
        """File suffix of pictures, as in the environment inside."""
        return getattr(self._environment, "picture_suffix", None)

    def reset(self, key: Key[Array, ""]) -> tuple[PyTree, Observation]:
        """Start an episode; consumes `key`."""
        return self._environment.reset(key)

    def step(
        self, key: Key[Array, ""], state: PyTree, action: Float[Array, " D"]
    ) -> tuple[PyTree, TimeStep]:
        """Act once with tanh(u); consumes `key`."""
        return self._environment.step(key, state, self.squash(action))

    def step_without_reset(
        self, key: Key[Array, ""], state: PyTree, action: Float[Array, " D"]
    ) -> tuple[PyTree, TimeStep]:
        """Act once with tanh(u), without a reset where supported; consumes `key`."""
        step_fn = step_without_reset(self._environment)
        return step_fn(key, state, self.squash(action))

    def squash(self, action: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Return the action inside the bounds for u."""
        share = 0.5 * (1 + jnp.tanh(action))
        return jnp.asarray(self._low + (self._high - self._low) * share)

    def draw(
        self, states: PyTree, returns: Float[np.ndarray, " T"], path: Path
    ) -> None:
        """Draw one episode of T steps, as the environment inside does."""
        assert isinstance(self._environment, Drawable)
        self._environment.draw(states, returns, path)


@cached
def squash_actions(environment: Any) -> SquashedActions:
    """Return `SquashedActions(environment)`; the same object for the same one."""
    return SquashedActions(environment)
