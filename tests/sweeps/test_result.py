import csv
import dataclasses
import io
import sys

import numpy as np
import pytest
from probes import Toll
from sweeping import RETURNS, make_result
from tiny import CONFIG

from trpo_jax.runs.intervals import mean_interval
from trpo_jax.sweeps.result import text_of


def test_settings_are_ranked_with_intervals_and_unknown_ones_last():
    result = make_result()
    rows = result.ranking()
    assert [row["setting"] for row in rows] == [1, 3, 0, 2]
    best = rows[0]
    assert (best["max_kl"], best["hidden_sizes"]) == (0.001, (8, 8))
    assert (best["mean"], best["worst"], best["best"]) == (12, 10, 14)
    _, half_width = mean_interval(RETURNS[1][:, None])
    assert best["interval"] == half_width[0]
    assert best["in_training"] == 12
    assert np.isnan(rows[-1]["mean"])
    assert result.best == result.settings[1]


def test_settings_that_went_further_come_first():
    result = make_result(rungs=(1, 0, 0, 1), updates=(40, 20, 20, 40))
    assert [row["setting"] for row in result.ranking()] == [3, 0, 1, 2]
    assert [row["updates"] for row in result.ranking()] == [40, 40, 20, 20]
    assert "| updates |" in result.table()


def test_the_table_is_markdown_and_the_file_comma_separated():
    result = make_result()
    header, _, first, *rest = result.table().splitlines()
    assert header == "| max_kl | hidden_sizes | return | worst seed | in training |"
    assert first == "| 0.001 | 8×8 | 12 ± 25.41 | 10 | 12 |"
    assert len(rest) == 3
    assert len(result.table(rows=1).splitlines()) == 3
    rows = list(csv.DictReader(io.StringIO(result.csv())))
    assert [row["setting"] for row in rows] == ["1", "3", "0", "2"]
    assert float(rows[0]["mean"]) == 12


def test_curves_are_means_over_the_episodes_that_ended():
    result = make_result()
    result.metrics["episode_count"][0, 0, 3] = 0
    assert np.isnan(result.episode_return[0, 0, 3])
    assert result.episode_return[1, 0, 3] == 10
    assert result.env_steps[0, -1] == CONFIG.total_timesteps


def test_a_dataset_has_labelled_dimensions(tmp_path):
    xarray = pytest.importorskip("xarray")
    result = make_result()
    dataset = result.dataset
    assert dict(dataset.sizes) == {"setting": 4, "seed": 2, "update": 40}
    assert dataset.hidden_sizes.values.tolist() == ["4", "8×8"] * 2
    assert "max_kl" not in dataset.attrs["config"].split("max_kl_schedule")[0]
    grid = dataset.set_index(setting=["max_kl", "hidden_sizes"]).unstack("setting")
    at = grid.evaluation_return.sel(max_kl=0.001, hidden_sizes="8×8")
    assert at.values.tolist() == [10, 14]
    dataset.to_netcdf(tmp_path / "sweep.nc", engine="scipy")
    with xarray.open_dataset(tmp_path / "sweep.nc") as stored:
        xarray.testing.assert_equal(stored.load(), dataset)


def test_without_xarray_a_dataset_is_refused_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ValueError, match=r'pip install "trpo_jax\[sweep\]"'):
        make_result().dataset  # noqa: B018


def test_values_are_named():
    assert text_of(0.1 + 0.2) == "0.3"
    assert text_of(()) == "none"
    assert text_of(np.linalg.norm) == "norm"
    assert text_of("relu") == "relu"


def test_costs_stand_beside_returns_and_decide_the_ranking():
    config = dataclasses.replace(
        CONFIG, env=Toll(), update="cpo", cost_limits=(5.0, 100.0)
    )
    one = np.array([[4.0, 6.0], [8, 8], [1, 1], [5, 5]])
    result = make_result(config=config, costs=np.stack([one, 2 * one], axis=-1))
    # The best by return, setting 1, is above its limit; setting 2 has no mean.
    assert [row["setting"] for row in result.ranking()] == [3, 0, 1, 2]
    assert result.best == result.settings[3]
    row = result.ranking()[1]
    assert (row["cost_0"], row["cost_1"]) == (5, 10)
    assert row["cost_1_interval"] == pytest.approx(2 * row["cost_0_interval"])
    header, _, first, *_ = result.table().splitlines()
    assert header.endswith("| in training | cost 0 | cost 1 |")
    assert first.endswith("| 5 ± 0 of 5 | 10 ± 0 of 100 |")
    assert "cost_1_interval" in result.csv()
    np.testing.assert_array_equal(result.episode_cost[1, 0, 0], [8, 16])
    pytest.importorskip("xarray")
    dataset = result.dataset
    assert dataset.evaluation_cost.dims == ("setting", "seed", "cost")
    assert dataset.episode_cost.dims == ("setting", "seed", "update", "cost")
