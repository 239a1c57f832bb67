"""Records of a run's updates: files of metrics and timing, and loggers."""

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from trpo_jax.runs.folder import RunFolder
from trpo_jax.runs.loggers import BackgroundLogger, Logger, Row

# Of these, a mean over seeds is meaningless: they are codes.
_CODES = ("status", "cg_status")
_BY_SEED = (
    "episode_return",
    "evaluation_return",
    "kl",
    "entropy",
    "explained_variance",
    *_CODES,
)

# Followed by the number of a cost, if there are several.
_COSTS = ("episode_cost", "evaluation_cost", "multipliers")


class Records:
    """Destinations of a run's updates: loggers and, in a folder, two files.

    `metrics.jsonl` gets a line for each update, `timing.jsonl` for each chunk.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        loggers: Sequence[Logger],
        warn_fn: Callable[[str], None],
        *,
        updates: int,
    ):
        """Open the files, cut back to the run's first `updates`, and start loggers."""
        paths = [folder.metrics, folder.timing] if folder else []
        kept = [rewind(path, updates) for path in paths]
        if kept and kept[0] < updates:
            warn_fn(
                f"{paths[0]} does not reach update {updates:,}, from which the run "
                "goes on; the lines in between stay missing."
            )
        self._files = [path.open("a", encoding="utf-8") for path in paths]
        self._loggers = [BackgroundLogger(logger, warn_fn) for logger in loggers]

    def write(self, rows: list[Row], steps_per_second: float) -> None:
        """Write the rows of some consecutive updates, and how fast they were made.

        Raises:
            OSError: If a file cannot be written.
        """
        timing = {
            "update": rows[-1]["update"],
            "env_steps": rows[-1]["env_steps"],
            "time": time.time(),
            "steps_per_second": steps_per_second,
        }
        for file, lines in zip(self._files, (rows, [timing]), strict=False):
            file.write("".join(json.dumps(line) + "\n" for line in lines))
            file.flush()
        for logger in self._loggers:
            for row in rows:
                logger.log(row | {"steps_per_second": steps_per_second})

    def sync(self) -> None:
        """Wait until the rows are on disk."""
        for file in self._files:
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files, and give the loggers some time to end."""
        for file in self._files:
            with contextlib.suppress(OSError):  # `write` has raised it already
                file.close()
        for logger in self._loggers:
            logger.close()


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
            with contextlib.suppress(ValueError, KeyError, TypeError):
                update = json.loads(line)["update"]
                if line.endswith(b"\n") and update <= updates:
                    last, end = update, offset
        file.truncate(end)
        os.fsync(file.fileno())
    return last


def summarize_seeds(metrics: Mapping[str, np.ndarray]) -> Row:
    """Return one update's metrics as plain numbers, None for those that are not finite.

    Args:
        metrics: Scalars, or arrays [num_seeds].

    Returns:
        The scalars by their names. Of several seeds: the mean of the finite numbers,
        under `<name>_std` their standard deviation (divided by n − 1), and under
        `<name>_by_seed` a list of each seed's returns, costs, multipliers, KL, entropy,
        explained variance and, instead of a mean, status.
    """
    row: Row = {}
    for name, value in metrics.items():
        if value.ndim == 0:
            row[name] = _plain(value)
            continue
        if name in _BY_SEED or name.startswith(_COSTS):
            row[f"{name}_by_seed"] = [_plain(one) for one in value]
        if name in _CODES:
            continue
        finite = value[np.isfinite(value)].astype(np.float64)
        if np.issubdtype(value.dtype, np.integer) and (value == value[0]).all():
            row[name] = int(value[0])
        else:
            row[name] = _plain(finite.mean() if finite.size else math.nan)
        if name != "env_steps":
            spread = finite.std(ddof=1) if finite.size > 1 else math.nan
            row[f"{name}_std"] = _plain(spread)
    return row


def _plain(value: np.generic | np.ndarray | float) -> int | float | None:
    """Return a number with the digits of float32, and no more."""
    if np.issubdtype(np.asarray(value).dtype, np.integer):
        return int(value)
    single = np.float32(value)
    return float(str(single)) if np.isfinite(single) else None
