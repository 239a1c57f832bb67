import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax import (
    MLP,
    Categorical,
    CategoricalPolicy,
    DiagonalGaussian,
    GaussianPolicy,
    MultiCategorical,
    MultiCategoricalPolicy,
    Value,
)
from trpo_jax.networks import ACTIVATIONS

OBSERVATIONS = 3 * jax.random.normal(jax.random.key(9), (5, 4))


def make(network, observations=OBSERVATIONS):
    params = network.init(jax.random.key(0), observations)
    return params, network.apply(params, observations)


def in_numpy(params, x, activation):
    layers = [params[name] for name in sorted(params)]
    for layer in layers[:-1]:
        x = activation(x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]))
    return x @ np.asarray(layers[-1]["kernel"]) + np.asarray(layers[-1]["bias"])


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("tanh", np.tanh),
        ("relu", lambda x: np.maximum(x, 0)),
        ("elu", lambda x: np.where(x > 0, x, np.expm1(x))),
        ("silu", lambda x: x / (1 + np.exp(-x))),
    ],
)
def test_mlp_is_layers_with_activations_between(name, activation):
    params, outputs = make(MLP((6, 3), 2, ACTIVATIONS[name]))
    expected = in_numpy(params["params"], np.asarray(OBSERVATIONS), activation)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_named_activation_is_nonlinear(name):
    function = ACTIVATIONS[name]
    two, minus_one, one = function(jnp.array([2.0, -1.0, 1.0]))
    assert abs(two + minus_one - one) > 0.1


def test_mlp_without_hidden_layers_is_linear():
    params, outputs = make(MLP((), 2))
    kernel = np.asarray(params["params"]["Dense_0"]["kernel"])
    np.testing.assert_allclose(outputs, OBSERVATIONS @ kernel, rtol=1e-5, atol=1e-6)


def test_images_are_flattened():
    image = OBSERVATIONS.reshape(5, 2, 2, 1)
    params, flat = make(MLP((6,), 2))
    np.testing.assert_allclose(MLP((6,), 2).apply(params, image), flat, rtol=1e-6)


def test_categorical_policy():
    _, policy = make(CategoricalPolicy(3, (8,)))
    assert isinstance(policy, Categorical)
    assert policy.logits.shape == (5, 3)
    np.testing.assert_allclose(jnp.exp(policy.log_probs()), 1 / 3, atol=0.02)


def test_multi_categorical_policy():
    _, policy = make(MultiCategoricalPolicy((2, 3, 4), (8,)))
    assert isinstance(policy, MultiCategorical)
    assert [factor.logits.shape for factor in policy.factors] == [
        (5, 2),
        (5, 3),
        (5, 4),
    ]
    for factor, num_actions in zip(policy.factors, (2, 3, 4), strict=True):
        np.testing.assert_allclose(
            jnp.exp(factor.log_probs()), 1 / num_actions, atol=0.02
        )
    # No logit serves two dimensions.
    logits = [factor.logits for factor in policy.factors]
    for one, other in itertools.combinations(jnp.concatenate(logits, axis=-1).T, 2):
        assert not np.allclose(one, other)


def test_gaussian_policy():
    params, policy = make(GaussianPolicy(2, (8,), initial_log_std=-0.5))
    assert isinstance(policy, DiagonalGaussian)
    assert policy.mean.shape == (5, 2)
    np.testing.assert_allclose(policy.mean, 0, atol=0.05)
    np.testing.assert_array_equal(policy.log_std, [-0.5, -0.5])
    assert params["params"]["log_std"].shape == (2,)


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (CategoricalPolicy(3, (8,)), (5,)),
        (MultiCategoricalPolicy((2, 3), (8,)), (5, 2)),
        (GaussianPolicy(2, (8,)), (5, 2)),
    ],
)
def test_policies_sample_one_action_for_each_observation(network, shape):
    _, policy = make(network)
    actions = policy.sample(jax.random.key(1))
    assert actions.shape == policy.mode().shape == shape
    assert policy.log_prob(actions).shape == policy.entropy().shape == (5,)


def test_value_is_one_number_for_each_observation():
    _, values = make(Value((8,)))
    assert values.shape == (5,)
    assert np.std(values) > 0.01
