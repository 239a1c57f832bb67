import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit
from tiny import CONFIG

from trpo_jax import init
from trpo_jax.training.seeds import init_seeds, run_keys, state_type

SEEDS = dataclasses.replace(CONFIG, num_seeds=2)


def test_keys_are_those_of_train():
    key = jax.random.key(CONFIG.seed)
    assert jnp.array_equal(run_keys(CONFIG), key)
    assert jnp.array_equal(run_keys(SEEDS), jax.random.split(key))
    assert jnp.array_equal(run_keys(CONFIG, jax.random.PRNGKey(3)), jax.random.key(3))


def test_each_seed_starts_as_if_alone():
    keys = run_keys(SEEDS)
    states = fast_jit(init_seeds)(SEEDS, keys)
    start = fast_jit(init)
    for seed in range(2):
        alone = start(CONFIG, keys[seed])
        for one, other in zip(
            jax.tree.leaves(alone.params), jax.tree.leaves(states.params), strict=True
        ):
            np.testing.assert_allclose(one, other[seed], rtol=1e-6)


@pytest.mark.parametrize("config", [CONFIG, SEEDS])
def test_the_type_is_that_of_the_state(config):
    state = fast_jit(init_seeds)(config, run_keys(config))
    expected = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    found = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state_type(config))
    assert found == expected


def test_the_type_follows_the_settings_of_jax():
    """Computed before and after the change, for the same config."""
    before = state_type(CONFIG).key.dtype
    with jax.default_prng_impl("rbg"):
        assert state_type(CONFIG).key.dtype != before
    assert state_type(CONFIG).key.dtype == before
