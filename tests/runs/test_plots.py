import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from trpo_jax.runs.curves import (
    mean_interval,
    metric_curve,
    read_run,
    return_curve,
    trailing_mean,
)
from trpo_jax.runs.figures import styles_of
from trpo_jax.runs.plots import plot_runs

# t₀.₉₇₅ of 1, 2 and 3 degrees of freedom, from a printed table.
T = {1: 12.706, 2: 4.303, 3: 3.182}
METRICS = {
    "kl": 0.008,
    "max_kl": 0.01,
    "cg_relative_residual": 1e-4,
    "accepted_fraction": 0.5,
    "entropy": 0.6,
    "explained_variance": -3.0,
    "critic_loss": 0.2,
}


def line(update, returns=(20.0,), **metrics):
    """One line of metrics: of a single seed, or of as many as there are returns."""
    seen = [value for value in returns if value is not None]
    fields = {"update": update, "env_steps": 1000 * update} | METRICS | metrics
    fields["episode_return"] = float(np.mean(seen)) if seen else None
    if len(returns) > 1:
        fields |= {f"{name}_std": 0.1 for name in METRICS}
        fields["episode_return_by_seed"] = list(returns)
    return fields


def write(folder, lines, torn="", **config):
    folder.mkdir(parents=True)
    config = {"env": "CartPole-v1", "num_seeds": 1} | config
    (folder / "config.json").write_text(json.dumps(config))
    text = "".join(json.dumps(fields) + "\n" for fields in lines)
    (folder / "metrics.jsonl").write_text(text + torn)
    return folder


def test_the_interval_of_a_mean_is_students():
    by_seed = np.array(
        [
            [1.0, 1.0, np.nan, np.nan],
            [2.0, np.nan, 5.0, np.nan],
            [3.0, 4.0] + [np.nan] * 2,
        ]
    )
    mean, half_width = mean_interval(by_seed)
    np.testing.assert_allclose(mean, [2, 2.5, 5, np.nan])
    expected = [T[2] / np.sqrt(3), T[1] * np.sqrt(4.5) / np.sqrt(2), np.nan, np.nan]
    np.testing.assert_allclose(half_width, expected, rtol=1e-3)


@pytest.mark.parametrize("window", [1, 3, 50])
def test_a_trailing_mean_is_a_loop_that_passes_over_nan(window):
    values = np.random.default_rng(0).normal(size=(2, 20))
    values[0, [0, 1, 5, 6, 7, 12]] = np.nan
    expected = np.full_like(values, np.nan)
    for seed, update in np.ndindex(values.shape):
        latest = values[seed, max(0, update - window + 1) : update + 1]
        if np.isfinite(latest).any():
            expected[seed, update] = np.nanmean(latest)
    np.testing.assert_allclose(trailing_mean(values, window), expected, atol=1e-12)


def test_curves_of_seeds_have_their_mean_and_interval(tmp_path):
    lines = [line(1, (None, None, None)), line(2, (1, 2, 3)), line(3, (5.0, None, 9))]
    run = read_run(write(tmp_path / "run", lines, num_seeds=3))
    steps, mean, half_width = return_curve(run)
    np.testing.assert_array_equal(steps, [1000, 2000, 3000])
    np.testing.assert_allclose(mean, [np.nan, 2, 7])
    expected = [np.nan, T[2] / np.sqrt(3), T[1] * np.sqrt(8) / np.sqrt(2)]
    np.testing.assert_allclose(half_width, expected, rtol=1e-3)
    _, mean, half_width = metric_curve(run, "entropy")
    np.testing.assert_allclose(mean, 0.6)
    np.testing.assert_allclose(half_width, T[2] * 0.1 / np.sqrt(3), rtol=1e-3)


def test_a_single_seed_has_no_interval(tmp_path):
    run = read_run(write(tmp_path / "run", [line(1), line(2, (None,)), line(3)]))
    for curve in (return_curve(run), metric_curve(run, "kl")):
        assert np.isnan(curve.half_width).all()
    np.testing.assert_allclose(return_curve(run).mean, [20, np.nan, 20])


def test_each_seed_is_smoothed_by_itself(tmp_path):
    """So a seed in which no episode ended keeps what it had."""
    lines = [line(1, (0, 10)), *(line(update, (0, None)) for update in range(2, 51))]
    run = read_run(write(tmp_path / "run", lines, num_seeds=2))
    assert run.window == 2
    np.testing.assert_allclose(return_curve(run).mean[:3], [5, 5, 0])


def test_a_torn_last_line_does_not_count(tmp_path):
    whole = json.dumps(line(3))
    for number, torn in enumerate(('{"update": 3, "env_', whole, whole + "\n")):
        run = read_run(write(tmp_path / str(number), [line(1), line(2)], torn=torn))
        assert len(run.updates) == (3 if torn.endswith("\n") else 2)


def test_of_an_update_that_is_there_twice_the_last_counts(tmp_path):
    lines = [line(1, (1.0,)), line(2, (2.0,)), line(3, (3.0,)), line(2, (7.0,))]
    run = read_run(write(tmp_path / "run", lines))
    np.testing.assert_allclose(return_curve(run).mean, [1, 7, 3])


@pytest.mark.parametrize(
    "damaged", ["{broken", "", "[1, 2]", '{"update": null, "env_steps": 5}']
)
def test_a_damaged_line_is_named(tmp_path, damaged):
    folder = write(
        tmp_path / "run", [line(1)], torn=f"{damaged}\n{json.dumps(line(3))}\n"
    )
    with pytest.raises(ValueError, match=r"run/metrics\.jsonl, line 2 .*remove"):
        plot_runs([folder])


def test_what_holds_no_run_is_refused_with_advice(tmp_path):
    with pytest.raises(ValueError, match="no folder; write the folder of a run"):
        plot_runs([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=r"holds no run: it has no config\.json"):
        plot_runs([tmp_path])
    folder = write(tmp_path / "run", [], torn='{"update": 1')
    with pytest.raises(ValueError, match="holds no metrics yet"):
        plot_runs([folder])
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match="holds no metrics yet"):
        plot_runs([folder])
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        plot_runs([folder])


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("folders", "advice"), [([], "folders is empty"), ("run", r"write \['run'\]")]
)
def test_folders_are_a_list(folders, advice):
    with pytest.raises(ValueError, match=advice):
        plot_runs(folders)


def sizes(paths):
    assert [path.name for path in paths] == ["learning-curves.png", "diagnostics.png"]
    return [Image.open(path).size for path in paths]


def test_one_run_is_drawn_into_its_folder(tmp_path):
    lines = [line(update, (10.0 * update, 50.0)) for update in range(1, 6)]
    folder = write(tmp_path / "run", lines, num_seeds=2)
    figures = plt.get_fignums()
    paths = plot_runs([folder])
    assert {path.parent for path in paths} == {folder / "pictures"}
    assert min(side for size in sizes(paths) for side in size) > 400
    assert plt.get_fignums() == figures


def test_several_runs_are_drawn_into_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [write(tmp_path / name, [line(1)]) for name in ("a", "b")]
    folders.append(write(tmp_path / "c", [line(1)], env="Pendulum-v1"))
    paths = plot_runs(folders)
    assert {path.parent.resolve() for path in paths} == {tmp_path / "trpo_jax-pictures"}
    one_panel = sizes(plot_runs(folders[:2], tmp_path / "elsewhere" / "deep"))[0]
    assert sizes(paths)[0][0] > one_panel[0]


def test_a_run_without_anything_to_show_is_drawn(tmp_path):
    nothing = dict.fromkeys(METRICS) | {"critic_loss": 0.0}
    folder = write(tmp_path / "run", [line(1, (None,), **nothing)])
    sizes(plot_runs([folder]))


def test_runs_are_named_by_what_tells_them_apart(tmp_path):
    def labels(*places):
        runs = []
        for place, env in places:
            folder = tmp_path / place
            if not folder.exists():
                write(folder, [line(1)], env=env)
            runs.append(read_run(folder))
        return [style.label for style in styles_of(runs)]

    assert labels(("a", "X"), ("b", "Y")) == ["X", "Y"]
    assert labels(("a", "X"), ("c", "X")) == ["a", "c"]
    assert labels(("a", "X"), ("d/a", "X")) == [str(tmp_path / p) for p in ("a", "d/a")]
    many = styles_of([read_run(tmp_path / "a")] * 20)
    assert len({(style.color, style.line) for style in many}) == 20
