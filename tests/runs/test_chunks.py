"""The loop over chunks, with a device that only counts."""

import dataclasses

import jax
import numpy as np
import pytest
from compiling import compilations
from tiny import CONFIG

from trpo_jax.policies.evaluation import Evaluation, start_evaluation
from trpo_jax.runs import chunks
from trpo_jax.runs.chunks import CAPACITY, Programs, by_update, run_chunks
from trpo_jax.training import Metrics, train
from trpo_jax.training.seeds import run_keys
from trpo_jax.trust_region import UpdateInfo


def metrics_of(first, count):
    """Return rows of a full chunk, of which `count` are filled."""
    rows = np.full(CAPACITY, -1, np.int32)
    rows[:count] = np.arange(first + 1, first + count + 1)
    info = UpdateInfo(*[np.float32(rows)] * len(UpdateInfo._fields))
    names = set(Metrics._fields) - {"update", "episode_cost_sum", "constraints"}
    metrics = Metrics(**dict.fromkeys(names, rows), update=info)
    return metrics._replace(batch_size=np.ones_like(rows))


class Device:
    """A state is the number of updates it has seen; a donated one is not used again."""

    def __init__(self):
        self.handed_out = []
        self.donated = set()

    def run_updates(self, state, count):
        assert state not in self.donated
        self.donated.add(state)
        self.handed_out.append(int(count))
        return state + int(count), metrics_of(state, int(count))

    def programs(self):
        return Programs(
            init=None, run_updates=self.run_updates, copy=lambda state: -state
        )


@pytest.fixture
def device(monkeypatch, no_shape_checks):
    monkeypatch.setattr(chunks.jax, "device_get", lambda tree: tree)
    return Device()


def steps(found):
    return [int(step) for chunk in found for step in chunk.metrics.env_steps]


def test_every_update_comes_once_and_the_last_brings_the_state(device):
    found = list(run_chunks(device.programs(), 0, first=0, last=1000))
    assert steps(found) == list(range(1, 1001))
    assert [chunk.state for chunk in found[:-1]] == [None] * (len(found) - 1)
    assert found[-1].state == found[-1].updates == 1000
    # So quick a device is handed more and more at a time, but not more than fits.
    assert device.handed_out[0] == 1
    assert max(device.handed_out) == CAPACITY


def test_a_run_goes_on_where_it_stood(device):
    found = list(run_chunks(device.programs(), 7, first=7, last=20))
    assert steps(found) == list(range(8, 21))


def test_there_is_nothing_to_do_for_a_run_that_is_done(device):
    assert list(run_chunks(device.programs(), 5, first=5, last=5)) == []


def test_the_device_has_the_next_chunk_while_one_is_looked_at(device):
    found = run_chunks(device.programs(), 0, first=0, last=1000)
    for looked_at, chunk in enumerate(found, start=1):
        ahead = len(device.handed_out) - looked_at
        assert ahead == (1 if chunk.updates < 1000 else 0)


def test_chunks_end_at_boundaries_and_bring_copies_of_wanted_states(device):
    found = list(
        run_chunks(
            device.programs(),
            0,
            first=0,
            last=300,
            boundary_every=70,
            wants_state_fn=lambda updates: updates % 70 == 0,
        )
    )
    states = {chunk.updates: chunk.state for chunk in found if chunk.state is not None}
    # Copies have a minus: a donated state is not kept.
    assert states == {70: -70, 140: -140, 210: -210, 280: -280, 300: 300}


def test_the_state_of_a_boundary_is_evaluated_and_brought(device):
    class Playing:
        def __init__(self, state, updates):
            self.returns = np.array([float(state), updates])

        def fetch(self):
            updates = self.returns[1]
            assert sum(device.handed_out) > updates or updates == 60
            return self.returns

    found = list(
        run_chunks(
            device.programs(),
            0,
            first=0,
            last=60,
            boundary_every=30,
            wants_state_fn=lambda updates: updates % 30 == 0,
            evaluate_fn=Playing,
            evaluate_every=20,
        )
    )
    evaluations = {
        chunk.updates: chunk.evaluation.tolist()
        for chunk in found
        if chunk.evaluation is not None
    }
    # Copies have a minus; the last state is not donated, and needs none.
    assert evaluations == {20: [-20, 20], 40: [-40, 40], 60: [60, 60]}
    states = {chunk.updates: chunk.state for chunk in found if chunk.state is not None}
    assert states == {20: -20, 30: -30, 40: -40, 60: 60}
    assert {chunk.updates for chunk in found if chunk.wanted} == {30, 60}
    assert {30, 50}.isdisjoint(evaluations)


def test_chunks_in_flight_are_finished_when_it_is_stopped(device):
    asked = []

    def stop():
        asked.append(len(device.handed_out))
        return len(asked) > 4

    found = list(run_chunks(device.programs(), 0, first=0, last=1000, stop_fn=stop))
    assert sum(device.handed_out) == found[-1].updates < 1000
    assert found[-1].state == found[-1].updates
    assert steps(found) == list(range(1, found[-1].updates + 1))


def test_metrics_come_update_by_update():
    metrics = jax.tree.map(lambda leaf: leaf[:3], metrics_of(4, 3))
    rows = by_update(chunks.Chunk(7, metrics, None, 1.0))
    assert [int(row["kl"]) for row in rows] == [5, 6, 7]
    assert [int(row["update"]) for row in rows] == [5, 6, 7]
    parts = {"updates", "batch_size", "episode_return_sum", "episode_length_sum"}
    parts |= {"episode_cost_sum", "constraints"}  # those of no costs
    derived = {"env_steps", "episode_return", "episode_length"}
    derived |= {"kl_ratio", "improvement_ratio", "signal_to_noise"}
    names = {*Metrics._fields, *UpdateInfo._fields}
    assert rows[0].keys() == (names - parts) | derived
    played = Evaluation(np.array([1.0, np.nan, 4.0]), None)
    rows = by_update(chunks.Chunk(7, metrics, None, 1.0, played))
    assert ["evaluation_return" in row for row in rows] == [False, False, True]
    assert rows[-1]["evaluation_return"] == 2.5


def test_seeds_side_by_side_are_those_of_train():
    config = dataclasses.replace(CONFIG, num_seeds=2, total_timesteps=16 * 4)
    programs = chunks.compile_programs(config)
    start = programs.init(run_keys(config))
    (*_, last) = run_chunks(programs, start, first=0, last=4)
    expected = train(config)
    assert last.metrics.env_steps.shape[1] == 2
    np.testing.assert_array_equal(last.state.updates, expected.state.updates)
    np.testing.assert_allclose(
        last.metrics.update.entropy[-1],
        expected.metrics.update.entropy[:, -1],
        rtol=1e-3,
    )


def test_an_evaluation_in_training_is_compiled_before_it():
    programs = chunks.compile_programs(CONFIG, interim_episodes=5)
    state, key = programs.init(run_keys(CONFIG)), jax.random.key(1)
    with compilations() as seconds:
        start_evaluation(CONFIG, programs.copy(state), key, 5).fetch()
    assert seconds == []


def test_programs_are_compiled_once():

    def train_on():
        programs = chunks.compile_programs(CONFIG)
        state = programs.init(run_keys(CONFIG))
        copied = programs.copy(state)
        (*_, last) = run_chunks(programs, state, first=0, last=3)
        return copied, last.state

    train_on()
    with compilations() as seconds:
        start, end = train_on()
    assert seconds == []
    assert (start.updates, end.updates) == (0, 3)
