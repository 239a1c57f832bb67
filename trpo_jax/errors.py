"""Errors that say what to write instead, and values named in the user's terms."""

import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


class UsageError(ValueError):
    """A value that cannot work; the message says what to write instead."""


class UsageTypeError(TypeError):
    """An argument of the wrong type; the message says what to write instead."""


def describe_type(value: Any) -> str:
    """Return what `value` is, for a message: "an array float32[4, 2]".

    An array that is being traced is described as an array, not as JAX's tracer.
    """
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType):
        return f"the function {value.__name__}"
    if _is_array(value):
        return f"an array {array_types(value)}"
    if isinstance(value, str | bool | int | float | complex):
        return f"the {type(value).__name__} {value!r}"
    if isinstance(value, tuple | list | dict) and not hasattr(value, "_fields"):
        return f"a {type(value).__name__} {array_types(value)}"
    name = type(value).__name__
    article = "an" if name[0] in "AEIOUaeiou" else "a"
    inside = array_types(value)
    return f"{article} {inside if inside.startswith(f'{name}(') else name}"


def array_types(tree: Any) -> str:
    """Return dtypes and shapes, in the containers of `tree`: "{'x': float32[2]}"."""
    if _is_array(tree):
        return f"{tree.dtype}[{', '.join(map(str, tree.shape))}]"
    if isinstance(tree, Mapping):
        # Sorted, as JAX sorts them: their order makes no difference.
        inside = (f"{key!r}: {array_types(tree[key])}" for key in sorted(tree, key=str))
        return "{" + ", ".join(inside) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(array_types, tree)) + "]"
    if type(tree) is tuple:
        comma = "," if len(tree) == 1 else ""
        return "(" + ", ".join(map(array_types, tree)) + comma + ")"
    fields = getattr(tree, "_fields", getattr(tree, "__dataclass_fields__", None))
    if isinstance(fields, tuple | dict) and not isinstance(tree, type):
        inside = (f"{name}={array_types(getattr(tree, name))}" for name in fields)
        return f"{type(tree).__name__}({', '.join(inside)})"
    return "None" if tree is None else type(tree).__name__


def differences(
    found: Any, wanted: Any, describe_fn: Callable[[Any], str] = array_types
) -> list[str]:
    """Return the paths of leaves in which two pytrees differ, with those of both.

    Args:
        found: A pytree of arrays.
        wanted: Another.
        describe_fn: leaf ↦ what is compared, as text.

    Returns:
        Such as ["params.bias: float32[2] and float32[3]"], with None for a leaf that
        one of them does not have.
    """
    left, right = (
        {
            jax.tree_util.keystr(path, simple=True, separator="."): describe_fn(leaf)
            for path, leaf in jax.tree.leaves_with_path(tree)
        }
        for tree in (found, wanted)
    )
    return differing(left, right, str)


def differing(
    left: Mapping[str, Any],
    right: Mapping[str, Any],
    show_fn: Callable[[Any], str] = repr,
) -> list[str]:
    """Return the names whose values differ, with both: None for one that is missing."""
    return [
        f"{name}: {show_fn(left.get(name))} and {show_fn(right.get(name))}"
        for name in {**left, **right}
        if left.get(name) != right.get(name)
    ]


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)
