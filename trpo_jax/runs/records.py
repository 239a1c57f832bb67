"""What a run writes down of each update, and who else is told."""

import contextlib
import json
import math
import os
import pathlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

CAPACITY = 10_000
"""Updates that a logger may lag behind before it misses some."""

PATIENCE_SECONDS = 10.0
"""How long a logger may take to end when the run has."""

# Of several seeds, what is written of each; of codes, a mean says nothing.
_CODES = ("status", "cg_status")
_BY_SEED = ("episode_return", *_CODES)

Row = dict[str, Any]
"""An update's metrics: numbers by name, None for what is not finite."""


@runtime_checkable
class Logger(Protocol):
    """Somewhere else that metrics go: TensorBoard, or your own.

    One that is a context manager, too, is left when the run ends.
    """

    def log(self, env_steps: int, metrics: Mapping[str, int | float]) -> None:
        """Take the finite numbers of one update, made after so many steps."""


def summarize_seeds(metrics: Mapping[str, np.ndarray]) -> Row:
    """Return one update's metrics as plain numbers.

    Args:
        metrics: Scalars, or arrays [num_seeds].

    Returns:
        The scalars by their names. Of several seeds: the mean of the finite ones, under
        `<name>_std` their standard deviation (divided by n − 1), and under
        `<name>_by_seed` each seed's return and, in place of a mean, its status. What is
        not finite is None.
    """
    row: Row = {}
    for name, value in metrics.items():
        if value.ndim == 0:
            row[name] = _plain(value)
            continue
        if name in _BY_SEED:
            row[f"{name}_by_seed"] = [_plain(one) for one in value]
        if name in _CODES:
            continue
        finite = value[np.isfinite(value)].astype(np.float64)
        same = finite.size == value.size and (finite == finite[0]).all()
        if same and np.issubdtype(value.dtype, np.integer):
            row[name] = int(value[0])
        else:
            row[name] = _plain(finite.mean()) if finite.size else None
        if name != "env_steps":
            spread = finite.std(ddof=1) if finite.size > 1 else math.nan
            row[f"{name}_std"] = _plain(spread)
    return row


def _plain(value: np.generic | np.ndarray | float) -> int | float | None:
    """Return a number with no digits that float32 does not hold."""
    if isinstance(value, np.ndarray | np.generic) and np.issubdtype(
        value.dtype, np.integer
    ):
        return int(value)
    single = np.float32(value)
    return float(str(single)) if np.isfinite(single) else None


class LineFile:
    """A file of JSON lines that only grows, safe on disk when `sync` returns."""

    def __init__(self, path: pathlib.Path):
        """Open `path` to write at its end."""
        self.path = path
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (a long life)

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add a line for each of `rows`."""
        self._file.write("".join(json.dumps(row) + "\n" for row in rows))
        self._file.flush()

    def sync(self) -> None:
        """Have the disk hold what was written."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close it, though the disk should be full."""
        with contextlib.suppress(OSError):  # `write` has said so already
            self._file.close()


def rewind(path: pathlib.Path, updates: int) -> int:
    """Cut a file of JSON lines after the last line of an update up to `updates`.

    Later ones, and one that was torn off, are going to be written again.

    Returns:
        The update of the last line that stays, 0 if none does.
    """
    last, offset, end = 0, 0, 0
    with open(path, "ab+") as file:
        file.seek(0)
        for line in file:
            offset += len(line)
            update = _update_of(line)
            if update is not None and update <= updates:
                last, end = update, offset
        file.truncate(end)
        os.fsync(file.fileno())
    return last


def _update_of(line: bytes) -> int | None:
    """Return the number of the update on a line, None if the line is no whole one."""
    try:
        return int(json.loads(line)["update"]) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None


class BackgroundLogger:
    """Hands rows to a `Logger` in a thread: a slow one does not hold up the run.

    One that raises is given up, and one that lags behind by a whole queue loses what
    does not fit. Both are told to `warn_fn`, once.
    """

    def __init__(self, logger: Logger, warn_fn: Callable[[str], None]):
        """Start the thread."""
        self._logger = logger
        self._warn_fn = warn_fn
        self._name = type(logger).__name__
        self._rows: queue.Queue[Row | None] = queue.Queue(CAPACITY)
        self._dropped = 0
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def log(self, row: Row) -> None:
        """Hand over one update's metrics, without waiting."""
        if not self._thread.is_alive():
            return
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            if not self._dropped:
                self._warn_fn(
                    f"{self._name} has fallen {self._rows.maxsize:,} updates behind; "
                    "what it cannot take is left out there (metrics.jsonl has all)."
                )
            self._dropped += 1

    def close(self) -> None:
        """Wait until all is handed on, as long as the logger takes any of it."""
        with contextlib.suppress(queue.Full):
            self._rows.put(None, timeout=PATIENCE_SECONDS)
        waiting = math.inf
        while self._thread.is_alive() and self._rows.qsize() < waiting:
            waiting = self._rows.qsize()
            self._thread.join(PATIENCE_SECONDS)
        if self._thread.is_alive():
            self._warn_fn(f"{self._name} took nothing for {PATIENCE_SECONDS} s; left.")

    def _work(self) -> None:
        try:
            with contextlib.ExitStack() as stack:
                if hasattr(self._logger, "__exit__"):
                    stack.enter_context(self._logger)  # type: ignore[arg-type]
                while (row := self._rows.get()) is not None:
                    self._logger.log(row["env_steps"], _numbers(row))
        except Exception as error:  # whatever it is, the run does not end by it
            self._warn_fn(
                f"{self._name} failed and is left out from here on: "
                f"{type(error).__name__}: {error}"
            )


def _numbers(row: Row) -> dict[str, int | float]:
    return {
        name: value for name, value in row.items() if isinstance(value, int | float)
    }


class Records:
    """All that is told of a run's updates while it goes: files first, loggers after."""

    def __init__(
        self,
        metrics: pathlib.Path,
        timing: pathlib.Path,
        *,
        updates: int,
        num_seeds: int,
        warn_fn: Callable[[str], None],
    ):
        """Open the files, cut back to the run's first `updates`."""
        if rewind(metrics, updates) < updates:
            warn_fn(
                f"{metrics} does not reach update {updates:,}, from which the run goes "
                "on; what is missing there stays missing."
            )
        rewind(timing, updates)
        self._metrics, self._timing = LineFile(metrics), LineFile(timing)
        self._loggers: list[BackgroundLogger] = []
        self._num_seeds = num_seeds
        self._warn_fn = warn_fn

    def tell(self, logger: Logger) -> None:
        """Have `logger` told as well."""
        self._loggers.append(BackgroundLogger(logger, self._warn_fn))

    def write(self, rows: list[Row], seconds: float) -> None:
        """Write a row for each of some updates, which took so many seconds together.

        Raises:
            OSError: If a file cannot be written.
        """
        self._metrics.write(rows)
        each = rows[0]["env_steps"] // rows[0]["update"]
        steps = self._num_seeds * each * len(rows)
        timing = {
            "update": rows[-1]["update"],
            "env_steps": rows[-1]["env_steps"],
            "time": time.time(),
            "steps_per_second": round(steps / seconds, 1),
        }
        self._timing.write([timing])
        for logger in self._loggers:
            for row in rows:
                logger.log(row)

    def sync(self) -> None:
        """Have the disk hold what was written."""
        self._metrics.sync()

    def close(self) -> None:
        """Close the files, and give the loggers some time to end."""
        self._metrics.close()
        self._timing.close()
        for logger in self._loggers:
            logger.close()
