"""Checkpoints: whole states on disk, each with the checksums of its files.

    checkpoints/00001200/          after 1,200 updates; there once it is complete
        arrays/…                   the state's leaves, written by Orbax
        manifest.json              what run they are of, their shapes and dtypes
        checksums.sha256           of all the others; `sha256sum -c` reads it

Orbax restores a flipped bit, and another dtype, without a word; so nothing is restored
here before every byte and every leaf has been compared.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from trpo_jax.errors import UsageError
from trpo_jax.runs.config_file import differing_fields

FORMAT = 1
"""Number of the layout above; another is not read."""

_CHECKSUMS = "checksums.sha256"
_MANIFEST = "manifest.json"
_ARRAYS = "arrays"

# Bytes that must be free for the indices that Orbax writes beside arrays; those of a
# CartPole run are 50,000.
_ROOM_BESIDE_ARRAYS = 2**20


class DamagedCheckpointError(UsageError):
    """A checkpoint is not what was written; the message names the file."""


class OtherCheckpointError(UsageError):
    """A checkpoint is of another config, version or shape; the message names them."""


class Manifest(NamedTuple):
    """What a checkpoint is of.

    Attributes:
        format: `FORMAT`.
        version: Of this package.
        updates: Updates made.
        score: What the best ones are kept by, higher is better; None if unknown.
        config: `config_to_dict` of the run.
        leaves: Shape and dtype of each leaf by its path, as "float32[4,64]".
    """

    format: int
    version: str
    updates: int
    score: float | None
    config: dict[str, Any]
    leaves: dict[str, str]


def save(folder: pathlib.Path, state: PyTree, manifest: Manifest) -> pathlib.Path:
    """Write a checkpoint; it appears under its name when it is complete on disk.

    Args:
        folder: Of all checkpoints.
        state: A pytree of arrays.
        manifest: Its `leaves` are filled in here.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: If the disk is full, say. Nothing incomplete is left behind.
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
        # A full disk told by TensorStore is many tracebacks, and asyncio adds to them.
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
    path: pathlib.Path, like: PyTree, config: dict[str, Any], version: str
) -> tuple[PyTree, Manifest]:
    """Return the state of a checkpoint that is whole, and of this run.

    Args:
        path: The checkpoint's folder.
        like: Shapes and dtypes of the state, as `jax.eval_shape` returns them.
        config: `config_to_dict` of the run.
        version: Of this package.

    Raises:
        DamagedCheckpointError: If a file is not what was written.
        OtherCheckpointError: If it is of another config, version or shape.
    """
    from orbax.checkpoint import PyTreeCheckpointer

    manifest = verify(path)
    _check_same(path, manifest, like, config, version)
    with PyTreeCheckpointer() as checkpointer:
        host = checkpointer.restore((path / _ARRAYS).absolute())
    wanted = _leaves(like)
    restored = {name: np.asarray(leaf) for name, leaf in host.items()}
    restored |= {
        name: np.zeros(leaf.shape, leaf.dtype)
        for name, leaf in wanted.items()
        if not leaf.size
    }
    if _types(restored) != _types(wanted):
        raise DamagedCheckpointError(
            f"{path}: Orbax gives back other leaves than it got."
        )

    def device(like: Any, name: str) -> jax.Array:
        array = jnp.asarray(restored[name])
        if not jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
            return array
        return jax.random.wrap_key_data(array)

    structure = jax.tree.structure(like)
    flat = map(device, jax.tree.leaves(like), wanted)
    return jax.tree.unflatten(structure, flat), manifest


def restore_last(
    folder: pathlib.Path,
    like: PyTree,
    config: dict[str, Any],
    version: str,
    warn_fn: Callable[[str], None],
    *,
    rename_damaged: bool,
    order_fn: Callable[[pathlib.Path], list[pathlib.Path]] | None = None,
) -> tuple[PyTree, int] | None:
    """Return the state of the last whole checkpoint in an order, and its updates.

    None if there are no checkpoints. Damaged ones are named to `warn_fn`.

    Args:
        folder: Of all checkpoints.
        like: As `restore`.
        config: As `restore`.
        version: As `restore`.
        warn_fn: Is told of each damaged checkpoint that comes after it.
        rename_damaged: Whether those are renamed to `<updates>.damaged`.
        order_fn: folder ↦ its checkpoints, the one to be preferred last; `complete` if
            None.

    Raises:
        DamagedCheckpointError: If none is whole; then nothing is renamed.
        OtherCheckpointError: As `restore`.
    """
    damaged: dict[pathlib.Path, str] = {}
    for path in reversed((order_fn or complete)(folder)):
        try:
            state, manifest = restore(path, like, config, version)
        except DamagedCheckpointError as error:
            damaged[path] = str(error)
            continue
        for other, what in damaged.items():
            left = "left where it is"
            if rename_damaged:
                aside = _free(other.with_suffix(".damaged"))
                other.rename(aside)
                left = f"left aside as {aside.name}"
            warn_fn(f"{what} It is {left}, and {path.name} used.")
        return state, manifest.updates
    if damaged:
        raise DamagedCheckpointError(
            f"no checkpoint in {folder} is whole: {' '.join(damaged.values())} "
            "Put a whole one back from a copy, or start the run in another folder."
        )
    return None


def verify(path: pathlib.Path) -> Manifest:
    """Return the manifest of a checkpoint of which every byte is what was written.

    Raises:
        DamagedCheckpointError: If one is not; the message names the file.
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
            f"{FORMAT}; go on with trpo_jax {values.get('version')}, that wrote it."
        )
    return Manifest(**values)


def complete(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the folders of complete checkpoints, the oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))


def by_score(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the complete checkpoints that have a score, the best last."""
    return sorted((path for path in complete(folder) if _score(path)[0]), key=_score)


def delete_superfluous(folder: pathlib.Path, *, last: int, best: int) -> None:
    """Keep the `last` newest and the `best` ones of the others, delete the rest."""
    paths = complete(folder)
    others = paths[: max(0, len(paths) - last)]
    others.sort(key=_score)
    for path in others[: max(0, len(others) - best)]:
        # No longer a checkpoint from the first moment on, should this be interrupted.
        shutil.rmtree(path.rename(folder / f".{path.name}.deleted"))


def delete_partial(folder: pathlib.Path) -> None:
    """Delete what an interrupted `save` or `delete_superfluous` left behind."""
    for path in folder.glob(".*"):
        if path.suffix in (".partial", ".deleted"):
            shutil.rmtree(path)


def _score(path: pathlib.Path) -> tuple[bool, float]:
    """Return whether a checkpoint has a score, and that, to order them by."""
    with contextlib.suppress(OSError, ValueError):
        score = json.loads((path / _MANIFEST).read_text("utf-8"))["score"]
        if isinstance(score, int | float):
            return True, score
    return False, 0.0


def _leaves(state: PyTree) -> dict[str, Any]:
    """Return the leaves by their paths, keys as the numbers that they are."""
    named, _ = jax.tree_util.tree_flatten_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): _numbers(leaf)
        for path, leaf in named
    }


def _numbers(leaf: Any) -> Any:
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
    if not differences:  # or else they are why
        differences = [
            f"{name}: {manifest.leaves.get(name)} and {expected.get(name)}"
            for name in sorted(manifest.leaves.keys() | expected.keys())
            if manifest.leaves.get(name) != expected.get(name)
        ]
    if differences:
        raise OtherCheckpointError(
            f"{path} is of another run. What differs (there, here): "
            + "; ".join(differences)
            + ". Restore the run's own config and version, or start in another folder."
        )


def _checksums(path: pathlib.Path) -> str:
    """Return what `sha256sum` prints for all files below `path` but its own list."""
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


def _free(path: pathlib.Path) -> pathlib.Path:
    """Return `path`, or the next name like it that nothing has yet."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _disk_errors() -> Any:
    """Make an OSError of what TensorStore says when it cannot write."""
    try:
        yield
    except ValueError as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        number = int(code[1]) if code else errno.ENOSPC
        raise OSError(number, os.strerror(number)) from error
