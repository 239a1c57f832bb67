"""Recorded runs: progress, records, checkpoints and evaluation."""

from trpo_jax.runs.loading import CheckpointChoice, load_policy, load_state
from trpo_jax.runs.loggers import Logger
from trpo_jax.runs.processes import connect_processes
from trpo_jax.runs.runner import RunResult, resume, run
from trpo_jax.runs.settings import RunSettings
from trpo_jax.runs.stopping import Interrupted, RunError
from trpo_jax.runs.throughput import measure_throughput

__all__ = [
    "CheckpointChoice",
    "Interrupted",
    "Logger",
    "RunError",
    "RunResult",
    "RunSettings",
    "connect_processes",
    "load_policy",
    "load_state",
    "measure_throughput",
    "resume",
    "run",
]
