"""Loggers: the protocol, TensorBoard, Weights & Biases, and the thread they run in."""

import contextlib
import functools
import math
import pathlib
import queue
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from trpo_jax.extras import import_extra

CAPACITY = 10_000
"""Updates that a logger may lag behind before updates are dropped."""

PATIENCE_SECONDS = 10.0
"""Seconds that a logger may take over one update when the run has ended."""

Row = dict[str, Any]
"""An update's metrics: numbers by name, lists of one for each seed, None for NaN."""


@runtime_checkable
class Logger(Protocol):
    """Another destination for metrics: TensorBoard, or one of your own.

    If it is a context manager, it is entered when the run starts and left when it ends.
    """

    def log(self, env_steps: int, metrics: Mapping[str, int | float]) -> None:
        """Log the finite numbers of one update, made after so many steps.

        With several seeds there are means, standard deviations (`<name>_std`), and each
        seed's returns, costs, multipliers, KL, entropy, explained variance and status,
        as `episode_return/seed_0`.
        """


def scalars(row: Row) -> dict[str, int | float]:
    """Return the finite numbers of a row, those of each seed by a name of their own."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, list):
            name = name.removesuffix("_by_seed")
            found |= {f"{name}/seed_{i}": one for i, one in enumerate(value)}
        else:
            found[name] = value
    return {name: value for name, value in found.items() if value is not None}


class BackgroundLogger:
    """Passes rows to a `Logger` in a thread, so that a slow one does not delay the run.

    A logger that raises is dropped, and rows that do not fit into the queue of one that
    lags behind are dropped. `warn_fn` is called once for each.
    """

    def __init__(self, logger: Logger, warn_fn: Callable[[str], None]):
        """Start the thread."""
        self._logger = logger
        self._warn_fn = warn_fn
        self._name = type(logger).__name__
        self._rows: queue.Queue[Row | None] = queue.Queue(CAPACITY)
        self._dropped = 0
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def log(self, row: Row) -> None:
        """Queue one update's metrics, without waiting."""
        if not self._thread.is_alive():
            return
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            if not self._dropped:
                self._warn_fn(
                    f"{self._name} has fallen {self._rows.maxsize:,} updates behind; "
                    "updates that it cannot take in time are dropped there."
                )
            self._dropped += 1

    def close(self) -> None:
        """Wait until the queue is empty, as long as the logger takes rows from it."""
        with contextlib.suppress(queue.Full):
            self._rows.put(None, timeout=PATIENCE_SECONDS)
        waiting = math.inf
        while self._thread.is_alive() and self._rows.qsize() < waiting:
            waiting = self._rows.qsize()
            self._thread.join(PATIENCE_SECONDS)
        if self._thread.is_alive():
            self._warn_fn(
                f"{self._name} took no update for {PATIENCE_SECONDS} s; it is dropped."
            )

    def _work(self) -> None:
        try:
            with contextlib.ExitStack() as stack:
                if hasattr(self._logger, "__exit__"):
                    stack.enter_context(self._logger)  # type: ignore[arg-type]
                while (row := self._rows.get()) is not None:
                    self._logger.log(row["env_steps"], scalars(row))
        except Exception as error:  # no failure of a logger ends the run
            self._warn_fn(
                f"{self._name} failed and is dropped: {type(error).__name__}: {error}"
            )


class TensorBoardLogger(contextlib.AbstractContextManager):
    """Writes event files for `tensorboard --logdir FOLDER`."""

    def __init__(self, folder: str | pathlib.Path, *, first_step: int = 0):
        """Open an event file in `folder`.

        Args:
            folder: The folder; made if it does not exist.
            first_step: Environment steps made already; TensorBoard hides later ones in
                earlier files.

        Raises:
            UsageError: If tensorboardX is not installed.
        """
        module = import_extra("tensorboardX", extra="tensorboard")
        self._writer = module.SummaryWriter(str(folder), purge_step=first_step + 1)

    def log(self, env_steps: int, metrics: Mapping[str, int | float]) -> None:
        """Write one update's numbers."""
        for name, value in metrics.items():
            if name not in ("update", "env_steps"):
                self._writer.add_scalar(name, value, env_steps)

    def __exit__(self, *error: object) -> None:
        self._writer.close()


class WandbLogger:
    """Writes a Weights & Biases run; offline with WANDB_MODE=offline."""

    def __init__(
        self, folder: str | pathlib.Path, project: str, config: Mapping[str, Any]
    ):
        """Prepare a run, or continue the one that was logged from the same folder.

        Entering the context starts it, which may wait for a server.

        Args:
            folder: The folder for its files; made if it does not exist.
            project: The Weights & Biases project.
            config: Values to show as the run's config.

        Raises:
            UsageError: If wandb is not installed.
        """
        module = import_extra("wandb", extra="wandb")
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
