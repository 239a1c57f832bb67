"""Learning curves, read from the folders of runs, with intervals over seeds."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from trpo_jax.errors import UsageError
from trpo_jax.runs.folder import RunFolder
from trpo_jax.runs.intervals import mean_interval, quantile_of_mean

SMOOTHED_PART = 25
"""Parts of a run's updates, of which a point of a curve is the mean of one."""


class Run(NamedTuple):
    """A run, read from its folder.

    Attributes:
        folder: The folder.
        env: Name of the environment.
        num_seeds: Number of seeds.
        cost_limits: The limit of each cost, empty if there are none.
        updates: The U lines of metrics, in the order of updates.
    """

    folder: Path
    env: str
    num_seeds: int
    cost_limits: tuple[float, ...]
    updates: list[dict[str, Any]]

    @property
    def steps(self) -> Float[np.ndarray, " U"]:
        """Environment steps of one seed after each update, float[U]."""
        return np.array([line["env_steps"] for line in self.updates], float)

    @property
    def window(self) -> int:
        """Updates that a point of a curve is a mean of: 4 %, rounded up."""
        return -(-len(self.updates) // SMOOTHED_PART)

    def metric(self, name: str) -> Float[np.ndarray, " U"]:
        """Return a metric after each update; NaN where it is null or missing."""
        return np.array([_number(line.get(name)) for line in self.updates])


class Curve(NamedTuple):
    """A mean over seeds with its 95 % interval.

    Attributes:
        steps: Environment steps of one seed, float[U].
        mean: Mean over seeds, float[U]; NaN where nothing was measured.
        half_width: Half the width of the interval, float[U]; NaN with fewer than two
            seeds.
    """

    steps: Float[np.ndarray, " U"]
    mean: Float[np.ndarray, " U"]
    half_width: Float[np.ndarray, " U"]


def read_run(folder: Path) -> Run:
    """Read `config.json` and `metrics.jsonl` of a run, finished or in progress.

    A last line without its end is still being written, or was when the run was killed;
    it is ignored. Of two lines for the same update, as after a run that was resumed
    from an earlier checkpoint, the last one counts.

    Raises:
        UsageError: If the folder does not exist, holds no run or no metrics yet, or a
            line is damaged; the message says where.
    """
    config = RunFolder(folder).read_values()
    metrics_path = RunFolder(folder).metrics
    # After the last end of line there is nothing, or an incomplete line.
    lines = []
    if metrics_path.is_file():
        lines = metrics_path.read_bytes().decode("utf-8", "replace").split("\n")[:-1]
    if not lines:
        raise UsageError(
            f"{folder} holds no metrics yet: metrics.jsonl has no line. The first one "
            "is written after the first update; wait for it, or resume the run."
        )
    updates = {}
    for number, text in enumerate(lines, start=1):
        where = f"{metrics_path}, line {number}"
        line = _read_line(text, where)
        if not all(
            math.isfinite(_number(line.get(n))) for n in ("update", "env_steps")
        ):
            raise UsageError(
                f"{where} has no numbers 'update' and 'env_steps'; remove the line."
            )
        updates[line["update"]] = line
    return Run(
        folder,
        _name_of(config.get("env", folder.name)),
        int(config.get("num_seeds", 1)),
        tuple(config.get("cost_limits") or ()),
        [updates[update] for update in sorted(updates)],
    )


def _name_of(env: Any) -> str:
    """Return the name of an environment, also of a Python object."""
    return str(env["python"] if isinstance(env, dict) and "python" in env else env)


def return_curve(run: Run) -> Curve:
    """Return the mean return of the episodes that ended in the latest updates.

    Each seed is smoothed by itself, before mean and interval are taken over seeds.
    """
    by_seed = _by_seed(run, "episode_return")
    return Curve(run.steps, *mean_interval(trailing_mean(by_seed, run.window)))


def evaluation_curve(run: Run) -> Curve:
    """Return the mean return of each evaluation in training, without smoothing."""
    return Curve(run.steps, *mean_interval(_by_seed(run, "evaluation_return")))


def _by_seed(run: Run, name: str) -> Float[np.ndarray, "S U"]:
    """Return a metric of each seed; NaN where it is null or missing."""
    by_seed = np.full((run.num_seeds, len(run.updates)), np.nan)
    for update, line in enumerate(run.updates):
        seen = line.get(f"{name}_by_seed") or [line.get(name)]
        numbers = [_number(value) for value in seen[: run.num_seeds]]
        by_seed[: len(numbers), update] = numbers
    return by_seed


def metric_curve(run: Run, name: str) -> Curve:
    """Return a metric's mean over seeds, and its interval.

    Both are taken for each update and then smoothed, since the lines have the spread
    over seeds but not each seed's number.
    """
    half_width = np.full(len(run.updates), np.nan)
    if run.num_seeds > 1:
        half_width = run.metric(f"{name}_std") * quantile_of_mean(run.num_seeds)
    smoothed = trailing_mean(np.stack([run.metric(name), half_width]), run.window)
    return Curve(run.steps, *smoothed)


def trailing_mean(
    values: Float[np.ndarray, "... U"], window: int
) -> Float[np.ndarray, "... U"]:
    """Return the mean over the last `window` numbers, without those that are NaN.

    Over fewer at the beginning; NaN where all of them are NaN.
    """
    seen = np.isfinite(values)

    def total(numbers: np.ndarray) -> np.ndarray:
        sums = np.apply_along_axis(np.convolve, -1, numbers, np.ones(window))
        return sums[..., : numbers.shape[-1]]

    with np.errstate(invalid="ignore"):
        return total(np.where(seen, values, 0.0)) / total(seen)


def _read_line(text: str, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise UsageError(
            f"{where} cannot be read ({error}); remove the line."
        ) from error
    if not isinstance(fields, dict):
        raise UsageError(f"{where} is not a JSON object; remove the line.")
    return fields


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
