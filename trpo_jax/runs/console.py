"""Live progress of a run."""

import contextlib
from collections.abc import Iterator

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
from trpo_jax.training.config_checks import UPDATES_OF_FIELDS, UPDATES_WITH_RADIUS

# About how many lines a run prints without a terminal to draw a bar in.
_NUM_PLAIN_LINES = 20

# On Breakout, solves that ended above it had found less than half of gᵀx.
_POOR_RESIDUAL = 0.3


class Watcher:
    """Shows a run as a progress bar; where there is no terminal, as plain lines.

    Return, costs, KL, entropy and speed of the last update, CG residual and accepted
    fraction where it has them, and the latest evaluation. Where no episode ended, the
    return before is shown, and so are the costs.
    """

    def __init__(
        self,
        config: TRPOConfig,
        console: Console | None = None,
        *,
        progress: bool = True,
    ):
        """Show a run of `config`; nothing without `progress`."""
        self._config = config
        self._console = console or Console(quiet=not progress)
        self._progress = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.description}", table_column=Column(ratio=1)),
            console=self._console,
            disable=not (progress and self._console.is_terminal),
            expand=True,
        )
        self._task = self._progress.add_task("compiling", total=config.total_timesteps)
        self._line_every = -(-config.num_updates // _NUM_PLAIN_LINES)
        self._return = np.full(config.num_seeds, np.nan)
        self._costs: dict[str, np.ndarray] = {}
        self._evaluation: np.ndarray | None = None

    def __enter__(self) -> "Watcher":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress.disable:  # Rich before 15 would print an empty line
            return
        with self._quiet_if_gone():
            self._progress.stop()

    def notify(self, message: str) -> None:
        """Print a line above the bar; may be called from any thread."""
        with self._quiet_if_gone():
            self._console.print(message, soft_wrap=True, markup=False, highlight=False)

    @contextlib.contextmanager
    def _quiet_if_gone(self) -> Iterator[None]:
        """Stop showing, but not the run, if the terminal is gone."""
        try:
            yield
        except (OSError, UnicodeError, SystemExit):  # the last is Rich's for a pipe
            self._console.quiet = True

    def watch(self, chunk: Chunk) -> None:
        """Show the updates of a chunk."""
        metrics = by_update(chunk)
        steps = self._config.num_seeds * self._config.batch_size * len(metrics)
        speed = steps / chunk.seconds
        for one in metrics:
            update = one["update"]
            ended = np.broadcast_to(one["episode_count"] > 0, self._return.shape)
            self._return = np.where(ended, one["episode_return"], self._return)
            for name in (name for name in one if name.startswith("episode_cost")):
                before = self._costs.get(name, np.full_like(self._return, np.nan))
                self._costs[name] = np.where(ended, one[name], before)
            self._evaluation = one.get("evaluation_return", self._evaluation)
            last = update == self._config.num_updates
            shown = update % self._line_every == 0 or last
            if shown and not self._console.is_terminal:
                env_steps = update * self._config.batch_size
                self.notify(f"{env_steps:>11,} steps  {self._describe(one, speed)}")
        with self._quiet_if_gone():
            self._progress.update(
                self._task,
                completed=chunk.updates * self._config.batch_size,
                description=self._describe(metrics[-1], speed),
            )

    def _describe(self, metrics: dict[str, np.ndarray], speed: float) -> str:
        returns = _mean_and_std(self._return)
        if not np.any(metrics["episode_count"]):
            returns += " (no episode ended)"
        if self._evaluation is not None:
            returns += f"  evaluation {_mean_and_std(self._evaluation)}"
        limits = self._config.cost_limits or [None] * len(self._costs)
        for cost, limit in zip(self._costs.values(), limits, strict=True):
            of_limit = "" if limit is None else f" of {limit:g}"
            returns += f"  cost {_mean_and_std(cost)}{of_limit}"
        mean = {name: np.mean(value) for name, value in metrics.items()}
        solve = ""
        if self._config.update in UPDATES_OF_FIELDS["cg_iterations"]:
            residual = mean["cg_relative_residual"]
            poor = " (poor)" if residual > _POOR_RESIDUAL else ""
            solve = (
                f"CG {residual:.0e} in {mean['cg_iterations']:.0f}{poor}  "
                f"fraction {mean['accepted_fraction']:.2g}  "
            )
        # For the others δ bounds nothing.
        bounded = self._config.update in UPDATES_WITH_RADIUS
        bound = f" of {mean['max_kl']:.4f}" if bounded else ""
        return (
            f"return {returns}  KL {mean['kl']:.4f}{bound}  "
            f"{solve}entropy {mean['entropy']:.2f}  "
            f"explained {mean['explained_variance']:.2f}  "
            f"{speed:,.0f} steps/s"
        )


def _mean_and_std(by_seed: np.ndarray) -> str:
    """Return the mean of the numbers that are finite, ± their standard deviation."""
    known = by_seed[np.isfinite(by_seed)]
    text = f"{known.mean():.2f}" if known.size else "–"
    return f"{text} ± {known.std(ddof=1):.2f}" if known.size > 1 else text
