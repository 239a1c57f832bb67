"""Helpers of the adapters: names, precision, bounds and keys."""

import copy
import dataclasses
import difflib
import functools
import hashlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Key, PyTree, UInt32

from trpo_jax.environments.protocol import Box
from trpo_jax.errors import UsageError
from trpo_jax.tracing import cached

P = ParamSpec("P")
T = TypeVar("T")


def made_once(make: Callable[P, T]) -> Callable[P, T]:
    """Return a function that makes environments, in 32 bits, and remembers them.

    The same arguments give the same object, so that nothing compiles twice.
    """
    signature = inspect.signature(make)
    remembered = cached(make)

    @functools.wraps(make)
    @single_precision
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        # Evaluated at once, even under a trace: environments hold arrays.
        with jax.ensure_compile_time_eval():
            return remembered(*bound.args, **bound.kwargs)

    return wrapped


class ById(tuple[Any, ...]):
    """Objects of a suite; equal to others only if they are the same objects.

    Those of several suites cannot be hashed or compared: they hold arrays.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ById) or len(self) != len(other):
            return False
        return all(one is another for one, another in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(map(id, self)))


def default_params_of(env: Any) -> Any:
    """Return the default parameters of an environment, an attribute or a method."""
    default = getattr(env, "default_params", None)
    return default() if callable(default) else default


def digest(params: PyTree, default: PyTree = None) -> str:
    """Return ", parameters 3f2a91c0", by which a run knows its environment again.

    Nothing for the default parameters, and for traced ones, whose values are unknown.
    Numbers count as in the 32 bits that environments compute in: 10, 10.0 and
    float32(10) are the same.
    """
    leaves = jax.tree.leaves((params, default))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return ""

    def hashed(tree: PyTree) -> str:
        content = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if jax.dtypes.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            array = np.asarray(leaf)
            if np.issubdtype(array.dtype, np.floating):
                array = array.astype(np.float32)
            array = array.astype(np.float64)
            content.update(f"{jax.tree_util.keystr(path)}{array.shape}".encode())
            content.update(array.tobytes())
        return content.hexdigest()[:8]

    found = hashed(params)
    usual = default is not None and found == hashed(default)
    return "" if usual else f", parameters {found}"


def check_known(
    name: str,
    known: Iterable[str],
    suite: str,
    advice: str,
    kind: str = "environment",
) -> None:
    """Raise UsageError unless a suite has the environment; name those near to it.

    Args:
        name: The environment.
        known: All names in the suite.
        suite: Its name.
        advice: How to use an environment that the suite does not have.
        kind: What is named, if not an environment.
    """
    lowered = {other.lower(): other for other in known}
    if name in lowered.values():
        return
    near = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.4)
    names = ", ".join(repr(lowered[other]) for other in near or sorted(lowered)[:30])
    more = len(lowered) - 30
    if near:
        hint = f"Did you mean {names}?"
    else:
        hint = f"It has {names}" + (f" and {more} more." if more > 0 else ".")
    raise UsageError(f"no {kind} {name!r} in {suite}. {hint} {advice}")


def refuse_download(name: str, error: Exception) -> NoReturn:
    """Raise UsageError for an environment whose data cannot be downloaded."""
    raise UsageError(
        f"{name} downloads its data when it is made, and that failed: {error}. Choose "
        "an environment without data, or make this one online once."
    ) from error


def single_precision(fn: Callable[P, T]) -> Callable[P, T]:
    """Return `fn` with `jax_enable_x64` switched off inside.

    The suites are written for 32 bits. In double precision the state of many of their
    environments changes its types with the first step, which a scan refuses. With the
    switch off, types and episodes are bit-identical in every program.
    """

    @functools.wraps(fn)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.enable_x64(False):
            return fn(*args, **kwargs)

    return wrapped


def narrowed(tree: PyTree) -> PyTree:
    """Return a pytree with its 64-bit arrays in the 32 bits of `single_precision`."""

    def narrow(leaf: Any) -> Any:
        dtype = _NARROW.get(str(getattr(leaf, "dtype", None)))
        return leaf.astype(dtype) if isinstance(leaf, jax.Array) and dtype else leaf

    return jax.tree.map(narrow, tree)


_NARROW = {"float64": "float32", "int64": "int32", "uint64": "uint32"}


def narrowed_params(params: PyTree) -> PyTree:
    """Return the parameters of an environment, `narrowed`.

    Raises:
        UsageError: If an integer does not fit in 32 bits, unless it is traced. JAX
            wraps those of NumPy in silence.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = "int64" if type(leaf) is int else str(getattr(leaf, "dtype", None))
        if dtype not in ("int64", "uint64") or isinstance(leaf, jax.core.Tracer):
            continue
        limits, numbers = np.iinfo(_NARROW[dtype]), np.asarray(leaf)
        outside = (numbers < limits.min) | (numbers > limits.max)
        if outside.any():
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise UsageError(
                f"the environment's {name or 'parameter'} is {numbers[outside][0]}, "
                f"which {limits.dtype} cannot hold; write a whole number from "
                f"{limits.min} to {limits.max}."
            )
    return narrowed(params)


def narrowed_attributes(env: T) -> T:
    """Return `env`, or a copy of it if its attributes hold 64-bit arrays."""
    attributes = {
        name: value
        for name, value in vars(env).items()
        if isinstance(value, jax.Array) or dataclasses.is_dataclass(value)
    }
    narrow = narrowed(attributes)
    leaves = zip(jax.tree.leaves(attributes), jax.tree.leaves(narrow), strict=True)
    if all(before is after for before, after in leaves):
        return env
    env = copy.copy(env)
    vars(env).update(narrow)
    return env


def strong(leaf: Any, dtype: Any = None) -> Array:
    """Return an array whose type stays the same through a scan.

    States may hold Python numbers, whose weak type changes with the first step.
    """
    array = jnp.asarray(leaf)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return array
    return jax.lax.convert_element_type(array, dtype or array.dtype)


def strong_as(tree: PyTree, types: PyTree) -> PyTree:
    """Return a pytree with the dtypes of another, as `strong` gives them."""
    return jax.tree.map(lambda leaf, like: strong(leaf, like.dtype), tree, types)


def observed(observation: PyTree) -> PyTree:
    """Return an observation with floats as float32, and bytes (uint8) as they are.

    Other integers become float32 in an observation of one array, which is normalised
    as a whole. In a pytree they stay: a network may take them as indices.
    """

    def convert(leaf: Any) -> Array:
        array = strong(leaf)
        is_kept = array.dtype == jnp.uint8 or leaf is not observation
        if is_kept and not jnp.issubdtype(array.dtype, jnp.floating):
            return array
        return array.astype(jnp.float32)

    return jax.tree.map(convert, observation)


def cost_of(info: Any) -> Float[Array, "*K"] | None:
    """Return the entry "cost" of what a step tells beside its results, float32."""
    cost = _entry(info, "cost")
    return None if cost is None else strong(cost).astype(jnp.float32)


def count_costs(info: Any) -> int:
    """Return the number of costs that `cost_of` finds, from types alone."""
    cost = _entry(info, "cost")
    return 0 if cost is None else math.prod(jnp.shape(cost))


def _entry(info: Any, name: str) -> Any:
    return info.get(name) if isinstance(info, Mapping) else None


def one_hot_layers(
    layers: Integer[Array, "H W L"], sizes: tuple[int, ...]
) -> Bool[Array, "H W K"]:
    """Return the layers of a grid, whose entries are ids, one-hot and side by side.

    Layer i has the ids 0 to sizes[i] − 1; an entry outside of them becomes zeros. A
    boolean takes a byte, as an id does, and is not taken for a pixel.
    """
    hot = [layers[..., i, None] == jnp.arange(size) for i, size in enumerate(sizes)]
    return jnp.concatenate(hot, axis=-1)


def shape_of(observation: PyTree) -> PyTree:
    """Return `observation_shape` for an observation, or its types."""
    return jax.tree.map(lambda leaf: leaf.shape, observation)


def flat_box(low: Any, high: Any, shape: tuple[int, ...]) -> Box:
    """Return the space of a flat action, with infinite bounds where there is none.

    It has no bounds if no number is bounded, or if a bound is traced: it is known only
    when the program runs, and the environment clips to it.
    """
    unbounded = Box(math.prod(shape))
    if isinstance(low, jax.core.Tracer) or isinstance(high, jax.core.Tracer):
        return unbounded
    flat = np.stack([np.broadcast_to(side, shape).ravel() for side in (low, high)])
    # Several suites write the largest float32 for infinity.
    is_bound = np.abs(flat) < np.finfo(np.float32).max
    if not is_bound.any():
        return unbounded
    flat = np.where(is_bound, flat, [[-np.inf], [np.inf]])
    return Box(unbounded.size, *(tuple(map(float, side)) for side in flat))


def raw_key(key: Key[Array, ""]) -> UInt32[Array, "_"]:
    """Return a key as the uint32 array that `jax.random.PRNGKey` returns."""
    default = jax.eval_shape(lambda: jax.random.key(0))
    if key.dtype == default.dtype:
        return jax.random.key_data(key)
    # JAX reads an array as a key of the default implementation, whose size may differ.
    data = jax.eval_shape(jax.random.key_data, default)
    return jax.random.bits(key, data.shape, data.dtype)
