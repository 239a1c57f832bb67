"""Trained policies in use: acting, evaluation, export."""

from trpo_jax.policies.acting import Actions, act, initial_memory
from trpo_jax.policies.evaluation import (
    Evaluation,
    evaluate,
    evaluate_with_costs,
    format_evaluation,
    summarize_returns,
)
from trpo_jax.policies.policy import LoadedPolicy, export_policy

__all__ = [
    "Actions",
    "Evaluation",
    "LoadedPolicy",
    "act",
    "evaluate",
    "evaluate_with_costs",
    "export_policy",
    "format_evaluation",
    "initial_memory",
    "summarize_returns",
]
