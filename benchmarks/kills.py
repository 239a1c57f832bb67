"""Test that a run which is killed and resumed many times stays bit-identical.

    python -m benchmarks.kills --kills 50

A child process resumes the run and gets SIGKILL after a random number of updates, while
it saves a checkpoint, or before it has made progress. In the end the last checkpoint,
the metrics and the evaluation are compared, byte by byte, with those of an
uninterrupted run.
"""

import dataclasses
import math
import multiprocessing
import pathlib
import random
import re
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

import trpo_jax
from benchmarks.harness import RESULTS, write_rows
from trpo_jax.runs import checkpoints
from trpo_jax.runs.folder import RunFolder

# Children are forked from a server that has imported the package but has not yet
# initialised a device, which JAX does not support across a fork.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["trpo_jax", "orbax.checkpoint"])

_POLL_SECONDS = 0.001

# Longer than a line of the metrics.
_TAIL_BYTES = 10_000


class Report(NamedTuple):
    """Result of the test.

    Attributes:
        kills: How often the run was killed.
        kills_while_saving: How many kills left an incomplete checkpoint.
        kills_before_progress: How many kills came before the child made an update.
        resumed_after: The last saved update after each kill.
        differences: Names of the files and leaves that differ from the uninterrupted
            run; empty on success.
    """

    kills: int
    kills_while_saving: int
    kills_before_progress: int
    resumed_after: list[int]
    differences: list[str]


def config_of(updates: int, num_seeds: int) -> trpo_jax.TRPOConfig:
    """Return a run of many small updates that fills every field of the state."""
    return trpo_jax.TRPOConfig(
        env="CartPole-v1",
        num_envs=2,
        rollout_length=8,
        total_timesteps=16 * updates,
        num_seeds=num_seeds,
        hidden_sizes=(8,),
        normalize_observations=True,
        normalize_returns=True,
        max_kl_schedule="linear",
        critic_fit="first_order",
        critic_epochs=1,
    )


def settings_of(checkpoint_updates: int) -> trpo_jax.RunSettings:
    """Return settings with frequent checkpoints, and evaluations between them."""
    return trpo_jax.RunSettings(
        checkpoint_updates=checkpoint_updates,
        evaluation_episodes=2,
        evaluation_updates=7,
        interim_episodes=2,
        keep_last=2,
    )


def child(
    folder: pathlib.Path, config: trpo_jax.TRPOConfig, settings: trpo_jax.RunSettings
) -> None:
    """Start or resume the run in `folder`, with a cache of compiled programs."""
    jax.config.update("jax_compilation_cache_dir", str(folder.parent / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if RunFolder(folder).config.exists():
        trpo_jax.resume(folder, progress=False)
    else:
        trpo_jax.run(config, folder, settings, progress=False)


def disturb(
    config: trpo_jax.TRPOConfig,
    settings: trpo_jax.RunSettings,
    *,
    kills: int,
    work: pathlib.Path,
    seed: int = 0,
    say_fn: Callable[[str], None] = print,
) -> Report:
    """Run `config` twice in folders below `work`: uninterrupted, and with kills.

    Raises:
        RuntimeError: If the run ended before it was killed `kills` times; it needs more
            updates.
    """
    peaceful, disturbed = work / "peaceful", work / "disturbed"
    _finish(peaceful, config, settings)
    draw = random.Random(seed)
    saving, early, resumed = 0, 0, []
    for kill in range(1, kills + 1):
        before = _recorded(disturbed)
        process = _CONTEXT.Process(target=child, args=(disturbed, config, settings))
        process.start()
        if kill % 5 == 0:  # during imports, restoring and compilation
            _until_beyond(before, disturbed, process, seconds=draw.uniform(0, 1))
        else:  # after some updates, few enough to leave some for the other kills
            most = (config.num_updates - before) / (kills - kill + 2)
            goal = before + draw.uniform(0, most)
            _until_beyond(goal, disturbed, process)
            if kill % 3 == 0:
                _until_saving(disturbed, process)
            time.sleep(draw.uniform(0, 0.03))
        if not process.is_alive():
            raise RuntimeError(
                f"the run ended with {process.exitcode} before kill {kill} of {kills}"
            )
        process.kill()
        process.join()
        saving += _is_saving(disturbed)
        early += _recorded(disturbed) <= before
        saved = checkpoints.complete(disturbed / "checkpoints")
        resumed.append(int(saved[-1].name) if saved else 0)
        say_fn(f"kill {kill} of {kills}: saved up to update {resumed[-1]}")
    _finish(disturbed, config, settings)
    return Report(kills, saving, early, resumed, differences(peaceful, disturbed))


def differences(left: pathlib.Path, right: pathlib.Path) -> list[str]:
    """Name the differences between two runs: files, and leaves of the last state."""
    found = [
        name
        for name in ("metrics.jsonl", "evaluation.json", "config.json")
        if (left / name).read_bytes() != (right / name).read_bytes()
    ]
    states = [_leaves(folder) for folder in (left, right)]
    for name in sorted(states[0].keys() | states[1].keys()):
        both = [state.get(name, np.zeros(0)) for state in states]
        if both[0].dtype != both[1].dtype or both[0].tobytes() != both[1].tobytes():
            found.append(name)
    return found


def _leaves(folder: pathlib.Path) -> dict[str, np.ndarray]:
    from orbax.checkpoint import PyTreeCheckpointer

    last = checkpoints.complete(folder / "checkpoints")[-1]
    checkpoints.verify(last)
    with PyTreeCheckpointer() as checkpointer:
        leaves = checkpointer.restore((last / "arrays").absolute())
    return {name: np.asarray(leaf) for name, leaf in leaves.items()}


def _finish(folder: pathlib.Path, *args: Any) -> None:
    process = _CONTEXT.Process(target=child, args=(folder, *args))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the run in {folder} ended with {process.exitcode}")


def _recorded(folder: pathlib.Path) -> int:
    """Return the last update in the metrics, 0 if there is none."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        updates = re.findall(rb'"update": (\d+),', file.read())
    return int(updates[-1]) if updates else 0


def _is_saving(folder: pathlib.Path) -> bool:
    return any((folder / "checkpoints").glob(".*.partial"))


def _until_beyond(
    update: float, folder: pathlib.Path, process: Any, seconds: float = math.inf
) -> None:
    deadline = time.monotonic() + seconds
    while process.is_alive() and time.monotonic() < deadline:
        if _recorded(folder) > update:
            return
        time.sleep(_POLL_SECONDS)


def _until_saving(folder: pathlib.Path, process: Any) -> None:
    while process.is_alive() and not _is_saving(folder):
        time.sleep(_POLL_SECONDS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Kill and resume a run many times, and compare it with an uninterrupted one."""

    kills: int = 50
    """Number of times to kill the run."""
    updates: int = 4000
    """Updates of the run."""
    num_seeds: int = 2
    """Seeds of the run."""
    checkpoint_updates: int = 20
    """Updates between two checkpoints."""
    seed: int = 0
    """Random seed of the moments."""
    output: pathlib.Path = RESULTS / "kills.jsonl"
    """File for the row."""


def main() -> None:
    args = tyro.cli(Arguments, description=__doc__)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        report = disturb(
            config_of(args.updates, args.num_seeds),
            settings_of(args.checkpoint_updates),
            kills=args.kills,
            work=pathlib.Path(work),
            seed=args.seed,
        )
    row = report._asdict() | {"seconds": round(time.perf_counter() - start, 1)}
    write_rows(args.output, [row])
    if report.differences:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
