"""Learning curves: the mean return of training episodes by environment steps."""

import hashlib
import json
import pathlib
import re

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trpo_jax.pictures.curves import Curve
from trpo_jax.runs.intervals import mean_interval

BINS = 50


def binned(
    returns: ArrayLike, counts: ArrayLike, batch_size: int
) -> tuple[NDArray, NDArray]:
    """Average the returns of the episodes that ended within each fiftieth of the run.

    Args:
        returns: Mean return of the episodes that ended in each update, float[updates,
            seeds]; NaN where none did.
        counts: How many ended, int[updates, seeds].
        batch_size: Environment steps of one seed in an update.

    Returns:
        Environment steps of one seed at the end of each bin, int[bins], and the mean
        returns, float[seeds, bins], NaN where no episode ended.
    """
    num_updates = len(np.asarray(counts))
    bins = min(BINS, num_updates)
    # The first update u with ⌊u bins / num_updates⌋ = b + 1 is the end of bin b.
    ends = -(-np.arange(1, bins + 1) * num_updates // bins)
    starts = np.concatenate([[0], ends[:-1]])
    sums = np.where(np.asarray(counts) > 0, np.multiply(returns, counts), 0)
    with np.errstate(invalid="ignore"):
        means = np.add.reduceat(sums, starts) / np.add.reduceat(counts, starts)
    return ends * batch_size, means.T


def path_of(results: pathlib.Path, name: str) -> pathlib.Path:
    """Return the path of a row's curve, beside a file of results."""
    plain = re.sub(r"[^\w.=-]+", "-", name)
    if len(plain) > 150:  # file systems take 255
        plain = f"{plain[:150]}-{hashlib.sha1(name.encode()).hexdigest()[:8]}"
    return results.parent / "curves" / f"{plain}.json"


def write(
    path: pathlib.Path, steps: NDArray, by_seed: NDArray, **about: object
) -> None:
    """Write steps and each seed's mean returns, null where no episode ended."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = [
        [None if np.isnan(mean) else float(f"{mean:.4g}") for mean in means]
        for means in by_seed
    ]
    fields = about | {"steps": steps.tolist(), "by_seed": rounded}
    path.write_text(json.dumps(fields) + "\n")


def read(path: pathlib.Path) -> Curve:
    """Return the mean over seeds of the curve in a file, with its 95 % interval."""
    fields = json.loads(path.read_text())
    by_seed = np.asarray(fields["by_seed"], float)
    return Curve(np.asarray(fields["steps"], float), *mean_interval(by_seed))
