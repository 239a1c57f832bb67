"""Pictures of benchmarks/README.md, each drawn from the rows of a results file.

Each function returns whether it drew the picture, since rows may lack its data.
"""

import pathlib
import textwrap
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from benchmarks import curves
from benchmarks.compiled.scaling import grown
from benchmarks.compiled.targets import PPO, REJAX, TARGETS
from benchmarks.statistics import (
    interquartile_mean,
    normalized,
    performance_profile,
    stratified_bootstrap,
)

COLUMNS = 4


def draw_scaling(rows: list[dict], path: pathlib.Path) -> bool:
    """Draw time against size, with a line of exponent 1 through the last point."""
    figure, axes = plt.subplots(1, len(rows), figsize=(3.2 * len(rows), 3))
    for axis, row in zip(axes, rows, strict=True):
        sizes = row["sizes"]
        medians = [timing["median"] for timing in row["seconds"]]
        axis.loglog(sizes, medians, "o-", label=f"exponent {row['exponent']:.2f}")
        ideal = [medians[-1] * size / sizes[-1] for size in sizes]
        axis.loglog(sizes, ideal, ":", color="gray", label="proportional")
        axis.minorticks_off()
        axis.set_xticks(sizes[::2], [f"{size:,}" for size in sizes[::2]], rotation=40)
        axis.set_xlabel(row["measure"].split("against ")[1])
        axis.set_ylabel("seconds")
        axis.set_title(row["measure"].split(" against")[0], fontsize=10)
        axis.legend(fontsize=8)
    figure.tight_layout()
    return _save(figure, path)


def draw_bounds(rows: list[dict], path: pathlib.Path) -> bool:
    """Draw how far both bounds are below the improvement, against δ."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    parts = ("penalty_over_improvement", "share_positive")
    lines = {"largest_kl": ("-", "largest KL"), "mean_kl": ("--", "mean KL")}
    for axis, part in zip(axes, parts, strict=True):
        for index, row in enumerate(rows):
            for name, (line, label) in lines.items():
                axis.plot(
                    row["radii"],
                    row[part][name],
                    line,
                    color=f"C{index}",
                    label=f"γ = {row['discount']}, {label}",
                )
        axis.set_xscale("log")
        axis.set_xlabel("δ, nats")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    left, right = axes
    left.set_yscale("log")
    left.axhline(1, color="gray", linestyle=":")
    left.set_ylabel("(improvement − bound) / improvement", fontsize=9)
    right.set_ylabel("share of updates with a bound above 0", fontsize=9)
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    left.legend(fontsize=7.5, frameon=False)
    figure.tight_layout()
    return _save(figure, path)


def draw_shares(rows: list[dict], path: pathlib.Path) -> bool:
    """Draw the share of each part in the time of a step, one bar per case."""
    rows = [row for row in rows if row["shares"]]
    figure, axis = plt.subplots(figsize=(9, 0.45 * len(rows) + 1.6))
    left = [0.0] * len(rows)
    names = [
        f"{row['case']['env']} {row['case']['num_envs']} × "
        f"{row['case']['rollout_length']}, {row['case']['hidden_sizes'][0]} units"
        for row in rows
    ]
    for index, part in enumerate(rows[0]["shares"]):
        widths = [max(row["shares"][part], 0) for row in rows]
        color = plt.get_cmap("tab10")(index)
        axis.barh(names, widths, left=left, label=part, color=color)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.set_xlabel("share of a step's time")
    axis.legend(ncols=4, fontsize=8, loc="lower center", bbox_to_anchor=(0.4, 1.0))
    figure.tight_layout()
    return _save(figure, path)


def draw_curves(rows: list[dict], path: pathlib.Path) -> bool:
    """Draw return against steps for each environment: mean over seeds, interval."""
    files = {row["name"]: curves.path_of(path, row["name"]) for row in rows}
    rows = [row for row in rows if files[row["name"]].exists()]
    if not rows:
        return False
    columns = min(COLUMNS, len(rows))
    lines = -(-len(rows) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.2 * columns, 2.5 * lines + 0.5), squeeze=False
    )
    for axis in axes.flat[len(rows) :]:
        axis.remove()
    for axis, row in zip(axes.flat, rows, strict=False):
        _draw_curve(axis, row, files[row["name"]])
    figure.supxlabel("environment steps of one seed", fontsize=9)
    figure.supylabel("return", fontsize=9)
    handles = {
        label: handle
        for axis in axes.flat[: len(rows)]
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.45 / figure.get_figheight()))
    figure.legend(
        handles.values(), handles, loc="upper center", ncols=len(handles), frameon=False
    )
    return _save(figure, path)


def _draw_curve(axis: Axes, row: dict[str, Any], path: pathlib.Path) -> None:
    curve = curves.read(path)
    ended = np.isfinite(curve.mean)
    steps, mean, half_width = (values[ended] for values in curve)
    axis.plot(steps, mean, label="training episodes, mean of seeds")
    axis.fill_between(
        steps,
        mean - half_width,
        mean + half_width,
        alpha=0.25,
        linewidth=0,
        label="its 95 % interval",
    )
    axis.errorbar(
        row["steps"],
        row["mean"],
        row["interval"],
        fmt="o",
        markersize=4,
        capsize=3,
        color="black",
        label="evaluation",
        clip_on=False,
    )
    levels = {
        "target or published": (_reference(row), "C2", "--"),
        "random": (row.get("random_return"), "C7", ":"),
    }
    for label, (level, color, style) in levels.items():
        if level is not None:
            axis.axhline(level, color=color, linestyle=style, label=label)
    axis.set_title(textwrap.fill(row["name"], 40), fontsize=8.5)
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def draw_locomotion(rows: list[dict], path: pathlib.Path) -> bool:
    """Draw return against steps of TRPO and PPO, one line per seed."""
    envs = list(dict.fromkeys(row["env"] for row in rows))
    lines = -(-len(envs) // 3)
    figure, axes = plt.subplots(lines, 3, figsize=(9.6, 2.6 * lines), squeeze=False)
    for axis in axes.flat[len(envs) :]:
        axis.remove()
    for axis, env in zip(axes.flat, envs, strict=False):
        for name, color in {"trpo": "C0", "ppo": "C1"}.items():
            runs = [r for r in rows if (r["env"], r["algorithm"]) == (env, name)]
            for run in runs:
                axis.plot(
                    run["steps"],
                    run["returns"],
                    ".-",
                    color=color,
                    linewidth=1,
                    label=None if run is not runs[0] else name.upper(),
                )
        axis.set_title(env, fontsize=9)
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.supxlabel("environment steps", fontsize=9)
    figure.supylabel("return", fontsize=9)
    figure.tight_layout()
    return _save(figure, path)


def draw_compiled(rows: list[dict], path: pathlib.Path) -> bool:
    """Draw modelled time: of one batch on each target, and with the devices."""
    parts = ("launches", "memory", "operations", "communication")
    size = {"num_envs": 4096, "rollout_length": 128, "per_device": False}
    names = {"feed-forward": "TRPO", PPO: "PPO", REJAX: "rejax's PPO"}
    bars = {
        f"{names[row['program']]}, {row['target']}": row["modelled_seconds"]
        for target in TARGETS
        for row in rows
        if row["target"] == target
        and row["program"] in names
        and size.items() <= row.items()
    }
    lines = {
        (TARGETS[row["target"]].kind, row["num_envs"] // row["devices"])
        for row in grown(rows)
    }
    if not bars or not lines:
        return False
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 4), gridspec_kw={"width_ratios": [3, 2]}
    )
    start = np.zeros(len(bars))
    for part in parts:
        widths = np.array([1e3 * spent[part] for spent in bars.values()])
        left.barh(list(bars), widths, left=start, label=part)
        start += widths
    left.invert_yaxis()
    left.set_xlabel("modelled milliseconds of an update, 4,096 × 128")
    left.legend(
        ncols=4,
        fontsize=8,
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.4, 1.0),
    )
    for kind, envs in sorted(lines):
        points = [
            (
                row["devices"],
                row["modelled_seconds"]["communication"] / row["modelled_step_seconds"],
            )
            for row in grown(rows)
            if TARGETS[row["target"]].kind == kind
            and row["num_envs"] // row["devices"] == envs
        ]
        right.plot(*zip(*points, strict=True), "o-", label=f"{kind}, {envs:,} × 32")
    right.axhline(0.1, color="gray", linestyle=":")
    right.set_xscale("log", base=2)
    right.xaxis.set_major_formatter("{x:.0f}")
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    right.set_ylim(bottom=0)
    right.set_xlabel("devices, with the same work for each")
    right.set_ylabel("modelled share of communication")
    right.legend(fontsize=8, frameon=False)
    for axis in (left, right):
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return _save(figure, path)


def draw_profile(rows: list[dict], path: pathlib.Path) -> bool:
    """Draw the share of runs above each score, with a stratified bootstrap band."""
    by_env = {row["name"]: scores(row) for row in rows}
    tasks = [runs for runs in by_env.values() if runs is not None]
    if not tasks:
        return False
    pooled = np.concatenate(tasks)
    ends = np.clip(min(pooled), -0.5, 0), np.clip(max(pooled), 1.25, 3)
    thresholds = np.linspace(*ends, 201)
    low, high = stratified_bootstrap(
        lambda tasks: performance_profile(tasks, thresholds), tasks, repeats=2000
    )
    figure, axis = plt.subplots(figsize=(6.4, 3.6))
    axis.step(thresholds, performance_profile(tasks, thresholds), where="post")
    axis.fill_between(thresholds, low, high, step="post", alpha=0.25, linewidth=0)
    for level, name in {0: "random", 1: "target or published"}.items():
        axis.axvline(level, color="gray", linestyle=":")
        axis.text(level, 1.02, name, ha="center", fontsize=9, color="dimgray")
    axis.set_xlabel("normalised score τ")
    axis.set_ylabel("share of runs above τ")
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_ylim(0, 1)
    axis.spines[["top", "right"]].set_visible(False)
    iqm, ends = (
        interquartile_mean(tasks),
        stratified_bootstrap(interquartile_mean, tasks),
    )
    axis.set_title(
        f"{len(tasks)} rows, {len(pooled)} runs: interquartile mean "
        f"{iqm:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]",
        fontsize=10,
        pad=20,
    )
    figure.tight_layout()
    return _save(figure, path)


def scores(row: dict[str, Any]) -> np.ndarray | None:
    """Return the normalised scores of a row's seeds; None without a reference."""
    if None in row["by_seed"]:
        return None
    return normalized(
        row["by_seed"], random=row.get("random_return"), reference=_reference(row)
    )


def _reference(row: dict[str, Any]) -> float | None:
    """Return the higher of target and published return."""
    known = [row.get(name) for name in ("target", "published")]
    return max((value for value in known if value is not None), default=None)


def _save(figure: Figure, path: pathlib.Path) -> bool:
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return True
