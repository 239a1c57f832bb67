import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit

from trpo_jax.trust_region import flat


@pytest.fixture(params=["fenced", "plain"])
def flattened(request, monkeypatch):
    monkeypatch.setattr(flat, "_FENCED_FROM", 0 if request.param == "fenced" else 100)
    params = {"b": jnp.arange(3.0), "w": jnp.arange(6.0).reshape(3, 2) - 2}
    return params, *flat.flatten(params)


def rows_fn(unflatten, rows):
    def loss(theta):
        params = unflatten(theta)
        return jnp.mean(jnp.tanh(rows @ params["w"] + params["b"][:2]) ** 2)

    return loss


def test_there_and_back(flattened):
    params, theta, unflatten = flattened
    assert theta.shape == (9,)
    jax.tree.map(np.testing.assert_array_equal, unflatten(theta), params)
    jax.tree.map(np.testing.assert_array_equal, fast_jit(unflatten)(theta), params)


def test_derivatives_of_both_orders_are_those_of_the_tree(flattened):
    params, theta, unflatten = flattened
    rows = jax.random.normal(jax.random.key(0), (5, 3))
    gradient = fast_jit(jax.grad(rows_fn(unflatten, rows)))(theta)
    of_tree = jax.grad(rows_fn(lambda tree: tree, rows))(params)
    expected = np.concatenate([of_tree["b"], of_tree["w"].ravel()])
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)
    step = 1e-2 * jnp.ones(9)
    product = jax.jvp(jax.grad(rows_fn(unflatten, rows)), (theta,), (step,))[1]
    hessian = jax.hessian(rows_fn(unflatten, rows))(theta)
    np.testing.assert_allclose(product, hessian @ step, rtol=1e-4, atol=1e-7)


def test_nan_stays_nan(flattened):
    _, theta, unflatten = flattened
    leaves = jax.tree.leaves(unflatten(theta.at[0].set(jnp.nan)))
    assert np.isnan(leaves[0][0])


def test_many_side_by_side(flattened):
    _, theta, unflatten = flattened
    several = jnp.stack([theta, 2 * theta])
    trees = jax.vmap(unflatten)(several)
    np.testing.assert_array_equal(trees["w"][1], unflatten(2 * theta)["w"])


def test_an_accelerator_has_no_fence(monkeypatch):
    monkeypatch.setattr(flat, "_FENCED_FROM", 0)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    theta, unflatten = flat.flatten({"w": jnp.ones(3)})
    assert "cond" not in str(jax.make_jaxpr(unflatten)(theta))


def test_what_stands_behind_a_fence_is_not_fused(monkeypatch):
    """The end of a bias's sum over rows is not in the vector's concatenation."""
    rows = jnp.ones((1024, 4))

    def compiled(fenced_from):
        monkeypatch.setattr(flat, "_FENCED_FROM", fenced_from)
        theta, unflatten = flat.flatten({"b": jnp.ones(2), "w": jnp.ones((4, 2))})

        def loss(theta):
            params = unflatten(theta)
            return jnp.mean(jnp.tanh(rows @ params["w"] + params["b"]))

        return jax.jit(jax.grad(loss)).lower(theta).compile().as_text()

    def fused(text):
        bodies = text.split("\n\n")
        return any(" reduce(" in body and " concatenate(" in body for body in bodies)

    assert fused(compiled(100))
    assert not fused(compiled(0))
