"""What happens on the host around a run: records, checkpoints, evaluation, progress."""

from trpo_jax.runs.evaluation import evaluate
from trpo_jax.runs.plots import plot_runs
from trpo_jax.runs.policy import LoadedPolicy, export_policy, load_policy, load_state
from trpo_jax.runs.records import Logger
from trpo_jax.runs.render import RenderedEpisode, render_episode
from trpo_jax.runs.runner import (
    Interrupted,
    RunError,
    RunResult,
    resume,
    run,
    train_in_passing,
)
from trpo_jax.runs.settings import RunSettings
from trpo_jax.runs.throughput import measure_throughput
from trpo_jax.version import __version__

__all__ = [
    "Interrupted",
    "LoadedPolicy",
    "Logger",
    "RenderedEpisode",
    "RunError",
    "RunResult",
    "RunSettings",
    "__version__",
    "evaluate",
    "export_policy",
    "load_policy",
    "load_state",
    "measure_throughput",
    "plot_runs",
    "render_episode",
    "resume",
    "run",
    "train_in_passing",
]
