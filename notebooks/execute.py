"""Execute the notebooks and save them with their outputs.

    python notebooks/execute.py

Metadata that differs from run to run, such as times and versions, is left out.
"""

import os
import pathlib
import sys
import tempfile

import nbclient
import nbformat

import trpo_jax

FOLDER = pathlib.Path(__file__).parent
SECONDS = 150  # time limit of a cell


def execute(notebook: nbformat.NotebookNode) -> None:
    """Run all cells in a new kernel, and store the outputs in the notebook.

    The kernel uses this Python and this `trpo_jax`, and starts in an empty folder.
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
    """Execute the notebooks named on the command line, or all of them."""
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
