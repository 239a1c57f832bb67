"""Compiling cheaply, and counting how often it happens."""

import contextlib
import functools
import gc
from collections.abc import Iterator

import jax

from trpo_jax.training import compilation

# The programs of these tests run for milliseconds and compile for seconds: without
# LLVM's optimisations they compile twice as fast.
_QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
fast_jit = functools.partial(
    jax.jit, compiler_options=_QUICK | compilation.OLDER_EMITTERS
)


def compile_quickly() -> None:
    """Let the package compile so in this process, whatever options it asks for.

    The command line is tested with the package's own options, in processes of its own.
    """
    options_fn = compilation.compiler_options

    def quick_options(env_steps: int | None = None) -> dict[str, bool | int | str]:
        options = options_fn(env_steps)
        return options and options | _QUICK

    compilation.compiler_options = quick_options


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
    """Yield a list that gets the seconds of each compilation in the block."""
    seconds: list[float] = []

    def listen(event: str, duration: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@contextlib.contextmanager
def checking_leaks() -> Iterator[None]:
    """Check that traces in the block leak no tracer.

    JAX collects garbage after each trace. It need not go through the many objects from
    before the block: they are not part of a new cycle.
    """
    gc.freeze()
    try:
        with jax.checking_leaks():
            yield
    finally:
        gc.unfreeze()
