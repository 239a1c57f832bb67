import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax.training import (
    RunningStatistics,
    denormalize,
    init_statistics,
    normalize,
    update_statistics,
)


def absorb_all(batches, shape=(3,)):
    statistics = init_statistics(shape)
    for batch in batches:
        statistics = update_statistics(statistics, jnp.asarray(batch, jnp.float32))
    return statistics


@pytest.fixture
def samples():
    rng = np.random.default_rng(0)
    values = rng.normal([5, -1, 300], [2, 0.1, 40], size=(60, 3))
    return jnp.asarray(values, jnp.float32)


@pytest.mark.parametrize("sizes", [[60], [1, 59], [20, 30, 10]])
def test_batches_merge_into_the_moments_of_all(samples, sizes):
    statistics = absorb_all(np.split(np.asarray(samples), np.cumsum(sizes)[:-1]))
    assert statistics.num_samples == 60
    np.testing.assert_allclose(statistics.mean, samples.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics.std, samples.std(0), rtol=1e-4)


def test_scalars_have_moments_too(samples):
    statistics = absorb_all([samples[:25, 0], samples[25:, 0]], shape=())
    np.testing.assert_allclose(statistics.mean, samples[:, 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(statistics.std, samples[:, 0].std(), rtol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_batch_that_is_not_finite_is_left_out_whole(samples, bad):
    spoilt = samples[:20].at[7, 1].set(bad)
    without = absorb_all([samples[20:40], samples[40:]])
    around = absorb_all([samples[20:40], spoilt, samples[40:]])
    jax.tree.map(np.testing.assert_array_equal, around, without)


def test_no_samples_normalize_nothing(samples):
    np.testing.assert_array_equal(normalize(init_statistics((3,)), samples), samples)


def test_normalized_samples_are_standard(samples):
    scaled = np.asarray(normalize(absorb_all([samples]), samples))
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(scaled.std(0), 1, atol=1e-4)


def test_denormalize_undoes_normalize(samples):
    statistics = absorb_all([samples[:30]])
    there_and_back = denormalize(statistics, normalize(statistics, samples))
    np.testing.assert_allclose(there_and_back, samples, rtol=1e-5, atol=1e-4)


def test_normalize_clips_on_both_sides(samples):
    far = jnp.array([[1e6, -1e6, 300.0]])
    clipped = normalize(absorb_all([samples]), far, clip=10.0)
    np.testing.assert_array_equal(clipped[0, :2], [10, -10])
    assert abs(clipped[0, 2]) < 1


@pytest.mark.parametrize("constant", [0.0, 7.0, -1e6])
def test_a_constant_dimension_is_centred_and_not_blown_up(constant):
    batch = np.full((10, 1), constant)
    statistics = absorb_all([batch, batch, batch], shape=(1,))
    scaled = normalize(statistics, jnp.full((1, 1), constant))
    np.testing.assert_allclose(scaled, 0, atol=1e-3)
    nearby = normalize(statistics, jnp.full((1, 1), constant + 1e-6))
    assert np.abs(nearby).max() < 1


def test_the_count_stops_where_float32_does_and_the_moments_stay():
    """Far beyond 2²⁴, where single samples no longer change a float32."""
    many, std = jnp.float32(2**40), 3.0
    statistics = RunningStatistics(many, jnp.float32(1.0), jnp.float32(std**2))
    samples = 1.0 + std * jnp.array([-1.0, 1.0])
    for _ in range(8):
        statistics = update_statistics(statistics, samples)
    assert statistics.num_samples == many
    np.testing.assert_allclose((statistics.mean, statistics.std), (1, std), rtol=1e-6)


@pytest.mark.parametrize("num_samples", [1e10, 2.0**34])
def test_small_batches_beyond_a_large_count_are_absorbed_as_in_float64(num_samples):
    """Every hundredth batch varies ten times as much as the others."""

    def absorb(dtype):
        base = jnp.linspace(-1, 1, 1024, dtype=dtype)

        def body(i, statistics):
            scale = jnp.where(i % 100 == 0, 10, 1).astype(dtype)
            return update_statistics(statistics, 2 + scale * (base + 0.1))

        start = RunningStatistics(*(jnp.asarray(m, dtype) for m in (num_samples, 2, 9)))
        absorbed = jax.jit(lambda start: jax.lax.fori_loop(0, 2**16, body, start))
        return jax.device_get(absorbed(start))

    single = absorb(jnp.float32)
    with jax.enable_x64(True):
        double = absorb(jnp.float64)
    assert double.num_samples == num_samples + 2**26
    np.testing.assert_allclose(single.mean, double.mean, atol=0.01)
    np.testing.assert_allclose(single.std, double.std, rtol=0.01)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_batch_moves_the_moments_whatever_the_count(factor):
    """If float32 lost small moves and kept large ones, moments would drift."""
    statistics = RunningStatistics(*map(jnp.float32, (2**40, 1.0, 9.0)))
    samples = 1 + np.sqrt(9 * factor) * jnp.array([-1.0, 1.0])
    moved = update_statistics(statistics, samples)
    change = moved.variance - statistics.variance
    np.testing.assert_allclose(change, 9 * (factor - 1) * 2.0**-18, rtol=0.2)
