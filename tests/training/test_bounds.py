"""The estimated lower bounds of an update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from trpo_jax.training import improvement_bounds, iteration, metrics
from trpo_jax.training.seeds import state_type
from trpo_jax.trust_region import UpdateInfo

ADVANTAGES = jnp.float32([[3.0, -1.0], [2.0, -5.0]])
INFO = UpdateInfo(*[jnp.float32(0)] * len(UpdateInfo._fields))._replace(
    surrogate_before=jnp.float32(0.1),
    surrogate_after=jnp.float32(0.4),
    kl=jnp.float32(0.02),
    kl_max=jnp.float32(0.05),
    entropy_before=jnp.float32(1.0),
    entropy=jnp.float32(0.5),
)


def test_the_bounds_are_in_units_of_return_and_without_the_bonus():
    found = improvement_bounds(INFO, ADVANTAGES, discount=0.5, entropy_coefficient=0.2)
    expected = (0.3 + 0.2 * 0.5) * np.std(ADVANTAGES)
    most = 4.75  # from the mean, -0.25
    largest = expected / 0.5 - 4 * most * 0.5 / 0.5**2 * 0.05
    mean = (expected - 2 * 0.5 * most / 0.5 * np.sqrt(0.02 / 2)) / 0.5
    np.testing.assert_allclose(found, (largest, mean), rtol=1e-5)


@pytest.mark.parametrize("traced", [False, True])
def test_without_discount_there_is_no_bound(traced):
    def bounds(discount):
        return improvement_bounds(
            INFO, ADVANTAGES, discount=discount, entropy_coefficient=0.0
        )

    with jax.debug_nans(True):
        found = (jax.jit(bounds) if traced else bounds)(1.0)
    np.testing.assert_array_equal(found, -np.inf)


def test_a_rejected_update_improves_nothing():
    info = INFO._replace(surrogate_after=INFO.surrogate_before, entropy=jnp.float32(1))
    zero = jnp.float32(0)
    found = improvement_bounds(
        info._replace(kl=zero, kl_max=zero),
        ADVANTAGES,
        discount=0.9,
        entropy_coefficient=0.1,
    )
    np.testing.assert_array_equal(found, 0)


def test_metrics_have_the_bounds_of_their_update(monkeypatch):
    calls = {}

    def watch(module, name):
        part = getattr(module, name)

        def watched(*args, **options):
            calls[name] = args, options, part(*args, **options)
            return calls[name][-1]

        monkeypatch.setattr(module, name, watched)

    watch(iteration, "_scheduled")
    watch(iteration, "standardize")
    watch(metrics, "improvement_bounds")
    config, state = tiny.CONFIG, state_type(tiny.CONFIG)

    def trace(state):
        _, measured = iteration.step(config, state)
        _, _, scheduled = calls["_scheduled"]
        (advantages,), _, _ = calls["standardize"]
        arguments, options, bounds = calls["improvement_bounds"]
        assert arguments[0] is measured.update
        assert arguments[1] is advantages
        for name, value in options.items():
            assert value is getattr(scheduled, name)
        assert measured.improvement_bound is bounds[0]
        assert measured.mean_kl_improvement_bound is bounds[1]

    jax.eval_shape(trace, state)
