import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import fast_jit

from trpo_jax.training import explained_variance, fit_critic


def linear(params, observations):
    return observations @ params["w"] + params["b"]


def table(params, observations):
    """One parameter for each one-hot observation."""
    return observations @ params


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    observations = jnp.asarray(rng.normal(size=(24, 3)), jnp.float32)
    targets = observations @ jnp.array([1.0, -2.0, 0.5]) + 3
    params = {"w": jnp.zeros(3), "b": jnp.zeros(())}
    return params, observations, targets


def fit(problem, optimizer, value_fn=linear, seed=0, **counts):
    params, observations, targets = problem

    @fast_jit
    def run(key):
        state = optimizer.init(params)
        arguments = (params, optimizer, state, observations, targets, key)
        return fit_critic(value_fn, *arguments, **counts)

    return run(jax.random.key(seed))


def test_loss_falls(problem):
    _, observations, targets = problem
    params, _, loss = fit(problem, optax.adam(0.1), epochs=60, num_minibatches=4)
    assert loss < 0.01 * np.mean(np.square(targets))
    np.testing.assert_allclose(linear(params, observations), targets, atol=0.3)


def test_one_minibatch_is_a_plain_optax_loop(problem):
    optimizer = optax.adam(0.05)
    params, observations, targets = problem
    state = optimizer.init(params)
    for _ in range(5):
        loss, gradient = jax.value_and_grad(
            lambda p: jnp.mean((linear(p, observations) - targets) ** 2)
        )(params)
        updates, state = optimizer.update(gradient, state)
        params = optax.apply_updates(params, updates)
    fitted = fit(problem, optimizer, epochs=5, num_minibatches=1)
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(compare, fitted, (params, state, loss))


def test_every_epoch_sees_every_sample_once():
    # Each visit of a sample, alone in its minibatch, halves its parameter's error.
    targets = jnp.arange(1.0, 7.0)
    problem = (jnp.zeros(6), jnp.eye(6), targets)
    params, _, loss = fit(problem, optax.sgd(0.25), table, epochs=3, num_minibatches=6)
    np.testing.assert_allclose(targets - params, targets / 2**3, rtol=1e-6)
    # The loss is that of the last epoch, each sample's before its visit.
    np.testing.assert_allclose(loss, np.mean((targets / 2**2) ** 2), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_fit_that_overflows_is_given_up_whole(problem, bad):
    params, observations, targets = problem
    optimizer = optax.adam(0.1)
    spoilt = (params, observations, targets.at[3].set(bad))
    fitted, state, loss = fit(spoilt, optimizer, epochs=2, num_minibatches=4)
    before = (params, optimizer.init(params))
    jax.tree.map(np.testing.assert_array_equal, (fitted, state), before)
    assert not np.isfinite(loss)


def test_order_is_the_keys(problem):
    counts = {"epochs": 1, "num_minibatches": 12}
    fits = [fit(problem, optax.adam(0.1), seed=seed, **counts) for seed in (0, 0, 1)]
    weights = [params["w"] for params, _, _ in fits]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


def test_minibatches_must_divide_the_samples(problem):
    with pytest.raises(ValueError, match="num_minibatches=5 does not divide the 24"):
        fit(problem, optax.adam(0.1), epochs=1, num_minibatches=5)


@pytest.mark.usefixtures("no_shape_checks")
def test_values_must_have_one_axis(problem):
    def column(params, observations):
        return linear(params, observations)[:, None]

    with pytest.raises(ValueError, match=r"Write value\[..., 0\]"):
        fit(problem, optax.adam(0.1), column, epochs=1, num_minibatches=1)


def test_explained_variance_against_numpy():
    rng = np.random.default_rng(0)
    values, returns = jnp.asarray(rng.normal(size=(2, 4, 5)), jnp.float32)
    expected = 1 - np.var(returns - values) / np.var(returns)
    np.testing.assert_allclose(explained_variance(values, returns), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("scale", "shift", "expected"), [(1, 0, 1), (0, 9, 0), (1, 5, 1)]
)
def test_explained_variance_of_special_critics(scale, shift, expected):
    """Perfect, constant, and perfect but for a constant."""
    returns = jnp.arange(5.0)
    value = explained_variance(scale * returns + shift, returns)
    np.testing.assert_allclose(value, expected, atol=1e-6)
