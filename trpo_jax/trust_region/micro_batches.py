"""Micro-batches: large batches in bounded memory, the same result to rounding."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from trpo_jax.trust_region.checks import whole


class MicroBatches(NamedTuple):
    """N rows, split into `count` micro-batches of equal size and a remainder.

    A micro-batch takes every `count`-th row: where rows are split over devices, each
    device has its equal part of every micro-batch, and no row is moved.

    Results computed from micro-batches stay split in the same way. So nothing has to
    know which leaves have one entry per row and which are shared by all rows, such as
    one σ for all states: every micro-batch has its own copy of these.

    Attributes:
        equal: Leaves [count, size, …]; None if all rows are taken at once.
        rest: Leaves [rest, …], the last rows; None if `count` divides N.
    """

    equal: PyTree
    rest: PyTree

    def unzip(self) -> tuple["MicroBatches", ...]:
        """Return each element of a tuple of results, split in the same way."""
        parts = [
            (None,) * len(self.equal or self.rest) if part is None else part
            for part in self
        ]
        return tuple(map(MicroBatches, *parts))

    def join(self) -> PyTree:
        """Return leaves [N, …], in the order of the rows; each leaf must have rows."""
        if self.equal is None:
            return self.rest
        equal = jax.tree.map(
            lambda leaf: jax.lax.collapse(jnp.swapaxes(leaf, 0, 1), 0, 2),
            self.equal,
        )
        if self.rest is None:
            return equal
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), equal, self.rest)


def split_rows(rows: PyTree, size: int | None) -> MicroBatches:
    """Split rows into micro-batches.

    Args:
        rows: A pytree of arrays [N, …].
        size: Rows of a micro-batch at most; None for all N.

    Returns:
        The same rows as `MicroBatches`.

    Raises:
        UsageError: If `size` is not positive.
    """
    if size is not None:
        size = whole("size", size)
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    if size is None or size >= num_rows:
        return MicroBatches(None, rows)
    count = -(-num_rows // size)
    size, rest = divmod(num_rows, count)

    def interleave(leaf: Array) -> Array:
        equal = leaf[: size * count].reshape(size, count, *leaf.shape[1:])
        return jnp.swapaxes(equal, 0, 1)

    return MicroBatches(
        jax.tree.map(interleave, rows),
        jax.tree.map(lambda leaf: leaf[size * count :], rows) if rest else None,
    )


def mean_over_rows(
    fn: Callable[..., tuple[PyTree, PyTree]], *batches: MicroBatches
) -> tuple[PyTree, MicroBatches]:
    """Return the mean of `fn` over all rows, from one micro-batch at a time.

    Only one micro-batch's intermediate results are alive at once. Where these fit into
    a cache that those of the whole batch overflow, this is faster as well.

    Args:
        fn: (rows, …) ↦ (means over these rows, any other results).
        *batches: Rows, split alike; each is one argument of `fn`.

    Returns:
        The means over all N rows, and the other results, split like the rows.
    """
    equal, rest = (list(parts) for parts in zip(*batches, strict=True))
    if equal[0] is None:
        means, results = fn(*rest)
        return means, MicroBatches(None, results)
    count, size = jax.tree.leaves(equal)[0].shape[:2]
    num_left = 0 if rest[0] is None else jax.tree.leaves(rest)[0].shape[0]
    num_rows = count * size + num_left

    def accumulate(total: PyTree, rows: list[Any]) -> tuple[PyTree, PyTree]:
        means, results = fn(*rows)
        return jax.tree.map(jnp.add, total, means), results

    shapes, _ = jax.eval_shape(fn, *jax.tree.map(lambda leaf: leaf[0], equal))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, results = jax.lax.scan(accumulate, zeros, equal)
    # Weighted by rows, because the remainder is smaller than the other micro-batches.
    means = jax.tree.map(lambda leaf: leaf * (size / num_rows), total)
    if not num_left:
        return means, MicroBatches(results, None)
    last_means, last = fn(*rest)
    means = jax.tree.map(
        lambda leaf, more: leaf + more * (num_left / num_rows), means, last_means
    )
    return means, MicroBatches(results, last)
