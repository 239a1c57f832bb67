"""What recording a run costs: `run`, with all default records, against `train` alone.

    python -m benchmarks.overhead

Both train the same config for the same updates, in turns in one process, compiled
before; the one that came second comes first in the next round. Of `run` everything
counts from the call on: folder, metrics, the last checkpoint, and the evaluation (of
one episode).
"""

import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Iterator

import jax
import tyro

import trpo_jax
from benchmarks.harness import RESULTS, Timing, write_rows

# (environments, updates): some six seconds each on two cores. Where others use the
# machine too, many short rounds say more than few long ones.
_CASES = ((64, 200), (1024, 20))


def measure(num_envs: int, updates: int, rounds: int) -> dict:
    """Train with and without records, `rounds` times each; return the row."""
    config = trpo_jax.TRPOConfig(
        num_envs=num_envs,
        rollout_length=128,
        total_timesteps=num_envs * 128 * updates,
    )
    settings = trpo_jax.RunSettings(evaluation_episodes=1)

    def train() -> None:
        jax.block_until_ready(trpo_jax.train(config))

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            trpo_jax.run(config, pathlib.Path(folder) / "run", settings, progress=False)

    seconds: dict[str, list[float]] = {"train": [], "run": []}
    turns = (("train", train), ("run", run))
    for round_number in range(rounds + 1):
        for name, fn in turns if round_number % 2 else reversed(turns):
            start = time.perf_counter()
            fn()
            if round_number:  # the first compiles
                seconds[name].append(time.perf_counter() - start)
    ratios = [
        alone / recorded
        for alone, recorded in zip(seconds["train"], seconds["run"], strict=True)
    ]
    return {
        "env": config.env,
        "num_envs": num_envs,
        "rollout_length": 128,
        "updates": updates,
        "train_seconds": Timing.of(seconds["train"]),
        "run_seconds": Timing.of(seconds["run"]),
        "speed_ratio": Timing.of(ratios),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """What recording a run costs."""

    rounds: int = 15
    """Of each."""
    output: pathlib.Path = RESULTS / "overhead.jsonl"
    """Where the rows go."""


def main() -> None:
    args = tyro.cli(Arguments, description=__doc__)

    def rows() -> Iterator[dict]:
        for num_envs, updates in _CASES:
            yield measure(num_envs, updates, args.rounds)

    write_rows(args.output, rows())


if __name__ == "__main__":
    main()
