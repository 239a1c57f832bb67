"""Cost of a recorded run: `run` with its default records compared with `train`.

    python -m benchmarks.overhead

A third turn is `run` with an evaluation every ten updates, compared with `run`. All
train the same config in turns in one process, after compilation; the order changes
every round. The time of `run` is that of the whole call: folder, metrics, the last
checkpoint, and a last evaluation over one episode.
"""

import dataclasses
import functools
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

_EVALUATION_UPDATES = 10


def measure(num_envs: int, updates: int, rounds: int) -> dict:
    """Train with and without records, `rounds` times each; return the row."""
    config = trpo_jax.TRPOConfig(
        num_envs=num_envs,
        rollout_length=128,
        total_timesteps=num_envs * 128 * updates,
    )

    def train() -> None:
        jax.block_until_ready(trpo_jax.train(config))

    def run(evaluation_updates: int | None = None) -> None:
        settings = trpo_jax.RunSettings(
            evaluation_episodes=1, evaluation_updates=evaluation_updates
        )
        with tempfile.TemporaryDirectory() as folder:
            trpo_jax.run(config, pathlib.Path(folder) / "run", settings, progress=False)

    turns = (
        ("train", train),
        ("run", run),
        ("evaluating", functools.partial(run, _EVALUATION_UPDATES)),
    )
    seconds: dict[str, list[float]] = {name: [] for name, _ in turns}
    for round_number in range(rounds + 1):
        for name, fn in turns if round_number % 2 else reversed(turns):
            start = time.perf_counter()
            fn()
            if round_number:  # round 0 compiles
                seconds[name].append(time.perf_counter() - start)

    def speed(name: str, beside: str) -> Timing:
        pairs = zip(seconds[beside], seconds[name], strict=True)
        return Timing.of(other / own for other, own in pairs)

    return {
        "env": config.env,
        "num_envs": num_envs,
        "rollout_length": 128,
        "updates": updates,
        "train_seconds": Timing.of(seconds["train"]),
        "run_seconds": Timing.of(seconds["run"]),
        "speed_ratio": speed("run", "train"),
        "evaluation_updates": _EVALUATION_UPDATES,
        "evaluating_seconds": Timing.of(seconds["evaluating"]),
        "evaluating_ratio": speed("evaluating", "run"),
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
