"""The linear recurrent unit: its scan, its resets and its range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit

from trpo_jax.networks import LRU
from trpo_jax.networks.lru import linear_recurrence

B, T, FEATURES, UNITS = 2, 7, 3, 4
STARTS = jnp.array([[1, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1]], bool)
NETWORK = LRU(UNITS)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    memory, features = (
        rng.normal(size=(B, 2 * UNITS)),
        rng.normal(size=(B, T, FEATURES)),
    )
    return jnp.float32(memory), jnp.float32(features), STARTS


@pytest.fixture(scope="module")
def params(inputs):
    return NETWORK.init(jax.random.key(0), *inputs)


def loop(decay, memory, inputs, starts):
    """Return the states, one step after the other, in complex128."""
    states, state = [], memory
    for t in range(inputs.shape[1]):
        state = np.where(starts[:, t, None], 0, state)
        state = decay * state + inputs[:, t]
        states.append(state)
    return np.stack(states, axis=1)


def complex_normal(rng, *shape):
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


@pytest.mark.parametrize("num_steps", [1, 2, 7, 64])
def test_the_scan_is_a_loop(num_steps, float64):
    rng = np.random.default_rng(num_steps)
    arrays = (
        0.9 * np.exp(1j * rng.normal(size=UNITS)),
        complex_normal(rng, B, UNITS),
        complex_normal(rng, B, num_steps, UNITS),
        rng.random((B, num_steps)) < 0.2,
    )
    states = linear_recurrence(*map(jnp.asarray, arrays))
    np.testing.assert_allclose(states, loop(*arrays), rtol=1e-12, atol=1e-13)


def test_it_is_the_layer_written_out(inputs, params):
    memories, outputs = NETWORK.apply(params, *inputs)
    memory, features, starts = map(np.asarray, inputs)
    weights = jax.tree.map(np.asarray, params["params"])
    decay = np.exp(-np.exp(weights["nu"]) + 1j * np.exp(weights["theta"]))
    real, imaginary = np.split(weights["Dense_0"]["kernel"], 2, axis=1)
    scaled = np.exp(weights["log_gamma"]) * (features @ (real + 1j * imaginary))
    states = loop(decay, memory[:, :UNITS] + 1j * memory[:, UNITS:], scaled, starts)
    c_real, c_imaginary, d = np.split(weights["Dense_1"]["kernel"], (UNITS, 2 * UNITS))
    read = (states @ (c_real - 1j * c_imaginary)).real + features @ d
    assert memories.dtype == jnp.float32
    np.testing.assert_allclose(memories[..., :UNITS], states.real, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(memories[..., UNITS:], states.imag, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs, np.tanh(read), rtol=1e-4, atol=1e-5)


def test_jitted_it_is_the_same(inputs, params):
    eager = NETWORK.apply(params, *inputs)
    jitted = fast_jit(NETWORK.apply)(params, *inputs)
    for one, other in zip(eager, jitted, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


def test_an_episode_forgets_a_nan_of_the_one_before(inputs, params):
    memory, features, starts = inputs
    expected = NETWORK.apply(params, *inputs)
    memory = memory.at[0].set(jnp.nan)
    features = features.at[0, 2].set(jnp.nan).at[1, 4].set(jnp.inf)
    for one, other in zip(
        expected, NETWORK.apply(params, memory, features, starts), strict=True
    ):
        np.testing.assert_allclose(other[0, 3:], one[0, 3:], rtol=1e-5)
        np.testing.assert_allclose(other[1, 5:], one[1, 5:], rtol=1e-5)
        assert np.all(np.isnan(other[0, 2]))


@pytest.mark.parametrize("num_units", [1, 1000])
def test_decay_and_scale_at_first(num_units):
    """γ gives a state that is driven by white noise the scale of the noise."""
    inputs = jnp.zeros((1, 2 * num_units)), jnp.zeros((1, 1, 3)), jnp.ones((1, 1), bool)
    params = LRU(num_units).init(jax.random.key(0), *inputs)["params"]
    radius = np.exp(-np.exp(np.float64(params["nu"])))
    assert np.all((radius >= 0.9) & (radius < 0.9991))
    assert np.all(np.isfinite(params["theta"]))
    gains = np.exp(np.float64(params["log_gamma"])) ** 2 / (1 - radius**2)
    np.testing.assert_allclose(gains, 1, rtol=1e-3)


@pytest.mark.parametrize("nu", [-4.0, -12.0, -30.0, 5.0])
def test_it_is_stable_over_many_steps(nu):
    """|λ| from 0, which is what rounding makes of exp(−exp 5), to 1."""
    num_steps = 10_000
    rng = np.random.default_rng(0)
    decay = np.exp(-np.exp(np.float32(nu)) + 1j * np.float32([0.0, 0.3, 3.1]))
    arrays = (
        np.complex64(decay),
        np.complex64(complex_normal(rng, 1, 3)),
        np.complex64(complex_normal(rng, 1, num_steps, 3)),
        np.zeros((1, num_steps), bool),
    )

    def last(log_decay):
        factor = jnp.exp(-jnp.exp(log_decay) + 1j * jnp.angle(arrays[0]))
        states = linear_recurrence(factor, *map(jnp.asarray, arrays[1:]))
        return jnp.abs(states[0, -1]).sum(), states

    gradient, states = fast_jit(jax.grad(last, has_aux=True))(jnp.float32(nu))
    expected = loop(*(np.complex128(one) for one in arrays[:3]), arrays[3])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(states, expected, rtol=0, atol=1e-3 * scale)
    assert np.isfinite(gradient)


def test_seeds_side_by_side_are_each_alone(inputs):
    keys = jax.random.split(jax.random.key(0), 3)

    def outputs(key):
        return NETWORK.apply(NETWORK.init(key, *inputs), *inputs)

    together = fast_jit(jax.vmap(outputs))(keys)
    for i, key in enumerate(keys):
        alone = fast_jit(outputs)(key)
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(other[i], one, rtol=1e-4, atol=1e-5)
