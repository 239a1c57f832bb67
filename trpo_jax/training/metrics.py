"""Measurements of one step of the training loop."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from trpo_jax.errors import UsageError
from trpo_jax.training.bounds import improvement_bounds
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.config_checks import PENALIZED
from trpo_jax.training.critic import CriticInfo, explained_variance
from trpo_jax.training.critics import AdvantageEstimates
from trpo_jax.training.hyperparameters import Hyperparameters
from trpo_jax.training.update_inputs import Updated
from trpo_jax.trust_region import ConstraintInfo, UpdateInfo, ratio_or_nan


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


def measure(
    config: TRPOConfig,
    scheduled: Hyperparameters,
    estimates: AdvantageEstimates,
    updated: Updated,
    critic: CriticInfo,
    updates: Int[Array, ""],
) -> Metrics:
    """Return the metrics of a step.

    Args:
        config: The run.
        scheduled: Hyperparameters in force.
        estimates: The rollout, with values and advantages by the critic.
        updated: Results of the policy update.
        critic: Evidence of the critic's fit.
        updates: Policy updates made, with this one.
    """
    info, trajectory = updated.info, estimates.trajectory
    bounds = improvement_bounds(
        info,
        estimates.advantages,
        discount=scheduled.discount,
        entropy_coefficient=scheduled.entropy_coefficient,
    )
    if config.update in PENALIZED:  # the evidence is of other advantages
        bounds = jax.tree.map(lambda bound: jnp.full_like(bound, -jnp.inf), bounds)
    done = trajectory.done
    return Metrics(
        updates=updates,
        batch_size=jnp.int32(config.batch_size),
        episode_return_sum=jnp.sum(trajectory.episode_return, where=done),
        # Episodes that end in one rollout may together be longer than an int32 counts.
        episode_length_sum=jnp.sum(
            trajectory.episode_length, where=done, dtype=jnp.float32
        ),
        episode_count=jnp.sum(done),
        explained_variance=explained_variance(estimates.values, estimates.returns),
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


def _sum_over_ended(
    sums: Float[Array, "T B K"] | None, done: Bool[Array, "T B"]
) -> Float[Array, " K"] | None:
    """Return the sum over the episodes that ended; None where there are no costs."""
    if sums is None:
        return None
    return jnp.sum(sums, axis=(0, 1), where=done[..., None])
