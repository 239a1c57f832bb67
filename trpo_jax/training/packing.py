"""Records of a scan, packed into few arrays.

Each array that a scan puts out costs a kernel in each of its steps, and most kernels of
a rollout are tiny.
"""

import dataclasses
import math
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

T = TypeVar("T")

# Numbers of an array in each environment. To copy a larger one takes longer than to
# launch a kernel: with images in the packed array, a rollout of Breakout on a CPU took
# 2.8 times as long.
_SMALL = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed(Generic[T]):
    """A pytree of arrays [B, …], or stacked [T, B, …], with the small ones in one.

    Attributes:
        packed: Small arrays of float32, int32 and bool side by side, float32[B, K].
        others: The rest.
        types: Shapes and dtypes of all, which are static.
        structure: Of the pytree, static.
    """

    packed: Float[Array, "*T B K"]
    others: list[Array]
    types: tuple[jax.ShapeDtypeStruct, ...] = dataclasses.field(
        metadata={"static": True}
    )
    structure: Any = dataclasses.field(metadata={"static": True})

    def unpack(self) -> T:
        """Return the pytree that `pack` was given, bit for bit, stacked or not."""
        others, first = iter(self.others), 0
        leaves = []
        for kind in self.types:
            if not _fits(kind):
                leaves.append(next(others))
                continue
            size = math.prod(kind.shape[1:]) * _halves(kind)
            columns = self.packed[..., first : first + size]
            leaf = _from_floats(columns, kind)
            leaves.append(leaf.reshape(*columns.shape[:-1], *kind.shape[1:]))
            first += size
        return jax.tree.unflatten(self.structure, leaves)


def pack(tree: T) -> Packed[T]:
    """Pack a pytree of arrays [B, …]. Derivatives pass through, unlike a bitcast."""
    leaves, structure = jax.tree.flatten(tree)
    columns = [_as_floats(leaf) for leaf in leaves if _fits(leaf)]
    return Packed(
        jnp.concatenate(columns, axis=1),
        [leaf for leaf in leaves if not _fits(leaf)],
        tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves),
        structure,
    )


def _fits(kind: Any) -> bool:
    small = math.prod(kind.shape[1:]) <= _SMALL
    return small and kind.dtype in (jnp.float32, jnp.int32, jnp.bool_)


def _halves(kind: Any) -> int:
    """Return in how many floats a number is kept: float32 holds 24 bits exactly."""
    return 2 if kind.dtype == jnp.int32 else 1


def _as_floats(leaf: Array) -> Float[Array, "B K"]:
    rows = leaf.reshape(leaf.shape[0], -1)
    if _halves(leaf) == 2:
        rows = jnp.concatenate([rows >> 16, rows & 0xFFFF], axis=1)
    return rows.astype(jnp.float32)


def _from_floats(columns: Float[Array, "*T B K"], kind: Any) -> Array:
    numbers = columns.astype(kind.dtype)
    if _halves(kind) == 2:
        high, low = jnp.split(numbers, 2, axis=-1)
        numbers = high << 16 | low
    return numbers
