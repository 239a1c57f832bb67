"""Adaptive damping and radius, and the options of the solve, in training."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from compiling import fast_jit

import trpo_jax
from trpo_jax.trust_region import UpdateStatus, adapt_damping, adapt_radius

ADAPTIVE = dataclasses.replace(
    tiny.CONFIG,
    total_timesteps=16 * 6,
    max_kl=0.1,
    max_kl_schedule="adaptive",
    damping_schedule="adaptive",
    fisher_operator="empirical",
    preconditioner_groups=4,
    preconditioner="kronecker",
)
PARTLY = dataclasses.replace(
    ADAPTIVE,
    update="tnpg",
    max_kl_schedule="linear",
    preconditioner="diagonal",
    fisher_operator="kl_hessian",
)


def train(config, key):
    result = trpo_jax.train(config, key)
    return result.state, result.metrics


train_one = fast_jit(train, static_argnums=0)


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(0), 3)


@pytest.fixture(scope="module")
def looped(keys):
    return [train_one(ADAPTIVE, key) for key in keys]


def test_both_follow_the_evidence_of_the_update_before(looped):
    changes = []
    for state, metrics in looped:
        factors = {"max_kl": 1.0, "damping": 1.0}
        for update in range(ADAPTIVE.num_updates):
            row = jax.tree.map(lambda leaf, i=update: leaf[i], metrics)
            np.testing.assert_allclose(row.max_kl, 0.1 * factors["max_kl"], rtol=1e-5)
            np.testing.assert_allclose(row.damping, 0.1 * factors["damping"], rtol=1e-5)
            factors = {
                "max_kl": adapt_radius(
                    factors["max_kl"], row.update, low=0.1, high=10.0
                ),
                "damping": adapt_damping(
                    factors["damping"], row.update, low=0.01, high=100.0
                ),
            }
            changes.append(factors.values())
            if row.update.status == UpdateStatus.ACCEPTED:
                assert row.update.kl <= row.max_kl
        np.testing.assert_allclose(state.update_state, list(factors.values()), 1e-5)
    assert len({tuple(map(float, change)) for change in changes}) > 3


def test_several_runs_at_once_are_the_runs_alone(keys, looped):
    """Until rounding differs by enough for another action, or another case."""
    _, at_once = fast_jit(jax.vmap(lambda key: train(ADAPTIVE, key)))(keys)
    for lane, (_, metrics) in enumerate(looped):
        pairs = (
            (at_once.max_kl, metrics.max_kl),
            (at_once.damping, metrics.damping),
            (at_once.update.kl, metrics.update.kl),
        )
        for actual, expected in pairs:
            np.testing.assert_allclose(actual[lane, :3], expected[:3], rtol=1e-2)


def test_one_may_adapt_beside_a_schedule_of_the_other(keys):
    state, metrics = train_one(PARTLY, keys[0])
    assert np.all(metrics.update.status == UpdateStatus.ACCEPTED)
    np.testing.assert_allclose(metrics.max_kl, 0.1 * np.linspace(1, 1 / 6, 6), 1e-5)
    assert state.update_state.max_kl == 1
    assert len(np.unique(metrics.damping)) > 1


def test_nothing_is_kept_where_nothing_adapts():
    state = tiny.init(tiny.CONFIG, jax.random.key(0))
    assert state.update_state == ()
    config = dataclasses.replace(tiny.CONFIG, damping_schedule="adaptive")
    with pytest.raises(ValueError, match=r"made from another config.*update_state"):
        jax.eval_shape(trpo_jax.training.step, config, state)
