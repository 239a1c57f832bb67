"""Start of the next episode, which costs a reset only if an episode has ended."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key, PyTree

# A batch is reset in so many parts.
_PARTS = 16


def restarting(start_fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Return a function that starts a new episode where one has ended.

    restart(ended, key, going_on, *params) = start_fn(key, *params) where `ended`, else
    `going_on`. Under `vmap`, `lax.cond` would compute both branches at every step, and
    the reset of a physics engine or a puzzle may cost as much as the step. Here one
    loop serves the whole batch, however often it is mapped: a sixteenth of the batch is
    reset at a time, as often as episodes have ended, and none if none has.

    Args:
        start_fn: (key, *params) ↦ a pytree of arrays; consumes its key. What a
            `VariedEnvironment` may vary is passed as a parameter: JAX does not map what
            a function with a rule of its own closes over.

    Returns:
        The function; its `going_on` has the structure, shapes and dtypes of what
        `start_fn` returns.
    """

    # Without this rule vmap would run the loop, whose condition is then a batch, for
    # all rows as often as for the one that takes longest.
    @jax.custom_batching.custom_vmap
    def restart_batch(
        ended: Bool[Array, " B"],
        keys: Key[Array, " B"],
        going_on: PyTree,
        params: PyTree,
    ) -> PyTree:
        size = len(ended)

        def start_some(carry: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
            waiting, following = carry
            # Rows beyond the last stand for none: they are not written.
            rows = jnp.flatnonzero(waiting, size=-(-size // _PARTS), fill_value=size)
            chosen = jax.tree.map(
                lambda leaf: leaf.at[rows].get(mode="clip"), (keys, *params)
            )
            started = jax.vmap(start_fn)(*chosen)
            following = jax.tree.map(
                lambda leaf, new: leaf.at[rows].set(new, mode="drop"),
                following,
                started,
            )
            return waiting.at[rows].set(False, mode="drop"), following

        return jax.lax.while_loop(
            lambda carry: carry[0].any(), start_some, (ended, going_on)
        )[1]

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
