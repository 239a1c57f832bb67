"""Training of groups of cells, each of which is saved on the way and when it ends.

Of several processes, all train, and the writer alone reads and writes the folder.
"""

import dataclasses
import pathlib
import time
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Int

from trpo_jax.runs import checkpoints
from trpo_jax.runs.chunks import run_chunks
from trpo_jax.runs.console import Watcher
from trpo_jax.runs.processes import (
    exchange,
    on_writer,
    passed_on_signals,
    raise_of_writer,
)
from trpo_jax.runs.stopping import Interrupted
from trpo_jax.sweeps.cell_groups import METRICS, Arrays, Group, mean_or_nan
from trpo_jax.sweeps.cell_programs import CellPrograms, compile_cells
from trpo_jax.sweeps.folder import SweepFolder, read_arrays, write_arrays
from trpo_jax.training.cells import Cells
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.metrics import Metrics
from trpo_jax.training.state import TrainState

# A group that takes longer is saved on the way: so much work is lost by a kill at most.
_SAVE_MINUTES = 5.0


@dataclasses.dataclass
class GroupTraining:
    """Training of the groups of a sweep.

    Attributes:
        programs: Programs of the sweep.
        cells: Cells of all its settings.
        num_episodes: Episodes of each evaluation.
        devices: Devices of the sweep.
        files: Folder of the sweep.
        keeps: Whether the folder outlives the sweep.
        progress: Whether to show progress.
        watcher: Where messages go.
        groups: Groups of each rung, as far as they are planned.
        compiled: Compiled programs by index and size.
        signals: Gets the number of a signal that asks to stop.
    """

    programs: Sequence[TRPOConfig]
    cells: Cells
    num_episodes: int
    devices: Sequence[jax.Device]
    files: SweepFolder
    keeps: bool
    progress: bool
    watcher: Watcher
    groups: list[list[Group]] = dataclasses.field(default_factory=list)
    compiled: dict[tuple[int, int], CellPrograms] = dataclasses.field(
        default_factory=dict
    )
    signals: list[int] = dataclasses.field(default_factory=list)

    def results(self, group: Group) -> Arrays:
        """Return the results of a group, which is trained unless its file has them."""
        return self._read(self.files.results_of(group)) or self.train(group)

    def train(self, group: Group) -> Arrays:
        """Train and evaluate a group; write its states, then its results."""
        begin, count = time.perf_counter(), len(group.cells)
        programs = self._programs_of(group)
        state, updates, parts = self._start(group, programs)
        with self._watcher_of(group) as watcher:
            for chunk in run_chunks(
                programs.training,
                state,
                first=updates,
                last=group.last,
                wants_state_fn=_Timer(_SAVE_MINUTES, active=self.keeps),
                stop_fn=lambda: bool(self.signals or passed_on_signals()),
            ):
                metrics = jax.tree.map(lambda leaf: leaf[:, :count], chunk.metrics)
                watcher.watch(chunk._replace(metrics=metrics))
                parts.append(_kept(metrics))
                updates = chunk.updates
                if chunk.state is not None:
                    state = chunk.state
                    if updates < group.last and self.keeps:
                        self._save_progress(group, programs, state, updates, parts)
        if updates < group.last:
            self._stop_if_asked()
        keys = programs.place(self.cells.evaluation_keys[group.padded])
        sums, ended, costs = jax.device_get(programs.evaluate(state, keys))
        results = _joined(parts)
        results["returns"] = mean_or_nan(sums, ended)[:count]
        results["costs"] = mean_or_nan(costs, ended)[:count]
        results["unended"] = self.num_episodes - np.asarray(ended)[:count]
        states = programs.fetch(checkpoints.leaves_by_path(state))
        states = {name: leaf[:count] for name, leaf in states.items()}

        def write() -> None:
            write_arrays(self.files.states_of(group), states)
            # Last: a group with this file is finished.
            write_arrays(self.files.results_of(group), results)
            self.files.progress.unlink(missing_ok=True)
            seconds = round(time.perf_counter() - begin, 3)
            self.files.log_event("group", name=group.name, runs=count, seconds=seconds)

        on_writer(write)
        return results

    def _watcher_of(self, group: Group) -> Watcher:
        """Return the progress of a group, announced."""
        runs = len(group.cells)
        rung = f"rung {group.rung + 1}, " if len(self.groups) > 1 else ""
        names = [one.name for one in self.groups[group.rung]]
        self.watcher.notify(
            f"{rung}group {names.index(group.name) + 1} of {len(names)}: {runs:,} "
            f"runs, updates {group.first + 1:,} to {group.last:,}"
        )
        config = dataclasses.replace(self.programs[group.program], num_seeds=runs)
        return Watcher(config, progress=self.progress)

    def _programs_of(self, group: Group) -> CellPrograms:
        self._stop_if_asked()
        at = group.program, group.size
        if at not in self.compiled:
            self.compiled[at] = compile_cells(
                self.programs[group.program],
                group.size,
                self.num_episodes,
                self.devices,
            )
        # Waits for the slowest: gloo connects the devices of CPUs within 30 s.
        exchange(None)
        return self.compiled[at]

    def _start(
        self, group: Group, programs: CellPrograms
    ) -> tuple[TrainState, int, list[Arrays]]:
        """Return the state a group goes on from, its updates, and their metrics."""
        stored = self._read(self.files.progress)
        if stored is not None and str(stored["group"]) == group.name:
            state = self._on_device(programs, _under("state", stored))
            return state, int(stored["updates"]), [_under("metrics", stored)]
        if group.rung == 0:
            cells = programs.place(self.cells.take(group.padded))
            return programs.training.init(cells), 0, []
        before = self.states(group.rung - 1, group.padded)
        return self._on_device(programs, before), group.first, []

    def _save_progress(
        self,
        group: Group,
        programs: CellPrograms,
        state: TrainState,
        updates: int,
        parts: list[Arrays],
    ) -> None:
        arrays = {"group": np.array(group.name), "updates": np.array(updates)}
        leaves = programs.fetch(checkpoints.leaves_by_path(state))
        arrays |= {f"state/{name}": leaf for name, leaf in leaves.items()}
        arrays |= {f"metrics/{name}": leaf for name, leaf in _joined(parts).items()}
        on_writer(lambda: write_arrays(self.files.progress, arrays))

    def _on_device(self, programs: CellPrograms, leaves: Arrays) -> TrainState:
        return programs.place(checkpoints.with_leaves(programs.state_type, leaves))

    def states(self, rung: int, cells: Int[np.ndarray, " cells"]) -> Arrays:
        """Return the leaves of some cells' states at the end of a rung.

        A group whose file is gone or damaged is trained again.
        """
        leaves: Arrays = {}
        for group in self.groups[rung]:
            at = np.flatnonzero(np.isin(cells, group.cells))
            if not at.size:
                continue
            stored = self._read(self.files.states_of(group))
            if stored is None:
                self.train(group)
                stored = self._read(self.files.states_of(group))
                assert stored is not None
            rows = np.searchsorted(group.cells, cells[at])
            for name, leaf in stored.items():
                empty = np.empty((len(cells), *leaf.shape[1:]), leaf.dtype)
                leaves.setdefault(name, empty)[at] = leaf[rows]
        return leaves

    def _read(self, path: pathlib.Path) -> Arrays | None:
        return on_writer(lambda: read_arrays(path, self.warn))

    def warn(self, message: str) -> None:
        """Record and show a warning."""
        self.files.log_event("warning", message=message)
        self.watcher.notify(f"warning: {message}")

    def _stop_if_asked(self) -> None:
        """Raise Interrupted if there was a signal, in any process."""

        def interrupted() -> Interrupted | None:
            numbers = [*self.signals, *passed_on_signals()]
            if not numbers:
                return None
            self.files.log_event("interrupted")
            return Interrupted(f"interrupted. {self.files.how_to_go_on()}", numbers[0])

        raise_of_writer(interrupted)


class _Timer:
    """Returns true once in so many minutes."""

    def __init__(self, minutes: float, *, active: bool):
        self._seconds, self._active = 60 * minutes, active
        self._last = time.monotonic()

    def __call__(self, updates: int) -> bool:
        now = time.monotonic()
        if not self._active or now < self._last + self._seconds:
            return False
        self._last = now
        return True


def _kept(metrics: Metrics) -> Arrays:
    """Return the metrics that a sweep keeps, by name."""
    flat = metrics._asdict()
    flat |= flat.pop("update")._asdict()
    kept = [name for name in METRICS if flat[name] is not None]
    return {name: np.asarray(flat[name]) for name in kept}


def _joined(parts: list[Arrays]) -> Arrays:
    """Return the metrics of consecutive updates as one array for each name."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _under(prefix: str, arrays: Arrays) -> Arrays:
    """Return the arrays whose names begin with `prefix/`, without it."""
    start = f"{prefix}/"
    return {
        name.removeprefix(start): value
        for name, value in arrays.items()
        if name.startswith(start)
    }
