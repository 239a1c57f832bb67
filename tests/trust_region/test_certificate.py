"""Statistics of the evidence against NumPy, and the evidence of every update."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import policies
import pytest
from compiling import fast_jit

from trpo_jax import UpdateStatus
from trpo_jax.trust_region import (
    UpdateInfo,
    certify,
    clipped_update,
    natural_gradient_update,
    ratio_or_nan,
    standard_error,
    trust_region_update,
    upper_quantile,
)

RNG = np.random.default_rng(0)
SAMPLES = {
    "lognormal": RNG.lognormal(sigma=3, size=1000),
    "uniform": RNG.uniform(size=(20, 50)),
    "constant": np.full(100, 0.3),
    "mostly_zero": np.where(np.arange(1000) < 930, 0, RNG.uniform(size=1000)),
    "zeros": np.zeros(10),
    "one": np.array([7.0]),
    "tiny": RNG.uniform(size=60) * 1e-20,
    "below_0_by_rounding": np.append(RNG.uniform(size=99), -1e-9),
}
quantile = fast_jit(upper_quantile, static_argnames="level")


@pytest.mark.parametrize("level", [0.5, 0.95, 1.0])
@pytest.mark.parametrize("name", SAMPLES)
def test_a_quantile_is_numpys_within_its_stated_error(name, level):
    values = np.float32(SAMPLES[name])
    expected = np.quantile(values, level, method="inverted_cdf")
    found = quantile(values, level)
    np.testing.assert_allclose(found, max(expected, 0), rtol=0.009)


@pytest.mark.parametrize("size", [19, 20, 100, 140])
def test_the_share_of_a_quantile_is_counted_exactly(size):
    """0.95 of 20 values are 19 of them, and not 20 by rounding."""
    values = np.float32(1.5 ** np.arange(size) / 1.5**size)
    expected = np.quantile(values, 0.95, method="inverted_cdf")
    np.testing.assert_allclose(quantile(values, 0.95), expected, rtol=0.009)


def test_a_quantile_far_below_the_largest_value_is_zero():
    values = np.float32([1e-12] * 99 + [1.0])
    assert quantile(values, 0.95) == 0
    assert quantile(values, 1.0) > 0.98


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_shows_in_the_quantile(bad):
    for values in ([bad], [0.0, bad], [0.1] * 99 + [bad]):
        np.testing.assert_equal(float(quantile(np.float32(values), 0.95)), bad)


@pytest.mark.parametrize("name", ["lognormal", "uniform", "constant", "zeros"])
def test_a_standard_error_is_numpys(name):
    samples = jnp.float32(SAMPLES[name])
    expected = np.std(samples, ddof=1) / np.sqrt(samples.size)
    np.testing.assert_allclose(standard_error(samples), expected, rtol=1e-5, atol=1e-8)
    assert standard_error(samples.reshape(-1)[:1]) == 0
    assert np.isnan(standard_error(jnp.float32([1, np.nan])))


def test_a_standard_error_of_zero_has_a_finite_derivative():
    np.testing.assert_array_equal(jax.grad(standard_error)(jnp.ones(3)), 0)


def test_a_ratio_over_zero_is_nan_and_no_alarm():
    numerator, denominator = np.float32([1, 0, -3]), np.float32([2, 0, 0])
    expected = [0.5, np.nan, np.nan]
    with jax.debug_nans(True):
        found = ratio_or_nan(jnp.asarray(numerator), jnp.asarray(denominator))
    np.testing.assert_array_equal(found, expected)
    traced = jax.jit(ratio_or_nan)(numerator, denominator)
    np.testing.assert_array_equal(traced, expected)


# Evidence of every update ------------------------------------------------------------

N, DELTA, BONUS = 60, 0.01, 0.03


@pytest.fixture(scope="module")
def problem():
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        params = policies.make_params("categorical", rng)
        return params, policies.make_batch("categorical", rng, params, N)


def trust_region(params, batch, size=None, bonus=BONUS):
    return trust_region_update(
        policies.categorical,
        params,
        batch,
        max_kl=DELTA,
        entropy_coefficient=bonus,
        micro_batch_size=size,
    )


def natural_gradient(params, batch, size=None, bonus=BONUS):
    return natural_gradient_update(
        policies.categorical,
        params,
        batch,
        max_kl=DELTA,
        entropy_coefficient=bonus,
        micro_batch_size=size,
    )


def clipped(params, batch, size=None, bonus=BONUS):
    optimizer = optax.sgd(0.2)
    new, _, info = clipped_update(
        policies.categorical,
        params,
        batch,
        optimizer,
        optimizer.init(params),
        jax.random.key(0),
        epochs=2,
        num_minibatches=2,
        max_kl=DELTA,
        entropy_coefficient=bonus,
        micro_batch_size=size,
    )
    return new, info


UPDATES = {
    "trust_region": trust_region,
    "natural_gradient": natural_gradient,
    "clipped": clipped,
}


@pytest.fixture(scope="module", params=UPDATES)
def updated(request, problem):
    """Name of an update, its new parameters, and its evidence."""
    with jax.enable_x64(True):
        return request.param, *fast_jit(UPDATES[request.param])(*problem)


def rows(params, batch):
    """Each row's distribution and terms of L."""
    policy = policies.categorical(params, batch.observations)
    ratio = jnp.exp(policy.log_prob(batch.actions) - batch.log_probs)
    return policy, np.asarray(ratio * batch.advantages + BONUS * policy.entropy())


def test_the_evidence_is_what_its_fields_say(updated, problem, float64):
    name, new, info = updated
    params, batch = problem
    (before, terms_before), (after, terms) = rows(params, batch), rows(new, batch)
    kl, gains = np.asarray(before.kl_divergence(after)), terms - terms_before
    assert info.status == UpdateStatus.ACCEPTED
    error = np.std(gains, ddof=1) / np.sqrt(N)
    expected = {
        "surrogate_before": np.mean(terms_before),
        "surrogate_after": np.mean(terms),
        "surrogate_standard_error": error,
        "kl": np.mean(kl),
        "kl_95": np.quantile(kl, 0.95, method="inverted_cdf"),
        "kl_max": np.max(kl),
        "share_beyond": np.mean(kl > DELTA),
        "entropy_before": np.mean(before.entropy()),
        "entropy": np.mean(after.entropy()),
        "gain": np.mean(gains),
        "signal_to_noise": np.mean(gains) / error,
    }
    for field, value in expected.items():
        rtol = 0.009 if field == "kl_95" else 1e-7
        np.testing.assert_allclose(
            getattr(info, field), value, rtol=rtol, err_msg=field
        )
    assert 0 < info.share_beyond < 1
    ratios = [info.kl_ratio, info.improvement_ratio]
    if name == "clipped":  # which predicts nothing
        assert np.all(np.isnan(ratios))
    else:
        np.testing.assert_allclose(ratios[0], np.mean(kl) / info.kl_predicted)
        gain = np.mean(gains)
        np.testing.assert_allclose(ratios[1], gain / info.expected_improvement)
        np.testing.assert_allclose(ratios, 1, atol=0.5)


def test_micro_batches_give_the_same_evidence(updated, problem, float64):
    """Of 7 rows and a remainder, while the others are computed at once."""
    name, _, info = updated
    _, split = fast_jit(UPDATES[name], static_argnums=2)(*problem, 7)
    for field, value, expected in zip(UpdateInfo._fields, split, info, strict=True):
        # Relative to the gradient, and it amplifies the rounding of every product.
        atol = 1e-9 if field == "cg_relative_residual" else 1e-12
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=atol, err_msg=field)


@pytest.mark.parametrize("name", UPDATES)
def test_a_rejection_has_no_gain_and_no_kl(name, problem, float64):
    params, batch = problem
    bad = batch._replace(advantages=batch.advantages.at[3].set(jnp.inf))
    new, info = fast_jit(UPDATES[name])(params, bad)
    assert info.status == UpdateStatus.NON_FINITE
    jax.tree.map(np.testing.assert_array_equal, new, params)
    zero = {"surrogate_standard_error", "kl", "kl_95", "kl_max", "share_beyond"}
    assert {field: float(getattr(info, field)) for field in zero} == dict.fromkeys(
        zero, 0
    )
    assert info.entropy == info.entropy_before
    assert np.isnan(info.kl_ratio)


def test_certify_describes_an_update_of_ones_own(updated, problem, float64):
    _, new, info = updated
    params, batch = problem
    measured = fast_jit(
        lambda *trees: certify(
            policies.categorical, *trees, max_kl=DELTA, entropy_coefficient=BONUS
        )
    )(params, new, batch)
    for field in ("gain", "surrogate_standard_error", "kl", "kl_95", "share_beyond"):
        np.testing.assert_allclose(
            getattr(measured, field), getattr(info, field), rtol=1e-9
        )
