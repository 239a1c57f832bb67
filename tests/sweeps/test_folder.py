import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG

import trpo_jax
from trpo_jax.sweeps.folder import (
    SweepFolder,
    holds_sweep,
    python_objects,
    read_arrays,
    write_arrays,
)
from trpo_jax.sweeps.search import Search

SEARCH = Search(CONFIG, {"max_kl": [0.01, 0.1]}, None, 0, (0.5,), 2.0, 4)
ARRAYS = {
    "kl": np.arange(6, dtype=np.float32).reshape(2, 3),
    "name": np.array("0-0-0000"),
    "empty": np.zeros((0, 4), np.int32),
    "half": np.asarray(jnp.ones(3, jnp.bfloat16)),
}


def test_arrays_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "deeper" / "arrays.npz"
    write_arrays(path, ARRAYS)
    stored = read_arrays(path)
    assert stored.keys() == ARRAYS.keys()
    for name in ("kl", "name", "empty"):
        np.testing.assert_array_equal(stored[name], ARRAYS[name])
        assert stored[name].dtype == ARRAYS[name].dtype
    # Of bfloat16, which NumPy does not have, the bytes.
    assert stored["half"].tobytes() == ARRAYS["half"].tobytes()
    assert [one.name for one in path.parent.iterdir()] == ["arrays.npz"]
    assert read_arrays(tmp_path / "nothing.npz") is None


@pytest.mark.parametrize("damage", ["flip", "cut", "other", "text"])
def test_a_damaged_file_is_named_and_put_aside(tmp_path, damage):
    path = tmp_path / "arrays.npz"
    write_arrays(path, ARRAYS)
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[content.index(np.float32(4).tobytes())] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "text":
        path.write_text("not an archive")
    else:  # whole, but without the checksum
        np.savez(path, **{name: ARRAYS[name] for name in ("kl", "name")})
    assert read_arrays(path) is None
    assert path.exists()
    warnings = []
    assert read_arrays(path, warnings.append) is None
    assert "arrays.npz is damaged" in warnings[0]
    assert [one.name for one in tmp_path.iterdir()] == ["arrays.damaged"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "arrays.npz"
    write_arrays(path, ARRAYS)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="No space"):
        write_arrays(path, {"kl": ARRAYS["kl"] + 1})
    assert [one.name for one in tmp_path.iterdir()] == ["arrays.npz"]
    assert (read_arrays(path)["kl"] == ARRAYS["kl"]).all()


def test_a_folder_with_other_files_is_refused(tmp_path):
    files = SweepFolder(tmp_path)
    files.check(SEARCH.describe())
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no sweep"):
        files.check(SEARCH.describe())
    with pytest.raises(ValueError, match=r"holds no sweep: there is no sweep\.json"):
        files.read_description()
    with pytest.raises(ValueError, match=r"notes\.txt cannot be written"):
        SweepFolder(tmp_path / "notes.txt").check(SEARCH.describe())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"fields": {"max_kl": [0.01]}}, r"values of max_kl: \[0.01, 0.1\] and"),
        ({"num_episodes": 5}, "num_episodes: 4 and 5"),
        ({"eta": 3.0}, "eta: 2.0 and 3.0"),
        (
            {"config": dataclasses.replace(CONFIG, damping=0.2)},
            "damping: 0.1 and 0.2; name another folder",
        ),
    ],
)
def test_another_sweep_is_refused_by_what_differs(tmp_path, other, message):
    files = SweepFolder(tmp_path)
    files.write_description(SEARCH.describe())
    files.check(SEARCH.describe())
    with pytest.raises(ValueError, match=message):
        files.check(SEARCH._replace(**other).describe())
    # What is swept does not count in the config.
    files.check(
        SEARCH._replace(config=dataclasses.replace(CONFIG, max_kl=0.7)).describe()
    )


def test_cells_at_once_and_devices_are_decided_once(tmp_path):
    files = SweepFolder(tmp_path)
    files.check_devices(3)
    files.decide(program=0, num_cells=8, num_devices=2)
    files.decide(program=1, num_cells=4, num_devices=2)
    assert files.read_plan() == {
        "num_devices": 2,
        "cells_at_once": {"0": 8, "1": 4},
    }
    files.check_devices(2)
    with pytest.raises(ValueError, match=r"runs on 2 device\(s\).* where JAX has 2 or"):
        files.check_devices(3)


def test_python_objects_are_found_in_config_and_values():
    assert python_objects(SEARCH.describe()) == []
    relu = trpo_jax.networks.Policy(
        trpo_jax.networks.MLP((4,)), trpo_jax.networks.CategoricalHead(2)
    )
    search = SEARCH._replace(fields={"policy": [None, relu]})
    assert python_objects(search.describe()) == ["policy"]


def test_commands_for_runs_point_to_the_best_setting(tmp_path):
    assert not holds_sweep(tmp_path)
    files = SweepFolder(tmp_path)
    files.write_description(SEARCH.describe())
    assert holds_sweep(tmp_path)
    assert files.how_to_resume() == f"python -m trpo_jax resume {tmp_path}"
    with pytest.raises(ValueError, match=r"holds a sweep, not a run; name .*/best"):
        trpo_jax.load_state(tmp_path)


def test_a_plan_that_is_not_what_was_written_is_named(tmp_path):
    files = SweepFolder(tmp_path)
    files.plan.write_text("{}")
    with pytest.raises(ValueError, match=r"plan\.json is not what the sweep wrote"):
        files.read_plan()
