import contextlib
import dataclasses
import time
import types

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, SETTINGS, lines, run

import trpo_jax
from trpo_jax.policies import Evaluation
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


def chunk(updates, returns=None, evaluation=None):
    metrics = types.SimpleNamespace(episode_return=returns, episode_cost=None)
    state = {"x": jnp.ones(2)}
    return Chunk(updates, metrics, state, seconds=1.0, evaluation=evaluation)


@pytest.mark.usefixtures("no_shape_checks")
def test_a_score_is_the_mean_return_since_the_checkpoint_before(saver, tmp_path):
    for updates, returns in enumerate([[1.0, 3.0, np.nan], [8.0], [np.nan], [5.0]]):
        saver.add_returns(chunk(updates + 1, np.array(returns)))
        saver.save(chunk(updates + 1))
        saver.wait()
    manifests = manifests_in(tmp_path)
    assert {n: one.score for n, one in manifests.items()} == {2: 8.0, 4: 5.0}
    assert manifests[2].jax_settings["jax_enable_x64"] is False


def manifests_in(folder):
    """Return the manifests of complete checkpoints by their updates."""
    paths = checkpoints.complete(folder)
    return {int(path.name): checkpoints.verify(path) for path in paths}


@pytest.mark.usefixtures("no_shape_checks")
def test_with_evaluations_the_best_state_is_saved_with_the_next_checkpoint(tmp_path):
    settings = dataclasses.replace(SETTINGS, keep_last=9, evaluation_updates=2)
    evaluations = [None, [1.0, 3.0], None, None, [9.0, 9.0], [4.0, np.nan], [np.nan]]
    saved = (3, 4, 6, 7)
    with contextlib.closing(Saver(tmp_path, CONFIG, settings)) as saver:
        for updates, returns in enumerate(evaluations, start=1):
            evaluation = (
                None if returns is None else Evaluation(np.array(returns), None)
            )
            saver.add_returns(chunk(updates, np.array([99.0]), evaluation))
            if updates in saved:
                saver.save(chunk(updates))
        saver.wait()
    scores = {n: one.score for n, one in manifests_in(tmp_path).items()}
    # A state has its own evaluation as score, or none; in the last no episode ended.
    assert scores == {2: 2.0, 3: None, 4: None, 5: 9.0, 6: 4.0, 7: None}


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
