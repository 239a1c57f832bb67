"""Write the tables and pictures of benchmarks/README.md from the results there are.

    python -m benchmarks.report

A table stands between `<!-- name -->` and `<!-- end -->`; the text around it stays.
"""

import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from benchmarks.harness import RESULTS, read_rows

README = pathlib.Path(__file__).parent / "README.md"
KIBI = 1024


def table(header: Iterable[str], lines: Iterable[Iterable[Any]]) -> str:
    header = list(header)
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def stamp(rows: list[dict]) -> str:
    """Where, when and with what a file's rows were measured."""
    if not rows:
        return "Not measured yet."
    row = rows[0]
    versions = ", ".join(f"{name} {value}" for name, value in row["versions"].items())
    return (
        f"{row['device']} ({row['cores']} cores), {row['date']}, commit "
        f"{row['commit']}, Python {row['python']}; {versions}."
    )


def significant(value: float) -> str:
    """Three digits, thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(timing: dict, scale: float = 1.0) -> str:
    """The median with the middle half's ends."""
    median, low, high = (scale * timing[key] for key in ("median", "low", "high"))
    return f"{significant(median)} ({significant(low)}–{significant(high)})"


def peers(rows: list[dict]) -> str:
    return table(
        ("measure", "peer", "theirs", "ours", "ours / theirs", "asked"),
        (
            (
                row["measure"],
                row["peer"],
                spread(row["theirs"]),
                spread(row["ours"]),
                f"**{row['ratio']:.2f}**",
                row["target"],
            )
            for row in rows
        ),
    )


def throughput(rows: list[dict]) -> str:
    def describe(case: dict) -> str:
        sizes = " × ".join(map(str, case["hidden_sizes"]))
        seeds = f", {case['num_seeds']} seeds" if case["num_seeds"] > 1 else ""
        return (
            f"{case['env']}, {case['num_envs']} × {case['rollout_length']}, "
            f"{sizes}{seeds}"
        )

    parts = list(rows[0]["shares"])
    short = {"line search, one candidate": "one candidate"}
    return table(
        (
            "case",
            "steps/s",
            "step, ms",
            "compile, s",
            *(short.get(p, p) for p in parts),
        ),
        (
            (
                describe(row["case"]),
                significant(row["steps_per_second"]),
                spread(row["seconds"]["step"], 1e3),
                f"{row['trace_seconds'] + row['compile_seconds']:.1f}",
                *(
                    f"{row['shares'][part]:.0%}" if part in row["shares"] else ""
                    for part in parts
                ),
            )
            for row in rows
        ),
    )


def curvature(rows: list[dict]) -> str:
    return table(
        (
            "policy",
            "N",
            "units",
            "gradient, ms",
            "GN product / gradient",
            "Hessian product / gradient",
            "solve of ten / gradient",
            "update / gradient",
            "update / faster gradient",
            "share of matrix ceiling",
            "of copy ceiling",
            "temporaries of the update, MiB",
        ),
        (
            (
                row["kind"],
                f"{row['rows']:,}",
                f"{row['width']} × {row['width']}",
                spread(row["seconds"]["gradient"], 1e3),
                f"{row['product_over_gradient']['gauss_newton']:.2f}",
                f"{row['product_over_gradient']['hessian']:.2f}",
                f"{10 * row['product_over_gradient']['gauss_newton']:.1f}",
                f"{row['update_over_gradient']:.2f}",
                f"{row['update_over_faster_gradient']:.2f}",
                f"{row['share_of_matrix_ceiling']:.0%}",
                f"{row['share_of_copy_ceiling']:.0%}",
                significant(row["temporary_bytes"]["update"] / KIBI**2),
            )
            for row in rows
        ),
    )


def scaling(rows: list[dict]) -> str:
    return table(
        ("measure", "sizes", "seconds at the ends", "exponent"),
        (
            (
                row["measure"],
                f"{row['sizes'][0]:,} … {row['sizes'][-1]:,}",
                " … ".join(f"{row['seconds'][i]['median']:.3g}" for i in (0, -1)),
                f"**{row['exponent']:.2f}**",
            )
            for row in rows
        ),
    )


TABLES: dict[str, Callable[[list[dict]], str]] = {
    "peers": peers,
    "throughput": throughput,
    "curvature": curvature,
    "scaling": scaling,
}


def draw_scaling(rows: list[dict], path: pathlib.Path) -> None:
    """Time against size, each beside a line of exponent 1 through its last point."""
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
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_shares(rows: list[dict], path: pathlib.Path) -> None:
    """Where a step's time goes, one bar a case."""
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
    figure.savefig(path, dpi=100)
    plt.close(figure)


def insert(text: str, name: str, body: str) -> str:
    """Put a body between the marks of its name, in place of what stands there."""
    pattern = re.compile(f"<!-- {name} -->\n(.*?)<!-- end -->", re.DOTALL)
    return pattern.sub(lambda _: f"<!-- {name} -->\n{body}\n<!-- end -->", text)


PICTURES = {"scaling": draw_scaling, "throughput": draw_shares}


def main() -> None:
    text = README.read_text()
    for name, write in TABLES.items():
        rows = read_rows(RESULTS / f"{name}.jsonl")
        body = f"{write(rows)}\n\n{stamp(rows)}" if rows else stamp(rows)
        text = insert(text, name, body)
        if rows and name in PICTURES:
            PICTURES[name](rows, RESULTS / f"{name}.png")
    README.write_text(text)


if __name__ == "__main__":
    main()
