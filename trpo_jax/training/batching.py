"""Rows of a rollout: single steps or, for a network with a memory, whole sequences.

A rollout [T, B, …] becomes *rows*, which can be subsampled and cut into minibatches and
micro-batches: B·T steps, or B sequences of T steps. Rows are environment-major: where
environments are split over devices, so are their rows, and none has to be moved. Both
kinds of network have the same methods, so that training need not know which one it
trains.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Key, PyTree

from trpo_jax.networks import Network, Observation, RecurrentNetwork, init_network
from trpo_jax.observations import Part, part_of
from trpo_jax.trust_region import mean_over_rows, split_rows
from trpo_jax.trust_region.flat import max_norm


class FlatNetwork(NamedTuple):
    """A network without a memory: each step is a row.

    Attributes:
        network: The network.
        part: Names of the entries of observations that it sees, None for all.
    """

    network: Network
    part: Part = None

    def initial_memory(self, num_envs: int) -> PyTree:
        """Return (), the memory of a network that has none."""
        return ()

    def rows(
        self, memory: PyTree, observations: Observation, starts: Bool[Array, "T B"]
    ) -> PyTree:
        """Return the observations [N, …] of N = B·T steps."""
        return self.to_rows(part_of(observations, self.part))

    def to_rows(self, leaves: PyTree) -> PyTree:
        """[T, B, …] → [N, …], all steps of the first environment first."""
        return merge_steps(leaves)

    def from_rows(self, leaves: PyTree, num_steps: int) -> PyTree:
        """[N, …] → [T, B, …]."""
        return split_steps(leaves, num_steps)

    def subsample(self, rows: PyTree, stride: int, num_steps: int) -> PyTree:
        """Return every `stride`-th step of each environment, from rows [B·T, …].

        Environment b starts at step b mod `stride`: episodes of a fixed length may keep
        all environments in step, and each of their states has to be sampled.
        """
        if stride == 1:
            return rows
        num_envs = jax.tree.leaves(rows)[0].shape[0] // num_steps
        first = jnp.arange(num_envs)[:, None] % stride
        taken = first + jnp.arange(0, num_steps - stride + 1, stride)

        def take(leaf: Array) -> Array:
            steps = leaf.reshape(num_envs, num_steps, *leaf.shape[1:])
            chosen = jax.vmap(lambda steps, taken: steps[taken])(steps, taken)
            return jax.lax.collapse(chosen, 0, 2)

        return jax.tree.map(take, rows)

    def init(self, key: Key[Array, ""], rows: PyTree) -> PyTree:
        """Return parameters; consumes `key`."""
        return init_network(self.network, key, rows)

    def apply(self, params: PyTree, rows: PyTree) -> tuple[PyTree, Any]:
        """Return () and the output, of batch [N]."""
        return (), self.network.apply(params, rows)


class Sequences(NamedTuple):
    """B sequences of T steps, as a network with a memory takes them.

    Attributes:
        memory: Before the first step, [B, …].
        observations: [B, T, …].
        starts: Which of them begin an episode, bool[B, T].
    """

    memory: PyTree
    observations: Observation
    starts: Bool[Array, "B T"]


class SequenceNetwork(NamedTuple):
    """A network with a memory: each environment's sequence is a row.

    Attributes:
        network: The network.
        part: Names of the entries of observations that it sees, None for all.
    """

    network: RecurrentNetwork
    part: Part = None

    def initial_memory(self, num_envs: int) -> PyTree:
        """Return the memory [B, …] before the first step of an episode."""
        return self.network.initial_memory(num_envs)

    def rows(
        self, memory: PyTree, observations: Observation, starts: Bool[Array, "T B"]
    ) -> Sequences:
        """Return the sequences of B environments, which continue from `memory`."""
        seen = part_of(observations, self.part)
        return Sequences(memory, *self.to_rows((seen, starts)))

    def to_rows(self, leaves: PyTree) -> PyTree:
        """[T, B, …] → [B, T, …]."""
        return _swapped(leaves)

    def from_rows(self, leaves: PyTree, num_steps: int) -> PyTree:
        """[B, T, …] → [T, B, …]."""
        return _swapped(leaves)

    def subsample(self, rows: PyTree, stride: int, num_steps: int) -> PyTree:
        """Return every `stride`-th sequence, from rows [B, T, …]."""
        return jax.tree.map(lambda leaf: leaf[::stride], rows)

    def init(self, key: Key[Array, ""], rows: Sequences) -> PyTree:
        """Return parameters; consumes `key`."""
        return init_network(self.network, key, *rows)

    def apply(self, params: PyTree, rows: Sequences) -> tuple[PyTree, Any]:
        """Return the memory after each step and the output, of batch [B, T]."""
        return self.network.apply(params, *rows)


BatchedNetwork = FlatNetwork | SequenceNetwork


def batched(network: Network | RecurrentNetwork, part: Part = None) -> BatchedNetwork:
    """Return a network as one of rows, whichever kind it is.

    Args:
        network: The network.
        part: Names of the entries of observations that it sees, None for all.
    """
    if isinstance(network, RecurrentNetwork):
        return SequenceNetwork(network, part)
    return FlatNetwork(network, part)


def init_params(
    network: BatchedNetwork, key: Key[Array, ""], observations: Observation
) -> PyTree:
    """Return parameters that fit observations [B, …]; consumes `key`."""
    num_envs = jax.tree.leaves(observations)[0].shape[0]
    memory = network.initial_memory(num_envs)
    starts = jnp.ones(num_envs, bool)
    return network.init(key, network.rows(memory, *one_step((observations, starts))))


class BoundNetwork(NamedTuple):
    """A network with its parameters, applied to steps and to rollouts."""

    network: BatchedNetwork
    params: PyTree

    def step(
        self,
        memory: PyTree,
        observations: Observation,
        starts: Bool[Array, " B"],
        choose_fn: Callable[[Any], PyTree],
    ) -> tuple[PyTree, PyTree]:
        """Take one step in B environments.

        Args:
            memory: Before the step, [B, …].
            observations: [B, …].
            starts: Which of them begin an episode, bool[B].
            choose_fn: output ↦ arrays, such as a sample from a distribution.

        Returns:
            The memory after the step, and what was chosen, arrays [B, …].
        """
        # A step is a rollout of length 1: acting and training take the same path, for
        # the first probability ratio to be 1.
        rows = self.network.rows(memory, *one_step((observations, starts)))
        memories, output = self.network.apply(self.params, rows)
        by_time = self.network.from_rows((memories, choose_fn(output)), 1)
        return jax.tree.map(lambda leaf: leaf[0], by_time)

    def unroll(
        self,
        memory: PyTree,
        observations: Observation,
        starts: Bool[Array, "T B"],
        *,
        micro_batch_size: int | None = None,
    ) -> tuple[PyTree, PyTree]:
        """Apply the network to T steps of B environments.

        Args:
            memory: Before the first step, [B, …].
            observations: [T, B, …].
            starts: Which of them begin an episode, bool[T, B].
            micro_batch_size: About how many steps to take at a time, None for all.

        Returns:
            The memory after each step, [T, B, …], and the outputs, arrays [T, B, …].
        """
        rows = self.network.rows(memory, observations, starts)
        _, results = mean_over_rows(
            lambda rows: ((), self.network.apply(self.params, rows)),
            split_rows(rows, rows_per_micro_batch(rows, starts.size, micro_batch_size)),
        )
        return self.network.from_rows(results.join(), starts.shape[0])


def rows_per_micro_batch(
    rows: PyTree, num_steps: int, micro_batch_size: int | None
) -> int | None:
    """Return how many of the rows have about `micro_batch_size` steps; at least 1.

    Args:
        rows: Steps [N, …], or sequences [B, T, …].
        num_steps: How many steps they have together.
        micro_batch_size: In steps; None for all rows.
    """
    if micro_batch_size is None:
        return None
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    return max(1, micro_batch_size * num_rows // num_steps)


def reset_nonfinite_memory(network: BatchedNetwork, memory: PyTree) -> PyTree:
    """Return memories [B, …], the initial one where there is a NaN or an infinity.

    One bad observation would otherwise be remembered for as long as its episode lasts.
    """
    leaves = jax.tree.leaves(memory)
    if not leaves:
        return memory

    def reset(memory: PyTree, initial: PyTree) -> PyTree:
        return optax.tree.where(jnp.isfinite(max_norm(memory)), memory, initial)

    return jax.vmap(reset)(memory, network.initial_memory(len(leaves[0])))


def one_step(leaves: PyTree) -> PyTree:
    """[B, …] → [1, B, …]."""
    return jax.tree.map(lambda leaf: leaf[None], leaves)


def merge_steps(leaves: PyTree) -> PyTree:
    """[T, B, …] → [B·T, …], environment-major."""
    return jax.tree.map(lambda leaf: jax.lax.collapse(leaf, 0, 2), _swapped(leaves))


def split_steps(leaves: PyTree, num_steps: int) -> PyTree:
    """[B·T, …] → [T, B, …], the inverse of `merge_steps`."""
    return _swapped(
        jax.tree.map(
            lambda leaf: leaf.reshape(
                leaf.shape[0] // num_steps, num_steps, *leaf.shape[1:]
            ),
            leaves,
        )
    )


def _swapped(leaves: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), leaves)
