import json
import sys
import types

import numpy as np
import pytest

from trpo_jax.runs.loggers import TensorBoardLogger, WandbLogger
from trpo_jax.runs.records import rewind, summarize_seeds


def test_a_seed_alone_is_its_numbers():
    row = summarize_seeds(
        {
            "env_steps": np.array(128, np.int32),
            "kl": np.array(0.01, np.float32),
            "episode_return": np.array(np.nan, np.float32),
        }
    )
    # With the digits of float32, not those of its double.
    assert row == {"env_steps": 128, "kl": 0.01, "episode_return": None}
    assert np.float32(row["kl"]) == np.float32(0.01)
    json.dumps(row, allow_nan=False)


def test_seeds_are_summarized_over_those_that_have_a_number():
    row = summarize_seeds(
        {
            "env_steps": np.array([64, 64, 64], np.int32),
            "status": np.array([0, 0, 3], np.int32),
            "episode_return": np.array([1.0, np.nan, 4.0], np.float32),
            "kl": np.array([np.nan, np.inf, np.nan], np.float32),
        }
    )
    assert row["env_steps"] == 64
    assert row["status_by_seed"] == [0, 0, 3]
    assert "status" not in row
    assert row["episode_return"] == 2.5
    assert row["episode_return_std"] == pytest.approx(np.std([1, 4], ddof=1))
    assert row["episode_return_by_seed"] == [1.0, None, 4.0]
    assert row["kl"] is row["kl_std"] is None
    json.dumps(row, allow_nan=False)


def write(path, updates, torn=""):
    path.write_text(
        "".join(json.dumps({"update": one}) + "\n" for one in updates) + torn
    )


@pytest.mark.parametrize("torn", ["", '{"upd', '{"update": 3'])
@pytest.mark.parametrize("updates", [0, 2, 3, 5])
def test_lines_after_an_update_are_cut_off(tmp_path, updates, torn):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2, 3], torn)
    assert rewind(path, updates) == min(updates, 3)
    kept = [json.loads(line)["update"] for line in path.read_text().splitlines()]
    assert kept == list(range(1, min(updates, 3) + 1))


def test_a_line_that_cannot_be_read_costs_none_of_those_after_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"update": 1}\ngarbage\n{"update": 3}\n{"update": 4}\n')
    assert rewind(path, 3) == 3
    assert path.read_text() == '{"update": 1}\ngarbage\n{"update": 3}\n'


def test_tensorboard_gets_scalars_by_environment_steps(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401 (the format)

    with TensorBoardLogger(tmp_path) as logger:
        logger.log(128, {"update": 1, "env_steps": 128, "kl": 0.01})
    (file,) = tmp_path.iterdir()
    events, content = [], file.read_bytes()
    while content:  # length, its checksum, the event, its checksum
        length = int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    scalars = {
        (value.tag, event.step): value.simple_value
        for event in events
        for value in event.summary.value
    }
    assert scalars == {("kl", 128): pytest.approx(0.01)}


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
    """As its own documentation has it; entered, not made, is when it may wait."""
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
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ValueError, match=rf"trpo_jax\[{extra}\]"):
        make(tmp_path)
