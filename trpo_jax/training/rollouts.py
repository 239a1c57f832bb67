"""Rollouts: a scan over time, a vmap over environments."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, Num, PyTree

from trpo_jax.environments import Environment, TimeStep
from trpo_jax.environments.contract import num_costs
from trpo_jax.environments.protocol import at_random_time
from trpo_jax.environments.varied import reset_batch
from trpo_jax.errors import UsageError, array_types
from trpo_jax.observations import Observation
from trpo_jax.training.packing import Packed, pack


class RolloutState(NamedTuple):
    """The state of B environments between two rollouts.

    Attributes:
        env_state: The environments' own states, a pytree with leading axis [B].
        observation: The next observation to act on, [B, …].
        memory: The policy's memory of the episode so far, [B, …]; () if it has none.
        episode_return: Sum of rewards of the episode so far, undiscounted, float[B].
        episode_length: Steps of the episode so far, at most 2³¹ − 1, int32[B].
        episode_cost: Sum of each of K costs of the episode so far, float[B, K]; None in
            an environment without costs.
    """

    env_state: PyTree
    observation: Observation
    memory: PyTree
    episode_return: Float[Array, " B"]
    episode_length: Int[Array, " B"]
    episode_cost: Float[Array, "B K"] | None = None


class Trajectory(NamedTuple):
    """T steps in B environments, time first.

    Attributes:
        observation: sₜ as the environment returned it, [T, B, …].
        action: aₜ as the policy sampled it, [T, B] or [T, B, D].
        log_prob: log π(aₜ|sₜ), float[T, B].
        reward: rₜ, float[T, B].
        terminated: The episode terminated with this step, bool[T, B].
        truncated: The episode was truncated after this step, bool[T, B].
        final_observation: The one that the action led to, before any reset, [T, B, …].
        episode_return: Sum of rewards of the episode up to this step, float[T, B].
        episode_length: Steps of the episode up to this one, int32[T, B].
        cost: K costs, float[T, B, K]; None in an environment without.
        episode_cost: Sum of the costs of the episode up to this step, likewise.
    """

    observation: Observation
    action: Num[Array, "T B ..."]
    log_prob: Float[Array, "T B"]
    reward: Float[Array, "T B"]
    terminated: Bool[Array, "T B"]
    truncated: Bool[Array, "T B"]
    final_observation: Observation
    episode_return: Float[Array, "T B"]
    episode_length: Int[Array, "T B"]
    cost: Float[Array, "T B K"] | None = None
    episode_cost: Float[Array, "T B K"] | None = None

    @property
    def done(self) -> Bool[Array, "*T B"]:
        """Whether the episode ended with this step, either way."""
        return self.terminated | self.truncated

    @property
    def start(self) -> Bool[Array, "*T B"]:
        """Whether the episode began with this step."""
        return self.episode_length == 1


# (key, memory, observations, whether each begins an episode) ↦ (memory, actions, their
# log-probabilities), all with the leading axis [B].
ActFn = Callable[
    [Key[Array, ""], PyTree, Observation, Bool[Array, " B"]],
    tuple[PyTree, Num[Array, "B ..."], Float[Array, " B"]],
]


def init_rollout(
    environment: Environment,
    key: Key[Array, ""],
    *,
    num_envs: int,
    memory: PyTree = (),
    staggered: bool = False,
) -> RolloutState:
    """Reset `num_envs` environments, each with its own randomness.

    Args:
        environment: The environment.
        key: A typed key; consumed.
        num_envs: B.
        memory: The policy's initial memory, [B, …]; () if it has none.
        staggered: Whether each begins with a random part of its time limit used up.

    Returns:
        The state of B environments at the start of an episode.

    Raises:
        UsageError: If `staggered`, and the environment cannot do this.
    """
    if staggered:
        key, time_key = jax.random.split(key)
    keys = jax.random.split(key, num_envs)
    env_state, observation = reset_batch(environment, keys)
    if staggered:
        time_keys = jax.random.split(time_key, num_envs)
        env_state = jax.vmap(at_random_time(environment))(time_keys, env_state)
    costs = num_costs(environment)
    return RolloutState(
        env_state,
        observation,
        memory,
        episode_return=jnp.zeros(num_envs),
        episode_length=jnp.zeros(num_envs, jnp.int32),
        episode_cost=jnp.zeros((num_envs, costs)) if costs else None,
    )


def rollout(
    act_fn: ActFn,
    environment: Environment,
    state: RolloutState,
    key: Key[Array, ""],
    *,
    num_steps: int,
    noise_period: int = 1,
    map_fn: Callable[[Callable], Callable] = jax.vmap,
) -> tuple[RolloutState, Trajectory]:
    """Sample `num_steps` actions in each of B environments; consumes `key`.

    Args:
        act_fn: (key, memory, observations, starts) ↦ (memory, actions, log-
            probabilities), for B environments at once; `starts` bool[B] says which
            observations begin an episode. Parameters and normalisers that it closes
            over stay fixed during the rollout.
        environment: The environment, which resets itself.
        state: The state to continue from; episodes continue across rollouts.
        key: Randomness for actions and environments.
        num_steps: T.
        noise_period: Steps for which actions are sampled with the same key; during
            them the noise of `GSDEGaussian` is one function of the state.
        map_fn: Maps the step of one environment over B of them.

    Returns:
        The state afterwards, and the `Trajectory` of [T, B] steps.

    Raises:
        UsageError: If `act_fn` does not return one action and one log-probability for
            each environment.
    """

    def advance(
        state: RolloutState, keys: tuple[Key[Array, ""], Key[Array, " B"]]
    ) -> tuple[RolloutState, Packed[Trajectory]]:
        action_key, env_keys = keys
        starts = state.episode_length == 0
        memory, action, log_prob = act_fn(
            action_key, state.memory, state.observation, starts
        )
        if log_prob.shape != starts.shape or action.shape[:1] != starts.shape:
            raise UsageError(
                f"act_fn returns actions {array_types(action)} and log-probabilities "
                f"{array_types(log_prob)}; write one of each for each of the "
                f"{len(starts)} environments, [B, …] and [B]."
            )
        env_state, step = map_fn(environment.step)(
            env_keys, state.env_state, as_taken(action)
        )
        taken = Trajectory(
            observation=state.observation,
            action=action,
            log_prob=log_prob,
            reward=step.reward,
            terminated=step.terminated,
            truncated=step.truncated,
            final_observation=step.final_observation,
            episode_return=state.episode_return + step.reward,
            # It must not wrap: 0 and 1 mark the start of an episode.
            episode_length=optax.safe_increment(state.episode_length),
            **_costs(state, step),
        )
        # The environment has reset itself; only the episode's sums are reset here.
        sums = jax.tree.map(
            lambda total: jnp.where(
                jnp.expand_dims(taken.done, range(1, total.ndim)), 0, total
            ),
            (taken.episode_return, taken.episode_length, taken.episode_cost),
        )
        following = RolloutState(env_state, step.observation, memory, *sums)
        return following, pack(taken)

    # All keys before the scan, inside which each split would be a kernel of its own.
    # Those of the environments are an array of their own, split over devices like them.
    action_key, env_key = jax.random.split(key)
    env_keys = jax.random.split(env_key, (num_steps, state.episode_length.shape[0]))
    steps = jnp.arange(num_steps)
    action_keys = jax.random.split(action_key, num_steps)
    action_keys = action_keys[steps // noise_period * noise_period]
    state, packed = jax.lax.scan(advance, state, (action_keys, env_keys))
    return state, packed.unpack()


def _costs(state: RolloutState, step: TimeStep) -> dict[str, Float[Array, "B K"]]:
    """Return the costs of a step, and their sums over the episode; none if none."""
    if step.cost is None or state.episode_cost is None:
        return {}
    cost = step.cost.reshape(state.episode_cost.shape)
    return {"cost": cost, "episode_cost": state.episode_cost + cost}


def as_taken(action: Num[Array, "B ..."]) -> Num[Array, "B ..."]:
    """Return an action as environments take it: float32, or int32.

    Under `jax_enable_x64`, or with half-precision parameters, policies draw others.
    """
    floating = jnp.issubdtype(action.dtype, jnp.floating)
    return action.astype(jnp.float32 if floating else jnp.int32)
