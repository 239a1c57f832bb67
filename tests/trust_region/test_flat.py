import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit

from trpo_jax.trust_region import flat


@pytest.fixture
def params():
    return {"b": jnp.arange(3.0), "w": jnp.arange(6.0).reshape(3, 2) - 2}


def test_few_parameters_are_one_vector(params):
    theta, unravel = flat.flatten(params)
    np.testing.assert_array_equal(theta, [0, 1, 2, -2, -1, 0, 1, 2, 3])
    jax.tree.map(np.testing.assert_array_equal, unravel(theta), params)
    jax.tree.map(np.testing.assert_array_equal, fast_jit(unravel)(theta), params)


def test_many_parameters_are_left_as_they_are(params, monkeypatch):
    monkeypatch.setattr(flat, "_LARGE", 9)
    theta, unravel = flat.flatten(params)
    jax.tree.map(np.testing.assert_array_equal, theta, params)
    assert unravel(theta) is theta


@pytest.mark.parametrize("large", [1, 100])
def test_numbers_of_python_are_parameters(large, monkeypatch):
    monkeypatch.setattr(flat, "_LARGE", large)
    theta, unravel = flat.flatten({"a": 0.5, "b": [1.0, 2.0]})
    doubled = unravel(jax.tree.map(lambda leaf: 2 * leaf, theta))
    assert doubled["a"] == 1
    assert doubled["b"] == [2, 4]


def test_many_parameters_of_several_dtypes_are_one_vector_of_the_widest(
    params, monkeypatch
):
    monkeypatch.setattr(flat, "_LARGE", 9)
    params["b"] = params["b"].astype(jnp.bfloat16)
    theta, unravel = flat.flatten(params)
    assert theta.shape == (9,)
    assert theta.dtype == jnp.float32
    assert unravel(theta)["b"].dtype == jnp.bfloat16
