"""Placement of a run on devices: agents (seeds) first, then environments.

The parameters of an agent are on each of its devices, its environments are split over
them, and XLA derives from this how the work is shared. A mean over transitions becomes
a sum on each device and an all-reduce; nothing of the size of a batch is exchanged,
because rows are environment-major. Agents exchange nothing.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from trpo_jax.environments.gymnasium import is_on_host
from trpo_jax.errors import UsageError
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.config_checks import AGENTS, ENVIRONMENTS, mesh_shape

T = TypeVar("T")


def make_mesh(config: TRPOConfig) -> Mesh | None:
    """Return the devices of a run, a mesh of agents × environments.

    Args:
        config: The run, whose field `devices` is a number or a mesh. None: as many of
            all devices as divide seeds and environments.

    Returns:
        The mesh; None for the default device alone.

    Raises:
        UsageError: If there are fewer devices, or some process would have none.
    """
    if config.devices == 1:  # of each process its own, as in a cell of a sweep
        return None
    if isinstance(config.devices, Mesh):
        names = config.devices.axis_names
        order = [names.index(axis) for axis in (AGENTS, ENVIRONMENTS) if axis in names]
        devices = config.devices.devices.transpose(order)
    else:
        devices = np.asarray(jax.devices())
        if config.devices is not None and config.devices > devices.size:
            raise UsageError(
                f"devices={config.devices}, but JAX has {devices.size}; write "
                f"devices={devices.size}, or None for all."
            )
    shape = mesh_shape(config, devices.size)
    devices = devices.ravel()[: math.prod(shape)]
    advice = "write devices=None, for all"
    if is_on_host(config.env):
        advice = f"{config.env} is stepped in one process: start one alone"
    elif config.devices is None:
        advice = (
            f"write num_envs (now {config.num_envs}) as a multiple of "
            f"{jax.device_count()}"
        )
    check_processes(devices, advice)
    if devices.tolist() == jax.devices()[:1]:
        return None
    return Mesh(devices.reshape(shape), (AGENTS, ENVIRONMENTS), (AxisType.Auto,) * 2)


def check_processes(devices: Iterable[jax.Device], advice: str) -> None:
    """Raise UsageError, with advice, if a process would use none of its devices."""
    used = list(devices)
    if len({device.process_index for device in used}) < jax.process_count():
        raise UsageError(
            f"{len(used)} of {jax.device_count()} devices would be used, and by some "
            f"of the {jax.process_count()} processes none of theirs; {advice}, or "
            "start fewer processes."
        )


def check_placed(config: TRPOConfig, array: jax.Array) -> None:
    """Raise UsageError if an array of a state is on other devices than its run's.

    One device is not refused: JAX moves the arrays, or the run stays there.
    """
    mesh = _mesh_here(config)
    # Also of an array that is traced, where its devices are unknown.
    number = jax.typeof(array).sharding.mesh.size
    if mesh is not None and 1 < number != mesh.size:
        raise UsageError(
            f"the state is on {number} devices, and config.devices={config.devices!r} "
            f"makes a run on {mesh.size}; write devices={number}, or pass "
            "jax.device_get(state), which goes on any."
        )


def place(config: TRPOConfig, state: T, *, num_seeds: int = 1) -> T:
    """Constrain a `TrainState` to the devices of its run, in a program.

    Args:
        config: The run.
        state: The state of one agent; or of several, with a leading axis.
        num_seeds: How many agents it has.
    """
    shardings = state_shardings(config, state, num_seeds=num_seeds)
    if shardings is None:
        return state
    return jax.lax.with_sharding_constraint(state, shardings)


def state_shardings(config: TRPOConfig, state: Any, *, num_seeds: int = 1) -> Any:
    """Return the sharding of each leaf of a `TrainState`; None on one device."""
    mesh = _mesh_here(config)
    if mesh is None:
        return None
    leading = (AGENTS,) * (num_seeds > 1)

    def split_by(*axes: str) -> Callable[[PyTree], PyTree]:
        sharding = NamedSharding(mesh, PartitionSpec(*leading, *axes))
        return lambda tree: jax.tree.map(lambda _: sharding, tree)

    by_environment = split_by(ENVIRONMENTS)
    costs = split_by()(state.costs)
    if costs is not None:
        memory = by_environment(state.costs.critic_memory)
        costs = costs._replace(critic_memory=memory)
    return split_by()(state)._replace(
        costs=costs,
        rollout=by_environment(state.rollout),
        critic_memory=by_environment(state.critic_memory),
        discounted_return=by_environment(state.discounted_return),
    )


def replicate(config: TRPOConfig, tree: T) -> T:
    """Constrain arrays to be whole on each device, in a program."""
    mesh = _mesh_here(config)
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def put(tree: T, shardings: Any) -> T:
    """Return arrays that each process has whole, with a sharding for each; None: as is.

    Not by `device_put`, with which processes compare the arrays of each.
    """
    if shardings is None:
        return tree
    return jax.tree.map(
        lambda leaf, sharding: jax.make_array_from_callback(
            leaf.shape, sharding, lambda index: leaf[index]
        ),
        tree,
        shardings,
    )


def split_episodes(config: TRPOConfig, episodes: T, num_episodes: int) -> T:
    """Split arrays [num_episodes, …] over devices, if these divide it, in a program."""
    mesh = _mesh_here(config)
    if mesh is None or num_episodes % mesh.shape[ENVIRONMENTS]:
        return episodes
    sharding = NamedSharding(mesh, PartitionSpec(ENVIRONMENTS))
    constrain = jax.lax.with_sharding_constraint
    return jax.tree.map(
        lambda leaf: constrain(leaf, sharding) if leaf.ndim else leaf, episodes
    )


def over_agents(config: TRPOConfig, fn: Callable) -> Callable:
    """Return `fn`, mapped over a leading axis of agents, which is split over devices.

    In a loop whose end depends on data, such as conjugate gradient, agents on different
    devices do not wait for one another.
    """
    return _by_device(jax.vmap(fn), make_mesh(config), AGENTS)


def over_environments(config: TRPOConfig, fn: Callable) -> Callable:
    """Return `fn`, mapped over a leading axis of environments, in the same way."""
    return _by_device(jax.vmap(fn), _mesh_here(config), ENVIRONMENTS)


def _by_device(fn: Callable, mesh: Mesh | AbstractMesh | None, axis: str) -> Callable:
    """Let each device along an axis call `fn` on its part of the arrays."""
    if mesh is None or mesh.shape[axis] == 1:
        return fn
    parts = PartitionSpec(axis)
    return jax.shard_map(
        fn,
        mesh=mesh,
        in_specs=parts,
        out_specs=parts,
        axis_names={axis},
        # The check demands that loops start from values marked as differing by device,
        # and environments start from constants.
        check_vma=False,
    )


def _mesh_here(config: TRPOConfig) -> Mesh | AbstractMesh | None:
    """Return the mesh as it is seen here: inside `over_agents`, agents are split."""
    mesh = make_mesh(config)
    here = jax.sharding.get_abstract_mesh()
    return here if mesh is not None and AGENTS in here.axis_names else mesh
