"""Whether an environment is what the rollout asks for, from shapes alone."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from trpo_jax.environments.protocol import (
    ActionSpace,
    Box,
    Discrete,
    Environment,
    MaskedObservation,
    MultiDiscrete,
    TimeStep,
)
from trpo_jax.errors import UsageError, UsageTypeError


@functools.lru_cache(maxsize=64)
def check_environment(environment: Environment) -> None:
    """Raise with advice unless spaces, `reset` and `step` are as `Environment` says.

    Raises:
        ValueError: If the action space is not supported, or a shape or a dtype is
            another than it should be.
        TypeError: If `reset` or `step` returns something else altogether.
    """
    name = type(environment).__name__
    space = environment.action_space
    action = _action_like(name, space)
    key = jax.eval_shape(lambda: jax.random.key(0))
    started = jax.eval_shape(environment.reset, key)
    if not isinstance(started, tuple) or len(started) != 2:
        raise UsageTypeError(
            f"{name}.reset returns {_types(started)}; write a pair (state, "
            "observation)."
        )
    state, observation = started
    _check_observation(f"{name}.reset", observation, environment)
    stepped = jax.eval_shape(environment.step, key, state, action)
    if (
        not isinstance(stepped, tuple)
        or len(stepped) != 2
        or not isinstance(stepped[1], TimeStep)
    ):
        raise UsageTypeError(
            f"{name}.step returns {_types(stepped)}; write a pair (state, "
            "trpo_jax.environments.TimeStep(...))."
        )
    following, step = stepped
    if _types(following) != _types(state):
        raise UsageError(
            f"{name}.step returns the state {_types(following)}, but reset "
            f"{_types(state)}; they must have the same structure, shapes and dtypes."
        )
    _check_observation(f"{name}.step", step.observation, environment)
    _check_observation(f"{name}.step, at last,", step.final_observation, environment)
    if _types(step.observation) != _types(step.final_observation):
        raise UsageError(
            f"{name}.step returns the observation {_types(step.observation)} and the "
            f"final_observation {_types(step.final_observation)}; they must be alike."
        )
    for field, kind in {
        "reward": "real floating",
        "terminated": "bool",
        "truncated": "bool",
    }.items():
        value = getattr(step, field)
        if value.shape or not jnp.isdtype(value.dtype, kind):
            raise UsageError(
                f"{name}.step returns the {field} {_types(value)}; it must be a "
                f"{kind} scalar: the rollout maps one environment over many."
            )


def _action_like(name: str, space: ActionSpace | Any) -> jax.ShapeDtypeStruct:
    match space:
        case Discrete(int(count)) if count >= 1:
            return jax.ShapeDtypeStruct((), jnp.int32)
        case MultiDiscrete(tuple(counts)) if counts and min(counts) >= 1:
            return jax.ShapeDtypeStruct((len(counts),), jnp.int32)
        case Box(int(size)) if size >= 1:
            return jax.ShapeDtypeStruct((size,), jnp.float32)
    raise UsageError(
        f"{name}.action_space is {space!r} of {type(space).__module__}; write "
        "trpo_jax.environments.Discrete(num_actions), MultiDiscrete((K1, K2, ...)) or "
        "Box(size), with a positive number of each."
    )


def _check_observation(who: str, observation: Any, environment: Environment) -> None:
    values = observation
    if isinstance(observation, MaskedObservation):
        values = observation.values
        _check_mask(who, observation.action_mask, environment.action_space)
    shape = tuple(environment.observation_shape)
    if not isinstance(values, jax.ShapeDtypeStruct) or values.shape != shape:
        raise UsageError(
            f"{who} observes {_types(values)}, but observation_shape is {list(shape)}; "
            "write one array of that shape, such as a concatenation of all parts, or "
            "trpo_jax.environments.MaskedObservation(array, action_mask)."
        )


def _check_mask(who: str, mask: Any, space: ActionSpace) -> None:
    match space:
        case Discrete(count):
            size = count
        case MultiDiscrete(counts):
            size = sum(counts)
        case _:
            raise UsageError(
                f"{who} masks actions, but the environment takes {space}; only actions "
                "that are one of several can be forbidden: return the values alone."
            )
    if mask.shape != (size,) or not jnp.isdtype(mask.dtype, "bool"):
        raise UsageError(
            f"{who} returns the action_mask {_types(mask)}, but the environment takes "
            f"{space}; write bool[{size}]."
        )


def _types(tree: PyTree) -> str:
    return str(jax.tree.map(lambda leaf: f"{leaf.dtype}{[*leaf.shape]}", tree))
