"""Checks that an environment keeps the protocol, from shapes alone."""

import math
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from trpo_jax.environments.protocol import (
    ActionSpace,
    Box,
    Discrete,
    Environment,
    MultiDiscrete,
    TimeStep,
)
from trpo_jax.errors import UsageError, UsageTypeError, array_types, describe_type
from trpo_jax.observations import MaskedObservation, values_of
from trpo_jax.tracing import cached


def check_environment(environment: Environment) -> None:
    """Raise with advice unless spaces, `reset` and `step` are as `Environment` says.

    Raises:
        UsageError: If the action space is not supported, its bounds are not bounds, or
            a shape or a dtype is wrong.
        UsageTypeError: If `reset` or `step` returns something else altogether.
    """
    # Once with and once without jax_enable_x64.
    _check(environment, _float_bits())


def _float_bits() -> int:
    return jnp.finfo(jnp.result_type(float)).bits


def _traced(name: str, fn: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return jax.eval_shape(fn, *arguments)
    except TypeError as error:
        if "which is not a valid JAX type" not in str(error):
            raise
        raise UsageTypeError(
            f"{name} returns something that is not an array of numbers; leave it out, "
            f"or encode it: {str(error).rstrip('.')}."
        ) from error


@cached
def _check(environment: Environment, float_bits: int) -> None:
    name = type(environment).__name__
    action = action_type(environment)
    key = jax.eval_shape(lambda: jax.random.key(0))
    started = _traced(f"{name}.reset", environment.reset, key)
    if not isinstance(started, tuple) or len(started) != 2:
        raise UsageTypeError(
            f"{name}.reset returns {describe_type(started)}; write a pair (state, "
            "observation)."
        )
    state, observation = started
    shape = environment.observation_shape
    if _shapes(state) == shape != _shapes(values_of(observation)):
        raise UsageError(
            f"{name}.reset observes {array_types(observation)}, and observation_shape "
            f"is {shape}, which is that of its state; write (state, observation) in "
            "this order, or another observation_shape."
        )
    _check_observation(f"{name}.reset", observation, environment)
    stepped = _traced(f"{name}.step", environment.step, key, state, action)
    if (
        not isinstance(stepped, tuple)
        or len(stepped) != 2
        or not isinstance(stepped[1], TimeStep)
    ):
        raise UsageTypeError(
            f"{name}.step returns {describe_type(stepped)}; write a pair (state, "
            "trpo_jax.environments.TimeStep(...))."
        )
    following, step = stepped
    _check_alike(f"{name}.step returns the state", following, "that of reset", state)
    if hasattr(environment, "at_random_time"):
        what = f"{name}.at_random_time"
        moved = _traced(what, environment.at_random_time, key, state)
        _check_alike(f"{what} returns", moved, "the state of reset", state)
    for which, found in {
        "observation": step.observation,
        "final_observation": step.final_observation,
    }.items():
        what, wanted = f"{name}.step returns the {which}", "the observation of reset"
        _check_alike(what, found, wanted, observation)
    if step.cost is not None:
        check_cost(f"{name}.step", step.cost, ("real floating",))
    for field, (kind, advice) in {
        "reward": ("real floating", "jnp.float32(reward)"),
        "terminated": ("bool", "jnp.array(terminated, bool)"),
        "truncated": ("bool", "jnp.array(truncated, bool)"),
    }.items():
        value = getattr(step, field)
        is_scalar = isinstance(value, jax.ShapeDtypeStruct) and value.shape == ()
        if not is_scalar or not jnp.isdtype(value.dtype, kind):
            if getattr(value, "shape", ()):
                advice = f"{field}[0], or their sum or any"
            raise UsageError(
                f"{name}.step returns the {field} {array_types(value)}; it must be a "
                f"{kind} scalar: write {advice}. The rollout maps one environment over "
                "many."
            )


def _check_alike(what: str, found: Any, which: str, wanted: Any) -> None:
    # Not as trees: a container may have an `__eq__` of its own, for arrays.
    def types(tree: Any) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]

    if types(found) == types(wanted):
        return
    advice = "."
    if _float_bits() == 64:
        advice = (
            ". Under jax_enable_x64 an array made without a dtype has 64 bits: write "
            "dtype=jnp.float32, or switch jax_enable_x64 off."
        )
    raise UsageError(
        f"{what} {array_types(found)}, but {which} is {array_types(wanted)}; they must "
        f"have the same structure, shapes and dtypes{advice}"
    )


def action_type(environment: Environment) -> jax.ShapeDtypeStruct:
    """Return the type of one action: int32[], int32[D] or float32[D]."""
    name, space = type(environment).__name__, environment.action_space
    match space:
        case Discrete(count) if isinstance(count, numbers.Integral) and count >= 1:
            return jax.ShapeDtypeStruct((), jnp.int32)
        case MultiDiscrete(tuple(counts)) if counts and min(counts) >= 1:
            return jax.ShapeDtypeStruct((len(counts),), jnp.int32)
        case Box(size) if isinstance(size, numbers.Integral) and size >= 1:
            _check_bounds(name, space)
            return jax.ShapeDtypeStruct((int(size),), jnp.float32)
    raise UsageError(
        f"{name}.action_space is {space!r} of {type(space).__module__}; write "
        "trpo_jax.environments.Discrete(num_actions), MultiDiscrete((K1, K2, ...)) or "
        "Box(size), with a positive number of each."
    )


@cached
def num_costs(environment: Environment) -> int:
    """Return K, the number of costs of each step; 0 if there are none.

    Adapters know it, so that their step, which may be long, is not traced once more.
    """
    known: int | None = getattr(environment, "num_costs", None)
    if known is not None:
        return known
    key = jax.eval_shape(lambda: jax.random.key(0))
    state, _ = jax.eval_shape(environment.reset, key)
    action = action_type(environment)
    cost = jax.eval_shape(environment.step, key, state, action)[1].cost
    return 0 if cost is None else math.prod(cost.shape)


@cached
def observation_type(environment: Environment) -> PyTree:
    """Return the shapes and dtypes of one observation."""
    _, observation = jax.eval_shape(environment.reset, jax.random.key(0))
    return observation


def check_cost(
    who: str, cost: Any, kinds: tuple[str, ...] = ("bool", "integral", "real floating")
) -> None:
    """Raise UsageError unless a cost is a number, or a vector of them, of a kind."""
    shape = getattr(cost, "shape", (0, 0))
    if len(shape) > 1 or 0 in shape or not jnp.isdtype(cost.dtype, kinds):
        raise UsageError(
            f"{who} returns the cost {array_types(cost)}; write one number, "
            "jnp.float32(cost), or one for each of several costs, float32[K]."
        )


def _check_bounds(name: str, space: Box) -> None:
    """Raise unless `space` has no bounds, or low < high for each number."""
    size, low, high = space
    if low is None and high is None:
        return
    try:
        both = zip(low, high, strict=True)  # type: ignore[arg-type]
        pairs = [(float(a), float(b)) for a, b in both]
    except (TypeError, ValueError):
        pairs = []  # not numbers, traced, or not as many
    if low is None or high is None:
        problem = "with bounds on one side only"
        advice = ", with math.inf where there is no bound"
    elif len(pairs) != size:
        problem, advice = f"whose bounds are not {size} plain numbers each", ""
    # NaN compares false.
    elif not all(a < b and a < math.inf and b > -math.inf for a, b in pairs):
        problem = "which leaves nothing between the bounds of a number"
        advice = ", with the low one below the high one"
    else:
        return
    raise UsageError(
        f"{name}.action_space is {space}, {problem}; write a Box such as "
        f"trpo_jax.environments.Box({size}, {(-1.0,) * size}, {(1.0,) * size}){advice}."
    )


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.shape, tree)


def _check_observation(who: str, observation: Any, environment: Environment) -> None:
    values = values_of(observation)
    if isinstance(observation, MaskedObservation):
        _check_mask(who, observation.action_mask, environment.action_space)
    if not any(math.prod(leaf.shape) for leaf in jax.tree.leaves(values)):
        raise UsageError(
            f"{who} observes {array_types(values)}, which has no numbers; write an "
            "array with at least one number."
        )
    shape = environment.observation_shape
    found = _shapes(values)
    if isinstance(found, tuple) and not isinstance(shape, tuple):
        raise UsageTypeError(
            f"{type(environment).__name__}.observation_shape is "
            f"{describe_type(shape)}; write a tuple, such as {found}."
        )
    if found != shape:
        raise UsageError(
            f"{who} observes {array_types(values)}, but observation_shape is {shape}; "
            f"write observation_shape = {found}, or return such an observation."
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
            f"{who} returns the action_mask {array_types(mask)}, but the environment "
            f"takes {space}; write bool[{size}]."
        )
