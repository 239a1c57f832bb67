"""A sweep compared with single runs one after the other, and with rejax's vmapped PPO.

    python -m benchmarks.sweeps                  # 8 settings × 256 seeds of CartPole
    python -m benchmarks.sweeps --kills 20       # first, whether a killed one resumes

Each side is a process of its own, so that its peak memory is its own. Single runs are
estimated from a few: compilation once, and then the median of the others. Ours train
and evaluate over 128 episodes; rejax's train only. All have 8 environments × 128 steps
and 64 × 64 units.
"""

import contextlib
import multiprocessing
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tyro

import trpo_jax
from benchmarks.harness import RESULTS, append_row
from benchmarks.peers.__main__ import ENVIRONMENTS, HERE, python_of, run_once
from trpo_jax.sweeps import group_training

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["trpo_jax", "orbax.checkpoint"])

# Two programs, two rungs and groups of four cells.
SMALL = trpo_jax.TRPOConfig(
    num_envs=2, rollout_length=8, total_timesteps=16 * 4_000, hidden_sizes=(8,)
)
OPTIONS: dict[str, Any] = {
    "num_seeds": 2,
    "max_kl": [0.01, 0.03, 0.1],
    "hidden_sizes": [(4,), (8,)],
    "halving": (0.5,),
    "num_episodes": 4,
    "progress": False,
}


def compare(
    num_settings: int,
    num_seeds: int,
    timesteps: int,
    single_runs: int,
    run_fn: Callable[[str, tuple[str, ...]], dict[str, Any]],
) -> dict[str, Any]:
    """Return the row of one sweep, beside single runs and the peer.

    Args:
        num_settings: Settings of the sweep.
        num_seeds: Seeds of each setting.
        timesteps: Environment steps of each run.
        single_runs: Runs that the estimate of single runs is made from.
        run_fn: (side, arguments) ↦ the printed result of a process.
    """
    sizes = (str(num_settings), str(num_seeds), str(timesteps))
    ours = run_fn("ours", ("sweep", *sizes))
    single = run_fn("ours", ("single", str(single_runs), str(timesteps)))
    theirs = run_fn("theirs", ("sweep", *sizes))
    runs = num_settings * num_seeds
    estimate = single["compile_seconds"] + runs * float(np.median(single["by_run"]))
    return {
        "measure": f"{num_settings} settings × {num_seeds} seeds of CartPole, "
        f"{timesteps:,} steps each",
        "runs": runs,
        "ours": ours,
        "single": single | {"estimated_seconds": estimate},
        "theirs": theirs,
        "single_over_ours": estimate / ours["seconds"],
        "theirs_over_ours": theirs["seconds"] / ours["seconds"],
    }


def child(folder: pathlib.Path) -> None:
    """Start the small sweep in `folder`, or go on with it; save after every chunk."""
    jax.config.update("jax_compilation_cache_dir", str(folder.parent / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    group_training._SAVE_MINUTES = 0.0
    trpo_jax.sweep(SMALL, folder, **OPTIONS)


def disturb(kills: int, work: pathlib.Path, seed: int = 0) -> dict[str, Any]:
    """Run the small sweep twice: uninterrupted, and with SIGKILL at random moments.

    Returns:
        The number of kills, of those that found a group partly trained, and the names
        of the results that differ from the uninterrupted sweep's; empty on success.
    """
    through, disturbed = work / "through", work / "disturbed"
    _finish(through)
    draw = random.Random(seed)
    count = partly = 0
    for kill in range(kills):
        process = _CONTEXT.Process(target=child, args=(disturbed,))
        process.start()
        if kill % 5 == 4:  # during imports and compilation
            process.join(draw.uniform(0, 5))
        else:
            _until_saved(disturbed, draw.randint(1, 10), process)
            time.sleep(draw.uniform(0, 0.3))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        count += 1
        partly += (disturbed / "progress.npz").exists()
    _finish(disturbed)
    one, other = (trpo_jax.load_sweep(folder) for folder in (through, disturbed))
    results = {"returns": (one.returns, other.returns)}
    results |= {n: (v, other.metrics[n]) for n, v in one.metrics.items()}
    different = [
        name
        for name, (left, right) in results.items()
        if not np.array_equal(left, right, equal_nan=True)
    ]
    leaves = zip(
        jax.tree.leaves(one.best_state), jax.tree.leaves(other.best_state), strict=True
    )
    if not all(bool((left == right).all()) for left, right in leaves):
        different.append("best_state")
    return {"kills": count, "kills_in_a_group": partly, "differences": different}


def _until_saved(folder: pathlib.Path, times: int, process: Any) -> None:
    """Wait until the group in training has been saved so many times."""
    path = folder / "progress.npz"
    before = path.stat().st_mtime_ns if path.exists() else 0
    while times and process.is_alive():
        time.sleep(0.001)
        with contextlib.suppress(FileNotFoundError):  # the group is finished
            now = path.stat().st_mtime_ns
            times -= now != before
            before = now


def _finish(folder: pathlib.Path) -> None:
    process = _CONTEXT.Process(target=child, args=(folder,))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the sweep in {folder} ended with {process.exitcode}")


def main(
    num_settings: int = 8,
    num_seeds: int = 256,
    timesteps: int = 100_352,
    single_runs: int = 5,
    kills: int = 0,
    environments: pathlib.Path = ENVIRONMENTS,
    output: pathlib.Path = RESULTS / "sweep.jsonl",
) -> dict[str, Any]:
    """Measure a sweep, and add a row to a file.

    Args:
        num_settings: Settings, of max_kl and for the peer of its learning rate.
        num_seeds: Seeds of each setting.
        timesteps: Environment steps of each run.
        single_runs: Runs that the estimate of single runs is made from.
        kills: How often a small sweep is killed first.
        environments: Folder of the peers' virtual environments.
        output: File for the row.
    """
    row: dict[str, Any] = {}
    if kills:
        with tempfile.TemporaryDirectory() as work:
            row["killed"] = disturb(kills, pathlib.Path(work))
            print(row["killed"], flush=True)
    python = python_of("rejax PPO", environments.resolve())
    commands = {
        "ours": [sys.executable, str(HERE / "run_trpo_jax.py")],
        "theirs": [str(python), str(HERE / "run_rejax.py")],
    }

    def run(side: str, arguments: tuple[str, ...]) -> dict[str, Any]:
        _, printed = run_once([*commands[side], *arguments], "seconds", {})
        print(side, *arguments, printed, flush=True)
        return printed

    row |= compare(num_settings, num_seeds, timesteps, single_runs, run)
    return append_row(output, row)


if __name__ == "__main__":
    tyro.cli(main)
