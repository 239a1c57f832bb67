import errno
import functools
import os
import random
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest

from trpo_jax.runs import checkpoints
from trpo_jax.runs.checkpoints import DamagedCheckpointError, OtherCheckpointError
from trpo_jax.version import __version__

CONFIG = {"env": "CartPole-v1", "max_kl": 0.01}


def state(scale=1.0):
    return {
        "params": {
            "kernel": scale * jnp.arange(6.0).reshape(2, 3),
            "bias": jnp.ones(3),
        },
        "half": jnp.ones(2, jnp.bfloat16),
        "flags": jnp.array([True, False]),
        "updates": jnp.int32(7),
        "nothing": jnp.zeros((0, 3)),
        "keys": jax.random.split(jax.random.key(3)),
    }


def like():
    return jax.eval_shape(state)


def manifest(updates, score=None, config=CONFIG):
    return checkpoints.Manifest(updates, score, config, checkpoints.jax_settings())


def restore(path, like_fn=like, config=CONFIG, **options):
    stored = checkpoints.read(path, like_fn, config, **options)
    return stored.as_state(like_fn), stored.manifest


def restore_last(folder, warn_fn=print, *, resuming=False):
    read = functools.partial(restore, resuming=resuming)
    paths = checkpoints.complete(folder)
    found = checkpoints.read_last(paths, read, warn_fn, rename=resuming)
    return found and (found[0], found[1].updates)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    checkpoints.save(folder, state(1.0), manifest(10))
    checkpoints.save(folder, state(2.0), manifest(20))
    return folder


@pytest.fixture
def folder(original, tmp_path):
    shutil.copytree(original, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert one.dtype == other.dtype
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_every_leaf_comes_back_with_its_type(original):
    restored, read = restore(original / "00000020")
    assert_same(restored, state(2.0))
    assert read.updates == 20
    assert read.leaves["params.kernel"] == "float32[2,3]"


def test_a_process_reads_the_part_on_its_devices(original):
    """Here all of it; several processes are started in test_processes."""
    path = original / "00000020"
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = jax.tree.map(lambda leaf: leaf.update(sharding=device), like())
    assert checkpoints.check(path, like, CONFIG, resuming=True).path == path
    assert_same(checkpoints.read_shared(path, placed), state(2.0))


def test_processes_write_what_one_reads(tmp_path):
    leaves = checkpoints.leaves_by_path(state(3.0))
    checkpoints.save_shared(tmp_path, leaves, manifest(30))
    restored, read = restore(tmp_path / "00000030")
    assert_same(restored, state(3.0))
    assert read == checkpoints.verify(tmp_path / "00000030")


@pytest.mark.usefixtures("no_shape_checks")
def test_a_part_that_is_not_seen_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(OSError, match="1 of the parts of 2 processes are there"):
        checkpoints.save_shared(tmp_path, {"x": np.ones(1)}, manifest(30))
    assert list(tmp_path.iterdir()) == []


def test_sha256sum_can_check_it(original):
    lines = (original / "00000020" / "checksums.sha256").read_text().splitlines()
    names = {line.split("  ")[1] for line in lines}
    assert "manifest.json" in names
    assert all(len(line.split("  ")[0]) == 64 for line in lines)


def files(path):
    return sorted(one for one in path.rglob("*") if one.is_file())


def truncate(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def empty(file):
    file.write_bytes(b"")


def delete(file):
    file.unlink()


def assert_older_one_is_used(folder, file):
    """The newest, in which `file` was damaged, is named and left; the one before it is
    restored."""
    said = []
    before = {one: one.read_bytes() for one in files(folder)}
    restored, updates = restore_last(folder, said.append, resuming=True)
    assert updates == 10
    assert_same(restored, state(1.0))
    (message,) = said
    assert "00000020/" in message
    assert "renamed to 00000020.damaged. 00000010 is used instead." in message
    if file.name != "checksums.sha256":
        assert file.name in message
    # Nothing is overwritten: the damaged one is there under another name.
    moved = folder / "00000020.damaged"
    for one, content in before.items():
        path = one.relative_to(folder)
        if path.parts[0] == "00000020":
            assert (moved / path.relative_to("00000020")).read_bytes() == content
        else:
            assert one.read_bytes() == content


@pytest.mark.parametrize("damage", [truncate, empty, delete])
def test_no_damaged_file_is_restored(folder, damage):
    pristine = folder.with_name("pristine")
    shutil.copytree(folder, pristine)
    for name in [one.relative_to(folder) for one in files(folder / "00000020")]:
        damage(folder / name)
        assert_older_one_is_used(folder, folder / name)
        shutil.rmtree(folder)
        shutil.copytree(pristine, folder)


def test_no_flipped_bit_is_restored(folder):
    draw = random.Random(0)
    newest, pristine = folder / "00000020", folder.with_name("pristine")
    shutil.copytree(newest, pristine)
    paths = files(newest)
    for _ in range(200):
        # By file first: the arrays' bytes would crowd out the others.
        file = draw.choice(paths)
        content = bytearray(file.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        assert_older_one_is_used(folder, file)
        shutil.rmtree(newest, ignore_errors=True)
        shutil.rmtree(folder / "00000020.damaged")
        shutil.copytree(pristine, newest)


def test_a_file_too_many_is_damage(folder):
    (folder / "00000020" / "arrays" / "more").write_text("x")
    assert_older_one_is_used(folder, folder / "00000020" / "checksums.sha256")


@pytest.mark.parametrize("resuming", [True, False])
def test_if_none_is_whole_all_are_named_and_nothing_is_touched(folder, resuming):
    for one in files(folder):
        empty(one)
    said, there = [], sorted(folder.rglob("*"))
    with pytest.raises(DamagedCheckpointError, match="no checkpoint in") as error:
        restore_last(folder, said.append, resuming=resuming)
    assert "00000010/" in str(error.value)
    assert "00000020/" in str(error.value)
    assert said == []
    assert sorted(folder.rglob("*")) == there


def test_no_checkpoints_are_none(folder):
    assert restore_last(folder / "not there") is None


@pytest.mark.parametrize("free", [1, 2**19])
def test_a_full_disk_is_told_before_anything_is_written(free, folder, monkeypatch):
    usage = shutil.disk_usage(folder)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(folder, state(3.0), manifest(30))
    assert [path.name for path in folder.iterdir() if "30" in path.name] == []


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("INTERNAL: Failed writing [os_error_code='122']", errno.EDQUOT),
        ("RESOURCE_EXHAUSTED: Error opening", errno.ENOSPC),
        ("another fault", None),
    ],
)
def test_what_orbax_says_of_a_disk_becomes_an_os_error(
    said, number, folder, monkeypatch
):
    def fail(*args, **options):
        raise ValueError(said)

    monkeypatch.setattr(orbax.checkpoint.Checkpointer, "save", fail)
    with pytest.raises(ValueError if number is None else OSError) as error:
        checkpoints.save(folder, state(3.0), manifest(30))
    assert getattr(error.value, "errno", None) == number
    assert [path.name for path in folder.iterdir() if "30" in path.name] == []


def test_the_newest_is_so_by_number(folder):
    assert checkpoints.save(folder, state(3.0), manifest(10**8)).name == "100000000"
    names = [int(path.name) for path in checkpoints.complete(folder)]
    assert names == [10, 20, 10**8]


def test_another_config_is_refused_by_the_fields_that_differ(folder):
    other = {"env": "Acrobot-v1", "max_kl": 0.02}
    with pytest.raises(OtherCheckpointError) as error:
        restore(folder / "00000020", config=other)
    assert "env: 'CartPole-v1' and 'Acrobot-v1'" in str(error.value)
    assert "max_kl: 0.01 and 0.02" in str(error.value)


def test_another_version_is_refused(tmp_path):
    path = checkpoints.save(tmp_path, state(), manifest(1)._replace(version="0.0"))
    with pytest.raises(OtherCheckpointError, match=f"jax: '0.0' and '{__version__}'"):
        restore(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"half": jnp.ones(3, jnp.bfloat16)},
            r"half: .*16\[2\]' and 'bfloat16\[3\]'",
        ),
        ({"half": jnp.ones(2)}, r"half: 'bfloat16\[2\]' and 'float32\[2\]'"),
        ({"more": jnp.ones(2)}, r"more: None and 'float32\[2\]'"),
        (
            {"params": {"bias": jnp.ones(3)}},
            r"kernel: 'float32\[2,3\]' and None",
        ),
    ],
)
def test_other_shapes_and_types_are_refused(folder, change, message):
    changed = jax.eval_shape(lambda: {**state(), **change})
    with pytest.raises(OtherCheckpointError, match=message):
        restore(folder / "00000020", like_fn=lambda: changed)


def test_another_layout_is_refused(tmp_path):
    path = checkpoints.save(tmp_path, state(), manifest(1)._replace(format=0))
    with pytest.raises(OtherCheckpointError, match="layout 0"):
        restore(path)


def test_the_newest_and_the_best_are_kept(tmp_path):
    for updates, score in enumerate([5.0, None, 9.0, 7.0, 1.0, 2.0], start=1):
        checkpoints.save(tmp_path, {"x": jnp.ones(1)}, manifest(updates, score))
        checkpoints.prune(tmp_path, last=2, best=1)
    kept = [int(path.name) for path in checkpoints.complete(tmp_path)]
    assert kept == [3, 5, 6]
    assert checkpoints.by_score(tmp_path)[-1].name == "00000003"


def test_what_an_interruption_left_is_no_checkpoint(folder):
    (folder / "00000020").rename(folder / ".00000020.partial")
    assert [path.name for path in checkpoints.complete(folder)] == ["00000010"]
    checkpoints.delete_partial(folder)
    assert not (folder / ".00000020.partial").exists()


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "_checksums", fail)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(tmp_path, {"x": jnp.ones(1)}, manifest(1))
    assert list(tmp_path.iterdir()) == []


def test_the_advice_where_all_are_damaged_can_be_followed(folder, tmp_path):
    shutil.copytree(folder / "00000010", tmp_path / "copy")
    for one in files(folder):
        empty(one)
    with pytest.raises(DamagedCheckpointError, match="Put a whole one back"):
        restore_last(folder)
    shutil.rmtree(folder / "00000010")
    shutil.copytree(tmp_path / "copy", folder / "00000010")
    assert restore_last(folder)[1] == 10


@pytest.mark.parametrize("content", ["{}", "[]", '{"score": "high"}'])
def test_a_manifest_that_says_no_score_is_no_best_checkpoint(folder, content):
    (folder / "00000020" / "manifest.json").write_text(content)
    assert checkpoints.by_score(folder) == []
    checkpoints.prune(folder, last=1, best=0)
    assert [path.name for path in checkpoints.complete(folder)] == ["00000020"]


OTHER_SETTINGS = [
    (jax.enable_x64, True, "jax_enable_x64=False, but it is True"),
    (jax.default_prng_impl, "rbg", "jax_default_prng_impl='threefry2x32'"),
    (jax.threefry_partitionable, False, "jax_threefry_partitionable=True"),
]


@pytest.mark.parametrize(("setting", "value", "advice"), OTHER_SETTINGS)
def test_settings_of_jax_must_be_the_same_to_go_on_and_not_to_look(
    original, setting, value, advice
):
    with setting(value):
        with pytest.raises(OtherCheckpointError, match=advice):
            restore(original / "00000020", resuming=True)
        restored, _ = restore(original / "00000020")
    assert_same(restored, state(2.0))


def test_double_precision_is_read_in_single(tmp_path):
    with jax.enable_x64(True):
        wide = wide_like()
        assert wide["x"].dtype == jnp.float64
        path = checkpoints.save(tmp_path, wide, manifest(1))
    restored, _ = restore(path, lambda: jax.eval_shape(wide_like))
    assert restored["x"].dtype == jnp.float32
    np.testing.assert_array_equal(restored["x"], [0, 1, 2])


def wide_like():
    return {"x": jnp.arange(3.0), "key": jax.random.key(1)}


def test_the_advised_variables_of_the_environment_are_jaxs():
    """Every setting that a message may name, as it names it."""
    program = "import jax; print(*[getattr(jax.config, name) for name in {}])"
    names = sorted(checkpoints.jax_settings())
    wanted = {
        "JAX_DEFAULT_PRNG_IMPL": "rbg",
        "JAX_ENABLE_X64": "1",
        "JAX_THREEFRY_PARTITIONABLE": "0",
    }
    assert list(wanted) == [name.upper() for name in names]
    found = subprocess.run(
        [sys.executable, "-c", program.format(names)],
        env=os.environ | wanted,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["rbg", "True", "False"]
