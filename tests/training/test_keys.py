import jax
import numpy as np
import pytest

from trpo_jax.training.keys import as_key


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_a_key_and_its_data_are_the_same_key(implementation):
    with jax.default_prng_impl(implementation):
        typed, older = jax.random.key(7), jax.random.PRNGKey(7)
        for key in (typed, older, np.asarray(older)):
            assert as_key(key) == typed
            assert jax.jit(as_key)(key) == typed


def test_under_vmap_each_is_a_key():
    older = jax.vmap(jax.random.PRNGKey)(np.arange(3))
    assert (jax.vmap(as_key)(older) == jax.vmap(jax.random.key)(np.arange(3))).all()
