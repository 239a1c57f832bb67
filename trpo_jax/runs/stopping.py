"""Reasons for a run to stop early: a signal, a failure, updates that are not finite."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import numpy as np

from trpo_jax.trust_region import UpdateStatus

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class RunError(RuntimeError):
    """A failure stopped a run; the message says what is saved."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped a run, which is saved.

    Attributes:
        signal: The signal's number.
    """

    def __init__(self, message: str, number: int):
        """Keep the message and the signal's number."""
        super().__init__(message)
        self.signal = number

    def __reduce__(self) -> tuple:
        """Pickle both arguments, for the other processes."""
        return type(self), (str(self), self.signal)


@contextlib.contextmanager
def interruptible(
    notify_fn: Callable[[str], None],
    *,
    active: bool = True,
    signal_fn: Callable[[int], None] = lambda number: None,
) -> Iterator[list[int]]:
    """Yield a list that gets the first signal's number; the second ends the process.

    Outside the main thread, where Python allows no handlers, signals keep theirs.

    Args:
        notify_fn: Called with a message when the first signal comes.
        active: If false, signals keep their handlers.
        signal_fn: Called with the first signal's number.
    """
    signals: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        signal_fn(number)
        for one in _SIGNALS:
            signal.signal(one, signal.SIG_DFL)
        notify_fn(
            f"{signal.Signals(number).name}: finishing and saving the updates in "
            "flight; send it again to stop at once"
        )

    before = {}
    if active and threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            # None: a handler that is not Python's, such as that of JAX's service.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class NonFiniteUpdates:
    """Counts updates that were rejected because of NaN or infinity.

    Attributes:
        consecutive: Such updates up to now, without one between, int[num_seeds].
        total: All such updates, int[num_seeds].
        first: The first of them in any seed; None without any.
    """

    def __init__(self, num_seeds: int):
        """Start from zero."""
        self.consecutive = np.zeros(num_seeds, int)
        self.total = np.zeros(num_seeds, int)
        self.first: int | None = None

    def count(self, metrics: list[dict[str, np.ndarray]]) -> None:
        """Count the updates of a chunk."""
        for one in metrics:
            rejected = one["status"] == UpdateStatus.NON_FINITE
            self.consecutive = np.where(rejected, self.consecutive + 1, 0)
            self.total = self.total + rejected
            if self.first is None and np.any(rejected):
                self.first = int(one["update"])

    @property
    def consecutive_in_all_seeds(self) -> int:
        """The number of latest updates that were rejected in every seed."""
        return int(self.consecutive.min())

    def describe(self, updates: int) -> str:
        """Return where they began, given the updates made, and where to look."""
        return (
            f"updates are rejected because of NaN or infinity{_seeds(self.consecutive)}"
            f", from update {updates - self.consecutive.max() + 1:,} on; {_ADVICE}"
        )

    def describe_first(self) -> str:
        """Return which update was the first, and where to look."""
        return (
            f"update {self.first:,} is rejected because of NaN or infinity"
            f"{_seeds(self.total)}; {_ADVICE}"
        )

    def describe_total(self) -> str:
        """Return how many updates were rejected, and where to look."""
        by_seed = ", ".join(f"{count:,}" for count in self.total)
        seeds = " (by seed)" if self.total.size > 1 else ""
        return (
            f"{by_seed} updates were rejected because of NaN or infinity{seeds}, the "
            f"first of them {self.first:,}; {_ADVICE}"
        )


_ADVICE = (
    "check the environment's observations, rewards and costs, and its action masks if "
    "it has any: each must allow at least one action"
)


def _seeds(counts: np.ndarray) -> str:
    """Return in which of several seeds there is something to count."""
    if counts.size == 1:
        return ""
    return f" in seeds {', '.join(map(str, np.flatnonzero(counts)))}"
