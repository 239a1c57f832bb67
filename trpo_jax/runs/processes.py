"""Runs of several processes: what they agree on, and how they end together.

Every process makes the same calls. Process 0, the writer, holds the folder, writes
records and shows progress; a decision that depends on a clock, a signal or a file is
its own, and the others ask for it. Messages go through the key-value store of JAX's
coordination service, not through the devices, which are busy with the next updates.
"""

import atexit
import contextlib
import ctypes
import os
import pickle
import re
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import jax

# Not public in JAX, whose public functions exchange values through the devices.
from jax._src import distributed

from trpo_jax.errors import UsageError, UsageTypeError, differing
from trpo_jax.runs.stopping import Interrupted, RunError

T = TypeVar("T")

HEARTBEAT_SECONDS = 30
"""Seconds after which a process that does not answer ends the others."""

START_SECONDS = 300
"""Seconds that processes wait for one another at the start."""

# Short, so that signals are handled while a process waits for the writer.
_WAIT_MILLISECONDS = 1000

# Errors of the runtime start with a status; those of bad input do not.
_RUNTIME = re.compile(
    r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|"
    r"FAILED_PRECONDITION): "
)


# These say all there is to say, and reach every process.
_AGREED = (UsageError, UsageTypeError, RunError, Interrupted)


def connect_processes(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process: int | None = None,
) -> None:
    """Connect the processes of a run; call it in each, before anything else uses JAX.

    As `jax.distributed.initialize`, but a process that dies ends the others after
    30 s, not 100.

    Args:
        coordinator: Host and port of process 0, as "10.0.0.1:1234". None, for all
            three: as found under Slurm, Kubernetes, Open MPI or on Cloud TPU.
        num_processes: How many there are.
        process: Which of them this is, from 0.

    Raises:
        UsageError: If only some arguments are given or one is out of range, there is
            nothing to find them from, JAX has been used already, or not all processes
            start within five minutes.
    """
    given = (coordinator, num_processes, process)
    if any(value is None for value in given) and given != (None, None, None):
        raise UsageError(
            f"coordinator={coordinator!r}, num_processes={num_processes}, "
            f"process={process}; write all three, as coordinator='10.0.0.1:1234', "
            "num_processes=2, process=0, or none under Slurm, Kubernetes or on Cloud "
            "TPU."
        )
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not (host and port.isdecimal()):
            raise UsageError(
                f"coordinator={coordinator!r} is not a host and a port; write them as "
                "'10.0.0.1:1234'."
            )
        if not 0 <= process < num_processes:  # type: ignore[operator]
            raise UsageError(
                f"process={process} of num_processes={num_processes}; number them "
                "from 0."
            )
    late = (
        f"not all processes started within {START_SECONDS} s; start every process, "
        "each with its own number, on hosts that reach the first one"
    )
    try:
        with _message_at_abort(f"error: {late}.\n"):
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process,
                initialization_timeout=START_SECONDS,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                # Detection would look for what is given.
                cluster_detection_method=None if coordinator is None else "deactivate",
            )
    except ValueError as error:  # nothing was detected
        raise UsageError(
            f"no Slurm, Kubernetes, Open MPI or Cloud TPU was found ({error}); write "
            "coordinator='10.0.0.1:1234', num_processes=2, process=0, on the command "
            "line --coordinator 10.0.0.1:1234 --num-processes 2 --process 0."
        ) from error
    except jax.errors.JaxRuntimeError as error:
        atexit.register(_leave)
        raise UsageError(f"{late} ({str(error).splitlines()[0]}).") from error
    except RuntimeError as error:
        raise UsageError(
            f"{str(error).splitlines()[0]} Call connect_processes once, before "
            "anything else uses JAX."
        ) from error
    if jax.default_backend() == "cpu":
        # There JAX keeps compiled programs for process 0 alone. What it loads sends its
        # messages in another order than what the others compile, and Gloo fails.
        jax.config.update("jax_enable_compilation_cache", False)


def is_writer() -> bool:
    """Return whether this process holds the folder and shows progress."""
    return jax.process_index() == 0


class _Messages:
    """Messages of one run among its processes."""

    # Runs of these processes up to now: their messages must not be mixed up.
    num_runs = 0

    def __init__(self) -> None:
        _Messages.num_runs += 1
        self._client: Any = distributed.global_state.client
        self._prefix = f"trpo_jax/{_Messages.num_runs}"
        self._from_writer = self._from_all = 0

    def send(self, outcome: tuple[Any, BaseException | None]) -> None:
        """Answer what the other processes ask next: a value or an error."""
        self._from_writer += 1
        key = f"{self._prefix}/writer/{self._from_writer}"
        self._client.key_value_set_bytes(key, pickle.dumps(outcome))

    def receive(self) -> tuple[Any, BaseException | None]:
        """Wait for what the writer sends next."""
        self._from_writer += 1
        return self._get(f"{self._prefix}/writer/{self._from_writer}")

    def exchange(self, value: Any) -> list[Any]:
        """Return the values of all processes."""
        self._from_all += 1
        return self.exchange_as(f"all/{self._from_all}", value)

    def exchange_as(
        self, name: str, value: Any, ended_fn: Callable[[], bool] = lambda: False
    ) -> list[Any]:
        """Return the values that all processes give under a name.

        Raises:
            RunError: If one is missing once `ended_fn` returns true.
        """
        key = f"{self._prefix}/{name}"
        mine = f"{key}/{jax.process_index()}"
        self._client.key_value_set_bytes(mine, pickle.dumps(value))
        processes = range(jax.process_count())
        return [self._get(f"{key}/{one}", ended_fn) for one in processes]

    def signal(self, number: int) -> None:
        """Tell the writer about a signal."""
        key = f"{self._prefix}/signals/{jax.process_index()}"
        self._client.key_value_set(key, str(number), allow_overwrite=True)

    def signals(self) -> list[int]:
        """Return the signals of other processes."""
        found = self._client.key_value_dir_get(f"{self._prefix}/signals/")
        return [int(number) for _, number in found]

    def _get(self, key: str, ended_fn: Callable[[], bool] = lambda: False) -> Any:
        while True:
            try:
                found = self._client.blocking_key_value_get_bytes(
                    key, _WAIT_MILLISECONDS
                )
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
                if ended_fn():
                    raise RunError("the run has ended meanwhile") from None
            else:
                return pickle.loads(found)


_messages: _Messages | None = None


@contextlib.contextmanager
def together(how_to_resume: str) -> Iterator[None]:
    """Make a run that all processes end together, if one of them fails.

    An error of the writer is raised in all; that of another process, or its death, ends
    them with a message.

    Args:
        how_to_resume: A sentence for that message.
    """
    global _messages
    if jax.process_count() == 1 or _messages is not None:
        yield
        return
    _messages = _Messages()
    name = f"process {jax.process_index()} of {jax.process_count()}"
    lost = f"{name}: another process has ended, and this one cannot go on alone"
    try:
        with _message_at_abort(f"error: {lost}. {how_to_resume}\n"):
            yield
    except BaseException as error:
        received = getattr(error, "received", False)
        if is_writer():
            _messages.send((None, _portable(error, "process 0")))
        if not (received or isinstance(error, _AGREED)):
            # The others cannot be waited for: they may be waiting for this process.
            atexit.register(_leave)
        if isinstance(error, Exception) and _RUNTIME.match(str(error)):
            first = str(error).splitlines()[0]
            raise RunError(f"{lost} ({first}). {how_to_resume}") from error
        raise
    finally:
        _messages = None


def on_writer(fn: Callable[[], T]) -> T:
    """Return what `fn` returns in the writer; an error there is raised in all."""
    if _messages is None:
        return fn()
    if is_writer():
        value = fn()
        _messages.send((value, None))
        return value
    value, error = _messages.receive()
    if error is not None:
        error.received = True  # type: ignore[attr-defined]
        raise error
    return value


def exchange(value: T) -> list[T]:
    """Return the values of all processes, in their order."""
    return [value] if _messages is None else _messages.exchange(value)


def in_all(
    name: str, fn: Callable[[], T], ended_fn: Callable[[], bool] = lambda: False
) -> T:
    """Return what `fn` returns here; an error in one process is raised in all.

    Also outside of the main thread: the processes find each other by the name, and not
    by the order of calls.

    Args:
        name: A name that is used once in a run.
        fn: Called in every process.
        ended_fn: Asked while others are waited for; true once they may never answer.
    """
    if _messages is None:
        return fn()
    error: Exception | None = None
    sent: BaseException | None = None
    try:
        value = fn()
    except OSError as raised:
        error = sent = raised
    except Exception as raised:
        error, sent = raised, _portable(raised, f"process {jax.process_index()}")
    found = _messages.exchange_as(name, sent, ended_fn)
    if error is not None:
        raise error
    for other in found:
        if other is not None:
            raise other
    return value


def agree(values: dict[str, Any], error: Exception | None) -> None:
    """Raise an error in all processes unless all have the same values and no error.

    Args:
        values: What the run depends on, by name.
        error: What this process found wrong with them.

    Raises:
        UsageError: If they differ; the message names the values.
    """
    found = exchange((values, error))
    if error is not None:
        raise error
    for process, (theirs, failure) in enumerate(found):
        if failure is not None:
            raise type(failure)(f"process {process}: {failure}")
        different = differing(found[0][0], theirs)
        if different:
            raise UsageError(
                f"process 0 and process {process} would not make the same run. What "
                f"differs (0, {process}): {'; '.join(different)}. Start all processes "
                "with the same command, settings and versions."
            )


def pass_on_signal(number: int) -> None:
    """Tell the writer that this process got a signal."""
    if _messages is not None and not is_writer():
        _messages.signal(number)


def passed_on_signals() -> list[int]:
    """Return, in the writer, the signals that other processes got."""
    return [] if _messages is None else _messages.signals()


def _portable(error: BaseException, process: str) -> BaseException:
    """Return the error if it can be sent, else one that says the same."""
    with contextlib.suppress(Exception):
        pickle.loads(pickle.dumps(error))
        if isinstance(error, _AGREED):
            return error
    return RunError(f"{process} failed: {type(error).__name__}: {error}")


def _leave() -> NoReturn:
    """End the process without waiting for the others, as JAX does at exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


@contextlib.contextmanager
def _message_at_abort(message: str) -> Iterator[None]:
    """Print a message, and exit with 1, when JAX aborts the process.

    It does so from C++, when its coordination service reports that another process is
    dead, or is gone with process 0. The callback that JAX's client takes for this case
    cannot be a Python function: the status that it is called with has no Python type.
    """
    text = message.encode()

    # In C: a handler of Python's own would run later, in the main thread.
    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handle(number: int) -> None:
        os.write(2, text)
        os._exit(1)

    set_handler = ctypes.CDLL(None).signal
    set_handler.restype = ctypes.c_void_p
    set_handler.argtypes = [ctypes.c_int, ctypes.c_void_p]
    before = set_handler(signal.SIGABRT, ctypes.cast(handle, ctypes.c_void_p))
    try:
        yield
    finally:
        set_handler(signal.SIGABRT, before)
