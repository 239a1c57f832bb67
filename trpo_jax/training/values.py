"""Values of a rollout: of its states, and of the states that actions led to."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from trpo_jax.networks import Observation
from trpo_jax.training.batching import merge_steps, one_step, split_steps
from trpo_jax.training.rollouts import Trajectory

# (memory [B, …], observations [T, B, …], starts bool[T, B]) ↦ (memory after each step
# [T, B, …], values float[T, B])
ValueFn = Callable[
    [PyTree, Observation, Bool[Array, "T B"]], tuple[PyTree, Float[Array, "T B"]]
]


def values_and_next(
    value_fn: ValueFn, memory: PyTree, trajectory: Trajectory, observation: Observation
) -> tuple[Float[Array, "T B"], Float[Array, "T B"], PyTree]:
    """Return V(sₜ), V(s′ₜ) and the critic's memory at the end of a rollout.

    s′ₜ, the state that an action led to, is the next state of the rollout, whose value
    is known, unless the episode was truncated. Only then are final observations
    evaluated as well.

    Args:
        value_fn: (memory, observations, starts) ↦ (memories, values), of T steps in B
            environments.
        memory: The critic's memory before the first step, [B, …]; () if it has none.
        trajectory: The rollout, [T, B, …].
        observation: The observation after its last step, [B, …].

    Returns:
        Values float[T, B]; next values float[T, B], undefined where the episode
        terminated; and the memory after the last step, [B, …].
    """
    memories, values = value_fn(memory, trajectory.observation, trajectory.start)
    memory = jax.tree.map(lambda leaf: leaf[-1], memories)
    _, last = value_fn(memory, one_step(observation), trajectory.done[-1:])
    following = jnp.concatenate([values[1:], last])

    def value_final_observations() -> Float[Array, "T B"]:
        # Each continues its own episode by one step: B·T sequences of length one.
        memory, observations = merge_steps((memories, trajectory.final_observation))
        starts = jnp.zeros((1, values.size), bool)
        _, at_limits = value_fn(memory, one_step(observations), starts)
        return split_steps(at_limits[0], len(values))

    # A condition, not a `where`: most rollouts of most environments truncate nothing,
    # and the critic's pass over the final observations is half of its work here.
    at_limits = jax.lax.cond(
        jnp.any(trajectory.truncated), value_final_observations, lambda: following
    )
    return values, jnp.where(trajectory.truncated, at_limits, following), memory
