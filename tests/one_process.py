"""One of the processes of a run; started by test_processes.py.

python one_process.py COORDINATOR NUM_PROCESSES PROCESS FOLDER CALL
"""

import dataclasses
import json
import os
import pathlib
import signal
import sys
import threading
import time

from compiling import compile_quickly

import trpo_jax

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
LONG = dataclasses.replace(CONFIG, total_timesteps=32 * 400)


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


def main(coordinator, num_processes, process, folder, call):
    compile_quickly()
    trpo_jax.runs.connect_processes(coordinator, int(num_processes), int(process))
    if call == "run":
        result = trpo_jax.run(LONG, folder, SETTINGS)
    elif call == "resume":
        result = trpo_jax.resume(folder)
    else:
        refusal(dataclasses.replace(CONFIG, num_envs=4 + 4 * int(process)), folder)
        refusal(dataclasses.replace(CONFIG, num_envs=3, devices=None), folder)
        refusal(dataclasses.replace(CONFIG, devices=1), folder)
        if process == "1":
            threading.Thread(target=stop_soon, args=(folder,), daemon=True).start()
        try:
            trpo_jax.run(CONFIG, folder, SETTINGS)
        except trpo_jax.Interrupted as error:
            print("interrupted:", error.signal, error)
        result = trpo_jax.resume(folder)
    print("result:", json.dumps(result.evaluation), int(result.state.updates))


if __name__ == "__main__":
    main(*sys.argv[1:])
