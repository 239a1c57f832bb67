"""One of the processes of a run; started by test_processes.py.

python one_process.py COORDINATOR NUM_PROCESSES PROCESS FOLDER CALL
"""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import signal
import sys
import threading
import time

import jax
import numpy as np
from compiling import compile_quickly
from jax._src import distributed
from orbax.checkpoint import PyTreeCheckpointHandler

import trpo_jax
from trpo_jax.runs import processes
from trpo_jax.runs.folder import RunFolder
from trpo_jax.sweeps.folder import SweepFolder

CONFIG = trpo_jax.TRPOConfig(
    num_envs=4,
    rollout_length=8,
    total_timesteps=32 * 100,
    hidden_sizes=(4,),
    normalize_observations=True,
    normalize_returns=True,
)
SETTINGS = trpo_jax.RunSettings(
    checkpoint_updates=20,
    evaluation_episodes=4,
    evaluation_updates=20,
    interim_episodes=4,
)
SWEPT = dataclasses.replace(CONFIG, total_timesteps=32 * 6)
FIELDS = {"max_kl": [0.01, 0.1]}
OPTIONS = {"num_seeds": 2, "halving": (0.5,), "num_episodes": 4, "memory_gib": 1}
LONG = dataclasses.replace(CONFIG, total_timesteps=32 * 400)
# Tests that wait for it would wait three times as long for the package's own.
HEARTBEAT_SECONDS = 10


def refusal(config, folder):
    """Print why a run is refused."""
    try:
        trpo_jax.run(config, folder, SETTINGS)
    except ValueError as error:
        print("refused:", error)


def stop_soon(folder):
    """Send SIGTERM to this process once the run has made an update."""
    metrics = pathlib.Path(folder) / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_bytes().count(b"\n")):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


def sweep(process, folder):
    """Refuse sweeps that differ, stop two, by an error and by a signal, and go on."""
    for values in ([0.01, 0.1 + process], [0.01, 0.1 - process]):
        try:
            trpo_jax.sweep(SWEPT, folder, max_kl=values, **OPTIONS)
        except ValueError as error:
            print("refused:", error)
    decide = SweepFolder.decide
    if process == 0:
        SweepFolder.decide = no_space
    try:
        trpo_jax.sweep(SWEPT, folder, **FIELDS, **OPTIONS)
    except trpo_jax.RunError as error:
        print("stopped:", error)
    SweepFolder.decide = decide
    if process == 1:
        groups = pathlib.Path(folder) / "groups"
        threading.Thread(target=stop_after_group, args=(groups,), daemon=True).start()
    try:
        trpo_jax.sweep(SWEPT, folder, **FIELDS, **OPTIONS)
    except trpo_jax.Interrupted as error:
        print("interrupted:", error.signal, error)
    finish_sweep(folder)


def new_sweep(folder):
    trpo_jax.sweep(SWEPT, folder, **FIELDS, **OPTIONS)
    finish_sweep(folder)


def stop_after_group(groups):
    """Send SIGTERM to this process once a group is finished."""
    while not (groups.exists() and list(groups.glob("*.npz"))):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


def finish_sweep(folder):
    result = trpo_jax.sweeps.resume_sweep(folder)
    kernels = [leaf.tolist() for leaf in jax.tree.leaves(result.best_state.params)]
    found = (result.returns.tolist(), result.metrics["kl"].tolist(), kernels)
    print("swept:", json.dumps(found))


def no_space(*args, **options):
    raise OSError(errno.ENOSPC, "No space left", "disk")


@contextlib.contextmanager
def full_disk(process, full):
    """Let one of the processes fail to write its part of a checkpoint."""
    save = PyTreeCheckpointHandler.save
    PyTreeCheckpointHandler.save = no_space if process == full else save
    yield
    PyTreeCheckpointHandler.save = save


def run(process, folder):
    """Refuse runs that differ or leave out a process; stop some, and go on."""
    refusal(dataclasses.replace(CONFIG, num_envs=4 + 4 * process), folder)
    refusal(dataclasses.replace(CONFIG, num_envs=3, devices=None), folder)
    refusal(dataclasses.replace(CONFIG, devices=1), folder)
    for full in (0, 1):
        with full_disk(process, full):
            try:
                trpo_jax.run(CONFIG, f"{folder}-{full}", SETTINGS)
            except trpo_jax.RunError as error:
                print("stopped:", error)
    if process == 1:
        threading.Thread(target=stop_soon, args=(folder,), daemon=True).start()
    try:
        trpo_jax.run(CONFIG, folder, SETTINGS)
    except trpo_jax.Interrupted as error:
        print("interrupted:", error.signal, error)
    print("keeps programs:", jax.config.jax_enable_compilation_cache)
    finish_run(trpo_jax.resume(folder))


def run_apart(folder):
    """Make a run whose folder process 0 alone sees."""
    RunFolder.is_shared = lambda self: False
    finish_run(trpo_jax.run(LONG, folder, SETTINGS))


def fail(process):
    """End one of the scripts by an error, while the other waits for it."""
    with processes.together("Start again."):
        values = processes.exchange(np.full(2**19, process))  # 4 MiB
        print("sums:", [int(value.sum()) for value in values])
        processes.exchange(None)
        processes.exchange(None)  # now both have deleted the first message
        client = distributed.global_state.client
        print("kept:", client.key_value_dir_get_bytes("trpo_jax/1/all/1/"))
    if process == 1:
        raise ValueError("its own")
    with processes.together("Start again."):
        processes.exchange(None)


def finish_run(result):
    print("result:", json.dumps(result.evaluation), int(result.state.updates))


def main(coordinator, num_processes, process, folder, call):
    compile_quickly()
    processes.HEARTBEAT_SECONDS = HEARTBEAT_SECONDS
    trpo_jax.runs.connect_processes(coordinator, int(num_processes), int(process))
    calls = {
        "all": lambda: run(int(process), folder),
        "run": lambda: run_apart(folder),
        "resume": lambda: finish_run(trpo_jax.resume(folder)),
        "fail": lambda: fail(int(process)),
        "sweep": lambda: sweep(int(process), folder),
        "new_sweep": lambda: new_sweep(folder),
        "resume_sweep": lambda: finish_sweep(folder),
    }
    calls[call]()


if __name__ == "__main__":
    main(*sys.argv[1:])
