"""Options with which XLA compiles training programs."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from trpo_jax.tracing import holds_tracers, is_tracing

# Up to this many environment steps a run ends sooner with a program that compiles fast
# than with one that runs fast: on two cores, with 64 × 64 units and 8 environments, the
# former saves 2 s and costs 7 µs a step.
_SHORT_RUN = 2**18


def compiler_options(env_steps: int | None = None) -> dict[str, bool | int | str]:
    """Return the options that measured fastest, for `jit(…, compiler_options=…)`.

    On a CPU: LLVM at level 1, which compiles in a fifth less time and runs as fast; and
    vectors of 512 bits where the CPU has them (LLVM would choose 256), which run 1.05
    to 1.07 times as fast from 64 to 1024 environments. On accelerators: none.

    Args:
        env_steps: Environment steps that the program will run, None for many. A short
            run uses XLA's older emitters of fused loops, which compile in half the
            time. A program without steps, such as `init`, uses LLVM at level 0, which
            halves compilation again and doubles the time of a step.
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
    """Return whether a run of so many steps should favour compilation over speed."""
    return env_steps <= _SHORT_RUN


def jit_with_options(
    fn: Callable,
    config: Any,
    *,
    env_steps: int,
    static_argnums: tuple[int, ...] = (),
    donate_argnums: tuple[int, ...] = (),
) -> jax.stages.Wrapped:
    """Return `fn` without its first argument, jitted with `compiler_options`.

    The same arguments give the same jitted function, so that nothing compiles twice.

    Args:
        fn: A function of a config and more.
        config: Its first argument. Its environment, networks and schedules may hold
            tracers.
        env_steps: Environment steps that the program will run.
        static_argnums: As in `jax.jit`, counted without the config.
        donate_argnums: The same.
    """
    # JAX refuses options for a program that becomes part of another. Whether it does
    # cannot be seen in the arguments: under jax.grad over a number that the environment
    # holds, they are all concrete.
    options = {} if is_tracing() else compiler_options(env_steps)
    # A cache would keep the trace after its end. So would JAX's own, if the config were
    # an argument: bound to a function, it is dropped with the function.
    jit = _jit_afresh if holds_tracers(config) else _jit
    return jit(fn, config, static_argnums, donate_argnums, tuple(options.items()))


def _jit_afresh(
    fn: Callable,
    config: Any,
    static_argnums: tuple[int, ...],
    donate_argnums: tuple[int, ...],
    options: tuple[tuple[str, Any], ...],
) -> jax.stages.Wrapped:
    return jax.jit(
        functools.partial(fn, config),
        static_argnums=static_argnums,
        donate_argnums=donate_argnums,
        compiler_options=dict(options) or None,
    )


_jit = functools.cache(_jit_afresh)
