"""TRPO and PPO with and without the code-level optimisations of PPO.

    python -m benchmarks.implementation

The grid of Engstrom et al. 2020 (arXiv 2005.12729): two algorithms, TRPO and PPO, each
plain ("TRPO", "PPO-M") and with the optimisations ("TRPO+", "PPO"). All four share
rollout, sizes and a first-order critic; TRPO and PPO have the settings that
`benchmarks.relatives tune` found for each.
"""

import time
from typing import Any

import numpy as np
import tyro

from benchmarks.harness import RESULTS, append_row
from benchmarks.relatives import ENVS, task, train_and_evaluate, tuned
from benchmarks.runs import command
from benchmarks.statistics import finite, summarize

PLAIN = {
    "critic_fit": "first_order",
    "normalize_observations": False,
    "initialization": "xavier_uniform",
}
OPTIMIZED = {
    "critic_fit": "first_order",
    "normalize_observations": True,
    "initialization": "orthogonal",
    "scale_rewards": True,
    "critic_value_clipping": 0.2,
    "critic_max_gradient_norm": 0.5,
    "critic_learning_rate_schedule": "linear",
}
OPTIMIZED_PPO = OPTIMIZED | {
    "policy_max_gradient_norm": 0.5,
    "policy_learning_rate_schedule": "linear",
}

# Name in the paper ↦ update, fields.
GRID: dict[str, tuple[str, dict[str, Any]]] = {
    "TRPO": ("trpo", PLAIN),
    "TRPO+": ("trpo", OPTIMIZED),
    "PPO-M": ("ppo", PLAIN),
    "PPO": ("ppo", OPTIMIZED_PPO),
}


def compare(
    env: str, name: str, *, num_seeds: int, num_episodes: int
) -> dict[str, Any]:
    """Train with an evaluation after each update."""
    update, fields = GRID[name]
    config = task(
        env, update=update, num_seeds=num_seeds, **{**tuned(env, update), **fields}
    )
    start = time.perf_counter()
    metrics, returns = train_and_evaluate(config, num_episodes)
    means = returns.mean(axis=-1)  # [seeds, updates]
    last = max(1, config.num_updates // 10)
    return {
        "name": f"{env}, {name}",
        "env": env,
        "agent": name,
        "steps": config.total_timesteps,
        "num_seeds": num_seeds,
        "fields": tuned(env, update) | fields,
        "final": summarize(means[:, -last:].mean(axis=1)),
        "mean_over_training": summarize(means.mean(axis=1)),
        "kl_median": finite(np.median(np.asarray(metrics.update.kl))),
        "seconds": time.perf_counter() - start,
    }


def main(
    envs: tuple[str, ...] = ENVS, num_seeds: int = 16, num_episodes: int = 8
) -> None:
    """Measure, and add a row to a file for each environment and agent.

    Args:
        envs: Environments.
        num_seeds: Seeds of each agent.
        num_episodes: Episodes of each evaluation.
    """
    for env in envs:
        for name in GRID:
            counts = {"num_seeds": num_seeds, "num_episodes": num_episodes}
            row = compare(env, name, **counts)
            row["command"] = command("benchmarks.implementation", envs=(env,), **counts)
            append_row(RESULTS / "implementation.jsonl", row)
            print(row["name"], row["final"]["mean"], row["final"]["interval"])


if __name__ == "__main__":
    tyro.cli(main)
