"""Who looks on while a run goes."""

import contextlib
from typing import Protocol, runtime_checkable

from trpo_jax.runs.chunks import Chunk
from trpo_jax.training.config import TRPOConfig


@runtime_checkable
class Watcher(Protocol):
    """Someone who looks on while a run goes."""

    def watch(self, chunk: Chunk) -> None:
        """See some updates more."""

    def say(self, message: str) -> None:
        """Hear what a person should know; from any thread."""


class Nobody:
    """Nobody looks on."""

    def watch(self, chunk: Chunk) -> None:
        """Not seen."""

    def say(self, message: str) -> None:
        """Not heard."""


def watching(
    config: TRPOConfig, *, progress: bool
) -> contextlib.AbstractContextManager[Watcher]:
    """Return the terminal as a watcher, or nobody."""
    if not progress:
        return contextlib.nullcontext(Nobody())
    from trpo_jax.runs.console import ConsoleWatcher

    return ConsoleWatcher(config)
