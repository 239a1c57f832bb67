import dataclasses

import pytest
from PIL import Image
from sweeping import make_result

from trpo_jax.pictures import plot_sweep


def test_a_result_is_drawn_into_two_pictures(tmp_path):
    paths = plot_sweep(make_result(), tmp_path / "drawn")
    assert [path.name for path in paths] == ["fields.png", "best-settings.png"]
    # Two panels side by side, and one.
    widths = [Image.open(path).size[0] for path in paths]
    assert widths[0] > widths[1]


def test_pictures_are_put_into_the_folder_of_the_sweep(tmp_path):
    result = dataclasses.replace(make_result(), folder=tmp_path)
    assert plot_sweep(result)[0] == tmp_path / "pictures" / "fields.png"


def test_a_result_without_a_folder_needs_one_for_pictures():
    with pytest.raises(ValueError, match="write output, the folder for the pictures"):
        plot_sweep(make_result())


def test_a_sweep_without_a_finished_setting_has_no_pictures(tmp_path):
    result = make_result(rungs=(-1, -1, -1, -1), updates=0)
    with pytest.raises(ValueError, match="no finished setting yet; wait for the first"):
        plot_sweep(result, tmp_path)
