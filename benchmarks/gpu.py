"""All measurements on an accelerator, in one command that takes nine minutes.

    python -m benchmarks.gpu

It measures throughput, a thousand agents side by side, curvature, the largest update
and scaling. Each row is written as soon as it is measured, so that an interrupted run
keeps its rows. Without an accelerator the command says so and exits.
"""

import functools
import pathlib
import sys
import time
from collections.abc import Callable, Iterator

import jax
import tyro

import trpo_jax
from benchmarks import curvature, scaling, throughput
from benchmarks.harness import RESULTS, ceilings, compile_program, write_rows
from benchmarks.problems import make_problem, update_program

CURVATURE = (
    ("categorical", 2**16, 64),
    ("categorical", 2**20, 64),
    ("gaussian", 2**20, 64),
    ("categorical", 2**20, 256),
    ("categorical", 2**18, 1024),
)
AGENTS, AGENT_STEPS = 1024, 102_400
LARGEST_ROWS, LARGEST_WIDTH, LARGEST_MICRO_BATCH = 2**22, 1024, 2**15


def many_agents() -> dict:
    """Measure 1,024 complete runs at the defaults as one program."""
    config = trpo_jax.TRPOConfig(total_timesteps=AGENT_STEPS, num_seeds=AGENTS)
    program = compile_program(trpo_jax.train, config)
    start = time.perf_counter()
    result = program.run()
    seconds = time.perf_counter() - start
    returns = result.metrics.episode_return[:, -1]
    return {
        "agents": AGENTS,
        "steps_each": AGENT_STEPS,
        "wall_seconds": seconds,
        "compile_seconds": program.trace_seconds + program.compile_seconds,
        "mean_return_of_the_last_rollout": float(returns.mean()),
    }


def largest_update() -> dict:
    """Measure an update of 1,024-wide layers on 2²² transitions, in micro-batches."""
    sizes = (LARGEST_WIDTH, LARGEST_WIDTH)
    problem = make_problem("categorical", LARGEST_ROWS, sizes)
    program = update_program(problem, micro_batch_size=LARGEST_MICRO_BATCH)
    program.run()
    start = time.perf_counter()
    _, info = program.run()
    seconds = time.perf_counter() - start
    return {
        "rows": LARGEST_ROWS,
        "width": LARGEST_WIDTH,
        "micro_batch_size": LARGEST_MICRO_BATCH,
        "seconds": seconds,
        "status": trpo_jax.UpdateStatus(int(info.status)).name,
        "temporary_bytes": program.temporary_bytes,
    }


ceilings_once = functools.cache(ceilings)


def measure_curvature(case: tuple[str, int, int], seconds: float) -> dict:
    return curvature.measure(*case, ceilings_once(), seconds)


def sections(seconds: float) -> Iterator[tuple[str, Callable[[], dict]]]:
    """Yield the cases with the name of their benchmark, the most important first."""
    for case in throughput.ACCELERATOR_CASES:
        yield "throughput", functools.partial(throughput.measure, case, seconds)
    yield "many agents", many_agents
    for case in CURVATURE:
        yield "curvature", functools.partial(measure_curvature, case, seconds)
    yield "largest update", largest_update
    for case in scaling.CASES:
        yield "scaling", functools.partial(scaling.measure, *case, seconds)


def main(minutes: float = 7.5, seconds: float = 1.0) -> int:
    """Measure all cases.

    Args:
        minutes: No case starts after this time, which leaves time to finish the last.
        seconds: Measuring time of a case.

    Returns:
        The exit status: 1 if a case failed.
    """
    if jax.default_backend() == "cpu":
        print("no accelerator: JAX finds a CPU only, so nothing is measured.")
        return 0
    deadline = time.perf_counter() + 60 * minutes
    failed = []

    def rows() -> Iterator[dict]:
        for name, measure in sections(seconds):
            if time.perf_counter() > deadline:
                yield {"benchmark": name, "skipped": "out of time"}
                continue
            try:
                yield {"benchmark": name} | measure()
            except Exception as error:  # the other cases are still worth measuring
                failed.append(name)
                yield {"benchmark": name, "error": f"{type(error).__name__}: {error}"}

    device = jax.devices()[0].device_kind.replace(" ", "-").lower()
    write_rows(pathlib.Path(RESULTS / f"accelerator-{device}.jsonl"), rows())
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
