"""Start of the next episode, which costs a reset only if an episode has ended."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Key, PyTree


def restarting(start_fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Return a function that starts a new episode where one has ended.

    restart(ended, key, going_on, *params) = start_fn(key, *params) where `ended`, else
    `going_on`. Under `vmap`, `lax.cond` would compute both branches at every step, and
    the reset of a physics engine or a puzzle may cost as much as the step. Here one
    condition serves the whole batch, however often it is mapped: no reset is computed
    unless an episode of the batch has ended.

    Args:
        start_fn: (key, *params) ↦ a pytree of arrays; consumes its key. What a
            `VariedEnvironment` may vary is passed as a parameter: JAX does not map what
            a function with a rule of its own closes over.

    Returns:
        The function; its `going_on` has the structure, shapes and dtypes of what
        `start_fn` returns.
    """

    # Without this rule vmap would turn the cond, whose predicate is then a batch, into
    # a select between both branches.
    @jax.custom_batching.custom_vmap
    def restart_batch(
        ended: Bool[Array, " B"],
        keys: Key[Array, " B"],
        going_on: PyTree,
        params: PyTree,
    ) -> PyTree:
        def start() -> PyTree:
            started = jax.vmap(start_fn)(keys, *params)
            return jax.vmap(optax.tree.where)(ended, started, going_on)

        return jax.lax.cond(ended.any(), start, lambda: going_on)

    @restart_batch.def_vmap
    def restart_batches(
        axis_size: int, is_mapped: list[Any], *batches: PyTree
    ) -> tuple[PyTree, PyTree]:
        """Merge a batch of batches into one batch."""

        def merge(leaf: Array, mapped: bool) -> Array:
            if not mapped:
                leaf = jnp.broadcast_to(leaf, (axis_size, *leaf.shape))
            return leaf.reshape(axis_size * leaf.shape[1], *leaf.shape[2:])

        merged = restart_batch(*jax.tree.map(merge, batches, tuple(is_mapped)))
        following = jax.tree.map(
            lambda leaf: leaf.reshape(
                axis_size, leaf.shape[0] // axis_size, *leaf.shape[1:]
            ),
            merged,
        )
        return following, jax.tree.map(lambda _: True, following)

    def restart(
        ended: Bool[Array, ""], key: Key[Array, ""], going_on: PyTree, *params: PyTree
    ) -> PyTree:
        one = (ended, key, going_on, params)
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], one)
        return jax.tree.map(lambda leaf: leaf[0], restart_batch(*batch))

    return restart
