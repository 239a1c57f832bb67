"""Warm starts: a run that begins with what another has learnt."""

import pathlib
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from trpo_jax.errors import UsageError, array_types, differing
from trpo_jax.runs import checkpoints
from trpo_jax.runs.config_file import config_to_dict
from trpo_jax.runs.folder import RunFolder
from trpo_jax.training.components import make_components
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.origin import NETWORK_FIELDS
from trpo_jax.training.placement import put
from trpo_jax.training.seeds import state_type
from trpo_jax.training.state import LEARNT, TrainState, in_32_bits, learnt_types
from trpo_jax.version import __version__


def find_start(folder: str | pathlib.Path, config: TRPOConfig) -> pathlib.Path:
    """Return the newest whole checkpoint in a run's folder, to start `config` from.

    Raises:
        UsageError: If there is no run, no checkpoint or no whole one; or its networks
            do not fit `config`: the message names what differs.
    """
    source = RunFolder(folder)
    source.read_values()
    paths = checkpoints.complete(source.checkpoints)
    path = checkpoints.read_last(paths, _verified, warnings.warn)
    if path is None:
        raise UsageError(
            f"{source.path} has no checkpoint yet, which a warm start needs; resume "
            "that run first."
        )
    read_learnt(path, config)
    return path


def read_learnt(path: pathlib.Path, config: TRPOConfig) -> dict[str, np.ndarray]:
    """Return the leaves of a checkpoint that fits `config`.

    Raises:
        UsageError: If it is damaged, or does not fit `config`.
    """
    manifest = checkpoints.verify(path)
    _check(path, *_fields(manifest, config))
    arrays = checkpoints.read_arrays(path)
    like = state_type(config)
    _check(path, _types_in(arrays, manifest), _types_of(like, config))
    return {
        name: array for name, array in arrays.items() if name.split(".")[0] in LEARNT
    }


def as_learnt(arrays: dict[str, np.ndarray], config: TRPOConfig) -> dict[str, PyTree]:
    """Return policy, critic and normalisers, as fields of a state.

    A checkpoint of one seed starts every seed of `config`.

    Args:
        arrays: What `read_learnt` returns.
        config: The run.
    """
    like = state_type(config)

    def take(location: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        # Orbax does not write empty arrays.
        array = arrays.get(checkpoints.name_of(location), np.zeros(leaf.shape))
        placed = jnp.asarray(np.broadcast_to(array, leaf.shape), leaf.dtype)
        return put(placed, leaf.sharding)

    learnt = {name: getattr(like, name) for name in LEARNT}
    return jax.tree_util.tree_map_with_path(take, learnt)


def _verified(path: pathlib.Path) -> pathlib.Path:
    checkpoints.verify(path)
    return path


def _check(path: pathlib.Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise UsageError if the values of a checkpoint are not those of the config."""
    different = differing(found, wanted, str)
    if different:
        raise UsageError(
            f"{path} cannot start this run. What differs (there, here): "
            f"{'; '.join(different)}. Give this run an environment with the same "
            "actions, bounds included, the values in the config.json of that one, "
            "which the option --config reads, and its version of trpo_jax, or leave "
            "out the warm start."
        )


def _fields(
    manifest: checkpoints.Manifest, config: TRPOConfig
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return, of a checkpoint and of a config, what has to be the same."""
    there, here = manifest.config, config_to_dict(config)
    names = [*NETWORK_FIELDS]
    if there["num_seeds"] != 1:
        names.append("num_seeds")
    space = make_components(config).environment.action_space
    return (
        {"trpo_jax": manifest.version, "action_space": manifest.action_space}
        | {name: there[name] for name in names},
        {"trpo_jax": __version__, "action_space": str(space)}
        | {name: here[name] for name in names},
    )


def _types_in(
    arrays: dict[str, np.ndarray], manifest: checkpoints.Manifest
) -> dict[str, str]:
    """Return the types of an observation and of what a seed has learnt, by name."""
    axes, types = int(manifest.config["num_seeds"] > 1), {}

    def of_one(array: np.ndarray, axes: int) -> str:
        leaf = jax.ShapeDtypeStruct(array.shape[axes:], array.dtype)
        return array_types(in_32_bits(leaf))

    for name, array in arrays.items():
        if name.startswith("rollout.observation"):
            types[name.removeprefix("rollout.")] = of_one(array, axes + 1)
        elif name.split(".")[0] in LEARNT and array.size:
            types[name] = of_one(array, axes)
    return types


def _types_of(like: TrainState, config: TRPOConfig) -> dict[str, str]:
    """Return the same of the state of a config."""
    axes = int(config.num_seeds > 1)
    one = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[axes:], leaf.dtype), like
    )
    return {
        checkpoints.name_of(path): array_types(leaf)
        for path, leaf in jax.tree.leaves_with_path(learnt_types(one))
        if leaf.size
    }
