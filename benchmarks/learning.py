"""How well the presets learn: seeds trained side by side, then whole episodes.

    python -m benchmarks.learning                       # the whole table
    python -m benchmarks.learning CartPole-v1 --num-seeds 4
    python -m benchmarks.learning Breakout-MinAtar --override total_timesteps=1_024_000

A JSON line a row is added to --output, and its learning curve is written to
`curves/` beside it. While the run goes on, the curve so far is there as
`*.partial.json`.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from numpy.typing import ArrayLike, NDArray

import trpo_jax
from benchmarks import curves
from benchmarks.cases import Actions, Case, cases_of
from benchmarks.harness import RESULTS, append_row
from benchmarks.random_policy import random_return
from benchmarks.references import REFERENCES, Reference
from benchmarks.runs import command, configure, describe, parse_overrides, seed_keys
from benchmarks.statistics import finite, summarize
from trpo_jax.training import PRESETS

PROGRESS_SECONDS = 30.0


def name_of(config: trpo_jax.TRPOConfig, actions: Actions) -> str:
    """What tells rows of one environment apart: a memory, actions that are drawn, and
    every other field that is not the preset's.

    Steps and seeds do not: a row of others takes the place of the one before.
    """
    usual, fields = map(describe, (configure(config.env), config))
    if not config.memory_size:  # which the missing word tells
        usual["memory_size"] = 0
    others = [
        f"{field}={value}"
        for field, value in fields.items()
        if value != usual[field] and field not in ("total_timesteps", "num_seeds")
    ]
    memory = ["GRU"] if config.memory_size else []
    drawn = ["actions drawn"] if actions == "sample" else []
    return ", ".join([config.env, *memory, *drawn, *others])


def measure(
    config: trpo_jax.TRPOConfig,
    *,
    num_episodes: int,
    seeds_at_once: int,
    output: pathlib.Path,
    actions: Actions = "mode",
) -> dict[str, Any]:
    """Train `config.num_seeds` seeds, in groups one after the other, and evaluate.

    How they are grouped changes results by rounding only.

    Returns:
        The row; the curve lies beside `output`.
    """
    name = name_of(config, actions)
    curve_path = curves.path_of(output, name)
    key = jax.random.key(config.seed)
    train_keys = seed_keys(key, config.num_seeds)
    play_keys = seed_keys(jax.random.fold_in(key, 1), config.num_seeds)
    curve = curves.Curve.empty(config.num_seeds, config.num_updates, config.batch_size)
    partial = curve_path.with_suffix(".partial.json")
    about = {"env": config.env, "config": describe(config)}
    returns, seconds = [], 0.0
    for first in range(0, config.num_seeds, seeds_at_once):
        seeds = slice(first, min(first + seeds_at_once, config.num_seeds))
        progress = Progress(
            config, curve, seeds, lambda: curves.write(curve, partial, **about)
        )
        start = time.perf_counter()
        state = train_group(config, train_keys[seeds], progress)
        seconds += time.perf_counter() - start
        play = functools.partial(evaluate_group, config, actions=actions)
        returns.append(play(state, play_keys[seeds], num_episodes))
    curves.write(curve, curve_path, **about)
    partial.unlink(missing_ok=True)
    by_seed = np.concatenate(returns).mean(axis=1)
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
        "config": describe(config),
    }


def train_group(
    config: trpo_jax.TRPOConfig,
    keys: jax.Array,
    watch: Callable[[int, NDArray, NDArray], None],
) -> trpo_jax.TrainState:
    """Train one seed for each key, side by side, under the eyes of the host.

    Args:
        config: The run.
        keys: [seeds]; consumed.
        watch: Called with each update, counted from 0, and what it measured: the mean
            return of the episodes that ended, float[seeds], and how many did.

    Returns:
        The last state; its leaves have a leading axis [seeds] unless there is but one.
    """
    start, advance = _programs(len(keys) > 1, len(keys) * config.total_timesteps)
    state = start(config, keys if len(keys) > 1 else keys[0])
    for update in range(config.num_updates):
        state, metrics = advance(config, state)
        measured = jax.device_get((metrics.episode_return, metrics.episode_count))
        watch(update, *map(np.atleast_1d, measured))
    return state


@functools.cache
def _programs(side_by_side: bool, env_steps: int) -> tuple[Callable, Callable]:
    """`init` and `step`, compiled once for all groups of a size.

    One seed goes without `vmap`, under which both sides of a condition are computed.
    """
    start: Callable = trpo_jax.init
    advance: Callable = trpo_jax.step
    if side_by_side:
        start, advance = (jax.vmap(fn, in_axes=(None, 0)) for fn in (start, advance))
    return (
        jax.jit(start, compiler_options=trpo_jax.compiler_options(env_steps=0)),
        jax.jit(
            advance,
            donate_argnums=1,
            compiler_options=trpo_jax.compiler_options(env_steps),
        ),
    )


def evaluate_group(
    config: trpo_jax.TRPOConfig,
    state: trpo_jax.TrainState,
    keys: jax.Array,
    num_episodes: int,
    *,
    actions: Actions,
) -> NDArray:
    """The returns of whole episodes, float[seeds, episodes], for a key [seeds] each."""
    single = dataclasses.replace(config, num_seeds=1)

    def play(state: trpo_jax.TrainState, key: jax.Array) -> jax.Array:
        return trpo_jax.evaluate(single, state, key, num_episodes, actions=actions)

    if len(keys) == 1:
        return np.asarray(play(state, keys[0]))[None]
    options = trpo_jax.compiler_options(num_episodes)
    return np.asarray(jax.jit(jax.vmap(play), compiler_options=options)(state, keys))


class Progress:
    """Keeps the curve of a group of seeds; every half a minute says where it stands.

    Args:
        config: The run.
        curve: Where what is measured goes.
        seeds: The group.
        save: Called whenever a line is printed.
    """

    def __init__(
        self,
        config: trpo_jax.TRPOConfig,
        curve: curves.Curve,
        seeds: slice,
        save: Callable[[], None],
    ):
        self._config, self._curve, self._seeds, self._save = config, curve, seeds, save
        self._last_time, self._last_steps = 0.0, 0

    def __call__(self, update: int, returns: ArrayLike, counts: ArrayLike) -> None:
        self._curve.record(self._seeds, update, returns, counts)
        now = time.perf_counter()
        config, seeds = self._config, self._seeds
        steps = (update + 1) * config.batch_size
        if update == 0:  # whose time is compilation
            self._last_time, self._last_steps = now, steps
            return
        if now - self._last_time < PROGRESS_SECONDS:
            return
        speed = (
            (seeds.stop - seeds.start)
            * (steps - self._last_steps)
            / (now - self._last_time)
        )
        print(
            f"{config.env} seeds {seeds.start}–{seeds.stop - 1} of {config.num_seeds}: "
            f"{steps:,} of {config.total_timesteps:,} steps, return "
            f"{self._curve.last_mean(seeds, update):.4g}, {speed:,.0f} steps/s",
            flush=True,
        )
        self._save()
        self._last_time, self._last_steps = now, steps


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
    """Measure the presets of the environments named, or of all of gymnax's.

    What is left out is as the table has it (`benchmarks/cases.py`).

    Args:
        envs: Environments, by default gymnax's; one without a preset is trained with
            the defaults.
        num_seeds: Independent runs of each.
        num_episodes: Episodes that each is evaluated over.
        seeds_at_once: Train so many side by side, the others after them.
        actions: The most probable ones when evaluated, or such as the policy draws.
        override: A field of the configuration set otherwise, as total_timesteps=50_000;
            one row an environment then, not those beside it.
        output: Where the rows are added; their curves go to `curves/` beside it.
    """
    given = {
        "num_seeds": num_seeds,
        "num_episodes": num_episodes,
        "seeds_at_once": seeds_at_once,
        "actions": actions,
    }
    if not envs:
        envs, missing = available()
        print("".join(f"{env} is left out: {why}\n" for env, why in missing.items()))
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
    """Return gymnax's environments with a preset, and those not to be had, with why."""
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
    """Return the rows to be measured; ValueError or TypeError for what cannot be.

    Args:
        envs: The environments.
        override: Of the first row of each; there are no others then.
        given: Fields of all cases, None where they have their own.
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
