"""Shared by all benchmarks: timing, description of the machine, JSON lines.

A timing is of a compiled program whose inputs are on the device, after a warm-up, until
its outputs are ready. Programs that are compared take turns, so that other load on the
machine affects them alike.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import trpo_jax

RESULTS = pathlib.Path(__file__).parent / "results"
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "gymnax", "numpy")


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one run of a program: median, and first and third quartile."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, seconds: Iterable[float]) -> "Timing":
        values = np.asarray(list(seconds))
        low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
        return cls(float(median), float(low), float(high), len(values))


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function with its arguments, and the cost of compiling it."""

    run: Callable[[], Any]
    trace_seconds: float
    compile_seconds: float
    temporary_bytes: int | None


def compile_program(fn: Callable, *args: Any, **jit_options: Any) -> Program:
    """Compile `fn` for `args`, and time tracing and compilation separately.

    Matrix products have float32 accuracy, as in an update.
    """
    start = time.perf_counter()
    with jax.default_matmul_precision("float32"):
        lowered = jax.jit(fn, **jit_options).lower(*args)
    traced = time.perf_counter()
    compiled = lowered.compile(trpo_jax.compiler_options())
    end = time.perf_counter()
    memory = compiled.memory_analysis()
    return Program(
        run=lambda: jax.block_until_ready(compiled(*args)),
        trace_seconds=traced - start,
        compile_seconds=end - traced,
        temporary_bytes=getattr(memory, "temp_size_in_bytes", None),
    )


def take_turns(
    programs: dict[str, Program], *, seconds: float = 2.0, repeats: int = 5
) -> dict[str, Timing]:
    """Time programs in turns, for at least `repeats` rounds and `seconds` in total."""
    spent: dict[str, list[float]] = {name: [] for name in programs}
    for program in programs.values():
        program.run()
    start = time.perf_counter()
    rounds = 0
    while rounds < repeats or time.perf_counter() - start < seconds:
        for name, program in programs.items():
            before = time.perf_counter()
            program.run()
            spent[name].append(time.perf_counter() - before)
        rounds += 1
    return {name: Timing.of(values) for name, values in spent.items()}


def fitted_exponent(sizes: Iterable[float], seconds: Iterable[float]) -> float:
    """Fit the slope of log time against log size: 1 means proportional."""
    return float(np.polyfit(np.log(list(sizes)), np.log(list(seconds)), 1)[0])


def ceilings() -> dict[str, float]:
    """Measure the peak rates of the device: float32 matrix products and copies."""
    size = 2048
    matrix = jnp.ones((size, size))
    vector = jnp.ones(2**26)
    product = compile_program(jnp.matmul, matrix, matrix)
    copy = compile_program(lambda x: x + 1, vector)
    timings = take_turns({"product": product, "copy": copy}, seconds=3.0)
    return {
        "flops_per_second": 2 * size**3 / timings["product"].low,
        "bytes_per_second": 2 * vector.nbytes / timings["copy"].low,
    }


def machine() -> dict[str, Any]:
    """Describe the machine and the versions that a row was measured with."""
    return {
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "cores": _cores(),
        "python": platform.python_version(),
        "versions": {"trpo_jax": trpo_jax.version.__version__}
        | {name: importlib.metadata.version(name) for name in LIBRARIES},
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def _cores() -> int | None:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _commit() -> str | None:
    """Return the commit, marked -dirty if files differ; None outside a checkout."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=pathlib.Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_rows(path: pathlib.Path, rows: Iterable[dict[str, Any]]) -> list[dict]:
    """Write each row as a JSON line as soon as it is measured; return them all.

    The first row replaces the previous contents of the file.
    """
    written: list[dict] = []
    for row in rows:
        if not written:
            path.unlink(missing_ok=True)
        written.append(append_row(path, row))
        print(json.dumps(row, default=dataclasses.asdict), flush=True)
    return written


def append_row(path: pathlib.Path, row: dict[str, Any]) -> dict[str, Any]:
    """Append a row, with the description of the machine, to a file; return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stamped = row | machine()
    with path.open("a") as file:
        file.write(json.dumps(stamped, default=dataclasses.asdict) + "\n")
    return stamped


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """Return the rows of a results file; none if the file does not exist."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]
