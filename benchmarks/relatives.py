"""TRPO beside its relatives and PPO: one rollout, one critic, other policy updates.

    python -m benchmarks.relatives                # all of the following
    python -m benchmarks.relatives tune           # the same budget of settings for each
    python -m benchmarks.relatives compare        # 16 seeds, each update evaluated
    python -m benchmarks.relatives sensitivity    # δ and ε over two decades

and for more tasks, shorter than their presets (brax with the extra):

    python -m benchmarks.relatives tune --envs Breakout-MinAtar --total-timesteps 200000

All updates of an environment share the sizes and normalisation of its preset, and all
fields but those in `SEARCHES`. These are tuned for TRPO and PPO by random search, with
the same number of settings, seeds and steps, and chosen by their return in the second
half of training; the relatives of each take over what was found for it.
"""

import dataclasses
import functools
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any, Literal, get_args

import jax
import numpy as np
import tyro
from numpy.typing import NDArray

import trpo_jax
from benchmarks.code_size import lines_of_code
from benchmarks.harness import (
    RESULTS,
    Timing,
    append_row,
    compile_program,
    read_rows,
    take_turns,
)
from benchmarks.random_policy import random_return
from benchmarks.runs import command
from benchmarks.statistics import finite, summarize
from trpo_jax import TRPOConfig, log_uniform, uniform
from trpo_jax.training import PRESETS
from trpo_jax.training.seeds import run_keys

ENVS = (
    "CartPole-v1",
    "Acrobot-v1",
    "Pendulum-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
)
TUNED = RESULTS / "relatives-tuned.jsonl"

# What belongs to the task: the same for all updates.
TASK_FIELDS = (
    "total_timesteps",
    "num_envs",
    "rollout_length",
    "channels",
    "hidden_sizes",
    "activation",
    "critic",
    "normalize_observations",
)

_SHARED = {
    "discount": [0.9, 0.95, 0.99, 0.995],
    "gae_lambda": uniform(0.9, 1.0),
    "entropy_coefficient": [0.0, 0.01],
}
SEARCHES: dict[str, dict[str, Any]] = {
    "trpo": {
        "max_kl": log_uniform(0.003, 0.1),
        "damping": log_uniform(0.01, 1.0),
        **_SHARED,
    },
    "ppo": {
        "clip_ratio": log_uniform(0.05, 0.5),
        "policy_learning_rate": log_uniform(1e-4, 1e-2),
        **_SHARED,
    },
}

# δ and learning rate that its field recommends, on the classic tasks.
PROJECTION = {"max_kl": 0.05, "policy_learning_rate": 3e-3}

# Whose tuned settings an update takes over.
TUNED_AS = {
    "trpo": "trpo",
    "tnpg": "trpo",
    "npg": "trpo",
    "projection": "ppo",
    "ppo": "ppo",
    "ppo_penalty": "ppo",
}


def task(env: str, **fields: Any) -> TRPOConfig:
    """Return the config of a task, with one of the updates and its fields."""
    preset = PRESETS.get(env, {})
    shared = {name: preset[name] for name in TASK_FIELDS if name in preset}
    return TRPOConfig(env=env, **{**shared, **fields})


def tune(
    env: str, update: str, *, num_settings: int, num_seeds: int, **fields: Any
) -> dict[str, Any]:
    """Return the row of a random search over the fields of one update."""
    config = task(env, update=update, **fields)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = trpo_jax.sweep(
            config,
            pathlib.Path(folder) / "sweep",
            num_settings=num_settings,
            num_seeds=num_seeds,
            num_episodes=32,
            progress=False,
            **SEARCHES[update],
        )
    # Over the second half of training: many evaluated policies, and no ties at the best
    # possible return, which a last evaluation has on CartPole.
    half = config.num_updates // 2
    scores = np.nanmean(result.episode_return[..., half:], axis=(1, 2))
    chosen = result.settings[int(np.nanargmax(scores))]
    best = {name: getattr(chosen, name) for name in SEARCHES[update]}
    return {
        "name": f"{env}, {update}",
        "env": env,
        "update": update,
        "settings": num_settings,
        "seeds": num_seeds,
        "steps": config.total_timesteps,
        "best": best,
        "best_score": finite(np.nanmax(scores)),
        "by_setting": [finite(v) for v in scores],
        "seconds": time.perf_counter() - start,
    }


def tuned(env: str, update: str) -> dict[str, Any]:
    """Return the fields that the search found, less those that the update refuses."""
    source = TUNED_AS[update]
    rows = [
        row for row in read_rows(TUNED) if (row["env"], row["update"]) == (env, source)
    ]
    if not rows:
        raise ValueError(
            f"{env} has not been tuned for {source}; run "
            f"python -m benchmarks.relatives tune --envs {env}"
        )
    best = dict(rows[-1]["best"])
    if update in ("ppo_penalty", "projection"):
        del best["clip_ratio"]
    if update == "projection" and env in ENVS:
        best |= PROJECTION
    return best


def compare(
    env: str, update: str, *, num_seeds: int, num_episodes: int, **fields: Any
) -> dict[str, Any]:
    """Train with an evaluation after each update, and describe all updates."""
    fields |= tuned(env, update)
    config = task(env, update=update, num_seeds=num_seeds, **fields)
    metrics, returns = train_and_evaluate(config, num_episodes)
    means = returns.mean(axis=-1)  # [seeds, updates]
    info = metrics.update
    kl = np.asarray(info.kl)
    last = max(1, config.num_updates // 10)
    return {
        "name": f"{env}, {update}",
        "env": env,
        "update": update,
        "steps": config.total_timesteps,
        "num_seeds": num_seeds,
        "num_episodes": num_episodes,
        "fields": tuned(env, update),
        "final": summarize(means[:, -last:].mean(axis=1)),
        "mean_over_training": summarize(means.mean(axis=1)),
        "curve": [finite(v) for v in means.mean(axis=0)],
        "kl_median": finite(np.median(kl)),
        "kl_95": finite(np.quantile(kl, 0.95)),
        "kl_largest": finite(kl.max()),
        "kl_max_over_states": finite(np.median(np.asarray(info.kl_max))),
        "share_above_radius": finite((kl > 1.001 * np.asarray(metrics.max_kl)).mean()),
        "gain_over_error": finite(
            np.median(
                np.asarray(info.surrogate_after - info.surrogate_before)
                / np.maximum(np.asarray(info.surrogate_standard_error), 1e-12)
            )
        ),
        **harm(returns),
        "seed_deviation": finite(means[:, -last:].mean(axis=1).std(ddof=1)),
        "lines_of_code": lines_of_code(update),
    }


def train_and_evaluate(
    config: TRPOConfig, num_episodes: int
) -> tuple[trpo_jax.Metrics, NDArray]:
    """Return the metrics [seeds, updates], and returns [seeds, updates, episodes].

    Every policy plays greedily from the same states: the same key each time.
    """
    single = dataclasses.replace(config, num_seeds=1, devices=1)
    play_key = jax.random.key(config.seed + 1)

    def one(key: jax.Array) -> Any:
        def update(state: Any, _: None) -> Any:
            state, metrics = trpo_jax.step(single, state)
            played = trpo_jax.evaluate(single, state, play_key, num_episodes)
            return state, (metrics, played)

        state = trpo_jax.init(single, key)
        return jax.lax.scan(update, state, None, config.num_updates)[1]

    metrics, returns = jax.jit(jax.vmap(one))(run_keys(config))
    return jax.tree.map(np.asarray, metrics), np.asarray(returns)


def harm(returns: NDArray) -> dict[str, Any]:
    """Describe how often, and how far, an update lowered the evaluated return.

    An update is harmful if the return fell by more than two standard errors of the
    difference, over episodes that start in the same states. The first update is not
    counted: nothing was evaluated before it. Sizes are shares of the range that the
    mean return has in training.

    Args:
        returns: float[seeds, updates, episodes].
    """
    change = np.diff(returns, axis=1)
    error = change.std(axis=-1, ddof=1) / np.sqrt(change.shape[-1])
    mean = change.mean(axis=-1)
    span = np.ptp(returns.mean(axis=(0, 2))) or 1.0
    harmful = mean < -2 * error - 1e-9
    # A policy that has hardly begun may stand still, and fall when it first moves.
    begun = max(1, returns.shape[1] // 10)
    return {
        "harmful": finite(harmful.mean()),
        "harmful_size": finite(np.median(-mean[harmful]) / span),
        "helpful": finite((mean > 2 * error + 1e-9).mean()),
        "worst_drop": finite(np.median(-mean.min(axis=1)) / span),
        "worst_later_drop": finite(np.median(-mean[:, begun:].min(axis=1)) / span),
    }


def times(env: str, updates: tuple[str, ...]) -> dict[str, Timing]:
    """Return the seconds of one step with each update, in turns."""
    programs = {}
    for update in updates:
        config = task(env, update=update, **tuned(env, update))
        state = jax.jit(trpo_jax.init)(config, jax.random.key(0))
        step = functools.partial(trpo_jax.step, config)
        programs[update] = compile_program(step, state)
    return take_turns(programs, seconds=5.0, repeats=20)


def sensitivity(
    env: str,
    update: Literal["trpo", "ppo"],
    *,
    num_seeds: int,
    points: int,
    **task_fields: Any,
) -> dict[str, Any]:
    """Return the returns over two decades of the update's own radius."""
    name, low, high = {"trpo": ("max_kl", -3, -1), "ppo": ("clip_ratio", -2, 0)}[update]
    values = [float(f"{v:.4g}") for v in np.logspace(low, high, points)]
    fields = {k: v for k, v in tuned(env, update).items() if k != name}
    config = task(env, update=update, **task_fields, **fields)
    with tempfile.TemporaryDirectory() as folder:
        result = trpo_jax.sweep(
            config,
            pathlib.Path(folder) / "sweep",
            num_seeds=num_seeds,
            num_episodes=32,
            progress=False,
            **{name: values},
        )
    by_seed = np.asarray(result.returns)
    return {
        "name": f"{env}, {name}",
        "env": env,
        "update": update,
        "field": name,
        "values": values,
        "steps": config.total_timesteps,
        "num_seeds": num_seeds,
        "random_return": random_return(config, 128),
        "returns": [summarize(row) for row in by_seed],
    }


Part = Literal["tune", "compare", "sensitivity"]


def rows(
    what: Part,
    envs: tuple[str, ...],
    updates: tuple[str, ...],
    num_seeds: int,
    num_settings: int,
    num_episodes: int,
    **fields: Any,
) -> Iterator[tuple[pathlib.Path, dict[str, Any]]]:
    """Yield each row with the file that it belongs to."""
    for env in envs:
        if what == "compare":
            seconds = times(env, updates)
        for update in updates:
            if what == "compare":
                counts = {"num_seeds": num_seeds, "num_episodes": num_episodes}
                row = compare(env, update, **counts, **fields)
                row["step_seconds"] = dataclasses.asdict(seconds[update])
                yield RESULTS / "relatives.jsonl", row
            elif update not in SEARCHES:
                continue
            elif what == "tune":
                counts = {"num_settings": num_settings, "num_seeds": min(num_seeds, 3)}
                yield TUNED, tune(env, update, **counts, **fields)
            else:
                counts = {"num_seeds": min(num_seeds, 8), "points": 9}
                row = sensitivity(env, update, **counts, **fields)
                yield RESULTS / "relatives-sensitivity.jsonl", row


def main(
    what: tyro.conf.Positional[Part | Literal["all"]] = "all",
    /,
    envs: tuple[str, ...] = ENVS,
    updates: tuple[str, ...] = tuple(TUNED_AS),
    num_seeds: int = 16,
    num_settings: int = 32,
    num_episodes: int = 8,
    total_timesteps: int | None = None,
) -> None:
    """Measure, and add a row to a file for each environment and update.

    Args:
        what: Part of the comparison, by default all in this order.
        envs: Environments.
        updates: Policy updates, see `TRPOConfig.update`.
        num_seeds: Seeds of each; at most 3 in `tune` and 8 in `sensitivity`.
        num_settings: Settings of each random search, in `tune`.
        num_episodes: Episodes of each evaluation, in `compare`.
        total_timesteps: Steps of training; those of the preset if None.
    """
    counts = {
        "num_seeds": num_seeds,
        "num_settings": num_settings,
        "num_episodes": num_episodes,
    }
    fields = {} if total_timesteps is None else {"total_timesteps": total_timesteps}
    for part in get_args(Part) if what == "all" else (what,):
        for path, row in rows(part, envs, updates, **counts, **fields):
            row["command"] = command(
                "benchmarks.relatives",
                part,
                envs=(row["env"],),
                updates=(row["update"],),
                **counts,
                **fields,
            )
            append_row(path, row)
            brief = {k: v for k, v in row.items() if k not in ("curve", "by_setting")}
            print(brief, flush=True)


if __name__ == "__main__":
    tyro.cli(main)
