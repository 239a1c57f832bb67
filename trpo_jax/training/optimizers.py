"""Optimisers of Optax by the names that a configuration uses."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import optax

# Elementwise optimisers: a tree flattened to one vector gives them the same updates.
_ELEMENTWISE = ("adam", "adamw", "nadam", "radam", "rmsprop", "sgd")


OptimizerFn = Callable[[Any], optax.GradientTransformation]


def make_optimizer(value: Any, *, max_gradient_norm: float = 0.0) -> OptimizerFn:
    """Return learning rate ↦ optimiser.

    Args:
        value: The name of an optimiser of Optax, or the function itself.
        max_gradient_norm: Global norm that gradients are scaled down to before the
            optimiser, 0 for none.

    Raises:
        AttributeError: If Optax has no such name.
    """
    optimizer_fn = _named(value) if isinstance(value, str) else value
    if not max_gradient_norm:
        return optimizer_fn
    clip = optax.clip_by_global_norm(max_gradient_norm)
    return lambda learning_rate: optax.chain(clip, optimizer_fn(learning_rate))


def _named(value: str) -> OptimizerFn:
    named = getattr(optax, value)
    if "eps_root" in inspect.signature(named).parameters:
        # Far below every other number here, it keeps the derivative of Adam's root
        # finite where a gradient has always been 0.
        named = functools.partial(named, eps_root=1e-30)
    if value not in _ELEMENTWISE:
        return named
    # One vector takes a tenth less time in small minibatches, and compiles faster.
    return lambda learning_rate: optax.flatten(named(learning_rate))
