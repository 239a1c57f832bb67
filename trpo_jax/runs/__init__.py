"""Recorded runs and sweeps: progress, records, checkpoints and evaluation."""

from trpo_jax.runs.ask_tell import ask_and_tell
from trpo_jax.runs.loading import CheckpointChoice, load_policy, load_state
from trpo_jax.runs.loggers import Logger
from trpo_jax.runs.processes import connect_processes
from trpo_jax.runs.runner import RunResult, resume, run
from trpo_jax.runs.settings import RunSettings
from trpo_jax.runs.stopping import Interrupted, RunError
from trpo_jax.runs.sweep_result import SweepResult
from trpo_jax.runs.sweeps import load_sweep, resume_sweep, sweep
from trpo_jax.runs.throughput import measure_throughput

__all__ = [
    "CheckpointChoice",
    "Interrupted",
    "Logger",
    "RunError",
    "RunResult",
    "RunSettings",
    "SweepResult",
    "ask_and_tell",
    "connect_processes",
    "load_policy",
    "load_state",
    "load_sweep",
    "measure_throughput",
    "resume",
    "resume_sweep",
    "run",
    "sweep",
]
