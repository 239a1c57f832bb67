"""Large batches in bounded memory: some rows at a time, the same result to rounding."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from trpo_jax.trust_region.checks import check_positive


def micro_batched(
    fn: Callable[[PyTree], tuple[PyTree, PyTree]],
    rows: PyTree,
    *,
    num_rows: int,
    size: int | None,
    is_row: PyTree | None = None,
) -> tuple[PyTree, PyTree]:
    """Return fn(rows), computed from `size` of the N rows at a time.

    Only one micro-batch's intermediate results are alive at once. Where these fit into
    a cache that those of the whole batch overflow, it is the faster way too.

    Args:
        fn: rows ↦ (means over these rows, results for each of these rows).
        rows: A pytree of arrays [N, …].
        num_rows: N.
        size: Rows at a time; None for all at once.
        is_row: A pytree like `rows` of bools; False for a leaf that belongs to all
            rows, such as a standard deviation that does not depend on the state: every
            micro-batch is given it whole. None: all are True.

    Returns:
        The means over N rows, and the results [N, …] in the order of the rows; of a
        result without that leading axis, the one value that all rows share.

    Raises:
        ValueError: If `size` is not positive.
    """
    if size is not None:
        check_positive(size=size)
    if size is None or size >= num_rows:
        return fn(rows)
    count, rest = divmod(num_rows, size)
    if is_row is None:
        is_row = jax.tree.map(lambda leaf: True, rows)

    def take(start: Int[Array, ""] | int, length: int) -> PyTree:
        def cut(leaf: Array, of_a_row: bool) -> Array:
            if not of_a_row:
                return leaf
            return jax.lax.dynamic_slice_in_dim(leaf, start, length)

        return jax.tree.map(cut, rows, is_row)

    def accumulate(total: PyTree, index: Int[Array, ""]) -> tuple[PyTree, PyTree]:
        means, results = fn(take(index * size, size))
        return jax.tree.map(jnp.add, total, means), results

    shapes, part = jax.eval_shape(fn, take(0, size))
    _, whole = jax.eval_shape(fn, rows)
    of_rows = jax.tree.map(lambda few, all_: few.shape != all_.shape, part, whole)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, results = jax.lax.scan(accumulate, zeros, jnp.arange(count))
    means = jax.tree.map(lambda leaf: leaf * (size / num_rows), total)
    results = jax.tree.map(
        lambda leaf, cut: leaf.reshape(-1, *leaf.shape[2:]) if cut else leaf[0],
        results,
        of_rows,
    )
    if rest:
        last_means, last = fn(take(count * size, rest))
        means = jax.tree.map(
            lambda leaf, more: leaf + more * (rest / num_rows), means, last_means
        )
        results = jax.tree.map(
            lambda leaf, more, cut: jnp.concatenate([leaf, more]) if cut else leaf,
            results,
            last,
            of_rows,
        )
    return means, results
