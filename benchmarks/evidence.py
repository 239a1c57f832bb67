"""How much of the trust region the updates of a preset use, and what that costs.

    python -m benchmarks.evidence CartPole-v1 Breakout-MinAtar --override num_seeds=8

A run is trained twice, with other seeds: the first training compiles, the second is
timed. The evidence is that of the second.
"""

import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tyro

import trpo_jax
from benchmarks.harness import RESULTS, append_row
from benchmarks.runs import command, configure, parse_overrides
from benchmarks.statistics import finite, summarize
from trpo_jax import TrainResult, UpdateStatus

ENVS = (
    "CartPole-v1",
    "Acrobot-v1",
    "Pendulum-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
)


def describe(result: TrainResult) -> dict[str, Any]:
    """Summarise the updates of a result with several seeds."""
    metrics, update = result.metrics, result.metrics.update
    accepted = np.asarray(update.status) == UpdateStatus.ACCEPTED
    share_of_radius = (np.asarray(update.kl) / np.asarray(metrics.max_kl))[accepted]
    last = -max(1, result.config.num_updates // 10)
    returns = np.asarray(metrics.episode_return_sum)[:, last:].sum(axis=1)
    episodes = np.asarray(metrics.episode_count)[:, last:].sum(axis=1)
    return {
        "accepted": finite(accepted.mean()),
        "near_boundary": finite((share_of_radius >= 0.8).mean()),
        "median_share_of_radius": finite(np.median(share_of_radius)),
        "evaluations": finite(np.mean(update.evaluations)),
        "products": finite(np.mean(update.cg_iterations)),
        "relative_residual": finite(np.median(update.cg_relative_residual)),
        "critic_relative_residual": finite(
            np.median(metrics.critic_cg_relative_residual)
        ),
        "last_tenth": summarize(returns / np.maximum(episodes, 1)),
    }


def measure(
    envs: tuple[str, ...], override: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """Yield one row for each environment."""
    for env in envs:
        config = configure(env, **{"num_seeds": 8} | parse_overrides(override))
        for seed in (config.seed, config.seed + 1):
            start = time.perf_counter()
            result = trpo_jax.train(config, jax.random.key(seed))
            jax.block_until_ready(result)
            seconds = time.perf_counter() - start
        yield {
            "name": ", ".join((env, *override)),
            "env": env,
            "steps": config.total_timesteps,
            "seconds": seconds,
            **describe(result),
            "command": command("benchmarks.evidence", env, override=override),
        }


def main(
    envs: tyro.conf.Positional[tuple[str, ...]] = ENVS,
    override: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    output: pathlib.Path = RESULTS / "evidence.jsonl",
) -> None:
    """Measure and record the evidence of the updates.

    Args:
        envs: Environments.
        override: Fields that differ from the preset, as `name=value`.
        output: File that a line is added to for each environment.
    """
    for row in measure(envs, override):
        append_row(output, row)
        print(
            f"{row['name']}: {row['near_boundary']:.0%} near δ, "
            f"{row['evaluations']:.2f} evaluations, {row['products']:.1f} products, "
            f"residual {row['relative_residual']:.3f}, last tenth "
            f"{row['last_tenth']['mean']:.2f} ± {row['last_tenth']['interval']:.2f}, "
            f"{row['seconds']:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    tyro.cli(main)
