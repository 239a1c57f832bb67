"""Programs compiled for accelerators that are not here.

    python -m benchmarks.compiled
    python -m benchmarks.compiled --only h100-8 v5e-256 --programs GRU

XLA compiles for a device that nobody owns. What a program launches, holds and exchanges
is read from the result, and a time is modelled from it. Each row is written as soon as
its program is compiled, and rows that are there are kept, so that the command goes on
where it stopped; delete a file to measure anew. An environment has the compilers of one
kind of device or of several; without any, the command says how to make one.
"""

import json
import pathlib
import sys

import tyro

from benchmarks.compiled import targets


def main(
    only: tuple[str, ...] = (),
    programs: tuple[str, ...] = (),
    output: pathlib.Path | None = None,
) -> int:
    """Compile every program for every target.

    Args:
        only: Names of targets; without any, all that this environment can compile for.
        programs: Beginnings of names of programs; without any, all.
        output: Folder of the rows; that of the other benchmarks, if it is not given.

    Returns:
        The exit status: 1 if a program did not compile.
    """
    chosen = targets.choose(only)
    targets.prepare()
    # Only now, since they import JAX, and one of them looks for devices.
    from benchmarks.compiled.programs import lowered, plan
    from benchmarks.compiled.rows import identity, measure
    from benchmarks.harness import RESULTS, append_row, read_rows

    pairs = plan(chosen)
    names = dict.fromkeys(case.name for case, _ in pairs)
    for start in programs:
        if not any(name.startswith(start) for name in names):
            raise ValueError(
                f"no program begins with {start!r}; write one of {'; '.join(names)}."
            )
    failed = 0
    for case, target in pairs:
        if programs and not case.name.startswith(programs):
            continue
        path = (output or RESULTS) / f"compiled-{target.kind}.jsonl"
        name = identity(case, target)
        if any(name.items() <= row.items() for row in read_rows(path)):
            continue
        try:
            row = measure(case, target, lowered(case, target))
        except Exception as error:  # the other programs are still worth compiling
            failed += 1
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        append_row(path, row)
        print(json.dumps(row), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(tyro.cli(main))
    except ValueError as error:  # a target that is unknown, or has no compiler here
        sys.exit(str(error))
