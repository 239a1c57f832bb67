"""Figures of runs in Matplotlib, without pyplot and its global state."""

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
    SymmetricalLogLocator,
)

from trpo_jax.pictures.curves import (
    Curve,
    Run,
    evaluation_curve,
    metric_curve,
    return_curve,
)

DPI = 120
# Distinguishable for the colour-blind: Okabe and Ito 2008, without the pale yellow.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
_COLUMNS = 3


class Style(NamedTuple):
    """Label, colour and line style of one run."""

    label: str
    color: str
    line: str


class _Panel(NamedTuple):
    metric: str
    title: str
    unit: str
    scale: str = "linear"
    ends: tuple[float | None, float | None] = (None, None)  # of the axis, if fixed
    cut: int | None = None  # the axis does not go below
    limit: str | float | None = None  # a metric, or a level, to draw dotted
    limit_of_cost: int | None = None  # a cost whose limit is to be drawn
    fainter: tuple[str, ...] = ()  # metrics to draw beside it, each thinner


_PANELS = (
    _Panel(
        "kl",
        "mean KL; thin: 95 %, largest; dotted: δ",
        "nats",
        scale="log",
        limit="max_kl",
        fainter=("kl_95", "kl_max"),
    ),
    _Panel("share_beyond", "states beyond δ", "share of states", ends=(0, 1)),
    _Panel(
        "improvement_ratio",
        "gain (thin: KL) against its prediction",
        "found / predicted",
        ends=(0, None),
        limit=1,
        fainter=("kl_ratio",),
    ),
    _Panel(
        "signal_to_noise",
        "gain; below 2 (dotted) it may be chance",
        "gain / its standard error",
        limit=2,
    ),
    _Panel(
        "improvement_bound",
        "bound on improvement by largest (thin: mean) KL",
        "return",
        scale="symlog",
        fainter=("mean_kl_improvement_bound",),
    ),
    _Panel("cg_relative_residual", "conjugate gradient's residual", "‖r‖ / ‖g‖", "log"),
    _Panel("accepted_fraction", "line search", "accepted fraction", ends=(0, 1.05)),
    _Panel("entropy", "entropy of the policy", "nats"),
    # An untrained critic may be at −100, which would flatten everything else.
    _Panel(
        "explained_variance", "critic", "explained variance", cut=-1, ends=(None, 1.05)
    ),
    _Panel("critic_loss", "critic's loss", "mean squared error", "log"),
)


def _cost_panels(runs: Sequence[Run]) -> list[_Panel]:
    """Return cost and multiplier of each cost that any of the runs has."""
    lines = [run.updates[-1] for run in runs]
    panels = []
    for metric, title, unit in (
        ("episode_cost", "cost{}; dotted: its limit", "cost per episode"),
        ("multipliers", "multiplier of the cost{}", "multiplier"),
    ):
        if any(metric in line for line in lines):
            panels.append(_Panel(metric, title.format(""), unit, limit_of_cost=0))
        of_several = {
            i for line in lines for i in range(len(line)) if f"{metric}_{i}" in line
        }
        panels += [
            _Panel(f"{metric}_{i}", title.format(f" {i}"), unit, limit_of_cost=i)
            for i in sorted(of_several)
        ]
    return panels


def styles_of(runs: Sequence[Run]) -> list[Style]:
    """Return label, colour and line style for each run.

    The label is the environment if no two runs share one, else the folder's name, or
    its whole path if two folders have the same name.
    """
    envs = [run.env for run in runs]
    names = [run.folder.resolve().name for run in runs]
    if len({*envs}) == len(runs):
        names = envs
    elif len({*names}) < len(runs):
        names = [str(run.folder) for run in runs]
    looks = itertools.cycle(itertools.product(LINES, COLORS))
    return [
        Style(name, color, line)
        for name, (line, color) in zip(names, looks, strict=False)
    ]


def draw_returns(runs: Sequence[Run], path: Path) -> None:
    """Draw episode return against environment steps, a panel for each environment."""
    envs = list(dict.fromkeys(run.env for run in runs))
    columns = min(_COLUMNS, len(envs))
    rows = -(-len(envs) // columns)
    size = (6.4, 4.2) if len(envs) == 1 else (4.2 * columns, 3.2 * rows + 0.7)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    axes = dict(zip(envs, make_panels(figure, rows, columns, len(envs)), strict=True))
    for run, style in zip(runs, styles_of(runs), strict=True):
        draw_curve(axes[run.env], return_curve(run), style)
        _draw_evaluations(axes[run.env], evaluation_curve(run), style)
    for env, axis in axes.items():
        axis.set_title(env, fontsize=11)
        if not any(np.isfinite(line.get_ydata()).any() for line in axis.lines):
            axis.annotate(
                "no episode has ended yet",
                (0.5, 0.5),
                xycoords="axes fraction",
                ha="center",
            )
    evaluated = any(axis.containers for axis in axes.values())
    dots = " (dots: evaluations by greedy actions)" if evaluated else ""
    figure.supylabel(f"episode return{dots}", fontsize=10)
    _finish(figure, axes[envs[0]], runs, path, legend=len(runs) > len(envs))


def draw_diagnostics(runs: Sequence[Run], path: Path) -> None:
    """Draw policy update and critic fit, a panel for each metric, and for each cost."""
    panels = [*_PANELS, *_cost_panels(runs)]
    rows = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(11, 3 * rows + 0.7), dpi=DPI, layout="constrained")
    axes = make_panels(figure, rows, _COLUMNS, len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        _draw_panel(axis, panel, runs)
    _finish(figure, axes[0], runs, path, legend=len(runs) > 1)


def _draw_panel(axis: Axes, panel: _Panel, runs: Sequence[Run]) -> None:
    for run, style in zip(runs, styles_of(runs), strict=True):
        curve = metric_curve(run, panel.metric)
        draw_curve(axis, curve, style, logarithmic=panel.scale == "log")
        for place, metric in enumerate(panel.fainter, start=1):
            fainter = metric_curve(run, metric)
            axis.plot(
                fainter.steps,
                fainter.mean,
                style.line,
                color=style.color,
                linewidth=1.2 / place,
                alpha=0.7,
            )
        if isinstance(panel.limit, str):
            limit = metric_curve(run, panel.limit)
            axis.plot(limit.steps, limit.mean, ":", color=style.color)
        if panel.limit_of_cost is not None and panel.metric.startswith("episode"):
            for level in run.cost_limits[panel.limit_of_cost :][:1]:
                axis.axhline(level, linestyle=":", color=style.color)
    if isinstance(panel.limit, int | float):
        axis.axhline(panel.limit, linestyle=":", color="black", linewidth=1)
    means = np.concatenate([np.asarray(line.get_ydata()) for line in axis.lines])
    if panel.scale == "symlog" and np.isfinite(means).any():
        axis.set_yscale("symlog")
        # Without the interval, as below.
        axis.set_ylim(3 * min(np.nanmin(means), -1), 3 * max(np.nanmax(means), 0))
        axis.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1))
    if panel.scale == "log" and (means > 0).any():
        means = means[means > 0]
        axis.set_yscale("log")
        # The interval of two seeds may span ten powers of ten.
        axis.set_ylim(means.min() / 3, means.max() * 3)
        axis.yaxis.set_major_locator(LogLocator(numticks=6))
        axis.yaxis.set_minor_locator(NullLocator())
    low, high = axis.get_ylim()
    least, most = panel.ends
    title = panel.title
    if panel.cut is not None and low < panel.cut:
        least = panel.cut
        title += f" (cut at {panel.cut})".replace("-", "−")
    axis.set_ylim(low if least is None else least, high if most is None else most)
    axis.set_title(title, fontsize=10)
    axis.set_ylabel(panel.unit, fontsize=9)


def make_panels(figure: Figure, rows: int, columns: int, count: int) -> list[Axes]:
    """Return the first `count` panels of a grid, and remove the others."""
    grid = figure.subplots(rows, columns, squeeze=False)
    for axis in grid.flat[count:]:
        axis.remove()
    axes = list(grid.flat[:count])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.tick_params(labelsize=8.5)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.yaxis.set_major_formatter(FuncFormatter(_thousands))
    return axes


def draw_curve(
    axis: Axes, curve: Curve, style: Style, *, logarithmic: bool = False
) -> None:
    """Draw a mean and its interval, without updates that measured nothing."""
    seen = np.isfinite(curve.mean)
    if logarithmic:  # 0 has no logarithm
        seen &= curve.mean > 0
    steps, mean, half_width = (values[seen] for values in curve)
    low, high = mean - half_width, mean + half_width
    if logarithmic:
        # Delta method, d log x = dx / x: the interval itself would reach below 0 where
        # seeds vary a lot. The bound of 50 is far beyond any axis, and keeps the
        # exponential finite.
        factor = np.exp(np.minimum(half_width / mean, 50))
        low, high = mean / factor, mean * factor
    axis.plot(
        steps,
        mean,
        style.line,
        color=style.color,
        linewidth=1.6,
        label=style.label,
        marker="o" if len(steps) == 1 else None,
    )
    axis.fill_between(steps, low, high, color=style.color, alpha=0.2, linewidth=0)


def _draw_evaluations(axis: Axes, curve: Curve, style: Style) -> None:
    """Draw a dot for each evaluation in training, with its interval over seeds."""
    seen = np.isfinite(curve.mean)
    if seen.any():
        steps, mean, half_width = (values[seen] for values in curve)
        axis.errorbar(
            steps, mean, half_width, fmt="o", color=style.color, markersize=3, lw=0.8
        )


def _finish(
    figure: Figure, labelled: Axes, runs: Sequence[Run], path: Path, *, legend: bool
) -> None:
    """Add note and legend, and write the file."""
    for axis in figure.axes:
        axis.set_xlim(left=0)
    note = textwrap.fill(_note(runs), int(13 * figure.get_figwidth()))
    figure.supxlabel(f"environment steps of one seed\n{note}", fontsize=9)
    if legend:
        figure.legend(
            *labelled.get_legend_handles_labels(),
            loc="outside upper center",
            ncols=4,
            frameon=False,
            fontsize=9,
        )
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure to a file."""
    FigureCanvasAgg(figure).print_figure(path)


def _note(runs: Sequence[Run]) -> str:
    """Return a note on what a point and a band show."""
    windows, seeds = [run.window for run in runs], [run.num_seeds for run in runs]
    note = "one seed"
    if max(seeds) > 1:
        note = f"mean of {_range(seeds)} seeds; band: its 95 % interval (Student's t)"
    if max(windows) > 1:
        return f"a point is a mean over the last {_range(windows)} updates; {note}"
    return note


def _range(counts: list[int]) -> str:
    """Format the least and the greatest: [3, 3] ↦ 3; [2, 1000, 5] ↦ 2–1,000."""
    return "–".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))


def _thousands(value: float, _: object) -> str:
    """Format a tick: 12345.0 ↦ 12,345; 0.30000000000000004 ↦ 0.3; 1e-05 ↦ 1e-05."""
    return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"
