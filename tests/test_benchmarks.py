"""The benchmarks' own arithmetic, and one small case of each that runs here.

In processes of their own, from the checkout: they are no part of the package.
"""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

PROGRAMS = {
    "arithmetic": """
import math
from benchmarks.harness import Timing, fitted_exponent, take_turns, Program
timing = Timing.of([5.0, 1.0, 2.0, 4.0, 3.0])
assert (timing.low, timing.median, timing.high, timing.repeats) == (2, 3, 4, 5)
assert math.isclose(fitted_exponent([1, 10, 100], [2.0, 200.0, 20000.0]), 2)
calls = []
programs = {x: Program(lambda x=x: calls.append(x), 0, 0, None) for x in "ab"}
timings = take_turns(programs, seconds=0, repeats=3)
assert calls == list("ab" * 4), calls  # a warm-up, then turns
assert {t.repeats for t in timings.values()} == {3}
""",
    "rows are written as they come": """
import pathlib, tempfile
from benchmarks.harness import read_rows, write_rows
def rows():
    yield {"x": 1}
    assert [row["x"] for row in read_rows(path)] == [1]
    yield {"x": 2}
path = pathlib.Path(tempfile.mkdtemp()) / "sub" / "rows.jsonl"
assert read_rows(path) == []
write_rows(path, rows())
assert [row["x"] for row in read_rows(path)] == [1, 2]
assert {"device", "versions", "commit", "date"} <= set(read_rows(path)[0])
write_rows(path, [{"x": 3}])
assert [row["x"] for row in read_rows(path)] == [3]
""",
    "without an accelerator": """
from benchmarks import gpu
assert gpu.main() == 0
""",
    "curvature": """
from benchmarks import curvature, report
ceiling = {"flops_per_second": 1e11, "bytes_per_second": 1e10}
row = curvature.measure("gaussian", 32, 8, ceiling, 0.0)
assert row["seconds"]["update"].repeats >= 3
assert set(row["product_over_gradient"]) == {"gauss_newton", "hessian"}
assert list(curvature.cases(0)) == []
sizes = {(kind, rows) for kind, rows, _ in curvature.cases(float("inf"))}
assert sizes == {(k, 4**n) for k in ("categorical", "gaussian") for n in range(5, 11)}
""",
    "locomotion": """
from benchmarks import locomotion, report
for case in locomotion.CASES.values():
    assert case.steps == case.evaluations * case.interval
    assert case.interval % (64 * 64) == 0  # our rollouts divide it
assert locomotion.CASES["reacher"].interval == 256 * 50 * 32 * 4
made = []
locomotion.measure = lambda env, case, *run: made.append((env, case.steps)) or {}
locomotion.append_row = lambda output, row: None
locomotion.main(("ant",), algorithms=("trpo",), evaluations=20)
assert made == [("ant", 20 * locomotion.CASES["ant"].interval)] * 2
rows = []
locomotion.append_row = lambda output, row: rows.append(row)
locomotion.main(("hopper",), override=("max_kl=0.1",), algorithms=("trpo",))
assert made[2:] == [("hopper", 30 * locomotion.CASES["hopper"].interval)] * 2
assert rows[1]["command"] == (
    "python -m benchmarks.locomotion hopper --algorithms trpo --seeds 1 "
    "--override max_kl=0.1"
)
runs = locomotion.runs(("ant", "hopper"), (0, 1), ("trpo", "ppo"))
assert runs[2] == ("ant", 0, "ppo") and len(runs) == 8
runs = locomotion.runs(("ant",), None, ("trpo", "ppo"))
assert runs == [("ant", 0, "trpo"), ("ant", 1, "trpo"), ("ant", 0, "ppo")]
for wrong in (lambda: locomotion.runs(("cat",), (0,), ("trpo",)),
              lambda: locomotion.main(("ant",), override=("max_kl=0.1",))):
    try:
        wrong()
    except ValueError as error:
        assert "write" in str(error)
        continue
    raise AssertionError(wrong)
def row(algorithm, seed, returns):
    return {"env": "ant", "algorithm": algorithm, "seed": seed,
            "steps": [0, 10, 20], "returns": returns}
rows = [row("trpo", 0, [0.0, 2.0, 4.0]), row("trpo", 1, [0.0, 4.0, 6.0])]
assert report.locomotion(rows).endswith("| ant | 20 | 4.00, 6.00 | – | 4.00 : – |")
rows.append(row("ppo", 0, [0.0, None, 1.0]))
assert report.locomotion(rows).endswith("| 4.00, 6.00 | 1.00 | 4.00 : – |")
rows[2] |= {"steps": [0, 10], "returns": [0.0, 1.0]}  # stopped early
line = report.locomotion(rows).splitlines()[-1]
assert line == "| ant | 20 | 4.00, 6.00 | 1.00 (at 10) | 3.00 : 1.00 |"
""",
    "rows are of the presets as they are": """
from benchmarks import report
from benchmarks.harness import RESULTS
from benchmarks.runs import configure, describe
for row in report.of_presets(report.rows_of("learning", RESULTS)):
    given = {"num_seeds": row["num_seeds"], "total_timesteps": row["steps"]}
    if row["config"]["fisher_stride"] is None:  # which stood for what is written now
        given["fisher_stride"] = None
    assert row["config"] == describe(configure(row["env"], **given)), row["name"]
""",
    "statistics": """
import math
import numpy as np
from benchmarks import statistics
values = np.array([3.0, 1.0, 100.0, 2.0, 4.0, -50.0, 2.0, 6.0])
middle = sorted(values)[2:6]
assert statistics.interquartile_mean([values]) == np.mean(middle)
two_tasks = [values[:4], values[4:]]  # pooled, as one task of all their runs
assert statistics.interquartile_mean(two_tasks) == np.mean(middle)
both = statistics.interquartile_mean([np.stack([values, values + 1])])
assert both.tolist() == [np.mean(middle), np.mean(middle) + 1]
# A quarter of three runs is less than one: none is left out.
assert statistics.interquartile_mean([[0.0, 3.0, 9.0]]) == 4
# Of two runs t is Cauchy's, with the quantile tan(0.475 π); their standard error is 1.
two = statistics.student_half_width([1.0, 3.0])
assert math.isclose(two, math.tan(0.475 * math.pi))
assert math.isnan(statistics.student_half_width([1.0]))
tasks, thresholds = [[0.0, 1.0], [0.5, 0.5, 2.0]], [-1.0, 0.5, 1.0, 3.0]
profile = statistics.performance_profile(tasks, thresholds)
np.testing.assert_allclose(profile, [1, (1 / 2 + 1 / 3) / 2, (0 + 1 / 3) / 2, 0])
def mean(tasks):
    return np.mean([np.mean(runs, axis=-1) for runs in tasks], axis=0)
# Normal theory: the interval of a mean of 400 is 1.96 standard errors wide, either way.
runs = np.random.default_rng(0).normal(size=400)
low, high = statistics.stratified_bootstrap(mean, [runs])
error = runs.std() / math.sqrt(400)
np.testing.assert_allclose((low - runs.mean()) / error, -1.96, atol=0.1)
np.testing.assert_allclose((high - runs.mean()) / error, 1.96, atol=0.1)
# Tasks are resampled apart: two that differ by much do not widen the interval.
apart = [[0.0] * 5, [100.0] * 5]
assert statistics.stratified_bootstrap(mean, apart, repeats=50) == (50, 50)
assert statistics.normalized([1.0, 3.0], random=1, reference=5).tolist() == [0, 0.5]
assert statistics.normalized([1.0], random=1, reference=1) is None
assert statistics.normalized([1.0], random=None, reference=1) is None
row = statistics.summarize([1.0, float("nan")])
assert row["by_seed"] == [1.0, None] and row["mean"] is None and row["iqm"] is None
""",
    "curves": """
import pathlib, tempfile
import numpy as np
from benchmarks import curves
curve = curves.Curve.empty(num_seeds=3, num_updates=120, batch_size=10)
assert len(curve.steps) == 50 and curve.steps[-1] == 1200
last_updates = {curve.bin_of(update): update for update in range(120)}
assert curve.steps.tolist() == [10 * (last_updates[bin] + 1) for bin in range(50)]
curve.record(slice(0, 2), 0, [5.0, np.nan], [2, 0])
curve.record(slice(0, 2), 1, [8.0, np.nan], [1, 0])
curve.record(slice(2, 3), 119, [1.0], [4])
assert curve.bin_of(1) == 0 and curve.means[0, 0] == 6 and np.isnan(curve.means[1, 0])
assert curve.last_mean(slice(0, 2), 50) == 6
assert np.isnan(curve.last_mean(slice(2, 3), 9))
path = curves.path_of(pathlib.Path(tempfile.mkdtemp()) / "rows.jsonl", "suite/env")
assert path.name == "suite-env.json" and path.parent.name == "curves"
long = [curves.path_of(path, f"env, {x}={'y' * 300}").name for x in "ab"]
assert long[0] != long[1] and max(map(len, long)) < 200
curves.write(curve, path, env="suite/env")
assert "NaN" not in path.read_text()
steps, means = curves.read(path)
np.testing.assert_array_equal(steps, curve.steps)
np.testing.assert_array_equal(means, curve.means)
short = curves.Curve.empty(num_seeds=1, num_updates=3, batch_size=10)
assert short.steps.tolist() == [10, 20, 30]
""",
    "runs by name": """
from benchmarks.runs import command, configure, describe, parse_overrides
texts = "total_timesteps=2_000", "max_kl_schedule=cosine", "hidden_sizes=(8, 8)"
overrides = parse_overrides((*texts, "max_kl=1e-3"))
assert overrides["max_kl_schedule"] == "cosine" and overrides["hidden_sizes"] == (8, 8)
config = configure("CartPole-v1", **overrides)
assert config.num_updates == 2 and config.max_kl == 1e-3
assert config.normalize_returns and config.gae_lambda == 0.98
untuned = configure("FrozenLake-misc", max_kl=0.5, num_envs=4)
assert untuned.env == "FrozenLake-misc" and untuned.max_kl == 0.5
for wrong in ({"no_such": 1}, {"total_timesteps": 2e4}):
    try:
        configure("CartPole-v1", **wrong)
    except TypeError:
        continue
    raise AssertionError(wrong)
try:
    parse_overrides(("max_kl",))
except ValueError as error:
    assert "max_kl=VALUE" in str(error)
described = describe(configure("CartPole-v1", max_kl_schedule=configure))
assert described["max_kl_schedule"] == "configure"
options = dict(max_kl=(1.0, 2.0), damping=(), n=None, override=("a=1", "b=()"))
line = command("m", "E", **options)
assert line == "python -m m E --max-kl 1.0 2.0 --override a=1 --override 'b=()'"
""",
    "learning and sweep": """
import json, pathlib, tempfile
import jax
import numpy as np
import trpo_jax
from benchmarks import curves, learning, report, sweep
from benchmarks.harness import append_row, read_rows
from benchmarks.runs import configure
from benchmarks.statistics import summarize
folder = pathlib.Path(tempfile.mkdtemp())
sizes = dict(num_envs=4, rollout_length=32, total_timesteps=384, hidden_sizes=(8,))
plain = dict(fisher_stride=None, critic_minibatches=1, critic_epochs=1)
config = configure("CartPole-v1", num_seeds=2, **sizes, **plain)
output = folder / "learning.jsonl"
learning.PROGRESS_SECONDS = 0.0
row = learning.measure(config, num_episodes=4, seeds_at_once=1, output=output)
assert row["name"].startswith("CartPole-v1, num_envs=4, rollout_length=32, hidden")
assert row["name"].endswith("critic_epochs=1, critic_minibatches=1")
path = curves.path_of(output, row["name"])
of_preset = learning.name_of(configure("CartPole-v1", total_timesteps=1000), "sample")
assert of_preset == "CartPole-v1, actions drawn"
with_memory = configure("MemoryChain-bsuite", max_kl=0.5)
assert learning.name_of(with_memory, "mode") == "MemoryChain-bsuite, GRU, max_kl=0.5"
with_memory = configure("MemoryChain-bsuite", memory_size=8)
assert learning.name_of(with_memory, "mode") == "MemoryChain-bsuite, GRU, memory_size=8"
ablation = configure("MemoryChain-bsuite", memory_size=0)
assert learning.name_of(ablation, "sample") == "MemoryChain-bsuite, actions drawn"
rows = learning.planned(["MetaMaze-misc", "CartPole-v1"], (), {"num_seeds": 3})
assert [(c.memory_size, c.num_seeds, case.actions) for c, case in rows] == [
    (64, 3, "sample"), (0, 3, "sample"), (0, 3, "mode")
]
changed = ("num_envs=64", "total_timesteps=12_800")
((config_, case),) = learning.planned(["MetaMaze-misc"], changed, {"actions": "mode"})
assert config_.num_envs == 64 and config_.memory_size == 64 and case.num_seeds == 16
assert (case.override, case.actions) == (changed, "mode")
assert case.seeds_at_once == 1
for wrong, advice in (
    ((("CartPole-v1",), ("num_seeds=4",), {}), "argument of its own"),
    ((("CartPole-v1",), (), {"seeds_at_once": 0}), "write at least 1"),
    ((("CartPol-v1",), (), {}), "CartPole-v1"),
):
    try:
        learning.planned(*wrong)
    except ValueError as error:
        assert advice in str(error)
        continue
    raise AssertionError(wrong)
make = trpo_jax.environments.make_environment
def make_all_but_one(env):
    if env == "MNISTBandit-bsuite":
        raise ValueError("no data")
    return make(env)
trpo_jax.environments.make_environment = make_all_but_one
envs, missing = learning.available()
assert len(envs) == 25 and {"Breakout-MinAtar", "Swimmer-misc"} < set(envs)
assert [*map(str, missing.values())] == ["no data"] and "MNISTBandit-bsuite" in missing
trpo_jax.environments.make_environment = make
# One seed after the other is as `train` has them side by side.
result = trpo_jax.train(config)
key = jax.random.fold_in(jax.random.key(0), 1)
returns = trpo_jax.evaluate(config, result.state, key, 4).mean(axis=1)
np.testing.assert_allclose(row["by_seed"], returns, rtol=1e-4)
steps, means = curves.read(path)
assert steps.tolist() == [128, 256, 384]
np.testing.assert_allclose(means, result.metrics.episode_return, rtol=1e-3)
assert not list(path.parent.glob("*.partial.json"))
assert 9 < row["random_return"] < 60 and row["target"] == row["published"] == 500

single = configure("CartPole-v1", num_seeds=1, **sizes, **plain)
start = single.hyperparameters
points = sweep.grid(start, max_kl=(start.max_kl, 0.5), damping=())
assert points == [start, start._replace(max_kl=0.5)]
# Three at once of four, so that the second time is filled up.
swept = list(sweep.sweep(single, points, num_seeds=2, num_episodes=4, runs_at_once=3))
assert [point for point, _, _ in swept] == points
np.testing.assert_allclose(swept[0][1], returns, rtol=1e-4)
assert not np.allclose(swept[1][2], swept[0][2])
by_seed = {1: [np.nan, 1], 2: [2, 3], 3: [4, 5]}
rows = [
    {"hyperparameters": {"max_kl": kl}, "training_return": 1.0} | summarize(returns)
    for kl, returns in by_seed.items()
]
table = sweep.ranking(rows, ["max_kl"])
assert [line.split(" ")[1] for line in table.splitlines()[2:]] == ["3", "2", "1"]

of_preset = row | {"name": "CartPole-v1"}
for line in (row | {"mean": 0.0}, of_preset, row):
    append_row(folder / "learning.jsonl", line)
assert "NaN" not in (folder / "learning.jsonl").read_text()
newest = report.latest(read_rows(folder / "learning.jsonl"))
assert [r["mean"] for r in newest] == [row["mean"]] * 2
assert [r["name"] for r in report.of_presets(newest)] == ["CartPole-v1"]
def named(env, about="", actions="mode"):
    return {"env": env, "name": env + about, "actions": actions}
chain = named("MemoryChain-bsuite", ", GRU, actions drawn", "sample")
of_presets = [named("CartPole-v1"), chain]
others = [
    named("CartPole-v1", ", GRU, memory_size=8"),
    named("CartPole-v1", ", actions drawn", "sample"),
    named("MemoryChain-bsuite", ", GRU"),
    named("MemoryChain-bsuite", ", actions drawn", "sample"),
]
assert report.of_presets(others + of_presets) == of_presets
page, front_page = folder / "README.md", folder / "FRONT.md"
for path in (page, front_page):
    path.write_text("<!-- learning -->\\n<!-- end -->\\n")
report.main(folder, page, front_page)
assert "| CartPole-v1 | 384 |" in page.read_text()
assert "| CartPole-v1 | 384 | 2 |" in front_page.read_text()
assert "Not measured yet." not in page.read_text()
for picture in ("learning-curves", "learning-profile"):
    assert (folder / f"{picture}.png").stat().st_size > 1000
""",
    "a random policy": """
import jax, jax.numpy as jnp
import trpo_jax
from benchmarks.random_policy import random_return, uniform
from benchmarks.runs import configure
from trpo_jax.environments import MaskedObservation
# CartPole stands for 22 steps or so at random; its standard error here is 0.7.
assert 18 < random_return(configure("CartPole-v1"), 256) < 27
key, seen = jax.random.key(0), jnp.zeros((1000, 5))
Box = trpo_jax.environments.Box
actions = uniform(Box(2, (-1.0, 3.0), (0.0, 4.0)), seen).sample(key)
assert actions.shape == (1000, 2)
assert jnp.all((actions > jnp.array([-1, 3])) & (actions < jnp.array([0, 4])))
assert jnp.allclose(actions.mean(0), jnp.array([-0.5, 3.5]), atol=0.05)
assert abs(uniform(trpo_jax.environments.Box(1), seen).sample(key).std() - 1) < 0.1
mask = jnp.tile(jnp.array([True, False, True, False, True]), (1000, 1))
Discrete = trpo_jax.environments.Discrete
masked = MaskedObservation(seen, mask)
counts = jnp.bincount(uniform(Discrete(5), masked).sample(key), length=5)
assert counts[1] == counts[3] == 0 and counts.min(where=mask[0], initial=1000) > 280
actions = uniform(trpo_jax.environments.MultiDiscrete((3, 2)), masked).sample(key)
assert actions.shape == (1000, 2) and set(actions[:, 0].tolist()) == {0, 2}
assert set(actions[:, 1].tolist()) == {1}
""",
    "scaling": """
from benchmarks import scaling
row = scaling.measure("update", (1, 2), scaling.seeds_update_program, 0.0)
assert len(row["seconds"]) == 2 and isinstance(row["exponent"], float)
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_benchmarks(name):
    subprocess.run([sys.executable, "-c", PROGRAMS[name]], check=True, cwd=ROOT)


def test_every_table_of_both_pages_is_written_from_results():
    program = """
import re
from benchmarks import report
for page, tables in (
    (report.README, report.TABLES), (report.FRONT_PAGE, report.FRONT_TABLES)
):
    for name, write in tables.items():
        text = page.read_text()
        stands = re.search(f"<!-- {name} -->\\n(.*?)<!-- end -->", text, re.DOTALL)[1]
        rows = report.rows_of(name, report.RESULTS)
        assert stands.startswith(write(rows) if rows else report.stamp(rows)), name
assert report.table("ab", [(1, 2)]) == "| a | b |\\n| --- | --- |\\n| 1 | 2 |"
assert report.spread({"median": 1.5, "low": 1, "high": 2000}) == "1.5 (1–2,000)"
page = "<!-- a -->\\n<!-- end -->\\ntext\\n<!-- b -->\\nold\\n<!-- end -->"
filled = report.insert(report.insert(page, "a", "x"), "b", "y")
expected = "<!-- a -->\\nx\\n<!-- end -->\\ntext\\n<!-- b -->\\ny\\n<!-- end -->"
assert filled == expected, filled
assert report.insert(filled, "a", "x") == filled
assert report.stamp([]) == "Not measured yet."
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
