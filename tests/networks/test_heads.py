import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax.environments import MaskedObservation
from trpo_jax.networks import (
    MLP,
    CategoricalHead,
    GaussianHead,
    GSDEHead,
    MultiCategoricalHead,
    Policy,
    StateDependentGaussianHead,
    TanhGaussianHead,
    Value,
)
from trpo_jax.trust_region import (
    Categorical,
    DiagonalGaussian,
    GSDEGaussian,
    MultiCategorical,
    TanhGaussian,
)

OBSERVATIONS = 3 * jax.random.normal(jax.random.key(9), (5, 4))


def make(head, observations=OBSERVATIONS):
    network = Policy(MLP((8,)), head)
    params = network.init(jax.random.key(0), observations)
    return params["params"], network.apply(params, observations)


def test_categorical():
    _, policy = make(CategoricalHead(3))
    assert isinstance(policy, Categorical)
    assert policy.logits.shape == (5, 3)
    np.testing.assert_allclose(jnp.exp(policy.log_probs()), 1 / 3, atol=0.02)


def test_multi_categorical():
    _, policy = make(MultiCategoricalHead((2, 3, 4)))
    assert isinstance(policy, MultiCategorical)
    shapes = [factor.logits.shape for factor in policy.factors]
    assert shapes == [(5, 2), (5, 3), (5, 4)]
    for factor, num_actions in zip(policy.factors, (2, 3, 4), strict=True):
        np.testing.assert_allclose(
            jnp.exp(factor.log_probs()), 1 / num_actions, atol=0.02
        )
    # No logit serves two dimensions.
    logits = [factor.logits for factor in policy.factors]
    for one, other in itertools.combinations(jnp.concatenate(logits, axis=-1).T, 2):
        assert not np.allclose(one, other)


def test_gaussian():
    params, policy = make(GaussianHead(2, initial_log_std=-0.5))
    assert isinstance(policy, DiagonalGaussian)
    assert policy.mean.shape == (5, 2)
    np.testing.assert_allclose(policy.mean, 0, atol=0.05)
    np.testing.assert_array_equal(policy.log_std, [-0.5, -0.5])
    assert params["head"]["log_std"].shape == (2,)


def test_tanh_gaussian_is_one_of_the_gaussian_underneath():
    _, policy = make(TanhGaussianHead(2, initial_log_std=-0.5))
    _, base = make(GaussianHead(2, initial_log_std=-0.5))
    assert isinstance(policy, TanhGaussian)
    np.testing.assert_array_equal(policy.log_std, base.log_std)
    np.testing.assert_allclose(policy.mean, 0, atol=0.05)


def test_state_dependent_log_std_begins_where_asked_and_stays_within_bounds():
    head = StateDependentGaussianHead(2, 0.5, (-1.0, 0.8))
    params, policy = make(head)
    assert policy.log_std.shape == (5, 2)
    np.testing.assert_allclose(policy.log_std, 0.5, atol=0.02)
    assert np.std(policy.log_std, axis=0).min() > 0
    far = jax.tree.map(lambda leaf: 1e4 * leaf, params)
    extreme = Policy(MLP((8,)), head).apply({"params": far}, OBSERVATIONS).log_std
    assert extreme.min() == pytest.approx(-1.0)
    assert extreme.max() == pytest.approx(0.8)


def test_state_dependent_log_std_refuses_to_begin_outside_its_bounds():
    with pytest.raises(ValueError, match="not between the bounds"):
        make(StateDependentGaussianHead(2, 3.0))


def test_gsde_begins_with_the_log_std_asked_for_half_of_its_variance_everywhere():
    params, policy = make(GSDEHead(2, initial_log_std=-0.5))
    assert isinstance(policy, GSDEGaussian)
    assert policy.features.shape == (5, 8 + 1)
    assert params["head"]["log_std"].shape == (8 + 1, 2)
    half = -0.5 - 0.5 * math.log(2)
    assert np.all((half < policy.marginal.log_std) & (policy.marginal.log_std < -0.5))

    def log_std_at(features):
        params = GSDEHead(2, -0.5).init(jax.random.key(0), features)
        return GSDEHead(2, -0.5).apply(params, features).marginal.log_std

    np.testing.assert_allclose(log_std_at(jnp.array([[1.0, -1.0, 1.0]])), -0.5, 1e-5)
    np.testing.assert_allclose(log_std_at(jnp.zeros((1, 3))), half, 1e-5)
    gradient = jax.grad(lambda features: log_std_at(features).sum())(jnp.ones((1, 3)))
    np.testing.assert_array_equal(gradient, 0)  # exploration shapes no features


@pytest.mark.parametrize(
    ("head", "shape"),
    [
        (CategoricalHead(3), (5,)),
        (MultiCategoricalHead((2, 3)), (5, 2)),
        (GaussianHead(2), (5, 2)),
        (StateDependentGaussianHead(2), (5, 2)),
        (TanhGaussianHead(2), (5, 2)),
        (GSDEHead(2), (5, 2)),
    ],
)
def test_one_action_for_each_observation(head, shape):
    _, policy = make(head)
    actions = policy.sample(jax.random.key(1))
    assert actions.shape == policy.mode().shape == shape
    assert policy.log_prob(actions).shape == policy.entropy().shape == (5,)


def test_masks_forbid_actions():
    mask = jnp.array(
        [[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 1], [1, 1, 1]], dtype=bool
    )
    _, policy = make(CategoricalHead(3), MaskedObservation(OBSERVATIONS, mask))
    assert np.all((jnp.exp(policy.log_probs()) > 0) == mask)

    mask = jnp.tile(jnp.array([1, 0, 0, 1, 0], bool), (5, 1))
    _, policy = make(
        MultiCategoricalHead((2, 3)), MaskedObservation(OBSERVATIONS, mask)
    )
    np.testing.assert_array_equal(policy.sample(jax.random.key(0)), [[0, 1]] * 5)


def test_value_is_one_number_for_each_observation():
    network = Value(MLP((8,)))
    params = network.init(jax.random.key(0), OBSERVATIONS)
    values = network.apply(params, OBSERVATIONS)
    assert values.shape == (5,)
    assert np.std(values) > 0.01
    masked = MaskedObservation(OBSERVATIONS, jnp.ones((5, 2), bool))
    np.testing.assert_array_equal(network.apply(params, masked), values)
