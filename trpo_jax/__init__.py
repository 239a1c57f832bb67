"""Trust region policy optimisation in JAX, whole on the accelerator.

`train(config)` is the complete call. The pieces under it are reached by subpackage,
such as `trpo_jax.trust_region.conjugate_gradient` and `trpo_jax.networks.MLP`.
"""

from trpo_jax import environments as environments
from trpo_jax import networks as networks
from trpo_jax import pictures as pictures
from trpo_jax import policies as policies
from trpo_jax import runs as runs
from trpo_jax import training as training
from trpo_jax import trust_region as trust_region
from trpo_jax.errors import (
    UsageError,
    UsageTypeError,
)
from trpo_jax.pictures import plot_runs, plot_sweep, render_episode
from trpo_jax.policies import evaluate, export_policy
from trpo_jax.runs import (
    Interrupted,
    Logger,
    RunError,
    RunResult,
    RunSettings,
    load_policy,
    load_state,
    measure_throughput,
    resume,
    run,
)
from trpo_jax.sweeps import SweepResult, load_sweep, resume_sweep, sweep
from trpo_jax.training import (
    Hyperparameters,
    Metrics,
    TrainResult,
    TrainState,
    TRPOConfig,
    compiler_options,
    init,
    log_uniform,
    preset,
    step,
    train,
    uniform,
)
from trpo_jax.trust_region import (
    UpdateStatus,
)
from trpo_jax.version import __version__ as __version__

__all__ = [
    "Hyperparameters",
    "Interrupted",
    "Logger",
    "Metrics",
    "RunError",
    "RunResult",
    "RunSettings",
    "SweepResult",
    "TRPOConfig",
    "TrainResult",
    "TrainState",
    "UpdateStatus",
    "UsageError",
    "UsageTypeError",
    "compiler_options",
    "evaluate",
    "export_policy",
    "init",
    "load_policy",
    "load_state",
    "load_sweep",
    "log_uniform",
    "measure_throughput",
    "plot_runs",
    "plot_sweep",
    "preset",
    "render_episode",
    "resume",
    "resume_sweep",
    "run",
    "step",
    "sweep",
    "train",
    "uniform",
]
