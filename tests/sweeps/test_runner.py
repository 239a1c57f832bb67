import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from compiling import compilations, fast_jit
from probes import Toll
from tiny import CONFIG, Killed, events

import trpo_jax
from trpo_jax.policies import evaluate_with_costs
from trpo_jax.sweeps import group_training, runner
from trpo_jax.sweeps.cell_programs import compile_cells
from trpo_jax.training import program_of

# Two programs, of four cells and of two: all tests here share them.
SHORT = dataclasses.replace(CONFIG, total_timesteps=16 * 8)
FIELDS = {"max_kl": [0.01, 0.1]}
OPTIONS = {
    "num_seeds": 2,
    "halving": (0.5,),
    "num_episodes": 4,
    "progress": False,
    "memory_gib": 1,
}


def sweep(folder=None, config=SHORT, **options):
    return trpo_jax.sweep(config, folder, **(OPTIONS | FIELDS | options))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """An uninterrupted sweep: its folder, and its result."""
    folder = tmp_path_factory.mktemp("swept") / "sweep"
    return folder, sweep(folder)


def assert_same(one, other):
    np.testing.assert_array_equal(one.returns, other.returns)
    np.testing.assert_array_equal(one.rungs, other.rungs)
    for name, values in one.metrics.items():
        np.testing.assert_array_equal(values, other.metrics[name], err_msg=name)
    for left, right in zip(
        jax.tree.leaves(one.best_state), jax.tree.leaves(other.best_state), strict=True
    ):
        assert (left == right).all()


def test_the_folder_has_results_and_the_best_setting_as_a_run(swept):
    folder, result = swept
    # The worse half stopped half-way.
    assert sorted(result.updates) == [4, 8]
    assert result.updates[result.settings.index(result.best)] == 8
    names = {path.name for path in folder.iterdir()}
    expected = {"sweep.json", "plan.json", "events.jsonl", "groups", "states", "best"}
    assert names - {"sweep.nc"} == expected | {"ranking.csv", ".lock"}
    assert list((folder / "states").iterdir()) == []
    config, state = trpo_jax.load_state(folder / "best")
    assert config == result.best
    key = jax.random.fold_in(jax.random.key(SHORT.seed), 1)
    returns = trpo_jax.evaluate(config, state, key, 4).mean(axis=1)
    best = result.settings.index(result.best)
    np.testing.assert_allclose(returns, result.returns[best], rtol=1e-5)
    assert len(trpo_jax.plot_runs(folder / "best", folder / "best" / "drawn")) == 2


def test_a_cell_is_the_single_run_of_its_setting(swept):
    """To rounding: a batched product of matrices adds in another order."""
    _, result = swept
    alone = fast_jit(trpo_jax.train)(result.best)
    best = result.settings.index(result.best)
    for name in ("kl", "entropy"):
        np.testing.assert_allclose(
            result.metrics[name][best],
            getattr(alone.metrics.update, name),
            rtol=1e-2,
            atol=1e-5,
        )
    np.testing.assert_array_equal(
        result.metrics["episode_count"][best], alone.metrics.episode_count
    )
    for one, other in zip(
        jax.tree.leaves(result.best_state.params),
        jax.tree.leaves(alone.state.params),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-4)
    assert result.best_state.origin == alone.state.origin


def test_nothing_compiles_twice(swept, tmp_path):
    with compilations() as compiled:
        again = sweep(tmp_path / "sweep")
    assert not compiled
    assert_same(again, swept[1])


def test_without_a_folder_nothing_is_kept(swept, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(runner.tempfile, "tempdir", None)
    result = sweep()
    assert_same(result, swept[1])
    assert result.folder is None
    assert list(tmp_path.iterdir()) == []


def test_a_finished_sweep_is_returned_at_once(swept):
    folder, result = swept
    before = (folder / "groups" / "0-0-0000.npz").stat().st_mtime_ns
    for again in (
        trpo_jax.resume_sweep(folder, progress=False),
        trpo_jax.load_sweep(folder),
        sweep(folder),
    ):
        assert_same(again, result)
        assert again.settings == result.settings
    assert before == (folder / "groups" / "0-0-0000.npz").stat().st_mtime_ns


@pytest.mark.parametrize("writes", range(1, 7))
def test_a_sweep_killed_at_any_write_ends_in_the_same_bits(
    writes, swept, tmp_path, monkeypatch
):
    """Writes: progress, states and results of a group, in two rungs."""
    folder, left = tmp_path / "sweep", writes
    write = group_training.write_arrays

    def write_until(path, arrays):
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        write(path, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(
            group_training, "_SAVE_MINUTES", 0.0
        )  # progress after every chunk
        patch.setattr(group_training, "write_arrays", write_until)
        with pytest.raises(Killed):
            sweep(folder)
    partly = trpo_jax.load_sweep(folder)
    assert partly.best_state is None
    resumed = trpo_jax.resume_sweep(folder, progress=False)
    assert_same(resumed, swept[1])
    assert not (folder / "progress.npz").exists()


@pytest.mark.parametrize("name", ["0-0-0000.npz", "1-0-0000.npz"])
def test_a_damaged_group_is_computed_again(name, swept, tmp_path):
    folder = tmp_path / "sweep"
    shutil.copytree(swept[0], folder)
    shutil.rmtree(folder / "best")
    (folder / "groups" / name).write_bytes(b"damaged")
    assert_same(trpo_jax.resume_sweep(folder, progress=False), swept[1])
    (warning,) = events(folder, "warning")
    assert name in warning["message"]


def test_a_signal_saves_the_group_and_says_how_to_go_on(swept, tmp_path, monkeypatch):
    folder = tmp_path / "sweep"
    watch = group_training.Watcher.watch

    def interrupt(self, chunk):
        watch(self, chunk)
        if chunk.updates == 1:  # a second signal would end the process
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(group_training.Watcher, "watch", interrupt)
        with pytest.raises(trpo_jax.Interrupted, match=r"finished 0 group.* resume "):
            sweep(folder)
    assert (folder / "progress.npz").exists()
    assert events(folder, "interrupted")
    assert_same(trpo_jax.resume_sweep(folder, progress=False), swept[1])


def test_a_full_disk_is_an_error_that_says_how_to_go_on(swept, tmp_path, monkeypatch):
    def full(path, arrays):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(group_training, "write_arrays", full)
        with pytest.raises(trpo_jax.RunError, match=r"No space .* to go on: python"):
            sweep(tmp_path / "sweep")
    assert_same(sweep(tmp_path / "sweep"), swept[1])


def test_bad_input_is_refused_before_there_is_a_folder(swept, tmp_path):
    for options, message in (
        ({"max_kl": []}, "max_kl has no values"),
        ({"memory_gib": 0}, "memory_gib=0; write GiB"),
        ({"num_episodes": 0}, "num_episodes=0 is not positive"),
        ({"halving": (2.0,)}, "not a fraction of the updates"),
        ({"nothing": [1]}, "nothing is not a field"),
    ):
        with pytest.raises(ValueError, match=message):
            sweep(tmp_path / "sweep", **options)
    assert not (tmp_path / "sweep").exists()
    with pytest.raises(ValueError, match="num_seeds: 2 and 3"):
        sweep(swept[0], num_seeds=3)
    with pytest.raises(ValueError, match="train_cells, which can"):
        jax.jit(lambda x: sweep(tmp_path / "sweep") and x)(0.0)


def test_the_memory_of_a_program_grows_with_its_cells(swept):
    program = program_of(SHORT)
    four, two = (compile_cells(program, n, 4, jax.devices()) for n in (4, 2))
    growth = (four.bytes_per_device - two.bytes_per_device) / 2
    assert growth > 0
    # Linear in the cells, so that the second program that is compiled fits.
    assert 0.9 < 4 * growth / four.bytes_per_device < 1.2


# --- several devices, and another process


PROGRAM = """
import dataclasses, pathlib, sys

import jax
import numpy as np
import trpo_jax
from compiling import compile_quickly
from trpo_jax.sweeps import cell_programs

compile_quickly()
config = trpo_jax.TRPOConfig(
    num_envs=3, rollout_length=8, total_timesteps=48, hidden_sizes=(4,)
)
# Three cells on two devices: one is padded. Nothing else is a multiple of the devices.
options = dict(num_seeds=1, num_episodes=4, max_kl=[0.01, 0.05, 0.1], progress=False)
result = trpo_jax.sweep(config, sys.argv[1], devices=jax.device_count(), **options)
if jax.device_count() > 1:
    program = trpo_jax.training.program_of(config)
    training = cell_programs.compile_cells(program, 4, 4, jax.devices())
    for compiled in (training.training.run_updates, training.evaluate):
        text = compiled.as_text()
        assert "while" in text
        for collective in ("all-reduce", "all-gather", "permute", "all-to-all"):
            assert collective not in text, collective
np.savez(sys.argv[2], returns=result.returns, kl=result.metrics["kl"])
"""


def run_with_devices(count, folder, output):
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(output)],
        env={
            **os.environ,
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} "
            f"--xla_force_host_platform_device_count={count}",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert result.returncode == 0, result.stderr
    return np.load(output)


def test_cells_are_spread_over_devices_that_do_not_wait_for_each_other(tmp_path):
    two = run_with_devices(2, tmp_path / "two", tmp_path / "two.npz")
    config = trpo_jax.TRPOConfig(
        num_envs=3, rollout_length=8, total_timesteps=48, hidden_sizes=(4,)
    )
    for index, max_kl in enumerate((0.01, 0.05, 0.1)):
        setting = dataclasses.replace(config, max_kl=max_kl)
        alone = trpo_jax.train(setting)
        np.testing.assert_allclose(
            two["kl"][index, 0], alone.metrics.update.kl, rtol=1e-3, atol=1e-6
        )
    plan = json.loads((tmp_path / "two" / "plan.json").read_text())
    assert plan == {"num_devices": 2, "cells_at_once": {"0": 4}}
    with pytest.raises(ValueError, match=r"runs on 2 device\(s\), and with 1 it would"):
        trpo_jax.resume_sweep(tmp_path / "two", progress=False)


def test_more_devices_than_before_are_left_alone(swept, tmp_path, monkeypatch):
    folder = tmp_path / "sweep"
    shutil.copytree(swept[0], folder)
    devices = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: devices * 2)
    assert_same(trpo_jax.resume_sweep(folder, progress=False), swept[1])


def test_a_sweep_that_is_running_is_not_started_twice(swept, tmp_path):
    folder = pathlib.Path(tmp_path / "sweep")
    shutil.copytree(swept[0], folder)
    with (
        runner.SweepFolder(folder).lock(),
        pytest.raises(ValueError, match="another process is running in"),
    ):
        trpo_jax.resume_sweep(folder)


def test_rungs_are_cut_into_groups_program_by_program(tmp_path):
    fields = {"hidden_sizes": [(4,), (8,)], "max_kl": [0.01, 0.05, 0.1]}
    search = runner.Search(
        dataclasses.replace(SHORT, num_seeds=2), fields, None, 0, (0.5,), 2.0, 4
    )
    files = runner.SweepFolder(tmp_path)
    files.decide(program=0, num_cells=4, num_devices=1)
    files.decide(program=1, num_cells=6, num_devices=1)
    planned = runner._Sweep(
        search, search.settings(), files, jax.devices(), keeps=True, progress=False
    )
    planned._plan(0, np.ones(6, bool))
    planned._plan(1, np.array([True, False, False, True, True, False]))
    first, second = planned.training.groups
    assert [(one.program, one.size, one.cells.tolist()) for one in first] == [
        (0, 3, [0, 1, 2]),
        (0, 3, [3, 4, 5]),
        (1, 6, [6, 7, 8, 9, 10, 11]),
    ]
    assert {(one.first, one.last) for one in first} == {(0, 4)}
    assert [(one.program, one.size, one.cells.tolist()) for one in second] == [
        (0, 2, [0, 1]),
        (1, 4, [6, 7, 8, 9]),
    ]
    assert {(one.first, one.last) for one in second} == {(4, 8)}


def test_a_small_memory_trains_fewer_runs_at_once(swept, tmp_path):
    """In groups of two, whose program the second rung has compiled already."""
    program = program_of(SHORT)
    four, two = (
        compile_cells(program, n, 4, jax.devices()).bytes_per_device for n in (4, 2)
    )
    gib = (four + two) / 2 / 2**30
    result = sweep(tmp_path / "sweep", memory_gib=gib)
    names = [path.name for path in (tmp_path / "sweep" / "groups").iterdir()]
    assert sorted(names) == ["0-0-0000.npz", "0-0-0001.npz", "1-0-0000.npz"]
    first = [one.metrics["kl"][..., 0] for one in (result, swept[1])]
    np.testing.assert_allclose(*first, rtol=1e-4)
    assert_same(sweep(tmp_path / "sweep"), result)  # as decided, whatever the memory


def test_a_cell_has_the_costs_of_its_policy(tmp_path):
    config = dataclasses.replace(
        SHORT, env=Toll(), update="cpo", cost_limits=(1.0, 100.0), total_timesteps=32
    )
    result = sweep(tmp_path / "sweep", config, halving=())
    assert result.costs.shape == (2, 2, 2)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    played = evaluate_with_costs(result.best, result.best_state, key, 4)
    best = result.settings.index(result.best)
    np.testing.assert_allclose(played.costs.mean(axis=1), result.costs[best])
    # The return of this environment is its first cost, and half of its second.
    np.testing.assert_array_equal(result.costs[..., 0], result.returns)
    np.testing.assert_array_equal(result.episode_cost[..., 0], result.episode_return)
    again = sweep(tmp_path / "sweep", config, halving=())  # read from its files
    np.testing.assert_array_equal(again.costs, result.costs)
    assert_same(again, result)
