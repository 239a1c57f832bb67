"""Training: configuration, rollout, advantages, critic and the loop around them."""

from trpo_jax.training.advantages import generalized_advantages, standardize
from trpo_jax.training.compilation import compiler_options
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.critic import (
    CriticInfo,
    Regression,
    explained_variance,
    fit_critic,
    fit_critic_in_trust_region,
)
from trpo_jax.training.hyperparameters import Hyperparameters
from trpo_jax.training.iteration import Metrics, step
from trpo_jax.training.loop import TrainResult, train
from trpo_jax.training.presets import PRESETS, preset
from trpo_jax.training.rollouts import RolloutState, Trajectory, init_rollout, rollout
from trpo_jax.training.state import TrainState, init
from trpo_jax.training.statistics import (
    RunningStatistics,
    denormalize,
    init_statistics,
    normalize,
    update_statistics,
)

__all__ = [
    "PRESETS",
    "CriticInfo",
    "Hyperparameters",
    "Metrics",
    "Regression",
    "RolloutState",
    "RunningStatistics",
    "TRPOConfig",
    "TrainResult",
    "TrainState",
    "Trajectory",
    "compiler_options",
    "denormalize",
    "explained_variance",
    "fit_critic",
    "fit_critic_in_trust_region",
    "generalized_advantages",
    "init",
    "init_rollout",
    "init_statistics",
    "normalize",
    "preset",
    "rollout",
    "standardize",
    "step",
    "train",
    "update_statistics",
]
