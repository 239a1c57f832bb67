"""Metrics for TensorBoard and Weights & Biases, by their own writers."""

import functools
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any

from trpo_jax.environments.suites import import_suite


class TensorBoardLogger:
    """Writes event files for `tensorboard --logdir FOLDER`."""

    def __init__(self, folder: str | pathlib.Path, *, first_step: int = 0):
        """Open an event file in `folder`.

        Args:
            folder: Where to; made if it is not there.
            first_step: Environment steps made already; what earlier files say of later
                ones is hidden.

        Raises:
            ValueError: If tensorboardX is not installed.
        """
        module = import_suite("tensorboardX", extra="tensorboard")
        self._writer = module.SummaryWriter(str(folder), purge_step=first_step + 1)

    def log(self, env_steps: int, metrics: Mapping[str, int | float]) -> None:
        """Write one update's numbers."""
        for name, value in metrics.items():
            if name not in ("update", "env_steps"):
                self._writer.add_scalar(name, value, env_steps)

    def __enter__(self) -> "TensorBoardLogger":
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()


class WandbLogger:
    """Writes a Weights & Biases run; offline with WANDB_MODE=offline."""

    def __init__(
        self, folder: str | pathlib.Path, project: str, config: Mapping[str, Any]
    ):
        """Name the run, or go on with the one of the same folder.

        Entering it starts it, which can wait for a server.

        Args:
            folder: Where its files go; made if it is not there.
            project: What it belongs to.
            config: What to list beside it.

        Raises:
            ValueError: If wandb is not installed.
        """
        module = import_suite("wandb", extra="wandb")
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        id_file = folder / "run_id"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex)
        self._start_fn = functools.partial(
            module.init,
            project=project,
            dir=str(folder),
            id=id_file.read_text(),
            resume="allow",
            config=dict(config),
        )

    def log(self, env_steps: int, metrics: Mapping[str, int | float]) -> None:
        """Write one update's numbers."""
        self._run.log(dict(metrics), step=env_steps)

    def __enter__(self) -> "WandbLogger":
        self._run = self._start_fn()
        return self

    def __exit__(self, *error: object) -> None:
        self._run.finish(exit_code=int(error[0] is not None))
