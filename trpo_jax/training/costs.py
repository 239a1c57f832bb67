"""Costs of a run: their critics, and their estimates per episode."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from trpo_jax.networks import Observation
from trpo_jax.training.batching import BatchedNetwork, init_params
from trpo_jax.training.rollouts import RolloutState, Trajectory


class CostState(NamedTuple):
    """State of K costs that have limits.

    Each cost has a critic of its own, with the network and the options of the critic.

    Attributes:
        critic_params: As the critic's fields of `TrainState`, leaves [K, …].
        critic_optimizer_state: Leaves [K, …].
        critic_memory: Leaves [B, K, …].
        return_statistics: Leaves [K, …], None if returns are not normalised.
        episode_cost: Mean cost of the latest episodes that ended, float[K], with what
            the updates since then predict.
        episode_length: Their mean length in steps, scalar; 0 until one has ended.
        predicted_cost: Prediction of `episode_cost` by the last update, float[K]; NaN
            before the first.
        optimism: By how much such predictions have been too low, a running mean,
            float[K].
        unmeasured: Updates since an episode has ended, scalar.
    """

    critic_params: PyTree
    critic_optimizer_state: PyTree
    critic_memory: PyTree
    return_statistics: PyTree
    episode_cost: Float[Array, " K"]
    episode_length: Float[Array, ""]
    predicted_cost: Float[Array, " K"]
    optimism: Float[Array, " K"]
    unmeasured: Float[Array, ""]


# The axis of costs in each of its fields that a `TrainState` has by the same name.
_AXES = {
    "critic_params": 0,
    "critic_optimizer_state": 0,
    "critic_memory": 1,
    "return_statistics": 0,
}


def over_costs(fn: Callable[..., Any], state: Any, *arrays: Array) -> Any:
    """Return fn(state, …) for each cost, with its critic in place of the critic.

    Args:
        fn: (state, *arrays) ↦ a pytree.
        state: A `TrainState` with costs.
        *arrays: Further arguments, the costs on their last axis.

    Returns:
        What `fn` returns, leaves [K, …].
    """
    critics = {name: getattr(state.costs, name) for name in _AXES}
    of_costs = state._replace(**critics, costs=None)
    shared = type(state)(*(None for _ in state))
    axes = (shared._replace(**_AXES), *(-1 for _ in arrays))
    return jax.vmap(fn, in_axes=axes)(of_costs, *arrays)


def init_costs(
    critic: BatchedNetwork,
    key: Key[Array, ""],
    observations: Observation,
    *,
    num_costs: int,
    init_optimizer_fn: Callable[[PyTree], PyTree],
    return_statistics: PyTree,
) -> CostState:
    """Return the state of K costs, no episode of which has ended; consumes `key`.

    Args:
        critic: The network of each.
        key: Randomness.
        observations: Of the environments, [B, …].
        num_costs: K.
        init_optimizer_fn: Parameters of a critic ↦ the state of its optimiser.
        return_statistics: Those of a critic, None if returns are not normalised.
    """
    num_envs = jax.tree.leaves(observations)[0].shape[0]
    params = jax.vmap(lambda key: init_params(critic, key, observations))(
        jax.random.split(key, num_costs)
    )

    def repeat(leaf: Array, axis: int = 0) -> Array:
        return jnp.stack([leaf] * num_costs, axis)

    memory = critic.initial_memory(num_envs)
    return CostState(
        params,
        jax.vmap(init_optimizer_fn)(params),
        jax.tree.map(lambda leaf: repeat(leaf, 1), memory),
        jax.tree.map(repeat, return_statistics),
        jnp.zeros(num_costs),
        jnp.float32(0),
        jnp.full(num_costs, jnp.nan, float),
        jnp.zeros(num_costs),
        jnp.float32(0),
    )


class EpisodeCosts(NamedTuple):
    """Estimate of the undiscounted costs of an episode.

    Attributes:
        cost: Mean cost of an episode, float[K].
        length: Mean length of an episode, scalar, in steps.
        optimism: By how much predictions of the cost have been too low, float[K].
    """

    cost: Float[Array, " K"]
    length: Float[Array, ""]
    optimism: Float[Array, " K"]


def estimate_episode_costs(
    state: CostState,
    trajectory: Trajectory,
    rollout: RolloutState,
    *,
    correction_rate: float,
) -> tuple[CostState, EpisodeCosts]:
    """Return the state with a rollout's episodes, and the estimate that it leads to.

    The estimate is the mean over the episodes that ended in this rollout. If none did,
    it is the last one with the change that the update since then predicted; and before
    any has ended, the mean so far of the unfinished ones, which is too low. It is never
    NaN.

    Args:
        state: The state before.
        trajectory: The rollout, of an environment with costs.
        rollout: The environments after it.
        correction_rate: Weight of the latest prediction in the mean optimism.
    """
    assert trajectory.episode_cost is not None
    assert rollout.episode_cost is not None
    done = trajectory.done
    ended = jnp.sum(done)

    def mean_over_ended(sums: Array) -> Array:
        where = jnp.expand_dims(done, tuple(range(2, sums.ndim)))
        return jnp.sum(sums, axis=(0, 1), where=where) / jnp.maximum(ended, 1)

    latest = mean_over_ended(trajectory.episode_cost)
    length = mean_over_ended(trajectory.episode_length.astype(jnp.float32))
    predicts = jnp.isfinite(state.predicted_cost)
    predicted = jnp.where(predicts, state.predicted_cost, state.episode_cost)
    # For each of the updates that the prediction is of.
    missed = (latest - predicted) / (1 + state.unmeasured)
    known = state.episode_length > 0
    measured = (ended > 0) & known & predicts & jnp.isfinite(latest)
    change = correction_rate * (missed - state.optimism)
    state = state._replace(
        episode_cost=jnp.where(ended > 0, latest, jnp.where(known, predicted, 0)),
        episode_length=jnp.where(ended > 0, length, state.episode_length),
        optimism=state.optimism + jnp.where(measured, change, 0),
        unmeasured=jnp.where(ended > 0, 0, state.unmeasured + 1),
    )
    so_far = (
        jnp.mean(rollout.episode_cost, axis=0),
        jnp.mean(rollout.episode_length.astype(jnp.float32)),
    )
    cost, length = optax.tree.where(
        state.episode_length > 0, (state.episode_cost, state.episode_length), so_far
    )
    return state, EpisodeCosts(cost, length, state.optimism)
