"""Whole episodes, played side by side: what evaluation counts and pictures show."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from trpo_jax.errors import UsageError
from trpo_jax.networks import Observation
from trpo_jax.runs.acting import Actions, act, initial_memory
from trpo_jax.training.components import make_components
from trpo_jax.training.config import TRPOConfig, check_config
from trpo_jax.training.state import TrainState, check_state


class Episodes(NamedTuple):
    """Where B episodes stand.

    Attributes:
        steps: Taken so far, int32 scalar.
        ended: Which episodes have, bool[B]; their environments go on with the next.
        returns: Undiscounted, of the first episodes alone, float32[B].
        env_state: Of the environments, leaves [B, …].
        observation: What to act on next, [B, …].
        memory: Of the policy, [B, …]; () if it has none.
    """

    steps: Int[Array, ""]
    ended: Bool[Array, " B"]
    returns: Float[Array, " B"]
    env_state: PyTree
    observation: Observation
    memory: PyTree


def start_episodes(
    config: TRPOConfig, key: Key[Array, ""], num_episodes: int
) -> Episodes:
    """Return B episodes before their first step; consumes `key`."""
    environment = make_components(config).environment
    keys = jax.random.split(key, num_episodes)
    env_state, observation = jax.vmap(environment.reset)(keys)
    return Episodes(
        steps=jnp.int32(0),
        ended=jnp.zeros(num_episodes, bool),
        returns=jnp.zeros(num_episodes),
        env_state=env_state,
        observation=observation,
        memory=initial_memory(config, num_episodes),
    )


def advance(
    config: TRPOConfig,
    state: TrainState,
    key: Key[Array, ""],
    episodes: Episodes,
    actions: Actions,
) -> Episodes:
    """Take one step in each; the same `key` serves all steps of the episodes."""
    environment = make_components(config).environment
    num_episodes = len(episodes.ended)
    action_key, env_key = jax.random.split(jax.random.fold_in(key, episodes.steps))
    starts = jnp.broadcast_to(episodes.steps == 0, num_episodes)
    memory, action = act(
        config,
        state,
        action_key,
        episodes.memory,
        episodes.observation,
        starts,
        actions,
    )
    env_keys = jax.random.split(env_key, num_episodes)
    env_state, taken = jax.vmap(environment.step)(env_keys, episodes.env_state, action)
    return Episodes(
        steps=episodes.steps + 1,
        ended=episodes.ended | taken.terminated | taken.truncated,
        returns=episodes.returns + jnp.where(episodes.ended, 0, taken.reward),
        env_state=env_state,
        observation=taken.observation,
        memory=memory,
    )


def check_seeds(config: TRPOConfig, state: TrainState, called: str) -> None:
    """Raise ValueError unless `state` is of `config.num_seeds` seeds.

    TypeError if either is something else.
    """
    check_config(config)
    check_state(state)
    expected = () if config.num_seeds == 1 else (config.num_seeds,)
    if state.updates.shape != expected:
        raise UsageError(
            f"state has the leading axes {state.updates.shape}, but num_seeds="
            f"{config.num_seeds} makes them {expected}; {called}, "
            "or pass the config that the state was trained with."
        )


def one_seed(config: TRPOConfig, state: TrainState, seed_index: int) -> TrainState:
    """Return the state of one of a run's seeds; ValueError if it has fewer."""
    check_config(config)
    if not 0 <= seed_index < config.num_seeds:
        raise UsageError(
            f"seed_index={seed_index}, but the run has {config.num_seeds} seed(s); "
            f"write 0 to {config.num_seeds - 1}."
        )
    check_seeds(config, state, "pick one state of other axes")
    if config.num_seeds == 1:
        return state
    return jax.tree.map(lambda leaf: leaf[seed_index], state)
