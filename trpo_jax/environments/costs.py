"""Wrapper that gives an environment a cost, in place of any that it has."""

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num, PyTree

from trpo_jax.environments.contract import (
    action_type,
    check_cost,
    observation_type,
)
from trpo_jax.environments.gymnasium import is_on_host
from trpo_jax.environments.making import make_environment
from trpo_jax.environments.protocol import (
    Drawable,
    Environment,
    TimeStep,
    at_random_time,
    step_without_reset,
)
from trpo_jax.errors import UsageError, UsageTypeError, describe_type
from trpo_jax.observations import Observation

# (observation, action, the observation that it led to) ↦ a cost, or costs [K]
CostFn = Callable[[Observation, Num[Array, "..."], Observation], Float[Array, "*K"]]


class ObservedState(NamedTuple):
    """State of an episode: the environment's own, and the observation to act on."""

    env_state: PyTree
    observation: Observation


class CostEnvironment:
    """An environment whose steps have the cost that a function of them gives.

    Such as the speed of a body beyond a limit:

    CostEnvironment("brax/halfcheetah", lambda s, a, s_next: s_next[8] > 1.5)
    """

    def __init__(self, env: Any, cost_fn: CostFn):
        """Wrap an environment.

        Args:
            env: An id, or whatever `make_environment` takes.
            cost_fn: (observation, action, next observation) ↦ the cost of the step, a
                number or a bool; or K of them, [K]. The action is as this environment
                is given it, squashed where it has to be, and the next observation is
                the one before any reset.

        Raises:
            UsageTypeError: If `cost_fn` is not a function of three arguments.
            UsageError: If it does not return a number or a vector, or the environment
                is stepped on the host.
        """
        if not callable(cost_fn):
            raise UsageTypeError(
                f"cost_fn is {describe_type(cost_fn)}; write a function (observation, "
                "action, next_observation) ↦ cost."
            )
        try:
            inspect.signature(cost_fn).bind(*["an argument"] * 3)
        except TypeError:
            raise UsageTypeError(
                f"cost_fn is {describe_type(cost_fn)}, which does not take three "
                "arguments; write a function (observation, action, next_observation) ↦ "
                "cost."
            ) from None
        except ValueError:
            pass  # a function of C without a signature
        self._environment: Environment = make_environment(env)
        if is_on_host(self._environment):
            raise UsageError(
                f"{env} is stepped on the host, and a cost is computed on the device; "
                "write an environment of another suite."
            )
        self._cost_fn = cost_fn
        self.action_space = self._environment.action_space
        self.observation_shape = self._environment.observation_shape
        observation = observation_type(self._environment)
        cost = jax.eval_shape(
            cost_fn, observation, action_type(self._environment), observation
        )
        check_cost("cost_fn", cost)
        self.num_costs = math.prod(cost.shape)
        self.name = str(getattr(self._environment, "name", self._environment))
        # Of a varied environment, perhaps inside of another wrapper.
        if hasattr(self._environment, "reset_variant"):
            varied: Any = self._environment
            self.num_variants = varied.num_variants
            self.reset_variant = self._reset_variant
        if hasattr(self._environment, "at_random_time"):
            self.at_random_time = self._at_random_time

    def __repr__(self) -> str:
        return f"CostEnvironment({self._environment!r})"

    @property
    def picture_suffix(self) -> str | None:
        """File suffix of pictures, as in the environment inside."""
        return getattr(self._environment, "picture_suffix", None)

    def reset(self, key: Key[Array, ""]) -> tuple[ObservedState, Observation]:
        """Start an episode; consumes `key`. Returns (state, observation)."""
        state, observation = self._environment.reset(key)
        return ObservedState(state, observation), observation

    def _reset_variant(
        self, key: Key[Array, ""], row: Int[Array, ""] | int
    ) -> tuple[ObservedState, Observation]:
        """Start an episode of a row, where the environment inside has several."""
        varied: Any = self._environment
        state, observation = varied.reset_variant(key, row)
        return ObservedState(state, observation), observation

    def step(
        self, key: Key[Array, ""], state: ObservedState, action: Num[Array, "..."]
    ) -> tuple[ObservedState, TimeStep]:
        """Act once, starting the next episode if this one ends; consumes `key`."""
        return self._with_cost(self._environment.step, key, state, action)

    def _at_random_time(
        self, key: Key[Array, ""], state: ObservedState
    ) -> ObservedState:
        """Return the state with a random part of its time limit used up."""
        time_fn = at_random_time(self._environment)
        return state._replace(env_state=time_fn(key, state.env_state))

    def step_without_reset(
        self, key: Key[Array, ""], state: ObservedState, action: Num[Array, "..."]
    ) -> tuple[ObservedState, TimeStep]:
        """Act once as `step` does, without a reset where supported; consumes `key`."""
        step_fn = step_without_reset(self._environment)
        return self._with_cost(step_fn, key, state, action)

    def _with_cost(
        self,
        step_fn: Callable[..., tuple[PyTree, TimeStep]],
        key: Key[Array, ""],
        state: ObservedState,
        action: Num[Array, "..."],
    ) -> tuple[ObservedState, TimeStep]:
        env_state, step = step_fn(key, state.env_state, action)
        cost = self._cost_fn(state.observation, action, step.final_observation)
        step = step._replace(cost=jnp.asarray(cost, jnp.float32))
        return ObservedState(env_state, step.observation), step

    def draw(
        self, states: ObservedState, returns: Float[np.ndarray, " T"], path: Path
    ) -> None:
        """Draw one episode of T steps, as the environment inside does."""
        assert isinstance(self._environment, Drawable)
        self._environment.draw(states.env_state, returns, path)
