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
        (OBSERVATIONS, r"observation, float32\[4\], is not an image.*channels=\(\)"),
        (
            jnp.zeros((2, 4, 84, 84), jnp.uint8),
            r"uint8\[4, 84, 84\], has its channels f",
        ),
        (IMAGES[:, :4, :2], "images of 4 × 2 are smaller than filters of 3 × 3"),
        ({"place": OBSERVATIONS}, r"\{'place': .*have no image.*channels=\(\)"),
        (
            {"camera": IMAGES, "clip": IMAGES[:, None]},
            r"'clip', float32\[1, 7, 6, 3\], is not an image .*, nor flat; reshape it",
        ),
        ({"a": {"b": IMAGES[:, :2]}}, r"images 'a\.b' of 2 × 6 are smaller"),
        (
            {"camera": IMAGES, "key": jax.random.split(jax.random.key(0), 2)},
            "'key', .*does not hold numbers",
        ),
    ],
)
def test_cnn_refuses_what_it_cannot_convolve(observations, message):
    with pytest.raises(ValueError, match=message):
        make(CNN((4,)), observations)
    # What is advised for all but keys, which no default network takes.
    if "numbers" not in message:
        make(MLP((4,)), observations)


def test_mlp_refuses_what_is_no_number():
    observations = {"seen": OBSERVATIONS, "z": OBSERVATIONS.astype(complex)}
    with pytest.raises(ValueError, match=r"entry 'z', complex64\[4\], does not hold"):
        make(MLP((4,)), observations)


def test_mlp_takes_all_leaves_side_by_side():
    observations = {
        "b": (IMAGES, jnp.array([True, False])),
        "a": jnp.arange(4, dtype=jnp.int32).reshape(2, 2),
        "c": jnp.array([250, 3], jnp.uint8),
    }
    flat = jnp.concatenate(
        [
            jnp.array([[0.0, 1.0], [2.0, 3.0]]),
            IMAGES.reshape(2, -1),
            jnp.array([[1.0], [0.0]]),
            jnp.array([[250.0], [3.0]]) / 255,
        ],
        axis=1,
    )
    params, features = make(MLP((3,)), observations)
    np.testing.assert_allclose(MLP((3,)).apply(params, flat), features, rtol=1e-6)


def test_cnn_convolves_each_image_and_appends_what_is_flat():
    observations = {"far": IMAGES, "near": IMAGES[..., 0], "speed": jnp.ones((2, 5))}
    network = CNN((4,), hidden_sizes=())
    params, features = make(network, observations)
    layers = params["params"]
    assert layers["Dense_0"]["kernel"].shape == (27, 4)
    assert layers["Dense_1"]["kernel"].shape == (9, 4)
    alone = [
        network.apply({"params": {"Dense_0": layers[name]}}, image)
        for name, image in (("Dense_0", IMAGES), ("Dense_1", IMAGES[..., 0]))
    ]
    expected = np.concatenate([*alone, np.ones((2, 5))], axis=1)
    np.testing.assert_allclose(features, expected, rtol=1e-6)


@pytest.mark.parametrize("network", [CNN((4,)), MLP((4,))])
def test_bytes_are_pixels_between_0_and_1(network):
    pixels = jax.random.bits(jax.random.key(1), (2, 5, 5, 3), jnp.uint8)
    params, features = make(network, pixels)
    scaled = network.apply(params, pixels / jnp.float32(255))
    np.testing.assert_allclose(features, scaled, rtol=1e-6)


def test_a_leaf_may_be_empty():
    observations = {"seen": OBSERVATIONS, "nothing": jnp.ones((len(OBSERVATIONS), 0))}
    params, features = make(MLP((4,)), observations)
    alone = MLP((4,)).apply(params, OBSERVATIONS)
    np.testing.assert_array_equal(features, alone)
