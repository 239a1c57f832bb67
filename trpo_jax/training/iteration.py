"""The training loop's state, and one turn of it: rollout, policy update, critic fit."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num, PyTree

from trpo_jax.errors import UsageTypeError
from trpo_jax.networks import MaskedObservation, Observation
from trpo_jax.training.advantages import generalized_advantages, standardize
from trpo_jax.training.config import TRPOConfig, check_config
from trpo_jax.training.critic import explained_variance, fit_critic
from trpo_jax.training.hyperparameters import Hyperparameters
from trpo_jax.training.keys import KeyLike, as_key
from trpo_jax.training.networks import assemble, check_critic, check_policy
from trpo_jax.training.rollouts import RolloutState, Trajectory, init_rollout, rollout
from trpo_jax.training.statistics import (
    RunningStatistics,
    absorb,
    denormalize,
    init_statistics,
    normalize,
)
from trpo_jax.training.values import values_and_next
from trpo_jax.training.views import (
    View,
    apply_once,
    evaluate_rollout,
    init_params,
    reset_nonfinite_memory,
    rows_at_once,
)
from trpo_jax.trust_region import (
    Batch,
    Distribution,
    UpdateInfo,
    damped_curvature,
    trust_region_update,
    undamped_curvature,
)

# Standard deviations beyond which a normalised observation is clipped, as in the
# reference implementations that Engstrom et al. 2020 (arXiv 2005.12729) examine.
_OBSERVATION_CLIP = 10.0


# Of the matrix products of policy and update alike: with one precision for acting and
# another for the update, the first probability ratio would not be 1.
PRECISION = "float32"


class TrainState(NamedTuple):
    """Everything that one step hands to the next.

    Attributes:
        params: Parameters of the policy, a pytree.
        critic_params: Parameters of the critic, a pytree.
        critic_optimizer_state: State of the critic's optimiser, a pytree.
        critic_memory: What the critic remembers of the episodes so far, [num_envs, …],
            made with the parameters of its time; () if nothing. The policy's is in
            `rollout`.
        observation_statistics: Running moments of observations, None if not normalised.
        return_statistics: Running moments of returns, None if not normalised.
        rollout: Where the environments stand, leaves [num_envs, …].
        hyperparameters: The traced floats, scalars.
        updates: Policy updates made, int32 scalar.
        key: Randomness for what follows, a typed key, scalar.
    """

    params: PyTree
    critic_params: PyTree
    critic_optimizer_state: PyTree
    critic_memory: PyTree
    observation_statistics: RunningStatistics | None
    return_statistics: RunningStatistics | None
    rollout: RolloutState
    hyperparameters: Hyperparameters
    updates: Int[Array, ""]
    key: Key[Array, ""]


class Metrics(NamedTuple):
    """What one step measured.

    Attributes:
        env_steps: Environment steps taken so far, exactly, int32 scalar.
        episode_return: Mean undiscounted return of the episodes that ended in this
            rollout; NaN if none did.
        episode_length: Their mean length in steps; NaN if none ended.
        episode_count: How many ended, int32 scalar.
        explained_variance: 1 − Var(returns − V) / Var(returns), of the critic that
            the advantages came from.
        critic_loss: Mean squared error over the last epoch of the fit, in normalised
            units if returns are normalised.
        max_kl: δ in force, nats.
        critic_learning_rate: Step size in force.
        update: The policy update's own evidence.
    """

    env_steps: Int[Array, ""]
    episode_return: Float[Array, ""]
    episode_length: Float[Array, ""]
    episode_count: Int[Array, ""]
    explained_variance: Float[Array, ""]
    critic_loss: Float[Array, ""]
    max_kl: Float[Array, ""]
    critic_learning_rate: Float[Array, ""]
    update: UpdateInfo


def init(config: TRPOConfig, key: KeyLike) -> TrainState:
    """Return the state before the first step; consumes `key`.

    Args:
        config: The run.
        key: `jax.random.key(0)`. Under `vmap` over keys: one run each.

    Returns:
        Fresh parameters and normalisers, and environments at the start of an episode.

    Raises:
        TypeError: If `config` is something else, `key` not a key, or the policy
            returns no distribution.
        ValueError: If the environment is unknown or not supported, or the networks do
            not fit it.
    """
    check_config(config)
    key = as_key(key)
    environment, policy, critic = assemble(config)
    rollout_key, policy_key, critic_key, key = jax.random.split(key, 4)
    rollout_state = init_rollout(
        environment,
        rollout_key,
        num_envs=config.num_envs,
        memory=policy.initial_memory(config.num_envs),
    )
    hyperparameters = jax.tree.map(jnp.float32, config.hyperparameters)
    params = init_params(policy, policy_key, rollout_state.observation)
    critic_params = init_params(critic, critic_key, rollout_state.observation)
    critic_memory = critic.initial_memory(config.num_envs)
    check_policy(policy, params, environment, rollout_state)
    check_critic(critic, critic_params, critic_memory, rollout_state)
    optimizer = config.optimizer(hyperparameters.critic_learning_rate)
    observation_statistics = init_statistics(environment.observation_shape)
    return TrainState(
        params=params,
        critic_params=critic_params,
        critic_optimizer_state=optimizer.init(critic_params),
        critic_memory=critic_memory,
        observation_statistics=(
            observation_statistics if config.normalize_observations else None
        ),
        return_statistics=init_statistics(()) if config.normalize_returns else None,
        rollout=rollout_state,
        hyperparameters=hyperparameters,
        updates=jnp.int32(0),
        key=key,
    )


def step(config: TRPOConfig, state: TrainState) -> tuple[TrainState, Metrics]:
    """Take one rollout, make one policy update, fit the critic once.

    Pure: `jit`, `vmap`, `scan` or shard it. The observation normaliser is frozen until
    the end, so that the policy which is updated is the one that acted.

    Args:
        config: The run.
        state: Where it stands.

    Returns:
        Where it stands afterwards, and the `Metrics` of this step.

    Raises:
        TypeError: If `config` or `state` is something else.

    Source: Schulman et al. 2015 (arXiv 1502.05477), section 6.
    """
    check_config(config)
    check_state(state)
    environment, policy, critic = assemble(config)
    scheduled = _scheduled(config, state)
    key, rollout_key, critic_key = jax.random.split(state.key, 3)

    # 1. Act with the policy as it is.
    with jax.default_matmul_precision(PRECISION):
        rollout_state, trajectory = rollout(
            functools.partial(_act, policy, state),
            environment,
            state.rollout,
            rollout_key,
            num_steps=config.rollout_length,
            noise_period=config.noise_period,
        )
    observations = observe(state, trajectory.observation)

    # 2. Judge the actions by generalised advantages.
    values, next_values, critic_memory = values_and_next(
        functools.partial(_value, config, critic, state),
        state.critic_memory,
        trajectory,
        rollout_state.observation,
    )
    advantages = generalized_advantages(
        trajectory.reward,
        values,
        next_values,
        trajectory.terminated,
        trajectory.truncated,
        discount=scheduled.discount,
        gae_lambda=scheduled.gae_lambda,
    )
    returns = advantages + values

    # 3. Update the policy inside its trust region.
    rows = policy.rows(state.rollout.memory, observations, trajectory.start)
    batch = Batch(
        rows,
        policy.by_row(trajectory.action),
        policy.by_row(trajectory.log_prob),
        policy.by_row(standardize(advantages)),
    )
    params, info = trust_region_update(
        lambda params, rows: policy.apply(params, rows)[1],
        state.params,
        batch,
        max_kl=scheduled.max_kl,
        damping=scheduled.damping,
        entropy_coefficient=scheduled.entropy_coefficient,
        cg_iterations=config.cg_iterations,
        cg_tolerance=config.cg_tolerance,
        max_backtracks=config.max_backtracks,
        backtrack_factor=config.backtrack_factor,
        line_search_width=config.line_search_width,
        fisher_stride=config.curvature_stride,
        micro_batch_size=rows_at_once(rows, config.batch_size, config.steps_at_once),
        step_size_curvature_fn=_STEP_CURVATURES[config.step_size_curvature],
        precision=PRECISION,
    )

    # 4. Fit the critic to the returns, on the scale it will be read with next time.
    return_statistics = state.return_statistics
    targets = returns
    if return_statistics is not None:
        return_statistics = absorb(return_statistics, returns.ravel())
        targets = normalize(return_statistics, returns)
    critic_params, critic_optimizer_state, critic_loss = fit_critic(
        lambda params, rows: critic.apply(params, rows)[1],
        state.critic_params,
        config.optimizer(scheduled.critic_learning_rate),
        state.critic_optimizer_state,
        critic.rows(state.critic_memory, observations, trajectory.start),
        critic.by_row(targets),
        critic_key,
        epochs=config.critic_passes,
        num_minibatches=config.critic_steps,
    )

    # 5. Let the observation normaliser absorb what was seen, now that nobody uses it.
    observation_statistics = state.observation_statistics
    if observation_statistics is not None:
        seen = _values_of(trajectory.observation)
        observation_statistics = absorb(
            observation_statistics, seen.reshape(-1, *seen.shape[2:])
        )

    updates = state.updates + 1
    metrics = Metrics(
        env_steps=updates * config.batch_size,
        **_episode_metrics(trajectory),
        explained_variance=explained_variance(values, returns),
        critic_loss=critic_loss,
        max_kl=jnp.asarray(scheduled.max_kl),
        critic_learning_rate=jnp.asarray(scheduled.critic_learning_rate),
        update=info,
    )
    state = state._replace(
        params=params,
        critic_params=critic_params,
        critic_optimizer_state=critic_optimizer_state,
        critic_memory=reset_nonfinite_memory(critic, critic_memory, config.num_envs),
        observation_statistics=observation_statistics,
        return_statistics=return_statistics,
        rollout=rollout_state._replace(
            memory=reset_nonfinite_memory(policy, rollout_state.memory, config.num_envs)
        ),
        updates=updates,
        key=key,
    )
    return state, metrics


_STEP_CURVATURES = {"undamped": undamped_curvature, "damped": damped_curvature}


def observe(state: TrainState, observations: Observation) -> Observation:
    """Return observations as the networks of `state` see them: normalised or not."""
    if state.observation_statistics is None:
        return observations
    values = normalize(
        state.observation_statistics, _values_of(observations), clip=_OBSERVATION_CLIP
    )
    if isinstance(observations, MaskedObservation):
        return observations._replace(values=values)
    return values


def _values_of(observations: Observation) -> Float[Array, "..."]:
    if isinstance(observations, MaskedObservation):
        return observations.values
    return observations


def check_state(state: TrainState) -> None:
    """Raise TypeError if `state` is no `TrainState`, as when a result was passed."""
    if not isinstance(state, TrainState):
        raise UsageTypeError(
            f"state is of type {type(state).__name__}; write the TrainState that init "
            "and step return, or that train's result has as result.state."
        )


def _scheduled(config: TRPOConfig, state: TrainState) -> Hyperparameters:
    """Return the hyperparameters with their schedules' factors at this update."""
    base = state.hyperparameters
    critic_learning_rate_factor = config.critic_learning_rate_factor(state.updates)
    return base._replace(
        max_kl=base.max_kl * config.max_kl_factor(state.updates),
        critic_learning_rate=base.critic_learning_rate * critic_learning_rate_factor,
    )


def _act(
    policy: View,
    state: TrainState,
    key: Key[Array, ""],
    memory: PyTree,
    observations: Observation,
    starts: Bool[Array, " B"],
) -> tuple[PyTree, Num[Array, "B ..."], Float[Array, " B"]]:
    """Draw actions for observations as the environments gave them; consumes `key`."""

    def draw(distribution: Distribution) -> tuple[Array, Array]:
        action = distribution.sample(key)
        return action, distribution.log_prob(action)

    seen = observe(state, observations)
    memory, drawn = apply_once(policy, state.params, memory, seen, starts, draw)
    return memory, *drawn


def _value(
    config: TRPOConfig,
    critic: View,
    state: TrainState,
    memory: PyTree,
    observations: Observation,
    starts: Bool[Array, "T B"],
) -> tuple[PyTree, Float[Array, "T B"]]:
    """Return memories and values, in units of return, of observations as they came."""
    memories, values = evaluate_rollout(
        critic,
        state.critic_params,
        memory,
        observe(state, observations),
        starts,
        steps_at_once=config.steps_at_once,
    )
    if state.return_statistics is not None:
        values = denormalize(state.return_statistics, values)
    return memories, values


def _episode_metrics(trajectory: Trajectory) -> dict[str, Array]:
    """Mean return and length of the episodes that ended, and how many did."""
    done = trajectory.done
    count = jnp.sum(done)

    def mean(values: Array) -> Array:
        return jnp.sum(jnp.where(done, values, 0)) / count

    return {
        "episode_return": mean(trajectory.episode_return),
        "episode_length": mean(trajectory.episode_length),
        "episode_count": count,
    }
