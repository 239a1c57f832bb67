"""Trained policies in use: acting, evaluation, export."""

from trpo_jax.policies.acting import Actions, act, initial_memory
from trpo_jax.policies.evaluation import evaluate, format_evaluation, summarize_returns
from trpo_jax.policies.policy import LoadedPolicy, export_policy

__all__ = [
    "Actions",
    "LoadedPolicy",
    "act",
    "evaluate",
    "export_policy",
    "format_evaluation",
    "initial_memory",
    "summarize_returns",
]
