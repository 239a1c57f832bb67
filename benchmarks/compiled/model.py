"""Modelled time of a compiled program: launches, memory, operations, exchanges.

    Σ kernels · (launch + max(bytes / bandwidth, operations / peak)) + Σ exchanges

Nothing overlaps. The constants are those of data sheets and published models, named
below; a device reaches less than each of them. So the result orders programs and shows
what limits them, and is not a measurement.
"""

import dataclasses
from collections.abc import Callable

from benchmarks.compiled.targets import Target
from benchmarks.compiled.work import Collective, Work

# NVIDIA, data sheet of the H100 SXM: 3.35 TB/s; 67 TFLOP/s at float32, half of them
# without fused multiply-add; TF32 on tensor cores, 989 TFLOP/s with sparsity and half
# without; NVLink 900 GB/s, half in each direction.
_H100_MEMORY = 3.35e12
_H100_FLOAT32 = 67e12
_H100_TF32 = 494.5e12
_H100_NVLINK = 450e9
# XLA, xla/service/gpu/model/gpu_performance_model_base.h: kKernelLaunchOverhead.
_H100_LAUNCH = 1e-6
# NCCL, src/graph/tuning.cc: seconds of a ring over NVLink to begin, seconds of each of
# its steps, and bytes per second, by protocol: LL (of Hopper, llMaxBws) and Simple.
_NCCL_RING = ((6.6e-6, 0.6e-6, 87.7e9), (8.4e-6, 3.4e-6, _H100_NVLINK))

# Google Cloud, "TPU v5e": 819 GB/s; 197 TFLOP/s at bfloat16. A float32 product is six
# of these (bf16_6x of jax.default_matmul_precision).
_V5E_MEMORY = 819e9
_V5E_BFLOAT16 = 197e12
_V5E_FLOAT32 = _V5E_BFLOAT16 / 6
# "How to Scale Your Model" (jax-ml.github.io/scaling-book), chapters 2 and 3: 1.5 GHz,
# a vector unit of 8 × 128 × 4 operations a cycle, links of 50 GB/s in each direction,
# 1 µs a hop, a ring only where an axis has 16 chips.
V5E_CLOCK = 1.5e9
_V5E_VECTOR = 8 * 128 * 4 * V5E_CLOCK
_V5E_LINK = 50e9
_V5E_HOP = 1e-6
_V5E_RING = 16
# XLA writes its estimate of each kernel (estimated_cycles) into a program for v5e: the
# smallest kernels have 1,800 cycles.
_V5E_LAUNCH = 1800 / V5E_CLOCK


@dataclasses.dataclass(frozen=True)
class Speeds:
    """Speeds of one device.

    Attributes:
        launch: Seconds that a kernel takes if it does nothing.
        memory: Bytes per second.
        matrix: Operations per second of matrix products at reduced precision.
        full_matrix: Those at float32.
        vector: Other operations per second.
        exchange: Seconds of a collective.
    """

    launch: float
    memory: float
    matrix: float
    full_matrix: float
    vector: float
    exchange: Callable[[Target, Collective], float]


@dataclasses.dataclass(frozen=True)
class Modelled:
    """Modelled seconds of one run of a program, by what they are spent on."""

    launches: float
    memory: float
    operations: float
    communication: float

    @property
    def total(self) -> float:
        return sum(dataclasses.astuple(self))


def modelled_seconds(
    target: Target, kernels: list[tuple[Work, int]], exchanges: list[Collective]
) -> Modelled:
    """Return the modelled seconds of a program.

    Args:
        target: The devices.
        kernels: Each kernel's work, with the number of its executions.
        exchanges: The collectives.
    """
    speeds = SPEEDS[target.kind]
    launches = memory = operations = 0.0
    for work, times in kernels:
        launches += times * speeds.launch
        moving = work.nbytes / speeds.memory
        computing = (
            work.matrix / speeds.matrix
            + work.full_matrix / speeds.full_matrix
            + work.vector / speeds.vector
        )
        if moving > computing:
            memory += times * moving
        else:
            operations += times * computing
    communication = sum(
        exchange.times * speeds.exchange(target, exchange)
        for exchange in exchanges
        if exchange.counts
    )
    return Modelled(launches, memory, operations, communication)


def nvlink_seconds(target: Target, exchange: Collective) -> float:
    """Return the seconds of a ring of NCCL, at the protocol that is faster."""
    rounds = 2 if exchange.kind == "all-reduce" else 1
    steps = rounds * (target.devices - 1)
    sent = exchange.nbytes * steps / target.devices
    return min(
        begin + steps * step + sent / bandwidth for begin, step, bandwidth in _NCCL_RING
    )


def torus_seconds(target: Target, exchange: Collective) -> float:
    """Return the seconds of an exchange along all axes of a slice.

    The latency of the farthest chip, or the bytes over all links of a chip, whichever
    is longer: "How to Scale Your Model", chapter 3. A reduction to all is one that
    scatters and one that gathers.
    """
    rounds = 2 if exchange.kind == "all-reduce" else 1
    axes = [size for size in target.shape if size > 1]
    hops = sum(size // 2 if size == _V5E_RING else size - 1 for size in axes)
    links = sum(2 if size == _V5E_RING else 1 for size in axes)
    sent = exchange.nbytes * (target.devices - 1) / target.devices
    return rounds * max(hops * _V5E_HOP, sent / (links * _V5E_LINK))


SPEEDS = {
    "h100": Speeds(
        launch=_H100_LAUNCH,
        memory=_H100_MEMORY,
        matrix=_H100_TF32,
        full_matrix=_H100_FLOAT32,
        vector=_H100_FLOAT32 / 2,
        exchange=nvlink_seconds,
    ),
    "v5e": Speeds(
        launch=_V5E_LAUNCH,
        memory=_V5E_MEMORY,
        matrix=_V5E_BFLOAT16,
        full_matrix=_V5E_FLOAT32,
        vector=_V5E_VECTOR,
        exchange=torus_seconds,
    ),
}
