"""Learning curves: the mean return of training episodes by environment steps."""

import dataclasses
import hashlib
import json
import pathlib
import re

import numpy as np
from numpy.typing import ArrayLike, NDArray

BINS = 50


@dataclasses.dataclass
class Curve:
    """Returns of the episodes that ended during training, by seed and bin of updates.

    Attributes:
        steps: Environment steps of one seed at the end of each bin, int[bins].
        totals: Sum of the returns of the episodes that ended, float[seeds, bins].
        counts: How many ended, int[seeds, bins].
        num_updates: The updates that the bins divide, as equally as they can be.
    """

    steps: NDArray
    totals: NDArray
    counts: NDArray
    num_updates: int

    @classmethod
    def empty(cls, num_seeds: int, num_updates: int, batch_size: int) -> "Curve":
        bins = min(BINS, num_updates)
        # The first update u with ⌊u bins / num_updates⌋ = b + 1 is the end of bin b.
        ends = -(-np.arange(1, bins + 1) * num_updates // bins)
        shape = (num_seeds, bins)
        return cls(
            ends * batch_size, np.zeros(shape), np.zeros(shape, int), num_updates
        )

    def record(
        self, seeds: slice, update: int, returns: ArrayLike, counts: ArrayLike
    ) -> None:
        """Add what one update, counted from 0, measured of some of the seeds.

        Args:
            seeds: Which.
            update: The update.
            returns: Mean return of the episodes that ended, NaN where none did.
            counts: How many ended.
        """
        bin = self.bin_of(update)
        total = np.where(np.asarray(counts) > 0, np.multiply(returns, counts), 0)
        self.totals[seeds, bin] += total
        self.counts[seeds, bin] += counts

    def bin_of(self, update: int) -> int:
        return update * len(self.steps) // self.num_updates

    @property
    def means(self) -> NDArray:
        """The mean returns, float[seeds, bins]; NaN where no episode ended."""
        with np.errstate(invalid="ignore"):
            return self.totals / self.counts

    def last_mean(self, seeds: slice, update: int) -> float:
        """The mean over some seeds of the latest bin in which an episode ended."""
        so_far = slice(None, self.bin_of(update) + 1)
        totals = self.totals[seeds, so_far].sum(axis=0)
        counts = self.counts[seeds, so_far].sum(axis=0)
        ended = np.flatnonzero(counts)
        return float(totals[ended[-1]] / counts[ended[-1]]) if len(ended) else np.nan


def path_of(results: pathlib.Path, name: str) -> pathlib.Path:
    """Where the curve of a row lies, beside a file of results."""
    plain = re.sub(r"[^\w.=-]+", "-", name)
    if len(plain) > 150:  # file systems take 255
        plain = f"{plain[:150]}-{hashlib.sha1(name.encode()).hexdigest()[:8]}"
    return results.parent / "curves" / f"{plain}.json"


def write(curve: Curve, path: pathlib.Path, **about: object) -> None:
    """Write steps, and each seed's mean returns, null where no episode ended."""
    path.parent.mkdir(parents=True, exist_ok=True)
    by_seed = [
        [None if np.isnan(mean) else float(f"{mean:.4g}") for mean in means]
        for means in curve.means
    ]
    fields = about | {"steps": curve.steps.tolist(), "by_seed": by_seed}
    path.write_text(json.dumps(fields) + "\n")


def read(path: pathlib.Path) -> tuple[NDArray, NDArray]:
    """The steps, int[bins], and mean returns, float[seeds, bins], of a curve's file."""
    fields = json.loads(path.read_text())
    return np.asarray(fields["steps"]), np.asarray(fields["by_seed"], float)
