"""Acting with a trained policy, step by step and over whole episodes."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num, PyTree

from trpo_jax.environments.protocol import step_without_reset
from trpo_jax.errors import UsageError, differences
from trpo_jax.networks import Observation
from trpo_jax.training.batching import BoundNetwork
from trpo_jax.training.components import make_components
from trpo_jax.training.config import TRPOConfig, check_config
from trpo_jax.training.rollouts import as_taken, init_rollout
from trpo_jax.training.seeds import state_type
from trpo_jax.training.state import (
    PRECISION,
    TrainState,
    check_state,
    observation_type,
    observe,
)
from trpo_jax.trust_region import Distribution
from trpo_jax.trust_region.checks import whole

Actions = Literal["mode", "sample"]
"""The most probable (greedy) action, or one sampled from the policy."""


def initial_memory(config: TRPOConfig, num_envs: int) -> PyTree:
    """Return the policy's memory before an episode, [B, …]; () if it has none.

    Args:
        config: The run.
        num_envs: B.
    """
    return make_components(config).policy.initial_memory(num_envs)


def act(
    config: TRPOConfig,
    state: TrainState,
    key: Key[Array, ""],
    memory: PyTree,
    observations: Observation,
    starts: Bool[Array, " B"],
    actions: Actions = "mode",
) -> tuple[PyTree, Num[Array, "B ..."]]:
    """Choose an action in each of B environments, as the policy did in training.

    Args:
        config: The run.
        state: Its state, of one seed.
        key: A typed key; consumed where actions are sampled.
        memory: The policy's memory, [B, …]; `initial_memory` to begin with.
        observations: As the environments return them, an array [B, …], any pytree of
            such, or a `MaskedObservation`; normalised here if they were in training.
        starts: Which of them begin an episode, bool[B]; there, the memory is reset.
        actions: The most probable action, or one sampled from the policy.

    Returns:
        The memory after the step, and the policy's own actions, [B, …]. The
        environment in `make_components(config)` takes them as they are; any other has
        to clip them to its bounds or, where `config.action_distribution` is
        "tanh_gaussian", to squash them (`SquashedActions`).
    """
    policy = BoundNetwork(make_components(config).policy, state.params)

    def choose(distribution: Distribution) -> Array:
        return distribution.sample(key) if actions == "sample" else distribution.mode()

    seen = observe(state, observations)
    with jax.default_matmul_precision(PRECISION):
        return policy.step(memory, seen, starts, choose)


class Episodes(NamedTuple):
    """B episodes in progress.

    Attributes:
        steps: Steps taken so far, int32 scalar.
        ended: Which episodes have ended, bool[B]; what their environments do after that
            does not count.
        returns: Undiscounted returns of the first episodes, float[B].
        env_state: State of the environments, leaves [B, …].
        observation: What to act on next, [B, …].
        memory: The policy's memory, [B, …]; () if it has none.
        costs: Undiscounted costs of the first episodes, float[B, K]; None if the
            environment has none.
    """

    steps: Int[Array, ""]
    ended: Bool[Array, " B"]
    returns: Float[Array, " B"]
    env_state: PyTree
    observation: Observation
    memory: PyTree
    costs: Float[Array, "B K"] | None = None


def start_episodes(
    config: TRPOConfig, key: Key[Array, ""], num_episodes: int
) -> Episodes:
    """Return B episodes before their first step; consumes `key`."""
    environment = make_components(config).environment
    start = init_rollout(environment, key, num_envs=num_episodes)
    return Episodes(
        steps=jnp.int32(0),
        ended=jnp.zeros(num_episodes, bool),
        returns=start.episode_return,
        env_state=start.env_state,
        observation=start.observation,
        memory=initial_memory(config, num_episodes),
        costs=start.episode_cost,
    )


def step_episodes(
    config: TRPOConfig,
    state: TrainState,
    key: Key[Array, ""],
    episodes: Episodes,
    actions: Actions,
) -> Episodes:
    """Take one step in each episode; the same `key` serves all their steps."""
    environment = make_components(config).environment
    num_episodes = len(episodes.ended)
    action_key, env_key = jax.random.split(jax.random.fold_in(key, episodes.steps))
    starts = jnp.broadcast_to(episodes.steps == 0, num_episodes)
    seen = (episodes.memory, episodes.observation, starts)
    memory, action = act(config, state, action_key, *seen, actions)
    env_keys = jax.random.split(env_key, num_episodes)
    env_state, taken = jax.vmap(step_without_reset(environment))(
        env_keys, episodes.env_state, as_taken(action)
    )
    costs = episodes.costs
    if costs is not None and taken.cost is not None:
        cost = taken.cost.reshape(costs.shape)
        costs = costs + jnp.where(episodes.ended[:, None], 0, cost)
    return Episodes(
        steps=episodes.steps + 1,
        ended=episodes.ended | taken.terminated | taken.truncated,
        returns=episodes.returns + jnp.where(episodes.ended, 0, taken.reward),
        env_state=env_state,
        observation=taken.observation,
        memory=memory,
        costs=costs,
    )


def check_actions(actions: str) -> None:
    """Raise UsageError unless `actions` is "mode" or "sample"."""
    if actions not in ("mode", "sample"):
        raise UsageError(f"actions={actions!r}; write 'mode' or 'sample'.")


def check_trained(config: TRPOConfig, state: TrainState) -> None:
    """Raise unless `state` fits `config`.

    Only what acting reads is compared: seeds, observations and parameters. The number
    of environments and the length of rollouts may differ.

    Args:
        config: The run.
        state: Of all its seeds.

    Raises:
        UsageTypeError: If `config` is not a `TRPOConfig`, or `state` not a
            `TrainState`.
        UsageError: If the state has other seeds, observations or parameters.
    """
    check_config(config)
    check_state(state)
    seeds = () if config.num_seeds == 1 else (config.num_seeds,)
    if state.updates.shape != seeds:
        raise UsageError(
            f"state has the leading axes {state.updates.shape}, but num_seeds="
            f"{config.num_seeds} makes them {seeds}; index other axes first, or pass "
            "the config that the state was trained with."
        )
    expected = state_type(config)
    found, wanted = (
        {"observation": observation_type(one), "params": one.params}
        for one in (state, expected)
    )
    different = differences(found, wanted, lambda leaf: str(leaf.shape))
    if different:
        space = make_components(config).environment.action_space
        raise UsageError(
            f"state was trained with another config: this one has {config.env}, with "
            f"actions {space}. Shapes that differ (state, config): "
            f"{'; '.join(different)}. Pass the config that the state was trained with."
        )


def state_of_seed(config: TRPOConfig, state: TrainState, seed_index: int) -> TrainState:
    """Return the state of one of a run's seeds.

    Raises:
        UsageError: If the run has fewer seeds, or as `check_trained`.
    """
    check_config(config)
    seed_index = whole("seed_index", seed_index, least=None)
    if not 0 <= seed_index < config.num_seeds:
        raise UsageError(
            f"seed_index={seed_index}, but the run has {config.num_seeds} seed(s); "
            f"write 0 to {config.num_seeds - 1}."
        )
    check_trained(config, state)
    if config.num_seeds == 1:
        return state
    return jax.tree.map(lambda leaf: leaf[seed_index], state)
