"""Sweeps: all settings and seeds side by side, recorded in a folder and resumable."""

import contextlib
import dataclasses
import functools
import json
import math
import numbers
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from trpo_jax.errors import UsageError
from trpo_jax.runs import checkpoints
from trpo_jax.runs.cell_groups import METRICS, Arrays, Group, Table, cut
from trpo_jax.runs.cell_programs import (
    CellPrograms,
    compile_cells,
    devices_of,
    fit_cells,
    group_size,
    mean_returns,
    memory_budget,
)
from trpo_jax.runs.chunks import run_chunks
from trpo_jax.runs.config_file import config_to_dict
from trpo_jax.runs.console import Watcher
from trpo_jax.runs.folder import RunFolder, system_info
from trpo_jax.runs.records import summarize_seeds
from trpo_jax.runs.rungs import rung_ends, survivors
from trpo_jax.runs.runner import Interrupted, RunError
from trpo_jax.runs.settings import RunSettings
from trpo_jax.runs.stopping import interruptible
from trpo_jax.runs.sweep_folder import (
    SweepFolder,
    read_arrays,
    write_arrays,
    write_text,
)
from trpo_jax.runs.sweep_result import SweepResult
from trpo_jax.runs.sweep_search import Search, read_search
from trpo_jax.tracing import is_tracing
from trpo_jax.training.cells import make_cells
from trpo_jax.training.config import TRPOConfig, check_config
from trpo_jax.training.iteration import Metrics
from trpo_jax.training.search import PROGRAM_FIELDS, as_list, program_of
from trpo_jax.training.seeds import state_type
from trpo_jax.training.state import TrainState
from trpo_jax.trust_region.checks import whole

# A group that takes longer is saved on the way: so much work is lost by a kill at most.
_SAVE_MINUTES = 5.0


def sweep(
    config: TRPOConfig,
    folder: str | pathlib.Path | None = None,
    *,
    num_seeds: int | None = None,
    num_settings: int | None = None,
    search_seed: int = 0,
    halving: Sequence[float] = (),
    eta: float | int = 2,
    num_episodes: int = 128,
    memory_gib: float | int | None = None,
    progress: bool = True,
    **fields: Any,
) -> SweepResult:
    """Train every setting of some fields with every seed, side by side, and rank them.

    Lists of values make a grid of all combinations; `uniform` and `log_uniform` a
    random search. Traced fields (`Hyperparameters`) share one compiled program; each
    combination of other fields compiles its own. As many cells, (setting, seed), are
    trained at once as the memory allows, on all devices. A cell has the keys of
    `train(setting)`, and equals it to rounding.

    Args:
        config: The config whose fields are swept.
        folder: A folder for the records, new or of this same sweep: then the sweep goes
            on where it stopped, even if it was killed, and ends in the same bits on the
            same kind of machine. None to keep nothing.
        num_seeds: Runs of each setting; `config.num_seeds` by default.
        num_settings: Settings of a random search.
        search_seed: Seed of its draws.
        halving: Fractions of the updates after each of which only the best 1/η of the
            settings go on, from the states that they have reached.
        eta: η.
        num_episodes: Episodes that evaluate each cell's policy, with greedy actions.
        memory_gib: Memory that the programs may use on all devices together; most of
            what is free by default.
        progress: Whether to show progress.
        **fields: By the name of a field, a list of values, `log_uniform(low, high)` or
            `uniform(low, high)`.

    Returns:
        A `SweepResult`.

    Raises:
        UsageTypeError: If an argument is of the wrong type.
        UsageError: Before anything compiles: if a field cannot be swept, has no value,
            or one that is out of range; or the folder holds another sweep (the message
            names what differs). Later, if a single run does not fit into the memory.
        RunError: If the disk is full.
        Interrupted: A KeyboardInterrupt, if a signal came to a sweep with a folder.
    """
    check_config(config)
    if is_tracing() or jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        raise UsageError(
            "a sweep works on the host with compiled programs: it can neither be "
            "traced by jit, vmap or grad, nor run under JAX_DISABLE_JIT; write "
            "trpo_jax.training.train_cells, which can."
        )
    if memory_gib is not None and not (
        isinstance(memory_gib, numbers.Real) and 0 < memory_gib < math.inf
    ):
        raise UsageError(f"memory_gib={memory_gib!r}; write GiB, as memory_gib=4.")
    seeds = config.num_seeds if num_seeds is None else num_seeds
    search = Search(
        config=dataclasses.replace(config, num_seeds=seeds),
        fields={name: as_list(values) for name, values in fields.items()},
        num_settings=num_settings,
        search_seed=search_seed,
        halving=halving,
        eta=eta,
        num_episodes=whole("num_episodes", num_episodes),
    )
    settings = search.settings()
    devices = devices_of(config)
    with contextlib.ExitStack() as stack:
        path = folder
        if path is None:
            path = stack.enter_context(tempfile.TemporaryDirectory())
        files = SweepFolder(path)
        description = search.describe()
        files.check(description)
        stack.enter_context(files.lock(make=True))
        files.check_devices(len(devices))
        if not files.description.exists():
            files.write_description(description)
        budget_fn = functools.partial(memory_budget, devices, memory_gib)
        keeps = folder is not None
        return _Sweep(
            search, settings, files, devices, budget_fn, progress, keeps
        ).finish()


def resume_sweep(folder: str | pathlib.Path, *, progress: bool = True) -> SweepResult:
    """Go on with the sweep in a folder, to the same table as without interruption.

    Args:
        folder: The folder that `sweep` was given.
        progress: Whether to show progress.

    Returns:
        A `SweepResult`; of a finished sweep at once.

    Raises:
        UsageError: If the folder holds no sweep, or its values are Python objects,
            which no file holds: then call `sweep` again with the same arguments.
        RunError: As `sweep`.
        Interrupted: As `sweep`.
    """
    search = read_search(SweepFolder(folder))
    rest = search._asdict()
    config, fields = rest.pop("config"), rest.pop("fields")
    return sweep(config, folder, progress=progress, **rest, **fields)


def load_sweep(folder: str | pathlib.Path) -> SweepResult:
    """Return the results in the folder of a sweep, as far as it has come.

    Args:
        folder: The folder that `sweep` was given.

    Returns:
        A `SweepResult`.

    Raises:
        UsageError: As `resume_sweep`.
    """
    files = SweepFolder(folder)
    search = read_search(files)
    settings = search.settings()
    return _Sweep(search, settings, files, (), lambda: 0, False, True).load()


class _Sweep:
    """A sweep in this process."""

    def __init__(
        self,
        search: Search,
        settings: list[TRPOConfig],
        files: SweepFolder,
        devices: Sequence[jax.Device],
        budget_fn: Callable[[], int],
        progress: bool,
        keeps: bool,
    ):
        self.search = search
        self.settings = settings
        self.files = files
        self.devices = devices
        self.budget_fn = budget_fn
        self.progress = progress
        self.keeps = keeps  # whether the folder outlives the sweep
        self.num_seeds = search.config.num_seeds
        self.cells = make_cells(settings)
        programs = [program_of(setting) for setting in settings]
        self.programs = list(dict.fromkeys(programs))
        self.program_of = np.array([self.programs.index(one) for one in programs])
        most = max(program.num_updates for program in self.programs)
        self.table = Table.empty(len(settings), self.num_seeds, most)
        self.groups: list[list[Group]] = []  # of each rung
        self.compiled: dict[tuple[int, int], CellPrograms] = {}
        self.signals: list[int] = []
        self.console = Watcher(search.config, progress=progress)  # for messages alone

    # --- the whole

    def finish(self) -> SweepResult:
        """Train what is not trained yet, and write the results."""
        try:
            with interruptible(self.console.notify, active=self.keeps) as self.signals:
                self._announce()
                for rung, active in self._rungs():
                    self._plan(rung, active)
                    for group in self.groups[rung]:
                        stored = self._read(self._results_of(group))
                        self.table.put(group, stored or self._train(group))
                        if rung + 1 == self.search.num_rungs:
                            self._prune(rung)
                    for group in self.groups[rung - 1] if rung else []:
                        self._states_of(group).unlink(missing_ok=True)
                return self._write_results()
        except OSError as error:
            with contextlib.suppress(OSError):  # which may be the reason
                self._log("stopped", reason=str(error))
            raise RunError(f"{error}. {self._how_to_go_on()}") from error

    def load(self) -> SweepResult:
        """Return what the folder holds, without training or touching anything."""
        for rung, active in self._rungs():
            self._plan(rung, active, measure=False)
            for group in self.groups[rung]:
                results = read_arrays(self._results_of(group))
                if results is not None:
                    self.table.put(group, results)
            if (self.table.rungs[active] < rung).any():
                break
        return self._result(self._load_best())

    def _announce(self) -> None:
        config, count = self.search.config, len(self.settings)
        varied = [name for name in self.search.fields if name in PROGRAM_FIELDS]
        why = f" ({', '.join(varied)})" if varied else ""
        rungs = self.search.num_rungs
        halving = f", {rungs} rungs of halving" if rungs > 1 else ""
        smaller = ", and smaller ones for later rungs" if rungs > 1 else ""
        self.console.notify(
            f"sweep of {config.env}: {count:,} settings × {self.num_seeds:,} seeds = "
            f"{count * self.num_seeds:,} runs{halving}; {len(self.programs)} "
            f"program(s) to compile{why}{smaller}"
        )
        event = "resumed" if self.files.events.exists() else "started"
        self._log(event, **system_info())

    def _rungs(self) -> Iterator[tuple[int, Bool[np.ndarray, " settings"]]]:
        """Yield each rung with its settings; the table must hold those before."""
        active = np.ones(len(self.settings), bool)
        for rung in range(self.search.num_rungs):
            if rung:
                active = survivors(self.table.returns, active, self.search.eta)
            yield rung, active

    def _plan(
        self, rung: int, active: Bool[np.ndarray, " settings"], *, measure: bool = True
    ) -> None:
        """Cut the cells of a rung into groups, program by program."""
        self.groups.append([])
        for index, program in enumerate(self.programs):
            settings = np.flatnonzero(active & (self.program_of == index))
            cells = settings[:, None] * self.num_seeds + np.arange(self.num_seeds)
            at_once = self._cells_at_once(index, cells.size, measure=measure)
            if not cells.size or not at_once:
                continue
            num_devices = self.files.read_plan()["num_devices"]
            ends = [0, *rung_ends(program.num_updates, self.search.halving)]
            whole_rung = Group(
                program=index,
                rung=rung,
                number=0,
                cells=cells.ravel(),
                size=group_size(cells.size, at_once, num_devices),
                first=ends[rung],
                last=ends[rung + 1],
            )
            self.groups[rung] += cut(whole_rung)

    def _cells_at_once(self, index: int, total: int, *, measure: bool) -> int:
        """Return how many cells of a program fit into the memory; 0 if not known.

        Measured once, and kept: other groups could end in other bits.
        """
        at_once = self.files.read_plan()["cells_at_once"].get(str(index), 0)
        if at_once or not measure or not total:
            return at_once
        fitted = fit_cells(
            self.programs[index],
            total,
            self.search.num_episodes,
            self.devices,
            self.budget_fn(),
        )
        self.compiled[index, fitted.num_cells] = fitted
        self.files.decide(index, fitted.num_cells, len(self.devices))
        self.console.notify(
            f"program {index + 1} of {len(self.programs)}: {fitted.num_cells:,} runs "
            f"at once, in {fitted.bytes_per_device / 2**30:.3g} GiB on each of "
            f"{len(self.devices)} device(s)"
        )
        return fitted.num_cells

    # --- one group

    def _train(self, group: Group) -> Arrays:
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
                stop_fn=lambda: bool(self.signals),
            ):
                metrics = jax.tree.map(lambda leaf: leaf[:, :count], chunk.metrics)
                watcher.watch(chunk._replace(metrics=metrics))
                parts.append(_kept(metrics))
                updates = chunk.updates
                if chunk.state is not None:
                    state = chunk.state
                    if updates < group.last and self.keeps:
                        self._save_progress(group, state, updates, parts)
        if updates < group.last:
            self._stop()
        keys = programs.place(self.cells.evaluation_keys[group.padded])
        sums, ended = programs.evaluate(state, keys)
        results = _joined(parts)
        results["returns"] = mean_returns(sums, ended)[:count]
        results["unended"] = self.search.num_episodes - np.asarray(ended)[:count]
        states = {name: leaf[:count] for name, leaf in _on_host(state).items()}
        write_arrays(self._states_of(group), states)
        # Last: a group with this file is finished.
        write_arrays(self._results_of(group), results)
        self.files.progress.unlink(missing_ok=True)
        seconds = round(time.perf_counter() - begin, 3)
        self._log("group", name=group.name, runs=count, seconds=seconds)
        return results

    def _watcher_of(self, group: Group) -> Watcher:
        """Return the progress of a group, announced."""
        of_rung = self.groups[group.rung]
        number = 1 + [one.name for one in of_rung].index(group.name)
        rung = f"rung {group.rung + 1}, " if self.search.num_rungs > 1 else ""
        program = self.programs[group.program]
        self.console.notify(
            f"{rung}group {number} of {len(of_rung)}: {len(group.cells):,} runs, "
            f"updates {group.first + 1:,} to {group.last:,}"
        )
        runs = dataclasses.replace(program, num_seeds=len(group.cells))
        return Watcher(runs, progress=self.progress)

    def _programs_of(self, group: Group) -> CellPrograms:
        if self.signals:
            self._stop()
        at = group.program, group.size
        if at not in self.compiled:
            self.compiled[at] = compile_cells(
                self.programs[group.program],
                group.size,
                self.search.num_episodes,
                self.devices,
            )
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
        before = self._states(group.rung - 1, group.padded)
        return self._on_device(programs, before), group.first, []

    def _save_progress(
        self, group: Group, state: TrainState, updates: int, parts: list[Arrays]
    ) -> None:
        arrays = {"group": np.array(group.name), "updates": np.array(updates)}
        arrays |= {f"state/{name}": leaf for name, leaf in _on_host(state).items()}
        arrays |= {f"metrics/{name}": leaf for name, leaf in _joined(parts).items()}
        write_arrays(self.files.progress, arrays)

    def _on_device(self, programs: CellPrograms, leaves: Arrays) -> TrainState:
        return programs.place(checkpoints.with_leaves(programs.state_type, leaves))

    # --- states between rungs, and of the best setting

    def _states(self, rung: int, cells: Int[np.ndarray, " cells"]) -> Arrays:
        """Return the leaves of some cells' states at the end of a rung.

        A group whose file is gone or damaged is trained again.
        """
        leaves: Arrays = {}
        for group in self.groups[rung]:
            at = np.flatnonzero(np.isin(cells, group.cells))
            if not at.size:
                continue
            stored = self._read(self._states_of(group))
            if stored is None:
                self._train(group)
                stored = self._read(self._states_of(group))
                assert stored is not None
            rows = np.searchsorted(group.cells, cells[at])
            for name, leaf in stored.items():
                empty = np.empty((len(cells), *leaf.shape[1:]), leaf.dtype)
                leaves.setdefault(name, empty)[at] = leaf[rows]
        return leaves

    def _prune(self, rung: int) -> None:
        """Delete the last states that nothing will ask for."""
        needed = self.table.states_needed(rung)
        for group in self.groups[rung]:
            if not needed[group.cells // self.num_seeds].any():
                self._states_of(group).unlink(missing_ok=True)

    def _best_state(self) -> TrainState:
        best = self.table.order()[0]
        cells = best * self.num_seeds + np.arange(self.num_seeds)
        leaves = self._states(self.search.num_rungs - 1, cells)
        if self.num_seeds == 1:
            leaves = {name: leaf[0] for name, leaf in leaves.items()}
        return checkpoints.with_leaves(state_type(self.settings[best]), leaves)

    def _load_best(self) -> TrainState | None:
        """Return the state in the folder of the best setting; None if there is none."""
        if not self.files.best.exists():
            return None
        config = self.settings[self.table.order()[0]]
        restored = RunFolder(self.files.best).restore(config, self._warn)
        return restored[0] if restored else None

    # --- results

    def _write_results(self) -> SweepResult:
        """Write ranking, dataset and the best setting; return the result."""
        state = self._load_best() or self._best_state()
        result = self._result(state)
        self.console.notify(result.table(rows=10))
        if not self.keeps:
            return result
        write_text(self.files.ranking, result.csv())
        try:
            result.dataset.to_netcdf(self.files.dataset, engine="scipy")
        except UsageError as error:
            self.console.notify(f"without {self.files.dataset.name}: {error}")
        if not self.files.best.exists():
            self._write_best(result.best, state)
        for group in self.groups[-1]:
            self._states_of(group).unlink(missing_ok=True)
        self._log("finished")
        return result

    def _write_best(self, config: TRPOConfig, state: TrainState) -> None:
        """Write the best setting as the folder of a run; it appears once complete."""
        partial = self.files.path / "best.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        run_folder = RunFolder(partial)
        run_folder.create(
            config, RunSettings(evaluation_episodes=self.search.num_episodes)
        )
        best = self.table.order()[0]
        rows = []
        for update in range(config.num_updates):
            metrics = {
                name: values[best, :, update]
                if self.num_seeds > 1
                else values[best, 0, update]
                for name, values in self.table.metrics.items()
            }
            counts = metrics["episode_count"]
            sums = metrics.pop("episode_return_sum")
            del metrics["episode_length_sum"]
            metrics["episode_return"] = np.where(
                counts, sums / np.maximum(counts, 1), np.nan
            )
            at = {"update": update + 1, "env_steps": (update + 1) * config.batch_size}
            rows.append(at | summarize_seeds(metrics))
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_text(run_folder.metrics, text)
        manifest = checkpoints.Manifest(
            config.num_updates,
            None,
            config_to_dict(config),
            checkpoints.jax_settings(),
        )
        checkpoints.save(run_folder.checkpoints, state, manifest)
        partial.rename(self.files.best)

    def _result(self, best_state: TrainState | None) -> SweepResult:
        return SweepResult(
            settings=tuple(self.settings),
            swept=tuple(self.search.fields),
            returns=self.table.returns,
            unended=self.table.unended,
            updates=self.table.updates.min(axis=1),
            rungs=self.table.rungs.min(axis=1),
            metrics=self.table.metrics,
            best_state=best_state,
            folder=self.files.path if self.keeps else None,
        )

    # --- files and messages

    def _results_of(self, group: Group) -> pathlib.Path:
        return self.files.groups / f"{group.name}.npz"

    def _states_of(self, group: Group) -> pathlib.Path:
        return self.files.states / f"{group.name}.npz"

    def _read(self, path: pathlib.Path) -> Arrays | None:
        return read_arrays(path, self._warn)

    def _stop(self) -> None:
        self._log("interrupted")
        message = f"interrupted. {self._how_to_go_on()}"
        raise Interrupted(message, self.signals[0])

    def _how_to_go_on(self) -> str:
        if not self.keeps:
            return "Nothing is kept without a folder."
        done = int((self.table.rungs >= 0).sum())
        return (
            f"The sweep in {self.files.path} has finished groups with {done:,} of "
            f"{self.table.rungs.size:,} runs; to go on: {self.files.how_to_resume()}"
        )

    def _log(self, event: str, **details: Any) -> None:
        self.files.log_event(event, **details)

    def _warn(self, message: str) -> None:
        self._log("warning", message=message)
        self.console.notify(f"warning: {message}")


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
    return {name: np.asarray(flat[name]) for name in METRICS}


def _joined(parts: list[Arrays]) -> Arrays:
    """Return the metrics of consecutive updates as one array for each name."""
    return {name: np.concatenate([part[name] for part in parts]) for name in METRICS}


def _under(prefix: str, arrays: Arrays) -> Arrays:
    """Return the arrays whose names begin with `prefix/`, without it."""
    start = f"{prefix}/"
    return {
        name.removeprefix(start): value
        for name, value in arrays.items()
        if name.startswith(start)
    }


def _on_host(state: TrainState) -> Arrays:
    return jax.device_get(checkpoints.leaves_by_path(state))
