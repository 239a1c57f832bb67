from pathlib import Path

import numpy as np
from PIL import Image
from recorded import METRICS, line, write_run

from trpo_jax.pictures import figures as figures_module
from trpo_jax.pictures.curves import read_run
from trpo_jax.pictures.figures import draw_diagnostics, draw_returns, styles_of


def test_runs_are_named_by_what_tells_them_apart(tmp_path):
    def labels(*places):
        runs = []
        for place, env in places:
            folder = tmp_path / place
            if not folder.exists():
                write_run(folder, [line(1)], env=env)
            runs.append(read_run(folder))
        return [style.label for style in styles_of(runs)]

    assert labels(("a", "X"), ("b", "Y")) == ["X", "Y"]
    assert labels(("a", "X"), ("c", "X")) == ["a", "c"]
    assert labels(("a", "X"), ("d/a", "X")) == [str(tmp_path / p) for p in ("a", "d/a")]
    many = styles_of([read_run(tmp_path / "a")] * 20)
    assert len({(style.color, style.line) for style in many}) == 20


def test_a_run_without_anything_to_show_is_drawn(tmp_path):
    nothing = dict.fromkeys(METRICS) | {"critic_loss": 0.0}
    folder = write_run(tmp_path / "run", [line(1, (None,), **nothing)])
    for name, draw in {"a.png": draw_returns, "b.png": draw_diagnostics}.items():
        draw([read_run(folder)], tmp_path / name)
        assert min(Image.open(tmp_path / name).size) > 400


def drawn(monkeypatch, draw, runs):
    """Return the panels of a figure by their titles, without drawing it."""
    figures = []
    monkeypatch.setattr(
        figures_module.FigureCanvasAgg,
        "print_figure",
        lambda canvas, path: figures.append(canvas.figure),
    )
    draw(runs, Path("unused.png"))
    return {axis.get_title(): axis for axis in figures[0].axes}


def test_evaluations_are_dots_with_intervals(tmp_path, monkeypatch):
    lines = [line(update, (1.0, 3.0)) for update in range(1, 51)]
    lines[9] |= {"evaluation_return_by_seed": [4.0, 6.0]}
    lines[19] |= {"evaluation_return_by_seed": [7.0, None]}
    lines[29] |= {"evaluation_return_by_seed": [None, None]}
    several = read_run(write_run(tmp_path / "several", lines, num_seeds=2))
    single = read_run(
        write_run(tmp_path / "one", [line(1) | {"evaluation_return": 8.0}])
    )
    (axis,) = drawn(monkeypatch, draw_returns, [several, single]).values()
    dots, one = (container.lines[0] for container in axis.containers)
    # Not smoothed, though the run's curve is over two updates.
    np.testing.assert_array_equal(dots.get_xydata(), [[10_000, 5], [20_000, 7]])
    np.testing.assert_array_equal(one.get_xydata(), [[1000, 8]])
    (bars,) = axis.containers[0].lines[2]
    np.testing.assert_allclose(bars.get_segments()[0][:, 1], [5 - 12.7, 5 + 12.7], 1e-3)
    assert "dots" in axis.figure.get_supylabel()


def test_curves_are_means_over_seeds_with_a_band(tmp_path, monkeypatch):
    lines = [line(update, (1.0 * update, 3.0 * update)) for update in (1, 2)]
    run = read_run(write_run(tmp_path / "run", lines, num_seeds=2))
    (axis,) = drawn(monkeypatch, draw_returns, [run]).values()
    np.testing.assert_array_equal(axis.lines[0].get_xydata(), [[1000, 2], [2000, 4]])
    assert len(axis.collections) == 1
    assert axis.figure.get_supylabel() == "episode return"
    panels = drawn(monkeypatch, draw_diagnostics, [run])
    mean, high, highest, limit = panels["mean KL; thin: 95 %, largest; dotted: δ"].lines
    for line_drawn, value in ((mean, 0.008), (high, 0.02), (highest, 0.04)):
        np.testing.assert_allclose(line_drawn.get_ydata(), value)
    np.testing.assert_allclose(limit.get_ydata(), 0.01)
    gain, kl, one = panels["gain (thin: KL) against its prediction"].lines
    np.testing.assert_allclose(gain.get_ydata(), 0.8)
    np.testing.assert_allclose(kl.get_ydata(), 0.9)
    np.testing.assert_allclose(one.get_ydata(), 1)
    assert panels["critic (cut at −1)"].get_ylim()[0] == -1
    assert panels["critic's loss"].get_yscale() == "log"
    bounds = panels["bound on improvement by largest (thin: mean) KL"]
    assert [bound.get_ydata()[0] for bound in bounds.lines] == [-300, -4]
    assert (bounds.get_yscale(), bounds.get_ylim()) == ("symlog", (-900, 0))


def test_updates_without_kl_leave_the_logarithmic_axis_finite(tmp_path, monkeypatch):
    """As after a rejection, or in the records of an earlier version."""
    lines = [line(1), line(2, kl=0.0, kl_95=0.0, kl_max=0.0), line(3, kl_95=None)]
    run = read_run(write_run(tmp_path / "run", lines))
    panels = drawn(monkeypatch, draw_diagnostics, [run])
    low, high = panels["mean KL; thin: 95 %, largest; dotted: δ"].get_ylim()
    assert 1e-3 < low < 0.008 < 0.04 < high < 1
