"""Plots of runs, from the records in their folders."""

import os
from collections.abc import Sequence
from pathlib import Path

from trpo_jax.errors import UsageError
from trpo_jax.pictures.curves import read_run


def plot_runs(
    folders: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
) -> list[Path]:
    """Draw the learning curves and diagnostics of runs into two common pictures.

    `learning-curves.png` shows the episode return, a panel for each environment;
    `diagnostics.png` the KL over states against δ and the share of states beyond it,
    gain and KL over their predictions, the gain over its standard error, the residual
    of conjugate gradient, the accepted fraction, the entropy, and the critic's
    explained variance and loss. Curves are means over seeds with a 95 % interval (on a
    logarithmic axis that of the logarithm, by the delta method), smoothed over 4 % of a
    run's updates. A run in progress is drawn as far as it has come.

    Args:
        folders: One or more folders of runs, each with `config.json` and
            `metrics.jsonl`.
        output: The folder for the pictures, made if it does not exist; by default
            `pictures` inside the folder of a single run, and `trpo_jax-pictures` in the
            current folder for several.

    Returns:
        The paths of the two pictures.

    Raises:
        UsageError: If there are no folders, or one of them holds no run, no metrics
            yet, or a damaged line (the message names file and line).
    """
    # Here, because Matplotlib takes half a second to import.
    from trpo_jax.pictures.figures import draw_diagnostics, draw_returns

    if isinstance(folders, str | os.PathLike):
        folders = [folders]
    if not folders:
        raise UsageError("folders is empty; write the folder of at least one run.")
    runs = [read_run(Path(folder)) for folder in folders]
    if output is None:
        single = runs[0].folder / "pictures"
        output = single if len(runs) == 1 else "trpo_jax-pictures"
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    paths = [output / "learning-curves.png", output / "diagnostics.png"]
    draw_returns(runs, paths[0])
    draw_diagnostics(runs, paths[1])
    return paths
