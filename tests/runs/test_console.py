import contextlib
import dataclasses
import os
import pty
import re
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
from rich.console import Console
from tiny import CONFIG

from trpo_jax.runs.chunks import compile_programs, run_chunks
from trpo_jax.runs.console import Watcher
from trpo_jax.training.seeds import run_keys


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_only_if_asked(terminal, capsys):
    for progress in (False, True):
        console = Console(quiet=not progress, force_terminal=terminal)
        with Watcher(CONFIG, console, progress=progress) as watcher:
            watcher.notify("there")
            print("a line of the user's")
        out = capsys.readouterr().out
        assert ("there" in out) == progress
        assert "a line of the user's" in out


def test_without_a_terminal_there_are_about_twenty_lines(capsys):
    programs = compile_programs(CONFIG)
    with Watcher(CONFIG) as watcher:
        state = programs.init(run_keys(CONFIG))
        for chunk in run_chunks(programs, state, first=0, last=40):
            watcher.watch(chunk)
    lines = lines_of(capsys)
    assert [line.split()[0] for line in lines] == [str(32 * n) for n in range(1, 21)]
    # No episode ended in the first rollouts, and the last return is kept.
    assert "return – (no episode ended)" in lines[0]
    assert all("return –" not in line for line in lines[-5:])
    assert all("KL" in line and "steps/s" in line for line in lines)
    solves = [re.search(r"CG (\S+) in (\d+)( \(poor\))?  ", line) for line in lines]
    assert all(1 <= int(solve[2]) <= CONFIG.cg_iterations for solve in solves)
    assert all((float(solve[1]) > 0.3) == bool(solve[3]) for solve in solves)


def row(**changed):
    """Metrics of a first update of three seeds, of which no episode ended."""
    shown = ("kl", "max_kl", "cg_relative_residual", "cg_iterations", "entropy")
    shown += ("accepted_fraction", "explained_variance")
    ended = {"episode_count": np.zeros(3, int), "episode_return": np.full(3, np.nan)}
    return dict.fromkeys(shown, np.zeros(3)) | {"update": 1} | ended | changed


@pytest.mark.usefixtures("no_shape_checks")
def test_a_rollout_in_which_no_episode_ended_is_shown_as_such(monkeypatch, capsys):
    two = {"episode_count": np.array([2, 0, 1]), "episode_return": [2.0, np.nan, 4.0]}
    played = {"evaluation_return": np.array([10.0, 20.0, np.nan])}
    rows = [row(), row(**two), row(**played), row(evaluation_return=np.full(3, np.nan))]
    monkeypatch.setattr("trpo_jax.runs.console.by_update", lambda chunk: rows)
    chunk = types.SimpleNamespace(updates=4, seconds=1.0)
    with Watcher(dataclasses.replace(CONFIG, num_seeds=3)) as watcher:
        watcher._line_every = 1
        watcher.watch(chunk)
    shown = [line.split("steps  ")[1].split("  KL")[0] for line in lines_of(capsys)]
    assert shown == [
        "return – (no episode ended)",
        "return 3.00 ± 1.41",
        "return 3.00 ± 1.41 (no episode ended)  evaluation 15.00 ± 7.07",
        "return 3.00 ± 1.41 (no episode ended)  evaluation –",
    ]


@pytest.mark.parametrize("update", ["trpo", "npg", "ppo", "ppo_penalty"])
def test_the_solve_of_an_update_that_has_none_is_not_shown(update):
    watcher = Watcher(dataclasses.replace(CONFIG, update=update), progress=False)
    text = watcher._describe(row(), speed=1.0)
    assert ("CG 0e+00 in 0  fraction 0" in text) == (update in ("trpo", "npg"))
    assert ("KL 0.0000 of 0.0000  " in text) == (update in ("trpo", "ppo_penalty"))


def lines_of(capsys):
    return capsys.readouterr().out.splitlines()


def test_a_reader_that_goes_away_does_not_end_the_run():
    program = (
        "import sys\n"
        "from trpo_jax.runs.console import Watcher\n"
        "from tiny import CONFIG\n"
        "with Watcher(CONFIG) as watcher:\n"
        "    for _ in range(3): watcher.notify('x' * 100_000)\n"
        "print('went on', file=sys.stderr)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    process.stdout.close()
    assert process.stderr.read() == "went on\n"
    assert process.wait(60) == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_terminal_that_goes_away_does_not_end_the_run():
    """Nor does the bar's own thread outlive it."""
    master, slave = pty.openpty()
    threads = threading.active_count()
    try:
        console = Console(file=os.fdopen(slave, "w"), force_terminal=True)
        with Watcher(CONFIG, console) as watcher:
            watcher.notify("there")
            os.close(master)
            watcher.notify("gone" * 100_000)
        assert console.quiet
        deadline = time.monotonic() + 10
        while threading.active_count() > threads:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        with contextlib.suppress(OSError):
            console.file.close()
