"""Environments: one protocol, one adapter for each suite."""

from typing import Any

from trpo_jax.environments.gymnax import GymnaxEnvironment, make_gymnax
from trpo_jax.environments.protocol import (
    ActionSpace,
    Box,
    Discrete,
    Environment,
    MaskedObservation,
    MultiDiscrete,
    TimeStep,
)
from trpo_jax.environments.squashed import SquashedActions, squash_actions

__all__ = [
    "ActionSpace",
    "Box",
    "Discrete",
    "Environment",
    "GymnaxEnvironment",
    "MaskedObservation",
    "MultiDiscrete",
    "SquashedActions",
    "TimeStep",
    "make_environment",
    "squash_actions",
]


def make_environment(env: str | tuple[Any, Any] | Environment) -> Environment:
    """Return the environment that `env` names or is.

    Args:
        env: A gymnax id, a gymnax (environment, params) pair, or any `Environment`.

    Returns:
        The environment; the same object for the same `env`.

    Raises:
        ValueError: If no environment has that id, or its spaces are not supported.
        TypeError: If `env` is none of the three.
    """
    if isinstance(env, str):
        return make_gymnax(env)
    if isinstance(env, tuple) and len(env) == 2 and hasattr(env[0], "step"):
        return make_gymnax(env)
    if isinstance(env, Environment):
        return env
    raise TypeError(
        f"env is a {type(env).__name__}; write an id such as 'CartPole-v1', a gymnax "
        "pair (environment, params), or an object with reset, step, action_space and "
        "observation_shape (trpo_jax.environments.Environment)."
    )
