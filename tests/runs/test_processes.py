import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import one_process
import pytest
from tiny import events, lines

import trpo_jax
from trpo_jax.runs import checkpoints, processes
from trpo_jax.sweeps.cell_programs import devices_of

SCRIPT = pathlib.Path(one_process.__file__)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return os.environ.get("JAX_COMPILATION_CACHE_DIR") or tmp_path_factory.mktemp("c")


@contextlib.contextmanager
def started(number, folder, call, cache, **variables):
    """Start processes of a run, each with one device."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        **variables,
    }
    outputs = [folder.with_name(f"{folder.name}.{one}") for one in range(number)]
    running = []
    try:
        for one, output in enumerate(outputs):
            command = [SCRIPT, address, number, one, folder, call]
            with open(output, "w") as file:
                running.append(
                    subprocess.Popen(
                        [sys.executable, *map(str, command)],
                        env=environment,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )
        yield running, outputs
    finally:
        for one in running:
            one.kill()
            one.wait()


def finish(number, folder, call, cache, *, limit=150, **variables):
    """Run processes to their end; return the lines that each printed."""
    with started(number, folder, call, cache, **variables) as (running, outputs):
        deadline = time.monotonic() + limit
        for one in running:
            one.wait(deadline - time.monotonic())
        printed = [output.read_text() for output in outputs]
        assert [one.returncode for one in running] == [0] * number, printed
    return [text.splitlines() for text in printed]


def said(printed, word):
    """Return the lines of each process that start with a word."""
    return [[line for line in one if line.startswith(word)] for one in printed]


def kill_one(number, victim, folder, cache):
    """Kill a process of a run by SIGKILL; return what the others print, and when."""
    with started(number, folder, "run", cache) as (running, outputs):
        deadline = time.monotonic() + 120
        while len(checkpoints.complete(folder / "checkpoints")) < 2:
            alive = all(one.poll() is None for one in running)
            in_time = time.monotonic() < deadline
            assert (alive, in_time) == (True, True), outputs[0].read_text()
            time.sleep(0.02)
        running[victim].kill()
        start = time.monotonic()
        others = [one for one in range(number) if one != victim]
        for one in others:
            running[one].wait(2 * one_process.HEARTBEAT_SECONDS)
        seconds = time.monotonic() - start
        assert [running[one].returncode for one in others] == [1] * len(others)
        return [outputs[one].read_text() for one in others], seconds


def assert_no_gap(folder, updates):
    rows = lines(folder / "metrics.jsonl")
    assert [row["update"] for row in rows] == list(range(1, updates + 1))
    return rows


def test_two_processes_make_the_run_of_one(tmp_path, cache):
    """They refuse what differs, stop together, and go on."""
    folder = tmp_path / "run"
    printed = finish(2, folder, "all", cache)
    refused = said(printed, "refused:")
    assert refused[0] == refused[1]
    assert "num_envs: 4 and 8" in refused[0][0]
    assert "num_envs (now 3) as a multiple of 2" in refused[0][1]
    assert "write devices=None, for all" in refused[0][2]
    stopped = said(printed, "stopped:")
    assert stopped[0] == stopped[1]
    for line, full in zip(stopped[0], (0, 1), strict=True):
        assert f"process {full}: [Errno 28] No space left: 'disk'. The run in" in line
        assert not list(pathlib.Path(f"{folder}-{full}").glob("checkpoints/.*"))
    interrupted = said(printed, "interrupted:")
    assert interrupted[0] == interrupted[1]
    stopped = events(folder, "interrupted")[0]["updates"]
    assert 0 < stopped < 100
    (message,) = interrupted[0]
    assert message.startswith(f"interrupted: {signal.SIGTERM.value} interrupted.")
    assert f"saved up to update {stopped}; to go on: python -m trpo_jax" in message
    # Each process has written its own part of the arrays.
    last = checkpoints.complete(folder / "checkpoints")[-1]
    parts = {path.name for path in (last / "arrays").glob("ocdbt.process_*")}
    assert parts == {"ocdbt.process_0", "ocdbt.process_1"}
    # With those that process 0 had kept, another start would fail.
    assert said(printed, "keeps programs:") == [["keeps programs: False"]] * 2
    results = said(printed, "result:")
    assert results[0] == results[1]
    rows = assert_no_gap(folder, 100)
    (went_on,) = events(folder, "resumed")
    assert (went_on["num_processes"], went_on["num_devices"]) == (2, 2)
    # To rounding, which grows from update to update.
    alone = tmp_path / "alone"
    trpo_jax.run(one_process.CONFIG, alone, one_process.SETTINGS, progress=False)
    for row, expected in zip(rows[:5], lines(alone / "metrics.jsonl"), strict=False):
        for name in ("episode_count", "status", "entropy", "kl", "critic_loss"):
            np.testing.assert_allclose(row[name], expected[name], rtol=1e-2, atol=1e-6)
    config, state = trpo_jax.load_state(folder)
    returns = trpo_jax.evaluate(
        config, state, jax.random.fold_in(jax.random.key(0), 1), 4
    )
    assert f'"return_mean": {float(returns.mean())}' in results[0][0]


def test_one_that_is_killed_ends_the_other_and_fewer_go_on(tmp_path, cache):
    folder = tmp_path / "run"
    (output,), seconds = kill_one(2, 1, folder, cache)
    assert seconds < one_process.HEARTBEAT_SECONDS + 10
    assert "process 0 of 2: another process has ended" in output
    assert f"any number of processes: python -m trpo_jax resume {folder}" in output
    result = trpo_jax.resume(folder, devices=1, progress=False)
    assert result.state.updates == 400
    assert_no_gap(folder, 400)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("victim", [0, 2])
def test_four_processes_two_of_which_go_on(tmp_path, cache, victim):
    folder = tmp_path / "run"
    outputs, seconds = kill_one(4, victim, folder, cache)
    assert seconds < one_process.HEARTBEAT_SECONDS + 10
    for output in outputs:
        assert "of 4: another process has ended" in output
    finish(2, folder, "resume", cache, limit=300)
    assert_no_gap(folder, 400)


def test_an_error_outside_of_a_run_ends_the_others(tmp_path, cache):
    """At once, and not after the five minutes that JAX waits at the end of a script."""
    with started(2, tmp_path / "none", "fail", cache) as (running, outputs):
        for one in running:
            one.wait(60)
        printed = [output.read_text() for output in outputs]
    assert [one.returncode for one in running] == [1, 1]
    assert "process 0 of 2: another process has ended" in printed[0]
    assert "ValueError: its own" in printed[1]
    # A message of several parts, which is deleted once all have read it.
    for text in printed:
        assert f"sums: [0, {2**19}]" in text
        assert "kept: []" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("10.0.0.1:1234", None, 0), "write all three"),
        (("10.0.0.1", 2, 0), "is not a host and a port"),
        (("10.0.0.1:1234", 2, 2), "number them from 0"),
    ],
)
def test_connecting_says_what_to_write(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        trpo_jax.runs.connect_processes(*arguments)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ValueError("coordinator_address should be defined."), "no Slurm, Kubernetes"),
        (RuntimeError("must be called before."), "once, before anything else uses JAX"),
        (jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED"), "not all processes started"),
    ],
)
def test_what_jax_says_while_connecting_becomes_advice(raised, expected, monkeypatch):
    def fail(*arguments, **options):
        raise raised

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.setattr(processes.atexit, "register", lambda function: None)
    with pytest.raises(ValueError, match=expected):
        trpo_jax.runs.connect_processes()


def test_a_sweep_that_would_leave_a_process_without_a_device_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="1 of 1 devices would be used, and by some"):
        devices_of(None)


def test_two_processes_make_one_sweep(tmp_path, cache):
    """They refuse what differs, stop together, and go on."""
    folder = tmp_path / "sweep"
    printed = finish(2, folder, "sweep", cache)
    refused = said(printed, "refused:")
    assert "values of max_kl: [0.01, 0.1] and [0.01, 1.1]" in refused[0][0]
    assert refused[0][0] == refused[1][0]
    assert "max_kl=-0.9" in refused[1][1]
    assert refused[0][1] == refused[1][1].replace("refused:", "refused: process 1:")
    stopped = said(printed, "stopped:")
    assert stopped[0] == stopped[1]
    assert "No space left: 'disk'. The sweep in" in stopped[0][0]
    interrupted = said(printed, "interrupted:")
    assert interrupted[0] == interrupted[1]
    assert interrupted[0][0].startswith(f"interrupted: {signal.SIGTERM.value} ")
    assert "has finished 1 group(s) of runs; to go on: python" in interrupted[0][0]
    swept = said(printed, "swept:")
    assert swept[0] == swept[1]
    returns, _, _ = json.loads(swept[0][0].removeprefix("swept: "))
    stored = trpo_jax.sweeps.load_sweep(folder)
    assert stored.returns.tolist() == returns
    assert events(folder, "resumed")[0]["num_processes"] == 2
    assert trpo_jax.load_state(folder / "best")[0].max_kl in (0.01, 0.1)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_sweep_of_two_processes_goes_on_in_one(tmp_path, cache):
    """On as many devices, to the same bits; and to those of one from the start."""
    whole, folder = tmp_path / "whole", tmp_path / "sweep"
    expected = said(finish(2, whole, "sweep", cache), "swept:")[0]
    with started(2, folder, "sweep", cache) as (running, outputs):
        while not list(folder.glob("groups/*.npz")):
            time.sleep(0.02)
        running[0].kill()
        running[1].wait(2 * one_process.HEARTBEAT_SECONDS)
        assert "another process has ended" in outputs[1].read_text()
    # Beside the flags of the others: with other code the bits would be others.
    flags = os.environ.get("XLA_FLAGS", "")
    flags += " --xla_force_host_platform_device_count=2"
    printed = finish(1, folder, "resume_sweep", cache, XLA_FLAGS=flags)
    assert said(printed, "swept:")[0] == expected
    alone = tmp_path / "alone"
    printed = finish(1, alone, "new_sweep", cache, XLA_FLAGS=flags)
    assert said(printed, "swept:")[0] == expected
