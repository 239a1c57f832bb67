"""Checkpoints: whole states on disk, with a checksum of every file.

    checkpoints/00001200/          after 1,200 updates; appears once it is complete
        arrays/…                   the state's leaves, written by Orbax
        manifest.json              the run that they are of, their shapes and dtypes
        checksums.sha256           of the other files; `sha256sum -c` reads it

Orbax restores a flipped bit, or another dtype, without an error. So every byte and
every leaf is compared before anything is restored.

Where several processes see the folder, each writes and reads its own part of the
arrays, and process 0 writes the rest.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from trpo_jax.errors import UsageError, differing
from trpo_jax.runs.processes import in_all, is_writer
from trpo_jax.training.placement import put
from trpo_jax.version import __version__

FORMAT = 2
"""Number of the layout above; no other is read."""

_CHECKSUMS = "checksums.sha256"
_MANIFEST = "manifest.json"
_ARRAYS = "arrays"

# Bytes that must be free for the indices that Orbax writes beside arrays; those of a
# CartPole run are 50,000.
_ROOM_BESIDE_ARRAYS = 2**20

# Settings of JAX that change the numbers of a run: its types, its kind of key, and
# what is drawn from a key. Under others a run does not go on bit for bit.
_SETTINGS = ("jax_default_prng_impl", "jax_enable_x64", "jax_threefry_partitionable")


class DamagedCheckpointError(UsageError):
    """A checkpoint is not what was written; the message names the file."""


class OtherCheckpointError(UsageError):
    """A checkpoint is of another config, version or shape; the message names them."""


class Manifest(NamedTuple):
    """Description of a checkpoint.

    Attributes:
        updates: Updates made.
        score: Mean return by which the best ones are kept: of the evaluation of this
            state if the run evaluates in training, else in training since the
            checkpoint before. None if it was not evaluated, or no episode ended.
        config: `config_to_dict` of the run.
        jax_settings: `jax_settings` of the process.
        action_space: Of the environment, as text: "Discrete(num_actions=2)".
        leaves: Shape and dtype of each leaf by its path, as "float32[4,64]"; filled in
            by `save`.
        format: Number of the layout.
        version: Version of this package.
    """

    updates: int
    score: float | None
    config: dict[str, Any]
    jax_settings: dict[str, Any]
    action_space: str = ""
    leaves: dict[str, str] = {}  # noqa: RUF012
    format: int = FORMAT
    version: str = __version__


def jax_settings() -> dict[str, Any]:
    """Return the settings of JAX that the numbers of a run depend on."""
    return {name: getattr(jax.config, name) for name in _SETTINGS}


def save(folder: pathlib.Path, state: PyTree, manifest: Manifest) -> pathlib.Path:
    """Write a checkpoint; it appears under its name once it is complete on disk.

    Args:
        folder: The folder of all checkpoints.
        state: A pytree of arrays.
        manifest: Its description, without `leaves`.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: If the disk is full, for example. Nothing incomplete is left behind.
    """
    leaves = leaves_by_path(state)
    partial = _partial(folder, manifest.updates)
    try:
        _begin(partial, leaves)
        with _disk_errors(), _checkpointer() as checkpointer:
            host = jax.device_get(_filled(leaves))
            checkpointer.save((partial / _ARRAYS).absolute(), host)
        return _finish(partial, leaves, manifest)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def save_shared(
    folder: pathlib.Path,
    leaves: dict[str, jax.Array],
    manifest: Manifest,
    ended_fn: Callable[[], bool] = lambda: False,
) -> None:
    """Write a checkpoint as `save`, each process its own part of the arrays.

    Called in all processes of a run, which see the same folder.

    Args:
        folder: The folder of all checkpoints.
        leaves: Arrays that are split over all processes, as `leaves_by_path` returns
            them.
        manifest: As for `save`.
        ended_fn: Asked while other processes are waited for; true once they may never
            come.

    Raises:
        OSError: In all processes, if one cannot write.
        RunError: If another process fails otherwise, or the run has ended.
    """
    from orbax.checkpoint.args import PyTreeSave

    partial = _partial(folder, manifest.updates)
    arrays = partial / _ARRAYS

    def begin() -> None:
        if is_writer():
            _begin(partial, leaves)
            # Process 0 makes it while it saves, and the others would wait for it for
            # ten minutes.
            (arrays / "array_metadatas").mkdir(parents=True)

    def write() -> None:
        with _disk_errors():
            handler.save(_as_orbax_does(arrays), args=PyTreeSave(_filled(leaves)))
        for written in arrays.glob(f"ocdbt.process_{jax.process_index()}/**/*"):
            sync(written)

    def finish() -> None:
        if not is_writer():
            return
        # Orbax would leave out, without a word, what the file system does not show yet.
        seen, parts = len([*arrays.glob("ocdbt.process_*")]), jax.process_count()
        if seen != parts:
            text = f"{seen} of the parts of {parts} processes are there"
            raise OSError(errno.EIO, text, str(arrays))
        with _disk_errors():
            handler.finalize(_as_orbax_does(arrays))
        _finish(partial, leaves, manifest)

    try:
        with _handler_of_all() as handler:
            for step in (begin, write, finish):
                in_all(f"{partial.name}/{step.__name__}", step, ended_fn)
    except BaseException:
        if is_writer():
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _partial(folder: pathlib.Path, updates: int) -> pathlib.Path:
    """Return the folder that becomes the checkpoint after so many updates."""
    return folder / f".{updates:08d}.partial"


def _begin(partial: pathlib.Path, leaves: dict[str, jax.Array]) -> None:
    """Make the folder that becomes a checkpoint, if there is room for it."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # Checked here because TensorStore, and asyncio after it, report a full disk in
    # pages of tracebacks.
    room = sum(leaf.nbytes for leaf in leaves.values()) + _ROOM_BESIDE_ARRAYS
    if shutil.disk_usage(partial).free < room:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(partial.parent))


def _finish(
    partial: pathlib.Path, leaves: dict[str, jax.Array], manifest: Manifest
) -> pathlib.Path:
    """Write what describes the arrays, and their checksums; rename the folder."""
    manifest = manifest._replace(leaves=_types(leaves))
    (partial / _MANIFEST).write_text(json.dumps(manifest._asdict(), indent=1))
    (partial / _CHECKSUMS).write_text(_checksums(partial))
    for written in (*partial.rglob("*"), partial):
        sync(written)
    path = partial.with_name(f"{manifest.updates:08d}")
    partial.rename(path)
    sync(path.parent)
    return path


class Stored(NamedTuple):
    """A state as it is stored, which one process can send to another.

    Attributes:
        arrays: The leaves by their paths, keys as their raw data.
        manifest: Its description.
    """

    arrays: dict[str, np.ndarray]
    manifest: Manifest

    def as_state(self, like_fn: Callable[[], PyTree]) -> PyTree:
        """Return the state on the default device, as it was written.

        But for types that JAX does not have without x64.

        Args:
            like_fn: Returns the shapes and dtypes of the state.
        """
        with _settings_of(self.manifest):
            like = like_fn()
        impl = self.manifest.jax_settings["jax_default_prng_impl"]
        return with_leaves(like, self.arrays, impl)


def read(
    path: pathlib.Path,
    like_fn: Callable[[], PyTree],
    config: dict[str, Any],
    *,
    resuming: bool = False,
) -> Stored:
    """Return what a checkpoint holds, if it is whole and of this run.

    Arguments and errors are those of `check`.
    """
    manifest = check(path, like_fn, config, resuming=resuming).manifest
    with _settings_of(manifest):
        types = jax.eval_shape(leaves_by_path, like_fn())
    arrays = read_arrays(path)
    _check_types(path, arrays, types)
    return Stored(arrays, manifest)


class Checked(NamedTuple):
    """A checkpoint that is whole and of this run, but not read.

    Attributes:
        path: Its folder.
        manifest: Its description.
    """

    path: pathlib.Path
    manifest: Manifest


def read_shared(path: pathlib.Path, like: PyTree) -> PyTree:
    """Return the state in a checkpoint, of which each process reads its own part.

    Called in all processes of a run, which see the same folder.

    Args:
        path: The checkpoint's folder, which one of them has checked, resuming.
        like: Shapes, dtypes and devices of the state, as `state_type` returns them.
    """
    from orbax.checkpoint import ArrayRestoreArgs
    from orbax.checkpoint.args import PyTreeRestore

    types = jax.eval_shape(leaves_by_path, like)
    shardings = {
        name_of(location): leaf.sharding
        for location, leaf in jax.tree.leaves_with_path(like)
    }
    parts = {
        name: ArrayRestoreArgs(
            sharding=shardings[name], global_shape=leaf.shape, dtype=leaf.dtype
        )
        for name, leaf in _filled(types).items()
    }
    with _handler_of_all() as handler:
        arrays = handler.restore(
            _as_orbax_does(path / _ARRAYS), args=PyTreeRestore(restore_args=parts)
        )
    _check_types(path, arrays, types)
    empty = {
        name: put(np.zeros(leaf.shape, leaf.dtype), shardings[name])
        for name, leaf in types.items()
        if not leaf.size
    }
    return with_leaves(like, arrays | empty)


def check(
    path: pathlib.Path,
    like_fn: Callable[[], PyTree],
    config: dict[str, Any],
    *,
    resuming: bool = False,
) -> Checked:
    """Return a checkpoint, if it is whole and of this run, without its arrays.

    Args:
        path: The checkpoint's folder.
        like_fn: Returns the shapes and dtypes of the state, as `jax.eval_shape` does.
            Called under the settings of JAX that the checkpoint was written with.
        config: `config_to_dict` of the run.
        resuming: Whether the run is to go on from the state; then those settings have
            to be the same now.

    Raises:
        DamagedCheckpointError: If a file is not what was written.
        OtherCheckpointError: If it is of another config, version, shape or, when
            resuming, of other settings of JAX.
    """
    manifest = verify(path)
    if resuming:
        _check_settings(path, manifest)
    with _settings_of(manifest):
        wanted = jax.eval_shape(leaves_by_path, like_fn())
    _check_same(path, manifest, wanted, config)
    return Checked(path, manifest)


def _check_types(
    path: pathlib.Path, arrays: dict[str, Any], types: dict[str, Any]
) -> None:
    if _types(arrays) != _types(_filled(types)):
        raise DamagedCheckpointError(
            f"{path}: Orbax returned other leaves than were written."
        )


def _filled(leaves: dict[str, Any]) -> dict[str, Any]:
    """Return the leaves that are not empty: Orbax does not write the others."""
    return {name: leaf for name, leaf in leaves.items() if leaf.size}


@contextlib.contextmanager
def _settings_of(manifest: Manifest) -> Iterator[None]:
    """Set JAX as it was when a checkpoint was written."""
    stored = manifest.jax_settings
    with (
        jax.enable_x64(stored["jax_enable_x64"]),
        jax.default_prng_impl(stored["jax_default_prng_impl"]),
    ):
        yield


def read_last(
    paths: list[pathlib.Path],
    read_fn: Callable[[pathlib.Path], Any],
    warn_fn: Callable[[str], None],
    *,
    rename: bool = False,
) -> Any:
    """Return what is read from the last whole checkpoint; None if there is none at all.

    Args:
        paths: Checkpoints in one folder, the preferred one last, as `complete` or
            `by_score` return them.
        read_fn: Reads one, as `read` or `verify`.
        warn_fn: Called with a message for each damaged checkpoint that is later.
        rename: Rename damaged checkpoints to `<updates>.damaged`, so that the run can
            write them again.

    Raises:
        DamagedCheckpointError: If none is whole; then nothing is renamed.
        OtherCheckpointError: As `read_fn`.
    """
    damaged: dict[pathlib.Path, str] = {}
    for path in reversed(paths):
        try:
            found = read_fn(path)
        except DamagedCheckpointError as error:
            damaged[path] = str(error)
            continue
        for other, reason in damaged.items():
            renamed = f" It is renamed to {_rename(other)}." if rename else ""
            warn_fn(f"{reason}{renamed} {path.name} is used instead.")
        return found
    if damaged:
        raise DamagedCheckpointError(
            f"no checkpoint in {paths[0].parent} is whole: {' '.join(damaged.values())}"
            " Put a whole one back from a copy, or start the run in another folder."
        )
    return None


def _rename(path: pathlib.Path) -> str:
    """Rename a checkpoint to `.damaged`, or `.damaged-2`, …; return its new name."""
    number, new = 1, path.with_suffix(".damaged")
    while new.exists():
        number += 1
        new = path.with_suffix(f".damaged-{number}")
    path.rename(new)
    return new.name


def verify(path: pathlib.Path) -> Manifest:
    """Return the manifest of a checkpoint after comparing every byte of its files.

    Raises:
        DamagedCheckpointError: If a byte is not what was written; the message names
            the file.
        OtherCheckpointError: If it has another layout.
    """
    try:
        stored = (path / _CHECKSUMS).read_text("utf-8", "replace")
        actual = _checksums(path)
    except OSError as error:
        raise DamagedCheckpointError(
            f"{error.filename} cannot be read: {error.strerror}."
        ) from error
    if stored != actual:
        raise DamagedCheckpointError(_first_difference(path, stored, actual))
    values = json.loads((path / _MANIFEST).read_text("utf-8"))
    if values.get("format") != FORMAT:
        raise OtherCheckpointError(
            f"{path} has the layout {values.get('format')}, and this version reads "
            f"{FORMAT}; use trpo_jax {values.get('version')}, which wrote it."
        )
    return Manifest(**values)


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Return the leaves of a checkpoint that is whole, keys as their raw data.

    By their paths in the state, as "params.params.hidden_0.kernel"; without empty ones.
    """
    from orbax.checkpoint import RestoreArgs

    leaves = json.loads((path / _MANIFEST).read_text("utf-8"))["leaves"]
    whole = {
        name: RestoreArgs(restore_type=np.ndarray)
        for name, text in leaves.items()
        if "0" not in text[text.index("[") + 1 : -1].split(",")  # not empty
    }
    with _checkpointer() as checkpointer:
        restored = checkpointer.restore((path / _ARRAYS).absolute(), restore_args=whole)
    return {name: np.asarray(leaf) for name, leaf in restored.items()}


def copy(path: pathlib.Path, to: pathlib.Path) -> None:
    """Copy a checkpoint; the copy appears once it is complete on disk."""
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(path, partial)
    for written in (*partial.rglob("*"), partial):
        sync(written)
    partial.rename(to)


def complete(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the folders of complete checkpoints, the oldest first."""
    found = (path for path in folder.glob("*") if path.name.isdecimal())
    return sorted(found, key=lambda path: int(path.name))


def by_score(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the complete checkpoints that have a score, the best one last."""
    scored = (path for path in complete(folder) if _score(path) > -math.inf)
    return sorted(scored, key=_score)


def best_score(folder: pathlib.Path) -> float:
    """Return the highest score of a complete checkpoint, −∞ if none has any."""
    return max(map(_score, complete(folder)), default=-math.inf)


def prune(folder: pathlib.Path, *, last: int, best: int) -> None:
    """Keep the `last` newest checkpoints and the `best` of the others, delete the rest.

    Those without a score are deleted first.
    """
    paths = complete(folder)
    others = paths[: max(0, len(paths) - last)]
    others.sort(key=_score)
    for path in others[: max(0, len(others) - best)]:
        # Renamed first: half a folder must not be taken for a checkpoint if this is
        # interrupted.
        shutil.rmtree(path.rename(folder / f".{path.name}.deleted"))


def delete_partial(folder: pathlib.Path) -> None:
    """Delete what an interrupted `save` or `prune` left behind."""
    for path in folder.glob(".*"):
        if path.suffix in (".partial", ".deleted"):
            shutil.rmtree(path)


def _score(path: pathlib.Path) -> float:
    """Return the score of a checkpoint, −∞ if it has none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return float(json.loads((path / _MANIFEST).read_text("utf-8"))["score"])
    return -math.inf


def leaves_by_path(state: PyTree) -> dict[str, jax.Array]:
    """Return the leaves by their paths, keys as their raw data."""
    named, _ = jax.tree_util.tree_flatten_with_path(state)
    return {
        name_of(path): jax.random.key_data(leaf) if _is_key(leaf) else leaf
        for path, leaf in named
    }


def with_leaves(
    like: PyTree, leaves: dict[str, Any], prng_impl: str | None = None
) -> PyTree:
    """Return a state with the leaves that `leaves_by_path` returned.

    Args:
        like: Shapes and dtypes of the state, as `jax.eval_shape` returns them.
        leaves: Arrays of the host. Of a type that NumPy does not have (bfloat16) a file
            gives back the bytes alone.
        prng_impl: The implementation of its keys; JAX's own by default.
    """

    def device(location: Any, leaf: Any) -> jax.Array:
        name = name_of(location)
        if not leaf.size and name not in leaves:  # files have nothing of it
            return jnp.zeros(leaf.shape, leaf.dtype)
        array = leaves[name]
        if _is_key(leaf):
            return jax.random.wrap_key_data(jnp.asarray(array), impl=prng_impl)
        return jnp.asarray(array.view(leaf.dtype) if array.dtype.kind == "V" else array)

    return jax.tree_util.tree_map_with_path(device, like)


def name_of(path: Any) -> str:
    """Return the name of a leaf, as "params.params.hidden_0.kernel", from its path."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _types(leaves: dict[str, Any]) -> dict[str, str]:
    return {
        name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for name, leaf in sorted(leaves.items())
    }


def _check_settings(path: pathlib.Path, manifest: Manifest) -> None:
    """Raise OtherCheckpointError unless JAX's settings are those of a checkpoint."""
    here = jax_settings()
    for name, stored in manifest.jax_settings.items():
        if stored != here[name]:
            text = str(int(stored)) if isinstance(stored, bool) else stored
            raise OtherCheckpointError(
                f"{path} was written with {name}={stored!r}, but it is {here[name]!r} "
                "now. To go on with the run set it before anything else uses JAX: "
                f"jax.config.update({name!r}, {stored!r}), or {name.upper()}={text} in "
                "the environment of the process."
            )


def _check_same(
    path: pathlib.Path,
    manifest: Manifest,
    wanted: dict[str, Any],
    config: dict[str, Any],
) -> None:
    # No state depends on how long the run is to be, and `resume` may change it.
    length = {"total_timesteps": None}
    differences = differing(
        {"trpo_jax": manifest.version, **manifest.config, **length},
        {"trpo_jax": __version__, **config, **length},
    )
    if not differences:  # else these are the reason for other shapes
        differences = differing(manifest.leaves, _types(wanted))
    if differences:
        raise OtherCheckpointError(
            f"{path} is of another run. What differs (checkpoint, config): "
            + "; ".join(differences)
            + ". Use the config and version that the run was started with, or start a "
            "run in another folder."
        )


def _checksums(path: pathlib.Path) -> str:
    """Return the output of `sha256sum` for all files below `path` but its own."""
    lines = ""
    names = (file.relative_to(path).as_posix() for file in path.rglob("*"))
    for name in sorted(names):
        if (path / name).is_file() and name != _CHECKSUMS:
            with open(path / name, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            lines += f"{digest}  {name}\n"
    return lines


def _first_difference(path: pathlib.Path, stored: str, actual: str) -> str:
    listed, there = (
        {line[66:]: line for line in text.split("\n") if line[66:]}
        for text in (stored, actual)
    )
    for name in there.keys() & listed.keys():
        if listed[name] != there[name]:
            return f"{path / name} is damaged: its checksum is not the one written."
    if there.keys() < listed.keys():
        return f"{path / min(listed.keys() - there.keys())} is missing."
    return f"{path / _CHECKSUMS} is damaged: it does not list the files beside it."


def sync(path: pathlib.Path) -> None:
    """Wait until a file, or the list of a folder's files, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Raise OSError where TensorStore reports that it cannot write."""
    try:
        yield
    except ValueError as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        number = int(code[1]) if code else errno.ENOSPC
        raise OSError(number, os.strerror(number)) from error


def _checkpointer() -> Any:
    """Return what writes and reads arrays by Orbax, in this process alone."""
    from orbax.checkpoint import Checkpointer, PyTreeCheckpointHandler
    from orbax.checkpoint.options import MultiprocessingOptions

    # By default it waits for all processes of a run, of which one calls it.
    process = jax.process_index()
    alone = MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix="trpo_jax",
    )
    handler = PyTreeCheckpointHandler(multiprocessing_options=alone)
    return Checkpointer(handler, multiprocessing_options=alone)


def _handler_of_all() -> contextlib.AbstractContextManager[Any]:
    """Return what writes and reads the parts of all processes by Orbax.

    Without a checkpointer around it, whose processes would wait for five minutes for
    one that cannot write.
    """
    from orbax.checkpoint import PyTreeCheckpointHandler
    from orbax.checkpoint.options import MultiprocessingOptions

    processes = set(range(jax.process_count()))
    options = MultiprocessingOptions(primary_host=0, active_processes=processes)
    return contextlib.closing(PyTreeCheckpointHandler(multiprocessing_options=options))


def _as_orbax_does(path: pathlib.Path) -> Any:
    """Return a path as Orbax makes it for its handlers, which need it so."""
    from etils import epath

    return epath.Path(path.absolute())
