"""TRPO beside brax's own PPO on brax's bodies, at the same environment steps.

    python -m benchmarks.locomotion
    python -m benchmarks.locomotion hopper walker2d --algorithms trpo --seeds 0 1 2

Both act in the environment that brax makes, and are evaluated alike at equal distances:
the mean undiscounted return of whole episodes of at most 1000 steps, with the most
probable actions. A JSON line a run is added to --output when it is done.

Ours needs the extra `brax`; PPO has an environment of its own, as all peers.
"""

import dataclasses
import json
import pathlib
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

import trpo_jax
from benchmarks.harness import RESULTS, append_row
from benchmarks.peers.__main__ import ENVIRONMENTS, python_of
from benchmarks.runs import command, configure, parse_overrides
from benchmarks.statistics import finite
from trpo_jax.runs.config_file import config_to_dict

Algorithm = Literal["trpo", "ppo"]

BACKEND = "spring"
EPISODE_LENGTH = 1000
EVALUATION_EPISODES = 64

# What brax's notebook on training sets for every environment alike.
_PPO: dict[str, Any] = {
    "episode_length": EPISODE_LENGTH,
    "normalize_observations": True,
    "action_repeat": 1,
    "num_minibatches": 32,
    "learning_rate": 3e-4,
}
_HALFCHEETAH_PPO = _PPO | {
    "reward_scaling": 1,
    "unroll_length": 20,
    "num_updates_per_batch": 8,
    "discounting": 0.95,
    "entropy_cost": 1e-3,
    "num_envs": 2048,
    "batch_size": 512,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One environment.

    Attributes:
        ppo: What brax's notebook sets for PPO; it has none for hopper and walker2d,
            which it trains by SAC: they have halfcheetah's.
        rounds: PPO's rollouts between two evaluations.
        evaluations: How many there are after the first, of the untrained policy.
        trpo_evaluations: How many of ours, where they are more.
    """

    ppo: dict[str, Any]
    rounds: int
    evaluations: int
    trpo_evaluations: int | None = None

    @property
    def interval(self) -> int:
        """Environment steps between two evaluations."""
        names = "batch_size", "unroll_length", "num_minibatches", "action_repeat"
        return self.rounds * int(np.prod([self.ppo[name] for name in names]))

    @property
    def steps(self) -> int:
        """Environment steps of a run."""
        return self.evaluations * self.interval


CASES = {
    "inverted_pendulum": Case(
        _PPO
        | {
            "reward_scaling": 10,
            "unroll_length": 5,
            "num_updates_per_batch": 4,
            "discounting": 0.97,
            "entropy_cost": 1e-2,
            "num_envs": 2048,
            "batch_size": 1024,
        },
        rounds=1,
        evaluations=12,
    ),
    "reacher": Case(
        _PPO
        | {
            "reward_scaling": 5,
            "action_repeat": 4,
            "unroll_length": 50,
            "num_updates_per_batch": 8,
            "discounting": 0.95,
            "entropy_cost": 1e-3,
            "num_envs": 2048,
            "batch_size": 256,
        },
        rounds=1,
        evaluations=4,
    ),
    "hopper": Case(_HALFCHEETAH_PPO, rounds=1, evaluations=6, trpo_evaluations=30),
    "walker2d": Case(_HALFCHEETAH_PPO, rounds=1, evaluations=6, trpo_evaluations=30),
    "ant": Case(
        _PPO
        | {
            "reward_scaling": 10,
            "unroll_length": 5,
            "num_updates_per_batch": 4,
            "discounting": 0.97,
            "entropy_cost": 1e-2,
            "num_envs": 4096,
            "batch_size": 2048,
        },
        rounds=1,
        evaluations=6,
    ),
    "halfcheetah": Case(_HALFCHEETAH_PPO, rounds=1, evaluations=6),
}

# (environment steps, mean return of an evaluation) ↦ None
WatchFn = Callable[[int, float], None]


def train_trpo(
    env: str, case: Case, seed: int, watch_fn: WatchFn, overrides: dict[str, Any]
) -> dict[str, Any]:
    """Train our preset; return its fields."""
    options = {"total_timesteps": case.steps} | overrides
    config = configure(f"brax/{env}", seed=seed, **options)
    init, step = (
        jax.jit(fn, compiler_options=trpo_jax.compiler_options())
        for fn in (trpo_jax.init, trpo_jax.step)
    )
    key, play_key = jax.random.split(jax.random.key(seed))
    state = init(config, key)
    between, rest = divmod(case.interval, config.batch_size)
    if rest:
        raise ValueError(
            f"{env} is evaluated every {case.interval:,} steps, which rollouts of "
            f"{config.batch_size:,} do not divide; override num_envs or rollout_length."
        )
    for update in range(config.num_updates + 1):
        if update % between == 0:
            returns = trpo_jax.evaluate(config, state, play_key, EVALUATION_EPISODES)
            watch_fn(update * config.batch_size, float(np.mean(returns)))
        if update < config.num_updates:
            state, _ = step(config, state)
    return config_to_dict(config)


def train_ppo(
    env: str, case: Case, seed: int, watch_fn: WatchFn, overrides: dict[str, Any]
) -> dict[str, Any]:
    """Train brax's PPO at its published settings, in a process; return them."""
    settings = case.ppo | overrides
    arguments = settings | {
        "num_timesteps": case.steps,
        "num_evals": case.evaluations + 1,
        "num_eval_envs": EVALUATION_EPISODES,
        "deterministic_eval": True,
        "seed": seed,
    }
    run = {"env": env, "backend": BACKEND, "train_arguments": arguments}
    script = pathlib.Path(__file__).parent / "peers" / "run_brax.py"
    python = python_of("brax PPO", ENVIRONMENTS)
    argv = [str(python), str(script), json.dumps(run)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith("{"):  # what brax's libraries say
                continue
            evaluation = json.loads(line)
            watch_fn(evaluation["steps"], evaluation["return"])
    if process.returncode:
        raise RuntimeError(f"{shlex.join(argv)} ended with {process.returncode}")
    return settings


SEEDS: dict[Algorithm, tuple[int, ...]] = {"trpo": (0, 1), "ppo": (0,)}

ALGORITHMS: dict[Algorithm, Callable] = {"trpo": train_trpo, "ppo": train_ppo}


def measure(
    env: str, case: Case, algorithm: Algorithm, seed: int, overrides: dict[str, Any]
) -> dict[str, Any]:
    """Train one run; return its row."""
    steps: list[int] = []
    returns: list[float | None] = []
    start = time.perf_counter()

    def watch(step: int, mean_return: float) -> None:
        steps.append(step)
        returns.append(finite(mean_return))
        print(
            f"{env} {algorithm} seed {seed}: {step:,} steps, return {mean_return:.1f}, "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )

    config = ALGORITHMS[algorithm](env, case, seed, watch, overrides)
    return {
        "env": env,
        "physics": BACKEND,
        "algorithm": algorithm,
        "seed": seed,
        "steps": steps,
        "returns": returns,
        "num_episodes": EVALUATION_EPISODES,
        "wall_seconds": round(time.perf_counter() - start, 1),
        "config": config,
    }


def main(
    envs: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    /,
    algorithms: tuple[Algorithm, ...] = ("trpo", "ppo"),
    seeds: tuple[int, ...] | None = None,
    evaluations: int | None = None,
    override: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    output: pathlib.Path = RESULTS / "locomotion.jsonl",
) -> None:
    """Compare on the environments named, or on all.

    Args:
        envs: Names in brax.
        algorithms: Whom to train.
        seeds: Of each, one run after the other; two of ours and one of PPO, which is
            slower, if left out.
        evaluations: How many intervals to train for; the case's own if left out.
        override: A field of the algorithm set otherwise, as max_kl=0.02.
        output: Where the rows go.
    """
    if override and len(algorithms) > 1:
        raise ValueError("--override is of one algorithm; write --algorithms, too.")
    for env, seed, algorithm in runs(envs or tuple(CASES), seeds, algorithms):
        case = CASES[env]
        longer = case.trpo_evaluations if algorithm == "trpo" else None
        case = dataclasses.replace(
            case, evaluations=evaluations or longer or case.evaluations
        )
        row = measure(env, case, algorithm, seed, parse_overrides(override))
        row["command"] = command(
            "benchmarks.locomotion",
            env,
            algorithms=(algorithm,),
            seeds=(seed,),
            evaluations=evaluations,
            override=override,
        )
        append_row(output, row)


def runs(
    envs: Sequence[str],
    seeds: Sequence[int] | None,
    algorithms: Sequence[Algorithm],
) -> list[tuple[str, int, Algorithm]]:
    """Return every run to be made; ValueError for an environment that is no case."""
    for env in envs:
        if env not in CASES:
            raise ValueError(f"no case for {env!r}; write one of {', '.join(CASES)}.")
    return [
        (env, seed, name)
        for env in envs
        for name in algorithms
        for seed in (SEEDS[name] if seeds is None else seeds)
    ]


if __name__ == "__main__":
    tyro.cli(main)
