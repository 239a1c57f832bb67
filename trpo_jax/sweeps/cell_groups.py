"""Groups of a sweep's cells that are trained together, and the table of all results."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from trpo_jax.sweeps.rungs import best_first, excess_over_limits

Arrays = dict[str, np.ndarray]


class Group(NamedTuple):
    """Cells of one program that are trained together, through one rung.

    Attributes:
        program: Index of the program.
        rung: Index of the rung.
        number: Number of the group in the two, from 0.
        cells: Indices of its cells, setting · num_seeds + seed.
        size: Cells that the compiled program trains; the group is padded to it.
        first: Updates made before.
        last: Updates made after.
    """

    program: int
    rung: int
    number: int
    cells: Int[np.ndarray, " cells"]
    size: int
    first: int
    last: int

    @property
    def name(self) -> str:
        """Name of the group's files."""
        return f"{self.rung}-{self.program}-{self.number:04d}"

    @property
    def padded(self) -> Int[np.ndarray, " size"]:
        """The cells, and some of them once more."""
        return np.resize(self.cells, self.size)


def cut(group: Group) -> list[Group]:
    """Return a group of any number of cells as groups of `group.size`."""
    return [
        group._replace(number=number, cells=group.cells[start : start + group.size])
        for number, start in enumerate(range(0, len(group.cells), group.size))
    ]


def group_size(total: int, at_once: int, devices: int) -> int:
    """Return the size of the fewest equal groups of at most `at_once` cells.

    Args:
        total: All cells.
        at_once: Cells that may be trained together, at least one on each device.
        devices: The size is a multiple of these; the last group is padded to it.
    """
    groups = math.ceil(total / max(devices, at_once // devices * devices))
    return math.ceil(total / groups / devices) * devices


@dataclasses.dataclass
class Table:
    """Results of all cells of S settings with K seeds, as far as there are any.

    Attributes:
        returns: Mean return in the latest evaluation, float[S, K]; NaN without one.
        costs: Mean costs in it, float[S, K, C]; NaN likewise.
        unended: Episodes that did not end in it, int[S, K].
        updates: Updates made, int[S, K].
        rungs: The latest rung that each cell has finished, int[S, K]; −1 for none.
        metrics: Metrics of each update by name, [S, K, U], those of costs [S, K, U, C].
        limits: Limits of each setting on its costs; None where it has none.
    """

    returns: Float[np.ndarray, "S K"]
    costs: Float[np.ndarray, "S K C"]
    unended: Int[np.ndarray, "S K"]
    updates: Int[np.ndarray, "S K"]
    rungs: Int[np.ndarray, "S K"]
    metrics: Arrays
    limits: Sequence[tuple[float, ...] | None]

    @classmethod
    def empty(
        cls,
        limits: Sequence[tuple[float, ...] | None],
        num_seeds: int,
        num_updates: int,
        num_costs: int,
    ) -> "Table":
        """Return the table before anything is trained."""
        each = (len(limits), num_seeds, num_updates)
        metrics = {name: np.full(each, absent) for name, absent in METRICS.items()}
        if num_costs:
            sums = metrics["episode_cost_sum"][..., None]
            metrics["episode_cost_sum"] = np.repeat(sums, num_costs, axis=-1)
        else:
            del metrics["episode_cost_sum"]
        return cls(
            np.full(each[:2], np.nan),
            np.full((*each[:2], num_costs), np.nan),
            np.zeros(each[:2], int),
            np.zeros(each[:2], int),
            np.full(each[:2], -1),
            metrics,
            limits,
        )

    def put(self, group: Group, results: Arrays) -> None:
        """Enter results of a group: `returns`, `unended`, and metrics [n, cells]."""
        settings, seeds = np.divmod(group.cells, self.returns.shape[1])
        for name, values in self.metrics.items():
            by_cell = np.swapaxes(results[name], 0, 1)
            values[settings, seeds, group.first : group.last] = by_cell
        self.returns[settings, seeds] = results["returns"]
        self.costs[settings, seeds] = results["costs"]
        self.unended[settings, seeds] = results["unended"]
        self.updates[settings, seeds] = group.last
        self.rungs[settings, seeds] = group.rung

    def order(self) -> Int[np.ndarray, " settings"]:
        """Return the indices of the settings, the best one first."""
        return best_first(self.returns, self.rungs.min(axis=1), self.excess)

    @property
    def excess(self) -> Float[np.ndarray, " S"]:
        """How far each setting is above its limits, see `excess_over_limits`."""
        return excess_over_limits(self.costs, self.limits)

    def states_needed(self, rung: int) -> Bool[np.ndarray, " settings"]:
        """Return whose states at the end of the last rung may still be asked for.

        Those of the best setting so far, and of one with some seeds still to train.
        """
        done = self.rungs == rung
        complete = done.all(axis=1)
        needed = done.any(axis=1) & ~complete
        best = [one for one in self.order() if complete[one]][:1]
        needed[best] = True
        return needed


def mean_or_nan(
    sums: Float[Array | np.ndarray, "..."], counts: Int[Array | np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """Return sums / counts in double precision, NaN where there is nothing to count.

    Args:
        sums: Sums, of the shape of the counts or with a last axis more.
        counts: What they are sums over.
    """
    counts = np.asarray(counts)
    counts = counts.reshape(counts.shape + (1,) * (sums.ndim - counts.ndim))
    return np.where(counts > 0, np.asarray(sums) / np.maximum(counts, 1), np.nan)


# Metrics that a sweep keeps, of which all would be three times as much, and what stands
# for an update that was not made.
METRICS: dict[str, np.generic] = {
    "episode_return_sum": np.float32(np.nan),
    "episode_length_sum": np.float32(np.nan),
    "episode_cost_sum": np.float32(np.nan),  # of environments with costs
    "episode_count": np.int32(0),
    "status": np.int32(-1),
    **dict.fromkeys(
        (
            "kl",
            "cg_relative_residual",
            "accepted_fraction",
            "entropy",
            "explained_variance",
            "critic_loss",
        ),
        np.float32(np.nan),
    ),
}
