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


@pytest.mark.parametrize("name", ["sgd", "adam", "lamb"])
def test_gradients_are_scaled_down_to_the_largest_norm(name):
    """The global norm of all leaves together, as by hand; shorter ones are left."""
    params = {"w": jnp.ones((1, 2)), "b": jnp.zeros(1)}
    gradient = {"w": jnp.array([[3.0, 0.0]]), "b": jnp.array([-4.0])}
    optimizer = make_optimizer(name)(0.1)
    clipping = make_optimizer(name, max_gradient_norm=0.5)(0.1)
    for given, expected in (
        (gradient, jax.tree.map(lambda leaf: 0.1 * leaf, gradient)),
        (jax.tree.map(lambda leaf: 0.05 * leaf, gradient),) * 2,
    ):
        updates, _ = clipping.update(given, clipping.init(params), params)
        wanted, _ = optimizer.update(expected, optimizer.init(params), params)
        for one, other in zip(*map(jax.tree.leaves, (updates, wanted)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5)


def test_without_a_norm_the_optimiser_is_as_it_is():
    assert make_optimizer(optax.sgd, max_gradient_norm=0.0) is optax.sgd


def test_a_name_that_optax_has_not_is_an_error():
    with pytest.raises(AttributeError, match="adamm"):
        make_optimizer("adamm")
