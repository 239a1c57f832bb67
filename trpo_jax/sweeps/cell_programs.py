"""Compiled programs of the cells of a sweep, over all devices, within a memory budget.

Each device trains its share of the cells by a program of its own (`shard_map`). Left to
XLA, a loop that runs until every cell is done, as conjugate gradient's, would ask the
other devices in each iteration. Where several processes have the devices, metrics and
results of evaluations are gathered once they are there, so that each process has all.
"""

import functools
import math
import pathlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, PyTree

from trpo_jax.errors import UsageError
from trpo_jax.policies.evaluation import evaluate_with_costs
from trpo_jax.runs.chunks import Programs, repeat_step
from trpo_jax.runs.processes import exchange
from trpo_jax.sweeps.cell_groups import group_size
from trpo_jax.training.cells import Cells, init_cells, step_cells
from trpo_jax.training.compilation import jit_with_options
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.metrics import Metrics
from trpo_jax.training.placement import check_processes, put
from trpo_jax.training.state import TrainState
from trpo_jax.trust_region.checks import whole

_CELLS = PartitionSpec("cells")

# Shares of the memory that is free now. On a CPU the operating system and XLA's own
# compiler take from the same memory; on an accelerator it is fragmented at most.
_SHARE_OF_HOST, _SHARE_OF_DEVICE = 0.7, 0.9


class CellPrograms(NamedTuple):
    """The compiled functions of a number of cells.

    Attributes:
        training: Those that `run_chunks` takes.
        evaluate: (state, keys) ↦ (sum of the returns of the episodes that ended, how
            many did, sums of their costs), [cells], [cells] and [cells, K].
        num_cells: Number of cells, a multiple of the number of devices.
        state_type: Shapes and dtypes of the state.
        bytes_per_device: Memory that a device needs at once, from the compiled
            programs.
        sharding: The placement of arrays [cells, …].
    """

    training: Programs
    evaluate: Callable[[TrainState, Array], tuple[Array, Array, Array]]
    num_cells: int
    state_type: PyTree
    bytes_per_device: int
    sharding: NamedSharding

    def place(self, tree: PyTree) -> PyTree:
        """Return a pytree with leaves [cells, …], split over the devices."""
        if jax.process_count() == 1:
            return jax.device_put(tree, self.sharding)
        return put(tree, jax.tree.map(lambda _: self.sharding, tree))

    def fetch(self, tree: PyTree) -> PyTree:
        """Return a pytree with leaves [cells, …] on the host of every process."""
        if jax.process_count() == 1:
            return jax.device_get(tree)
        # Leaf by leaf, so that a device holds one of them whole at a time.
        gather = jax.jit(_identity, out_shardings=_whole(self.sharding.mesh))
        return jax.tree.map(
            lambda leaf: np.asarray(gather(leaf).addressable_data(0)), tree
        )


def compile_cells(
    program: TRPOConfig,
    num_cells: int,
    num_episodes: int,
    devices: Sequence[jax.Device],
) -> CellPrograms:
    """Compile the functions of `num_cells` cells, and read what memory they need.

    Args:
        program: `program_of` of their settings.
        num_cells: Number of cells, a multiple of the number of devices.
        num_episodes: Episodes of each evaluation.
        devices: The devices, each of which trains its share of the cells.
    """
    mesh = Mesh(np.asarray(devices), ("cells",), axis_types=(AxisType.Auto,))
    made_for = (program, mesh)
    steps = num_cells * program.total_timesteps
    # `init` and `copy` run seldom: compiling fast matters more than running fast.
    init = jit_with_options(_init, made_for, env_steps=0)
    run_updates = jit_with_options(
        _run_updates, made_for, env_steps=steps, donate_argnums=(0,)
    )
    copy = jit_with_options(_copy, made_for, env_steps=0)
    # Played once for each group.
    play = jit_with_options(_evaluate, (*made_for, num_episodes), env_steps=1)

    placed = functools.partial(_types, sharding=NamedSharding(mesh, _CELLS))
    cells = jax.eval_shape(lambda: _some_cells(program, num_cells))
    state = jax.eval_shape(init, cells)
    count = _types(jnp.int32(0), _whole(mesh))
    inputs: tuple[tuple[Any, tuple], ...] = (
        (init, (placed(cells),)),
        (run_updates, (placed(state), count)),
        (copy, (placed(state),)),
        (play, (placed(state), placed(cells.evaluation_keys))),
    )
    lowered = (jitted.lower(*arguments) for jitted, arguments in inputs)
    with ThreadPoolExecutor() as pool:
        compiled = list(pool.map(jax.stages.Lowered.compile, lowered))
    _, training, _, playing = (_memory(one) for one in compiled)
    state_bytes = bytes_of(state) // mesh.size
    return CellPrograms(
        Programs(*compiled[:3]),
        compiled[3],
        num_cells,
        state,
        # While the host handles one chunk of updates the device makes the next: two
        # records of metrics, and the copy of a state that is being saved.
        max(training.total + training.records + state_bytes, playing.total),
        NamedSharding(mesh, _CELLS),
    )


def fit_cells(
    program: TRPOConfig,
    total: int,
    num_episodes: int,
    devices: Sequence[jax.Device],
    budget: int,
) -> CellPrograms:
    """Compile the program that trains the most cells at once within a budget.

    The memory comes from XLA's own account of the compiled program. It grows linearly
    with the cells, so a second program, rarely a third, fits where the first does not.

    Args:
        program: `program_of` of their settings.
        total: All cells that are to be trained, in equal groups.
        num_episodes: Episodes of each evaluation.
        devices: The devices.
        budget: Bytes that a device may use.

    Raises:
        UsageError: If one cell on each device does not fit.
    """
    one = jax.eval_shape(lambda: init_cells(program, _some_cells(program, 1)))
    # Not even the states of more would fit.
    fitting = max(1, budget // bytes_of(one)) * len(devices)
    before: tuple[int, int] | None = None
    while True:
        num_cells = group_size(total, fitting, len(devices))
        programs = compile_cells(program, num_cells, num_episodes, devices)
        needed = programs.bytes_per_device
        if needed <= budget:
            return programs
        if num_cells == len(devices):
            raise UsageError(
                f"one run of {program.env} with {program.num_envs} × "
                f"{program.rollout_length} steps per update needs {_gib(needed)} GiB "
                f"on a device, and the budget is {_gib(budget)} GiB; write memory_gib="
                f"{_gib(1.01 * needed * len(devices))} or more, or reduce num_envs, "
                "rollout_length, micro_batch_size or num_episodes."
            )
        # A line through the last two programs; through zero, if there is but one.
        size, at_size = before or (0, 0)
        per_cell = (needed - at_size) / (num_cells - size)
        fixed = needed - per_cell * num_cells
        before = num_cells, needed
        fitting = min(int((budget - fixed) / per_cell), num_cells - len(devices))


def devices_of(
    wanted: int | Mesh | None, num_devices: int = 0
) -> tuple[jax.Device, ...]:
    """Return the devices of a sweep.

    Args:
        wanted: How many, or which.
        num_devices: How many where that is None, as far as there are so many; 0 for
            all.

    Raises:
        UsageError: If there are fewer; or some of several processes would have none.
        UsageTypeError: If `wanted` is of another type.
    """
    devices = jax.devices()
    if isinstance(wanted, Mesh):
        devices = [*wanted.devices.flat]
    else:
        if wanted is not None and whole("devices", wanted) > len(devices):
            raise UsageError(
                f"devices={wanted}, but JAX has {len(devices)}; write "
                f"devices={len(devices)}, or None for all."
            )
        devices = devices[: wanted or num_devices or None]
    check_processes(devices, "start the sweep anew on all devices")
    return tuple(devices)


def memory_budget(
    devices: Sequence[jax.Device], memory_gib: float | int | None = None
) -> int:
    """Return the bytes that a sweep may use on each device.

    Args:
        devices: The devices.
        memory_gib: Memory of all devices together; by default most of what is free now
            on the devices, or on a CPU in the machine or the process's cgroup.
    """
    if memory_gib is not None:
        return int(memory_gib * 2**30) // len(devices)
    own = [one for one in devices if one.process_index == jax.process_index()]
    stats = [device.memory_stats() for device in own]
    if all(one and "bytes_limit" in one for one in stats):
        free = min(one["bytes_limit"] - one["bytes_in_use"] for one in stats)
        budget = int(_SHARE_OF_DEVICE * free)
    else:
        budget = int(_SHARE_OF_HOST * _free_host_memory()) // len(own)
    return min(exchange(budget))


def bytes_of(tree: PyTree) -> int:
    """Return the bytes of all leaves, which may be mere shapes and dtypes."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def _gib(count: float | int) -> str:
    return f"{count / 2**30:.3g}"


class _MemoryUse(NamedTuple):
    total: int
    records: int


def _memory(compiled: jax.stages.Compiled) -> _MemoryUse:
    """Return the bytes a program needs on a device, and those of its new output."""
    stats: Any = compiled.memory_analysis()
    new = stats.output_size_in_bytes - stats.alias_size_in_bytes
    total = stats.argument_size_in_bytes + stats.temp_size_in_bytes + new
    return _MemoryUse(int(total), int(new))


def _free_host_memory() -> int:
    """Return the bytes that are free in the machine, and in the process's cgroup."""
    free = []
    meminfo = pathlib.Path("/proc/meminfo")
    if meminfo.exists():
        (line,) = (
            one for one in meminfo.read_text().splitlines() if "MemAvailable" in one
        )
        free.append(int(line.split()[1]) * 1024)
    cgroup = pathlib.Path("/sys/fs/cgroup")
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        if limit != "max":
            free.append(int(limit) - int((cgroup / "memory.current").read_text()))
    except OSError:  # no cgroup, or the root one
        pass
    # Where the system does not say: a quarter of 16 GiB.
    return min(free, default=4 * 2**30)


def _identity(leaf: Array) -> Array:  # one function, so that JAX compiles it once
    return leaf


def _whole(mesh: Any) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def _gathered(tree: PyTree, mesh: Mesh) -> PyTree:
    """Constrain results to be whole on each device if processes share the devices."""
    if jax.process_count() == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, _whole(mesh))


def _types(tree: PyTree, sharding: NamedSharding) -> PyTree:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
    )


def _some_cells(program: TRPOConfig, num_cells: int) -> Cells:
    keys = jax.random.split(jax.random.key(0), num_cells)
    floats = jax.tree.map(
        lambda value: jnp.full(num_cells, value, jnp.float32), program.hyperparameters
    )
    return Cells(keys, keys, floats)


def _over_devices(fn: Callable, mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable:
    """Return `fn` mapped over the devices, each with its own cells."""
    # Without the check of replication: JAX cannot follow it through every primitive,
    # and nothing here is replicated but the count of updates.
    return jax.shard_map(
        fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


_MadeFor = tuple[TRPOConfig, Mesh]


def _init(made_for: _MadeFor, cells: Cells) -> TrainState:
    program, mesh = made_for
    fn = functools.partial(init_cells, program)
    return _over_devices(fn, mesh, _CELLS, _CELLS)(cells)


def _copy(made_for: _MadeFor, state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)


def _run_updates(
    made_for: _MadeFor, state: TrainState, count: Int[Array, ""]
) -> tuple[TrainState, Metrics]:
    program, mesh = made_for
    fn = functools.partial(repeat_step, functools.partial(step_cells, program))
    out_specs = (_CELLS, PartitionSpec(None, "cells"))
    over_devices = _over_devices(fn, mesh, (_CELLS, PartitionSpec()), out_specs)
    state, records = over_devices(state, count)
    return state, _gathered(records, mesh)


def _evaluate(
    made_for: tuple[TRPOConfig, Mesh, int],
    state: TrainState,
    keys: Key[Array, " cells"],
) -> tuple[Float[Array, " cells"], Int[Array, " cells"], Float[Array, "cells K"]]:
    program, mesh, num_episodes = made_for

    def play(state: TrainState, key: Key[Array, ""]) -> tuple[Array, Array, Array]:
        returns, costs = evaluate_with_costs(program, state, key, num_episodes)
        if costs is None:
            costs = jnp.zeros((num_episodes, 0))
        # Not a mean: `jax_debug_nans` would stop at one of no episode.
        ended = jnp.isfinite(returns)
        return (
            jnp.sum(returns, where=ended),
            jnp.sum(ended),
            jnp.sum(costs, axis=0, where=ended[:, None]),
        )

    played = _over_devices(jax.vmap(play), mesh, _CELLS, _CELLS)(state, keys)
    return _gathered(played, mesh)
