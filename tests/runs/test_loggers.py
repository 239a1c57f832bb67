import dataclasses
import sys
import time
import types

import pytest
from tiny import (
    CONFIG,
    SETTINGS,
    Blocking,
    Failing,
    Recorder,
    events,
    lines,
    resume,
    run,
    run_until_killed,
)

from benchmarks.kills import differences
from trpo_jax.runs import loggers
from trpo_jax.runs.loggers import Logger, TensorBoardLogger, WandbLogger, scalars


def test_each_seed_has_numbers_of_its_own():
    row = {
        "env_steps": 64,
        "episode_return": 2.5,
        "episode_return_by_seed": [1.0, None, 4.0],
        "status_by_seed": [0, 0, 3],
        "kl": None,
    }
    assert scalars(row) == {
        "env_steps": 64,
        "episode_return": 2.5,
        "episode_return/seed_0": 1.0,
        "episode_return/seed_2": 4.0,
        "status/seed_0": 0,
        "status/seed_1": 0,
        "status/seed_2": 3,
    }


def tensorboard_scalars(folder):
    """Return value by (tag, step), from the only event file in a folder."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = folder.iterdir()
    events, content = [], file.read_bytes()
    while content:  # length, its checksum, the event, its checksum
        length = int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return {
        (value.tag, event.step): value.simple_value
        for event in events
        for value in event.summary.value
    }


def test_tensorboard_gets_scalars_by_environment_steps(tmp_path):
    pytest.importorskip("tensorboardX")
    with TensorBoardLogger(tmp_path) as logger:
        for env_steps in (128, 2**40 + 1):
            logger.log(env_steps, {"update": 1, "env_steps": env_steps, "kl": 0.01})
    assert tensorboard_scalars(tmp_path) == {
        ("kl", 128): pytest.approx(0.01),
        ("kl", 2**40 + 1): pytest.approx(0.01),
    }


def test_tensorboard_has_curves_of_each_seed(tmp_path):
    pytest.importorskip("tensorboardX")
    config = dataclasses.replace(CONFIG, num_seeds=2)
    run(tmp_path / "run", config, dataclasses.replace(SETTINGS, tensorboard=True))
    found = tensorboard_scalars(tmp_path / "run" / "tensorboard")
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    for row in rows:
        for name in ("episode_return", "kl", "entropy", "status", "cg_status"):
            for seed, value in enumerate(row[f"{name}_by_seed"]):
                there = found.get((f"{name}/seed_{seed}", row["env_steps"]))
                assert there == (None if value is None else pytest.approx(value))
    assert any(None not in row["episode_return_by_seed"] for row in rows)
    assert found["steps_per_second", 640] > 0


def test_wandb_writes_offline_and_goes_on_with_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = []
    for _ in range(2):
        with WandbLogger(tmp_path / "wandb", "test", {"env": "CartPole-v1"}) as logger:
            logger.log(128, {"kl": 0.01})
            ids.append(logger._run.id)
    assert ids[0] == ids[1]
    assert list((tmp_path / "wandb").rglob("*.wandb"))


def test_wandb_is_told_what_it_is_to_write(tmp_path, monkeypatch):
    """The calls follow wandb's documentation; only entering the logger may wait."""
    told = []

    class Run:
        def log(self, values, step):
            told.append(("log", values, step))

        def finish(self, exit_code):
            told.append(("finish", exit_code))

    def init(**options):
        told.append(("init", options["project"], options["id"], options["resume"]))
        return Run()

    stub = types.SimpleNamespace(init=init)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    for made in (0, 3):
        logger = WandbLogger(tmp_path, "test", {"env": "CartPole-v1"})
        assert len(told) == made
        with logger:
            logger.log(128, {"kl": 0.01})
    name = (tmp_path / "run_id").read_text()
    once = [("init", "test", name, "allow"), ("log", {"kl": 0.01}, 128), ("finish", 0)]
    assert told == 2 * once


@pytest.mark.parametrize(
    ("module", "make", "extra"),
    [
        ("tensorboardX", lambda path: TensorBoardLogger(path), "tensorboard"),
        ("wandb", lambda path: WandbLogger(path, "project", {}), "wandb"),
    ],
)
def test_a_writer_that_is_not_installed_is_named(
    module, make, extra, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"trpo_jax\[{extra}\]"):
        make(tmp_path)


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_every_destination_gets_the_same_numbers(tmp_path, monkeypatch, num_seeds):
    pytest.importorskip("tensorboardX")
    told, recorder = {}, Recorder()
    stub = types.SimpleNamespace(
        log=lambda values, step: told.update({step: values}),
        finish=lambda exit_code: None,
    )
    wandb = types.SimpleNamespace(init=lambda **options: stub)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = dataclasses.replace(CONFIG, num_seeds=num_seeds, total_timesteps=16 * 4)
    settings = dataclasses.replace(
        SETTINGS,
        tensorboard=True,
        wandb="test",
        evaluation_updates=2,
        interim_episodes=1,
    )
    run(tmp_path / "run", config, settings, loggers=[recorder])
    # The file has the speed, which no repetition has again, in timing.jsonl.
    rows = [scalars(row) for row in lines(tmp_path / "run" / "metrics.jsonl")]
    by_steps = dict(recorder.rows)
    assert [row["env_steps"] for row in rows] == list(by_steps) == [16, 32, 48, 64]
    for row in rows:
        logged = by_steps[row["env_steps"]]
        assert logged == row | {"steps_per_second": logged["steps_per_second"]}
    assert told == by_steps
    names = {"evaluation_return"}
    if num_seeds > 1:
        names |= {f"evaluation_return/seed_{seed}" for seed in range(num_seeds)}
    for steps, logged in by_steps.items():
        assert (names <= logged.keys()) == (steps in (32, 64))
    written = tensorboard_scalars(tmp_path / "run" / "tensorboard")
    assert written == {
        (name, steps): pytest.approx(value)
        for steps, logged in by_steps.items()
        for name, value in logged.items()
        if name not in ("update", "env_steps")
    }


def test_a_resumed_run_logs_on_from_its_checkpoint(tmp_path, monkeypatch):
    """Later updates are logged again, without a gap."""
    recorder = Recorder()
    run_until_killed(tmp_path / "run", 15, monkeypatch)
    resume(tmp_path / "run", loggers=[recorder])
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["update"] for row in rows] == list(range(1, 41))
    assert [metrics["update"] for _, metrics in recorder.rows] == list(range(11, 41))


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ({"loggers": Recorder()}, "loggers is a Recorder; write a list, as"),
        ({"loggers": None}, "loggers is None; write a list"),
        # Its first reader would leave nothing to the second.
        ({"loggers": (one for one in [Recorder()])}, "loggers is a generator; write"),
        ({"loggers": [Recorder]}, "the class Recorder is not a logger; write an obj"),
        ({"settings": {"tensorboard": True}}, r"a dict .*write trpo_jax\.RunSettings"),
        ({"settings": True}, "settings is the bool True"),
    ],
)
def test_arguments_of_the_wrong_type_are_refused(tmp_path, arguments, advice):
    with pytest.raises(TypeError, match=advice):
        run(tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_what_is_no_logger_is_refused_before_there_is_a_folder(
    tmp_path, no_shape_checks
):
    with pytest.raises(TypeError, match="log\\(env_steps, metrics\\)"):
        run(tmp_path / "run", loggers=[print])
    assert not (tmp_path / "run").exists()
    followed = types.SimpleNamespace(log=lambda env_steps, metrics: None)
    assert isinstance(followed, Logger)  # as advised


def test_loggers_are_told_of_every_update_and_left(tmp_path, finished):
    recorder = Recorder()
    run(tmp_path / "run", loggers=[recorder])
    assert [steps for steps, _ in recorder.rows] == list(range(16, 656, 16))
    rows = lines(finished[0] / "metrics.jsonl")
    assert recorder.rows[7][1]["kl"] == rows[7]["kl"]
    assert recorder.left


def test_a_logger_that_raises_is_dropped_and_the_run_goes_on(tmp_path, finished):
    recorder = Recorder()
    run(tmp_path / "run", loggers=[Failing(), recorder])
    (warning,) = events(tmp_path / "run", "warning")
    assert "Failing" in warning["message"]
    assert "no route to the server" in warning["message"]
    assert len(recorder.rows) == 40
    assert differences(finished[0], tmp_path / "run") == []


class Slow(Recorder):
    def log(self, env_steps, metrics):
        time.sleep(0.02)
        super().log(env_steps, metrics)


def test_a_slow_logger_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "PATIENCE_SECONDS", 0.2)
    slow = Slow()
    run(tmp_path / "run", loggers=[slow])
    assert len(slow.rows) == 40
    assert not (tmp_path / "run").joinpath("events.jsonl").read_text().count("warning")


def test_a_writer_that_cannot_start_is_dropped(tmp_path, finished, monkeypatch):
    def fail(*args, **options):
        raise ConnectionError("no route to the server")

    monkeypatch.setattr("trpo_jax.runs.runner.TensorBoardLogger", fail)
    settings = dataclasses.replace(SETTINGS, tensorboard=True)
    run(tmp_path / "run", settings=settings)
    (warning,) = events(tmp_path / "run", "warning")
    assert "no route to the server" in warning["message"]


def test_a_logger_that_blocks_does_not_hold_up_the_run(tmp_path, finished, monkeypatch):
    monkeypatch.setattr(loggers, "CAPACITY", 8)
    monkeypatch.setattr(loggers, "PATIENCE_SECONDS", 0.2)
    blocking = Blocking()
    run(tmp_path / "run", loggers=[blocking])
    blocking.release.set()
    warnings = [one["message"] for one in events(tmp_path / "run", "warning")]
    assert any("behind" in message for message in warnings)
    assert any("took no update" in message for message in warnings)
    assert differences(finished[0], tmp_path / "run") == []
