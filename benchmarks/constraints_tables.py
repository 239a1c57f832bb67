"""Table and picture of the updates that keep a limit on a cost."""

import pathlib

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import EngFormatter, MaxNLocator

from benchmarks.relatives_tables import last_rows, number, returns

# Return and cost of an episode in tasks of the same kind: omnisafe's table 2, of
# Safety-Gymnasium, 10⁷ steps with a limit of 25.
PUBLISHED = {
    "safe/hopper_velocity": (
        "HopperVelocity",
        {
            "trpo": (2047, 448),
            "cpo": (1714, 13),
            "trpo_lagrangian": (1392, 11),
            "trpo_pid": (1179, 19),
        },
    ),
    "safe/halfcheetah_velocity": (
        "HalfCheetahVelocity",
        {
            "trpo": (6491, 734),
            "cpo": (2786, 5),
            "trpo_lagrangian": (2885, 9),
            "trpo_pid": (2797, 11),
        },
    ),
    "crax/safe_goal_point": (
        "PointGoal1",
        {
            "trpo": (27, 46),
            "cpo": (20.5, 29),
            "trpo_lagrangian": (18.5, 23),
            "trpo_pid": (19, 21),
        },
    ),
}


def beside_published(rows: list[dict]) -> tuple[tuple[str, ...], list[tuple]]:
    """Return header and lines: costs and kept returns, beside omnisafe's."""
    header = (
        "environment",
        "update",
        "steps",
        "cost",
        "return, of TRPO's",
        "omnisafe's task, 10,000,000 steps",
        "its cost",
        "its return, of TRPO's",
    )
    plain = {row["env"]: row for row in rows if row["update"] == "trpo"}
    lines = []
    for row in _by_environment(rows):
        task, published = PUBLISHED.get(row["env"], ("", {}))
        if row["update"] not in published or row["env"] not in plain:
            continue
        share = row["return"]["mean"] / plain[row["env"]]["return"]["mean"]
        theirs, cost = published[row["update"]]
        lines.append(
            (
                row["env"],
                row["update"],
                f"{row['steps']:,}",
                number(row["cost"]["mean"]),
                f"{share:.0%}",
                task,
                number(cost),
                f"{theirs / published['trpo'][0]:.0%}",
            )
        )
    return header, lines


def comparison(rows: list[dict]) -> tuple[tuple[str, ...], list[tuple]]:
    """Return header and lines of the table, by environment."""
    header = (
        "environment",
        "update",
        "batch",
        "steps",
        "seeds",
        "return at the end",
        "of the optimum",
        "limit",
        "cost at the end",
        "seeds within the limit",
        "updates above it",
        "above by a tenth",
        "above by a tenth at the end",
    )
    lines = []
    for row in _by_environment(rows):
        optimum = row.get("optimum")
        lines.append(
            (
                row["env"],
                _label(row),
                f"{row['fields']['num_envs'] * row['fields']['rollout_length']:,}",
                f"{row['steps']:,}",
                row["num_seeds"],
                returns(row["return"]),
                f"{row['return']['mean'] / optimum:.1%}" if optimum else "–",
                f"{row['limit']:g}",
                returns(row["cost"]),
                f"{row['seeds_within']:.0%}",
                f"{row['share_above']:.0%}",
                f"{row['share_above_by_a_tenth']:.0%}",
                f"{row['late_share_above_by_a_tenth']:.0%}",
            )
        )
    return header, lines


def _by_environment(rows: list[dict]) -> list[dict]:
    """Return the last row of each name, those of an environment together."""
    rows = last_rows(rows)
    envs = list(dict.fromkeys(row["env"] for row in rows))
    return sorted(rows, key=lambda row: envs.index(row["env"]))


def _label(row: dict) -> str:
    """Return the update, with its `cost_correction` where that was set."""
    correction = row["fields"].get("cost_correction")
    if correction is None:
        return row["update"]
    return f"{row['update']}, cost_correction={correction:g}"


def draw(rows: list[dict], path: pathlib.Path) -> bool:
    """Draw return and cost against steps, with the limit and the exact optima."""
    rows = last_rows(rows)
    envs = list(dict.fromkeys(row["env"] for row in rows))
    updates = list(dict.fromkeys(row["update"] for row in rows))
    figure, axes = plt.subplots(
        2, len(envs), figsize=(3.4 * len(envs), 5), squeeze=False, sharex="col"
    )
    for column, env in zip(axes.T, envs, strict=True):
        of_env = [row for row in rows if row["env"] == env]
        # Without rows of other sizes, which have a longer name, unless there are only
        # such.
        plain = [row for row in of_env if row["name"] == f"{env}, {row['update']}"]
        of_env = plain or of_env
        for row in of_env:
            for axis, curve in zip(column, ("return_curve", "cost_curve"), strict=True):
                values = np.asarray(row[curve], float)
                steps = np.linspace(0, row["steps"], len(values) + 1)[1:]
                color = f"C{updates.index(row['update'])}"
                axis.plot(steps, values, color=color, lw=1.2, label=row["update"])
        above, below = column
        if "optimum" in of_env[-1]:
            above.axhline(of_env[-1]["optimum"], color="k", ls=":", lw=1)
        below.axhline(of_env[-1]["limit"], color="k", ls="--", lw=1)
        above.set_title(env, fontsize=9)
        for axis in column:
            axis.set_xlim(left=0)
            axis.xaxis.set_major_locator(MaxNLocator(4))
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
            axis.tick_params(labelsize=8)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("return", fontsize=9)
    axes[1, 0].set_ylabel("cost of an episode", fontsize=9)
    axes[0, 0].legend(frameon=False, fontsize=7)
    figure.supxlabel("environment steps", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return True


def speeds(rows: list[dict]) -> tuple[tuple[str, ...], list[tuple]]:
    """Return header and lines of the table of speeds without a limit."""
    header = (
        "task",
        "steps of training",
        "mean speed",
        "half of it",
        "speed: 5 %, 50 %, 95 %",
        "steps above half of the mean",
    )
    lines = [
        (
            row["name"],
            f"{row['steps']:,}",
            number(row["mean_speed"]),
            number(row["mean_speed"] / 2),
            ", ".join(map(number, row["speed_quantiles"])),
            f"{row['share_above_half']:.0%}",
        )
        for row in last_rows(rows)
    ]
    return header, lines
