"""Training: configuration, rollout, advantages, critic and the loop around them."""

from trpo_jax.training.advantages import (
    discounted_returns,
    generalized_advantages,
    standardize,
)
from trpo_jax.training.bounds import improvement_bounds
from trpo_jax.training.cells import (
    Cells,
    init_cells,
    make_cells,
    step_cells,
    train_cells,
)
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
from trpo_jax.training.iteration import step
from trpo_jax.training.loop import TrainResult, train
from trpo_jax.training.metrics import Metrics
from trpo_jax.training.presets import PRESETS, preset
from trpo_jax.training.rollouts import RolloutState, Trajectory, init_rollout, rollout
from trpo_jax.training.search import (
    PROGRAM_FIELDS,
    TRACED_FIELDS,
    Range,
    log_uniform,
    make_settings,
    parse_range,
    program_of,
    uniform,
)
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
    "PROGRAM_FIELDS",
    "TRACED_FIELDS",
    "Cells",
    "CriticInfo",
    "Hyperparameters",
    "Metrics",
    "Range",
    "Regression",
    "RolloutState",
    "RunningStatistics",
    "TRPOConfig",
    "TrainResult",
    "TrainState",
    "Trajectory",
    "compiler_options",
    "denormalize",
    "discounted_returns",
    "explained_variance",
    "fit_critic",
    "fit_critic_in_trust_region",
    "generalized_advantages",
    "improvement_bounds",
    "init",
    "init_cells",
    "init_rollout",
    "init_statistics",
    "log_uniform",
    "make_cells",
    "make_settings",
    "normalize",
    "parse_range",
    "preset",
    "program_of",
    "rollout",
    "standardize",
    "step",
    "step_cells",
    "train",
    "train_cells",
    "uniform",
    "update_statistics",
]
