"""Test the benchmarks' own arithmetic, and run one small case of each."""

import dataclasses
import math
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.minatar.seaquest import MinSeaquest

import trpo_jax
from benchmarks import (
    bounds,
    constraints,
    curvature,
    curves,
    gpu,
    harness,
    learning,
    locomotion,
    random_policy,
    relatives,
    relatives_tables,
    report,
    scaling,
    solves,
    statistics,
    sweeps,
)
from benchmarks.constraints_tables import beside_published
from benchmarks.constraints_tables import draw as draw_constraints
from benchmarks.environments import seaquest
from benchmarks.pictures import draw_bounds
from benchmarks.runs import command, configure, parse_overrides
from trpo_jax.environments import Box, Discrete, MaskedObservation, MultiDiscrete
from trpo_jax.runs.config_file import config_to_dict
from trpo_jax.training import compilation

ROOT = pathlib.Path(__file__).parents[1]


def test_a_timing_is_the_median_with_its_quartiles():
    timing = harness.Timing.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (timing.low, timing.median, timing.high, timing.repeats) == (2, 3, 4, 5)


def test_an_exponent_is_fitted():
    exponent = harness.fitted_exponent([1, 10, 100], [2.0, 200.0, 20000.0])
    assert math.isclose(exponent, 2)


def test_programs_take_turns_after_a_warm_up():
    calls = []
    programs = {
        name: harness.Program(lambda name=name: calls.append(name), 0, 0, None)
        for name in "ab"
    }
    timings = harness.take_turns(programs, seconds=0, repeats=3)
    assert calls == list("ab" * 4)
    assert {timing.repeats for timing in timings.values()} == {3}


def test_rows_are_written_as_they_come(tmp_path):
    path = tmp_path / "sub" / "rows.jsonl"

    def rows():
        yield {"x": 1}
        assert [row["x"] for row in harness.read_rows(path)] == [1]
        yield {"x": 2}

    assert harness.read_rows(path) == []
    harness.write_rows(path, rows())
    assert [row["x"] for row in harness.read_rows(path)] == [1, 2]
    assert {"device", "versions", "commit", "date"} <= set(harness.read_rows(path)[0])
    harness.write_rows(path, [{"x": 3}])
    assert [row["x"] for row in harness.read_rows(path)] == [3]


def test_without_an_accelerator_nothing_is_measured(capsys):
    assert gpu.main() == 0
    assert "no accelerator" in capsys.readouterr().out


@pytest.fixture
def quick_to_compile(monkeypatch):
    options = compilation.compiler_options()
    monkeypatch.setattr(trpo_jax, "compiler_options", lambda: options)


@pytest.mark.usefixtures("quick_to_compile")
def test_curvature_is_measured():
    ceiling = {"flops_per_second": 1e11, "bytes_per_second": 1e10}
    row = curvature.measure("gaussian", 32, 8, ceiling, 0.0)
    assert row["seconds"]["update"].repeats >= 3
    assert set(row["product_over_gradient"]) == {"gauss_newton", "hessian"}


def test_curvature_is_measured_at_every_size_that_fits():
    assert list(curvature.cases(0)) == []
    sizes = {(kind, rows) for kind, rows, _ in curvature.cases(float("inf"))}
    kinds = ("categorical", "gaussian")
    assert sizes == {(kind, 4**n) for kind in kinds for n in range(5, 11)}


def test_the_tightness_of_bounds_is_measured(tmp_path, monkeypatch, float64):
    monkeypatch.setattr(bounds, "RADII", (1e-4, 1e-2))
    row = bounds.measure(0.9, num_mdps=20, num_updates=2)
    assert (row["updates"], row["violations"]) == (80, 0)
    for tight, loose in row["penalty_over_improvement"].values():
        assert 0 < tight < loose
    assert draw_bounds([row], tmp_path / "bounds.png")
    assert "(0%)" in report.bounds([row]).splitlines()[2]


def test_no_stored_update_violates_a_bound():
    rows = report.rows_of("bounds", report.RESULTS)
    assert sum(row["updates"] for row in rows) > 10_000
    assert not any(row["violations"] for row in rows)


SMALL_GRID = {
    "num_seeds": 2,
    "num_envs": 4,
    "rollout_length": 8,
    "total_timesteps": 96,
    "hidden_sizes": (4,),
}


def test_constraints_are_measured_beside_exact_optima(tmp_path):
    row = constraints.compare("safe/toll_grid", "trpo", **SMALL_GRID)
    assert row["limit"] < row["cost_without_limit"]
    assert row["optimum"] < row["optimum_without_limit"]
    assert len(row["cost_curve"]) == 3
    # Policies that have hardly been trained are far from the goal, and dear.
    assert 0 < row["return"]["mean"] < row["optimum"]
    assert row["share_above"] == 1
    assert row["seeds_within"] == 0
    (line,) = report.TABLES["constraints"]([row]).splitlines()[2:]
    assert line.startswith("| safe/toll_grid | trpo | 32 | 96 | 2 |")
    # Rows of an environment are together, and say what they set.
    fields = row["fields"] | {"cost_correction": 0.0}
    paper = row | {"name": "paper", "update": "cpo", "fields": fields}
    other = row | {"name": "other", "env": "other"}
    lines = report.TABLES["constraints"]([row, other, paper]).splitlines()[2:]
    assert lines[1].startswith("| safe/toll_grid | cpo, cost_correction=0 |")
    assert lines[2].startswith("| other | trpo |")
    # Beside published figures, the return is a share of that of TRPO.
    plain = row | {"name": "plain", "env": "safe/hopper_velocity"}
    limited = plain | {"name": "limited", "update": "cpo"}
    header, lines = beside_published([plain, limited, paper])
    assert [line[4::3] for line in lines] == [("100%", "100%"), ("100%", "84%")]
    assert len(header) == len(lines[0])
    # A picture has the rows of the task's own sizes.
    of_task = row | {"name": "safe/toll_grid, trpo"}
    assert draw_constraints([row, of_task], tmp_path / "picture.png")


def test_costs_are_those_of_the_rollout_after_an_update(monkeypatch):
    """Policies of the robot are not evaluated exactly."""
    costs = np.array([[9.0, 1.0, np.nan, 6.0]])
    metrics = types.SimpleNamespace(
        episode_return=10 * costs, episode_cost=costs[..., None]
    )
    monkeypatch.setattr(constraints, "train_and_record", lambda *_: (metrics, ()))
    row = constraints.compare("safe/point_hazards", "trpo", total_timesteps=64_000)
    assert row["cost_curve"] == [1, None, 6]
    assert row["return"]["by_seed"] == [60]
    assert row["share_above"] == 0.5
    assert "optimum" not in row
    (line,) = report.TABLES["constraints"]([row]).splitlines()[2:]
    assert "| 60.0 ± – | – | 2 | 6.00 ± – |" in line


def test_tasks_share_all_but_the_update():
    plain = constraints.configure("safe/toll_grid", "trpo")
    limited = constraints.configure("safe/toll_grid", "pcpo")
    assert plain.cost_limits is None
    assert limited.cost_limits == (1.5,)
    restored = {"update": "trpo", "cost_limits": None}
    assert dataclasses.replace(limited, **restored) == plain


def test_options_of_the_solve_are_measured():
    assert len(solves.combinations(combine=False)) == 1 + 2 + 3 + 3
    everything = solves.combinations(combine=True)
    assert len({tuple(one.values()) for one in everything}) == 3 * 4 * 4
    configs = [
        solves.config_of("CartPole-v1", one, num_envs=4, rollout_length=64)
        for one in everything
    ]
    assert len(set(configs)) == len(configs)
    row = solves.measure(
        dataclasses.replace(configs[-1], hidden_sizes=(4,), total_timesteps=512),
        num_episodes=1,
    )
    assert 0 < row["products"] <= 10
    written = row | dict.fromkeys(("env", "name", *solves.OPTIONS), "x")
    assert "x" in report.solves([written | {"step_over_first": 1.0}])


@pytest.mark.usefixtures("quick_to_compile")
def test_scaling_is_measured():
    row = scaling.measure("update", (1, 2), scaling.seeds_update_program, 0.0)
    assert len(row["seconds"]) == 2
    assert isinstance(row["exponent"], float)


def test_rollouts_divide_the_distance_between_locomotion_evaluations():
    for case in locomotion.CASES.values():
        assert case.steps == case.evaluations * case.interval
        assert case.interval % (64 * 64) == 0
    assert locomotion.CASES["brax/reacher"].interval == 256 * 50 * 32 * 4


def test_locomotion_measures_the_runs_asked_for(monkeypatch):
    measured, rows = [], []

    def measure(env, case, *run):
        measured.append((env, case.steps))
        return {}

    monkeypatch.setattr(locomotion, "measure", measure)
    monkeypatch.setattr(locomotion, "append_row", lambda output, row: rows.append(row))
    locomotion.main(("brax/ant",), algorithms=("trpo",), evaluations=20)
    assert measured == [("brax/ant", 20 * locomotion.CASES["brax/ant"].interval)] * 2
    locomotion.main(("brax/hopper",), override=("max_kl=0.1",), algorithms=("trpo",))
    interval = locomotion.CASES["brax/hopper"].interval
    assert measured[2:] == [("brax/hopper", 30 * interval)] * 2
    assert rows[-1]["command"] == (
        "python -m benchmarks.locomotion brax/hopper --algorithms trpo --seeds 1 "
        "--override max_kl=0.1"
    )


def test_locomotion_lists_its_runs():
    runs = locomotion.runs(("brax/ant", "brax/hopper"), (0, 1), ("trpo", "ppo"))
    assert len(runs) == 8
    assert runs[2] == ("brax/ant", 0, "ppo")
    runs = locomotion.runs(("brax/ant",), None, ("trpo", "ppo"))
    assert [run[1:] for run in runs] == [(0, "trpo"), (1, "trpo"), (0, "ppo")]
    with pytest.raises(ValueError, match="write one of brax/inverted_pendulum"):
        locomotion.runs(("cat",), (0,), ("trpo",))
    with pytest.raises(ValueError, match="write --algorithms trpo"):
        locomotion.main(("brax/ant",), override=("max_kl=0.1",))


def locomotion_row(algorithm, seed, returns):
    return {
        "env": "ant",
        "algorithm": algorithm,
        "seed": seed,
        "steps": [0, 10, 20][: len(returns)],
        "returns": returns,
        "wall_seconds": 3.0,
    }


@pytest.mark.parametrize(
    ("ppo", "line"),
    [
        ([], "| – | 5.00 : – | 4.00 : – | 3 : – |"),
        # A return that was not finite has no mean.
        ([[0.0, None, 1.0]], "| 1.00 | 5.00 : 1.00 | 4.00 : – | 3 : 3 |"),
        # A run that stopped early: the means are over the steps that all have.
        ([[0.0, 1.0]], "| 1.00 (at 10) | 3.00 : 1.00 | 3.00 : 1.00 | 3 : 3 |"),
        (  # t₀.₉₇₅(2) / √3 = 2.48
            [[0.0, 1.0, 1.0], [0.0, 2.0, 2.0], [0.0, 3.0, 3.0]],
            "| 1.00, 2.00, 3.00 | 5.00 : 2.00 ± 2.48 | 4.00 : 2.00 ± 2.48 | 3 : 3 |",
        ),
    ],
)
def test_the_locomotion_table(ppo, line):
    rows = [
        locomotion_row("trpo", 0, [0.0, 2.0, 4.0]),
        locomotion_row("trpo", 1, [0.0, 4.0, 6.0]),
        *(locomotion_row("ppo", 0, returns) for returns in ppo),
    ]
    expected = "| ant | 20 | 4.00, 6.00 " + line
    assert report.locomotion(rows).splitlines()[-1] == expected


def test_rows_are_of_the_presets_as_they_are():
    rows = report.of_presets(report.rows_of("learning", report.RESULTS))
    current = [row for row in rows if report.is_current(row)]
    assert "CartPole-v1" in {row["env"] for row in current}
    for row in rows:
        given = {"num_seeds": row["num_seeds"], "total_timesteps": row["steps"]}
        expected = config_to_dict(configure(row["env"], **given))
        measured = report.BEFORE_THE_FIELD | row["config"]
        same = all(measured.get(name) == expected[name] for name in expected)
        assert report.marked(row) == row["name"] + ("" if same else " †")


def test_interquartile_mean():
    values = np.array([3.0, 1.0, 100.0, 2.0, 4.0, -50.0, 2.0, 6.0])
    middle = np.mean(sorted(values)[2:6])
    assert statistics.interquartile_mean([values]) == middle
    # Tasks are pooled.
    assert statistics.interquartile_mean([values[:4], values[4:]]) == middle
    both = statistics.interquartile_mean([np.stack([values, values + 1])])
    assert both.tolist() == [middle, middle + 1]
    # A quarter of three runs is less than one: none is left out.
    assert statistics.interquartile_mean([[0.0, 3.0, 9.0]]) == 4


def test_performance_profile():
    tasks, thresholds = [[0.0, 1.0], [0.5, 0.5, 2.0]], [-1.0, 0.5, 1.0, 3.0]
    profile = statistics.performance_profile(tasks, thresholds)
    np.testing.assert_allclose(profile, [1, (1 / 2 + 1 / 3) / 2, (0 + 1 / 3) / 2, 0])


def mean_of_tasks(tasks):
    return np.mean([np.mean(runs, axis=-1) for runs in tasks], axis=0)


def test_a_bootstrap_interval_agrees_with_normal_theory():
    runs = np.random.default_rng(0).normal(size=400)
    ends = np.array(statistics.stratified_bootstrap(mean_of_tasks, [runs]))
    error = runs.std() / math.sqrt(400)
    np.testing.assert_allclose((ends - runs.mean()) / error, [-1.96, 1.96], atol=0.1)


def test_tasks_are_resampled_apart():
    # Two tasks that differ by much do not widen the interval.
    apart = [[0.0] * 5, [100.0] * 5]
    ends = statistics.stratified_bootstrap(mean_of_tasks, apart, repeats=50)
    assert ends == (50, 50)


def test_scores_are_normalized():
    scores = statistics.normalized([1.0, 3.0], random=1, reference=5)
    assert scores.tolist() == [0, 0.5]
    assert statistics.normalized([1.0], random=1, reference=1) is None
    assert statistics.normalized([1.0], random=None, reference=1) is None


def test_seeds_are_summarized():
    row = statistics.summarize([1.0, 3.0])
    # With two seeds t is Cauchy's: its quantile is tan(0.475 π), the standard error 1.
    assert (row["mean"], row["by_seed"]) == (2, [1, 3])
    assert math.isclose(row["interval"], math.tan(0.475 * math.pi), rel_tol=1e-5)
    assert statistics.summarize([1.0])["interval"] is None
    row = statistics.summarize([1.0, 2.0, float("nan")])
    assert row["by_seed"] == [1, 2, None]
    assert (row["mean"], row["interval"], row["iqm"]) == (None, None, None)


def test_curves_are_binned():
    returns, counts = np.full((120, 3), np.nan), np.zeros((120, 3), int)
    returns[0, 0], counts[0, 0] = 5, 2
    returns[1, 0], counts[1, 0] = 8, 1
    returns[119, 2], counts[119, 2] = 1, 4
    steps, means = curves.binned(returns, counts, batch_size=10)
    last_updates = {update * 50 // 120: update for update in range(120)}
    assert steps.tolist() == [10 * (last_updates[bin] + 1) for bin in range(50)]
    assert means.shape == (3, 50)
    assert means[0, 0] == (2 * 5 + 8) / 3
    assert means[2, 49] == 1
    assert np.isfinite(means).sum() == 2
    steps, means = curves.binned(returns[:3], counts[:3], batch_size=10)
    assert steps.tolist() == [10, 20, 30]
    np.testing.assert_array_equal(means, returns[:3].T)


def test_curves_are_written_and_read(tmp_path):
    by_seed = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])
    path = tmp_path / "curves" / "curve.json"
    curves.write(path, np.array([10, 20, 30]), by_seed, env="suite/env")
    assert "NaN" not in path.read_text()
    curve = curves.read(path)
    assert curve.steps.tolist() == [10, 20, 30]
    np.testing.assert_array_equal(curve.mean, [2, 5, np.nan])
    np.testing.assert_array_equal(np.isfinite(curve.half_width), [True, False, False])


def test_curves_have_names_that_file_systems_take(tmp_path):
    path = curves.path_of(tmp_path / "rows.jsonl", "suite/env")
    assert path == tmp_path / "curves" / "suite-env.json"
    long = [curves.path_of(path, f"env, {x}={'y' * 300}").name for x in "ab"]
    assert long[0] != long[1]
    assert max(map(len, long)) < 200


def test_the_smaller_buffers_of_seaquest_change_nothing():
    """An enemy comes every step, more than in a real game, and the game never ends."""

    def play(env):
        params = env.default_params

        def step(state, key):
            key, action_key = jax.random.split(key)
            action = jax.random.randint(action_key, (), 0, 6)
            observation, state, reward, done, _ = env.step_env(
                key, state, action, params
            )
            counts = state.e_fish_count + state.e_subs_count
            state = state.replace(
                terminal=jnp.array(False),
                oxygen=jnp.int32(200),
                diver_count=jnp.maximum(state.diver_count, 1),
                e_spawn_speed=jnp.int32(1),
                move_speed=jnp.int32(2),
            )
            return state, (observation, reward, done, counts)

        _, state = env.reset_env(jax.random.key(0), params)
        return jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 300))[1]

    played = [
        jax.jit(play, static_argnums=0)(env) for env in (MinSeaquest(), seaquest())
    ]
    jax.tree.map(np.testing.assert_array_equal, *played)
    assert played[0][1].sum() >= 3
    assert 16 < played[0][3].max() <= 32


def test_overrides_are_read():
    texts = "total_timesteps=2_000", "max_kl_schedule=cosine", "hidden_sizes=(8, 8)"
    overrides = parse_overrides((*texts, "max_kl=1e-3"))
    assert overrides["max_kl_schedule"] == "cosine"
    assert overrides["hidden_sizes"] == (8, 8)
    config = configure("CartPole-v1", **overrides)
    assert config.num_updates == 2
    assert config.max_kl == 1e-3
    assert config.normalize_returns
    assert config.gae_lambda == 0.98
    with pytest.raises(ValueError, match="max_kl=VALUE"):
        parse_overrides(("max_kl",))


def test_an_environment_without_a_preset_has_the_defaults():
    config = configure("jumanji/Snake-v1", max_kl=0.5, num_envs=4)
    expected = trpo_jax.TRPOConfig(env="jumanji/Snake-v1", max_kl=0.5, num_envs=4)
    assert config == expected


@pytest.mark.parametrize("wrong", [{"no_such": 1}, {"total_timesteps": 2e4}])
def test_overrides_that_make_no_config_are_refused(wrong):
    with pytest.raises(TypeError):
        configure("CartPole-v1", **wrong)


def test_commands_are_written():
    options = {"max_kl": (1.0, 2.0), "damping": (), "n": None}
    line = command("m", "E", **options, override=("a=1", "b=()"))
    expected = "python -m m E --max-kl 1.0 2.0 --override a=1 --override 'b=()'"
    assert line == expected


@pytest.mark.parametrize(
    ("env", "fields", "actions", "name"),
    [
        ("CartPole-v1", {"total_timesteps": 1000}, "sample", ", sampled actions"),
        ("MemoryChain-bsuite", {"max_kl": 0.5}, "mode", ", GRU, max_kl=0.5"),
        ("MemoryChain-bsuite", {"memory_size": 8}, "mode", ", GRU, memory_size=8"),
        ("MemoryChain-bsuite", {"memory_size": 0}, "sample", ", sampled actions"),
        ("MemoryChain-bsuite", {"memory": "lru"}, "mode", ", LRU"),
        ("CartPole-v1", {"hidden_sizes": (8,)}, "mode", ", hidden_sizes=[8]"),
        ("CartPole-v1", {"update": "ppo"}, "mode", ", update=ppo"),
        (
            "Acrobot-v1",
            {"critic_fit": "first_order"},
            "mode",
            ", critic_fit=first_order",
        ),
    ],
)
def test_rows_are_named_by_what_is_not_the_presets(env, fields, actions, name):
    assert learning.name_of(configure(env, **fields), actions) == env + name


def test_learning_plans_its_rows():
    rows = learning.planned(["MetaMaze-misc", "CartPole-v1"], (), {"num_seeds": 3})
    assert [(c.memory_size, c.num_seeds, case.actions) for c, case in rows] == [
        (64, 3, "sample"),
        (0, 3, "sample"),
        (0, 3, "mode"),
    ]
    changed = ("num_envs=64", "total_timesteps=12_800")
    rows = learning.planned(["MetaMaze-misc"], changed, {"actions": "mode"})
    ((config, case),) = rows
    assert (config.num_envs, config.memory_size, case.num_seeds) == (64, 64, 16)
    assert (case.override, case.actions) == (changed, "mode")
    assert case.seeds_at_once == 1


@pytest.mark.parametrize(
    ("env", "override", "given", "advice"),
    [
        ("CartPole-v1", ("num_seeds=4",), {}, "argument of its own"),
        ("CartPole-v1", (), {"seeds_at_once": 0}, "write at least 1"),
        ("CartPol-v1", (), {}, "CartPole-v1"),
    ],
)
def test_learning_refuses_what_it_cannot_plan(env, override, given, advice):
    with pytest.raises(ValueError, match=advice):
        learning.planned([env], override, given)


def test_learning_leaves_out_environments_that_cannot_be_made(monkeypatch):
    make = trpo_jax.environments.make_environment

    def make_all_but_one(env):
        if env == "MNISTBandit-bsuite":
            raise ValueError("no data")
        return make(env)

    monkeypatch.setattr(trpo_jax.environments, "make_environment", make_all_but_one)
    envs, missing = learning.available()
    assert len(envs) == 25
    assert {"Breakout-MinAtar", "Swimmer-misc"} < set(envs)
    assert {env: str(why) for env, why in missing.items()} == {
        "MNISTBandit-bsuite": "no data"
    }


TINY = {
    "num_envs": 4,
    "rollout_length": 32,
    "total_timesteps": 384,
    "hidden_sizes": (8,),
    "fisher_stride": None,
    "critic_cg_iterations": 3,
}


@pytest.fixture(scope="module")
def trained():
    """Two seeds of a tiny run, side by side, and their returns in evaluation."""
    config = configure("CartPole-v1", num_seeds=2, **TINY)
    result = trpo_jax.train(config)
    key = jax.random.fold_in(jax.random.key(0), 1)
    returns = trpo_jax.evaluate(config, result.state, key, 4).mean(axis=1)
    return config, result, returns


@pytest.fixture(scope="module")
def row(trained, tmp_path_factory):
    output = tmp_path_factory.mktemp("learning") / "learning.jsonl"
    row = learning.measure(trained[0], num_episodes=4, seeds_at_once=1, output=output)
    return row | {"folder": str(output.parent)}


def test_one_seed_after_the_other_learns_as_side_by_side(trained, row):
    _, result, returns = trained
    assert row["name"].startswith("CartPole-v1, num_envs=4, rollout_length=32, hidden")
    assert row["name"].endswith(", critic_cg_iterations=3")
    np.testing.assert_allclose(row["by_seed"], returns, rtol=1e-4)
    path = curves.path_of(pathlib.Path(row["folder"], "learning.jsonl"), row["name"])
    curve = curves.read(path)
    assert curve.steps.tolist() == [128, 256, 384]
    expected = np.mean(result.metrics.episode_return, axis=0)
    np.testing.assert_allclose(curve.mean, expected, rtol=1e-3)
    assert 9 < row["random_return"] < 60
    assert row["target"] == row["published"] == 500


def test_a_single_seed_is_measured(trained, tmp_path):
    config = configure("CartPole-v1", num_seeds=1, **TINY)
    row = learning.measure(
        config, num_episodes=4, seeds_at_once=1, output=tmp_path / "rows.jsonl"
    )
    result = trpo_jax.train(config)
    key = jax.random.fold_in(jax.random.key(0), 1)
    returns = trpo_jax.evaluate(config, result.state, key, 4)
    np.testing.assert_allclose(row["by_seed"], [returns.mean()], rtol=1e-4)


def test_a_sweep_is_compared_with_an_estimate_of_single_runs():
    printed = {
        ("ours", "sweep"): {"seconds": 10.0},
        ("ours", "single"): {"compile_seconds": 5.0, "by_run": [1.0, 3.0, 2.0]},
        ("theirs", "sweep"): {"seconds": 40.0},
    }

    def run(side, arguments):
        return printed[side, arguments[0]]

    row = sweeps.compare(2, 3, 1024, 3, run)
    assert row["runs"] == 6
    assert row["single"]["estimated_seconds"] == 5 + 6 * 2
    assert (row["single_over_ours"], row["theirs_over_ours"]) == (1.7, 4.0)
    for side in ("ours", "single", "theirs"):
        row[side]["peak_gib"] = 2.0
    row["ours"]["steps_per_second"] = 100.0
    row["single"]["seconds"] = 11.0
    ours, single, theirs = report.sweep([row]).splitlines()[2:]
    assert ours.endswith("`sweep` | 10 | 100 | 2 | 1 |")
    assert single.endswith("estimated | 17 | 59 | 2 | 1.7 |")
    assert theirs.endswith("vmapped | 40 | 25 | 2 | 4 |")


def test_pages_are_written_from_the_newest_rows(row):
    folder = pathlib.Path(row["folder"])
    results = folder / "learning.jsonl"
    of_preset = row | {"name": "CartPole-v1"}
    for line in (row | {"mean": 0.0}, of_preset, row):
        harness.append_row(results, line)
    assert "NaN" not in results.read_text()
    newest = report.latest(harness.read_rows(results))
    assert [line["mean"] for line in newest] == [row["mean"]] * 2
    assert [line["name"] for line in report.of_presets(newest)] == ["CartPole-v1"]
    page, front_page = folder / "README.md", folder / "FRONT.md"
    for path in (page, front_page):
        path.write_text("<!-- learning -->\n<!-- end -->\n")
    report.main(folder, page, front_page)
    # Of other settings than those of the preset.
    assert "| CartPole-v1 † | 384 |" in page.read_text()
    assert "| CartPole-v1 † | 384 | 2 |" in front_page.read_text()
    assert "Not measured yet." not in page.read_text()
    for picture in ("learning-curves", "learning-profile"):
        assert (folder / f"{picture}.png").stat().st_size > 1000


def test_rows_of_presets_are_told_from_others():
    def named(env, about="", actions="mode"):
        return {"env": env, "name": env + about, "actions": actions}

    chain = named("MemoryChain-bsuite", ", GRU, sampled actions", "sample")
    of_presets = [named("CartPole-v1"), chain]
    others = [
        named("CartPole-v1", ", GRU, memory_size=8"),
        named("CartPole-v1", ", sampled actions", "sample"),
        named("MemoryChain-bsuite", ", GRU"),
        named("MemoryChain-bsuite", ", LRU, sampled actions", "sample"),
        named("MemoryChain-bsuite", ", sampled actions", "sample"),
    ]
    assert report.of_presets(others + of_presets) == of_presets


def test_a_random_policy_is_played():
    # CartPole stands for 22 steps or so at random; the standard error here is 1.4.
    mean = random_policy.random_return(configure("CartPole-v1"), 64)
    assert 16 < mean < 28


def test_a_random_policy_of_bounded_actions_is_played():
    # Pendulum: −1,230 or so, with a standard error of 40.
    mean = random_policy.random_return(configure("Pendulum-v1"), 64)
    assert -1450 < mean < -1000


def test_a_random_policy_is_uniform_over_allowed_actions():
    key, seen = jax.random.key(0), jnp.zeros((1000, 5))
    bounded = Box(2, (-1.0, 3.0), (0.0, 4.0))
    actions = random_policy.uniform(bounded, seen).sample(key)
    assert actions.shape == (1000, 2)
    assert jnp.all((actions > jnp.array([-1, 3])) & (actions < jnp.array([0, 4])))
    np.testing.assert_allclose(actions.mean(0), [-0.5, 3.5], atol=0.05)
    actions = random_policy.uniform(Box(1), seen).sample(key)
    assert abs(actions.std() - 1) < 0.1
    mask = jnp.tile(jnp.array([True, False, True, False, True]), (1000, 1))
    masked = MaskedObservation(seen, mask)
    actions = random_policy.uniform(Discrete(5), masked).sample(key)
    counts = np.bincount(actions, minlength=5)
    assert counts[1] == counts[3] == 0
    assert min(counts[[0, 2, 4]]) > 280
    actions = random_policy.uniform(MultiDiscrete((3, 2)), masked).sample(key)
    assert actions.shape == (1000, 2)
    assert set(actions[:, 0].tolist()) == {0, 2}
    assert set(actions[:, 1].tolist()) == {1}


@pytest.mark.parametrize(
    ("page", "tables"),
    [(report.README, report.TABLES), (report.FRONT_PAGE, report.FRONT_TABLES)],
    ids=["benchmarks", "front"],
)
def test_every_table_of_both_pages_is_written_from_results(page, tables):
    text = page.read_text("utf-8")
    for name, write in tables.items():
        found = re.search(f"<!-- {name} -->\n(.*?)<!-- end -->", text, re.DOTALL)
        rows = report.rows_of(name, report.RESULTS)
        expected = write(rows) if rows else report.stamp(rows)
        assert found[1].startswith(expected), name


def test_tables_are_written_and_replaced():
    assert report.table("ab", [(1, 2)]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert report.spread({"median": 1.5, "low": 1, "high": 2000}) == "1.5 (1–2,000)"
    assert report.stamp([]) == "Not measured yet."
    page = "<!-- a -->\n<!-- end -->\ntext\n<!-- b -->\nold\n<!-- end -->"
    filled = report.insert(report.insert(page, "a", "x"), "b", "y")
    expected = "<!-- a -->\nx\n<!-- end -->\ntext\n<!-- b -->\ny\n<!-- end -->"
    assert filled == expected
    assert report.insert(filled, "a", "x") == filled


@pytest.mark.parametrize("module", ["learning", "kills"])
def test_as_a_process(module):
    finished = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert finished.returncode == 0, finished.stderr
    assert "--output" in finished.stdout


def test_updates_that_lower_the_return_are_counted_and_sized():
    up = np.array([0.0, 9.0, 6.0, 10.0])  # means of the evaluations of one seed
    noise = np.array([-0.1, 0.1])
    found = relatives.harm(up[None, :, None] + noise)
    assert found["harmful"] == pytest.approx(1 / 3, abs=1e-5)
    assert found["helpful"] == pytest.approx(2 / 3, abs=1e-5)
    for name in ("harmful_size", "worst_drop", "worst_later_drop"):
        assert found[name] == pytest.approx(0.3)


def test_the_return_after_the_seconds_of_another_update():
    row = {"curve": list(range(20)), "step_seconds": {"median": 2.0}}
    assert relatives_tables.return_after(row, 20.0) == 8.5  # updates 9 and 10 of 20
    assert relatives_tables.return_after(row, 90.0) == 18.5
    assert relatives_tables.return_after(row, 0.1) == 0
    assert relatives_tables.return_after(row, None) is None
