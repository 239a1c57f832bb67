"""A run killed again and again, and resumed each time: does it end in the same bits?

    python -m benchmarks.kills --kills 50

A child process resumes the run; it is sent SIGKILL after a random number of updates,
while it saves a checkpoint, or before it has made any. When the run is over, its last
checkpoint and its metrics are compared, byte by byte, with those of a run that nobody
disturbed.
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

# Children start with the package imported, and with no device yet in use.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["trpo_jax", "orbax.checkpoint"])

_POLL_SECONDS = 0.001

# Of the metrics: more than a line has.
_TAIL_BYTES = 10_000


class Report(NamedTuple):
    """What came of it.

    Attributes:
        kills: Times that the run was killed.
        kills_while_saving: How many of them left an incomplete checkpoint.
        kills_before_progress: How many came before the child had got any further.
        resumed_after: The update that each child went on after.
        differences: What is not the same as in the undisturbed run: nothing, one hopes.
    """

    kills: int
    kills_while_saving: int
    kills_before_progress: int
    resumed_after: list[int]
    differences: list[str]


def config_of(updates: int, num_seeds: int) -> trpo_jax.TRPOConfig:
    """Return a run of many small updates with all that a state can hold."""
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
        critic_epochs=1,
    )


def settings_of(checkpoint_updates: int) -> trpo_jax.RunSettings:
    """Return settings with a checkpoint every few updates."""
    return trpo_jax.RunSettings(
        checkpoint_updates=checkpoint_updates, evaluation_episodes=2, keep_last=2
    )


def child(
    folder: pathlib.Path, config: trpo_jax.TRPOConfig, settings: trpo_jax.RunSettings
) -> None:
    """Start the run in `folder`, or go on with it, without compiling anew."""
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
    """Run `config` twice in folders below `work`: once in peace, once with kills.

    Raises:
        RuntimeError: If the run was over before it had been killed so often; more
            updates are needed.
    """
    peaceful, disturbed = work / "peaceful", work / "disturbed"
    _finish(peaceful, config, settings)
    draw = random.Random(seed)
    saving, early, resumed = 0, 0, []
    for kill in range(1, kills + 1):
        before = _recorded(disturbed)
        process = _CONTEXT.Process(target=child, args=(disturbed, config, settings))
        process.start()
        if kill % 5 == 0:  # while it imports, restores, compiles
            _until_beyond(before, disturbed, process, seconds=draw.uniform(0, 1))
        else:  # after so much more that there is enough left for the other kills
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
    """Return what of two runs' last states, metrics and evaluations differs."""
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
    """Kill a run again and again, and see whether it ends in the same bits."""

    kills: int = 50
    """How often."""
    updates: int = 4000
    """Of the run."""
    num_seeds: int = 2
    """Of the run."""
    checkpoint_updates: int = 20
    """Updates between two checkpoints."""
    seed: int = 0
    """Of the moments."""
    output: pathlib.Path = RESULTS / "kills.jsonl"
    """Where the row goes."""


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
