"""Optimisers by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trpo_jax.training.optimizers import make_optimizer


@pytest.mark.parametrize("optimizer", ["sgd", optax.sgd])
def test_an_optimizer_by_its_name_or_itself(optimizer):
    made = make_optimizer(optimizer)(0.5)
    updates, _ = made.update(jnp.ones(2), made.init(jnp.zeros(2)))
    np.testing.assert_array_equal(updates, [-0.5, -0.5])


@pytest.mark.parametrize("name", ["adam", "rmsprop", "sgd"])
def test_a_named_optimizer_is_what_optax_has_by_that_name(name):
    params = {"w": jnp.array([[1.0, -2.0]]), "b": jnp.array([0.5])}
    gradient = {"w": jnp.array([[0.1, 0.3]]), "b": jnp.array([-2.0])}
    results = []
    named = make_optimizer(name)(0.1)
    for optimizer in (named, getattr(optax, name)(0.1)):
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(gradient, state, params)
        results.append(updates)
    for mine, theirs in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)


def test_an_optimizer_that_looks_at_layers_sees_them():
    state = make_optimizer("lamb")(0.1).init({"w": jnp.ones(2)})
    shapes = {jnp.shape(leaf) for leaf in jax.tree.leaves(state)}
    assert any(
        "w" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)
    )
    assert (2,) in shapes
