"""Plots of sweeps: the return against each swept field, and learning curves."""

import os
from pathlib import Path

from trpo_jax.errors import UsageError
from trpo_jax.sweeps.result import SweepResult
from trpo_jax.sweeps.runner import load_sweep


def plot_sweep(
    sweep: SweepResult | str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    num_curves: int = 5,
) -> list[Path]:
    """Draw a sweep into two pictures.

    `fields.png` has a panel for each swept field: the mean return in evaluation of each
    setting against its value, with a 95 % interval over seeds. `best-settings.png`
    has the learning curves of the best settings, means over seeds with a 95 % interval,
    smoothed over 4 % of the updates. A sweep in progress is drawn as far as it has
    come.

    Args:
        sweep: The folder of a sweep, or its result.
        output: The folder for the pictures, made if it does not exist; by default
            `pictures` inside the folder of the sweep.
        num_curves: Number of the best settings whose learning curves are drawn.

    Returns:
        The paths of the two pictures.

    Raises:
        UsageError: If the folder holds no sweep, no run of it is finished yet, or a
            result without a folder has no `output`.
    """
    # Here, because Matplotlib takes half a second to import.
    from trpo_jax.pictures.sweep_figures import draw_best, draw_fields

    result = sweep if isinstance(sweep, SweepResult) else load_sweep(os.fspath(sweep))
    if (result.rungs < 0).all():
        raise UsageError(
            f"the sweep in {result.folder} has no finished setting yet; wait for the "
            "first one, or resume the sweep."
        )
    if output is None and result.folder is None:
        raise UsageError(
            "the sweep has no folder; write output, the folder for the pictures."
        )
    folder = Path(output) if output is not None else Path(result.folder, "pictures")  # type: ignore[arg-type]
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "fields.png", folder / "best-settings.png"]
    draw_fields(result, paths[0])
    draw_best(result, paths[1], num_curves)
    return paths
