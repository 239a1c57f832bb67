"""A recorded run that keeps limits on two costs: each place that shows them."""

import dataclasses
import json
import types

import chex
import jax
import numpy as np
import pytest
from probes import Toll
from rich.console import Console
from tiny import lines

import trpo_jax
from trpo_jax.pictures import figures
from trpo_jax.pictures.curves import read_run
from trpo_jax.policies import evaluate_with_costs
from trpo_jax.runs import checkpoints
from trpo_jax.runs.chunks import Chunk
from trpo_jax.runs.console import Watcher
from trpo_jax.runs.saver import Saver

CONFIG = trpo_jax.TRPOConfig(
    env=Toll(),
    num_envs=4,
    rollout_length=4,
    total_timesteps=16 * 6,
    hidden_sizes=(4,),
    num_seeds=2,
    update="cpo",
    cost_limits=(1.0, 100.0),
)
SETTINGS = trpo_jax.RunSettings(
    checkpoint_updates=3, evaluation_updates=3, evaluation_episodes=5
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("limits") / "run"
    return trpo_jax.run(CONFIG, folder, SETTINGS, progress=False)


def test_costs_are_recorded_beside_returns(run):
    rows = lines(run.folder / "metrics.jsonl")
    assert len(rows) == 6
    for row in rows:
        # The return of this environment is its first cost.
        assert row["episode_cost_0_by_seed"] == row["episode_return_by_seed"]
        assert row["episode_cost_1"] == pytest.approx(2 * row["episode_cost_0"])
        assert row["excess_0"] == pytest.approx(row["episode_cost_0"] - 1, abs=1e-6)
        assert len(row["multipliers_0_by_seed"]) == 2
        assert {"cost_change_0", "cost_change_predicted_1", "recovered"} <= row.keys()
    assert "evaluation_cost_0" not in rows[0]
    assert rows[2]["evaluation_cost_1"] == 2 * rows[2]["evaluation_cost_0"]


def test_the_last_policy_is_evaluated_with_costs(run):
    written = json.loads((run.folder / "evaluation.json").read_text())
    assert written == run.evaluation
    assert written["cost_mean"][0] == written["return_mean"]
    assert written["cost_by_seed"][0] == written["return_by_seed"]
    key = jax.random.fold_in(jax.random.key(0), 1)
    played = evaluate_with_costs(CONFIG, run.state, key, 5)
    assert played.costs.shape == (2, 5, 2)
    np.testing.assert_array_equal(played.costs[..., 0], played.returns)
    np.testing.assert_array_equal(
        played.returns, trpo_jax.evaluate(CONFIG, run.state, key, 5)
    )
    assert "cost " in trpo_jax.policies.format_evaluation(written)


@pytest.mark.usefixtures("no_shape_checks")
def test_the_progress_line_has_cost_and_limit(capsys):
    one = np.zeros(2)
    shown = ("kl", "max_kl", "cg_relative_residual", "cg_iterations", "entropy")
    shown += ("accepted_fraction", "explained_variance", "episode_return")
    row = dict.fromkeys(shown, one) | {"episode_count": np.ones(2)}
    costs = {"episode_cost_0": one + 2, "episode_cost_1": one + 4}
    watcher = Watcher(CONFIG, Console(width=200))
    rows = [row | costs | {"update": 1}]
    none = {name: np.full(2, np.nan) for name in costs}
    rows.append(row | none | {"update": 2, "episode_count": np.zeros(2)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trpo_jax.runs.console.by_update", lambda chunk: rows)
        with watcher:
            watcher.watch(types.SimpleNamespace(seconds=1.0, updates=2))
    for text in capsys.readouterr().out.splitlines()[-2:]:
        assert "cost 2.00 ± 0.00 of 1  cost 4.00 ± 0.00 of 100" in text


def test_diagnostics_draw_costs_limits_and_multipliers(run, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(
        figures.FigureCanvasAgg,
        "print_figure",
        lambda canvas, path: drawn.append(canvas.figure),
    )
    figures.draw_diagnostics([read_run(run.folder)], tmp_path / "unused.png")
    panels = {axis.get_title(): axis for axis in drawn[0].axes}
    for number, limit in enumerate(CONFIG.cost_limits):
        axis = panels[f"cost {number}; dotted: its limit"]
        assert limit in [line.get_ydata()[0] for line in axis.lines]
        assert f"multiplier of the cost {number}" in panels


@pytest.mark.usefixtures("no_shape_checks")
def test_the_best_checkpoint_is_one_within_the_limits(tmp_path):
    settings = trpo_jax.RunSettings(checkpoint_updates=1, keep_last=9)
    saver = Saver(tmp_path, CONFIG, settings)
    for updates, (returns, cost) in enumerate([(9.0, 1.5), (3.0, 1.0), (4.0, np.nan)]):
        metrics = types.SimpleNamespace(
            episode_return=np.array([returns if np.isfinite(cost) else np.nan]),
            episode_cost=np.array([[cost, 2 * cost]]),
        )
        chunk = Chunk(updates + 1, metrics, {"x": np.ones(2)}, seconds=1.0)
        saver.add_returns(chunk)
        saver.save(chunk)
    saver.wait()
    saver.close()
    paths = checkpoints.complete(tmp_path)
    scores = {int(path.name): checkpoints.verify(path).score for path in paths}
    assert scores == {1: None, 2: 3.0, 3: None}


def test_a_run_is_resumed_to_the_same_costs(run, tmp_path):
    short = dataclasses.replace(CONFIG, total_timesteps=48)
    trpo_jax.run(short, tmp_path / "run", SETTINGS, progress=False)
    resumed = trpo_jax.resume(
        tmp_path / "run", short, total_timesteps=96, progress=False
    )
    chex.assert_trees_all_equal(resumed.state.costs, run.state.costs)
    chex.assert_trees_all_equal(resumed.state.params, run.state.params)
