"""Sweeps: all settings and seeds side by side, recorded in a folder and resumable."""

import contextlib
import dataclasses
import math
import numbers
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int

from trpo_jax.environments import make_environment
from trpo_jax.environments.contract import num_costs
from trpo_jax.errors import UsageError
from trpo_jax.runs import checkpoints
from trpo_jax.runs.console import Watcher
from trpo_jax.runs.folder import system_info
from trpo_jax.runs.processes import (
    agree,
    is_writer,
    on_writer,
    pass_on_signal,
    together,
)
from trpo_jax.runs.stopping import RunError, interruptible
from trpo_jax.sweeps.best_setting import read_best, write_best
from trpo_jax.sweeps.cell_groups import Group, Table, cut
from trpo_jax.sweeps.cell_programs import (
    devices_of,
    fit_cells,
    group_size,
    memory_budget,
)
from trpo_jax.sweeps.folder import (
    SweepFolder,
    flatten,
    read_arrays,
    write_text,
)
from trpo_jax.sweeps.group_training import GroupTraining
from trpo_jax.sweeps.result import SweepResult
from trpo_jax.sweeps.rungs import rung_ends, survivors
from trpo_jax.sweeps.search import Search, read_search
from trpo_jax.tracing import is_tracing
from trpo_jax.training.cells import make_cells
from trpo_jax.training.config import TRPOConfig, check_config
from trpo_jax.training.search import PROGRAM_FIELDS, as_list, program_of
from trpo_jax.training.seeds import state_type
from trpo_jax.training.state import TrainState
from trpo_jax.trust_region.checks import whole


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
    devices: int | Mesh | None = None,
    progress: bool = True,
    **fields: Any,
) -> SweepResult:
    """Train every setting of some fields with every seed, side by side, and rank them.

    Lists of values make a grid of all combinations; `uniform` and `log_uniform` a
    random search. Traced fields (`Hyperparameters`) share one compiled program; each
    combination of other fields compiles its own. As many cells, (setting, seed), are
    trained at once as the memory allows, on all devices, also of several processes
    (`trpo_jax.runs.connect_processes`), which all make the same call. A cell has the
    keys of `train(setting)`, and equals it to rounding.

    Args:
        config: The config whose fields are swept.
        folder: A folder for the records, new or of this same sweep: then the sweep
            resumes where it stopped, even if it was killed, and its results are
            bit-identical on the same kind of machine. None to keep nothing.
        num_seeds: Runs of each setting; `config.num_seeds` by default.
        num_settings: Settings of a random search.
        search_seed: Seed of its draws.
        halving: Fractions of the updates after each of which only the best 1/η of the
            settings go on, from the states that they have reached.
        eta: η.
        num_episodes: Episodes that evaluate each cell's policy, with greedy actions.
        memory_gib: Memory that the programs may use on all devices together; most of
            what is free by default.
        devices: Devices that the runs are spread over, a number or a mesh of any axes;
            `config.devices` by default. Here they need not divide anything: a group of
            runs is filled up.
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
    keeps = folder is not None
    with contextlib.ExitStack() as stack:
        stack.enter_context(together(_how_to_go_on(folder)))
        _check(memory_gib)
        wanted = config.devices if devices is None else devices
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
        settings, description = search.settings(), search.describe()
        devices_of(wanted)
        agree(
            flatten(description)
            | checkpoints.jax_settings()
            | {"folder": str(folder), "memory_gib": memory_gib, "devices": str(wanted)}
        )
        path = folder
        if path is None:
            path = stack.enter_context(tempfile.TemporaryDirectory())
        files = SweepFolder(path)

        def lock() -> int:
            files.check(description)
            stack.enter_context(files.lock(make=True))
            return files.read_plan()["num_devices"]

        chosen = devices_of(wanted, on_writer(lock))

        def begin() -> None:
            files.check_devices(len(chosen))
            if not files.description.exists():
                files.write_description(description)

        on_writer(begin)
        running = _Sweep(
            search, settings, files, chosen, keeps=keeps, progress=progress
        )
        try:
            return running.finish(memory_gib)
        except OSError as error:
            if not is_writer():
                raise
            raise _stopped(files, str(error), keeps=keeps) from error


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
    with together("Start all processes again."):
        search = on_writer(lambda: read_search(SweepFolder(folder)))
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
    return _Sweep(search, settings, files, (), keeps=True, progress=False).load()


def _check(memory_gib: float | int | None) -> None:
    """Raise UsageError where there can be no sweep."""
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


def _how_to_go_on(folder: str | pathlib.Path | None) -> str:
    """Return what to do once a process of the sweep is lost."""
    if folder is None:
        return "The sweep has no folder and is lost; start it again."
    return (
        f"To go on with the sweep in {folder}, on as many devices as before, start all "
        "processes again with the same command."
    )


def _stopped(files: SweepFolder, reason: str, *, keeps: bool) -> RunError:
    with contextlib.suppress(OSError):  # which may be the reason
        files.log_event("stopped", reason=reason)
    kept = files.how_to_go_on() if keeps else "Nothing is kept."
    return RunError(f"{reason}. {kept}")


class _Sweep:
    """A sweep in this process: its rungs, and its results."""

    def __init__(
        self,
        search: Search,
        settings: list[TRPOConfig],
        files: SweepFolder,
        devices: Sequence[jax.Device],
        *,
        keeps: bool,
        progress: bool,
    ):
        self.search = search
        self.settings = settings
        self.files = files
        self.num_seeds = search.config.num_seeds
        programs = [program_of(setting) for setting in settings]
        self.programs = list(dict.fromkeys(programs))
        self.program_of = np.array([self.programs.index(one) for one in programs])
        most = max(program.num_updates for program in self.programs)
        self.table = Table.empty(
            limits=[setting.cost_limits for setting in settings],
            num_seeds=self.num_seeds,
            num_updates=most,
            num_costs=num_costs(make_environment(search.config.env)),
        )
        self.training = GroupTraining(
            programs=self.programs,
            cells=make_cells(settings),
            num_episodes=search.num_episodes,
            devices=devices,
            files=files,
            keeps=keeps,
            progress=progress and is_writer(),
            # For messages alone.
            watcher=Watcher(search.config, progress=progress and is_writer()),
        )

    def finish(self, memory_gib: float | int | None) -> SweepResult:
        """Train what is not trained yet, and write the results."""
        training = self.training
        self._announce()
        with interruptible(
            training.watcher.notify, active=training.keeps, signal_fn=pass_on_signal
        ) as signals:
            training.signals = signals
            for rung, active in self._rungs():
                for index in np.unique(self.program_of[active]):
                    self._decide(int(index), active, memory_gib)
                self._plan(rung, active)
                for group in training.groups[rung]:
                    self.table.put(group, training.results(group))
                    if rung + 1 == self.search.num_rungs:
                        self._prune(rung)
                self._delete_states(training.groups[rung - 1] if rung else [])
            return self._write_results()

    def load(self) -> SweepResult:
        """Return what the folder holds, without training or touching anything."""
        for rung, active in self._rungs():
            self._plan(rung, active)
            for group in self.training.groups[rung]:
                results = read_arrays(self.files.results_of(group))
                if results is not None:
                    self.table.put(group, results)
            if (self.table.rungs[active] < rung).any():
                break
        return self._result(self._read_best())

    def _announce(self) -> None:
        config, count = self.search.config, len(self.settings)
        varied = [name for name in self.search.fields if name in PROGRAM_FIELDS]
        why = f" ({', '.join(varied)})" if varied else ""
        rungs = self.search.num_rungs
        halving = f", {rungs} rungs of halving" if rungs > 1 else ""
        smaller = ", and smaller ones for later rungs" if rungs > 1 else ""
        self.training.watcher.notify(
            f"sweep of {config.env}: {count:,} settings × {self.num_seeds:,} seeds = "
            f"{count * self.num_seeds:,} runs{halving}; {len(self.programs)} "
            f"program(s) to compile{why}{smaller}"
        )

        def log() -> None:
            event = "resumed" if self.files.events.exists() else "started"
            self.files.log_event(event, **system_info())

        on_writer(log)

    def _rungs(self) -> Iterator[tuple[int, Bool[np.ndarray, " settings"]]]:
        """Yield each rung with its settings; the table must hold those before."""
        active = np.ones(len(self.settings), bool)
        for rung in range(self.search.num_rungs):
            if rung:
                table = self.table
                active = survivors(table.returns, active, self.search.eta, table.excess)
            yield rung, active

    def _cells_of(
        self, index: int, active: Bool[np.ndarray, " settings"]
    ) -> Int[np.ndarray, " cells"]:
        """Return the cells of a program's active settings."""
        settings = np.flatnonzero(active & (self.program_of == index))
        seeds = np.arange(self.num_seeds)
        return (settings[:, None] * self.num_seeds + seeds).ravel()

    def _decide(
        self,
        index: int,
        active: Bool[np.ndarray, " settings"],
        memory_gib: float | int | None,
    ) -> None:
        """Decide how many cells a program trains at once: what fits into the memory.

        Measured once, and kept: other groups could end in other bits.
        """
        if str(index) in self._read_plan()["cells_at_once"]:
            return
        devices = self.training.devices
        fitted = fit_cells(
            self.programs[index],
            len(self._cells_of(index, active)),
            self.search.num_episodes,
            devices,
            memory_budget(devices, memory_gib),
        )
        self.training.compiled[index, fitted.num_cells] = fitted
        on_writer(lambda: self.files.decide(index, fitted.num_cells, len(devices)))
        self.training.watcher.notify(
            f"program {index + 1} of {len(self.programs)}: {fitted.num_cells:,} runs "
            f"at once, in {fitted.bytes_per_device / 2**30:.3g} GiB on each of "
            f"{len(devices)} device(s)"
        )

    def _plan(self, rung: int, active: Bool[np.ndarray, " settings"]) -> None:
        """Cut the cells of a rung into groups, program by program."""
        plan = self._read_plan()
        groups: list[Group] = []
        for index, program in enumerate(self.programs):
            cells = self._cells_of(index, active)
            at_once = plan["cells_at_once"].get(str(index), 0)
            if not cells.size or not at_once:  # not decided in a sweep that is loaded
                continue
            ends = [0, *rung_ends(program.num_updates, self.search.halving)]
            size = group_size(cells.size, at_once, plan["num_devices"])
            whole_rung = Group(index, rung, 0, cells, size, ends[rung], ends[rung + 1])
            groups += cut(whole_rung)
        self.training.groups.append(groups)

    def _read_plan(self) -> dict[str, Any]:
        return on_writer(self.files.read_plan)

    def _prune(self, rung: int) -> None:
        """Delete the last states that nothing will ask for."""
        needed = self.table.states_needed(rung)
        self._delete_states(
            group
            for group in self.training.groups[rung]
            if not needed[group.cells // self.num_seeds].any()
        )

    def _delete_states(self, groups: Iterable[Group]) -> None:
        paths = [self.files.states_of(group) for group in groups]
        if is_writer():
            for path in paths:
                path.unlink(missing_ok=True)

    def _best_state(self) -> TrainState:
        best = self.table.order()[0]
        cells = best * self.num_seeds + np.arange(self.num_seeds)
        leaves = self.training.states(self.search.num_rungs - 1, cells)
        if self.num_seeds == 1:
            leaves = {name: leaf[0] for name, leaf in leaves.items()}
        alone = dataclasses.replace(self.settings[best], devices=1)
        return checkpoints.with_leaves(state_type(alone), leaves)

    def _read_best(self) -> TrainState | None:
        best = self.settings[self.table.order()[0]]
        return read_best(self.files.best, best, self.training.watcher.notify)

    def _write_results(self) -> SweepResult:
        """Write ranking, dataset and the best setting; return the result."""
        state, notify = self._read_best(), self.training.watcher.notify
        missing = state is None
        result = self._result(self._best_state() if missing else state)
        notify(result.table(rows=10))
        if self.training.keeps:
            on_writer(lambda: self._write(result, with_best=missing))
        return result

    def _write(self, result: SweepResult, *, with_best: bool) -> None:
        """Write the result into the folder, and delete what is not needed any more."""
        write_text(self.files.ranking, result.csv())
        try:
            result.dataset.to_netcdf(self.files.dataset, engine="scipy")
        except UsageError as error:
            self.training.watcher.notify(f"without {self.files.dataset.name}: {error}")
        if with_best:
            assert result.best_state is not None
            best = self.table.order()[0]
            metrics = {name: values[best] for name, values in result.metrics.items()}
            write_best(
                self.files.best,
                result.best,
                result.best_state,
                metrics,
                self.search.num_episodes,
            )
        self._delete_states(self.training.groups[-1])
        self.files.log_event("finished")

    def _result(self, best_state: TrainState | None) -> SweepResult:
        return SweepResult(
            settings=tuple(self.settings),
            swept=tuple(self.search.fields),
            returns=self.table.returns,
            costs=self.table.costs if self.table.costs.size else None,
            unended=self.table.unended,
            updates=self.table.updates.min(axis=1),
            rungs=self.table.rungs.min(axis=1),
            metrics=self.table.metrics,
            best_state=best_state,
            folder=self.files.path if self.training.keeps else None,
        )
