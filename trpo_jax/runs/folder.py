"""The folder of a run: its files, and the lock on it."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import platform
import secrets
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jaxlib

from trpo_jax.environments.gymnasium import is_on_host
from trpo_jax.errors import UsageError, UsageTypeError, differing
from trpo_jax.runs import checkpoints
from trpo_jax.runs.config_file import (
    config_from_dict,
    config_to_dict,
    from_python,
    read_config_values,
)
from trpo_jax.runs.processes import exchange, on_writer
from trpo_jax.runs.settings import RunSettings
from trpo_jax.training.config import TRPOConfig, check_config
from trpo_jax.training.seeds import state_type
from trpo_jax.version import __version__


class RunFolder:
    """The files of one run.

    config.json       the config, enough to make the run again
    settings.json     the `RunSettings`
    events.jsonl      starts, resumptions, warnings, the end; versions and device
    metrics.jsonl     one line for each update, the same in every repetition
    timing.jsonl      when the updates were made, and how fast
    checkpoints/      whole states
    evaluation.json   evaluation of the last state
    warm_start/       the checkpoint of another run that this one started from
    pictures/         drawn from these
    """

    def __init__(self, path: str | pathlib.Path):
        """Name the files in `path`, without touching any."""
        if not isinstance(path, str | os.PathLike):
            raise UsageTypeError(
                f"folder is of type {type(path).__name__}; write the path of a run's "
                "folder."
            )
        self.path = pathlib.Path(path)
        self.config = self.path / "config.json"
        self.settings = self.path / "settings.json"
        self.events = self.path / "events.jsonl"
        self.metrics = self.path / "metrics.jsonl"
        self.timing = self.path / "timing.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.evaluation = self.path / "evaluation.json"
        self.warm_start = self.path / "warm_start"
        self._writing = threading.Lock()

    def create(
        self,
        config: TRPOConfig,
        settings: RunSettings,
        warm_start: pathlib.Path | None = None,
    ) -> None:
        """Write the first files of a run into a folder that is locked (`lock`).

        Args:
            config: The run.
            settings: Its settings.
            warm_start: The checkpoint that it starts from, which is copied.

        Raises:
            UsageError: If the folder holds a run, or anything else, or cannot be
                written.
        """
        self.check_new(config)
        with readable_errors(self.path):
            write_json(self.settings, dataclasses.asdict(settings))
            if warm_start is not None:
                checkpoints.copy(warm_start, self.warm_start)
            # Last: a folder with this file holds a run.
            write_json(self.config, config_to_dict(config))

    def check_new(self, config: TRPOConfig) -> None:
        """Raise UsageError as `create` does, without touching anything."""
        with readable_errors(self.path):
            if self.config.exists():
                stored = self._check_same(config, "name another folder")
                longer = config.total_timesteps > stored["total_timesteps"]
                command = self.how_to_resume(config, longer=longer)
                raise UsageError(
                    f"{self.path} holds this run already. Go on with it by "
                    f"`{command}`, or name another folder."
                )
            if not self._is_free():
                raise UsageError(
                    f"{self.path} is not empty and holds no run; name a new folder."
                )

    def _is_free(self) -> bool:
        """Return whether there is nothing, or only what a killed `create` left."""
        left = {".lock", "settings.partial", "config.partial", ".warm_start.partial"}
        with contextlib.suppress(UsageError):  # no settings, or those of something else
            self.read_settings()
            left.add(self.settings.name)
        there = self.path.iterdir() if self.path.exists() else ()
        return all(path.name in left for path in there)

    def _check_same(self, config: TRPOConfig, advice: str) -> dict[str, Any]:
        """Return the fields of the run's config, of which `total_timesteps` may differ.

        Raises:
            UsageError: With advice, if another field differs.
        """
        stored = {"total_timesteps": config.total_timesteps}
        stored |= read_config_values(self.config)
        length = {"total_timesteps": stored["total_timesteps"]}
        differences = differing(stored, config_to_dict(config) | length)
        if differences:
            raise UsageError(
                f"{self.path} holds a run with another config. What differs (there, "
                f"here): {'; '.join(differences)}; {advice}."
            )
        return stored

    def how_to_resume(self, config: TRPOConfig | None, *, longer: bool = False) -> str:
        """Return the command that resumes the run, or the call if it needs one.

        A config with Python objects has to be passed again, which only a call can do.
        A run with environments on the host cannot be resumed; another one starts with
        what it has learnt.

        Args:
            config: The config of the run; None if its folder holds all of it.
            longer: Whether to train longer, for `config.total_timesteps`.
        """
        folder = str(self.path)
        steps = config.total_timesteps if config is not None else None
        needs_call = config is not None and from_python(config_to_dict(config))
        if config is not None and is_on_host(config.env):
            another, saved = f"{folder}-2", checkpoints.complete(self.checkpoints)
            if needs_call:
                start = f", warm_start={folder!r}" if saved else ""
                return f"trpo_jax.run(config, {another!r}{start})"
            start = f" --warm-start {shlex.quote(folder)}" if saved else ""
            return (
                f"python -m trpo_jax train --config {shlex.quote(str(self.config))} "
                f"--folder {shlex.quote(another)}{start}"
            )
        if needs_call:
            more = f", total_timesteps={steps}" if longer else ""
            return f"trpo_jax.resume({folder!r}, config{more})"
        more = f" --total-timesteps {steps}" if longer else ""
        return f"python -m trpo_jax resume {shlex.quote(folder)}{more}"

    def read_config(self, config: TRPOConfig | None = None) -> TRPOConfig:
        """Return the config of the run that the folder holds.

        Args:
            config: The same, if it has Python objects, which no file can hold. Its
                `total_timesteps` is replaced by the folder's, which `resume` may have
                changed.

        Raises:
            UsageError: If there is no run, or `config` is another; the message names
                the fields.
        """
        stored = self.read_values()
        if config is None:
            return config_from_dict(stored)
        check_config(config)
        advice = "leave out the argument config"
        if from_python(stored):
            advice = "pass the config that the run was started with"
        stored = self._check_same(config, advice)
        return dataclasses.replace(config, total_timesteps=stored["total_timesteps"])

    def with_length(self, config: TRPOConfig, total_timesteps: int) -> TRPOConfig:
        """Return the config of the run with another number of steps.

        Raises:
            UsageError: If it is not more than what is done.
            UsageTypeError: If it is not a whole number.
        """
        changed = dataclasses.replace(config, total_timesteps=total_timesteps)
        saved = checkpoints.complete(self.checkpoints)
        done = int(saved[-1].name) if saved else 0
        if changed.num_updates <= done:
            raise UsageError(
                f"total_timesteps={total_timesteps} is not more than the "
                f"{done * config.batch_size} steps that the run in {self.path} has "
                "made; write more, or leave it out."
            )
        return changed

    def keep_length(self, config: TRPOConfig) -> None:
        """Write the config of the run, if its number of steps is another."""
        if self.read_values().get("total_timesteps") == config.total_timesteps:
            return
        # First: that of a state which will not be the last must not remain.
        self.evaluation.unlink(missing_ok=True)
        write_json(self.config, config_to_dict(config))

    def read_values(self) -> dict[str, Any]:
        """Return the fields of the run's config.

        Raises:
            UsageError: If there is no run.
        """
        if not self.config.is_file():
            raise UsageError(self._no_run())
        return read_config_values(self.config)

    def _no_run(self) -> str:
        if self.path.is_file():
            return f"{self.path} is a file; name the folder of a run."
        if (self.path / "sweep.json").exists():
            return (
                f"{self.path} holds a sweep, not a run; name {self.path / 'best'}, the "
                "folder of its best setting, which is there once the sweep is finished."
            )
        there = self.path.exists()
        found = "holds no run (no config.json)" if there else "does not exist"
        start = ""
        if self._is_free():  # a run cannot be started beside other files
            start = (
                f", or start one by trpo_jax.run(config, {str(self.path)!r}) or, on "
                "the command line, `python -m trpo_jax train --folder "
                f"{shlex.quote(str(self.path))}`"
            )
        return f"{self.path} {found}; name the folder of a run{start}."

    def read_state(
        self,
        config: TRPOConfig,
        warn_fn: Callable[[str], None],
        *,
        best: bool = False,
        resuming: bool = False,
    ) -> checkpoints.Stored | None:
        """Return the newest or best checkpoint that is whole; None if there is none.

        Errors are those of `checkpoints.read`.

        Args:
            config: The config of the run.
            warn_fn: Called with a message for each damaged checkpoint.
            best: Whether to prefer the best state.
            resuming: As `checkpoints.read`; damaged checkpoints are renamed.
        """
        return self._read_last(
            checkpoints.read, config, warn_fn, best=best, resuming=resuming
        )

    def check_state(
        self, config: TRPOConfig, warn_fn: Callable[[str], None]
    ) -> checkpoints.Checked | None:
        """Return the checkpoint to resume from, as `read_state`, without its arrays."""
        return self._read_last(checkpoints.check, config, warn_fn, resuming=True)

    def _read_last(
        self,
        read_fn: Callable[..., Any],
        config: TRPOConfig,
        warn_fn: Callable[[str], None],
        *,
        best: bool = False,
        resuming: bool = False,
    ) -> Any:
        paths = checkpoints.by_score if best else checkpoints.complete
        return checkpoints.read_last(
            paths(self.checkpoints),
            functools.partial(
                read_fn,
                like_fn=functools.partial(state_type, config),
                config=config_to_dict(config),
                resuming=resuming,
            ),
            warn_fn,
            rename=resuming,
        )

    def read_settings(self) -> RunSettings:
        """Return the settings of the run; UsageError if the file is not usable."""
        values = read_config_values(self.settings)
        unknown = values.keys() - {one.name for one in dataclasses.fields(RunSettings)}
        if unknown:
            raise UsageError(
                f"{self.settings} has unknown settings: {', '.join(sorted(unknown))}; "
                "delete them there."
            )
        try:
            return RunSettings(**values)
        except (UsageError, UsageTypeError) as error:
            raise UsageError(f"{self.settings}: {error}") from error

    def is_shared(self) -> bool:
        """Return whether all of several processes see this folder, once it exists."""
        if jax.process_count() == 1:
            return False
        token = self.path / ".shared"

        def write() -> str:
            text = secrets.token_hex()
            token.write_text(text)
            return text

        text = on_writer(write)
        try:
            is_there = token.read_text() == text
        except OSError:  # missing or unreadable
            is_there = False
        seen = exchange(is_there)
        on_writer(token.unlink)
        return all(seen)

    @contextlib.contextmanager
    def lock(self, *, make: bool = False) -> Iterator[None]:
        """Lock the folder; the lock is also released when the process is killed.

        Args:
            make: Make the folder, if it does not exist.

        Raises:
            UsageError: If another process holds the lock, or the folder cannot be
                written.
        """
        import fcntl  # not on every system

        with readable_errors(self.path):
            if make:
                self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / ".lock", "a")  # noqa: SIM115 (held below)
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(
                    f"another process is running in {self.path}; wait until it ends, "
                    "or stop it first."
                ) from error
            yield

    def log_event(self, event: str, **details: Any) -> None:
        """Append a line to the events; may be called from any thread."""
        line = {"event": event, "time": time.time(), **details}
        with self._writing, open(self.events, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def system_info() -> dict[str, Any]:
    """Return the versions and the device that a run uses."""
    return {
        "trpo_jax": __version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
        "num_processes": jax.process_count(),
    }


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write a file atomically: at any instant it is the old one or the new one."""
    partial = path.with_suffix(".partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@contextlib.contextmanager
def readable_errors(path: pathlib.Path) -> Iterator[None]:
    """Raise UsageError for a folder that cannot be read or written."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}); name another folder."
        ) from error
