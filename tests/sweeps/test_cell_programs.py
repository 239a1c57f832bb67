"""Memory and sizes, with stand-ins for compiled programs; test_sweeps compiles them."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tiny import CONFIG

from trpo_jax.runs.chunks import Programs
from trpo_jax.sweeps import cell_programs
from trpo_jax.sweeps.cell_programs import (
    CellPrograms,
    bytes_of,
    devices_of,
    fit_cells,
    memory_budget,
)
from trpo_jax.training import init_cells, make_cells, make_settings, program_of

DEVICES = tuple(jax.devices()[:1])
SHARDING = NamedSharding(
    jax.make_mesh((1,), ("cells",), axis_types=(AxisType.Auto,)), PartitionSpec()
)


@pytest.fixture
def compiled(monkeypatch):
    """Sizes of the programs that are compiled: 1 MB, and 0.1 MB for each cell."""
    sizes = []

    def compile_cells(program, num_cells, num_episodes, devices):
        sizes.append(num_cells)
        needed = 10**6 + 10**5 * num_cells
        programs = Programs(lambda cells: cells, lambda s, n: s, lambda state: state)
        return CellPrograms(programs, jax.jit(abs), num_cells, (), needed, SHARDING)

    monkeypatch.setattr(cell_programs, "compile_cells", compile_cells)
    return sizes


@pytest.mark.parametrize(
    ("budget", "num_cells", "programs"),
    [(10**9, 100, 1), (11 * 10**6, 100, 1), (10**7, 50, 2), (1_200_000, 2, 3)],
)
def test_the_most_cells_that_fit_are_trained_at_once(
    budget, num_cells, programs, compiled
):
    fitted = fit_cells(program_of(CONFIG), 100, 4, DEVICES, budget)
    assert fitted.bytes_per_device <= budget
    assert fitted.num_cells == num_cells
    assert len(compiled) <= programs


def test_a_run_that_does_not_fit_is_refused_with_the_memory_it_needs(compiled):
    with pytest.raises(ValueError, match=r"needs 0\.00102 GiB .*memory_gib=0\.00103"):
        fit_cells(program_of(CONFIG), 100, 4, DEVICES, 10**5)
    budget = memory_budget(DEVICES, 0.00103)  # as advised
    fit_cells(program_of(CONFIG), 100, 4, DEVICES, budget)


def test_the_budget_is_given_or_what_is_free():
    assert memory_budget(DEVICES, 2) == 2**31
    assert memory_budget(DEVICES * 2, 2) == 2**30
    assert 2**20 < memory_budget(DEVICES) < 2**50


def test_the_budget_is_that_of_the_fullest_device(no_shape_checks):
    def device(in_use):
        stats = {"bytes_limit": 1000, "bytes_in_use": in_use}
        return types.SimpleNamespace(process_index=0, memory_stats=lambda: stats)

    assert memory_budget([device(100), device(500)]) == 450


def test_devices_are_all_or_those_that_are_wanted():
    assert devices_of(None) == tuple(jax.devices())
    assert devices_of(1) == DEVICES
    mesh = jax.make_mesh((1,), ("any",), axis_types=(AxisType.Auto,))
    assert devices_of(mesh) == DEVICES
    with pytest.raises(ValueError, match="devices=2, but JAX has 1; write devices=1"):
        devices_of(2)


def test_devices_go_on_as_many_as_a_sweep_began_with(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: DEVICES * 4)
    assert len(devices_of(None)) == 4
    assert len(devices_of(None, num_devices=2)) == 2
    assert len(devices_of(1, num_devices=2)) == 1
    assert len(devices_of(None, num_devices=8)) == 4


def test_bytes_are_those_of_the_leaves():
    cells = make_cells(make_settings(CONFIG, {"max_kl": [0.1]}))
    state = jax.eval_shape(lambda: init_cells(program_of(CONFIG), cells))
    expected = sum(
        np.prod(leaf.shape, dtype=int) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(state)
    )
    assert bytes_of(state) == expected > 300
