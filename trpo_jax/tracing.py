"""Detection of transformations under way, and of objects that hold their tracers."""

import functools
import gc
import types
from typing import Any

import jax
import numpy as np
from jax.extend.core import get_opaque_trace_state


def is_tracing() -> bool:
    """Return whether `jit`, `vmap`, `grad` or another transformation is under way."""
    # JAX has no public predicate for this. To look at arguments is not enough: tracers
    # also come in by closure, and under vmap and grad an array made from constants is
    # concrete. So the current trace is compared with the one that evaluates at once.
    with jax.core.eval_context():
        evaluating = get_opaque_trace_state()
    return get_opaque_trace_state() != evaluating


def holds_tracers(value: Any) -> bool:
    """Return whether a tracer can be reached from `value`.

    Caches that outlive a transformation must not keep such an object: its tracers are
    dead when the transformation ends, and keep the whole trace in memory.
    """
    if not is_tracing():
        return False
    # Not by jax.tree.leaves: an environment is an opaque object, and a tracer may sit
    # in an attribute, or in the closure of a method. The garbage collector knows every
    # reference.
    seen: set[int] = set()
    pending: list[Any] = [value]
    while pending:
        reached = pending.pop()
        if isinstance(reached, jax.core.Tracer):
            return True
        if id(reached) in seen or _is_shared(reached):
            continue
        seen.add(id(reached))
        if type(reached) in _CACHED:
            pending.append(reached.__wrapped__)
        elif isinstance(reached, types.FunctionType):  # all but its globals
            pending += (reached.__closure__, reached.__defaults__, reached.__dict__)
            pending.append(reached.__kwdefaults__)
        else:
            pending += gc.get_referents(reached)
    return False


# What these have cached is not part of the function.
_CACHED = (type(functools.cache(len)), type(jax.jit(len)))


def _is_shared(reached: Any) -> bool:
    """Return whether `reached` exists outside of functions, or holds numbers alone."""
    # Modules and their classes lead to every object of the process.
    if isinstance(reached, type):
        return "<locals>" not in reached.__qualname__
    return isinstance(reached, (types.ModuleType, jax.Array, np.ndarray))
