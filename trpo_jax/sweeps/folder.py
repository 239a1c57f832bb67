"""The folder of a sweep: its description, and a file for each finished group of cells.

    sweep.json        the config, the swept fields, seeds and rungs; versions
    plan.json         cells at once in each program, and the devices
    events.jsonl      starts, groups with their seconds, the end
    groups/           results of each finished group of cells
    states/           states that later rungs, or the best setting, need
    progress.npz      the group in training, as it was a few minutes ago
    best/             the best setting as the folder of a run, with all its seeds
    ranking.csv       the settings, the best one first
    sweep.nc          all results as an xarray dataset, if xarray is installed
    pictures/         drawn from these

Files of arrays are written atomically, with a checksum of their contents.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shlex
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from trpo_jax.errors import UsageError, differing
from trpo_jax.runs.checkpoints import sync
from trpo_jax.runs.config_file import from_python, read_config_values
from trpo_jax.runs.folder import RunFolder, readable_errors, write_json
from trpo_jax.sweeps.cell_groups import Arrays, Group

_CHECKSUM = "sha256"


class SweepFolder:
    """The files of one sweep; they are listed above."""

    def __init__(self, path: str | pathlib.Path):
        """Name the files in `path`, without touching any."""
        run_folder = RunFolder(path)  # checks the type
        self.path = run_folder.path
        self.lock = run_folder.lock
        self.log_event = run_folder.log_event
        self.events = run_folder.events
        self.description = self.path / "sweep.json"
        self.plan = self.path / "plan.json"
        self.groups = self.path / "groups"
        self.states = self.path / "states"
        self.progress = self.path / "progress.npz"
        self.best = self.path / "best"
        self.ranking = self.path / "ranking.csv"
        self.dataset = self.path / "sweep.nc"

    def check(self, description: dict[str, Any]) -> None:
        """Raise UsageError unless the folder is free, or holds this sweep."""
        if self.description.exists():
            self._check_same(description)
            return
        with readable_errors(self.path):
            there = self.path.iterdir() if self.path.exists() else ()
            names = {path.name for path in there}
        if not names <= {".lock", "sweep.partial"}:
            raise UsageError(
                f"{self.path} is not empty and holds no sweep; name a new folder."
            )

    def _check_same(self, description: dict[str, Any]) -> None:
        stored = self.read_description()
        differences = differing(flatten(stored), flatten(description))
        if differences:
            raise UsageError(
                f"{self.path} holds another sweep. What differs (there, here): "
                f"{'; '.join(differences)}; name another folder, or go on with that "
                f"one by {self.how_to_resume()}"
            )

    def read_description(self) -> dict[str, Any]:
        """Return what `sweep.json` holds; UsageError if there is no sweep."""
        if not self.description.exists():
            run = (
                " It holds a single run."
                if RunFolder(self.path).config.exists()
                else ""
            )
            raise UsageError(
                f"{self.path} holds no sweep: there is no sweep.json in it.{run}"
            )
        return read_config_values(self.description)

    def write_description(self, description: dict[str, Any]) -> None:
        """Write `sweep.json`: from then on the folder holds a sweep."""
        write_json(self.description, description)

    def read_plan(self) -> dict[str, Any]:
        """Return what `plan.json` holds: decisions that a sweep keeps to.

        Returns:
            `num_devices`, 0 if there are none yet, and `cells_at_once`: by the index of
            a program as text, how many cells it trains.
        """
        if not self.plan.exists():
            return {"num_devices": 0, "cells_at_once": {}}
        plan = read_config_values(self.plan)
        if plan.keys() != {"num_devices", "cells_at_once"}:
            raise UsageError(
                f"{self.plan} is not what the sweep wrote; put it back from a copy, or "
                "sweep in another folder."
            )
        return plan

    def decide(self, program: int, num_cells: int, num_devices: int) -> None:
        """Write into `plan.json` how many cells a program trains at once."""
        decided = self.read_plan()["cells_at_once"] | {str(program): num_cells}
        write_json(self.plan, {"num_devices": num_devices, "cells_at_once": decided})

    def check_devices(self, num_devices: int) -> None:
        """Raise UsageError unless the sweep runs on so many devices, or on none yet."""
        before = self.read_plan()["num_devices"]
        if before not in (0, num_devices):
            raise UsageError(
                f"the sweep in {self.path} runs on {before} device(s), and with "
                f"{num_devices} it would end in other bits; go on where JAX has "
                f"{before} or more and the config does not name other devices, or name "
                "another folder."
            )

    def results_of(self, group: Group) -> pathlib.Path:
        """Return the file of a group's results."""
        return self.groups / f"{group.name}.npz"

    def states_of(self, group: Group) -> pathlib.Path:
        """Return the file of the states that a group ended in."""
        return self.states / f"{group.name}.npz"

    def how_to_go_on(self) -> str:
        """Return what is kept of a sweep that has stopped, and how it goes on."""
        groups = len(list(self.groups.glob("*.npz")))
        return (
            f"The sweep in {self.path} has finished {groups} group(s) of runs; to go "
            f"on: {self.how_to_resume()}"
        )

    def how_to_resume(self) -> str:
        """Return the command that goes on with the sweep, or say to call it again."""
        description = self.read_description()
        if python_objects(description):
            return "the same call of trpo_jax.sweep."
        return f"python -m trpo_jax resume {shlex.quote(str(self.path))}"


def holds_sweep(path: str | pathlib.Path) -> bool:
    """Return whether the folder is that of a sweep."""
    return SweepFolder(path).description.exists()


def python_objects(description: dict[str, Any]) -> list[str]:
    """Return the fields of a description that are Python objects, or have such values.

    A file does not hold these.
    """
    swept = {
        name: value
        for name, values in description["fields"].items()
        for value in (values if isinstance(values, list) else [values])
        if from_python({name: value})
    }
    return from_python({**description["config"], **swept})


def flatten(description: dict[str, Any]) -> dict[str, Any]:
    """Return a description with the fields of config and grid under their own names."""
    flat = dict(description)
    config, fields = flat.pop("config"), flat.pop("fields")
    # Values that are swept say nothing in the config.
    kept = {name: value for name, value in config.items() if name not in fields}
    return {**flat, **kept, **{f"values of {name}": v for name, v in fields.items()}}


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a file atomically."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)


def write_arrays(path: pathlib.Path, arrays: Arrays) -> None:
    """Write arrays with a checksum; at any instant the file is the old or the new one.

    Raises:
        OSError: If the disk is full, for example.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with open(partial, "wb") as file:
            np.savez(file, **arrays, **{_CHECKSUM: _digest(arrays)})  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)
    sync(path.parent)


def read_arrays(
    path: pathlib.Path, warn_fn: Callable[[str], None] | None = None
) -> Arrays | None:
    """Return the arrays of a file; None if it does not exist or is damaged.

    Args:
        path: The file.
        warn_fn: Called with a message about a damaged file, which is then renamed to
            `.damaged`: what it held is to be computed again. None to leave it there.
    """
    if not path.exists():
        return None
    with contextlib.suppress(
        ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile
    ):
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        if arrays.pop(_CHECKSUM).tobytes() == _digest(arrays).tobytes():
            return arrays
    if warn_fn is None:
        return None
    path.replace(path.with_suffix(".damaged"))
    warn_fn(
        f"{path} is damaged: its checksum is not the one written. It is renamed to "
        f"{path.with_suffix('.damaged').name}, and what it held is computed again."
    )
    return None


def _digest(arrays: Arrays) -> np.ndarray:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        # By kind and size: a file gives bfloat16 back as two bytes of no type.
        kind = f"{value.dtype.kind}{value.dtype.itemsize}"
        digest.update(json.dumps([name, kind, arrays[name].shape]).encode())
        digest.update(value.tobytes())
    return np.frombuffer(digest.digest(), np.uint8)
