"""Folders of runs, written by hand."""

import json

import numpy as np
from tiny import write_lines

METRICS = {
    "kl": 0.008,
    "kl_95": 0.02,
    "kl_max": 0.04,
    "share_beyond": 0.3,
    "kl_ratio": 0.9,
    "improvement_ratio": 0.8,
    "signal_to_noise": 3.0,
    "max_kl": 0.01,
    "improvement_bound": -300.0,
    "mean_kl_improvement_bound": -4.0,
    "cg_relative_residual": 1e-4,
    "accepted_fraction": 0.5,
    "entropy": 0.6,
    "explained_variance": -3.0,
    "critic_loss": 0.2,
}


def line(update, returns=(20.0,), **metrics):
    """One line of metrics: of a single seed, or of as many as there are returns."""
    seen = [value for value in returns if value is not None]
    fields = {"update": update, "env_steps": 1000 * update} | METRICS | metrics
    fields["episode_return"] = float(np.mean(seen)) if seen else None
    if len(returns) > 1:
        fields |= {f"{name}_std": 0.1 for name in METRICS}
        fields["episode_return_by_seed"] = list(returns)
    return fields


def write_run(folder, lines, torn="", **config):
    folder.mkdir(parents=True)
    config = {"env": "CartPole-v1", "num_seeds": 1} | config
    (folder / "config.json").write_text(json.dumps(config))
    write_lines(folder / "metrics.jsonl", lines, torn)
    return folder
