"""A run in the terminal: how far it is, how well it does, and how its updates fare."""

from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from trpo_jax.runs.chunks import Chunk, by_update
from trpo_jax.training.config import TRPOConfig

# Where there is no terminal to draw a bar in, a run prints about this many lines.
_NUM_PLAIN_LINES = 20


class ConsoleWatcher:
    """Shows a run as a bar; where there is no terminal, as plain lines."""

    def __init__(self, config: TRPOConfig, console: Console | None = None):
        """Show a run of `config`."""
        self._config = config
        self._console = console or Console()
        self._progress = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.description}", table_column=Column(ratio=1)),
            console=self._console,
            disable=not self._console.is_terminal,
            expand=True,
        )
        self._task = self._progress.add_task("compiling", total=config.total_timesteps)
        self._line_every = -(-config.num_updates // _NUM_PLAIN_LINES)
        self._return = np.full(config.num_seeds, np.nan)
        self._gone = False

    def __enter__(self) -> "ConsoleWatcher":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._gone = False  # its thread is to be stopped all the same
        self._show(self._progress.stop)

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        self._show(
            lambda: self._console.print(
                message, soft_wrap=True, markup=False, highlight=False
            )
        )

    def watch(self, chunk: Chunk) -> None:
        """Show the updates of a chunk."""
        self._show(lambda: self._tell(chunk))

    def _show(self, show_fn: Callable[[], None]) -> None:
        """Go on in silence when the terminal or the pipe is gone: the run does."""
        if not self._gone:
            try:
                show_fn()
            except (OSError, UnicodeError, SystemExit):  # the last is Rich's for a pipe
                self._gone = True

    def _tell(self, chunk: Chunk) -> None:
        metrics = by_update(chunk.metrics)
        first = chunk.updates - len(metrics)
        steps = self._config.num_seeds * self._config.batch_size * len(metrics)
        speed = steps / chunk.seconds
        for update, one in enumerate(metrics, start=first + 1):
            ended = np.broadcast_to(one["episode_count"] > 0, self._return.shape)
            self._return = np.where(ended, one["episode_return"], self._return)
            last = update == self._config.num_updates
            shown = update % self._line_every == 0 or last
            if shown and not self._console.is_terminal:
                env_steps = update * self._config.batch_size
                self.say(f"{env_steps:>11,} steps  {self._describe(one, speed)}")
        self._progress.update(
            self._task,
            completed=chunk.updates * self._config.batch_size,
            description=self._describe(metrics[-1], speed),
        )

    def _describe(self, metrics: dict[str, np.ndarray], speed: float) -> str:
        known = self._return[np.isfinite(self._return)]
        returns = f"{known.mean():.2f}" if known.size else "–"
        if known.size > 1:
            returns += f" ± {known.std(ddof=1):.2f}"
        mean = {name: np.mean(value) for name, value in metrics.items()}
        return (
            f"return {returns}  KL {mean['kl']:.4f} of {mean['max_kl']:.4f}  "
            f"CG {mean['cg_relative_residual']:.0e}  "
            f"fraction {mean['accepted_fraction']:.2g}  "
            f"entropy {mean['entropy']:.2f}  "
            f"explained {mean['explained_variance']:.2f}  "
            f"{speed:,.0f} steps/s"
        )
