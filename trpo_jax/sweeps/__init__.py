"""Recorded sweeps: settings × seeds side by side, their results and their search."""

from trpo_jax.sweeps.ask_tell import ask_and_tell
from trpo_jax.sweeps.result import SweepResult
from trpo_jax.sweeps.runner import load_sweep, resume_sweep, sweep

__all__ = ["SweepResult", "ask_and_tell", "load_sweep", "resume_sweep", "sweep"]
