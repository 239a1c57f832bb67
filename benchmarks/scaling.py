"""Growth of time with batch, seeds and parameters, as fitted exponents.

    python -m benchmarks.scaling

An exponent of 1 means proportional. The fit is over all sizes.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence

import jax
import tyro

import trpo_jax
from benchmarks.harness import (
    RESULTS,
    Program,
    compile_program,
    fitted_exponent,
    take_turns,
    write_rows,
)
from benchmarks.problems import draw, make_policy, make_problem, update_program

BATCHES = tuple(2**k for k in range(12, 21))
SEEDS = tuple(4**k for k in range(5))
WIDTHS = (32, 64, 128, 256, 512)


def batch_program(num_rows: int) -> Program:
    """Compile a policy update of 64 × 64 units on N transitions, at the defaults."""
    return update_program(make_problem("categorical", num_rows, (64, 64)))


def seeds_update_program(num_seeds: int) -> Program:
    """Compile the updates of several agents side by side, 1,024 transitions each."""
    policy = make_policy("categorical", (64, 64))
    keys = jax.random.split(jax.random.key(0), num_seeds)
    drawn = jax.jit(jax.vmap(functools.partial(draw, policy, 1024)))
    update = functools.partial(trpo_jax.trust_region.trust_region_update, policy.apply)
    return compile_program(jax.vmap(update), *drawn(keys))


def seeds_program(num_seeds: int) -> Program:
    """Compile a `step` of several agents side by side, 8 × 128 transitions each."""
    config = trpo_jax.TRPOConfig()
    keys = jax.random.split(jax.random.key(0), num_seeds)
    state = jax.jit(jax.vmap(trpo_jax.init, in_axes=(None, 0)))(config, keys)
    return compile_program(jax.vmap(trpo_jax.step, in_axes=(None, 0)), config, state)


def parameters_program(width: int) -> Program:
    """Compile a policy update of two `width`-unit layers on 8,192 transitions."""
    return update_program(make_problem("categorical", 8192, (width, width)))


CASES = (
    ("policy update against transitions N", BATCHES, batch_program),
    ("policy update against seeds", SEEDS, seeds_update_program),
    ("whole step against seeds", SEEDS, seeds_program),
    ("policy update against units a layer", WIDTHS, parameters_program),
)


def measure(
    name: str, sizes: Sequence[int], make: Callable[[int], Program], seconds: float
) -> dict:
    timings = []
    for size in sizes:
        timings.append(take_turns({"run": make(size)}, seconds=seconds)["run"])
        print(f"{name}: {size}: {timings[-1].median:.4f} s", flush=True)
    return {
        "measure": name,
        "sizes": sizes,
        "seconds": timings,
        "exponent": fitted_exponent(sizes, [timing.median for timing in timings]),
    }


def main(
    seconds: float = 2.0, output: pathlib.Path = RESULTS / "scaling.jsonl"
) -> None:
    """Measure each size for `seconds`, and fit the exponents."""
    write_rows(output, (measure(*case, seconds) for case in CASES))


if __name__ == "__main__":
    tyro.cli(main)
