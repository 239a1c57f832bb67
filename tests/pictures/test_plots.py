import json
import pathlib

import matplotlib.pyplot as plt
import pytest
from PIL import Image
from recorded import line, write_run

from trpo_jax.pictures.plots import plot_runs


def sizes(paths):
    assert [path.name for path in paths] == ["learning-curves.png", "diagnostics.png"]
    return [Image.open(path).size for path in paths]


@pytest.mark.parametrize(
    "damaged", ["{broken", "", "[1, 2]", '{"update": null, "env_steps": 5}']
)
def test_a_damaged_line_is_named(tmp_path, damaged):
    folder = write_run(
        tmp_path / "run", [line(1)], torn=f"{damaged}\n{json.dumps(line(3))}\n"
    )
    with pytest.raises(ValueError, match=r"run/metrics\.jsonl, line 2 .*remove"):
        plot_runs([folder])
    path = folder / "metrics.jsonl"
    first, _, third = path.read_text().splitlines(keepends=True)
    path.write_text(first + third)  # as advised
    assert len(plot_runs([folder])) == 2


def test_what_holds_no_run_is_refused_with_advice(tmp_path):
    with pytest.raises(ValueError, match="does not exist; name the folder of a run"):
        plot_runs([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=r"holds no run \(no config\.json\)"):
        plot_runs([tmp_path])
    folder = write_run(tmp_path / "run", [], torn='{"update": 1')
    with pytest.raises(ValueError, match="holds no metrics yet"):
        plot_runs([folder])
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match="holds no metrics yet"):
        plot_runs([folder])
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not json: "):
        plot_runs([folder])


@pytest.mark.usefixtures("no_shape_checks")
def test_no_folders_are_refused():
    with pytest.raises(ValueError, match="folders is empty"):
        plot_runs([])


@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_one_folder_needs_no_list(tmp_path, kind):
    folder = write_run(tmp_path / "run", [line(1)])
    paths = plot_runs(kind(folder))
    assert {path.parent for path in paths} == {folder / "pictures"}


def test_one_run_is_drawn_into_its_folder(tmp_path):
    lines = [line(update, (10.0 * update, 50.0)) for update in range(1, 6)]
    folder = write_run(tmp_path / "run", lines, num_seeds=2)
    figures = plt.get_fignums()
    paths = plot_runs([folder])
    assert {path.parent for path in paths} == {folder / "pictures"}
    assert min(side for size in sizes(paths) for side in size) > 400
    assert plt.get_fignums() == figures


def test_several_runs_are_drawn_into_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [write_run(tmp_path / name, [line(1)]) for name in ("a", "b")]
    folders.append(write_run(tmp_path / "c", [line(1)], env="Pendulum-v1"))
    paths = plot_runs(folders)
    assert {path.parent.resolve() for path in paths} == {tmp_path / "trpo_jax-pictures"}
    one_panel = sizes(plot_runs(folders[:2], tmp_path / "elsewhere" / "deep"))[0]
    assert sizes(paths)[0][0] > one_panel[0]
