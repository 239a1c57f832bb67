"""Kernels of a compiled program: bytes that each moves, operations that it makes.

Counted from shapes, as XLA's own cost analysis does: a kernel reads each operand once
and writes its result once; of an array that it only slices, it reads the slices, and an
update in place moves the update. Arrays in a TPU's vector memory move no bytes.
"""

import math
import re
from typing import NamedTuple

import numpy as np

from benchmarks.compiled.text import (
    COLLECTIVES,
    ArrayShape,
    Executed,
    Instruction,
    Program,
)

# Names for what is there already, control flow whose body is counted, and the second
# half of an asynchronous pair.
_NO_KERNEL = {
    "add-dependency",
    "after-all",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "get-tuple-element",
    "iota",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
}
_NO_KERNEL_TARGETS = ("AllocateBuffer", "AssumeGatherIndicesInBound", "Sharding")

# What only moves numbers.
_NO_OPERATIONS = _NO_KERNEL | {
    "broadcast",
    "concatenate",
    "convert",
    "copy",
    "dynamic-slice",
    "dynamic-update-slice",
    "gather",
    "pad",
    "reshape",
    "reverse",
    "slice",
    "transpose",
}
_SLICES = ("dynamic-slice", "slice", "gather")

# The layout of an array in a TPU's vector memory (1), or in its scalar memory (6).
_ON_CHIP = re.compile(r"S\([16]\)")


class Work(NamedTuple):
    """Work of one execution of a kernel.

    Attributes:
        nbytes: Bytes read and written in the device's memory.
        matrix: Operations of matrix products and convolutions at reduced precision.
        full_matrix: Those at float32 precision.
        vector: Other operations: one for each element of each elementwise result, and
            for each element that is reduced.
    """

    nbytes: int = 0
    matrix: int = 0
    full_matrix: int = 0
    vector: int = 0

    def __add__(self, other: tuple) -> "Work":
        return Work(*(a + b for a, b in zip(self, other, strict=True)))


class Collective(NamedTuple):
    """One exchange between devices.

    Attributes:
        kind: Such as "all-reduce".
        shapes: Arrays of its result.
        nbytes: Their bytes on each device.
        times: Executions in one run of the program.
        loop: Names of the loops around it, "" for none.
        counts: As in `Executed`.
    """

    kind: str
    shapes: str
    nbytes: int
    times: int
    loop: str
    counts: bool


def is_kernel(instruction: Instruction) -> bool:
    """Return whether an instruction starts something on the device.

    A TPU computes scalars beside its kernels, and a GPU has no scalar operation outside
    a fusion.
    """
    if instruction.opcode in _NO_KERNEL or instruction.opcode.endswith("-done"):
        return False
    if instruction.opcode == "custom-call":
        return not any(t in instruction.attributes for t in _NO_KERNEL_TARGETS)
    whole = ("fusion", "copy", "copy-start", "sort", "async-start", "infeed")
    if instruction.opcode.removesuffix("-start") in (*COLLECTIVES, *whole):
        return True
    return any(shape.dims for shape in instruction.shapes)


def collectives(program: Program, executed: list[Executed]) -> list[Collective]:
    """Return the collectives of a program, each once.

    A TPU may split one over several fusions, which share its channel.
    """
    found: dict[object, Collective] = {}
    for step in executed:
        for instruction in _exchanges(program, step.instruction):
            channel = instruction.number("channel_id")
            key = instruction.name if channel is None else channel
            shapes = _result(instruction)
            found.setdefault(
                key,
                Collective(
                    kind=instruction.opcode.removesuffix("-start"),
                    shapes=" ".join(map(str, shapes)),
                    nbytes=sum(shape.nbytes for shape in shapes),
                    times=step.times,
                    loop=" > ".join(loop.name for loop in step.loops),
                    counts=step.counts,
                ),
            )
    return list(found.values())


def is_collective(instruction: Instruction) -> bool:
    return instruction.opcode.removesuffix("-start") in COLLECTIVES


def _exchanges(program: Program, instruction: Instruction) -> list[Instruction]:
    """Return the collectives in an instruction: itself, or those that it calls."""
    if is_collective(instruction):
        return [instruction]
    if instruction.opcode not in ("fusion", "async-start") or not instruction.called:
        return []
    inside = program.computations.get(instruction.called, ())
    return [found for i in inside for found in _exchanges(program, i)]


def has_collective(program: Program, instruction: Instruction) -> bool:
    return bool(_exchanges(program, instruction))


def _result(collective: Instruction) -> tuple[ArrayShape, ...]:
    """Return the arrays of its result; the start of some has the operands before."""
    shapes = collective.shapes
    if collective.opcode in ("all-gather-start", "collective-permute-start"):
        shapes = tuple(shape for shape in shapes if "S(2)" not in shape.layout)
        return shapes[len(shapes) // 2 :]
    return shapes


def work_of(program: Program, instruction: Instruction) -> Work:
    """Return the work of a kernel."""
    if instruction.opcode == "fusion" and instruction.called:
        nbytes = _fused_bytes(program, instruction, instruction.called)
        return Work(nbytes) + _operations(program, instruction)
    return Work(_plain_bytes(program, instruction)) + _operations(program, instruction)


def _bytes(shapes: tuple[ArrayShape, ...]) -> int:
    return sum(s.nbytes for s in shapes if not _ON_CHIP.search(s.layout))


def _plain_bytes(program: Program, instruction: Instruction) -> int:
    operands = program.operands_of(instruction)
    if instruction.opcode in _SLICES:
        return 2 * _bytes(instruction.shapes)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _bytes(operands[1].shapes)
    if instruction.opcode == "copy-start":
        return _bytes(instruction.shapes[:2])
    return _bytes(instruction.shapes) + sum(_bytes(o.shapes) for o in operands)


def _fused_bytes(program: Program, fusion: Instruction, computation: str) -> int:
    body, root = program.computations[computation], program.root_of(computation)
    users: dict[str, list[Instruction]] = {}
    for inner in body:
        for operand in inner.operands:
            users.setdefault(operand, []).append(inner)
    total = 0
    for inner in body:
        if inner.opcode == "parameter":
            operand = program.instructions[fusion.operands[int(inner.operands[0])]]
            total += _read(inner, users) if _bytes(operand.shapes) else 0
    named = {inner.name: inner for inner in body}
    results = [named[o] for o in root.operands] if root.opcode == "tuple" else [root]
    for result, shape in zip(results, fusion.shapes, strict=False):
        source = _through(result, named)
        if source.opcode == "dynamic-update-slice":
            total += named[source.operands[1]].nbytes
        else:
            total += _bytes((shape,))
    return total


def _through(instruction: Instruction, named: dict[str, Instruction]) -> Instruction:
    """Return what an instruction only renames."""
    while instruction.opcode == "bitcast":
        instruction = named[instruction.operands[0]]
    return instruction


def _read(instruction: Instruction, users: dict[str, list[Instruction]]) -> int:
    """Return the bytes of an array that a fused computation reads."""
    total = 0
    for user in users.get(instruction.name, ()):
        first = user.operands[0] == instruction.name
        if user.opcode == "bitcast":
            total += _read(user, users)
        elif user.opcode in _SLICES and first:
            total += user.nbytes
        elif not (user.opcode == "dynamic-update-slice" and first):
            return instruction.nbytes
    return min(total, instruction.nbytes)


def _operations(program: Program, instruction: Instruction) -> Work:
    opcode = instruction.opcode
    size = sum(shape.size for shape in instruction.shapes)
    if opcode in ("dot", "convolution", "custom-call"):
        operations = _matrix_operations(program, instruction)
        if re.search(r"operand_precision=\{highest", instruction.attributes):
            return Work(full_matrix=operations)
        if '"operand_precision":["HIGHEST"' in instruction.attributes:
            return Work(full_matrix=operations)
        return Work(matrix=operations)
    if opcode == "fusion" and instruction.called:
        work = Work()
        for inner in program.computations[instruction.called]:
            work += _operations(program, inner)
        return work
    if opcode in ("reduce", "reduce-window", "sort", "scatter"):
        operands = program.operands_of(instruction)
        return Work(vector=max([size, *(s.size for o in operands for s in o.shapes)]))
    name = opcode.removesuffix("-start").removesuffix("-done")
    if opcode in _NO_OPERATIONS or name in (*COLLECTIVES, "copy", "async"):
        return Work()
    return Work(vector=size)


def _matrix_operations(program: Program, instruction: Instruction) -> int:
    """Return multiplications and additions of a product or convolution, else 0."""
    operands = program.operands_of(instruction)
    if len(operands) < 2:
        return 0
    attributes = instruction.attributes
    left, right = operands[0].shapes[0], operands[1].shapes[0]
    result = instruction.shapes[0]
    if found := re.search(r"lhs_contracting_dim(?:s|ensions)\W+([\d,\"]+)", attributes):
        dims = [int(d) for d in re.findall(r"\d+", found.group(1))]
        return 2 * result.size * math.prod(left.dims[d] for d in dims)
    if labels := re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes):
        return _convolution_operations(left, right, result, labels.groups(), attributes)
    return 0


def _convolution_operations(
    left: ArrayShape,
    right: ArrayShape,
    result: ArrayShape,
    labels: tuple[str, ...],
    attributes: str,
) -> int:
    """Return 2 × results × inputs of each, of the inputs that are not padding.

    A TPU's products with a batch are convolutions over it, almost all of them padding.
    """
    inputs, kernel, outputs = labels
    features = right.dims[kernel.index("i")]
    count = math.prod(
        size for size, label in zip(result.dims, outputs, strict=True) if label in "bf"
    )
    windows = _windows(attributes)
    for digit in filter(str.isdigit, outputs):
        count *= _valid_pairs(
            left.dims[inputs.index(digit)],
            right.dims[kernel.index(digit)],
            result.dims[outputs.index(digit)],
            {name: values[int(digit)] for name, values in windows.items()},
        )
    return 2 * count * features


def _windows(attributes: str) -> dict[str, list[str]]:
    found = re.search(r"window=\{([^}]*)\}", attributes)
    fields = re.findall(r"(\w+)=(\S+)", found.group(1)) if found else []
    return {name: value.split("x") for name, value in fields}


def _valid_pairs(size: int, kernel: int, outputs: int, window: dict[str, str]) -> int:
    """Count (result, kernel element) pairs that meet an input, in one dimension."""
    stride, spread = int(window.get("stride", 1)), int(window.get("lhs_dilate", 1))
    step = int(window.get("rhs_dilate", 1))
    low = int(window.get("pad", "0_0").split("_")[0])
    if outputs * kernel > 2**24:  # only a batch is as large, and each meets its own
        return max(outputs, kernel)
    position = np.arange(outputs)[:, None] * stride + np.arange(kernel) * step - low
    inside = (position >= 0) & (position <= (size - 1) * spread)
    return int(np.sum(inside & (position % spread == 0)))
