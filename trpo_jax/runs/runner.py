"""A run that writes down what it does, and that can be killed and resumed."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from trpo_jax.environments import make_environment
from trpo_jax.runs import checkpoints
from trpo_jax.runs.chunks import (
    Programs,
    advance,
    by_update,
    compile_programs,
    run_keys,
    state_type,
)
from trpo_jax.runs.config_file import config_to_dict, read_config_values
from trpo_jax.runs.evaluation import evaluate, in_words, summarize_returns
from trpo_jax.runs.folder import RunFolder, surroundings, write_json
from trpo_jax.runs.loggers import TensorBoardLogger, WandbLogger
from trpo_jax.runs.records import Logger, Records, summarize_seeds
from trpo_jax.runs.saver import Saver
from trpo_jax.runs.settings import RunSettings
from trpo_jax.runs.signals import interruptible
from trpo_jax.runs.version import __version__
from trpo_jax.runs.watch import Watcher, watching
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.step import TrainState
from trpo_jax.trust_region import UpdateStatus


class RunResult(NamedTuple):
    """A run that came to its end.

    Attributes:
        state: The last state; with several seeds, leaves [num_seeds, …].
        config: What was run.
        folder: Where its records are.
        evaluation: What is in evaluation.json.
    """

    state: TrainState
    config: TRPOConfig
    folder: pathlib.Path
    evaluation: dict[str, Any]


class RunError(RuntimeError):
    """Something on the way stopped a run; the message says what is safe."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped a run, which is saved.

    Attributes:
        signal: Its number.
    """

    def __init__(self, message: str, number: int):
        """Say `message`."""
        super().__init__(message)
        self.signal = number


def run(
    config: TRPOConfig,
    folder: str | pathlib.Path,
    settings: RunSettings | None = None,
    *,
    loggers: Sequence[Logger] = (),
    progress: bool = True,
) -> RunResult:
    """Train as `train(config)` does, and write down what happens in a new folder.

    The device is not kept waiting: it works on the next updates while the host writes
    of the last. SIGINT or SIGTERM end the run after the updates in hand, saved; a
    second one ends it at once. Killed at any instant, it is gone on with by `resume`,
    to the same bits on the same kind of machine.

    Args:
        config: The run.
        folder: A folder that is not there yet, or empty.
        settings: What is to be recorded.
        loggers: Who else is told of each update. One that raises is given up with a
            warning, one that blocks loses what it does not take; the run goes on.
        progress: Whether to show how it goes.

    Returns:
        A `RunResult`.

    Raises:
        ValueError: Before anything compiles: if the folder holds a run already, cannot
            be written, or the environment or a logger is not to be had.
        RunError: On the way: if the disk is full, or nothing is finite any more.
        Interrupted: A KeyboardInterrupt, if a signal came.
    """
    settings = settings or RunSettings()
    make_environment(config.env)
    _check_loggers(loggers)
    run_folder = RunFolder(folder)
    with run_folder.lock(make=True), watching(config, progress=progress) as watcher:
        run_folder.create(config, settings.to_dict())
        return _Run(run_folder, config, settings, watcher).finish(loggers)


def resume(
    folder: str | pathlib.Path,
    config: TRPOConfig | None = None,
    *,
    loggers: Sequence[Logger] = (),
    progress: bool = True,
) -> RunResult:
    """Go on with the run in a folder, from its newest whole checkpoint.

    A damaged checkpoint is named and left aside, and an older one used; what was
    recorded after it is cut off, and made again. A run that is done is evaluated if
    need be, and returned.

    Args:
        folder: That `run` was given.
        config: That, too, if it has Python objects (a network, a schedule): a folder
            holds no code.
        loggers: As `run`.
        progress: As `run`.

    Returns:
        A `RunResult`.

    Raises:
        ValueError: If there is no run, it is of another config, version or shape (the
            message names what differs), or another process runs there.
        RunError: As `run`.
        Interrupted: As `run`.
    """
    run_folder = RunFolder(folder)
    config = run_folder.read_config(config)
    _check_loggers(loggers)
    settings = RunSettings(**read_config_values(run_folder.settings))
    make_environment(config.env)
    with run_folder.lock(), watching(config, progress=progress) as watcher:
        return _Run(run_folder, config, settings, watcher).finish(loggers)


def train_in_passing(config: TRPOConfig, *, progress: bool = True) -> TrainState:
    """Train and evaluate as `run` does, but write nothing down; return the state."""
    programs = compile_programs(config)
    state = programs.init(run_keys(config))
    with watching(config, progress=progress) as watcher:
        for chunk in advance(programs, state, first=0, last=config.num_updates):
            watcher.watch(chunk)
        assert chunk.state is not None  # the last one brings it
        watcher.say(in_words(_evaluate(config, chunk.state, num_episodes=128)))
    return chunk.state


@dataclasses.dataclass(frozen=True)
class _Run:
    """A run in its folder, which this process holds."""

    folder: RunFolder
    config: TRPOConfig
    settings: RunSettings
    watcher: Watcher

    def finish(self, loggers: Sequence[Logger]) -> RunResult:
        """Restore what there is, train what is left, and evaluate."""
        restored = self._restore()
        first = restored[1] if restored else 0
        last = self.config.num_updates
        event = "resumed" if self.folder.events.exists() else "started"
        self.folder.log_event(event, updates=first, **surroundings())
        if 0 < first < last:
            self.watcher.say(f"going on after update {first:,} of {last:,}")
        try:
            if restored is not None and first == last:
                state = restored[0]
            else:
                programs = compile_programs(self.config)
                state = (
                    restored[0] if restored else programs.init(run_keys(self.config))
                )
                loggers = [*self._own_loggers(first), *loggers]
                state = self._train(programs, state, first, loggers)
            evaluation = self._evaluation(state)
            self.folder.log_event("finished", updates=last)
        except OSError as error:
            raise RunError(self._what_is_safe(str(error))) from error
        self.watcher.say(in_words(evaluation))
        return RunResult(state, self.config, self.folder.path, evaluation)

    def _restore(self) -> tuple[TrainState, int] | None:
        checkpoints.delete_partial(self.folder.checkpoints)
        return checkpoints.restore_newest(
            self.folder.checkpoints,
            state_type(self.config),
            config_to_dict(self.config),
            __version__,
            self._warn,
        )

    def _train(
        self,
        programs: Programs,
        state: TrainState,
        first: int,
        loggers: Sequence[Logger],
    ) -> TrainState:
        """Make the updates after `first`; return the last state."""
        last = self.config.num_updates
        records = Records(
            self.folder.metrics, self.folder.timing, updates=first, warn=self._warn
        )
        saver = Saver(self.folder.checkpoints, self.config, self.settings)
        updates, refused = first, 0
        with (
            contextlib.closing(records),
            contextlib.closing(saver),
            interruptible(self.watcher.say) as interruption,
        ):
            for logger in loggers:
                records.tell(logger)
            for chunk in advance(
                programs,
                state,
                first=first,
                last=last,
                state_wanted=saver.due,
                boundary_every=self.settings.checkpoint_updates,
                stop=interruption.asked,
            ):
                metrics = by_update(chunk.metrics)
                records.write(
                    [
                        {"update": updates + i, **summarize_seeds(one)}
                        for i, one in enumerate(metrics, start=1)
                    ],
                    chunk.seconds,
                )
                self.watcher.watch(chunk)
                saver.observe(np.asarray(chunk.metrics.episode_return))
                updates = chunk.updates
                refused = _non_finite_in_a_row(metrics, refused)
                if refused >= self.settings.patience:
                    break
                if chunk.state is not None and (not refused or updates == last):
                    records.sync()
                    saver.save(chunk)
            saver.wait()
        if updates < last:
            raise self._stopped(updates, refused, interruption.number)
        assert chunk.state is not None  # the last one brings it
        return chunk.state

    def _stopped(
        self, updates: int, refused: int, signal_number: int | None
    ) -> RunError | Interrupted:
        """Return why training stopped before its end."""
        if signal_number is not None:
            self.folder.log_event("interrupted", updates=updates)
            return Interrupted(self._what_is_safe("interrupted"), signal_number)
        reason = (
            f"the last {refused} updates met NaN or infinity, from update "
            f"{updates - refused + 1:,} on, in every seed; look at the environment's "
            "observations and rewards"
        )
        return RunError(self._what_is_safe(reason))

    def _what_is_safe(self, reason: str) -> str:
        saved = checkpoints.complete(self.folder.checkpoints)
        state = f"saved up to update {int(saved[-1].name):,}" if saved else "not saved"
        return (
            f"{reason}. The run in {self.folder.path} is {state}; to go on: "
            f"python -m trpo_jax resume {self.folder.path}"
        )

    def _own_loggers(self, first: int) -> list[Logger]:
        loggers: list[Logger] = []
        if self.settings.tensorboard:
            folder = self.folder.path / "tensorboard"
            steps = first * self.config.batch_size
            loggers.append(TensorBoardLogger(folder, first_step=steps))
        if self.settings.wandb is not None:
            folder, values = self.folder.path / "wandb", config_to_dict(self.config)
            loggers.append(WandbLogger(folder, self.settings.wandb, values))
        return loggers

    def _evaluation(self, state: TrainState) -> dict[str, Any]:
        """Evaluate, unless that was done."""
        if self.folder.evaluation.exists():
            return read_config_values(self.folder.evaluation)
        episodes = self.settings.evaluation_episodes
        evaluation = _evaluate(self.config, state, num_episodes=episodes)
        write_json(self.folder.evaluation, evaluation)
        return evaluation

    def _warn(self, message: str) -> None:
        self.folder.log_event("warning", message=message)
        self.watcher.say(f"warning: {message}")


def _evaluate(
    config: TRPOConfig, state: TrainState, *, num_episodes: int
) -> dict[str, Any]:
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    return summarize_returns(config, evaluate(config, state, key, num_episodes))


def _non_finite_in_a_row(metrics: list[dict[str, np.ndarray]], before: int) -> int:
    """Return how many updates up to the last were refused for it, in every seed."""
    for one in metrics:
        refused = np.all(one["status"] == UpdateStatus.NON_FINITE)
        before = before + 1 if refused else 0
    return before


def _check_loggers(loggers: Sequence[Logger]) -> None:
    for logger in loggers:
        if not isinstance(logger, Logger):
            raise TypeError(
                f"a {type(logger).__name__} is no logger; give it a method "
                "log(env_steps, metrics)."
            )
