"""What happens around a run: evaluation and progress."""

from trpo_jax.runs.evaluation import evaluate

__all__ = ["evaluate"]
