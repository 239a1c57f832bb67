"""Cost of a run's records and of the certificates of its updates.

    python -m benchmarks.overhead

`run` with its default records is compared with `train`, and `run` with an evaluation
every ten updates with `run`. All train the same config in turns in one process, after
compilation; the order changes every round. The time of `run` is that of the whole call:
folder, metrics, the last checkpoint, and a last evaluation over one episode.

A compiled step is compared with one that does not return what certifies an update,
which XLA then does not compute, in turns of single steps.
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

# What an update is certified by beyond what it needs itself.
_CERTIFICATE = ("surrogate_standard_error", "kl_95", "kl_max", "share_beyond")
_BOUNDS = ("improvement_bound", "mean_kl_improvement_bound")


def certificate_speed(config: trpo_jax.TRPOConfig, turns: int) -> Timing:
    """Return the speed of a step with the certificate relative to one without."""
    state = jax.jit(trpo_jax.init, static_argnums=0)(config, jax.random.key(0))

    def certified(state: trpo_jax.TrainState) -> tuple:
        return trpo_jax.step(config, state)

    def plain(state: trpo_jax.TrainState) -> tuple:
        state, metrics = trpo_jax.step(config, state)
        update = metrics.update._replace(**dict.fromkeys(_CERTIFICATE, ()))
        return state, metrics._replace(update=update, **dict.fromkeys(_BOUNDS, ()))

    programs = [
        jax.jit(fn, compiler_options=trpo_jax.compiler_options()).lower(state).compile()
        for fn in (certified, plain)
    ]
    for _ in range(30):  # from an untrained policy, whose searches are shorter
        state, _ = programs[0](state)
    ratios = []
    for turn in range(turns):
        seconds = {}
        for program in programs if turn % 2 else reversed(programs):
            start = time.perf_counter()
            jax.block_until_ready(program(state))
            seconds[program] = time.perf_counter() - start
        ratios.append(seconds[programs[1]] / seconds[programs[0]])
    return Timing.of(ratios)


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
        "certificate_ratio": certificate_speed(config, rounds * updates // 4),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure the cost of recording a run and of certificates."""

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
