"""How XLA is asked to compile these programs."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

# Up to so many environment steps a run is over sooner with a program that is quick to
# compile than with a quick one: on two cores, with 64 × 64 units and 8 environments, it
# saves 2 s and costs 7 µs for each step.
_SHORT_RUN = 2**18


def compiler_options(env_steps: int | None = None) -> dict[str, bool | int | str]:
    """Return the options that measured fastest, for `jit(…, compiler_options=…)`.

    On a CPU: LLVM at level 1, which takes a fifth off the compilation and nothing off
    the speed; and vectors of 512 bits where there are any, where LLVM would take 256:
    1.05 to 1.07 times the speed from 64 to 1024 environments. Elsewhere none.

    Args:
        env_steps: For how many environment steps the program will run, None for many.
            A short run is over sooner with XLA's older emitters of fused loops, which
            compile in half the time; one of none, such as `init`, with LLVM at level 0,
            which halves that again and doubles the time of a step.
    """
    if jax.default_backend() != "cpu":
        return {}
    options: dict[str, bool | int | str] = {
        "xla_backend_optimization_level": 0 if env_steps == 0 else 1,
        "xla_cpu_prefer_vector_width": 512,
    }
    if env_steps is not None and is_short(env_steps):
        options["xla_cpu_use_fusion_emitters"] = False
    return options


def is_short(env_steps: int) -> bool:
    """Return whether so many steps take less time than a better program to compile."""
    return env_steps <= _SHORT_RUN


def jit_with_options(
    fn: Callable,
    inputs: PyTree,
    *,
    env_steps: int,
    static_argnums: tuple[int, ...] = (),
) -> jax.stages.Wrapped:
    """Return `fn` jitted with `compiler_options(env_steps)`.

    But without options where another program is being traced, be it from `inputs` or
    from nothing: one that is part of another cannot have any.
    """
    leaves = [*jax.tree.leaves(inputs), jnp.zeros(())]
    inside = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    options = {} if inside else compiler_options(env_steps)
    return _jit(fn, static_argnums, tuple(options.items()))


@functools.cache
def _jit(
    fn: Callable, static_argnums: tuple[int, ...], options: tuple[tuple[str, Any], ...]
) -> jax.stages.Wrapped:
    """One jitted function for the same arguments: nothing compiles twice."""
    return jax.jit(
        fn, static_argnums=static_argnums, compiler_options=dict(options) or None
    )
