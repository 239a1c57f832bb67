"""One iteration of the training loop: rollout, policy update, critic fit."""

import functools

import jax
import optax
from jaxtyping import Array, Key

from trpo_jax.observations import values_of
from trpo_jax.training.adaptation import times_factors
from trpo_jax.training.advantages import discounted_returns, standardize
from trpo_jax.training.batching import (
    BatchedNetwork,
    reset_nonfinite_memory,
    rows_per_micro_batch,
)
from trpo_jax.training.components import make_components
from trpo_jax.training.config import TRPOConfig, check_config
from trpo_jax.training.critics import (
    AdvantageEstimates,
    CostEstimates,
    estimate_advantages,
    estimate_cost_advantages,
    expect_costs,
    fit,
    fit_costs,
)
from trpo_jax.training.defaults import resolve_sizes
from trpo_jax.training.hyperparameters import Hyperparameters
from trpo_jax.training.metrics import Metrics, measure
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
from trpo_jax.trust_region import Batch


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

        # 2. Estimate the advantages of the actions, also those of the costs that have
        # limits.
        estimates, critic_memory = estimate_advantages(
            config, components, state, scheduled, trajectory, rollout_state.observation
        )
        state, costs = estimate_cost_advantages(
            config, components, state, scheduled, trajectory, rollout_state
        )

        # 3. Update the policy.
        updated = _update_policy(
            config, components.policy, state, scheduled, estimates, costs, update_key
        )

        # 4. Fit the critic to the returns. Their statistics are updated first, because
        # the fitted critic is read with the new ones.
        state = state._replace(
            return_statistics=absorb(state.return_statistics, estimates.returns)
        )
        critic_params, critic_optimizer_state, critic = fit(
            config, components.critic, state, scheduled, estimates, critic_key
        )
        state = fit_costs(
            config, components.critic, state, scheduled, estimates, costs, critic_key
        )
        state = expect_costs(state, costs, updated.constraints)

    # 5. Update the observation normaliser last: until here the policy must see what it
    # saw when it acted, or the probability ratio would not start at 1.
    observation_statistics = jax.tree.map(
        lambda samples, statistics: absorb(statistics, samples),
        values_of(trajectory.observation),
        state.observation_statistics,
    )

    updates = optax.safe_increment(state.updates)
    metrics = measure(config, scheduled, estimates, updated, critic, updates)
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
    estimates: AdvantageEstimates,
    costs: CostEstimates | None,
    key: Key[Array, ""],
) -> Updated:
    """Return the policy's parameters, the update's own state, and its evidence."""
    sizes, trajectory = resolve_sizes(config), estimates.trajectory
    rows = policy.rows(state.rollout.memory, estimates.observations, trajectory.start)
    batch = Batch(
        rows,
        policy.to_rows(trajectory.action),
        policy.to_rows(trajectory.log_prob),
        policy.to_rows(standardize(estimates.advantages)),
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


def _scheduled(config: TRPOConfig, state: TrainState) -> Hyperparameters:
    """Return the hyperparameters, times the factors of their schedules."""
    base = times_factors(state.hyperparameters, state.update_state)
    factors = {
        name: make_schedule(schedule, config.num_updates)(state.updates)
        for name, schedule in (
            ("max_kl", config.max_kl_schedule),
            ("entropy_coefficient", config.entropy_coefficient_schedule),
            ("policy_learning_rate", config.policy_learning_rate_schedule),
            ("critic_learning_rate", config.critic_learning_rate_schedule),
        )
        if schedule != "adaptive"
    }
    return base._replace(
        **{name: getattr(base, name) * factor for name, factor in factors.items()}
    )
