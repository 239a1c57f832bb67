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
import re
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import jax
import jaxlib

# Not public in JAX, whose public functions exchange values through the devices.
from jax._src import distributed

from trpo_jax.errors import UsageError, differing
from trpo_jax.runs.messages import (
    Messages,
    is_known_to_all,
    known_to_all,
    portable,
)
from trpo_jax.runs.stopping import RunError
from trpo_jax.version import __version__

T = TypeVar("T")

HEARTBEAT_SECONDS = 30
"""Seconds after which a process that does not answer ends the others."""

START_SECONDS = 300
"""Seconds that processes wait for one another at the start."""

# Errors of the runtime start with a status; those of bad input do not.
_RUNTIME = re.compile(
    r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|"
    r"FAILED_PRECONDITION): "
)


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
    _check_given(coordinator, num_processes, process)
    late = (
        f"not all processes started within {START_SECONDS} s; start every process, "
        "each with its own number, on hosts that reach the first one"
    )
    # Its handler of SIGTERM would be in place of Python's.
    jax.config.update("jax_enable_preemption_service", False)
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
    atexit.register(_leave_after_an_error)


def _check_given(
    coordinator: str | None, num_processes: int | None, process: int | None
) -> None:
    """Raise UsageError unless all arguments are given, and can be right, or none."""
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


def is_writer() -> bool:
    """Return whether this process holds the folder and shows progress."""
    return jax.process_index() == 0


_messages: Messages | None = None


@contextlib.contextmanager
def together(how_to_resume: str) -> Iterator[None]:
    """Make a run that all processes end together, if one of them fails.

    An error of one process is raised in all; its death ends them with a message.

    Args:
        how_to_resume: A sentence for that message; nested, that of the innermost run.
    """
    global _messages
    if jax.process_count() == 1:
        yield
        return
    name = f"process {jax.process_index()} of {jax.process_count()}"
    lost = f"{name}: another process has ended, and this one cannot go on alone"
    is_inner = _messages is not None
    if _messages is None:
        client = distributed.global_state.client
        _messages = Messages(client, jax.process_index(), jax.process_count())
    messages = _messages
    try:
        with _message_at_abort(f"error: {lost}. {how_to_resume}\n"):
            try:
                yield
            except BaseException as error:
                _pass_on(error, messages, is_inner=is_inner)
                if _is_loss(error):
                    first = str(error).splitlines()[0]
                    raise RunError(f"{lost} ({first}). {how_to_resume}") from error
                raise
    finally:
        if not is_inner:
            _messages = None


def _pass_on(error: BaseException, messages: Messages, *, is_inner: bool) -> None:
    """Tell the other processes of an error, unless they know it or are lost.

    Raises:
        BaseException: If another process is lost, and has said why.
    """
    if is_known_to_all(error):
        messages.leave()
        return
    # Without the others, which may be waiting for this process.
    atexit.register(_leave)
    if _is_loss(error):
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            messages.raise_failure()
    elif is_inner:
        return
    else:
        messages.fail(error)
        if messages.all_have_left():
            atexit.unregister(_leave)
    known_to_all(error)


def _is_loss(error: BaseException) -> bool:
    """Return whether an error is one of the runtime: usually, a process is lost."""
    return isinstance(error, Exception) and bool(_RUNTIME.match(str(error)))


def on_writer(fn: Callable[[], T]) -> T:
    """Return what `fn` returns in the writer; an error there ends all."""
    if _messages is None:
        return fn()
    if not is_writer():
        return _messages.receive()
    value = fn()
    _messages.send(value)
    return value


def raise_of_writer(fn: Callable[[], BaseException | None]) -> None:
    """Raise in all processes the error that `fn` returns in the writer, if any."""
    error = on_writer(fn)
    if error is not None:
        raise known_to_all(error)


def exchange(value: T) -> list[T]:
    """Return the values of all processes, in their order."""
    return [value] if _messages is None else _messages.exchange(value)


def in_all(
    name: str, fn: Callable[[], T], ended_fn: Callable[[], bool] = lambda: False
) -> T:
    """Return what `fn` returns here; an error in one process is raised in all.

    Also outside of the main thread: values are matched by name, not by the order of
    calls.

    Args:
        name: A name that is used once in a run.
        fn: Called in every process.
        ended_fn: Asked while others are waited for; true once they may never answer.
    """
    if _messages is None:
        return fn()
    value: Any = None
    error: Exception | None = None
    try:
        value = fn()
    except Exception as raised:
        error = raised
    sent = error and portable(error, jax.process_index())
    for found in _messages.exchange_as(name, sent, ended_fn):
        if found is not None:
            raise known_to_all(found) from error
    return value


def agree(values: dict[str, Any]) -> None:
    """Raise in all processes unless they have the same values, and the same versions.

    Args:
        values: What the run depends on, by name.

    Raises:
        UsageError: If they differ; the message names what does.
    """
    versions = {"trpo_jax": __version__, "jax": jax.__version__}
    versions["jaxlib"] = jaxlib.__version__
    found = exchange(versions | values)
    for process, theirs in enumerate(found):
        different = differing(found[0], theirs)
        if different:
            error = UsageError(
                f"process 0 and process {process} would not make the same run. What "
                f"differs (0, {process}): {'; '.join(different)}. Start all processes "
                "with the same command, settings and versions."
            )
            raise known_to_all(error)


def pass_on_signal(number: int) -> None:
    """Tell the writer that this process got a signal."""
    if _messages is not None and not is_writer():
        _messages.signal(number)


def passed_on_signals() -> list[int]:
    """Return, in the writer, the signals that other processes got."""
    return [] if _messages is None else _messages.signals()


def _leave_after_an_error() -> None:
    """Exit at once if an uncaught error ended the script outside of a run.

    Otherwise the others would wait for five minutes, at JAX's barrier at exit.
    """
    error = getattr(sys, "last_value", None)
    if error is not None and not is_known_to_all(error):
        _leave()


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
