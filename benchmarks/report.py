"""Write the tables and pictures of both README.md files from the results.

    python -m benchmarks.report

A table is written between `<!-- name -->` and `<!-- end -->`; other text is kept.
"""

import itertools
import pathlib
import re
import shlex
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks import constraints_tables
from benchmarks.cases import cases_of
from benchmarks.compiled.musts import exchanges, faults
from benchmarks.compiled.scaling import grown, row_of, size_at_share
from benchmarks.compiled.targets import TARGETS
from benchmarks.harness import RESULTS, read_rows
from benchmarks.learning import name_of
from benchmarks.pictures import (
    draw_bounds,
    draw_compiled,
    draw_curves,
    draw_locomotion,
    draw_profile,
    draw_scaling,
    draw_shares,
)
from benchmarks.references import REFERENCES
from benchmarks.relatives_tables import (
    code,
    comparison,
    draw_comparison,
    draw_sensitivity,
    implementation,
    sensitivity,
    settings,
)
from benchmarks.runs import configure, parse_overrides
from trpo_jax.runs.config_file import config_to_dict
from trpo_jax.runs.intervals import mean_interval

README = pathlib.Path(__file__).parent / "README.md"
FRONT_PAGE = README.parent.parent / "README.md"
KIBI = 1024

# Values of fields in rows that are older than the fields.
BEFORE_THE_FIELD = {
    "memory": "gru",
    "update": "trpo",
    "damping_schedule": "constant",
    "entropy_coefficient_schedule": "constant",
    "preconditioner": "score",
    "initialization": "orthogonal",
    "scale_rewards": False,
    "staggered_starts": False,
    "critic_max_gradient_norm": 0.0,
    "critic_value_clipping": 0.0,
}

# Of each kind the most telling rows, for the front page.
FRONT_ENVIRONMENTS = (
    "CartPole-v1",
    "Pendulum-v1",
    "MountainCarContinuous-v0",
    "Breakout-MinAtar",
    "Asterix-MinAtar",
    "MetaMaze-misc",
)
FRONT_PEERS = (
    "steps per second, CartPole, the zoo's settings (2 × 512), one thread each",
    "process wall time, 100k steps of CartPole trained and evaluated, cold cache",
    "steps per second, CartPole, 8 × 128, our defaults",
    "steps per second, CartPole, 64 × 128, our defaults",
    "steps per second, CartPole, 1024 × 128, our defaults",
    "seconds to 475 on CartPole, 8 seeds' median, each at its own settings",
)


def table(header: Iterable[str], lines: Iterable[Iterable[Any]]) -> str:
    header = list(header)
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def stamp(rows: list[dict]) -> str:
    """Describe the machines, dates, commits and versions of the rows of a file."""
    if not rows:
        return "Not measured yet."

    def kinds(values: Iterable[Any]) -> str:
        return ", ".join(dict.fromkeys(str(value) for value in values))

    devices = kinds(
        f"{row['device']} ({row['cores']} core{'s' * (row['cores'] > 1)})"
        if "cores" in row
        else row["device"]
        for row in rows
    )
    dates, commits = (
        kinds(row[key] for row in rows if key in row) for key in ("date", "commit")
    )
    python = "Python " + kinds(row["python"] for row in rows)
    place = [devices, dates, f"commit {commits}" if commits else "", python]
    named = dict.fromkeys(name for row in rows for name in row["versions"])
    versions = ", ".join(
        name + " " + kinds(r["versions"][name] for r in rows if name in r["versions"])
        for name in named
    )
    return f"{', '.join(filter(None, place))}; {versions}."


def significant(value: float) -> str:
    """Format with three digits and thousands separators."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(timing: dict, scale: float = 1.0) -> str:
    """Format a median with its quartiles."""
    median, low, high = (scale * timing[key] for key in ("median", "low", "high"))
    return f"{significant(median)} ({significant(low)}–{significant(high)})"


def peers(rows: list[dict]) -> str:
    return table(
        ("measure", "peer", "theirs", "ours", "ours / theirs", "target"),
        (
            (
                row["measure"],
                row["peer"],
                spread(row["theirs"]),
                spread(row["ours"]),
                # Returns may be below 0.
                "–" if row["figure"] == "return" else f"**{row['ratio']:.2f}**",
                row["target"],
            )
            for row in {row["measure"]: row for row in rows}.values()
        ),
    )


def host(rows: list[dict]) -> str:
    return table(
        (
            "rollout",
            "on the device",
            "on the host",
            "sb3-contrib",
            "host / sb3-contrib",
        ),
        (
            (
                f"{row['num_envs']} × {row['rollout_length']}",
                *(spread(row["steps_per_second"][side]) for side in SIDES),
                f"**{_median(row, 'host') / _median(row, 'peer'):.2f}**",
            )
            for row in rows
        ),
    )


SIDES = ("device", "host", "peer")


def _median(row: dict, side: str) -> float:
    return row["steps_per_second"][side]["median"]


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


def bounds(rows: list[dict]) -> str:
    words = {"largest_kl": "largest KL", "mean_kl": "mean KL"}
    return table(
        ("γ", "bound", *(f"δ = {radius:g}" for radius in rows[0]["radii"])),
        (
            (
                row["discount"],
                words[name],
                *(
                    f"{significant(penalty)} ({share:.0%})"
                    for penalty, share in zip(
                        row["penalty_over_improvement"][name],
                        row["share_positive"][name],
                        strict=True,
                    )
                ),
            )
            for row in rows
            for name in words
        ),
    )


def solves(rows: list[dict]) -> str:
    """Return the options of a solve, the last row of each."""
    return table(
        (
            "environment",
            "operator",
            "preconditioner",
            "adaptive",
            "products",
            "residual",
            "accepted",
            "seconds of a step / first",
            "return (mean ± 95 %)",
            "last δ",
            "last λ",
        ),
        (
            (
                row["env"],
                row["operator"],
                row["preconditioner"],
                row["adaptive"],
                significant(row["products"]),
                significant(row["relative_residual"]),
                f"{row['accepted']:.0%}",
                f"{row['step_over_first']:.2f}",
                f"{row['mean']} ± {row['interval']}",
                significant(row["last_max_kl"]),
                significant(row["last_damping"]),
            )
            for row in {row["name"]: row for row in rows}.values()
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


def learning(rows: list[dict]) -> str:
    def line(row: dict) -> tuple:
        mean, target, published = row["mean"], row.get("target"), row.get("published")
        reached = None not in (mean, target) and mean >= target
        low, high = row.get("iqm_interval", (None, None))
        return (
            marked(row),
            f"{row['steps']:,}",
            row["num_seeds"],
            f"{score(mean)} ± {score(row['interval'])}",
            f"{score(row.get('iqm'))} [{score(low)}, {score(high)}]",
            worst(row),
            score(row.get("random_return")),
            f"**{target:g}**" if reached else "–" if target is None else f"{target:g}",
            "–" if published is None else f"{published:g}",
            f"{row['wall_seconds']:,.0f}",
        )

    return table(
        (
            "environment",
            "steps",
            "seeds",
            "mean ± 95 %",
            "IQM [95 %]",
            "worst seed",
            "random",
            "target",
            "published",
            "seconds",
        ),
        map(line, rows),
    )


def learning_beside_published(rows: list[dict]) -> str:
    return table(
        (
            "environment",
            "steps",
            "seeds",
            "return (mean ± 95 %)",
            "worst seed",
            "random",
            "published",
        ),
        (
            (
                marked(row),
                f"{row['steps']:,}",
                row["num_seeds"],
                f"{score(row['mean'])} ± {score(row['interval'])}",
                worst(row),
                score(row.get("random_return")),
                f"{row['published']:g} ({row['published_by']})",
            )
            for row in of_presets(rows)
            if row["env"] in FRONT_ENVIRONMENTS
        ),
    )


def marked(row: dict) -> str:
    """Return the name of a row, with a dagger if its preset has changed since."""
    return row["name"] + ("" if is_current(row) else " †")


def is_current(row: dict) -> bool:
    """Return whether the row was measured with the preset as it is now."""
    given = {"num_seeds": row["num_seeds"], "total_timesteps": row["steps"]}
    words = shlex.split(row.get("command", ""))
    given |= parse_overrides(
        tuple(b for a, b in itertools.pairwise(words) if a == "--override")
    )
    now = config_to_dict(configure(row["env"], **given))
    measured = BEFORE_THE_FIELD | row["config"]
    # Beside these a row may have fields that its run did not read.
    return all(measured.get(name) == now[name] for name in now)


def of_presets(rows: list[dict]) -> list[dict]:
    """Return the rows of unchanged presets, with the actions of the first case."""
    return [
        row
        for row in rows
        if row["actions"] == cases_of(row["env"])[0].actions
        and row["name"] == name_of(configure(row["env"]), row["actions"])
    ]


def peer_ratios(rows: list[dict]) -> str:
    return table(
        ("measure", "beside", "ours / theirs"),
        (
            (row["measure"], row["peer"], f"{row['ratio']:.2f}")
            for row in rows
            if row["measure"] in FRONT_PEERS
        ),
    )


def locomotion(rows: list[dict]) -> str:
    def line(env: str) -> tuple[str, ...]:
        runs = [row for row in rows if row["env"] == env]
        ends = [run["steps"][-1] for run in runs]

        def last(run: dict) -> str:
            end = run["steps"][-1]
            early = "" if end == max(ends) else f" (at {end:,})"
            return score(run["returns"][-1]) + early

        def mean_return(runs: list[dict], counts: Callable[[int], bool]) -> str:
            """Return the mean over runs and evaluations after steps that count.

            With its 95 % interval over the runs if there are at least three.
            """
            by_run = [
                [
                    mean
                    for step, mean in zip(run["steps"], run["returns"], strict=True)
                    if counts(step)
                ]
                for run in runs
            ]
            if not by_run or any(None in means for means in by_run):
                return "–"  # None: a return that was not finite
            (mean,), (half_width,) = mean_interval(np.mean(by_run, axis=1)[:, None])
            interval = f" ± {score(half_width)}" if len(runs) > 2 else ""
            return score(mean) + interval

        def mean_seconds(runs: list[dict]) -> str:
            seconds = [run["wall_seconds"] for run in runs]
            return f"{sum(seconds) / len(seconds):,.0f}" if seconds else "–"

        of = {
            name: [run for run in runs if run["algorithm"] == name]
            for name in ("trpo", "ppo")
        }
        each = (", ".join(map(last, of[name])) or "–" for name in of)
        # Up to the steps of the shortest run.
        equal = " : ".join(
            mean_return(of[name], lambda step: step == min(ends)) for name in of
        )
        way = " : ".join(
            mean_return(of[name], lambda step: 0 < step <= min(ends)) for name in of
        )
        seconds = " : ".join(mean_seconds(of[name]) for name in of)
        return env, f"{max(ends):,}", *each, equal, way, seconds

    return table(
        (
            "environment",
            "steps",
            "TRPO, each seed",
            "PPO, each seed",
            "mean after equal steps, TRPO : PPO",
            "mean of the evaluations on the way, TRPO : PPO",
            "seconds of a run",
        ),
        map(line, dict.fromkeys(row["env"] for row in rows)),
    )


def overhead(rows: list[dict]) -> str:
    header = (
        "environments × steps",
        "updates",
        "`train`, s",
        "`run`, s",
        "speed, `run` / `train`",
        "speed, `run` with / without evaluations",
        "speed, a step with / without its certificate",
    )
    return table(
        header,
        [
            (
                f"{row['num_envs']:,} × {row['rollout_length']}",
                f"{row['updates']:,}",
                spread(row["train_seconds"]),
                spread(row["run_seconds"]),
                spread(row["speed_ratio"]),
                spread(row["evaluating_ratio"]) if "evaluating_ratio" in row else "–",
                spread(row["certificate_ratio"]) if "certificate_ratio" in row else "–",
            )
            for row in rows
        ],
    )


def evidence(rows: list[dict]) -> str:
    def last_tenth(row: dict) -> str:
        return "{mean:.1f} ± {interval:.1f}".format(**row["last_tenth"])

    return table(
        (
            "run",
            "steps",
            "KL ≥ 0.8 δ",
            "evaluations",
            "products",
            "residual",
            "return of the last tenth",
            "seconds",
        ),
        (
            (
                row["name"],
                f"{row['steps']:,}",
                f"{row['near_boundary']:.0%}",
                f"{row['evaluations']:.2f}",
                f"{row['products']:.1f}",
                f"{row['relative_residual']:.2g}",
                last_tenth(row),
                significant(row["seconds"]),
            )
            for row in rows
        ),
    )


def compiled_programs(rows: list[dict]) -> list[tuple[str, int, int]]:
    """Return name and size of each program whose size is fixed, names together."""
    fixed = [row for row in rows if not row["per_device"]]
    order = list(dict.fromkeys(row["program"] for row in fixed))
    sizes = {(r["program"], r["num_envs"], r["rollout_length"]) for r in fixed}
    return sorted(sizes, key=lambda size: (order.index(size[0]), *size[1:]))


def described(program: tuple[str, int, int], num_agents: int = 1) -> str:
    name, num_envs, length = program
    agents = f"{num_agents:,} agents of " if num_agents > 1 else ""
    return f"{name}, {agents}{num_envs:,} × {length}"


def by_target(
    rows: list[dict], fact: Callable[[dict], str], kinds: tuple = ("h100", "v5e")
) -> str:
    """Return a table of one fact: programs by targets of some kinds."""
    rows = [row for row in rows if TARGETS[row["target"]].kind in kinds]
    names = [
        name
        for name, target in TARGETS.items()
        if target.kind in kinds and name != "v5e-64"
    ]

    def line(program: tuple[str, int, int]) -> list[str]:
        found = {name: row_of(rows, program, name) for name in names}
        agents = max(row["num_agents"] for row in found.values() if row)
        cells = (fact(row) if row else "–" for row in found.values())
        return [described(program, agents), *cells]

    return table(("program", *names), map(line, compiled_programs(rows)))


def compiled(rows: list[dict]) -> str:
    def modelled(row: dict) -> str:
        communication = 1e3 * row["modelled_seconds"]["communication"]
        within = f" ({significant(communication)})" if communication else ""
        return significant(1e3 * row["modelled_step_seconds"]) + within

    def mebibytes(row: dict) -> str:
        return significant(row["temporary_bytes"] / KIBI**2)

    sections = {
        "Kernels of an update": by_target(rows, lambda row: f"{row['kernels']:,}"),
        "Kernels of an update, by loop": compiled_loops(rows),
        "Temporaries of each device, MiB": by_target(rows, mebibytes),
        "Exchanges between devices": compiled_exchanges(rows),
        "Modelled milliseconds of an update (in brackets: communication)": by_target(
            rows, modelled
        ),
        "The same by XLA's own model of a v5e, without communication": by_target(
            rows,
            lambda row: significant(1e3 * row["modelled_seconds_by_xla"]),
            kinds=("v5e",),
        ),
        "Modelled scaling, with the same work for each device": compiled_scaling(rows),
        "Processor seconds to compile": by_target(
            rows, lambda row: f"{row['compile_processor_seconds']:.0f}"
        ),
    }
    return "\n\n".join(f"**{title}**\n\n{body}" for title, body in sections.items())


def compiled_loops(rows: list[dict]) -> str:
    """Return how the kernels of the programs of one device are made up."""
    signs = {"exactly": "", "at most": "≤ ", "as stated": "≈ ", "assumed": "≥ "}

    def part(loop: dict) -> str:
        times = (
            f"{signs[counted]}{count:,}"
            for count, counted in zip(loop["times"], loop["counted"], strict=True)
        )
        name = f" ({loop['loop'].split(' > ')[-1]})" if loop["loop"] else ""
        return " × ".join((*times, str(loop["kernels"]))) + name

    return table(
        ("program", "target", "kernels: iterations × kernels of one"),
        (
            (described(program, row["num_agents"]), target, parts)
            for program in compiled_programs(rows)
            for target in ("h100-1", "v5e-1")
            if (row := row_of(rows, program, target))
            for parts in [" + ".join(map(part, row["loops"]))]
        ),
    )


def compiled_exchanges(rows: list[dict]) -> str:
    def each(row: dict) -> str:
        sizes: dict[tuple[str, int], int] = {}
        for exchange in row["collectives"]:
            key = exchange["kind"], exchange["nbytes"]
            sizes[key] = sizes.get(key, 0) + exchange["times"]
        return ", ".join(
            f"{times} {'' if kind == 'all-reduce' else kind + ' '}of {size:,}"
            for (kind, size), times in sorted(sizes.items(), key=lambda x: -x[0][1])
        )

    def line(program: tuple[str, int, int], target: str, row: dict) -> tuple:
        one = TARGETS[target].kind + "-1"
        alone = row_of(rows, program, one) if target == "h100-8" else None
        return (
            described(program, row["num_agents"]),
            target,
            exchanges(row),
            each(row) or "none",
            f"{row['parameter_bytes']:,}",
            "; ".join(faults(row, alone)) or "nothing",
        )

    return table(
        (
            "program",
            "target",
            "exchanges",
            "bytes of each (all-reduce, if not named)",
            "bytes of the parameters",
            "what is wrong",
        ),
        (
            line(program, target, row)
            for program in compiled_programs(rows)
            for target in ("h100-8", "v5e-256")
            if (row := row_of(rows, program, target))
        ),
    )


def compiled_scaling(rows: list[dict]) -> str:
    def line(row: dict) -> tuple:
        spent = row["modelled_seconds"]
        size = size_at_share(rows, row["target"], 0.1)
        sent = sum(c["nbytes"] * c["times"] for c in row["collectives"])
        return (
            row["target"],
            f"{row['num_envs'] // row['devices']:,} × {row['rollout_length']}",
            f"{row['kernels']:,}",
            f"{row['modelled_operations']:.3g}",
            f"{row['modelled_bytes']:.3g}",
            f"{exchanges(row)} ({sent:,} bytes)",
            *(significant(1e3 * value) for value in spent.values()),
            f"{spent['communication'] / row['modelled_step_seconds']:.0%}",
            "–" if size is None else f"{size:,.0f}",
        )

    return table(
        (
            "target",
            "environments × steps of a device",
            "kernels",
            "modelled operations",
            "modelled bytes",
            "exchanges",
            "launches, modelled ms",
            "memory",
            "operations",
            "communication",
            "its share",
            "environments of a device at which it is 10 %",
        ),
        map(line, grown(rows)),
    )


def kills(rows: list[dict]) -> str:
    header = ("kills", "while saving", "before progress", "what differed in the end")
    return table(
        header,
        [
            (
                row["kills"],
                row["kills_while_saving"],
                row["kills_before_progress"],
                ", ".join(row["differences"]) or "nothing",
            )
            for row in rows
        ],
    )


def sweep(rows: list[dict]) -> str:
    def line(row: dict, name: str, side: str) -> tuple[str, ...]:
        figures = row[side]
        seconds = figures.get("estimated_seconds", figures["seconds"])
        steps = row["ours"]["steps_per_second"] * row["ours"]["seconds"]
        ratio = seconds / row["ours"]["seconds"]
        return (
            f"{row['measure']}: {name}",
            f"{seconds:,.0f}",
            f"{steps / seconds:,.0f}",
            significant(figures["peak_gib"]),
            significant(ratio),
        )

    sides = {
        "`sweep`": "ours",
        "single runs, estimated": "single",
        "rejax PPO, vmapped": "theirs",
    }
    return table(
        ("runs", "seconds", "steps per second", "peak memory, GiB", "seconds / ours"),
        [line(row, name, side) for row in rows for name, side in sides.items()],
    )


def score(value: float | None) -> str:
    """Format a return with two, one or no decimals by its size; a dash for None."""
    if value is None:
        return "–"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
    return f"{value:,.{digits}f}"


def worst(row: dict) -> str:
    return score(None if None in row["by_seed"] else min(row["by_seed"]))


def latest(rows: list[dict]) -> list[dict]:
    """Return the last row of each name, in the order of the references."""
    last = {row["name"]: row for row in ({"name": row["env"]} | row for row in rows)}
    order = list(REFERENCES)

    def place(row: dict) -> int:
        return order.index(row["env"]) if row["env"] in order else len(order)

    return sorted(last.values(), key=place)


def constraints(rows: list[dict]) -> str:
    tables = (
        constraints_tables.comparison(rows),
        constraints_tables.beside_published(rows),
    )
    return "\n\n".join(table(header, lines) for header, lines in tables if lines)


TABLES: dict[str, Callable[[list[dict]], str]] = {
    "kills": kills,
    "sweep": sweep,
    "evidence": evidence,
    "overhead": overhead,
    "peers": peers,
    "host": host,
    "throughput": throughput,
    "curvature": curvature,
    "relatives": lambda rows: table(*comparison(rows)),
    "relatives-code": lambda rows: table(*code(rows)),
    "relatives-settings": lambda rows: table(*settings(rows)),
    "relatives-sensitivity": lambda rows: table(*sensitivity(rows)),
    "implementation": lambda rows: table(*implementation(rows)),
    "constraints": constraints,
    "speeds": lambda rows: table(*constraints_tables.speeds(rows)),
    "bounds": bounds,
    "solves": solves,
    "scaling": scaling,
    "learning": learning,
    "locomotion": locomotion,
    "playground": locomotion,
    "compiled": compiled,
}

# Tables of the rows of benchmarks.locomotion.
SUITE_OF = {"locomotion": "brax/", "playground": "playground/"}

# Tables of the front page.
FRONT_TABLES: dict[str, Callable[[list[dict]], str]] = {
    "learning": learning_beside_published,
    "peers": peer_ratios,
}

# By results, then by file: the alternative text, and the function that draws it.
PICTURES: dict[str, dict[str, tuple[str, Callable]]] = {
    "scaling": {"scaling": ("time against size", draw_scaling)},
    "bounds": {"bounds": ("penalty of both bounds against δ", draw_bounds)},
    "throughput": {"throughput": ("where a step's time goes", draw_shares)},
    "learning": {
        "learning-curves": ("return against steps", draw_curves),
        "learning-profile": (
            "share of runs above each score",
            lambda rows, path: draw_profile(of_presets(rows), path),
        ),
    },
    "relatives": {"relatives": ("return against steps", draw_comparison)},
    "relatives-sensitivity": {
        "relatives-sensitivity": ("return against δ and ε", draw_sensitivity)
    },
    "constraints": {
        "constraints": ("return and cost against steps", constraints_tables.draw)
    },
    "locomotion": {"locomotion": ("return against steps", draw_locomotion)},
    "playground": {"playground": ("return against steps", draw_locomotion)},
    "compiled": {"compiled": ("modelled time of an update", draw_compiled)},
}


def insert(text: str, name: str, body: str) -> str:
    """Replace the text between the marks of a name."""
    pattern = re.compile(f"<!-- {name} -->\n(.*?)<!-- end -->", re.DOTALL)
    return pattern.sub(lambda _: f"<!-- {name} -->\n{body}\n<!-- end -->", text)


def rows_of(name: str, results: pathlib.Path) -> list[dict]:
    if name == "compiled":  # a file for each kind of device
        files = sorted(results.glob("compiled-*.jsonl"))
        return [row for file in files for row in read_rows(file)]
    if name in SUITE_OF:  # one file for both suites
        rows = read_rows(results / "locomotion.jsonl")
        return [row for row in rows if row["env"].startswith(SUITE_OF[name])]
    if name in ("relatives-code", "relatives-settings"):
        name = "relatives"
    rows = read_rows(results / f"{name}.jsonl")
    return latest(rows) if name in ("learning", "evidence") else rows


def write_front_page(results: pathlib.Path, page: pathlib.Path) -> None:
    text = page.read_text()
    for name, write in FRONT_TABLES.items():
        text = insert(text, name, write(rows_of(name, results)))
    page.write_text(text)


def main(
    results: pathlib.Path = RESULTS,
    readme: pathlib.Path = README,
    front_page: pathlib.Path = FRONT_PAGE,
) -> None:
    text = readme.read_text()
    for name, write in TABLES.items():
        rows = rows_of(name, results)
        parts = [write(rows), stamp(rows)] if rows else [stamp(rows)]
        for picture, (words, draw) in PICTURES.get(name, {}).items():
            path = results / f"{picture}.png"
            if rows and draw(rows, path):
                parts.append(f"![{words}]({results.name}/{path.name})")
        text = insert(text, name, "\n\n".join(parts))
    readme.write_text(text)
    write_front_page(results, front_page)


if __name__ == "__main__":
    main()
