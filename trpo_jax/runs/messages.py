"""Messages between the processes of a run, through JAX's coordination service.

They do not go through the devices, which are busy with the next updates.
"""

import contextlib
import pickle
import time
from collections.abc import Callable
from typing import Any, ClassVar

import jax

from trpo_jax.errors import UsageError, UsageTypeError
from trpo_jax.runs.stopping import Interrupted, RunError

# Short, so that signals are handled, and errors seen, while a process waits.
_WAIT_MILLISECONDS = 1000

# Longer messages are sent in parts, each with its own timeout.
_PART_BYTES = 2**20
_PART_MILLISECONDS = 60_000

# A failing process waits for the others to receive its error, as long as this.
_LEAVE_SECONDS = 10.0


class Messages:
    """Messages of one run among its processes."""

    # Runs so far; part of every key, so that runs do not read each other's messages.
    num_runs = 0

    # Own keys not yet known to be read: of calls in order, and of named exchanges.
    _in_order: ClassVar[list[str]] = []
    _by_name: ClassVar[list[str]] = []

    def __init__(self, client: Any, process: int, num_processes: int):
        """Begin a run.

        Args:
            client: The client of JAX's coordination service.
            process: This process.
            num_processes: How many there are.
        """
        Messages.num_runs += 1
        self._client = client
        self._process = process
        self._processes = range(num_processes)
        self._prefix = f"trpo_jax/{Messages.num_runs}"
        self._from_writer = self._from_all = 0

    def send(self, value: Any) -> None:
        """Send the writer's next value."""
        self._from_writer += 1
        key = f"{self._prefix}/writer/{self._from_writer}"
        self._put(key, value, self._in_order)

    def receive(self) -> Any:
        """Wait for what the writer sends next."""
        self._from_writer += 1
        return self._get(f"{self._prefix}/writer/{self._from_writer}")

    def exchange(self, value: Any) -> list[Any]:
        """Return the values of all processes."""
        self._from_all += 1
        return self._exchange(f"all/{self._from_all}", value, self._in_order)

    def exchange_as(
        self, name: str, value: Any, ended_fn: Callable[[], bool] = lambda: False
    ) -> list[Any]:
        """Return the values that all processes give under a name.

        Raises:
            RunError: If one is missing once `ended_fn` returns true.
        """
        return self._exchange(name, value, self._by_name, ended_fn)

    def signal(self, number: int) -> None:
        """Tell the writer about a signal."""
        key = f"{self._prefix}/signals/{self._process}"
        self._client.key_value_set(key, str(number), allow_overwrite=True)

    def signals(self) -> list[int]:
        """Return the signals of other processes."""
        found = self._client.key_value_dir_get(f"{self._prefix}/signals/")
        return [int(number) for _, number in found]

    def fail(self, error: BaseException) -> None:
        """Raise an error in the other processes, where they next wait for a value."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            data = pickle.dumps(portable(error, self._process))
            self._client.key_value_set_bytes(self._failed, data, allow_overwrite=True)

    def all_have_left(self) -> bool:
        """Wait until all processes end the run, and return whether they do.

        Those that wait for their devices do not hear of an error.
        """
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self.leave()
            deadline = time.monotonic() + _LEAVE_SECONDS
            while time.monotonic() < deadline:
                left = self._client.key_value_dir_get(f"{self._prefix}/left/")
                if len(left) == len(self._processes):
                    return True
                time.sleep(0.05)
        return False

    def leave(self) -> None:
        """Say that this process ends the run by an error."""
        key = f"{self._prefix}/left/{self._process}"
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(key, "", allow_overwrite=True)

    @property
    def _failed(self) -> str:
        return f"{self._prefix}/failed"

    def _exchange(
        self,
        name: str,
        value: Any,
        unread: list[str],
        ended_fn: Callable[[], bool] = lambda: False,
    ) -> list[Any]:
        before = list(unread)
        unread.clear()
        key = f"{self._prefix}/{name}"
        self._put(f"{key}/{self._process}", value, unread)
        values = [self._get(f"{key}/{one}", ended_fn) for one in self._processes]
        # Every process has sent this value, so it has read all earlier ones.
        for sent in before:
            self._client.key_value_delete(sent)
        return values

    def _put(self, key: str, value: Any, unread: list[str]) -> None:
        data = pickle.dumps(value)
        starts = range(0, len(data), _PART_BYTES)
        for number, start in enumerate(starts):
            part = data[start : start + _PART_BYTES]
            self._client.key_value_set_bytes(f"{key}/parts/{number}", part)
        # Last, as it is what the others wait for.
        self._client.key_value_set_bytes(f"{key}/length", str(len(starts)).encode())
        unread.append(key)

    def _get(self, key: str, ended_fn: Callable[[], bool] = lambda: False) -> Any:
        while True:
            try:
                length = self._client.blocking_key_value_get_bytes(
                    f"{key}/length", _WAIT_MILLISECONDS
                )
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
            else:
                break
            self.raise_failure()
            if ended_fn():
                raise RunError("the run has ended meanwhile")
        parts = [
            self._client.blocking_key_value_get_bytes(
                f"{key}/parts/{number}", _PART_MILLISECONDS
            )
            for number in range(int(length))
        ]
        return pickle.loads(b"".join(parts))

    def raise_failure(self) -> None:
        """Raise the error by which another process has failed, if one has."""
        try:
            data = self._client.key_value_try_get_bytes(self._failed)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" not in str(error):
                raise
        else:
            raise known_to_all(pickle.loads(data))


def portable(error: BaseException, process: int) -> BaseException:
    """Return an error that can be sent, and says which process it comes from.

    Errors of the writer that already address the user are returned unchanged.
    """
    advice = isinstance(error, UsageError | UsageTypeError | RunError | Interrupted)
    if advice and process == 0:
        return error
    text = f"process {process}: {error}"
    if isinstance(error, UsageError | UsageTypeError | RunError):
        return type(error)(text)
    if isinstance(error, OSError):
        return OSError(text)
    reason = f": {error}" if str(error) else ""
    return RunError(f"process {process} failed: {type(error).__name__}{reason}")


def known_to_all(error: BaseException) -> BaseException:
    """Return an error marked as one that is raised in all processes."""
    error.known_to_all = True  # type: ignore[attr-defined]
    return error


def is_known_to_all(error: BaseException | None) -> bool:
    """Return whether an error, or one that it was raised from, is raised in all."""
    while error is not None and not getattr(error, "known_to_all", False):
        error = error.__cause__
    return error is not None
