"""One iteration of the training loop: rollout, policy update, critic fit."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from trpo_jax.observations import values_of
from trpo_jax.training.advantages import generalized_advantages, standardize
from trpo_jax.training.batching import reset_nonfinite_memory, rows_per_micro_batch
from trpo_jax.training.components import make_components
from trpo_jax.training.config import TRPOConfig, check_config
from trpo_jax.training.config_checks import MAX_ENV_STEPS
from trpo_jax.training.critic import explained_variance, fit_critic
from trpo_jax.training.defaults import resolve_sizes
from trpo_jax.training.hyperparameters import Hyperparameters
from trpo_jax.training.rollouts import Trajectory, rollout
from trpo_jax.training.state import (
    PRECISION,
    TrainState,
    check_made_from,
    make_act_fn,
    make_value_fn,
    observe,
)
from trpo_jax.training.statistics import normalize, update_statistics
from trpo_jax.training.values import values_and_next
from trpo_jax.trust_region import (
    Batch,
    UpdateInfo,
    damped_curvature,
    fisher_vector_product,
    gauss_newton_vector_product,
    trust_region_update,
    undamped_curvature,
)

_STEP_SIZE_CURVATURES = {"undamped": undamped_curvature, "damped": damped_curvature}
_FISHER_OPERATORS = {
    "gauss_newton": gauss_newton_vector_product,
    "kl_hessian": fisher_vector_product,
}


class Metrics(NamedTuple):
    """Measurements of one step.

    Attributes:
        env_steps: Environment steps taken so far, exact below 2³¹, int32 scalar.
        episode_return_sum: Sum of the undiscounted returns of the episodes that ended
            in this rollout.
        episode_length_sum: Sum of their lengths in steps, int32 scalar.
        episode_count: Number of episodes that ended, int32 scalar.
        explained_variance: 1 − Var(returns − V) / Var(returns), of the critic that
            the advantages came from.
        critic_loss: Mean squared error over the last epoch of the fit, in normalised
            units if returns are normalised.
        max_kl: δ in force, nats.
        critic_learning_rate: Step size in force.
        update: The policy update's own evidence.
    """

    env_steps: Int[Array, ""]
    episode_return_sum: Float[Array, ""]
    episode_length_sum: Int[Array, ""]
    episode_count: Int[Array, ""]
    explained_variance: Float[Array, ""]
    critic_loss: Float[Array, ""]
    max_kl: Float[Array, ""]
    critic_learning_rate: Float[Array, ""]
    update: UpdateInfo

    @property
    def episode_return(self) -> Float[Array | np.ndarray, "..."]:
        """Mean return of the episodes that ended; NaN if none did."""
        return _mean_of_any(self.episode_return_sum, self.episode_count)

    @property
    def episode_length(self) -> Float[Array | np.ndarray, "..."]:
        """Mean length of the episodes that ended, in steps; NaN if none did."""
        return _mean_of_any(self.episode_length_sum, self.episode_count)


def _mean_of_any(
    total: Num[Array | np.ndarray, "..."], count: Int[Array | np.ndarray, "..."]
) -> Float[Array | np.ndarray, "..."]:
    """Return total / count, NaN for a count of 0.

    Not a result of the compiled step: `jax_debug_nans`, by which people look for NaNs
    of their own, must not stop at one that is intended; NumPy ignores the switch.
    """
    if isinstance(total, jax.core.Tracer) or isinstance(count, jax.core.Tracer):
        return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)
    mean = np.asarray(total, np.float32) / np.maximum(count, 1)
    return np.where(np.asarray(count) > 0, mean, np.float32(np.nan))


def step(config: TRPOConfig, state: TrainState) -> tuple[TrainState, Metrics]:
    """Collect a rollout, update the policy, fit the critic.

    Pure: `jit`, `vmap`, `scan` or differentiate it. The observation normaliser is
    frozen until the end, so that the policy which is updated is the one that acted.

    Args:
        config: The run. Schedules hold their last value after its last update.
        state: The state that `init` or the step before returned.

    Returns:
        The state after the step, and its `Metrics`.

    Raises:
        UsageTypeError: If `config` or `state` is something else.
        UsageError: If the state was made from another config.

    Source: Schulman et al. 2015 (arXiv 1502.05477), section 6.
    """
    check_config(config)
    check_made_from(config, state)
    sizes = resolve_sizes(config)
    components = make_components(config)
    environment, policy, critic = components
    scheduled = _scheduled(config, state)
    # The environments keep no keys between steps: all randomness is in `state.key`.
    key, rollout_key, critic_key = jax.random.split(state.key, 3)

    # 1. Act with the policy as it is.
    with jax.default_matmul_precision(PRECISION):
        rollout_state, trajectory = rollout(
            make_act_fn(components, state),
            environment,
            state.rollout,
            rollout_key,
            num_steps=config.rollout_length,
            noise_period=config.noise_period,
        )
    # Normalised once for policy and critic; the trajectory keeps them as they came.
    observations = observe(state, trajectory.observation)

    # 2. Judge the actions by generalised advantages.
    values, next_values, critic_memory = values_and_next(
        make_value_fn(components, state, micro_batch_size=sizes.micro_batch_size),
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
    returns = advantages + values  # the λ-returns

    # 3. Update the policy inside its trust region.
    rows = policy.rows(state.rollout.memory, observations, trajectory.start)
    batch = Batch(
        rows,
        policy.to_rows(trajectory.action),
        policy.to_rows(trajectory.log_prob),
        policy.to_rows(standardize(advantages)),
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
        fisher_stride=sizes.fisher_stride,
        micro_batch_size=rows_per_micro_batch(
            rows, config.batch_size, sizes.micro_batch_size
        ),
        operator_fn=_FISHER_OPERATORS[config.fisher_operator],
        step_size_curvature_fn=_STEP_SIZE_CURVATURES[config.step_size_curvature],
        precision=PRECISION,
    )

    # 4. Fit the critic to the returns. Their statistics are updated first, because the
    # fitted critic is read with the new ones.
    return_statistics = state.return_statistics
    targets = returns
    if return_statistics is not None:
        return_statistics = update_statistics(return_statistics, returns.ravel())
        targets = normalize(return_statistics, returns)
    critic_params, critic_optimizer_state, critic_loss = fit_critic(
        lambda params, rows: critic.apply(params, rows)[1],
        state.critic_params,
        config.optimizer(scheduled.critic_learning_rate),
        state.critic_optimizer_state,
        critic.rows(state.critic_memory, observations, trajectory.start),
        critic.to_rows(targets),
        critic_key,
        epochs=sizes.critic_epochs,
        num_minibatches=sizes.critic_minibatches,
    )

    # 5. Update the observation normaliser last: until here the policy must see what it
    # saw when it acted, or the probability ratio would not start at 1.
    observation_statistics = state.observation_statistics
    if observation_statistics is not None:
        seen = values_of(trajectory.observation)
        observation_statistics = update_statistics(
            observation_statistics, seen.reshape(-1, *seen.shape[2:])
        )

    updates = state.updates + 1
    metrics = Metrics(
        env_steps=_env_steps(updates, config.batch_size),
        **_episode_sums(trajectory),
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


def _scheduled(config: TRPOConfig, state: TrainState) -> Hyperparameters:
    """Return the hyperparameters, times the factors of their schedules."""
    base = state.hyperparameters
    critic_learning_rate_factor = config.critic_learning_rate_factor(state.updates)
    return base._replace(
        max_kl=base.max_kl * config.max_kl_factor(state.updates),
        critic_learning_rate=base.critic_learning_rate * critic_learning_rate_factor,
    )


def _env_steps(updates: Int[Array, ""], batch_size: int) -> Int[Array, ""]:
    """Return updates × batch size, which stays where an int32 ends: it never wraps."""
    return jnp.minimum(updates, MAX_ENV_STEPS // batch_size) * batch_size


def _episode_sums(trajectory: Trajectory) -> dict[str, Array]:
    """Return sums over the episodes that ended: they add up over rollouts."""
    done = trajectory.done
    return {
        "episode_return_sum": jnp.sum(jnp.where(done, trajectory.episode_return, 0)),
        "episode_length_sum": jnp.sum(jnp.where(done, trajectory.episode_length, 0)),
        "episode_count": jnp.sum(done),
    }
