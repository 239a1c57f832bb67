import numpy as np
import pytest

from trpo_jax.sweeps.cell_groups import (
    METRICS,
    Group,
    Table,
    cut,
    group_size,
    mean_or_nan,
)


@pytest.mark.parametrize(
    ("total", "at_once", "devices", "size"),
    [
        (10, 100, 1, 10),
        (10, 8, 1, 5),  # two equal groups, instead of 8 and 2
        (10, 1, 1, 1),
        (10, 100, 4, 12),
        (10, 7, 4, 4),
        (1, 8, 4, 4),
    ],
)
def test_groups_are_equal_and_fill_the_devices(total, at_once, devices, size):
    assert group_size(total, at_once, devices) == size


def test_a_group_is_cut_and_padded():
    cells = np.arange(4, 11)
    groups = cut(Group(1, 2, 0, cells, size=3, first=0, last=5))
    assert [group.name for group in groups] == [f"2-1-000{i}" for i in range(3)]
    assert [group.cells.tolist() for group in groups] == [[4, 5, 6], [7, 8, 9], [10]]
    assert groups[2].padded.tolist() == [10, 10, 10]
    assert np.concatenate([group.cells for group in groups]).tolist() == cells.tolist()


def results(group, value):
    shape = (group.last - group.first, len(group.cells))
    return {name: np.full(shape, value) for name in METRICS} | {
        "episode_cost_sum": np.full((*shape, 1), value),
        "returns": np.full(len(group.cells), value),
        "costs": np.full((len(group.cells), 1), value),
        "unended": np.zeros(len(group.cells), int),
    }


def test_results_are_entered_where_their_cells_are():
    table = Table.empty([None] * 2, num_seeds=2, num_updates=5, num_costs=1)
    group = Group(0, 0, 0, np.array([1, 2]), 2, first=0, last=3)
    table.put(group, results(group, 7))
    assert table.updates.tolist() == [[0, 3], [3, 0]]
    assert table.rungs.tolist() == [[-1, 0], [0, -1]]
    kl = table.metrics["kl"]
    assert (kl[0, 1, :3] == 7).all()
    assert np.isnan(kl[0, 1, 3:]).all()
    assert np.isnan(kl[0, 0]).all()
    sums = table.metrics["episode_cost_sum"]
    assert (sums[0, 1, :3] == 7).all()
    assert np.isnan(sums[0, 1, 3:]).all()
    assert (table.metrics["status"][1, 1] == -1).all()


def test_states_are_needed_of_the_best_setting_and_of_incomplete_ones():
    table = Table.empty([None] * 4, num_seeds=2, num_updates=1, num_costs=0)
    for cells, value in (([0, 1], 5), ([2, 3], 9), ([4], 1)):
        group = Group(0, 0, 0, np.array(cells), 2, 0, 1)
        table.put(group, results(group, value))
    assert table.states_needed(0).tolist() == [False, True, True, False]
    assert table.order()[0] == 1


def test_the_best_setting_keeps_its_limit():
    table = Table.empty([(8.0,), (8.0,), None], 1, num_updates=1, num_costs=1)
    for cell, value in enumerate((7, 9, 10)):
        group = Group(0, 0, 0, np.array([cell]), 1, 0, 1)
        table.put(group, results(group, value))
    np.testing.assert_allclose(table.excess, [0, 1 / 8, 0])
    assert table.order().tolist() == [2, 0, 1]


def test_the_mean_of_nothing_is_unknown():
    means = mean_or_nan(np.array([[2.0, 6.0], [0.0, 0.0]]), np.array([2, 0]))
    np.testing.assert_array_equal(means, [[1, 3], [np.nan, np.nan]])
