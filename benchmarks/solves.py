"""Operators, preconditioners, and adaptive damping and radius, beside the preset.

    python -m benchmarks.solves                          # one option at a time
    python -m benchmarks.solves CartPole-v1 --combine    # every combination

Every option is trained from the same seeds and evaluated with greedy actions. The steps
of an environment's options take turns.
"""

import dataclasses
import functools
import itertools
import pathlib
from typing import Annotated, Any

import jax
import numpy as np
import tyro

import trpo_jax
from benchmarks.harness import RESULTS, Timing, append_row, compile_program, take_turns
from benchmarks.runs import command, configure, parse_overrides
from benchmarks.statistics import finite, summarize

ENVS = (
    "CartPole-v1",
    "Acrobot-v1",
    "Pendulum-v1",
    "Breakout-MinAtar",
    "SpaceInvaders-MinAtar",
)
GROUPS = 32

# By the part of an update, and the name of an option: the fields that it sets.
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "operator": {
        name: {"fisher_operator": name}
        for name in ("gauss_newton", "kl_hessian", "empirical")
    },
    "preconditioner": {
        "none": {"preconditioner_groups": 0},
        **{
            name: {"preconditioner_groups": GROUPS, "preconditioner": name}
            for name in ("score", "diagonal", "kronecker")
        },
    },
    "adaptive": {
        "none": {},
        "damping": {"damping_schedule": "adaptive"},
        "radius": {"max_kl_schedule": "adaptive"},
        "both": {"damping_schedule": "adaptive", "max_kl_schedule": "adaptive"},
    },
}


def combinations(*, combine: bool) -> list[dict[str, str]]:
    """Return options by part: all of them, or those that differ in one part at most."""
    first = [next(iter(options)) for options in OPTIONS.values()]
    return [
        dict(zip(OPTIONS, names, strict=True))
        for names in itertools.product(*OPTIONS.values())
        if combine or sum(a != b for a, b in zip(names, first, strict=True)) <= 1
    ]


def config_of(env: str, options: dict[str, str], **fields: Any) -> trpo_jax.TRPOConfig:
    """Return the preset of an environment with the options of each part."""
    chosen = [OPTIONS[part][name] for part, name in options.items()]
    return configure(env, **{k: v for one in chosen for k, v in one.items()}, **fields)


def measure(config: trpo_jax.TRPOConfig, *, num_episodes: int) -> dict[str, Any]:
    """Train and evaluate `config.num_seeds` seeds, and describe their solves."""
    state, metrics, _ = trpo_jax.train(config)
    play_key = jax.random.fold_in(jax.random.key(config.seed), 1)
    played = trpo_jax.evaluate(config, state, play_key, num_episodes)
    info = jax.tree.map(np.asarray, metrics.update)
    ends = max(1, config.num_updates // 10)
    return {
        **summarize(np.atleast_2d(played).mean(axis=1)),
        "products": finite(info.cg_iterations.mean()),
        "relative_residual": finite(np.median(info.cg_relative_residual)),
        "accepted": finite((info.accepted_fraction > 0).mean()),
        "last_max_kl": finite(np.median(metrics.max_kl[..., -ends:])),
        "last_damping": finite(np.median(metrics.damping[..., -ends:])),
    }


def times(configs: list[trpo_jax.TRPOConfig], seconds: float) -> list[Timing]:
    """Return the seconds of one step of each config, in turns."""
    programs = {}
    for number, config in enumerate(configs):
        single = dataclasses.replace(config, num_seeds=1, devices=1)
        state = jax.jit(trpo_jax.init)(single, jax.random.key(0))
        step = functools.partial(trpo_jax.step, single)
        programs[str(number)] = compile_program(step, state)
    return list(take_turns(programs, seconds=seconds).values())


def main(
    envs: Annotated[tuple[str, ...], tyro.conf.Positional] = ENVS,
    /,
    num_seeds: int = 8,
    num_episodes: int = 32,
    seconds: float = 20.0,
    combine: bool = False,
    override: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    output: pathlib.Path = RESULTS / "solves.jsonl",
) -> None:
    """Measure the options of a solve, and add a row to a file for each of them.

    Args:
        envs: Environments.
        num_seeds: Independent runs of each option.
        num_episodes: Evaluation episodes of each seed.
        seconds: Measuring time for the steps of an environment's options.
        combine: Every combination of operator, preconditioner and adaptive floats;
            otherwise one option at a time.
        override: Field to override, such as total_timesteps=50_000; repeat it for more.
        output: File that the rows are added to.
    """
    fields = parse_overrides(override) | {"num_seeds": num_seeds}
    options = combinations(combine=combine)
    for env in envs:
        configs = [config_of(env, chosen, **fields) for chosen in options]
        timings = times(configs, seconds)
        for chosen, config, timing in zip(options, configs, timings, strict=True):
            row = {
                "name": ", ".join([env, *chosen.values()]),
                "env": env,
                **chosen,
                "steps": config.total_timesteps,
                "num_seeds": num_seeds,
                "num_episodes": num_episodes,
                **measure(config, num_episodes=num_episodes),
                "step_seconds": timing,
                "step_over_first": timing.median / timings[0].median,
                "command": command(
                    "benchmarks.solves",
                    env,
                    num_seeds=num_seeds,
                    num_episodes=num_episodes,
                    override=override,
                )
                + (" --combine" if combine else ""),
            }
            append_row(output, row)
            print(row, flush=True)


if __name__ == "__main__":
    tyro.cli(main)
