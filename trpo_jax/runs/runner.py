"""A run that writes down what it does, and that can be killed and resumed."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from trpo_jax.environments.suites import import_suite
from trpo_jax.errors import UsageTypeError
from trpo_jax.runs import checkpoints
from trpo_jax.runs.chunks import (
    Programs,
    advance,
    by_update,
    compile_programs,
    run_keys,
    state_type,
)
from trpo_jax.runs.config_file import (
    config_to_dict,
    read_config_values,
)
from trpo_jax.runs.evaluation import (
    compiling_evaluation,
    evaluate,
    in_words,
    summarize_returns,
)
from trpo_jax.runs.folder import RunFolder, system_info, write_json
from trpo_jax.runs.loggers import TensorBoardLogger, WandbLogger
from trpo_jax.runs.records import Logger, Records, summarize_seeds
from trpo_jax.runs.refusals import Refusals
from trpo_jax.runs.saver import Saver
from trpo_jax.runs.settings import RunSettings
from trpo_jax.runs.signals import Interruption, interruptible
from trpo_jax.runs.watch import Watcher, watching
from trpo_jax.training.config import TRPOConfig, check_config
from trpo_jax.training.state import TrainState
from trpo_jax.version import __version__


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
        ValueError: Before anything compiles: if the folder holds a run already or
            cannot be written, the config does not make a run, or a logger's package is
            not installed.
        RunError: On the way: if the disk is full, or nothing is finite any more.
        Interrupted: A KeyboardInterrupt, if a signal came.
    """
    settings = settings or RunSettings()
    _check(config, settings, loggers)
    run_folder = RunFolder(folder)
    run_folder.check_new(config)
    with run_folder.lock(make=True), watching(config, progress=progress) as watcher:
        run_folder.create(config, settings)
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
    recorded after it is cut off, and made again. If there were checkpoints and none is
    whole, nothing is touched. A run that is done is evaluated if need be, and returned.

    Args:
        folder: That `run` was given.
        config: That, too, if it has Python objects (a network, a schedule): a folder
            holds no code, and knows them by what they print as.
        loggers: As `run`.
        progress: As `run`.

    Returns:
        A `RunResult`.

    Raises:
        ValueError: If there is no run, it is of another config, version or shape (the
            message names what differs), no checkpoint is whole, or another process
            runs there.
        RunError: As `run`.
        Interrupted: As `run`.
    """
    run_folder = RunFolder(folder)
    config = run_folder.read_config(config)
    settings = run_folder.read_settings()
    _check(config, settings, loggers)
    with run_folder.lock(), watching(config, progress=progress) as watcher:
        return _Run(run_folder, config, settings, watcher).finish(loggers)


def train_in_passing(config: TRPOConfig, *, progress: bool = True) -> TrainState:
    """Train and evaluate as `run` does, but write nothing down; return the state.

    Raises:
        RunError: If nothing is finite any more.
    """
    settings, refusals = RunSettings(), Refusals(config.num_seeds)
    episodes = settings.evaluation_episodes
    with watching(config, progress=progress) as watcher:
        with compiling_evaluation(config, episodes):
            programs = compile_programs(config)
            state = programs.init(run_keys(config))
            for chunk in advance(programs, state, first=0, last=config.num_updates):
                watcher.watch(chunk)
                refusals.count(by_update(chunk.metrics))
                if refusals.in_every_seed >= settings.max_nonfinite_updates:
                    raise RunError(refusals.in_words(chunk.updates))
        if refusals.in_a_row.any():
            watcher.say(f"warning: {refusals.in_words(config.num_updates)}")
        assert chunk.state is not None  # the last one brings it
        watcher.say(in_words(_evaluate(config, chunk.state, num_episodes=episodes)))
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
        try:
            with interruptible(self.watcher.say) as interruption:
                state = self._train_what_is_left(loggers, interruption)
                if interruption.asked():
                    raise self._interrupted(interruption, self.config.num_updates)
            evaluation = self._evaluation(state)
            self.folder.log_event("finished", updates=self.config.num_updates)
        except OSError as error:
            raise self._stopped(str(error)) from error
        self.watcher.say(in_words(evaluation))
        return RunResult(state, self.config, self.folder.path, evaluation)

    def _train_what_is_left(
        self, loggers: Sequence[Logger], interruption: Interruption
    ) -> TrainState:
        restored = self._restore()
        first = restored[1] if restored else 0
        last = self.config.num_updates
        event = "resumed" if self.folder.events.exists() else "started"
        self.folder.log_event(event, updates=first, **system_info())
        if restored is not None and first == last:
            self.watcher.say(f"all {last:,} updates have been made")
            return restored[0]
        if first > 0:
            self.watcher.say(f"going on after update {first:,} of {last:,}")
        with compiling_evaluation(self.config, self.settings.evaluation_episodes):
            programs = compile_programs(self.config)
            state = restored[0] if restored else programs.init(run_keys(self.config))
            loggers = [*self._own_loggers(first), *loggers]
            return self._train(programs, state, first, loggers, interruption)

    def _restore(self) -> tuple[TrainState, int] | None:
        checkpoints.delete_partial(self.folder.checkpoints)
        return checkpoints.restore_last(
            self.folder.checkpoints,
            state_type(self.config),
            config_to_dict(self.config),
            __version__,
            self._warn,
            rename_damaged=True,
        )

    def _train(
        self,
        programs: Programs,
        state: TrainState,
        first: int,
        loggers: Sequence[Logger],
        interruption: Interruption,
    ) -> TrainState:
        """Make the updates after `first`; return the last state."""
        last, patience = self.config.num_updates, self.settings.max_nonfinite_updates
        records = Records(
            self.folder.metrics,
            self.folder.timing,
            updates=first,
            num_seeds=self.config.num_seeds,
            warn_fn=self._warn,
        )
        saver = Saver(self.folder.checkpoints, self.config, self.settings)
        updates, refusals = first, Refusals(self.config.num_seeds)
        with contextlib.closing(records), contextlib.closing(saver):
            for logger in loggers:
                records.tell(logger)
            for chunk in advance(
                programs,
                state,
                first=first,
                last=last,
                wants_state_fn=saver.due,
                boundary_every=self.settings.checkpoint_updates,
                stop_fn=interruption.asked,
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
                patient = refusals.in_a_row < patience
                refusals.count(metrics)
                if refusals.in_every_seed >= patience:
                    break
                if (patient & (refusals.in_a_row >= patience)).any():
                    self._warn(refusals.in_words(updates))
                whole = not refusals.in_every_seed or updates == last
                if chunk.state is not None and whole:
                    records.sync()
                    saver.save(chunk)
            saver.wait()
        if refusals.in_every_seed >= patience:
            raise self._stopped(refusals.in_words(updates))
        if updates < last:
            raise self._interrupted(interruption, updates)
        if refusals.in_a_row.any():
            self._warn(refusals.in_words(updates))
        assert chunk.state is not None  # the last one brings it
        return chunk.state

    def _stopped(self, reason: str) -> RunError:
        with contextlib.suppress(OSError):  # which may be the reason
            self.folder.log_event("stopped", reason=reason)
        return RunError(self._what_is_safe(reason))

    def _interrupted(self, interruption: Interruption, updates: int) -> Interrupted:
        assert interruption.number is not None
        self.folder.log_event("interrupted", updates=updates)
        return Interrupted(self._what_is_safe("interrupted"), interruption.number)

    def _what_is_safe(self, reason: str) -> str:
        saved = checkpoints.complete(self.folder.checkpoints)
        go_on = self.folder.how_to_resume(self.config)
        if not saved:
            return (
                f"{reason}. The run in {self.folder.path} has no checkpoint yet; to "
                f"start it again: {go_on}"
            )
        return (
            f"{reason}. The run in {self.folder.path} is saved up to update "
            f"{int(saved[-1].name):,}; to go on: {go_on}"
        )

    def _own_loggers(self, first: int) -> list[Logger]:
        path = self.folder.path
        loggers: list[Logger] = []
        try:
            if self.settings.tensorboard:
                steps = first * self.config.batch_size
                loggers.append(
                    TensorBoardLogger(path / "tensorboard", first_step=steps)
                )
            if self.settings.wandb is not None:
                values = config_to_dict(self.config)
                loggers.append(WandbLogger(path / "wandb", self.settings.wandb, values))
        except Exception as error:  # as when a logger raises later
            self._warn(f"left out: {type(error).__name__}: {error}")
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


def _check(
    config: TRPOConfig, settings: RunSettings, loggers: Sequence[Logger]
) -> None:
    """Raise with advice for what would fail later, before there is a folder."""
    check_config(config)
    state_type(config)
    if settings.tensorboard:
        import_suite("tensorboardX", extra="tensorboard")
    if settings.wandb is not None:
        import_suite("wandb", extra="wandb")
    for logger in loggers:
        if not isinstance(logger, Logger):
            raise UsageTypeError(
                f"a {type(logger).__name__} is no logger; give it a method "
                "log(env_steps, metrics)."
            )
