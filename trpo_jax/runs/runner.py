"""Runs: training with progress and evaluation and, in a folder, records to resume."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from trpo_jax.environments.gymnasium import is_on_host
from trpo_jax.errors import UsageError, UsageTypeError, describe_type
from trpo_jax.extras import import_extra
from trpo_jax.policies.evaluation import (
    PendingEpisodes,
    compiling_evaluation,
    evaluate_with_costs,
    format_evaluation,
    start_evaluation,
    summarize_returns,
)
from trpo_jax.runs import checkpoints
from trpo_jax.runs.chunks import Programs, by_update, compile_programs, run_chunks
from trpo_jax.runs.config_file import (
    config_from_dict,
    config_to_dict,
    read_config_values,
)
from trpo_jax.runs.console import Watcher
from trpo_jax.runs.folder import RunFolder, system_info, write_json
from trpo_jax.runs.loggers import Logger, TensorBoardLogger, WandbLogger
from trpo_jax.runs.processes import (
    agree,
    in_all,
    is_writer,
    on_writer,
    pass_on_signal,
    passed_on_signals,
    raise_of_writer,
    together,
)
from trpo_jax.runs.records import Records, summarize_seeds
from trpo_jax.runs.saver import Saver
from trpo_jax.runs.settings import RunSettings
from trpo_jax.runs.stopping import (
    Interrupted,
    NonFiniteUpdates,
    RunError,
    interruptible,
)
from trpo_jax.runs.warm_start import as_learnt, find_start, read_learnt
from trpo_jax.tracing import is_tracing
from trpo_jax.training.config import TRPOConfig, check_config
from trpo_jax.training.placement import check_processes, put, state_shardings
from trpo_jax.training.seeds import run_keys, state_type
from trpo_jax.training.state import TrainState


class RunResult(NamedTuple):
    """A finished run.

    Attributes:
        state: The last state; with several seeds, leaves [num_seeds, …].
        config: The config of the run.
        folder: The folder with its records; None if it has none.
        evaluation: Evaluation of the last state, as in evaluation.json.
    """

    state: TrainState
    config: TRPOConfig
    folder: pathlib.Path | None
    evaluation: dict[str, Any]


def run(
    config: TRPOConfig,
    folder: str | pathlib.Path | None = None,
    settings: RunSettings | None = None,
    *,
    warm_start: str | pathlib.Path | None = None,
    loggers: Sequence[Logger] = (),
    progress: bool = True,
) -> RunResult:
    """Train as `train(config)` does, show progress, evaluate, and record all of it.

    The device does not wait for the host: it works on the next updates while the host
    records the last ones. In a folder, SIGINT or SIGTERM stop the run once the updates
    in flight are finished and saved; a second signal stops it at once. Killed at any
    instant, it can be resumed by `resume`, and the result is bit-identical to an
    uninterrupted run on the same kind of machine.

    Args:
        config: The run.
        folder: A folder that does not exist yet, or is empty; None to write nothing.
        settings: What to record. Without a folder, only the fields about evaluation and
            stopping may be set.
        warm_start: The folder of a run, to start with the policy, critic and
            normalisers of its newest checkpoint in place of fresh ones. Updates and
            schedules start anew. It is copied, so that `resume` does not need it.
        loggers: Further destinations for the metrics of each update. A logger that
            raises is dropped with a warning, and updates that a slow one cannot take in
            time are dropped; the run goes on.
        progress: Whether to show progress.

    Returns:
        A `RunResult`.

    Raises:
        UsageError: Before anything compiles: if the folder holds a run already or
            cannot be written, the config does not make a run, a setting asks for files
            without a folder, the networks of the warm start do not fit (the message
            names what differs), or a logger's package is not installed.
        RunError: During the run: if the disk is full, or no update is finite any more.
        Interrupted: A KeyboardInterrupt, if a signal came to a run with a folder.
    """
    settings = RunSettings() if settings is None else settings
    run_folder = None if folder is None else RunFolder(folder)
    check_config(config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(together(_how_to_go_on(run_folder, config)))
        _check(config, settings, loggers)
        _agree(config, settings, folder=str(folder), warm_start=warm_start)

        def make_folder() -> pathlib.Path | None:
            if run_folder is not None:
                run_folder.check_new(config)
            start = None if warm_start is None else find_start(warm_start, config)
            if run_folder is not None:
                stack.enter_context(run_folder.lock(make=True))
                run_folder.create(config, settings, start)
            return start

        if run_folder is None:
            settings.check_without_folder()
        start = on_writer(make_folder)
        shared = run_folder is not None and run_folder.is_shared()
        watcher = Watcher(config, progress=progress and is_writer())
        running = _Run(config, settings, loggers, watcher, run_folder, shared, start)
        return running.finish()


def resume(
    folder: str | pathlib.Path,
    config: TRPOConfig | None = None,
    *,
    total_timesteps: int | None = None,
    devices: int | Mesh | None = None,
    loggers: Sequence[Logger] = (),
    progress: bool = True,
) -> RunResult:
    """Resume the run in a folder from its newest whole checkpoint.

    A damaged checkpoint is named and renamed, and an older one used; what was recorded
    after it is cut off, and made again. If every checkpoint is damaged, nothing is
    touched. A finished run is evaluated if it was not yet, and returned.

    With more `total_timesteps` than first asked, the run goes on as one of that length
    would from there: bit-identical to it with constant schedules and the same
    `compiler_options`. Other schedules extend over the new length, so that a factor may
    jump: a linear one that has reached 0 resumes at ½ in a run twice as long.

    Args:
        folder: The folder that `run` was given.
        config: The config that `run` was given, if it has Python objects (a network, a
            schedule): a folder holds no code, only their descriptions.
        total_timesteps: Steps to train for in all, in place of those that the run has
            in its folder, which keeps the new number; rounded up to whole rollouts.
        devices: Devices to go on with, as the field of a config, which a folder does
            not hold.
        loggers: As `run`.
        progress: As `run`.

    Returns:
        A `RunResult`.

    Raises:
        UsageError: If there is no run; it is of another config, version or shape, or
            was trained under other settings of JAX (the message names what differs);
            its environments are on the host, which no checkpoint holds;
            every checkpoint is damaged; another process runs there; or
            `total_timesteps` is not more than what is done.
        RunError: As `run`.
        Interrupted: As `run`.
    """
    run_folder = RunFolder(folder)
    if config is not None:
        check_config(config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(together(_how_to_go_on(run_folder, config)))
        length, values, settings = on_writer(
            lambda: _read_run(run_folder, config, longer=total_timesteps is not None)
        )
        given = config_from_dict(values) if config is None else config
        given = dataclasses.replace(given, total_timesteps=length)
        if devices is not None:
            given = dataclasses.replace(given, devices=devices)
        _check(given, settings, loggers)
        asked = {"total_timesteps asked for": total_timesteps}
        _agree(given, settings, folder=str(folder), **asked)

        def lock() -> tuple[int, pathlib.Path | None]:
            stack.enter_context(run_folder.lock())
            longer = given
            if total_timesteps is not None:
                longer = run_folder.with_length(given, total_timesteps)
            start = run_folder.warm_start if run_folder.warm_start.exists() else None
            return longer.total_timesteps, start

        length, start = on_writer(lock)
        shared = run_folder.is_shared()
        given = dataclasses.replace(given, total_timesteps=length)
        watcher = Watcher(given, progress=progress and is_writer())
        running = _Run(given, settings, loggers, watcher, run_folder, shared, start)
        return running.finish()


def _read_run(
    folder: RunFolder, config: TRPOConfig | None, *, longer: bool
) -> tuple[int, dict[str, Any], RunSettings]:
    """Return the steps, the fields and the settings of the run in a folder.

    Raises:
        UsageError: If there is no run; `config` is another, or has more steps and the
            run is not to be `longer`; its environments are on the host.
    """
    stored = folder.read_config(config)
    steps = stored.total_timesteps
    if is_on_host(stored.env):
        raise UsageError(
            f"the run in {folder.path} cannot be resumed: its environments "
            f"({stored.env}) are on the host, and no checkpoint holds their state. To "
            "start another run with what it has learnt: "
            f"{folder.how_to_resume(stored)}"
        )
    if config is not None and config.total_timesteps > steps and not longer:
        raise UsageError(
            f"config has total_timesteps={config.total_timesteps}, but the run in "
            f"{folder.path} {steps}; to train longer: "
            f"{folder.how_to_resume(config, longer=True)}"
        )
    return steps, folder.read_values(), folder.read_settings()


def _how_to_go_on(folder: RunFolder | None, config: TRPOConfig | None) -> str:
    """Return what to do once a process of the run is lost."""
    if folder is None:
        return "The run has no folder and is lost; start it again."
    return (
        "To go on from the last checkpoint, on any number of processes: "
        f"{folder.how_to_resume(config)}"
    )


@dataclasses.dataclass(frozen=True)
class _Run:
    """A run in this process, whose folder, if it has one, the writer has locked.

    Attributes:
        shared: Whether all processes see the folder.
        warm_start: The checkpoint of another run that it starts from, if any.
    """

    config: TRPOConfig
    settings: RunSettings
    loggers: Sequence[Logger]
    watcher: Watcher
    folder: RunFolder | None
    shared: bool
    warm_start: pathlib.Path | None

    def finish(self) -> RunResult:
        """Restore the newest checkpoint, train the rest, and evaluate."""
        last = self.config.num_updates
        # Without a folder there is nothing to save: signals do what they always do.
        to_save = self.folder is not None
        with self.watcher:
            try:
                with interruptible(
                    self.watcher.notify, active=to_save, signal_fn=pass_on_signal
                ) as signals:
                    state = self._train_rest(signals)
                    self._stop_if_asked(signals, last)
                evaluation = self._evaluation(state)
                on_writer(lambda: self._log_event("finished", updates=last))
            except OSError as error:
                raise self._stopped(str(error)) from error
            self.watcher.notify(format_evaluation(evaluation))
        path = self.folder.path if self.folder else None
        return RunResult(state, self.config, path, evaluation)

    @property
    def _files(self) -> RunFolder | None:
        """The folder, in the process that writes to it."""
        return self.folder if is_writer() else None

    def _train_rest(self, signals: list[int]) -> TrainState:
        """Train from the newest checkpoint, or from the start."""
        restored = self._restore()
        first = restored[1] if restored else 0
        last = self.config.num_updates
        if restored is not None and first >= last:
            self.watcher.notify(f"all {first:,} updates are done")
            return restored[0]
        config = self.config
        seeds = f", {config.num_seeds} seeds" if config.num_seeds > 1 else ""
        update = config.update
        name = (
            update.upper().replace("_", " ")
            if isinstance(update, str)
            else describe_type(update)
        )
        self.watcher.notify(
            f"{name} on {config.env}: {config.total_timesteps:,} steps, "
            f"{config.num_envs} environments × {config.rollout_length} steps per "
            f"update{seeds}"
        )
        if first > 0:
            self.watcher.notify(f"resuming after update {first:,} of {last:,}")
        with compiling_evaluation(config, self.settings.evaluation_episodes):
            programs = compile_programs(config, interim_episodes=self._interim_episodes)
            # Waits for the slowest: gloo connects the devices of CPUs within 30 s.
            agree({"updates made": first})
            state = restored[0] if restored else self._first_state(programs)
            return self._train(programs, state, first, signals)

    def _first_state(self, programs: Programs) -> TrainState:
        """Return the state before the first update."""
        state = programs.init(run_keys(self.config))
        if self.warm_start is None:
            return state
        self._log_event("warm_start", checkpoint=str(self.warm_start))
        self.watcher.notify(f"starting with what {self.warm_start} has learnt")
        # The other run, if it goes on, may delete its checkpoint at any time.
        path = self.folder.warm_start if self.folder else self.warm_start
        arrays = on_writer(lambda: read_learnt(path, self.config))
        return state._replace(**as_learnt(arrays, self.config))

    def _restore(self) -> tuple[TrainState, int] | None:
        """Return the state of the newest checkpoint, and its updates."""
        if self.folder is None:
            return None
        folder, config = self.folder, self.config
        stored = on_writer(lambda: self._read_state(folder))
        if stored is None:
            return None
        updates = stored.manifest.updates
        if isinstance(stored, checkpoints.Checked):
            like = state_type(config)
            read = functools.partial(checkpoints.read_shared, stored.path, like)
            return in_all("restore", read), updates
        state = stored.as_state(functools.partial(state_type, config))
        shardings = state_shardings(config, state, num_seeds=config.num_seeds)
        return put(state, shardings), updates

    def _read_state(
        self, folder: RunFolder
    ) -> checkpoints.Stored | checkpoints.Checked | None:
        """Return the newest checkpoint, and record where the run starts.

        Where each process can read its own part, without the arrays.
        """
        checkpoints.delete_partial(folder.checkpoints)
        stored: checkpoints.Stored | checkpoints.Checked | None
        if self.shared:
            stored = folder.check_state(self.config, self._warn)
        else:
            stored = folder.read_state(self.config, self._warn, resuming=True)
        event = "resumed" if folder.events.exists() else "started"
        updates = stored.manifest.updates if stored else 0
        folder.keep_length(self.config)
        steps = self.config.total_timesteps
        self._log_event(event, updates=updates, total_timesteps=steps, **system_info())
        return stored

    def _train(
        self, programs: Programs, state: TrainState, first: int, signals: list[int]
    ) -> TrainState:
        """Make the updates after `first`; return the last state."""
        last, limit = self.config.num_updates, self.settings.max_nonfinite_updates
        updates, nonfinite = first, NonFiniteUpdates(self.config.num_seeds)
        files = self._files
        saves = self.folder if self.shared else files
        if self.shared:
            programs = programs._replace(gather=lambda state: state)
        loggers = [*self._own_loggers(first), *self.loggers] if is_writer() else []
        records = Records(files, loggers, self._warn, updates=first)
        saver = Saver(
            saves.checkpoints if saves else None,
            self.config,
            self.settings,
            shared=self.shared,
        )
        with contextlib.closing(records), contextlib.closing(saver):
            for chunk in run_chunks(
                programs,
                state,
                first=first,
                last=last,
                wants_state_fn=saver.due,
                boundary_every=self.settings.checkpoint_updates,
                evaluate_fn=self._start_evaluation,
                evaluate_every=self.settings.evaluation_updates,
                stop_fn=lambda: bool(signals or passed_on_signals()),
            ):
                metrics = by_update(chunk)
                steps = self.config.num_seeds * self.config.batch_size * len(metrics)
                rows = [summarize_seeds(one) for one in metrics]
                records.write(rows, round(steps / chunk.seconds, 1))
                self.watcher.watch(chunk)
                updates = chunk.updates
                below, none_yet = nonfinite.consecutive < limit, nonfinite.first is None
                nonfinite.count(metrics)
                if none_yet and nonfinite.first is not None:
                    self._warn(nonfinite.describe_first())
                if nonfinite.consecutive_in_all_seeds >= limit:
                    break
                if (below & (nonfinite.consecutive >= limit)).any():
                    self._warn(nonfinite.describe(updates))
                if self.folder is None:
                    continue
                # A state that meets NaN is not worth a checkpoint, but the last one is
                # what the run ends with.
                finite = not nonfinite.consecutive_in_all_seeds or updates == last
                saver.add_returns(chunk if finite else chunk._replace(state=None))
                if chunk.wanted and finite:
                    records.sync()
                    saver.save(chunk)
            saver.wait()
        if nonfinite.consecutive_in_all_seeds >= limit:
            raise_of_writer(lambda: self._stopped(nonfinite.describe(updates)))
        if updates < last:
            self._stop_if_asked(signals, updates)
        if nonfinite.first is not None:
            self._warn(nonfinite.describe_total())
        assert chunk.state is not None  # the last one brings it
        return chunk.state

    @property
    def _interim_episodes(self) -> int | None:
        """Episodes of an evaluation in training; None if there is none."""
        evaluates = self.settings.evaluation_updates is not None
        return self.settings.interim_episodes if evaluates else None

    def _start_evaluation(self, state: TrainState, updates: int) -> PendingEpisodes:
        """Start an evaluation in training; a resumed run plays the same episodes."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), 2)
        key = jax.random.fold_in(key, updates)
        return start_evaluation(self.config, state, key, self.settings.interim_episodes)

    def _own_loggers(self, first: int) -> list[Logger]:
        """Return the loggers that the settings ask for, which need a folder."""
        loggers: list[Logger] = []
        if self.folder is None:
            return loggers
        path, settings = self.folder.path, self.settings
        try:
            if settings.tensorboard:
                steps = first * self.config.batch_size
                loggers.append(
                    TensorBoardLogger(path / "tensorboard", first_step=steps)
                )
            if settings.wandb is not None:
                values = config_to_dict(self.config)
                loggers.append(WandbLogger(path / "wandb", settings.wandb, values))
        except Exception as error:  # dropped, as a logger that raises later
            self._warn(
                f"a logger could not be made and is dropped: {type(error).__name__}: "
                f"{error}"
            )
        return loggers

    def _evaluation(self, state: TrainState) -> dict[str, Any]:
        """Evaluate, unless the folder has an evaluation already."""
        path = self._files.evaluation if self._files else None
        there = on_writer(
            lambda: read_config_values(path) if path and path.exists() else None
        )
        if there is not None:
            return there
        key = jax.random.fold_in(jax.random.key(self.config.seed), 1)
        played = evaluate_with_costs(
            self.config, state, key, self.settings.evaluation_episodes
        )
        evaluation = summarize_returns(self.config, *played)
        if path is not None:
            write_json(path, evaluation)
        return evaluation

    def _stopped(self, reason: str) -> RunError:
        with contextlib.suppress(OSError):  # which may be the reason
            self._log_event("stopped", reason=reason)
        return RunError(self._with_saved(reason))

    def _stop_if_asked(self, signals: list[int], updates: int) -> None:
        """Raise Interrupted if there was a signal, in any process."""

        def interrupted() -> Interrupted | None:
            numbers = [*signals, *passed_on_signals()]
            if not numbers:
                return None
            self._log_event("interrupted", updates=updates)
            return Interrupted(self._with_saved("interrupted"), numbers[0])

        raise_of_writer(interrupted)

    def _with_saved(self, reason: str) -> str:
        """Return the reason, what is saved, and how to go on."""
        if self.folder is None:
            return f"{reason}."
        saved = checkpoints.complete(self.folder.checkpoints)
        what = "has no checkpoint yet; to start it again"
        if saved:
            what = f"is saved up to update {int(saved[-1].name):,}; to go on"
        command = self.folder.how_to_resume(self.config)
        return f"{reason}. The run in {self.folder.path} {what}: {command}"

    def _log_event(self, event: str, **details: Any) -> None:
        if self._files is not None:
            self._files.log_event(event, **details)

    def _warn(self, message: str) -> None:
        self._log_event("warning", message=message)
        self.watcher.notify(f"warning: {message}")


def _agree(config: TRPOConfig, settings: RunSettings, **arguments: Any) -> None:
    """Raise, in every process, unless all would make the same run."""
    values = checkpoints.jax_settings() | arguments | config_to_dict(config)
    values |= {"devices": str(config.devices), **dataclasses.asdict(settings)}
    agree(values)


def _check(
    config: TRPOConfig, settings: RunSettings, loggers: Sequence[Logger]
) -> None:
    """Raise with advice for what would fail later, before there is a folder."""
    if not isinstance(settings, RunSettings):
        raise UsageTypeError(
            f"settings is {describe_type(settings)}; write trpo_jax.RunSettings(...)."
        )
    if is_tracing():
        raise UsageError(
            "a run works on the host and cannot be traced by jit, vmap or grad; write "
            "trpo_jax.train, which can."
        )
    if config.devices == 1:
        check_processes(jax.devices()[:1], "write devices=None, for all")
    state_type(config)
    if settings.tensorboard:
        import_extra("tensorboardX", extra="tensorboard")
    if settings.wandb is not None:
        import_extra("wandb", extra="wandb")
    if not isinstance(loggers, Sequence):
        raise UsageTypeError(
            f"loggers is {describe_type(loggers)}; write a list, as [logger]."
        )
    for logger in loggers:
        # A class has the methods of its instances.
        if not isinstance(logger, Logger) or isinstance(logger, type):
            raise UsageTypeError(
                f"{describe_type(logger)} is not a logger; write an object with a "
                "method log(env_steps, metrics)."
            )
