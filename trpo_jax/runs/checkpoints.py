"""Checkpoints: whole states on disk, with a checksum of every file.

    checkpoints/00001200/          after 1,200 updates; appears once it is complete
        arrays/…                   the state's leaves, written by Orbax
        manifest.json              the run that they are of, their shapes and dtypes
        checksums.sha256           of the other files; `sha256sum -c` reads it

Orbax restores a flipped bit, or another dtype, without an error. So every byte and
every leaf is compared before anything is restored.
"""

import contextlib
import errno
import hashlib
import json
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

from trpo_jax.errors import UsageError
from trpo_jax.runs.config_file import differing_fields

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
_SETTINGS = (
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_threefry_partitionable",
)


class DamagedCheckpointError(UsageError):
    """A checkpoint is not what was written; the message names the file."""


class OtherCheckpointError(UsageError):
    """A checkpoint is of another config, version or shape; the message names them."""


class Manifest(NamedTuple):
    """Description of a checkpoint.

    Attributes:
        format: `FORMAT`.
        version: Version of this package.
        updates: Updates made.
        score: Mean return in training since the checkpoint before, by which the best
            ones are kept; None if no episode ended.
        config: `config_to_dict` of the run.
        jax_settings: `jax_settings` of the process.
        leaves: Shape and dtype of each leaf by its path, as "float32[4,64]".
    """

    format: int
    version: str
    updates: int
    score: float | None
    config: dict[str, Any]
    jax_settings: dict[str, Any]
    leaves: dict[str, str]


def jax_settings() -> dict[str, Any]:
    """Return the settings of JAX that the numbers of a run depend on."""
    return {name: getattr(jax.config, name) for name in _SETTINGS}


def save(folder: pathlib.Path, state: PyTree, manifest: Manifest) -> pathlib.Path:
    """Write a checkpoint; it appears under its name once it is complete on disk.

    Args:
        folder: The folder of all checkpoints.
        state: A pytree of arrays.
        manifest: Its `leaves` are filled in here.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: If the disk is full, for example. Nothing incomplete is left behind.
    """
    from orbax.checkpoint import PyTreeCheckpointer

    leaves = _leaves(state)
    manifest = manifest._replace(leaves=_types(leaves))
    path = folder / f"{manifest.updates:08d}"
    partial = folder / f".{path.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        host = {name: np.asarray(leaf) for name, leaf in leaves.items() if leaf.size}
        # Checked here because TensorStore, and asyncio after it, report a full disk in
        # pages of tracebacks.
        room = sum(leaf.nbytes for leaf in host.values()) + _ROOM_BESIDE_ARRAYS
        if shutil.disk_usage(partial).free < room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        with _disk_errors(), PyTreeCheckpointer() as checkpointer:
            checkpointer.save((partial / _ARRAYS).absolute(), host)
        (partial / _MANIFEST).write_text(json.dumps(manifest._asdict(), indent=1))
        (partial / _CHECKSUMS).write_text(_checksums(partial))
        for written in partial.rglob("*"):
            _sync(written)
        _sync(partial)
        partial.rename(path)
        _sync(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return path


def restore(
    path: pathlib.Path,
    like_fn: Callable[[], PyTree],
    config: dict[str, Any],
    version: str,
    *,
    resuming: bool = False,
) -> tuple[PyTree, Manifest]:
    """Return the state of a checkpoint, if it is whole and of this run.

    Args:
        path: The checkpoint's folder.
        like_fn: Returns the shapes and dtypes of the state, as `jax.eval_shape` does.
            Called under the settings of JAX that the checkpoint was written with.
        config: `config_to_dict` of the run.
        version: Version of this package.
        resuming: Whether the run is to go on from the state; then those settings have
            to be the same now. Otherwise the state is restored as it was written, but
            for types that JAX does not have without x64.

    Raises:
        DamagedCheckpointError: If a file is not what was written.
        OtherCheckpointError: If it is of another config, version, shape or, when
            resuming, of other settings of JAX.
    """
    from orbax.checkpoint import PyTreeCheckpointer

    manifest = verify(path)
    if resuming:
        _check_settings(path, manifest)
    with _settings_of(manifest):
        like = like_fn()
    _check_same(path, manifest, like, config, version)
    with PyTreeCheckpointer() as checkpointer:
        host = checkpointer.restore((path / _ARRAYS).absolute())
    wanted = _leaves(like)
    restored = {name: np.asarray(leaf) for name, leaf in host.items()}
    # Orbax does not write empty arrays.
    restored |= {
        name: np.zeros(leaf.shape, leaf.dtype)
        for name, leaf in wanted.items()
        if not leaf.size
    }
    if _types(restored) != _types(wanted):
        raise DamagedCheckpointError(
            f"{path}: Orbax returned other leaves than were written."
        )

    def device(like: Any, name: str) -> jax.Array:
        array = jnp.asarray(restored[name])
        if not jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
            return array
        impl = manifest.jax_settings["jax_default_prng_impl"]
        return jax.random.wrap_key_data(array, impl=impl)

    structure = jax.tree.structure(like)
    flat = map(device, jax.tree.leaves(like), wanted)
    return jax.tree.unflatten(structure, flat), manifest


def restore_last(
    folder: pathlib.Path,
    like_fn: Callable[[], PyTree],
    config: dict[str, Any],
    version: str,
    warn_fn: Callable[[str], None],
    *,
    resuming: bool,
    order_fn: Callable[[pathlib.Path], list[pathlib.Path]] | None = None,
) -> tuple[PyTree, int] | None:
    """Return the state of the last whole checkpoint in an order, and its updates.

    None if there are no checkpoints. Damaged ones are named to `warn_fn`.

    Args:
        folder: The folder of all checkpoints.
        like_fn: As `restore`.
        config: As `restore`.
        version: As `restore`.
        warn_fn: Called with a message for each damaged checkpoint that is later.
        resuming: As `restore`; and damaged checkpoints are renamed to
            `<updates>.damaged`, so that the run can write them again.
        order_fn: folder ↦ its checkpoints, the preferred one last; `complete` if None.

    Raises:
        DamagedCheckpointError: If none is whole; then nothing is renamed.
        OtherCheckpointError: As `restore`.
    """
    damaged: dict[pathlib.Path, str] = {}
    for path in reversed((order_fn or complete)(folder)):
        try:
            state, manifest = restore(path, like_fn, config, version, resuming=resuming)
        except DamagedCheckpointError as error:
            damaged[path] = str(error)
            continue
        for other, reason in damaged.items():
            renamed = ""
            if resuming:
                new = _unused(other.with_suffix(".damaged"))
                other.rename(new)
                renamed = f" It is renamed to {new.name}."
            warn_fn(f"{reason}{renamed} {path.name} is used instead.")
        return state, manifest.updates
    if damaged:
        raise DamagedCheckpointError(
            f"no checkpoint in {folder} is whole: {' '.join(damaged.values())} "
            "Put a whole one back from a copy, or start the run in another folder."
        )
    return None


def verify(path: pathlib.Path) -> Manifest:
    """Return the manifest of a checkpoint after comparing every byte of its files.

    Raises:
        DamagedCheckpointError: If a byte is not what was written; the message names
            the file.
        OtherCheckpointError: If it has another layout.
    """
    try:
        stored = (path / _CHECKSUMS).read_bytes()
        actual = _checksums(path).encode()
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


def complete(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the folders of complete checkpoints, the oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))


def by_score(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the complete checkpoints that have a score, the best one last."""
    return sorted((path for path in complete(folder) if _score(path)[0]), key=_score)


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


def _score(path: pathlib.Path) -> tuple[bool, float]:
    """Return whether a checkpoint has a score, and its score, to sort by."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        score = json.loads((path / _MANIFEST).read_text("utf-8"))["score"]
        if isinstance(score, int | float):
            return True, score
    return False, 0.0


def _leaves(state: PyTree) -> dict[str, Any]:
    """Return the leaves by their paths, keys as their raw data."""
    named, _ = jax.tree_util.tree_flatten_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): _raw(leaf)
        for path, leaf in named
    }


def _raw(leaf: Any) -> Any:
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.eval_shape(jax.random.key_data, leaf)
    return jax.random.key_data(leaf)


def _types(leaves: dict[str, Any]) -> dict[str, str]:
    return {
        name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for name, leaf in sorted(leaves.items())
    }


@contextlib.contextmanager
def _settings_of(manifest: Manifest) -> Iterator[None]:
    """Run a block under the settings of JAX that a checkpoint was written with."""
    stored = manifest.jax_settings
    with (
        jax.enable_x64(stored["jax_enable_x64"]),
        jax.default_prng_impl(stored["jax_default_prng_impl"]),
    ):
        yield


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
    like: PyTree,
    config: dict[str, Any],
    version: str,
) -> None:
    expected = _types(_leaves(like))
    differences = differing_fields(manifest.config, config)
    if manifest.version != version:
        differences.append(f"trpo_jax: {manifest.version!r} and {version!r}")
    if not differences:  # else these are the reason for other shapes
        differences = [
            f"{name}: {manifest.leaves.get(name)} and {expected.get(name)}"
            for name in sorted(manifest.leaves.keys() | expected.keys())
            if manifest.leaves.get(name) != expected.get(name)
        ]
    if differences:
        raise OtherCheckpointError(
            f"{path} is of another run. What differs (checkpoint, config): "
            + "; ".join(differences)
            + ". Use the config and version that the run was started with, or start a "
            "run in another folder."
        )


def _checksums(path: pathlib.Path) -> str:
    """Return the output of `sha256sum` for all files below `path` but its own."""
    names = sorted(
        file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()
    )
    lines = []
    for name in names:
        if name != _CHECKSUMS:
            with open(path / name, "rb") as file:
                lines.append(
                    f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}"
                )
    return "\n".join(lines) + "\n"


def _first_difference(path: pathlib.Path, stored: bytes, actual: bytes) -> str:
    listed, there = (
        {name: line for line in lines if (name := line[66:])}
        for lines in (
            stored.decode("utf-8", "replace").split("\n"),
            actual.decode().split("\n"),
        )
    )
    for name, line in there.items():
        if name in listed and listed[name] != line:
            return f"{path / name} is damaged: its checksum is not the one written."
    missing = sorted(listed.keys() - there.keys())
    if missing and there.keys() <= listed.keys():
        return f"{path / missing[0]} is missing."
    return f"{path / _CHECKSUMS} is damaged: it does not list the files beside it."


def _unused(path: pathlib.Path) -> pathlib.Path:
    """Return `path`, or the first of `path`-2, `path`-3, … that does not exist."""
    number, unused = 1, path
    while unused.exists():
        number += 1
        unused = path.with_name(f"{path.name}-{number}")
    return unused


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Raise an OSError where TensorStore reports that it cannot write."""
    try:
        yield
    except ValueError as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        number = int(code[1]) if code else errno.ENOSPC
        raise OSError(number, os.strerror(number)) from error
