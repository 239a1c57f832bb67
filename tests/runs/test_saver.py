import dataclasses
import time

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, SETTINGS, lines, run

import trpo_jax
from trpo_jax.runs import checkpoints
from trpo_jax.runs.chunks import Chunk
from trpo_jax.runs.saver import Saver


def test_a_checkpoint_is_due_after_so_many_minutes(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("trpo_jax.runs.saver.time.monotonic", lambda: now[0])
    settings = trpo_jax.RunSettings(checkpoint_updates=None, checkpoint_minutes=2.0)
    saver = Saver(tmp_path, CONFIG, settings)
    due = []
    for seconds in (0, 119, 121, 122, 240, 242):
        now[0] = seconds
        due.append(saver.due(updates=1))
    assert due == [False, False, True, False, False, True]
    saver.close()


@pytest.fixture
def saver(tmp_path):
    saver = Saver(tmp_path, CONFIG, dataclasses.replace(SETTINGS, keep_last=1))
    yield saver
    saver.close()


def test_a_checkpoint_is_due_after_so_many_updates(saver):
    assert [n for n in range(1, 31) if saver.due(n)] == [10, 20, 30]


def chunk(updates):
    return Chunk(updates, metrics=None, state={"x": jnp.ones(2)}, seconds=1.0)


@pytest.mark.usefixtures("no_shape_checks")
def test_a_score_is_the_mean_return_since_the_checkpoint_before(saver, tmp_path):
    for updates, returns in enumerate([[1.0, 3.0, np.nan], [8.0], [np.nan], [5.0]]):
        saver.add_returns(np.array(returns))
        saver.save(chunk(updates + 1))
        saver.wait()
    manifests = {
        int(path.name): checkpoints.verify(path)
        for path in checkpoints.complete(tmp_path)
    }
    assert {n: one.score for n, one in manifests.items()} == {2: 8.0, 4: 5.0}
    assert manifests[2].jax_settings["jax_enable_x64"] is False


@pytest.mark.usefixtures("no_shape_checks")
def test_a_save_that_fails_is_raised_when_it_is_waited_for(saver, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save", fail)
    saver.save(chunk(1))
    with pytest.raises(OSError, match="No space"):
        saver.wait()
    saver.wait()


def test_a_run_goes_on_while_a_checkpoint_is_saved(tmp_path, monkeypatch):
    """The first save lasts until there are rows of updates that came after it."""
    folder, save = tmp_path / "run", checkpoints.save

    def slow(path, state, manifest):
        seconds = time.monotonic() + 30
        while manifest.updates == 5 and len(lines(folder / "metrics.jsonl")) <= 5:
            assert time.monotonic() < seconds
            time.sleep(0.01)
        save(path, state, manifest)

    monkeypatch.setattr(checkpoints, "save", slow)
    run(folder, settings=dataclasses.replace(SETTINGS, checkpoint_updates=5))
    assert len(lines(folder / "metrics.jsonl")) == 40
