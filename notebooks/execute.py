"""Run the notebooks from top to bottom, and write them with what they put out.

    python notebooks/execute.py

What would differ from one run to the next is left out: times, versions, counters.
"""

import os
import pathlib
import sys
import tempfile

import nbclient
import nbformat

import trpo_jax

FOLDER = pathlib.Path(__file__).parent
SECONDS = 150  # for a cell


def execute(notebook: nbformat.NotebookNode) -> None:
    """Run all cells in a fresh kernel of this Python, which sees this `trpo_jax`.

    It starts in an empty folder. The outputs are put into the notebook.
    """
    package = pathlib.Path(trpo_jax.__file__).parents[1]
    with tempfile.TemporaryDirectory() as folder:
        client = nbclient.NotebookClient(
            notebook,
            timeout=SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            record_timing=False,
            coalesce_streams=True,
        )
        client.execute(env={**os.environ, "PYTHONPATH": str(package)})


def main() -> None:
    """Run the notebooks named on the command line, or all of them."""
    for path in map(pathlib.Path, sys.argv[1:] or sorted(FOLDER.glob("*.ipynb"))):
        notebook = nbformat.read(path, as_version=4)
        execute(notebook)
        notebook.metadata = {
            "kernelspec": {
                "display_name": "Python 3",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
        }
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
