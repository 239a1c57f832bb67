"""Saving checkpoints in a thread while the run goes on."""

import functools
import pathlib
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from trpo_jax.runs import checkpoints
from trpo_jax.runs.chunks import Chunk, gather
from trpo_jax.runs.config_file import config_to_dict
from trpo_jax.runs.processes import is_writer, on_writer
from trpo_jax.runs.settings import RunSettings
from trpo_jax.training.components import make_components
from trpo_jax.training.config import TRPOConfig


class Saver:
    """Saves states in a thread, one after the other, and prunes old ones."""

    def __init__(
        self,
        folder: pathlib.Path | None,
        config: TRPOConfig,
        settings: RunSettings,
        *,
        shared: bool = False,
    ):
        """Save states of `config` in `folder`, as often as `settings` say.

        Without a folder, as where another process has it, no state is ever due. A
        folder that all processes see may be `shared`: then each writes its own part.
        """
        self._folder = folder
        self._shared = shared
        self._closed = threading.Event()
        self._gather_fn = functools.partial(gather, config)
        self._config = config_to_dict(config)
        self._action_space = str(make_components(config).environment.action_space)
        # Read here: a `with jax.enable_x64(…)` block does not reach other threads.
        self._jax_settings = checkpoints.jax_settings()
        self._settings = settings
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._saving: Future[Any] | None = None
        self._returns: list[float] = []
        self._costs: list[list[float]] = []
        self._limits = config.cost_limits
        self._evaluates = settings.evaluation_updates is not None
        # The best evaluated state, until the next checkpoint is due, and its score,
        # which a resumed run has to exceed as well. All processes decide alike.
        self._best: Chunk | None = None
        self._best_score = on_writer(
            lambda: -np.inf if folder is None else checkpoints.best_score(folder)
        )
        self._last_due = time.monotonic()

    def due(self, updates: int) -> bool:
        """Return whether the state after so many updates should be saved."""
        if self._folder is None:
            return False
        every = self._settings.checkpoint_updates
        if every is not None and updates % every == 0:
            return True
        now, minutes = time.monotonic(), self._settings.checkpoint_minutes
        if minutes is None or now < self._last_due + 60 * minutes:
            return False
        self._last_due = now
        return True

    def add_returns(self, chunk: Chunk) -> None:
        """Add a chunk to the next checkpoint's score, or keep it if it is the best.

        If the run evaluates, the best evaluated state is saved with the next checkpoint
        that is due, and a state that was not evaluated has no score.
        """
        if not self._evaluates:
            returns = np.asarray(chunk.metrics.episode_return)
            costs = chunk.metrics.episode_cost
        else:
            self._returns, self._costs = [], []
            if chunk.evaluation is None:
                return
            returns, costs = map(np.asarray, chunk.evaluation)
        ended = np.isfinite(returns)
        self._returns.extend(returns[ended].tolist())
        if self._limits is not None:
            self._costs.extend(np.asarray(costs)[ended].tolist())
        score = self._score() if self._evaluates and self._settings.keep_best else None
        if score is not None and score > self._best_score and chunk.state is not None:
            self._best, self._best_score = chunk, score

    def _score(self) -> float | None:
        """Return the mean return; None if unknown, or if a cost is above its limit."""
        if not self._returns:
            return None
        if self._limits is not None:
            kept = np.mean(self._costs, axis=0) <= np.array(self._limits)
            if not kept.all():  # or a cost is NaN
                return None
        return float(np.mean(self._returns))

    def save(self, chunk: Chunk) -> None:
        """Start saving a chunk's state, once the one before is saved.

        Before it, the best evaluated state since the checkpoint before. Called in every
        process: each holds its own environments.

        Raises:
            OSError: If the one before could not be saved.
        """
        best, self._best = self._best, None
        if best is not None and best.updates < chunk.updates:
            self._start(best, self._best_score)
        self._start(chunk, self._score())
        self._returns, self._costs = [], []

    def _start(self, chunk: Chunk, score: float | None) -> None:
        assert chunk.state is not None
        state = chunk.state if self._shared else self._gather_fn(chunk.state)
        if self._folder is None:
            return
        self.wait()
        manifest = checkpoints.Manifest(
            chunk.updates, score, self._config, self._jax_settings, self._action_space
        )
        leaves = checkpoints.leaves_by_path(state)
        self._saving = self._pool.submit(self._save, leaves, manifest)

    def wait(self) -> None:
        """Wait until the last state is saved; OSError if it could not be."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.result()

    def close(self) -> None:
        """Wait for the thread to end, whether or not it fails.

        It gives up a checkpoint that other processes have not done their part of.
        """
        self._closed.set()
        self._pool.shutdown()

    def _save(
        self, leaves: dict[str, jax.Array], manifest: checkpoints.Manifest
    ) -> None:
        assert self._folder is not None
        if self._shared:
            ended_fn = self._closed.is_set
            checkpoints.save_shared(self._folder, leaves, manifest, ended_fn)
        else:
            checkpoints.save(self._folder, leaves, manifest)
        if is_writer():
            last, best = self._settings.keep_last, self._settings.keep_best
            checkpoints.prune(self._folder, last=last, best=best)
