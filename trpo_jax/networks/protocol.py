"""The protocols of a network; Flax's Linen modules keep them as they are."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import PyTree


@runtime_checkable
class Network(Protocol):
    """A function with parameters, static under `jit`: hashable, two methods.

    `init(key, observations)` returns parameters; `apply(params, observations)` maps
    observations, an array [N, …] or a pytree of such arrays, to a `Distribution` with
    batch [N], or to values float[N].
    """

    @property
    def init(self) -> Callable[..., PyTree]:
        """(key, observations[N, …]) ↦ params."""

    @property
    def apply(self) -> Callable[..., Any]:
        """(params, observations[N, …]) ↦ output."""


@runtime_checkable
class RecurrentNetwork(Protocol):
    """A function of an episode so far, static under `jit`: hashable, three methods.

    It maps B sequences of T observations, leaves [B, T, …], to a `Distribution` with
    batch [B, T], or to values float[B, T]. `memory` [B, …], a pytree, carries what came
    before the sequence; `starts` bool[B, T] marks the observations that begin an
    episode, at which the memory is replaced by the initial one.
    """

    @property
    def initial_memory(self) -> Callable[[int], PyTree]:
        """B ↦ the memory of B episodes before their first observation, [B, …]."""

    @property
    def init(self) -> Callable[..., PyTree]:
        """(key, memory, observations, starts) ↦ params."""

    @property
    def apply(self) -> Callable[..., tuple[PyTree, Any]]:
        """(params, memory, observations, starts) ↦ (memory after each step, output).

        The memories have the axes [B, T, …].
        """


class NetworkFns(NamedTuple):
    """A `Network` of two plain functions, without Flax."""

    init: Callable[..., PyTree]
    apply: Callable[..., Any]


class RecurrentNetworkFns(NamedTuple):
    """A `RecurrentNetwork` of three plain functions, without Flax."""

    initial_memory: Callable[[int], PyTree]
    init: Callable[..., PyTree]
    apply: Callable[..., tuple[PyTree, Any]]
