"""A run that writes down what it does, and that can be killed and resumed."""

import contextlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from trpo_jax.environments import make_environment
from trpo_jax.runs import checkpoints
from trpo_jax.runs.chunks import (
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
    run_folder.create(config, settings.to_dict())
    return _run(run_folder, config, settings, loggers, progress)


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
    return _run(run_folder, config, settings, loggers, progress)


def train_in_passing(config: TRPOConfig, *, progress: bool = True) -> TrainState:
    """Train and evaluate as `run` does, but write nothing down; return the state."""
    programs = compile_programs(config)
    state = programs.init(run_keys(config))
    with watching(config, progress=progress) as watcher:
        for chunk in advance(programs, state, first=0, last=config.num_updates):
            watcher.watch(chunk)
            state = chunk.state or state
        watcher.say(in_words(summarize_returns(config, _play(config, state, 128))))
    return state


def _run(
    folder: RunFolder,
    config: TRPOConfig,
    settings: RunSettings,
    loggers: Sequence[Logger],
    progress: bool,
) -> RunResult:
    with folder.lock(), watching(config, progress=progress) as watcher:

        def warn(message: str) -> None:
            folder.log_event("warning", message=message)
            watcher.say(f"warning: {message}")

        checkpoints.delete_partial(folder.checkpoints)
        state, first = checkpoints.restore_newest(
            folder.checkpoints,
            state_type(config),
            config_to_dict(config),
            __version__,
            warn,
        ) or (None, 0)
        event = "resumed" if folder.events.exists() else "started"
        folder.log_event(event, updates=first, **surroundings())
        if 0 < first < config.num_updates:
            watcher.say(f"going on after update {first:,} of {config.num_updates:,}")
        if state is None or first < config.num_updates:
            loggers = [*_own_loggers(folder, config, settings, first), *loggers]
            try:
                state = _train(
                    folder, config, settings, loggers, watcher, warn, state, first
                )
            except OSError as error:
                raise RunError(_what_is_safe(folder, str(error))) from error
        evaluation = _evaluate(folder, config, settings, state)
        folder.log_event("finished", updates=config.num_updates)
        watcher.say(in_words(evaluation))
    return RunResult(state, config, folder.path, evaluation)


def _train(
    folder: RunFolder,
    config: TRPOConfig,
    settings: RunSettings,
    loggers: Sequence[Logger],
    watcher: Watcher,
    warn: Callable[[str], None],
    state: TrainState | None,
    first: int,
) -> TrainState:
    """Make the updates after `first`; return the last state."""
    programs = compile_programs(config)
    if state is None:
        state = programs.init(run_keys(config))
    records = Records(folder.metrics, folder.timing, updates=first, warn=warn)
    saver = Saver(folder.checkpoints, config, settings)
    updates, refused = first, 0
    with (
        contextlib.closing(records),
        contextlib.closing(saver),
        interruptible(watcher.say) as interruption,
    ):
        for logger in loggers:
            records.tell(logger)
        for chunk in advance(
            programs,
            state,
            first=first,
            last=config.num_updates,
            state_wanted=saver.due,
            boundary_every=settings.checkpoint_updates,
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
            watcher.watch(chunk)
            saver.observe(np.asarray(chunk.metrics.episode_return))
            updates = chunk.updates
            refused = _non_finite_in_a_row(metrics, refused)
            if refused >= settings.patience:
                reason = (
                    f"the last {refused} updates met NaN or infinity, from update "
                    f"{updates - refused + 1:,} on, in every seed; look at the "
                    "environment's observations and rewards"
                )
                saver.wait()
                raise RunError(_what_is_safe(folder, reason))
            if chunk.state is not None:
                state = chunk.state
                if not refused or updates == config.num_updates:
                    records.sync()
                    saver.save(chunk)
        saver.wait()
    if updates < config.num_updates:
        folder.log_event("interrupted", updates=updates)
        raise Interrupted(
            _what_is_safe(folder, "interrupted"), interruption.number or 0
        )
    return state


def _non_finite_in_a_row(metrics: list[dict[str, np.ndarray]], before: int) -> int:
    """Return how many updates up to the last were refused for it, in every seed."""
    for one in metrics:
        refused = np.all(one["status"] == UpdateStatus.NON_FINITE)
        before = before + 1 if refused else 0
    return before


def _what_is_safe(folder: RunFolder, reason: str) -> str:
    saved = checkpoints.complete(folder.checkpoints)
    state = f"saved up to update {int(saved[-1].name):,}" if saved else "not saved yet"
    return (
        f"{reason}. The run in {folder.path} is {state}; to go on: "
        f"python -m trpo_jax resume {folder.path}"
    )


def _check_loggers(loggers: Sequence[Logger]) -> None:
    for logger in loggers:
        if not isinstance(logger, Logger):
            raise TypeError(
                f"a {type(logger).__name__} is no logger; give it a method "
                "log(env_steps, metrics)."
            )


def _own_loggers(
    folder: RunFolder, config: TRPOConfig, settings: RunSettings, first: int
) -> list[Logger]:
    loggers: list[Logger] = []
    if settings.tensorboard:
        steps = first * config.batch_size
        loggers.append(TensorBoardLogger(folder.path / "tensorboard", first_step=steps))
    if settings.wandb is not None:
        values = config_to_dict(config)
        loggers.append(WandbLogger(folder.path / "wandb", settings.wandb, values))
    return loggers


def _evaluate(
    folder: RunFolder, config: TRPOConfig, settings: RunSettings, state: TrainState
) -> dict[str, Any]:
    """Play whole episodes with the most probable actions, unless that was done."""
    if folder.evaluation.exists():
        return read_config_values(folder.evaluation)
    returns = _play(config, state, settings.evaluation_episodes)
    evaluation = summarize_returns(config, returns)
    write_json(folder.evaluation, evaluation)
    return evaluation


def _play(config: TRPOConfig, state: TrainState, num_episodes: int) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    return evaluate(config, state, key, num_episodes)
