"""One iteration of the training loop: rollout, policy update, critic fit."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from trpo_jax.errors import UsageError
from trpo_jax.observations import values_of
from trpo_jax.training.adaptation import times_factors
from trpo_jax.training.advantages import (
    discounted_returns,
    standardize,
)
from trpo_jax.training.batching import (
    BatchedNetwork,
    reset_nonfinite_memory,
    rows_per_micro_batch,
)
from trpo_jax.training.bounds import improvement_bounds
from trpo_jax.training.components import make_components
from trpo_jax.training.config import TRPOConfig, check_config
from trpo_jax.training.config_checks import PENALIZED
from trpo_jax.training.critic import (
    explained_variance,
)
from trpo_jax.training.critics import (
    Judged,
    JudgedCosts,
    fit,
    fit_costs,
    judge,
    judge_costs,
)
from trpo_jax.training.defaults import resolve_sizes
from trpo_jax.training.hyperparameters import Hyperparameters
from trpo_jax.training.placement import over_environments
from trpo_jax.training.policy_update import update_policy
from trpo_jax.training.rollouts import Trajectory, rollout
from trpo_jax.training.schedules import make_schedule
from trpo_jax.training.state import (
    PRECISION,
    TrainState,
    check_made_from,
    make_act_fn,
)
from trpo_jax.training.statistics import absorb, update_statistics
from trpo_jax.training.update_inputs import Updated, UpdateInputs
from trpo_jax.trust_region import (
    Batch,
    ConstraintInfo,
    UpdateInfo,
    ratio_or_nan,
)


class Metrics(NamedTuple):
    """Measurements of one step.

    Attributes:
        updates: Policy updates made so far, int32 scalar.
        batch_size: Environment steps of one update, int32 scalar.
        episode_return_sum: Sum of the undiscounted returns of the episodes that ended
            in this rollout.
        episode_length_sum: Sum of their lengths in steps, float32 scalar, exact below
            2²⁴.
        episode_count: Number of episodes that ended, int32 scalar.
        explained_variance: 1 − Var(returns − V) / Var(returns), of the critic that
            the advantages came from.
        critic_loss: Mean squared error after the fit, or over its last epoch if it is
            first-order; in normalised units if returns are normalised.
        critic_kl: Mean squared change of the values over twice their mean squared
            error, at most `critic_max_kl`; 0 for a first-order fit.
        critic_cg_relative_residual: That of the critic's solve; 0 likewise.
        max_kl: δ in force, nats.
        damping: λ in force.
        critic_learning_rate: Step size in force.
        improvement_bound: Estimate of a lower bound on the improvement of the expected
            discounted return, from the largest KL, see `improvement_bounds`.
        mean_kl_improvement_bound: Another, from the mean KL. Both are in
            scaled units if rewards are scaled, and −∞ for updates on advantages that
            take costs into account.
        update: The policy update's own evidence.
        episode_cost_sum: Sum of the costs of the episodes that ended in this rollout,
            float[K]; None in an environment without costs.
        constraints: Evidence of an update that keeps limits, in units of cost per
            episode; None for the others.
    """

    updates: Int[Array, ""]
    batch_size: Int[Array, ""]
    episode_return_sum: Float[Array, ""]
    episode_length_sum: Float[Array, ""]
    episode_count: Int[Array, ""]
    explained_variance: Float[Array, ""]
    critic_loss: Float[Array, ""]
    critic_kl: Float[Array, ""]
    critic_cg_relative_residual: Float[Array, ""]
    max_kl: Float[Array, ""]
    damping: Float[Array, ""]
    critic_learning_rate: Float[Array, ""]
    improvement_bound: Float[Array, ""]
    mean_kl_improvement_bound: Float[Array, ""]
    update: UpdateInfo
    episode_cost_sum: Float[Array, " K"] | None = None
    constraints: ConstraintInfo | None = None

    @property
    def env_steps(self) -> np.int64 | Int[np.ndarray, "..."]:
        """Environment steps taken so far, `updates` × `batch_size`, exact, int64.

        Raises:
            UsageError: Where it is traced: compiled programs count in 32 bits.
        """
        if isinstance(self.updates, jax.core.Tracer):
            raise UsageError(
                "metrics.env_steps may exceed the 32 bits in which programs traced by "
                "jit, vmap or scan count; return the metrics and read it outside, or "
                "write metrics.updates."
            )
        return np.multiply(self.updates, self.batch_size, dtype=np.int64)

    @property
    def episode_return(self) -> Float[Array | np.ndarray, "..."]:
        """Mean return of the episodes that ended; NaN if none did."""
        return ratio_or_nan(self.episode_return_sum, self.episode_count)

    @property
    def episode_length(self) -> Float[Array | np.ndarray, "..."]:
        """Mean length of the episodes that ended, in steps; NaN if none did."""
        return ratio_or_nan(self.episode_length_sum, self.episode_count)

    @property
    def episode_cost(self) -> Float[Array | np.ndarray, "... K"] | None:
        """Mean costs of the episodes that ended; NaN if none did, None without any."""
        if self.episode_cost_sum is None:
            return None
        return ratio_or_nan(self.episode_cost_sum, self.episode_count[..., None])


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
    components = make_components(config)
    scheduled = _scheduled(config, state)
    # The environments keep no keys between steps: all randomness is in `state.key`.
    key, rollout_key, critic_key, update_key = jax.random.split(state.key, 4)

    with jax.default_matmul_precision(PRECISION):
        # 1. Act with the policy as it is.
        rollout_state, trajectory = rollout(
            make_act_fn(components, state),
            components.environment,
            state.rollout,
            rollout_key,
            num_steps=config.rollout_length,
            noise_period=config.noise_period,
            map_fn=functools.partial(over_environments, config),
        )
        # Rewards are scaled only where a config asks for it.
        state, trajectory = _scale_rewards(state, scheduled, trajectory)

        # 2. Judge the actions by generalised advantages; also by those of the costs
        # that have limits.
        judged, critic_memory = judge(
            config, components, state, scheduled, trajectory, rollout_state.observation
        )
        state, costs = judge_costs(
            config, components, state, scheduled, trajectory, rollout_state
        )

        # 3. Update the policy.
        updated = _update_policy(
            config, components.policy, state, scheduled, judged, costs, update_key
        )
        info = updated.info

        # 4. Fit the critic to the returns. Their statistics are updated first, because
        # the fitted critic is read with the new ones.
        state = state._replace(
            return_statistics=absorb(state.return_statistics, judged.returns)
        )
        critic_params, critic_optimizer_state, critic = fit(
            config, components.critic, state, scheduled, judged, critic_key
        )
        state = _expect_costs(state, costs, updated.constraints)
        state = fit_costs(
            config, components.critic, state, scheduled, judged, costs, critic_key
        )

    # 5. Update the observation normaliser last: until here the policy must see what it
    # saw when it acted, or the probability ratio would not start at 1.
    observation_statistics = jax.tree.map(
        lambda samples, statistics: absorb(statistics, samples),
        values_of(trajectory.observation),
        state.observation_statistics,
    )

    bounds = improvement_bounds(
        info,
        judged.advantages,
        discount=scheduled.discount,
        entropy_coefficient=scheduled.entropy_coefficient,
    )
    if config.update in PENALIZED:  # the evidence is of other advantages
        bounds = jax.tree.map(lambda bound: jnp.full_like(bound, -jnp.inf), bounds)
    updates, done = optax.safe_increment(state.updates), trajectory.done
    metrics = Metrics(
        updates=updates,
        batch_size=jnp.int32(config.batch_size),
        episode_return_sum=jnp.sum(trajectory.episode_return, where=done),
        # Episodes that end in one rollout may together be longer than an int32 counts.
        episode_length_sum=jnp.sum(
            trajectory.episode_length, where=done, dtype=jnp.float32
        ),
        episode_count=jnp.sum(done),
        explained_variance=explained_variance(judged.values, judged.returns),
        critic_loss=critic.loss,
        critic_kl=critic.kl,
        critic_cg_relative_residual=critic.cg_relative_residual,
        max_kl=jnp.asarray(scheduled.max_kl),
        damping=jnp.asarray(scheduled.damping),
        critic_learning_rate=jnp.asarray(scheduled.critic_learning_rate),
        improvement_bound=bounds[0],
        mean_kl_improvement_bound=bounds[1],
        update=info,
        episode_cost_sum=_sum_over_ended(trajectory.episode_cost, done),
        constraints=updated.constraints,
    )
    memory = reset_nonfinite_memory(components.policy, rollout_state.memory)
    state = state._replace(
        params=updated.params,
        update_state=updated.state,
        critic_params=critic_params,
        critic_optimizer_state=critic_optimizer_state,
        critic_memory=reset_nonfinite_memory(components.critic, critic_memory),
        observation_statistics=observation_statistics,
        rollout=rollout_state._replace(memory=memory),
        updates=updates,
        key=key,
    )
    return state, metrics


def _scale_rewards(
    state: TrainState, scheduled: Hyperparameters, trajectory: Trajectory
) -> tuple[TrainState, Trajectory]:
    """Return a rollout with scaled rewards, and the state with their statistics.

    The sums of the episodes stay in units of reward.
    """
    statistics, carried = state.reward_statistics, state.discounted_return
    if statistics is None or carried is None:
        return state, trajectory
    returns, carried = discounted_returns(
        trajectory.reward, trajectory.done, carried, discount=scheduled.discount
    )
    # First: without any samples the first rollout would not be scaled.
    statistics = update_statistics(statistics, returns)
    state = state._replace(reward_statistics=statistics, discounted_return=carried)
    return state, trajectory._replace(reward=trajectory.reward / statistics.std)


def _update_policy(
    config: TRPOConfig,
    policy: BatchedNetwork,
    state: TrainState,
    scheduled: Hyperparameters,
    judged: Judged,
    costs: "JudgedCosts | None",
    key: Key[Array, ""],
) -> Updated:
    """Return the policy's parameters, the update's own state, and its evidence."""
    sizes, trajectory = resolve_sizes(config), judged.trajectory
    rows = policy.rows(state.rollout.memory, judged.observations, trajectory.start)
    batch = Batch(
        rows,
        policy.to_rows(trajectory.action),
        policy.to_rows(trajectory.log_prob),
        policy.to_rows(standardize(judged.advantages)),
    )
    inputs = UpdateInputs(
        lambda params, rows: policy.apply(params, rows)[1],
        state.params,
        state.update_state,
        batch,
        policy.subsample(batch, sizes.fisher_stride, config.rollout_length),
        rows_per_micro_batch(rows, config.batch_size, sizes.micro_batch_size),
        scheduled,
        key,
        None if costs is None else costs.as_rows(policy, config.cost_limits),
    )
    return update_policy(config, inputs)


def _expect_costs(
    state: TrainState, costs: JudgedCosts | None, evidence: ConstraintInfo | None
) -> TrainState:
    """Return the state with what an update predicts for the cost of an episode."""
    if state.costs is None or costs is None or evidence is None:
        return state
    predicted = costs.episode.cost + evidence.cost_change
    return state._replace(costs=state.costs._replace(predicted_cost=predicted))


def _sum_over_ended(
    sums: Float[Array, "T B K"] | None, done: Bool[Array, "T B"]
) -> Float[Array, " K"] | None:
    """Return the sum over the episodes that ended; None where there are no costs."""
    if sums is None:
        return None
    return jnp.sum(sums, axis=(0, 1), where=done[..., None])


def _scheduled(config: TRPOConfig, state: TrainState) -> Hyperparameters:
    """Return the hyperparameters, times the factors of their schedules."""
    base = times_factors(state.hyperparameters, state.update_state)
    factors = {
        name: make_schedule(schedule, config.num_updates)(state.updates)
        for name, schedule in (
            ("max_kl", config.max_kl_schedule),
            ("policy_learning_rate", config.policy_learning_rate_schedule),
            ("critic_learning_rate", config.critic_learning_rate_schedule),
        )
        if schedule != "adaptive"
    }
    return base._replace(
        **{name: getattr(base, name) * factor for name, factor in factors.items()}
    )
