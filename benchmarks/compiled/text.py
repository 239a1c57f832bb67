"""The text of a compiled program, read: computations, loops, what runs how often.

Pure functions of the text that `jax.stages.Compiled.as_text()` returns, for any device.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
    "reduce-scatter",
)

_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%?([\w.\-]+)")
_INSTRUCTION = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_CALLED = re.compile(r"\b(?:calls|to_apply)=%?([\w.\-]+)")
_COMMENT = re.compile(r"/\*.*?\*/")

# One update of a run: that of this package, and rejax's.
_UPDATES = ("step", "train_iteration")


@dataclasses.dataclass(frozen=True)
class ArrayShape:
    """Type, shape and layout of one array."""

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @property
    def size(self) -> int:
        size = 1
        for dim in self.dims:
            size *= dim
        return size

    @property
    def nbytes(self) -> int:
        if self.dtype in ("token", "opaque"):
            return 0
        bits = re.search(r"\d+", self.dtype)
        return self.size * max(1, int(bits.group()) // 8 if bits else 1)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name: Its name, unique in the program.
        shapes: Arrays of its result, those of a tuple in order.
        opcode: What it does, such as "fusion".
        operands: Names of its operands; the number of a parameter, or the value of a
            constant.
        attributes: The rest of the line.
        is_root: Whether it is the result of its computation.
    """

    name: str
    shapes: tuple[ArrayShape, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def nbytes(self) -> int:
        return sum(shape.nbytes for shape in self.shapes)

    @property
    def called(self) -> str | None:
        """Name of the computation that a fusion, call or reduction applies."""
        found = _CALLED.search(self.attributes)
        return found.group(1) if found else None

    def number(self, attribute: str) -> int | None:
        """Return the integer of an attribute such as channel_id=3."""
        found = re.search(rf"\b{attribute}=(\d+)", self.attributes)
        return int(found.group(1)) if found else None


@dataclasses.dataclass(frozen=True)
class Loop:
    """One loop of a program.

    Attributes:
        name: Functions of the source around it, the outermost first.
        trips: Iterations that are counted.
        counted: "exactly"; "at most", where the loop may end earlier; "as stated"; or
            "assumed", where nothing is known and one iteration is counted.
    """

    name: str
    trips: int
    counted: str


@dataclasses.dataclass(frozen=True)
class Executed:
    """An instruction as the program executes it.

    Attributes:
        instruction: The instruction.
        loops: The loops around it, the outermost first.
        counts: Whether it is part of the path that is counted: of a conditional, only
            the branch of most instructions is.
    """

    instruction: Instruction
    loops: tuple[Loop, ...]
    counts: bool = True

    @property
    def times(self) -> int:
        times = 1
        for loop in self.loops:
            times *= loop.trips
        return times


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations of a program, by name, and the name of the first.

    Attributes:
        computations: The instructions of each, in order of execution.
        entry: Where execution begins.
        frames: Functions of the source, innermost first, by the number of a frame.
    """

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str
    frames: Mapping[int, tuple[str, ...]]

    @functools.cached_property
    def instructions(self) -> dict[str, Instruction]:
        return {i.name: i for body in self.computations.values() for i in body}

    def operands_of(self, instruction: Instruction) -> tuple[Instruction, ...]:
        """Return the instructions whose results it takes."""
        named = map(self.instructions.get, instruction.operands)
        return tuple(operand for operand in named if operand is not None)

    def root_of(self, computation: str) -> Instruction:
        return next(i for i in self.computations[computation] if i.is_root)

    def source_of(self, instruction: Instruction) -> tuple[str, ...]:
        """Return the functions that it was traced in, innermost first."""
        return self.frames.get(instruction.number("stack_frame_id") or -1, ())


def parse(text: str) -> Program:
    """Return the program that a text describes.

    Raises:
        ValueError: If the text has no entry computation.
    """
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, name, body = "", "", []
    for line in text.splitlines():
        if not line.startswith((" ", "}")) and (start := _COMPUTATION.match(line)):
            name, body = start.group(2), []
            entry = name if start.group(1) else entry
        elif line.startswith("}") and name:
            computations[name], name = tuple(body), ""
        elif name and (instruction := _parse_instruction(line)):
            body.append(instruction)
    if not entry:
        raise ValueError(
            "the text has no ENTRY computation; write compiled.as_text() of a "
            "jax.stages.Compiled."
        )
    return Program(computations, entry, _frames(text))


def _parse_instruction(line: str) -> Instruction | None:
    start = _INSTRUCTION.match(line)
    if not start:
        return None
    line = _COMMENT.sub("", line)
    rest = line[start.end() :]
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    rest = rest[len(opcode) :]
    end = _closing(rest)
    return Instruction(
        name=start.group(2),
        shapes=_arrays(shape),
        opcode=opcode,
        operands=_operands(rest[1 : end - 1]),
        attributes=rest[end:],
        is_root=bool(start.group(1)),
    )


def _closing(text: str) -> int:
    """Return the index after the bracket that closes the first one."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character in "({") - (character in ")}")
        if not depth:
            return index + 1
    return len(text)


def _arrays(shape: str) -> tuple[ArrayShape, ...]:
    return tuple(
        ArrayShape(dtype, tuple(int(d) for d in dims.split(",") if d), layout)
        for dtype, dims, layout in _ARRAY.findall(shape)
    )


def _operands(text: str) -> tuple[str, ...]:
    """Return the names; some versions write the shape of each before its name."""
    if "%" in text:
        return tuple(re.findall(r"%([\w.\-]+)", text))
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _frames(text: str) -> dict[int, tuple[str, ...]]:
    """Return the functions of each stack frame, innermost first."""
    functions = {
        number: name.strip('"') for number, name in _table(text, "FunctionNames")
    }
    locations = {
        number: functions.get(_fields(entry).get("function_name_id", ""), "")
        for number, entry in _table(text, "FileLocations")
    }
    frames: dict[int, tuple[str, ...]] = {}
    for number, entry in _table(text, "StackFrames"):
        fields = _fields(entry)
        here = (locations.get(fields.get("file_location_id", ""), ""),)
        # XLA writes the number of the parent plus one; a frame without one has its own.
        parent = frames.get(int(fields.get("parent_frame_id", 1)) - 1, ())
        frames[int(number)] = here + parent
    return frames


def _table(text: str, name: str) -> list[tuple[str, str]]:
    found = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
    lines = found.group(1).splitlines() if found else []
    return [(number, entry) for number, _, entry in (x.partition(" ") for x in lines)]


def _fields(entry: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\d+)", entry))


def trips_of(program: Program, loop: Instruction) -> tuple[int, str]:
    """Return the iterations of a loop, and how they are known: see `Loop.counted`.

    They are in the text, or the condition compares a counter with a constant. Where it
    asks for more than that, the constant is the most.
    """
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known.group(1)), "exactly"
    condition = _attribute(loop, "condition")
    root = program.root_of(condition)
    bounds = list(_bounds(program, condition, {}))
    for instruction in program.computations[condition]:
        if instruction.opcode == "fusion" and instruction.called:
            outside = dict(enumerate(instruction.operands))
            bounds += _bounds(program, instruction.called, outside)
            if instruction is root:
                root = program.root_of(instruction.called)
    if not bounds:
        return 1, "assumed"
    return max(bounds), "exactly" if root.opcode == "compare" else "at most"


def _bounds(
    program: Program, computation: str, outside: Mapping[int, str]
) -> Iterator[int]:
    """Yield the constants that a computation compares counters with.

    Args:
        program: The program.
        computation: Its name.
        outside: Operands of the fusion that calls it, by parameter.
    """
    for instruction in program.computations[computation]:
        if instruction.opcode == "compare" and "=LT" in instruction.attributes:
            bound = program.instructions[instruction.operands[1]]
            if bound.opcode == "parameter":
                name = outside.get(int(bound.operands[0]), bound.name)
                bound = program.instructions[name]
            if bound.opcode == "constant" and bound.operands[0].isdigit():
                yield int(bound.operands[0])


def _attribute(instruction: Instruction, name: str) -> str:
    found = re.search(rf"\b{name}=%?([\w.\-]+)", instruction.attributes)
    return found.group(1) if found else ""


def walk(
    program: Program, *, stated_trips: Mapping[str, tuple[int, str]]
) -> Iterator[Executed]:
    """Yield every instruction that is executed, with the loops around it.

    Loops and calls are entered, fusions are not. A loop's condition is part of it,
    unless the text knows the number of iterations: then nothing evaluates it.

    Args:
        program: The program.
        stated_trips: Iterations of loops whose end depends on data, with how they are
            counted, by the name of the innermost function.
    """
    yield from _walk(program, program.entry, (), stated_trips)


def _walk(
    program: Program,
    computation: str,
    loops: tuple[Loop, ...],
    stated: Mapping[str, tuple[int, str]],
) -> Iterator[Executed]:
    for instruction in program.computations[computation]:
        yield Executed(instruction, loops)
        if instruction.opcode == "while":
            loop = _loop(program, instruction, stated)
            known = "known_trip_count" in instruction.attributes
            for part in ("body",) if known else ("body", "condition"):
                inside = _attribute(instruction, part)
                yield from _walk(program, inside, (*loops, loop), stated)
        elif instruction.opcode == "conditional":
            branches = [
                list(_walk(program, branch, loops, stated))
                for branch in _branches(instruction)
            ]
            longest = max(branches, key=len)
            for branch in branches:
                for executed in branch:
                    counts = executed.counts and branch is longest
                    yield dataclasses.replace(executed, counts=counts)
        elif instruction.opcode == "call" and instruction.called:
            yield from _walk(program, instruction.called, loops, stated)


def _branches(instruction: Instruction) -> list[str]:
    if group := re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes):
        return _NAME.findall(group.group(1))
    return [
        _attribute(instruction, f"{which}_computation") for which in ("true", "false")
    ]


def _loop(
    program: Program, loop: Instruction, stated: Mapping[str, tuple[int, str]]
) -> Loop:
    trips, counted = trips_of(program, loop)
    functions = [function.split(".")[-1] for function in program.source_of(loop)]
    if functions and counted != "exactly" and functions[0] in stated:
        trips, counted = stated[functions[0]]
    return Loop(_loop_name(functions) or loop.name, trips, counted)


def _loop_name(functions: list[str]) -> str:
    """Return the function that the update called, and the one that has the loop."""
    for update in _UPDATES:
        if update in functions[1:]:
            # The outermost: environments and networks have a `step` of their own.
            last = len(functions) - 1 - functions[::-1].index(update)
            functions = functions[:last]
    ends = dict.fromkeys((functions[-1], functions[0])) if functions else ()
    return "/".join(end.strip("_") for end in ends)
