from typing import get_args, get_type_hints

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax import TRPOConfig
from trpo_jax.networks import CNN, MLP

OBSERVATIONS = 3 * jax.random.normal(jax.random.key(9), (5, 4))
IMAGES = jax.random.normal(jax.random.key(8), (2, 7, 6, 3))


def make(network, observations=OBSERVATIONS):
    params = network.init(jax.random.key(0), observations)
    return params, network.apply(params, observations)


def in_numpy(params, x, activation):
    for layer in (params[name] for name in sorted(params)):
        x = activation(x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]))
    return x


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("tanh", np.tanh),
        ("relu", lambda x: np.maximum(x, 0)),
        ("elu", lambda x: np.where(x > 0, x, np.expm1(x))),
        ("silu", lambda x: x / (1 + np.exp(-x))),
    ],
)
def test_mlp_is_layers_with_activations(name, activation):
    params, features = make(MLP((6, 3), getattr(jax.nn, name)))
    expected = in_numpy(params["params"], np.asarray(OBSERVATIONS), activation)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", get_args(get_type_hints(TRPOConfig)["activation"]))
def test_every_named_activation_is_nonlinear(name):
    function = getattr(jax.nn, name)
    two, minus_one, one = function(jnp.array([2.0, -1.0, 1.0]))
    assert abs(two + minus_one - one) > 0.1


def test_mlp_without_layers_is_the_flat_observation():
    image = OBSERVATIONS.reshape(5, 2, 2, 1)
    np.testing.assert_array_equal(MLP(()).apply({}, image), OBSERVATIONS)


def test_images_are_flattened():
    image = OBSERVATIONS.reshape(5, 2, 2, 1)
    params, flat = make(MLP((6,)))
    np.testing.assert_allclose(MLP((6,)).apply(params, image), flat, rtol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_cnn_is_flax_convolutions(stride):
    network = CNN((4, 5), stride=stride, hidden_sizes=(8,), kernel_size=2)
    params, features = make(network, IMAGES)
    x = IMAGES
    for index, filters in enumerate((4, 5)):
        layer = params["params"][f"Dense_{index}"]
        kernel = layer["kernel"].reshape(2, 2, x.shape[-1], filters)
        convolution = nn.Conv(filters, (2, 2), strides=stride, padding="VALID")
        weights = {"params": {"kernel": kernel, "bias": layer["bias"]}}
        x = jax.nn.relu(convolution.apply(weights, x))
    dense = params["params"]["MLP_0"]
    expected = MLP((8,), nn.relu).apply({"params": dense}, x)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_an_image_without_channels_has_one():
    network = CNN((4,), hidden_sizes=(8,))
    params, features = make(network, IMAGES[..., 0])
    np.testing.assert_allclose(
        network.apply(params, IMAGES[..., :1]), features, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("observations", "message"),
    [
        (OBSERVATIONS, "are not images"),
        (IMAGES[:, :4, :2], "smaller than filters of 3 × 3"),
    ],
)
def test_cnn_refuses_what_it_cannot_convolve(observations, message):
    with pytest.raises(ValueError, match=message):
        make(CNN((4,)), observations)
