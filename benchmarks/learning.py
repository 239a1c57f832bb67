"""Returns that the presets reach: train several seeds, then evaluate them.

    python -m benchmarks.learning                       # all rows
    python -m benchmarks.learning CartPole-v1 --num-seeds 4
    python -m benchmarks.learning Breakout-MinAtar --override total_timesteps=1_024_000

One JSON line per row is added to --output, and the learning curve is written to
`curves/` beside it.
"""

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from numpy.typing import NDArray

import trpo_jax
from benchmarks import curves
from benchmarks.cases import Case, cases_of
from benchmarks.harness import RESULTS, append_row
from benchmarks.random_policy import random_return
from benchmarks.references import REFERENCES, Reference
from benchmarks.runs import command, configure, parse_overrides
from benchmarks.statistics import finite, summarize
from trpo_jax.policies import Actions
from trpo_jax.runs.chunks import compile_programs, run_chunks
from trpo_jax.runs.config_file import config_to_dict
from trpo_jax.runs.console import Watcher
from trpo_jax.training import PRESETS
from trpo_jax.training.seeds import run_keys


def name_of(config: trpo_jax.TRPOConfig, actions: Actions) -> str:
    """Name a row: environment, memory, sampled actions, fields that differ from the
    preset's.

    Steps and seeds are not part of the name: a new row replaces the one before it.
    """
    # These decide which other fields there are.
    chosen = {"update": config.update, "critic_fit": config.critic_fit}
    preset, usual, fields = map(
        config_to_dict, (configure(config.env), configure(config.env, **chosen), config)
    )
    usual |= {name: preset[name] for name in chosen}
    usual["memory"] = config.memory  # shown as "GRU" or "LRU", or by neither
    if not config.memory_size:
        usual["memory_size"] = 0
    others = [
        f"{field}={value}"
        for field, value in fields.items()
        if value != usual[field] and field not in ("total_timesteps", "num_seeds")
    ]
    memory = [config.memory.upper()] if config.memory_size else []
    drawn = ["sampled actions"] if actions == "sample" else []
    return ", ".join([config.env, *memory, *drawn, *others])


def measure(
    config: trpo_jax.TRPOConfig,
    *,
    num_episodes: int,
    seeds_at_once: int,
    output: pathlib.Path,
    actions: Actions = "mode",
) -> dict[str, Any]:
    """Train `config.num_seeds` seeds, in groups one after the other, and evaluate them.

    The grouping changes results by rounding only.

    Returns:
        The row; its curve is written beside `output`.
    """
    name = name_of(config, actions)
    # One key for each seed, also where there is one seed.
    keys = run_keys(config).reshape(config.num_seeds)
    groups = []
    start = time.perf_counter()
    for first in range(0, config.num_seeds, seeds_at_once):
        group = keys[first : first + seeds_at_once]
        last = first + len(group) - 1
        print(f"{name}: seeds {first}–{last} of {config.num_seeds}", flush=True)
        groups.append(train_group(config, group))
    seconds = time.perf_counter() - start
    states, returns, counts = zip(*groups, strict=True)
    steps, means = curves.binned(
        np.concatenate(returns, axis=1),
        np.concatenate(counts, axis=1),
        config.batch_size,
    )
    about = {"env": config.env, "config": config_to_dict(config)}
    curves.write(curves.path_of(output, name), steps, means, **about)
    state = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *states)
    if config.num_seeds == 1:
        state = jax.tree.map(lambda leaf: leaf[0], state)
    play_key = jax.random.fold_in(jax.random.key(config.seed), 1)
    played = trpo_jax.evaluate(config, state, play_key, num_episodes, actions=actions)
    by_seed = np.atleast_2d(played).mean(axis=1)
    reference = REFERENCES.get(config.env, Reference())
    return {
        "name": name,
        "env": config.env,
        "steps": config.total_timesteps,
        **summarize(by_seed),
        "random_return": finite(random_return(config, num_episodes)),
        "target": reference.target,
        "published": reference.published,
        "published_by": reference.source,
        "num_seeds": config.num_seeds,
        "seeds_at_once": seeds_at_once,
        "num_episodes": num_episodes,
        "actions": actions,
        "wall_seconds": round(seconds, 1),
        "config": config_to_dict(config),
    }


def train_group(
    config: trpo_jax.TRPOConfig, keys: jax.Array
) -> tuple[trpo_jax.TrainState, NDArray, NDArray]:
    """Train one seed for each key, side by side, with progress on the console.

    Args:
        config: The run; its number of seeds is that of the keys.
        keys: [seeds]; consumed.

    Returns:
        The last state, its leaves [seeds, …]; and of each update the mean return of the
        episodes that ended, float[updates, seeds], and how many did, int[updates,
        seeds].
    """
    # A single seed is trained without `vmap`, under which both branches of a condition
    # are computed.
    single = len(keys) == 1
    config = dataclasses.replace(config, num_seeds=len(keys))
    programs = compile_programs(config)
    state = programs.init(keys[0] if single else keys)
    returns, counts = [], []
    with Watcher(config) as watcher:
        for chunk in run_chunks(programs, state, first=0, last=config.num_updates):
            watcher.watch(chunk)
            returns.append(chunk.metrics.episode_return.reshape(-1, len(keys)))
            counts.append(chunk.metrics.episode_count.reshape(-1, len(keys)))
    state = chunk.state
    if single:
        state = jax.tree.map(lambda leaf: leaf[None], state)
    return state, np.concatenate(returns), np.concatenate(counts)


def main(
    envs: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    /,
    num_seeds: int | None = None,
    num_episodes: int | None = None,
    seeds_at_once: int | None = None,
    actions: Actions | None = None,
    override: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    output: pathlib.Path = RESULTS / "learning.jsonl",
) -> None:
    """Measure the presets of the given environments, by default of all of gymnax's.

    Options that are left out are those of the table (`benchmarks/cases.py`).

    Args:
        envs: Environments, by default gymnax's; one without a preset is trained with
            the default config.
        num_seeds: Independent runs of each environment.
        num_episodes: Evaluation episodes of each seed.
        seeds_at_once: Seeds trained side by side, the others after them.
        actions: Greedy actions in evaluation (mode), or sampled ones.
        override: Field to override, such as total_timesteps=50_000; repeat it for
            more. Only the first row of each environment is measured then.
        output: File that the rows are added to; curves go to `curves/` beside it.
    """
    given = {
        "num_seeds": num_seeds,
        "num_episodes": num_episodes,
        "seeds_at_once": seeds_at_once,
        "actions": actions,
    }
    if not envs:
        envs, missing = available()
        print("".join(f"skipping {env}: {why}\n" for env, why in missing.items()))
    rows = planned(envs, override, given)
    print(
        "| environment | steps | return (mean ± 95 %) | worst seed | random | seconds |"
    )
    print("|---|---|---|---|---|---|")
    for config, case in rows:
        row = measure(
            config,
            num_episodes=case.num_episodes,
            seeds_at_once=case.seeds_at_once,
            output=output,
            actions=case.actions,
        )
        row["command"] = command("benchmarks.learning", config.env, **case._asdict())
        append_row(output, row)
        print(
            f"| {row['name']} | {row['steps']:,} | {row['mean']} ± {row['interval']} | "
            f"{min(row['by_seed'])} | {row['random_return']} | {row['wall_seconds']} |",
            flush=True,
        )


def available() -> tuple[tuple[str, ...], dict[str, ValueError]]:
    """Return the gymnax environments with a preset, and those that cannot be made."""
    missing = {}
    shipped = [env for env in PRESETS if "/" not in env]
    for env in shipped:
        try:
            trpo_jax.environments.make_environment(env)
        except ValueError as error:
            missing[env] = error
    return tuple(env for env in shipped if env not in missing), missing


def planned(
    envs: Sequence[str], override: tuple[str, ...], given: dict[str, Any]
) -> list[tuple[trpo_jax.TRPOConfig, Case]]:
    """Return the rows to measure; ValueError or TypeError if one cannot be.

    Args:
        envs: The environments.
        override: Overrides of the first row of each environment; the others are
            skipped if there are any.
        given: Fields of `Case` for all rows; None keeps a row's own.
    """
    given = {name: value for name, value in given.items() if value is not None}
    overrides = parse_overrides(override)
    arguments = {"env": "ENV before the options", "num_seeds": "--num-seeds N"}
    for name in overrides.keys() & arguments:
        raise ValueError(f"{name} is an argument of its own; write {arguments[name]}.")
    for name in ("num_seeds", "num_episodes", "seeds_at_once"):
        if given.get(name, 1) < 1:
            raise ValueError(f"{name}={given[name]} is not positive; write at least 1.")
    rows = []
    for env in envs:
        trpo_jax.environments.make_environment(env)
        cases = cases_of(env)
        for case in cases[:1] if override else cases:
            case = case._replace(**given, override=(*case.override, *override))
            at_once = min(case.seeds_at_once or case.num_seeds, case.num_seeds)
            case = case._replace(seeds_at_once=at_once)
            fields = {"num_seeds": case.num_seeds} | parse_overrides(case.override)
            rows.append((configure(env, **fields), case))
    return rows


if __name__ == "__main__":
    tyro.cli(main)
