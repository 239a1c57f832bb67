"""SIGINT and SIGTERM: the first asks for an end, the second is one."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_ASKING = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Whether a signal has asked for an end.

    Attributes:
        number: Of the signal, None as long as there was none.
    """

    def __init__(self) -> None:
        """None yet."""
        self.number: int | None = None

    def asked(self) -> bool:
        """Return whether there was one."""
        return self.number is not None


@contextlib.contextmanager
def interruptible(say_fn: Callable[[str], None]) -> Iterator[Interruption]:
    """Yield what the first signal sets; the second ends the process by itself.

    Outside the main thread signals do what they did before.

    Args:
        say_fn: Is told what the signal will do.
    """
    interruption = Interruption()

    def handle(number: int, frame: FrameType | None) -> None:
        interruption.number = number
        for asking in _ASKING:
            signal.signal(asking, signal.SIG_DFL)
        name = signal.Signals(number).name
        say_fn(
            f"{name}: the updates in hand are finished and saved; again: leave at once"
        )

    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {number: signal.signal(number, handle) for number in _ASKING}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
