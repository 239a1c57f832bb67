"""Cost of Fisher-vector products, solves and updates relative to one gradient.

    python -m benchmarks.curvature

The gradient is that of the surrogate over the same batch. The time of a product is a
tenth of the difference between solves of eleven iterations and of one. The programs of
a case take turns. Operations are counted from the shapes of the layers, bytes as the
least that a product must read; both are compared with the measured ceilings of the
device.
"""

import itertools
import pathlib
from collections.abc import Iterator

import jax
import tyro

from benchmarks.harness import (
    RESULTS,
    ceilings,
    take_turns,
    write_rows,
)
from benchmarks.problems import (
    FEATURES,
    OPERATORS,
    gradient_program,
    make_problem,
    num_parameters,
    solve_program,
    update_program,
)
from trpo_jax.training.defaults import resolve_sizes

SIZES = tuple(4**k for k in range(5, 11))
WIDTHS = (64, 256, 1024)
KINDS = ("categorical", "gaussian")
ITERATIONS = 10


def product_operations(width: int, outputs: int = 2) -> int:
    """Count the operations of one Gauss–Newton product for one state.

    With two outputs, the Jacobian S of the outputs with respect to the second layer's
    input is stored. A product with J is then one matrix product per layer, for the
    change of its weights; one more in the last layer, for the change of its input; and
    S times the change of the second layer's input. A product with Jᵀ costs the same.
    """
    first, hidden, last = FEATURES * width, width**2, width * outputs
    return 2 * 2 * (first + hidden + 3 * last)


def product_bytes(width: int, outputs: int = 2) -> int:
    """Count the bytes that one product must read for one state: activations and S."""
    return 4 * (FEATURES + (2 + outputs) * width + outputs)


def measure(
    kind: str, num_rows: int, width: int, ceiling: dict[str, float], seconds: float
) -> dict:
    problem = make_problem(kind, num_rows, (width, width))
    sizes = resolve_sizes(problem.config)
    programs = {
        "gradient": gradient_program(problem),
        "gradient_in_micro_batches": gradient_program(problem, sizes.micro_batch_size),
        "update": update_program(problem),
    }
    for operator, extra in itertools.product(OPERATORS, (1, 1 + ITERATIONS)):
        programs[f"{operator}_{extra}"] = solve_program(problem, operator, extra)
    timings = take_turns(programs, seconds=seconds, repeats=3)
    gradient = timings["gradient"].median
    products = {
        operator: (
            timings[f"{operator}_{1 + ITERATIONS}"].median
            - timings[f"{operator}_1"].median
        )
        / ITERATIONS
        for operator in OPERATORS
    }
    product = products["gauss_newton"]
    return {
        "kind": kind,
        "rows": num_rows,
        "width": width,
        "parameters": num_parameters(problem),
        "fisher_stride": sizes.fisher_stride,
        "micro_batch_size": sizes.micro_batch_size,
        "seconds": timings,
        "product_seconds": products,
        "product_over_gradient": {
            name: value / gradient for name, value in products.items()
        },
        "update_over_gradient": timings["update"].median / gradient,
        "update_over_faster_gradient": timings["update"].median
        / min(gradient, timings["gradient_in_micro_batches"].median),
        "compile_seconds": {
            name: program.trace_seconds + program.compile_seconds
            for name, program in programs.items()
        },
        "temporary_bytes": {
            name: program.temporary_bytes for name, program in programs.items()
        },
        "share_of_matrix_ceiling": num_rows
        * product_operations(width)
        / product
        / ceiling["flops_per_second"],
        "share_of_copy_ceiling": num_rows
        * product_bytes(width)
        / product
        / ceiling["bytes_per_second"],
        "ceilings": ceiling,
    }


def cases(most_operations: float) -> Iterator[tuple[str, int, int]]:
    """Yield the cases whose product has at most `most_operations` operations."""
    for kind, width, num_rows in itertools.product(KINDS, WIDTHS, SIZES):
        if num_rows * product_operations(width) <= most_operations:
            yield kind, num_rows, width


def main(
    seconds: float = 2.0,
    most_operations: float | None = None,
    output: pathlib.Path = RESULTS / "curvature.jsonl",
) -> None:
    """Measure every case that is not too large for the device.

    Args:
        seconds: Measuring time of a case.
        most_operations: Skip products with more operations; by default 5e10 on a CPU
            and no limit on an accelerator.
        output: File for the rows.
    """
    if most_operations is None:
        most_operations = 5e10 if jax.default_backend() == "cpu" else float("inf")
    ceiling = ceilings()
    print(ceiling)
    write_rows(
        output,
        (
            measure(kind, num_rows, width, ceiling, seconds)
            for kind, num_rows, width in cases(most_operations)
        ),
    )


if __name__ == "__main__":
    tyro.cli(main)
