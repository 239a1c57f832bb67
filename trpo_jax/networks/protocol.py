"""What training asks of a network; every Flax module meets it."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import PyTree


@runtime_checkable
class Network(Protocol):
    """A function with parameters, static under `jit`: hashable, two methods.

    `init(key, observations)` returns parameters; `apply(params, observations)` maps
    observations float[N, …] to a `Distribution` with batch [N], or to values float[N].
    """

    @property
    def init(self) -> Callable[..., PyTree]:
        """(key, observations[N, …]) ↦ params."""

    @property
    def apply(self) -> Callable[..., Any]:
        """(params, observations[N, …]) ↦ output."""


class NetworkFns(NamedTuple):
    """A `Network` of two plain functions, for whoever does without Flax."""

    init: Callable[..., PyTree]
    apply: Callable[..., Any]
