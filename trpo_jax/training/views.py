"""How a network sees a rollout: step by step or, if it has a memory, as sequences.

A rollout [T, B, …] becomes *rows*, which can be shuffled, subsampled and taken some at
a time: T·B steps, or B whole sequences. The two views have the same methods, so that
training need not know which kind of network it trains.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from trpo_jax.networks import Network, Observation, RecurrentNetwork, init_network
from trpo_jax.trust_region import micro_batched


class StepView(NamedTuple):
    """A network without a memory: each step is a row."""

    network: Network

    def initial_memory(self, num_envs: int) -> PyTree:
        """Return (): nothing is remembered."""
        return ()

    def rows(
        self, memory: PyTree, observations: Observation, starts: Bool[Array, "T B"]
    ) -> PyTree:
        """Return the observations [N, …] of N = T·B steps."""
        return self.by_row(observations)

    def by_row(self, leaves: PyTree) -> PyTree:
        """[T, B, …] → [N, …]."""
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), leaves)

    def by_time(self, leaves: PyTree, num_steps: int) -> PyTree:
        """[N, …] → [T, B, …]."""
        return jax.tree.map(
            lambda leaf: leaf.reshape(num_steps, -1, *leaf.shape[1:]), leaves
        )

    def init(self, key: Key[Array, ""], rows: PyTree) -> PyTree:
        """Return parameters; consumes `key`."""
        return init_network(self.network, key, rows)

    def apply(self, params: PyTree, rows: PyTree) -> tuple[PyTree, Any]:
        """Return () and the output of batch [N]."""
        return (), self.network.apply(params, rows)


class Sequences(NamedTuple):
    """B stretches of T steps, as a network with a memory takes them.

    Attributes:
        memory: Before the first step, [B, …].
        observations: [B, T, …].
        starts: Which of them begin an episode, bool[B, T].
    """

    memory: PyTree
    observations: Observation
    starts: Bool[Array, "B T"]


class SequenceView(NamedTuple):
    """A network with a memory: each environment's sequence is a row."""

    network: RecurrentNetwork

    def initial_memory(self, num_envs: int) -> PyTree:
        """Return the memory [B, …] before the first step of an episode."""
        return self.network.initial_memory(num_envs)

    def rows(
        self, memory: PyTree, observations: Observation, starts: Bool[Array, "T B"]
    ) -> Sequences:
        """Return the sequences of B environments, going on from `memory` [B, …]."""
        return Sequences(memory, *self.by_row((observations, starts)))

    def by_row(self, leaves: PyTree) -> PyTree:
        """[T, B, …] → [B, T, …]."""
        return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), leaves)

    def by_time(self, leaves: PyTree, num_steps: int) -> PyTree:
        """[B, T, …] → [T, B, …]."""
        return self.by_row(leaves)

    def init(self, key: Key[Array, ""], rows: Sequences) -> PyTree:
        """Return parameters; consumes `key`."""
        return init_network(self.network, key, *rows)

    def apply(self, params: PyTree, rows: Sequences) -> tuple[PyTree, Any]:
        """Return the memory after each step and the output, of batch [B, T]."""
        return self.network.apply(params, *rows)


View = StepView | SequenceView


def view_of(network: Network | RecurrentNetwork) -> View:
    """Return how `network` sees a rollout."""
    if isinstance(network, RecurrentNetwork):
        return SequenceView(network)
    return StepView(network)


def init_params(view: View, key: Key[Array, ""], observations: Observation) -> PyTree:
    """Return parameters that fit observations [B, …]; consumes `key`."""
    num_envs = jax.tree.leaves(observations)[0].shape[0]
    starts = jnp.ones(num_envs, bool)
    return view.init(
        key, _one_step(view, view.initial_memory(num_envs), observations, starts)
    )


def apply_once(
    view: View,
    params: PyTree,
    memory: PyTree,
    observations: Observation,
    starts: Bool[Array, " B"],
    choose: Callable[[Any], PyTree],
) -> tuple[PyTree, PyTree]:
    """Take one step in B environments.

    Args:
        view: Of the network.
        params: Its parameters.
        memory: Before the step, [B, …].
        observations: [B, …].
        starts: Which of them begin an episode, bool[B].
        choose: What to make of the output, as draw from it: output ↦ arrays.

    Returns:
        The memory after the step, and what was chosen, arrays [B, …].
    """
    rows = _one_step(view, memory, observations, starts)
    memories, output = view.apply(params, rows)
    by_time = view.by_time((memories, choose(output)), 1)
    return jax.tree.map(lambda leaf: leaf[0], by_time)


def evaluate_rollout(
    view: View,
    params: PyTree,
    memory: PyTree,
    observations: Observation,
    starts: Bool[Array, "T B"],
    *,
    steps_at_once: int | None,
) -> tuple[PyTree, Float[Array, "T B"]]:
    """Return a critic's memory after each step, [T, B, …], and its values [T, B].

    Args:
        view: Of the critic.
        params: Its parameters.
        memory: Before the first step, [B, …].
        observations: [T, B, …].
        starts: Which of them begin an episode, bool[T, B].
        steps_at_once: About how many steps to take at a time, None for all.
    """
    rows = view.rows(memory, observations, starts)
    _, results = micro_batched(
        lambda rows: ((), view.apply(params, rows)),
        rows,
        num_rows=num_rows(rows),
        size=rows_at_once(rows, starts.size, steps_at_once),
    )
    return view.by_time(results, starts.shape[0])


def reset_nonfinite_memory(view: View, memory: PyTree, num_envs: int) -> PyTree:
    """Return memories [B, …], the initial one where there is a NaN or an infinity.

    One bad observation would otherwise be remembered for as long as its episode lasts.
    """

    def finite(leaf: Array) -> Bool[Array, " B"]:
        return jnp.isfinite(leaf.reshape(num_envs, -1)).all(axis=1)

    leaves = [finite(leaf) for leaf in jax.tree.leaves(memory)]
    if not leaves:
        return memory
    good = jnp.stack(leaves).all(axis=0)

    def choose(kept: Array, initial: Array) -> Array:
        return jnp.where(good.reshape(-1, *[1] * (kept.ndim - 1)), kept, initial)

    return jax.tree.map(choose, memory, view.initial_memory(num_envs))


def num_rows(rows: PyTree) -> int:
    """Return how many rows there are."""
    return jax.tree.leaves(rows)[0].shape[0]


def rows_at_once(rows: PyTree, num_steps: int, steps_at_once: int | None) -> int | None:
    """Return how many of the rows of so many steps make `steps_at_once`; at least 1."""
    if steps_at_once is None:
        return None
    return max(1, steps_at_once * num_rows(rows) // num_steps)


def _one_step(
    view: View, memory: PyTree, observations: Observation, starts: Bool[Array, " B"]
) -> PyTree:
    with_time = jax.tree.map(lambda leaf: leaf[None], (observations, starts))
    return view.rows(memory, *with_time)
