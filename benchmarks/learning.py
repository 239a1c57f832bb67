"""How well the presets learn: seeds trained side by side, then whole episodes.

    python -m benchmarks.learning                       # every preset
    python -m benchmarks.learning CartPole-v1 --num-seeds 4

One JSON line a preset goes to --output as it comes; the table is printed at the end.
"""

import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import time
from typing import Annotated

import jax
import numpy as np
import scipy.stats
import tyro

import trpo_jax
from trpo_jax.training import PRESETS

LIBRARIES = {
    name: importlib.metadata.version(name)
    for name in ("jax", "jaxlib", "flax", "optax", "gymnax")
}
RESULTS = pathlib.Path(__file__).parent / "results" / "learning.jsonl"


def measure(env: str, *, num_seeds: int, num_episodes: int) -> dict:
    """Train one preset and return its row of the table."""
    config = trpo_jax.preset(env, num_seeds=num_seeds)
    start = time.perf_counter()
    result = jax.block_until_ready(trpo_jax.train(config))
    wall = time.perf_counter() - start
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    returns = trpo_jax.evaluate(config, result.state, key, num_episodes)
    by_seed = np.asarray(returns).reshape(num_seeds, num_episodes).mean(axis=1)
    return {
        "env": env,
        "steps": config.total_timesteps,
        "mean": float(by_seed.mean()),
        "interval": interval(by_seed),
        "by_seed": [round(float(value), 2) for value in by_seed],
        "num_seeds": num_seeds,
        "num_episodes": num_episodes,
        "actions": "mode",
        "wall_seconds": round(wall, 1),
        "config": describe(config),
        "versions": {"trpo_jax": trpo_jax.__version__} | LIBRARIES,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
    }


def interval(values: np.ndarray) -> float:
    """Half the width of the 95 % confidence interval of the mean, Student's t."""
    if len(values) < 2:
        return float("nan")
    return float(scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values))


def describe(config: trpo_jax.TRPOConfig) -> dict:
    """The fields of a configuration as JSON can hold them."""
    fields = {
        field.name: getattr(config, field.name) for field in dataclasses.fields(config)
    }
    fields["hyperparameters"] = config.hyperparameters._asdict()
    return fields


def main(
    envs: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    /,
    num_seeds: int = 16,
    num_episodes: int = 128,
    output: pathlib.Path = RESULTS,
) -> None:
    """Measure the presets named, or all of them."""
    output.parent.mkdir(exist_ok=True)
    rows = []
    for env in envs or PRESETS:
        rows.append(measure(env, num_seeds=num_seeds, num_episodes=num_episodes))
        with output.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    print("| environment | steps | return (mean ± 95 %) | worst seed | seconds |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['env']} | {row['steps']:,} | {row['mean']:.1f} ± "
            f"{row['interval']:.1f} | {min(row['by_seed']):.1f} | "
            f"{row['wall_seconds']:.0f} |"
        )


if __name__ == "__main__":
    tyro.cli(main)
