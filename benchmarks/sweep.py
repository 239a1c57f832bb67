"""Grid search over the traced hyperparameters, as one vmapped program.

    python -m benchmarks.sweep CartPole-v1 --max-kl 0.01 0.02 0.05 --gae-lambda 0.9 0.98

Each point is trained with the same seeds and evaluated over whole episodes. Options
that are left out have the preset's value; static fields are set for the whole grid by
`--override name=value`. One JSON line per point is added to --output as soon as its
seeds are trained, and the points are printed at the end, best first.
"""

import dataclasses
import itertools
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from numpy.typing import NDArray

import trpo_jax
from benchmarks.harness import RESULTS, append_row
from benchmarks.runs import command, configure, parse_overrides
from benchmarks.statistics import finite, summarize
from trpo_jax import Hyperparameters
from trpo_jax.runs.config_file import config_to_dict
from trpo_jax.training.seeds import run_keys


def grid(start: Hyperparameters, **values: Sequence[float]) -> list[Hyperparameters]:
    """Return all combinations of the values; fields without values keep `start`'s."""
    given = {name: choices for name, choices in values.items() if choices}
    combinations = itertools.product(*given.values())
    return [start._replace(**dict(zip(given, c, strict=True))) for c in combinations]


def sweep(
    config: trpo_jax.TRPOConfig,
    points: Sequence[Hyperparameters],
    *,
    num_seeds: int,
    num_episodes: int,
    runs_at_once: int | None = None,
) -> Iterator[tuple[Hyperparameters, NDArray, NDArray]]:
    """Train and evaluate each point with each seed, side by side.

    Args:
        config: Config of all points, with a single seed.
        points: The points of the grid.
        num_seeds: Runs of each point, with the keys that `train` uses for that many
            seeds.
        num_episodes: Evaluation episodes of each run.
        runs_at_once: Runs side by side, to bound memory. None: all.

    Yields:
        A point, its seeds' mean returns in evaluation, float[seeds], and in all
        training episodes, float[seeds], NaN where none ended.
    """

    def run(
        keys: tuple[jax.Array, jax.Array], hyperparameters: Hyperparameters
    ) -> tuple[jax.Array, jax.Array]:
        train_key, play_key = keys
        result = trpo_jax.train(config, train_key, hyperparameters=hyperparameters)
        played = trpo_jax.evaluate(config, result.state, play_key, num_episodes)
        counts = result.metrics.episode_count
        sums = jnp.where(counts > 0, result.metrics.episode_return * counts, 0)
        return played.mean(), sums.sum() / counts.sum(dtype=jnp.float32)

    total = len(points) * num_seeds
    at_once = min(runs_at_once or total, total)
    options = trpo_jax.compiler_options(at_once * config.total_timesteps)
    program = jax.jit(jax.vmap(run), compiler_options=options)
    key = jax.random.key(config.seed)
    of_seeds = dataclasses.replace(config, num_seeds=num_seeds)
    keys = [
        run_keys(of_seeds, k).reshape(num_seeds)
        for k in (key, jax.random.fold_in(key, 1))
    ]
    columns = Hyperparameters(*map(jnp.float32, zip(*points, strict=True)))
    returns, told = np.zeros((2, total)), 0
    for first in range(0, total, at_once):
        # Pad the last group with runs from the front, so that it needs no new program.
        runs = np.arange(first, first + at_once) % total
        chosen = jax.tree.map(lambda leaf, at=runs // num_seeds: leaf[at], columns)
        measured = program(tuple(k[runs % num_seeds] for k in keys), chosen)
        returns[:, runs] = jax.device_get(measured)
        complete = min(first + at_once, total) // num_seeds
        for index in range(told, complete):
            played, trained = returns[:, index * num_seeds : (index + 1) * num_seeds]
            yield points[index], played, trained
        told = complete


def main(
    env: tyro.conf.Positional[str],
    /,
    max_kl: tuple[float, ...] = (),
    damping: tuple[float, ...] = (),
    discount: tuple[float, ...] = (),
    gae_lambda: tuple[float, ...] = (),
    critic_learning_rate: tuple[float, ...] = (),
    entropy_coefficient: tuple[float, ...] = (),
    num_seeds: int = 4,
    num_episodes: int = 128,
    runs_at_once: int | None = None,
    override: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    output: pathlib.Path | None = None,
) -> list[dict[str, Any]]:
    """Sweep one environment.

    Args:
        env: The environment; without a preset the other fields are the defaults.
        max_kl: Values of δ.
        damping: Values of λ, the damping of the Fisher information.
        discount: Values of γ.
        gae_lambda: Values of λ, of the advantages.
        critic_learning_rate: Values of the critic's learning rate.
        entropy_coefficient: Values of the weight of the entropy.
        num_seeds: Runs of each point.
        num_episodes: Evaluation episodes of each run.
        runs_at_once: Runs side by side; fewer need less memory. None: all.
        override: Field to override, such as total_timesteps=50_000; repeat it for more.
        output: File that the rows are added to. None: results/sweeps/ENV.jsonl.
    """
    overrides = parse_overrides(override)
    config = configure(env, **overrides)
    values = {
        "max_kl": max_kl,
        "damping": damping,
        "discount": discount,
        "gae_lambda": gae_lambda,
        "critic_learning_rate": critic_learning_rate,
        "entropy_coefficient": entropy_coefficient,
    }
    if not any(values.values()):
        flags = ", ".join("--" + name.replace("_", "-") for name in values)
        raise ValueError(f"no values to sweep over; write some for one of {flags}.")
    points = grid(config.hyperparameters, **values)
    for point in points:
        configure(env, **overrides, **point._asdict())  # raises if it is out of range
    if output is None:
        output = RESULTS / "sweeps" / f"{env.replace('/', '-')}.jsonl"
    about = {
        "env": env,
        "steps": config.total_timesteps,
        "num_seeds": num_seeds,
        "num_episodes": num_episodes,
        "actions": "mode",
        "config": config_to_dict(config),
        "command": command(
            "benchmarks.sweep",
            env,
            **values,
            num_seeds=num_seeds,
            num_episodes=num_episodes,
            runs_at_once=runs_at_once,
            override=override,
        ),
    }
    start = time.perf_counter()
    rows = []
    for point, played, trained in sweep(
        config,
        points,
        num_seeds=num_seeds,
        num_episodes=num_episodes,
        runs_at_once=runs_at_once,
    ):
        row = {
            "hyperparameters": point._asdict(),
            **summarize(played),
            "training_return": finite(trained.mean()),
            "grid_seconds": round(time.perf_counter() - start, 1),
        }
        rows.append(append_row(output, about | row))
    swept = [name for name, choices in values.items() if len(choices) > 1]
    print(ranking(rows, swept))
    return rows


def ranking(rows: list[dict[str, Any]], swept: list[str]) -> str:
    """Format the points as a table, best mean return first, those without one last."""
    rows = sorted(rows, key=lambda row: (row["mean"] is None, -(row["mean"] or 0)))
    header = [*swept, "return (mean ± 95 %)", "IQM", "worst seed", "in training"]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        finite_returns = [value for value in row["by_seed"] if value is not None]
        lines.append(
            [
                *(f"{row['hyperparameters'][name]:g}" for name in swept),
                f"{row['mean']} ± {row['interval']}",
                str(row["iqm"]),
                str(min(finite_returns, default=None)),
                str(row["training_return"]),
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    tyro.cli(main)
