"""The folder of a run: what is in it, and who may write there."""

import contextlib
import dataclasses
import json
import os
import pathlib
import platform
import shlex
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import jaxlib

from trpo_jax.errors import UsageError
from trpo_jax.runs.config_file import (
    config_from_dict,
    config_to_dict,
    differing_fields,
    from_python,
    read_config_values,
)
from trpo_jax.runs.settings import RunSettings
from trpo_jax.training.config import TRPOConfig
from trpo_jax.version import __version__


class RunFolder:
    """The files of one run.

    config.json       what was run, enough to run it again
    settings.json     what was to be recorded of it
    events.jsonl      when it was started, resumed, ended; versions and device
    metrics.jsonl     one line for each update, the same in every repetition
    timing.jsonl      when they were made, and how fast
    checkpoints/      whole states
    evaluation.json   how the last one does
    pictures/         drawn from these
    """

    def __init__(self, path: str | pathlib.Path):
        """Name the files in `path`; touches none."""
        self.path = pathlib.Path(path)
        self.config = self.path / "config.json"
        self.settings = self.path / "settings.json"
        self.events = self.path / "events.jsonl"
        self.metrics = self.path / "metrics.jsonl"
        self.timing = self.path / "timing.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.evaluation = self.path / "evaluation.json"
        self._writing = threading.Lock()

    def create(self, config: TRPOConfig, settings: RunSettings) -> None:
        """Make a new run of a folder that is held (`lock`).

        Raises:
            ValueError: If a run, or anything else, is there already, or the folder
                cannot be written.
        """
        self.check_new(config)
        with _readable_errors(self.path):
            write_json(self.settings, dataclasses.asdict(settings))
            # The last: with it the folder holds a run.
            write_json(self.config, config_to_dict(config))

    def check_new(self, config: TRPOConfig) -> None:
        """Raise ValueError as `create` does; touches nothing."""
        with _readable_errors(self.path):
            if self.config.exists():
                raise UsageError(self._taken(config))
            there = self.path.iterdir() if self.path.exists() else ()
            if not all(map(self._is_left_over, there)):
                raise UsageError(
                    f"{self.path} is not empty and holds no run; name a new folder."
                )

    def _is_left_over(self, path: pathlib.Path) -> bool:
        """Whether a process that was killed while it made the folder left a file."""
        if path == self.settings:
            with contextlib.suppress(ValueError):
                self.read_settings()
                return True
        return path.name in (".lock", "settings.partial", "config.partial")

    def _taken(self, config: TRPOConfig) -> str:
        stored = read_config_values(self.config)
        differences = differing_fields(stored, config_to_dict(config))
        if differences:
            return (
                f"{self.path} holds a run of another config. What differs (there, "
                f"here): {'; '.join(differences)}. Name another folder."
            )
        return (
            f"{self.path} holds this run already. Go on with it by trpo_jax.resume, as "
            f"`{self.how_to_resume(config)}`, or name another folder."
        )

    def how_to_resume(self, config: TRPOConfig) -> str:
        """Return what to write to go on with the run: a command, or if need be a call.

        A config with Python objects has to be given again, and only a call can.
        """
        if from_python(config_to_dict(config)):
            return f"trpo_jax.resume({str(self.path)!r}, config)"
        return f"python -m trpo_jax resume {shlex.quote(str(self.path))}"

    def read_config(self, config: TRPOConfig | None = None) -> TRPOConfig:
        """Return the config of the run that the folder holds.

        Args:
            config: The same, where it has Python objects that no file can hold.

        Raises:
            ValueError: If there is no run, or `config` is another; the message names
                the fields.
        """
        if not self.config.exists():
            what = (
                "holds no run (no config.json)"
                if self.path.exists()
                else "is not there"
            )
            raise UsageError(
                f"{self.path} {what}; name the folder of a run, or start one by "
                f"trpo_jax.run(config, {str(self.path)!r}) or, on the command line, "
                f"`python -m trpo_jax train --folder {shlex.quote(str(self.path))}`."
            )
        stored = read_config_values(self.config)
        if config is None:
            return config_from_dict(stored)
        differences = differing_fields(stored, config_to_dict(config))
        if differences:
            raise UsageError(
                f"{self.path} holds a run of another config. What differs (there, "
                f"here): {'; '.join(differences)}."
            )
        return config

    def read_settings(self) -> RunSettings:
        """Return what is to be recorded; ValueError if the file does not say."""
        values = read_config_values(self.settings)
        unknown = values.keys() - {one.name for one in dataclasses.fields(RunSettings)}
        if unknown:
            raise UsageError(
                f"{self.settings} has no business with {', '.join(sorted(unknown))}; "
                "delete what `trpo_jax.RunSettings` does not have."
            )
        return RunSettings(**values)

    @contextlib.contextmanager
    def lock(self, *, make: bool = False) -> Iterator[None]:
        """Hold the folder; released, too, when the process is killed.

        Args:
            make: Make the folder, if there is none.

        Raises:
            ValueError: If another process holds it, or it cannot be written.
        """
        import fcntl  # which not every system has

        with _readable_errors(self.path):
            if make:
                self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / ".lock", "a")  # noqa: SIM115 (held below)
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(
                    f"another process is running in {self.path}; let it end, or stop "
                    "it first."
                ) from error
            yield

    def log_event(self, event: str, **details: Any) -> None:
        """Add a line to the folder's events; from any thread."""
        line = {"event": event, "time": time.time(), **details}
        with self._writing, open(self.events, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def system_info() -> dict[str, Any]:
    """Return the versions and the device that a run's numbers come from."""
    return {
        "trpo_jax": __version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
    }


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write a file that is either the old one or the new one, whole, at any instant."""
    partial = path.with_suffix(".partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@contextlib.contextmanager
def _readable_errors(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}); name a folder that can."
        ) from error
