"""The loop over chunks, with a device that only counts."""

import dataclasses

import jax
import numpy as np
import pytest
from runs.tiny import CONFIG

from trpo_jax.runs import chunks
from trpo_jax.runs.chunks import Programs, advance, by_update
from trpo_jax.training import Metrics, train
from trpo_jax.trust_region import UpdateInfo


def metrics_of(first, count):
    """As many rows as there is room for, of which `count` are filled."""
    rows = np.full(chunks._CAPACITY, -1, np.int32)
    rows[:count] = np.arange(first + 1, first + count + 1)
    info = UpdateInfo(*[rows] * len(UpdateInfo._fields))
    return Metrics(**dict.fromkeys(Metrics._fields[:-1], rows), update=info)


class Device:
    """A state is the number of updates it has seen; one given up must not come back."""

    def __init__(self):
        self.handed_out = []
        self.given_up = set()

    def advance(self, state, count):
        assert state not in self.given_up
        self.given_up.add(state)
        self.handed_out.append(int(count))
        return state + int(count), metrics_of(state, int(count))

    def programs(self):
        return Programs(init=None, advance=self.advance, copy=lambda state: -state)


@pytest.fixture
def device(monkeypatch, no_shape_checks):
    monkeypatch.setattr(chunks.jax, "device_get", lambda tree: tree)
    return Device()


def steps(found):
    return [int(step) for chunk in found for step in chunk.metrics.env_steps]


def test_every_update_comes_once_and_the_last_brings_the_state(device):
    found = list(advance(device.programs(), 0, first=0, last=1000))
    assert steps(found) == list(range(1, 1001))
    assert [chunk.state for chunk in found[:-1]] == [None] * (len(found) - 1)
    assert found[-1].state == found[-1].updates == 1000
    # So quick a device is handed more and more at a time, but not more than fits.
    assert device.handed_out[0] == 1
    assert max(device.handed_out) == chunks._CAPACITY


def test_a_run_goes_on_where_it_stood(device):
    found = list(advance(device.programs(), 7, first=7, last=20))
    assert steps(found) == list(range(8, 21))


def test_there_is_nothing_to_do_for_a_run_that_is_done(device):
    assert list(advance(device.programs(), 5, first=5, last=5)) == []


def test_the_device_has_the_next_chunk_in_hand_while_one_is_looked_at(device):
    found = advance(device.programs(), 0, first=0, last=1000)
    for looked_at, chunk in enumerate(found, start=1):
        ahead = len(device.handed_out) - looked_at
        assert ahead == (1 if chunk.updates < 1000 else 0)


def test_chunks_end_at_boundaries_and_bring_copies_of_wanted_states(device):
    found = list(
        advance(
            device.programs(),
            0,
            first=0,
            last=300,
            boundary_every=70,
            wants_state_fn=lambda updates: updates % 70 == 0,
        )
    )
    states = {chunk.updates: chunk.state for chunk in found if chunk.state is not None}
    # Copies have a minus: what was given up is not kept.
    assert states == {70: -70, 140: -140, 210: -210, 280: -280, 300: 300}


def test_what_is_in_hand_is_finished_when_it_is_stopped(device):
    asked = []

    def stop():
        asked.append(len(device.handed_out))
        return len(asked) > 4

    found = list(advance(device.programs(), 0, first=0, last=1000, stop_fn=stop))
    assert sum(device.handed_out) == found[-1].updates < 1000
    assert found[-1].state == found[-1].updates
    assert steps(found) == list(range(1, found[-1].updates + 1))


def test_metrics_come_update_by_update():
    metrics = jax.tree.map(lambda leaf: leaf[:3], metrics_of(4, 3))
    rows = by_update(metrics)
    assert [int(row["kl"]) for row in rows] == [5, 6, 7]
    assert rows[0].keys() == {*Metrics._fields, *UpdateInfo._fields} - {"update"}


def test_seeds_side_by_side_are_those_of_train():
    config = dataclasses.replace(CONFIG, num_seeds=2, total_timesteps=16 * 3)
    programs = chunks.compile_programs(config)
    start = programs.init(chunks.run_keys(config))
    (*_, last) = advance(programs, start, first=0, last=3)
    expected = train(config)
    assert last.metrics.env_steps.shape == (1, 2)
    np.testing.assert_array_equal(last.state.updates, expected.state.updates)
    np.testing.assert_allclose(
        last.metrics.update.entropy[-1],
        expected.metrics.update.entropy[:, -1],
        rtol=1e-3,
    )
