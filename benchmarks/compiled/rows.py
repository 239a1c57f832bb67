"""Rows of the benchmark: what a compiled program launches, holds and exchanges."""

import collections
import dataclasses
import re
import time
from typing import Any

import jax

from benchmarks.compiled.model import V5E_CLOCK, modelled_seconds
from benchmarks.compiled.programs import Case, Lowered
from benchmarks.compiled.targets import Target
from benchmarks.compiled.text import Executed, parse, walk
from benchmarks.compiled.work import (
    Collective,
    Work,
    collectives,
    has_collective,
    is_kernel,
    work_of,
)

# By the function that has the loop. Iterations of conjugate gradient: the default of
# cg_iterations and critic_cg_iterations; several agents go on until the last is done.
# Rounds of a line search: `results/evidence.jsonl` has 1.4 to 1.8 in classic control.
STATED_TRIPS = {"_iterate": (10, "at most"), "_search": (2, "as stated")}

_ESTIMATE = re.compile(r'"estimated_cycles":"(\d+)"')


def identity(case: Case, target: Target) -> dict[str, Any]:
    """Return the fields of a row that name its program."""
    return {
        "program": case.name,
        "target": target.name,
        "num_envs": case.envs_on(target),
        "rollout_length": case.rollout_length,
        "num_agents": case.num_agents,
        "per_device": case.per_device,
    }


def measure(case: Case, target: Target, lowered: Lowered) -> dict[str, Any]:
    """Compile a program, and return its row."""
    start = time.perf_counter()
    program = lowered.lower()
    traced, spent = time.perf_counter(), time.process_time()
    compiled = program.compile()
    end, spent = time.perf_counter(), time.process_time() - spent
    memory = compiled.memory_analysis()
    return {
        **identity(case, target),
        "devices": target.devices,
        "fields": {name: str(value) for name, value in case.fields},
        "trace_seconds": traced - start,
        "compile_seconds": end - traced,
        "compile_processor_seconds": spent,
        "parameter_bytes": lowered.parameter_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        **described(compiled, target),
    }


def described(compiled: jax.stages.Compiled, target: Target) -> dict[str, Any]:
    """Return what the text of a compiled program says."""
    program = parse(compiled.as_text())
    executed = list(walk(program, stated_trips=STATED_TRIPS))
    exchanges = collectives(program, executed)
    kernels = [
        (work_of(program, step.instruction), step.times)
        for step in counted_kernels(executed)
        if not has_collective(program, step.instruction)
    ]
    total = Work()
    for work, times in kernels:
        total += Work(*(times * figure for figure in work))
    modelled = modelled_seconds(target, kernels, exchanges)
    return {
        "kernels": sum(step.times for step in counted_kernels(executed)),
        "loops": loops(executed),
        "host_reads": host_reads(executed) if target.kind == "h100" else 0,
        "collectives": [c._asdict() for c in grouped(exchanges)],
        "modelled_bytes": total.nbytes,
        "modelled_operations": total.matrix + total.full_matrix + total.vector,
        "modelled_seconds": dataclasses.asdict(modelled),
        "modelled_step_seconds": modelled.total,
        "modelled_seconds_by_xla": seconds_by_xla(executed),
    }


def seconds_by_xla(executed: list[Executed]) -> float | None:
    """Return the sum of XLA's own estimates of each kernel; None on a GPU.

    Only the text of a program for a TPU has them, and not for exchanges.
    """
    estimates = (
        step.times * int(found.group(1))
        for step in counted_kernels(executed)
        if (found := _ESTIMATE.search(step.instruction.attributes))
    )
    return sum(estimates) / V5E_CLOCK or None


def counted_kernels(executed: list[Executed]) -> list[Executed]:
    return [step for step in executed if step.counts and is_kernel(step.instruction)]


def loops(executed: list[Executed]) -> list[dict[str, Any]]:
    """Return the kernels of one iteration of each loop; "" is outside of all."""
    kernels = collections.Counter(step.loops for step in counted_kernels(executed))
    return [
        {
            "loop": " > ".join(loop.name for loop in around),
            "times": [loop.trips for loop in around],
            "counted": [loop.counted for loop in around],
            "kernels": count,
        }
        for around, count in kernels.items()
    ]


def host_reads(executed: list[Executed]) -> int:
    """Count conditions that a GPU's host reads: of branches and of open loops."""
    reads = 0
    for step in executed:
        if step.counts and step.instruction.opcode == "conditional":
            reads += step.times
        opcode, attributes = step.instruction.opcode, step.instruction.attributes
        if step.counts and opcode == "while" and "known_trip" not in attributes:
            reads += step.times
    inside = {step.loops: step.times for step in executed if step.loops}
    for around, times in inside.items():
        if around[-1].counted != "exactly":
            reads += times
    return reads


def grouped(exchanges: list[Collective]) -> list[Collective]:
    """Return the collectives, those alike as one with their times added."""
    groups: dict[Collective, int] = {}
    for exchange in exchanges:
        alike = exchange._replace(times=0)
        groups[alike] = groups.get(alike, 0) + exchange.times
    return [alike._replace(times=times) for alike, times in groups.items()]
