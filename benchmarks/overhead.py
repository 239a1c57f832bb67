"""Cost of recording a run: `run` with its default records compared with `train`.

    python -m benchmarks.overhead

Both train the same config in turns in one process, after compilation; the order changes
every round. The time of `run` is that of the whole call: folder, metrics, the last
checkpoint, and an evaluation over one episode.
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

# (environments, updates): about six seconds each on two cores. On a shared machine,
# many short rounds give a better median than a few long ones.
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
            if round_number:  # round 0 compiles
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
    """Measure the cost of recording a run."""

    rounds: int = 15
    """Rounds of each case."""
    output: pathlib.Path = RESULTS / "overhead.jsonl"
    """File for the rows."""


def main() -> None:
    args = tyro.cli(Arguments, description=__doc__)

    def rows() -> Iterator[dict]:
        for num_envs, updates in _CASES:
            yield measure(num_envs, updates, args.rounds)

    write_rows(args.output, rows())


if __name__ == "__main__":
    main()
