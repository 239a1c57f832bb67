"""Records of a run's updates: files of metrics and timing, and loggers."""

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from trpo_jax.runs.loggers import BackgroundLogger, Logger, Row

# Of these, a mean over seeds is meaningless: they are codes.
_CODES = ("status", "cg_status")
_BY_SEED = ("episode_return", *_CODES)


class Records:
    """Everything that is told of a run's updates: files first, then loggers."""

    def __init__(
        self,
        files: "MetricsFiles | None",
        loggers: Sequence[Logger],
        warn_fn: Callable[[str], None],
    ):
        """Start a thread for each logger."""
        self._files = files
        self._loggers = [BackgroundLogger(logger, warn_fn) for logger in loggers]

    def write(self, rows: list[Row], steps_per_second: float) -> None:
        """Write the rows of some consecutive updates.

        Raises:
            OSError: If a file cannot be written.
        """
        if self._files is not None:
            self._files.write(rows, steps_per_second)
        for logger in self._loggers:
            for row in rows:
                logger.log(row | {"steps_per_second": steps_per_second})

    def sync(self) -> None:
        """Wait until the rows are on disk."""
        if self._files is not None:
            self._files.sync()

    def close(self) -> None:
        """Close the files, and give the loggers some time to end."""
        if self._files is not None:
            self._files.close()
        for logger in self._loggers:
            logger.close()


class MetricsFiles:
    """`metrics.jsonl`, a line for each update, and `timing.jsonl`, for each chunk."""

    def __init__(
        self,
        metrics: pathlib.Path,
        timing: pathlib.Path,
        *,
        updates: int,
        warn_fn: Callable[[str], None],
    ):
        """Open the files, cut back to the run's first `updates`."""
        if rewind(metrics, updates) < updates:
            warn_fn(
                f"{metrics} does not reach update {updates:,}, from which the run goes "
                "on; the lines in between stay missing."
            )
        rewind(timing, updates)
        self._metrics, self._timing = JSONLinesFile(metrics), JSONLinesFile(timing)

    def write(self, rows: list[Row], steps_per_second: float) -> None:
        """Write the rows of some updates, and how fast they were made."""
        self._metrics.write(rows)
        timing = {
            "update": rows[-1]["update"],
            "env_steps": rows[-1]["env_steps"],
            "time": time.time(),
            "steps_per_second": steps_per_second,
        }
        self._timing.write([timing])

    def sync(self) -> None:
        """Wait until the metrics are on disk."""
        self._metrics.sync()

    def close(self) -> None:
        """Close both files."""
        self._metrics.close()
        self._timing.close()


class JSONLinesFile:
    """A file of JSON lines that is only appended to; on disk once `sync` returns."""

    def __init__(self, path: pathlib.Path):
        """Open `path` to append to it."""
        self.path = path
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (a long life)

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append a line for each of `rows`."""
        self._file.write("".join(json.dumps(row) + "\n" for row in rows))
        self._file.flush()

    def sync(self) -> None:
        """Wait until the lines are on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file, even if the disk is full."""
        with contextlib.suppress(OSError):  # `write` has raised it already
            self._file.close()


def rewind(path: pathlib.Path, updates: int) -> int:
    """Cut a file of JSON lines after the last line of an update up to `updates`.

    Later ones are going to be written again, and so is an incomplete last line.

    Returns:
        The update of the last line that is kept, 0 if none is.
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
    """Return the number of the update on a line, None if the line is not complete."""
    try:
        return int(json.loads(line)["update"]) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None


def summarize_seeds(metrics: Mapping[str, np.ndarray]) -> Row:
    """Return one update's metrics as plain numbers, None for those that are not finite.

    Args:
        metrics: Scalars, or arrays [num_seeds].

    Returns:
        The scalars by their names. Of several seeds: the mean of the finite numbers,
        under `<name>_std` their standard deviation (divided by n − 1), and under
        `<name>_by_seed` a list of each seed's return and, instead of a mean, status.
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
    """Return a number with the digits of float32, and no more."""
    if isinstance(value, np.ndarray | np.generic) and np.issubdtype(
        value.dtype, np.integer
    ):
        return int(value)
    single = np.float32(value)
    return float(str(single)) if np.isfinite(single) else None
