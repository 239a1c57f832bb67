"""Results of a sweep: arrays by setting, seed and update; ranking; labelled dataset."""

import csv
import dataclasses
import io
import json
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

from trpo_jax.extras import import_extra
from trpo_jax.runs.chunks import by_cost
from trpo_jax.runs.config_file import config_to_dict
from trpo_jax.runs.intervals import mean_interval
from trpo_jax.sweeps.cell_groups import mean_or_nan
from trpo_jax.sweeps.rungs import best_first, excess_over_limits
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.state import TrainState
from trpo_jax.version import __version__


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """Results of a sweep, finished or in progress, over S settings, K seeds, U updates.

    Attributes:
        settings: The config of each setting, with all seeds: `train(setting)` makes
            the same runs.
        swept: Names of the fields that were given values.
        returns: Mean undiscounted return of each cell's last policy over whole
            episodes, greedy actions, float[S, K]; NaN where none ended or the cell is
            not trained yet.
        costs: Mean undiscounted costs of the same episodes, float[S, K, C]; None in an
            environment without costs.
        unended: Episodes that did not end, and are left out, int[S, K].
        updates: Updates that each setting has made, int[S]: fewer than the others'
            where successive halving stopped it.
        rungs: The rung that each setting has finished, int[S]; 0 without halving, −1
            for a setting that is not trained yet.
        metrics: By name, a metric of each update, [S, K, U]; NaN, or 0 for a count and
            −1 for a status, where no update was made. The sums of costs have a last
            axis [C].
        best_state: Last state of the best setting, of all its seeds, as `train`
            returns it; None for a sweep in progress.
        folder: The folder with these records; None if it has none.
    """

    settings: tuple[TRPOConfig, ...]
    swept: tuple[str, ...]
    returns: Float[np.ndarray, "S K"]
    costs: Float[np.ndarray, "S K C"] | None
    unended: Int[np.ndarray, "S K"]
    updates: Int[np.ndarray, " S"]
    rungs: Int[np.ndarray, " S"]
    metrics: dict[str, Num[np.ndarray, "S K U *C"]]
    best_state: TrainState | None
    folder: pathlib.Path | None

    @property
    def best(self) -> TRPOConfig:
        """The config of the best setting, with all seeds, which `best_state` is of."""
        return self.settings[self.order[0]]

    @property
    def order(self) -> Int[np.ndarray, " S"]:
        """The indices of the settings, the best one first, see `ranking`."""
        return best_first(self.returns, self.rungs, self.excess)

    @property
    def excess(self) -> Float[np.ndarray, " S"]:
        """How far the costs of each setting are above its limits, relative to them.

        Σ_k max(J_k / d_k − 1, 0), with J_k the mean over seeds; 0 where all are kept.
        """
        if self.costs is None:
            return np.zeros(len(self.settings))
        limits = [setting.cost_limits for setting in self.settings]
        return excess_over_limits(self.costs, limits)

    @property
    def env_steps(self) -> Int[np.ndarray, "S U"]:
        """Environment steps of a seed after each update."""
        made = np.arange(self.metrics["kl"].shape[-1], dtype=np.int64) + 1
        return np.stack([setting.batch_size * made for setting in self.settings])

    @property
    def episode_return(self) -> Float[np.ndarray, "S K U"]:
        """Mean return of the episodes that ended in each update; NaN if none did."""
        counts = self.metrics["episode_count"]
        return mean_or_nan(self.metrics["episode_return_sum"], counts)

    @property
    def episode_cost(self) -> Float[np.ndarray, "S K U C"] | None:
        """Mean costs of the same episodes; None in an environment without costs."""
        if self.costs is None:
            return None
        counts = self.metrics["episode_count"]
        return mean_or_nan(self.metrics["episode_cost_sum"], counts)

    def ranking(self) -> list[dict[str, Any]]:
        """Return the settings as rows, the best one first.

        Settings that went further in halving come first; of these, those whose mean
        costs keep their limits, by the mean return over seeds; then the others, by how
        far they are above. A setting with a seed that has no return comes last in its
        rung.

        Returns:
            Each row has `setting` (its index), the swept fields, `updates`, `mean`,
            `interval` (half the width of its 95 % interval over seeds, Student's t),
            `worst` and `best` (of the seeds), `in_training` (mean return of all
            training episodes). In an environment with costs also `cost` and
            `cost_interval`, of several `cost_0`, `cost_0_interval` and so on. Numbers
            that are not known are NaN.
        """
        means = self.returns.mean(axis=1)
        _, intervals = mean_interval(self.returns.T)
        sums = np.nansum(self.metrics["episode_return_sum"], axis=(1, 2))
        counts = self.metrics["episode_count"].sum(axis=(1, 2))
        return [
            {"setting": int(one)}
            | {name: getattr(self.settings[one], name) for name in self.swept}
            | {
                "updates": int(self.updates[one]),
                "mean": float(means[one]),
                "interval": float(intervals[one]),
                "worst": float(self.returns[one].min()),
                "best": float(self.returns[one].max()),
                "in_training": float(sums[one] / max(counts[one], 1)),
            }
            | self._costs_of(one)
            for one in self.order.tolist()
        ]

    def _costs_of(self, setting: int) -> dict[str, float]:
        """Return the costs of a setting in evaluation, and their intervals, by name."""
        if self.costs is None:
            return {}
        row: dict[str, float] = {}
        for name, values in by_cost("cost", self.costs[setting]).items():
            _, (half_width,) = mean_interval(values[:, None])
            row |= {name: float(values.mean()), f"{name}_interval": float(half_width)}
        return row

    def table(self, rows: int | None = None) -> str:
        """Return the ranking as a table in Markdown.

        Args:
            rows: Number of settings, the best ones; None for all.
        """
        header = [*self.swept, "return", "worst seed", "in training"]
        costs = [] if self.costs is None else [*by_cost("cost", self.costs[0])]
        header += [name.replace("_", " ") for name in costs]
        halved = self.rungs.max() > 0
        if halved:
            header.insert(len(self.swept), "updates")
        lines = [header, ["---"] * len(header)]
        for row in self.ranking()[:rows]:
            cells = [text_of(row[name]) for name in self.swept]
            if halved:
                cells.append(f"{row['updates']:,}")
            cells.append(f"{_short(row['mean'])} ± {_short(row['interval'])}")
            cells += [_short(row["worst"]), _short(row["in_training"])]
            limits = self.settings[row["setting"]].cost_limits or [None] * len(costs)
            for name, limit in zip(costs, limits, strict=True):
                cost = f"{_short(row[name])} ± {_short(row[f'{name}_interval'])}"
                cells.append(cost if limit is None else f"{cost} of {limit:g}")
            lines.append(cells)
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def csv(self) -> str:
        """Return the ranking as comma-separated values."""
        rows = self.ranking()
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(row | {name: text_of(row[name]) for name in self.swept})
        return text.getvalue()

    @property
    def dataset(self) -> Any:
        """All results as an `xarray.Dataset` with dimensions setting, seed and update.

        The swept fields are coordinates of `setting`. Of a grid,
        `dataset.set_index(setting=[...]).unstack("setting")` makes dimensions. Costs
        have a last dimension, cost.

        Raises:
            UsageError: If xarray is not installed.
        """
        xarray = import_extra("xarray", extra="sweep")
        each = ("setting", "seed", "update")
        variables: dict[str, Any] = {
            "evaluation_return": (each[:2], self.returns),
            "evaluation_unended": (each[:2], self.unended),
            "updates": (each[:1], self.updates),
            "rung": (each[:1], self.rungs),
            "env_steps": (("setting", "update"), self.env_steps),
            "episode_return": (each, self.episode_return),
        }
        if self.costs is not None:
            variables["evaluation_cost"] = ((*each[:2], "cost"), self.costs)
            variables["episode_cost"] = ((*each, "cost"), self.episode_cost)
        for name, metric in self.metrics.items():
            variables[name] = ((*each, "cost")[: metric.ndim], metric)
        swept = {}
        for name in self.swept:
            values = [getattr(setting, name) for setting in self.settings]
            plain = all(type(value) in (int, float) for value in values)
            swept[name] = ("setting", values if plain else [*map(text_of, values)])
        common = config_to_dict(self.settings[0])
        common = {name: v for name, v in common.items() if name not in self.swept}
        return xarray.Dataset(
            variables,
            {
                "setting": np.arange(len(self.settings)),
                "seed": np.arange(self.returns.shape[1]),
                "update": np.arange(self.env_steps.shape[1]) + 1,
                **swept,
            },
            {
                "env": str(self.settings[0].env),
                "config": json.dumps(common),
                "trpo_jax": __version__,
            },
        )


def _short(value: float) -> str:
    """Return a number in three or four digits: 1,234 or 12.34."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def text_of(value: Any) -> str:
    """Return a swept value as text: 0.01, 64×64, a function's name."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple):
        return "×".join(map(str, value)) or "none"
    return getattr(value, "__qualname__", None) or str(value)
