"""Tables and pictures of the policy updates beside each other."""

import pathlib
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from benchmarks.harness import RESULTS, read_rows


def last_rows(rows: list[dict]) -> list[dict]:
    """Return the last row of each name, in the order of first appearance."""
    return list({row["name"]: row for row in rows}.values())


def number(value: float | None) -> str:
    if value is None:
        return "–"
    if value == 0:
        return "0"
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
    return f"{value:.{digits}f}" if abs(value) >= 0.001 else f"{value:.1e}"


def returns(summary: dict[str, Any]) -> str:
    return f"{number(summary['mean'])} ± {number(summary['interval'])}"


def comparison(rows: list[dict]) -> tuple[tuple[str, ...], list[tuple]]:
    """Return header and lines of the table of all updates, by environment."""
    header = (
        "environment",
        "update",
        "return at the end",
        "mean over training",
        "deviation over seeds",
        "KL of an update: median, 95 %",
        "KL in the worst state",
        "KL above δ",
        "gain / its error",
        "harmful, helpful updates",
        "size of a harmful one",
        "worst drop: ever, later",
        "ms a step, s of training",
        "return after TRPO's seconds",
    )
    lines = []
    rows = last_rows(rows)
    limits = {
        row["env"]: row["step_seconds"]["median"] * len(row["curve"])
        for row in rows
        if row["update"] == "trpo"
    }
    for row in rows:
        bounded = row["update"] not in ("npg", "ppo")
        above = f"{row['share_above_radius']:.0%}" if bounded else "no δ"
        seconds = row["step_seconds"]["median"]
        lines.append(
            (
                row["env"],
                row["update"],
                returns(row["final"]),
                returns(row["mean_over_training"]),
                number(row["seed_deviation"]),
                f"{number(row['kl_median'])}, {number(row['kl_95'])}",
                number(row["kl_max_over_states"]),
                above,
                number(row["gain_over_error"]),
                f"{row['harmful']:.0%}, {row['helpful']:.0%}",
                share(row.get("harmful_size")),
                f"{share(row['worst_drop'])}, {share(row.get('worst_later_drop'))}",
                f"{1e3 * seconds:.1f}, {seconds * len(row['curve']):.2g}",
                number(return_after(row, limits.get(row["env"]))),
            )
        )
    return header, lines


def share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def return_after(row: dict[str, Any], seconds: float | None) -> float | None:
    """Return the mean return that an update has after so many seconds of training.

    Over a tenth of the updates, the last ones that fit into this time; None where TRPO,
    whose seconds they are, was not measured.
    """
    if seconds is None:
        return None
    curve = row["curve"]
    done = max(1, min(len(curve), round(seconds / row["step_seconds"]["median"])))
    return float(np.mean(curve[max(0, done - max(1, len(curve) // 10)) : done]))


def code(rows: list[dict]) -> tuple[tuple[str, ...], list[tuple]]:
    """Return header and lines: what each update adds, in code and in kernels."""
    header = ("update", "lines of code", "kernels of a step")
    programs = read_rows(RESULTS / "compiled-h100.jsonl")
    kernels = {
        row["fields"].get("update", "trpo"): row["kernels"]
        for row in programs
        if row["program"] == "feed-forward" or row["program"].startswith("update=")
        if (row["target"], row["num_envs"], row["rollout_length"])
        == ("h100-1", 1024, 32)
    }
    lines = {row["update"]: row["lines_of_code"] for row in rows}
    return header, [(name, lines[name], f"{kernels[name]:,}") for name in lines]


def settings(rows: list[dict]) -> tuple[tuple[str, ...], list[tuple]]:
    """Return header and lines: what the search found for TRPO and for PPO."""
    header = (
        "environment",
        "update",
        "δ or ε",
        "damping or learning rate",
        "discount",
        "λ",
        "entropy bonus",
    )
    lines = [
        (
            row["env"],
            row["update"],
            *(f"{value:.3g}" for value in row["fields"].values()),
        )
        for row in last_rows(rows)
        if row["update"] in ("trpo", "ppo")
    ]
    return header, lines


def implementation(rows: list[dict]) -> tuple[tuple[str, ...], list[tuple]]:
    """Return header and lines: four agents, by environment."""
    header = ("environment", "agent", "return at the end", "mean over training", "KL")
    lines = [
        (
            row["env"],
            row["agent"],
            returns(row["final"]),
            returns(row["mean_over_training"]),
            number(row["kl_median"]),
        )
        for row in last_rows(rows)
    ]
    return header, lines


def sensitivity(rows: list[dict]) -> tuple[tuple[str, ...], list[tuple]]:
    """Return header and lines: how far returns stay near the best, by environment."""
    header = ("environment", "field", "values", "returns", "decades near the best")
    lines = []
    for row in last_rows(rows):
        means = np.asarray([r["mean"] for r in row["returns"]], float)
        lines.append(
            (
                row["env"],
                {"max_kl": "TRPO's δ", "clip_ratio": "PPO's ε"}[row["field"]],
                f"{row['values'][0]:g} … {row['values'][-1]:g}",
                f"{number(means.min())} … {number(means.max())}",
                f"{decades_near_the_best(means, row['random_return']):.2g} of 2",
            )
        )
    return header, lines


def decades_near_the_best(means: NDArray, random_return: float) -> float:
    """Return over how many decades the mean is within a tenth of the best one.

    A tenth of what the best has beyond a random policy. Each value stands for its equal
    part of the two decades.
    """
    near = means >= means.max() - 0.1 * (means.max() - random_return)
    return 2 * near.mean()


def draw_comparison(rows: list[dict], path: pathlib.Path) -> bool:
    """Draw the evaluated return of each update against steps, by environment."""
    rows = last_rows(rows)
    envs = list(dict.fromkeys(row["env"] for row in rows))
    figure, axes = _panels(len(envs))
    updates = list(dict.fromkeys(row["update"] for row in rows))
    for axis, env in zip(axes, envs, strict=True):
        for row in (row for row in rows if row["env"] == env):
            curve = np.asarray(row["curve"], float)
            steps = np.linspace(0, row["steps"], len(curve) + 1)[1:]
            place = updates.index(row["update"])
            axis.plot(
                steps, curve, color=f"C{place}", linewidth=1.2, label=row["update"]
            )
        axis.set_title(env, fontsize=9)
        _tidy(axis)
    axes[0].legend(frameon=False, fontsize=7)
    figure.supxlabel("environment steps", fontsize=9)
    figure.supylabel("return of greedy actions", fontsize=9)
    return _save(figure, path)


def draw_sensitivity(rows: list[dict], path: pathlib.Path) -> bool:
    """Draw the return against δ of TRPO and ε of PPO, over two decades of each."""
    rows = last_rows(rows)
    envs = list(dict.fromkeys(row["env"] for row in rows))
    figure, axes = _panels(len(envs))
    labels = {"max_kl": "TRPO, δ from 0.001", "clip_ratio": "PPO, ε from 0.01"}
    for axis, env in zip(axes, envs, strict=True):
        for row in (row for row in rows if row["env"] == env):
            x = np.asarray(row["values"]) / row["values"][0]
            mean = np.asarray([r["mean"] for r in row["returns"]], float)
            half = np.asarray([r["interval"] for r in row["returns"]], float)
            color = "C0" if row["update"] == "trpo" else "C1"
            axis.semilogx(x, mean, ".-", color=color, label=labels[row["field"]])
            axis.fill_between(x, mean - half, mean + half, color=color, alpha=0.2)
        axis.set_title(env, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.supxlabel("times the smallest value", fontsize=9)
    figure.supylabel("return", fontsize=9)
    return _save(figure, path)


def _panels(count: int) -> tuple[Any, list[Any]]:
    """Return a figure with so many panels, up to three in a line."""
    columns = min(3, count)
    lines = -(-count // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.6 * columns, 2.8 * lines), squeeze=False
    )
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, list(axes.flat[:count])


def _tidy(axis: Any) -> None:
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, path: pathlib.Path) -> bool:
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return True
