"""Figures of sweeps in Matplotlib."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from trpo_jax.pictures.curves import SMOOTHED_PART, Curve, trailing_mean
from trpo_jax.pictures.figures import (
    COLORS,
    DPI,
    LINES,
    Style,
    draw_curve,
    make_panels,
    save,
)
from trpo_jax.runs.intervals import mean_interval
from trpo_jax.sweeps.result import SweepResult, text_of

_COLUMNS = 3
_MAX_TICKS = 6


def draw_fields(result: SweepResult, path: Path) -> None:
    """Draw each setting's mean return against each swept field, with its interval."""
    count = len(result.swept)
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(
        figsize=(4.2 * columns, 3.2 * rows + 0.5), dpi=DPI, layout="constrained"
    )
    panels = make_panels(figure, rows, columns, count)
    means, half_widths = mean_interval(result.returns.T)
    reached = np.asarray(result.rungs)
    for axis, name in zip(panels, result.swept, strict=True):
        positions = _positions(axis, [getattr(one, name) for one in result.settings])
        rungs = np.unique(reached[reached >= 0])
        for rung, above in itertools.product(rungs, (False, True)):
            these = (reached == rung) & ((result.excess > 0) == above)
            last = rung == reached.max()
            axis.errorbar(
                positions[these],
                means[these],
                np.nan_to_num(half_widths[these]),
                fmt="o",
                color=COLORS[0] if last else "#999999",
                markerfacecolor="white" if above else None,
                markersize=4,
                elinewidth=0.9,
                capsize=2,
            )
        axis.set_xlabel(name, fontsize=9)
    figure.supylabel("return in evaluation", fontsize=10)
    note = f"mean of {result.returns.shape[1]} seed(s) with its 95 % interval"
    if reached.max() > 0:
        note += "; grey: stopped by halving"
    if (result.excess > 0).any():
        note += "; hollow: above a limit on costs"
    figure.suptitle(f"{result.settings[0].env}: {note}", fontsize=9)
    save(figure, path)


def _positions(axis: Axes, values: list[Any]) -> np.ndarray:
    """Return where the settings are on the axis, which gets scale and labels."""
    if not all(type(value) in (int, float) for value in values):
        texts = list(map(text_of, values))
        kinds = list(dict.fromkeys(texts))
        axis.set_xticks(range(len(kinds)), kinds)
        axis.set_xlim(-0.5, len(kinds) - 0.5)
        return np.array([kinds.index(text) for text in texts], float)
    array = np.array(values, float)
    if array.min() > 0 and array.max() / array.min() >= 10:
        axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    ticks = np.unique(array)
    if len(ticks) <= _MAX_TICKS:
        axis.set_xticks(ticks)
        axis.xaxis.set_minor_locator(NullLocator())
    return array


def draw_best(result: SweepResult, path: Path, num_curves: int) -> None:
    """Draw the learning curves of the best settings."""
    figure = Figure(figsize=(6.4, 4.6), dpi=DPI, layout="constrained")
    (axis,) = make_panels(figure, 1, 1, 1)
    looks = itertools.cycle(itertools.product(LINES, COLORS))
    for one, (line, color) in zip(result.order[:num_curves], looks, strict=False):
        setting, updates = result.settings[one], int(result.updates[one])
        if updates == 0:
            continue
        names = (f"{n}={text_of(getattr(setting, n))}" for n in result.swept)
        by_seed = result.episode_return[one, :, :updates]
        smoothed = trailing_mean(by_seed, -(-updates // SMOOTHED_PART))
        curve = Curve(result.env_steps[one, :updates], *mean_interval(smoothed))
        draw_curve(axis, curve, Style(", ".join(names), color, line))
    axis.set_xlim(left=0)
    axis.set_title(f"{result.settings[0].env}: the best settings", fontsize=10)
    axis.set_ylabel("episode return in training", fontsize=9)
    axis.set_xlabel(
        f"environment steps of one seed; mean of {result.returns.shape[1]} seed(s), "
        "band: 95 % interval",
        fontsize=9,
    )
    axis.legend(frameon=False, fontsize=8)
    save(figure, path)
