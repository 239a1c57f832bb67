"""TRPO compared with brax's PPO on bodies of brax and Playground, at equal steps.

    python -m benchmarks.locomotion
    python -m benchmarks.locomotion brax/hopper --algorithms trpo --seeds 0 1 2

Both train in the same environments and are evaluated at equal intervals: mean
undiscounted return of whole episodes of at most 1000 steps, with greedy actions. One
JSON line per run is added to --output.

TRPO needs the extras `brax` and `playground`; PPO runs in its own virtual environment,
like all peers.
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

# Settings that brax's training notebook uses for every environment.
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
    """Environment with the settings of PPO.

    Attributes:
        ppo: Settings of PPO in brax's notebook. It trains hopper and walker2d with SAC;
            they use halfcheetah's.
        rounds: Rollouts of PPO between two evaluations.
        evaluations: Evaluations after the first, which is of the untrained policy.
        trpo_evaluations: The same for TRPO, if it trains longer.
        episodes: Episodes of an evaluation.
    """

    ppo: dict[str, Any]
    rounds: int
    evaluations: int
    trpo_evaluations: int | None = None
    episodes: int = 64

    @property
    def interval(self) -> int:
        """Return the environment steps between two evaluations."""
        names = "batch_size", "unroll_length", "num_minibatches", "action_repeat"
        return self.rounds * int(np.prod([self.ppo[name] for name in names]))

    @property
    def steps(self) -> int:
        """Return the environment steps of a run."""
        return self.evaluations * self.interval


# Playground's settings for its control suite, with a 32nd of the environments and of
# the rows of a minibatch: with 2,048 of them one rollout would be all of the training.
_CONTROL = Case(
    {
        "episode_length": EPISODE_LENGTH,
        "normalize_observations": True,
        "action_repeat": 1,
        "reward_scaling": 10,
        "unroll_length": 30,
        "num_minibatches": 32,
        "num_updates_per_batch": 16,
        "discounting": 0.995,
        "learning_rate": 1e-3,
        "entropy_cost": 1e-2,
        "num_envs": 64,
        "batch_size": 32,
    },
    rounds=4,
    evaluations=8,
    episodes=16,
)
_CONTROL_SHORT_SIGHTED = dataclasses.replace(
    _CONTROL, ppo=_CONTROL.ppo | {"discounting": 0.95}
)
# Playground's settings for its robots, with a 128th of the environments and a 32nd of
# the rows of a minibatch.
_JOYSTICK = Case(
    {
        "episode_length": EPISODE_LENGTH,
        "normalize_observations": True,
        "action_repeat": 1,
        "reward_scaling": 1,
        "unroll_length": 20,
        "num_minibatches": 32,
        "num_updates_per_batch": 4,
        "discounting": 0.97,
        "learning_rate": 3e-4,
        "entropy_cost": 1e-2,
        "num_envs": 64,
        "batch_size": 8,
        "max_grad_norm": 1.0,
        "network_factory": {
            "policy_hidden_layer_sizes": (512, 256, 128),
            "value_hidden_layer_sizes": (512, 256, 128),
            "policy_obs_key": "state",
            "value_obs_key": "privileged_state",
        },
    },
    rounds=32,
    evaluations=12,
    episodes=16,
)

CASES = {
    "brax/inverted_pendulum": Case(
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
    "brax/reacher": Case(
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
    "brax/hopper": Case(_HALFCHEETAH_PPO, rounds=1, evaluations=6, trpo_evaluations=30),
    "brax/walker2d": Case(
        _HALFCHEETAH_PPO, rounds=1, evaluations=6, trpo_evaluations=30
    ),
    "brax/ant": Case(
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
    "brax/halfcheetah": Case(_HALFCHEETAH_PPO, rounds=1, evaluations=6),
    "playground/AcrobotSwingup": _CONTROL,
    "playground/BallInCup": _CONTROL_SHORT_SIGHTED,
    "playground/CartpoleBalance": dataclasses.replace(_CONTROL, evaluations=4),
    "playground/CartpoleSwingup": dataclasses.replace(_CONTROL, evaluations=4),
    "playground/CheetahRun": _CONTROL,
    "playground/FingerSpin": _CONTROL_SHORT_SIGHTED,
    "playground/Go1JoystickFlatTerrain": _JOYSTICK,
    "playground/HopperHop": _CONTROL,
    "playground/ReacherHard": _CONTROL,
    "playground/WalkerWalk": _CONTROL,
}

# (environment steps, mean return of an evaluation) ↦ None
WatchFn = Callable[[int, float], None]


def train_trpo(
    env: str, case: Case, seed: int, watch_fn: WatchFn, overrides: dict[str, Any]
) -> dict[str, Any]:
    """Train the preset; return its fields."""
    options = {"total_timesteps": case.steps} | overrides
    config = configure(env, seed=seed, **options)
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
            returns = trpo_jax.evaluate(config, state, play_key, case.episodes)
            watch_fn(update * config.batch_size, float(np.mean(returns)))
        if update < config.num_updates:
            state, _ = step(config, state)
    return config_to_dict(config)


def train_ppo(
    env: str, case: Case, seed: int, watch_fn: WatchFn, overrides: dict[str, Any]
) -> dict[str, Any]:
    """Train brax's PPO in a subprocess, with its published settings; return them."""
    case = dataclasses.replace(case, ppo=case.ppo | overrides)
    arguments = case.ppo | {
        "num_timesteps": case.steps,
        "num_evals": case.evaluations + 1,
        "num_eval_envs": case.episodes,
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
            if not line.startswith("{"):  # output of brax's dependencies
                continue
            evaluation = json.loads(line)
            watch_fn(evaluation["steps"], evaluation["return"])
    if process.returncode:
        raise RuntimeError(f"{shlex.join(argv)} ended with {process.returncode}")
    return case.ppo


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
        "physics": BACKEND if env.startswith("brax/") else "mjx",
        "algorithm": algorithm,
        "seed": seed,
        "steps": steps,
        "returns": returns,
        "num_episodes": case.episodes,
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
    """Compare the algorithms on the given environments, by default on all.

    Args:
        envs: Ids of environments that have a case.
        algorithms: Algorithms to train.
        seeds: Seeds of each algorithm; by default two of TRPO and one of PPO, which is
            slower.
        evaluations: Intervals to train for; by default the case's own.
        override: Field of the algorithm to override, such as max_kl=0.02; repeat it
            for more.
        output: File that the rows are added to.
    """
    if override and len(algorithms) > 1:
        raise ValueError(
            "--override applies to one algorithm; write --algorithms trpo or ppo too."
        )
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
    """Return the runs to make; ValueError if an environment has no case."""
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
