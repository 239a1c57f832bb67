"""Test that the notebooks run, and that they are committed with their outputs."""

import base64
import io
import pathlib
import re
import sys

import nbformat
import numpy as np
import pytest
from PIL import Image

import trpo_jax
from notebooks.execute import execute

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
START = f"""
import sys, trpo_jax
print(sys.executable)
print(trpo_jax.__file__)
sys.path.append({str(pathlib.Path(__file__).parent)!r})
import compiling
compiling.compile_quickly()
"""

# Text that differs from one machine or run to the next: paths, addresses of objects.
VOLATILE = re.compile(r"(?<![\w.<])/\w[\w.-]*/|[A-Z]:\\|\b0x[0-9a-f]{6,}")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook):
    """The cell, type and bytes of each picture."""
    return [
        (index, kind, base64.b64decode(content))
        for index, cell in enumerate(code_cells(notebook))
        for output in cell.outputs
        for kind, content in output.get("data", {}).items()
        if kind.startswith("image/")
    ]


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 3


@pytest.fixture(scope="module")
def executed():
    """Run all notebooks in one kernel, which imports and compiles but once.

    Each begins without the names of those before it.
    """
    notebooks = {path: nbformat.read(path, as_version=4) for path in NOTEBOOKS}
    start = nbformat.v4.new_code_cell(START)
    cells = [start]
    for notebook in notebooks.values():
        for cell in code_cells(notebook):
            cell.outputs = []
        cells += [nbformat.v4.new_code_cell("%reset -f"), *code_cells(notebook)]
    for number, cell in enumerate(cells):  # notebooks number theirs alike
        cell.id = f"cell-{number}"
    execute(nbformat.v4.new_notebook(cells=cells))
    assert start.outputs[0].text.splitlines() == [sys.executable, trpo_jax.__file__]
    return notebooks


@pytest.mark.timeout(600)
@each_notebook
def test_it_runs_and_draws_what_is_committed(path, executed):
    committed = pictures(nbformat.read(path, as_version=4))
    drawn = pictures(executed[path])
    assert [picture[:2] for picture in drawn] == [picture[:2] for picture in committed]


@each_notebook
def test_it_is_short(path):
    notebook = nbformat.read(path, as_version=4)
    assert len(notebook.cells) <= 26
    assert max(len(cell.source.splitlines()) for cell in notebook.cells) <= 20
    assert path.stat().st_size < 400_000


@each_notebook
def test_it_is_committed_as_it_ran(path):
    notebook = nbformat.read(path, as_version=4)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    for cell in cells:
        assert not cell.metadata
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
            text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
            assert not VOLATILE.search(text), text


@each_notebook
def test_its_pictures_are_there(path):
    drawn = pictures(nbformat.read(path, as_version=4))
    assert len(drawn) >= 2
    for _, _, content in drawn:
        with Image.open(io.BytesIO(content)) as picture:
            assert min(picture.size) >= 200
            assert np.std(picture.convert("RGBA").convert("L")) > 10


@each_notebook
def test_the_readme_names_it(path):
    assert f"notebooks/{path.name}" in (ROOT / "README.md").read_text("utf-8")
