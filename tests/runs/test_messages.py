"""Messages between two threads, through a stand-in of JAX's coordination service."""

import errno
import functools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from trpo_jax.runs import messages
from trpo_jax.runs.messages import Messages, is_known_to_all, known_to_all, portable
from trpo_jax.runs.stopping import Interrupted, RunError


class Service:
    """The key-value store that JAX's processes share."""

    def __init__(self):
        self.values = {}
        self.changed = threading.Condition()

    def key_value_set_bytes(self, key, value, allow_overwrite=False):
        assert allow_overwrite or key not in self.values
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()

    key_value_set = key_value_set_bytes

    def blocking_key_value_get_bytes(self, key, milliseconds):
        with self.changed:
            if not self.changed.wait_for(
                lambda: key in self.values, milliseconds / 1e3
            ):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: " + key)
            return self.values[key]

    def key_value_try_get_bytes(self, key):
        if key not in self.values:
            raise jax.errors.JaxRuntimeError("NOT_FOUND: " + key)
        return self.values[key]

    def key_value_dir_get(self, folder):
        return [pair for pair in self.values.items() if pair[0].startswith(folder)]

    def key_value_delete(self, key):
        with self.changed:
            for name in [*self.values]:
                if name == key or name.startswith(key + "/"):
                    del self.values[name]


@pytest.fixture
def pair(monkeypatch):
    """The messages of two processes of the same run."""
    monkeypatch.setattr(messages, "_WAIT_MILLISECONDS", 20)
    monkeypatch.setattr(messages, "_LEAVE_SECONDS", 1.0)
    service = Service()
    made = []
    for process in (0, 1):
        # Each process counts its own runs and keeps its own lists.
        one = type("One", (Messages,), {"_in_order": [], "_by_name": []})
        made.append(one(service, process, 2))
        Messages.num_runs -= 1
    return service, *made


def both(*calls):
    with ThreadPoolExecutor() as pool:
        started = [pool.submit(call) for call in calls]
        return [one.exception() or one.result() for one in started]


def test_the_writer_answers_in_order(pair):
    _, writer, other = pair
    for value in ({"a": 1}, None):
        writer.send(value)
    assert [other.receive(), other.receive()] == [{"a": 1}, None]


def test_long_values_are_sent_in_parts_and_deleted_once_read(pair, monkeypatch):
    monkeypatch.setattr(messages, "_PART_BYTES", 1000)
    service, writer, other = pair
    writer.send(np.arange(1000))
    assert len(service.values) > 8
    np.testing.assert_array_equal(other.receive(), np.arange(1000))
    for value in ("first", "second"):
        found = both(*(functools.partial(one.exchange, value) for one in pair[1:]))
        assert found == [[value, value]] * 2
    assert all("/all/2/" in key for key in service.values)


def test_values_under_names_are_deleted_once_the_next_are_there(pair):
    service = pair[0]
    for name in ("saved", "named"):
        both(*(functools.partial(one.exchange_as, name, 0) for one in pair[1:]))
    assert all("/named/" in key for key in service.values)


def test_an_error_reaches_those_that_wait(pair):
    """And the process that has it hears that they have heard of it."""
    _, writer, other = pair

    def wait():
        try:
            writer.exchange(None)
        except OSError:
            writer.leave()
            raise

    def fail():
        other.fail(OSError(errno.ENOSPC, "full"))
        return other.all_have_left()

    error, heard = both(wait, fail)
    assert heard is True
    assert isinstance(error, OSError)
    assert str(error) == "process 1: [Errno 28] full"
    assert is_known_to_all(error)


def test_an_error_that_nobody_hears_does_not_wait_for_ever(pair):
    _, writer, _ = pair
    start = time.monotonic()
    writer.fail(ValueError("alone"))
    assert writer.all_have_left() is False
    assert time.monotonic() < start + 5


def test_a_value_that_is_there_is_read_before_an_error(pair):
    _, writer, other = pair
    writer.send("value")
    writer.fail(ValueError("later"))
    assert other.receive() == "value"
    with pytest.raises(RunError, match="process 0 failed: ValueError: later"):
        other.receive()


def test_named_values_pass_by_those_in_order(pair):
    """As a thread that saves does, while the main thread goes on."""
    found = both(
        *(functools.partial(one.exchange_as, "saved", 1) for one in pair[1:]),
        *(functools.partial(one.exchange, 2) for one in pair[1:]),
    )
    assert found == [[1, 1], [1, 1], [2, 2], [2, 2]]


def test_signals_reach_the_writer(pair):
    _, writer, other = pair
    assert writer.signals() == []
    other.signal(15)
    assert writer.signals() == [15]


def test_a_value_that_never_comes_is_not_waited_for(pair):
    _, writer, _ = pair
    with pytest.raises(RunError, match="has ended meanwhile"):
        writer.exchange_as("saved", 0, ended_fn=lambda: True)


@pytest.mark.parametrize(
    ("error", "process", "expected"),
    [
        (RunError("the disk is full"), 0, "the disk is full"),
        (RunError("the disk is full"), 1, "process 1: the disk is full"),
        (Interrupted("interrupted", 15), 0, "interrupted"),
        (KeyError("x"), 0, "process 0 failed: KeyError: 'x'"),
        (KeyboardInterrupt(), 1, "process 1 failed: KeyboardInterrupt"),
    ],
)
def test_an_error_says_which_process_it_comes_from(error, process, expected):
    assert str(portable(error, process)) == expected


def test_what_is_raised_from_an_error_of_all_is_one():
    error = RunError("stopped")
    assert not is_known_to_all(error)
    error.__cause__ = known_to_all(OSError("full"))
    assert is_known_to_all(error)
