"""Critics of a run: advantages of its reward and its costs, and the critics' fit."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from trpo_jax.networks import Observation
from trpo_jax.training.advantages import generalized_advantages
from trpo_jax.training.batching import (
    BatchedNetwork,
    reset_nonfinite_memory,
    rows_per_micro_batch,
)
from trpo_jax.training.components import Components
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.costs import (
    EpisodeCosts,
    estimate_episode_costs,
    over_costs,
)
from trpo_jax.training.critic import (
    CriticInfo,
    Regression,
    fit_critic,
    fit_critic_in_trust_region,
)
from trpo_jax.training.defaults import resolve_sizes
from trpo_jax.training.hyperparameters import Hyperparameters
from trpo_jax.training.optimizers import make_optimizer
from trpo_jax.training.rollouts import RolloutState, Trajectory
from trpo_jax.training.state import TrainState, make_value_fn, observe
from trpo_jax.training.statistics import absorb, normalize
from trpo_jax.training.update_inputs import RolloutCosts
from trpo_jax.training.values import values_and_next
from trpo_jax.trust_region import ConstraintInfo


class AdvantageEstimates(NamedTuple):
    """A rollout with values and advantages by the critic, [T, B, …].

    Attributes:
        trajectory: The rollout.
        observations: Its observations as policy and critic see them, normalised once.
        values: V(s), in units of return, scaled if rewards are.
        advantages: Generalised advantages.
        returns: The λ-returns, advantages + values.
    """

    trajectory: Trajectory
    observations: Observation
    values: Float[Array, "T B"]
    advantages: Float[Array, "T B"]
    returns: Float[Array, "T B"]


def estimate_advantages(
    config: TRPOConfig,
    components: Components,
    state: TrainState,
    scheduled: Hyperparameters,
    trajectory: Trajectory,
    observation: Observation,
) -> tuple[AdvantageEstimates, PyTree]:
    """Return the estimates of a rollout, and the critic's memory at its end."""
    micro_batch_size = resolve_sizes(config).micro_batch_size
    values, next_values, memory = values_and_next(
        make_value_fn(components, state, micro_batch_size=micro_batch_size),
        state.critic_memory,
        trajectory,
        observation,
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
    observations = observe(state, trajectory.observation)
    returns = advantages + values
    return AdvantageEstimates(
        trajectory, observations, values, advantages, returns
    ), memory


class CostEstimates(NamedTuple):
    """The advantages of each cost of a rollout.

    Attributes:
        episode: Estimate of the costs of an episode.
        memory: Memory of the critics at the end of the rollout, [K, B, …].
        advantages: float[K, T, B].
        returns: float[K, T, B].
    """

    episode: EpisodeCosts
    memory: PyTree
    advantages: Float[Array, "K T B"]
    returns: Float[Array, "K T B"]

    def as_rows(
        self, policy: BatchedNetwork, limits: tuple[float, ...] | None
    ) -> RolloutCosts:
        """Return the costs as rows of the policy's batch."""
        centred = self.advantages - jnp.mean(self.advantages, (1, 2), keepdims=True)
        rows = policy.to_rows(jnp.moveaxis(centred, 0, -1))
        return RolloutCosts(rows, *self.episode, jnp.asarray(limits))


def estimate_cost_advantages(
    config: TRPOConfig,
    components: Components,
    state: TrainState,
    scheduled: Hyperparameters,
    trajectory: Trajectory,
    rollout: RolloutState,
) -> tuple[TrainState, CostEstimates | None]:
    """Return the state with the episodes' costs, and the advantages of each cost."""
    if state.costs is None or trajectory.cost is None:
        return state, None
    of_costs = {"discount": config.cost_discount, "gae_lambda": config.cost_gae_lambda}
    scheduled = scheduled._replace(
        **{name: value for name, value in of_costs.items() if value is not None}
    )

    def estimate_one(
        state: TrainState, cost: Float[Array, "T B"]
    ) -> tuple[PyTree, ...]:
        estimates, memory = estimate_advantages(
            config,
            components,
            state,
            scheduled,
            trajectory._replace(reward=cost),
            rollout.observation,
        )
        memory = reset_nonfinite_memory(components.critic, memory)
        return memory, estimates.advantages, estimates.returns

    costs, episode = estimate_episode_costs(
        state.costs, trajectory, rollout, correction_rate=config.cost_correction
    )
    estimates = over_costs(estimate_one, state, trajectory.cost)
    return state._replace(costs=costs), CostEstimates(episode, *estimates)


def fit(
    config: TRPOConfig,
    critic: BatchedNetwork,
    state: TrainState,
    scheduled: Hyperparameters,
    estimates: AdvantageEstimates,
    key: Key[Array, ""],
) -> tuple[PyTree, PyTree, CriticInfo]:
    """Return the critic's new parameters, its optimiser's state, and the evidence."""
    sizes, targets = resolve_sizes(config), estimates.returns
    if state.return_statistics is not None:
        targets = normalize(state.return_statistics, targets)
    rows = critic.rows(
        state.critic_memory, estimates.observations, estimates.trajectory.start
    )
    if config.critic_fit == "trust_region":
        batch = Regression(rows, critic.to_rows(targets))
        params, info = fit_critic_in_trust_region(
            lambda params, rows: critic.apply(params, rows)[1],
            state.critic_params,
            batch,
            max_kl=scheduled.critic_max_kl,
            damping=scheduled.critic_damping,
            cg_iterations=config.critic_cg_iterations,
            cg_tolerance=config.cg_tolerance,
            fisher_batch=critic.subsample(
                batch, sizes.critic_stride, config.rollout_length
            ),
            micro_batch_size=rows_per_micro_batch(
                rows, config.batch_size, sizes.micro_batch_size
            ),
        )
        return params, (), info
    optimizer = make_optimizer(
        config.critic_optimizer, max_gradient_norm=config.critic_max_gradient_norm
    )
    params, optimizer_state, loss = fit_critic(
        lambda params, rows: critic.apply(params, rows)[1],
        state.critic_params,
        optimizer(scheduled.critic_learning_rate),
        state.critic_optimizer_state,
        rows,
        critic.to_rows(targets),
        key,
        epochs=sizes.critic_epochs,
        num_minibatches=sizes.critic_minibatches,
        value_clipping=config.critic_value_clipping,
    )
    zero = jnp.zeros_like(loss)
    return params, optimizer_state, CriticInfo(loss, zero, zero)


def fit_costs(
    config: TRPOConfig,
    critic: BatchedNetwork,
    state: TrainState,
    scheduled: Hyperparameters,
    estimates: AdvantageEstimates,
    costs: CostEstimates | None,
    key: Key[Array, ""],
) -> TrainState:
    """Return the state with the critics of the costs fitted to their returns."""
    if state.costs is None or costs is None:
        return state

    def fit_one(state: TrainState, returns: Float[Array, "T B"]) -> tuple[PyTree, ...]:
        statistics = absorb(state.return_statistics, returns)
        params, optimizer_state, _ = fit(
            config,
            critic,
            state._replace(return_statistics=statistics),
            scheduled,
            estimates._replace(returns=returns),
            key,
        )
        return params, optimizer_state, statistics

    fitted = over_costs(fit_one, state, jnp.moveaxis(costs.returns, 0, -1))
    params, optimizer_state, statistics = fitted
    return state._replace(
        costs=state.costs._replace(
            critic_params=params,
            critic_optimizer_state=optimizer_state,
            critic_memory=jax.tree.map(
                lambda leaf: jnp.moveaxis(leaf, 0, 1), costs.memory
            ),
            return_statistics=statistics,
        )
    )


def expect_costs(
    state: TrainState, costs: CostEstimates | None, evidence: ConstraintInfo | None
) -> TrainState:
    """Return the state with what an update predicts for the cost of an episode."""
    if state.costs is None or costs is None or evidence is None:
        return state
    predicted = costs.episode.cost + evidence.cost_change
    return state._replace(costs=state.costs._replace(predicted_cost=predicted))
