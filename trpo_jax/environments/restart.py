"""Start of the next episode, which costs a reset only if an episode has ended."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key, PyTree

# A batch is reset in this many parts: seldom do more than a sixteenth end in a step.
_PARTS = 16


def restarting(start_fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Return a function that starts a new episode where one has ended.

    restart(ended, key, going_on, *params) = start_fn(key, *params) where `ended`, else
    `going_on`. Under `vmap`, `lax.cond` would compute both branches at every step, and
    the reset of a physics engine or a puzzle may cost as much as the step. Here one
    loop serves the whole batch, however often it is mapped: each iteration resets up to
    a sixteenth of it, until all episodes that have ended are restarted.

    Args:
        start_fn: (key, *params) ↦ a pytree of arrays; consumes its key. What a
            `VariedEnvironment` may vary is passed as a parameter: JAX does not map what
            a function with a rule of its own closes over.

    Returns:
        The function; its `going_on` has the structure, shapes and dtypes of what
        `start_fn` returns.
    """

    # Without this rule vmap would batch the loop's condition, and reset all rows until
    # the slowest is done.
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
            # Padded with an index out of range, which the scatter drops.
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
