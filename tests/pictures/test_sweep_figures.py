import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure
from probes import Toll
from sweeping import FIELDS, make_result
from tiny import CONFIG

from trpo_jax.pictures import sweep_figures
from trpo_jax.pictures.sweep_figures import draw_best, draw_fields


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures: list[Figure] = []
    monkeypatch.setattr(
        sweep_figures, "save", lambda figure, path: figures.append(figure)
    )
    return figures


def test_each_field_has_a_panel_with_the_means_and_intervals(drawn, tmp_path):
    draw_fields(make_result(), tmp_path / "fields.png")
    radii, sizes = drawn[0].axes
    assert radii.get_xlabel() == "max_kl"
    assert radii.get_xscale() == "log"
    assert [text.get_text() for text in sizes.get_xticklabels()] == ["4", "8×8"]
    points, _, _ = radii.containers[0]
    np.testing.assert_array_equal(points.get_xdata(), [0.001, 0.001, 0.1, 0.1])
    np.testing.assert_array_equal(points.get_ydata(), [2, 12, 50, 5])


def test_settings_that_halving_stopped_are_grey(drawn, tmp_path):
    result = make_result(rungs=(1, 0, 0, 1), updates=(40, 20, 20, 40))
    draw_fields(result, tmp_path / "fields.png")
    colors = {bar[0].get_color() for bar in drawn[0].axes[0].containers}
    assert colors == {"#999999", sweep_figures.COLORS[0]}
    assert "grey: stopped by halving" in drawn[0].get_suptitle()


def test_the_best_settings_have_curves_that_end_where_they_stopped(drawn, tmp_path):
    result = make_result(rungs=(1, 0, 0, 1), updates=(40, 20, 20, 40))
    draw_best(result, tmp_path / "best.png", num_curves=3)
    (axis,) = drawn[0].axes
    labels = [line.get_label() for line in axis.lines]
    assert labels == [
        "max_kl=0.1, hidden_sizes=8×8",
        "max_kl=0.001, hidden_sizes=4",
        "max_kl=0.001, hidden_sizes=8×8",
    ]
    assert [line.get_xdata()[-1] for line in axis.lines] == [640, 640, 320]


def test_few_linear_values_are_the_ticks(drawn, tmp_path):
    fields = {"discount": [0.9, 0.95], **{"hidden_sizes": FIELDS["hidden_sizes"]}}
    draw_fields(make_result(fields), tmp_path / "fields.png")
    labels = [text.get_text() for text in drawn[0].axes[0].get_xticklabels()]
    assert labels == ["0.9", "0.95"]


def test_settings_above_their_limits_are_hollow(drawn, tmp_path):
    config = dataclasses.replace(
        CONFIG, env=Toll(), update="cpo", cost_limits=(5.0, 20.0)
    )
    costs = np.array([4.0, 6, 5, 9])[:, None, None] * np.ones((4, 2, 2))
    draw_fields(make_result(config=config, costs=costs), tmp_path / "fields.png")
    kept, above = (bar[0] for bar in drawn[0].axes[0].containers)
    np.testing.assert_array_equal(kept.get_ydata(), [2, 50])
    np.testing.assert_array_equal(above.get_ydata(), [12, 5])
    assert (kept.get_markerfacecolor(), above.get_markerfacecolor()) == (
        sweep_figures.COLORS[0],
        "white",
    )
    assert "hollow: above a limit" in drawn[0].get_suptitle()
