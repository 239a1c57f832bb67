"""Cost of environments on the host: Gymnasium's CartPole beside gymnax's.

    python -m benchmarks.host

Three processes take turns at the settings of rl-baselines3-zoo, with one thread each:
ours on the device, ours on Gymnasium's environments, and sb3-contrib's TRPO on the
same.
"""

import pathlib
import sys
from collections.abc import Iterator

import tyro

from benchmarks.harness import RESULTS, Timing, write_rows
from benchmarks.peers.__main__ import (
    ENVIRONMENTS,
    HERE,
    python_of,
    requirements_of,
    run_once,
)

SIZES = ((2, 512), (16, 128), (64, 128))
PEER = "sb3-contrib TRPO"


def measure(
    num_envs: int, num_steps: int, theirs: pathlib.Path, rounds: int
) -> dict[str, Timing]:
    """Return the steps per second of each side, in rollouts of one size."""
    ours, sizes = str(HERE / "run_trpo_jax.py"), (str(num_envs), str(num_steps))
    commands = {
        "device": [sys.executable, ours, "zoo", *sizes],
        "host": [sys.executable, ours, "host", *sizes],
        "peer": [str(theirs), str(HERE / "run_sb3_contrib.py"), "steps", *sizes],
    }
    figures: dict[str, list[float]] = {side: [] for side in commands}
    for _ in range(rounds):
        for side, command in commands.items():
            value, _ = run_once(command, "steps_per_second", {"NPROC": "1"})
            figures[side].append(value)
    return {side: Timing.of(values) for side, values in figures.items()}


def main(
    rounds: int = 3,
    environments: pathlib.Path = ENVIRONMENTS,
    output: pathlib.Path = RESULTS / "host.jsonl",
) -> None:
    """Measure all sizes.

    Args:
        rounds: Processes of each side.
        environments: Folder of the peers' virtual environments.
        output: File for the rows.
    """
    theirs = python_of(PEER, environments.resolve())

    def rows() -> Iterator[dict]:
        for num_envs, num_steps in SIZES:
            yield {
                "num_envs": num_envs,
                "rollout_length": num_steps,
                "steps_per_second": measure(num_envs, num_steps, theirs, rounds),
                "requirements": requirements_of(PEER).read_text().splitlines(),
            }

    write_rows(output, rows())


if __name__ == "__main__":
    tyro.cli(main)
