"""Log-probabilities, entropies, divergences and samples, by formula and by sampling."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from compiling import fast_jit

from trpo_jax.trust_region import (
    Categorical,
    DiagonalGaussian,
    Distribution,
    GSDEGaussian,
    MultiCategorical,
    TanhGaussian,
    mask_logits,
)

STATES = 6
SAMPLES = 40_000


def categorical(rng, size=STATES, dtype=np.float64):
    return Categorical(jnp.asarray(2 * rng.normal(size=(size, 4)), dtype))


def multi_categorical(rng, size=STATES, dtype=np.float64):
    factors = [rng.normal(size=(size, k)) for k in (2, 4, 3)]
    return MultiCategorical(tuple(Categorical(jnp.asarray(f, dtype)) for f in factors))


def gaussian(rng, size=STATES, dtype=np.float64):
    mean = rng.normal(size=(size, 3))
    log_std = rng.normal(scale=0.4, size=(size, 3))
    return DiagonalGaussian(jnp.asarray(mean, dtype), jnp.asarray(log_std, dtype))


def tanh(rng, size=STATES, dtype=np.float64):
    return TanhGaussian(*gaussian(rng, size, dtype))


def masked(rng, size=STATES, dtype=np.float64):
    """The third of four actions is forbidden everywhere, the first in some states."""
    mask = np.tile([True, True, False, True], (size, 1))
    mask[::2, 0] = False
    logits = categorical(rng, size, dtype).logits
    return Categorical(mask_logits(logits, jnp.asarray(mask)))


MAKERS = {
    "categorical": categorical,
    "multi_categorical": multi_categorical,
    "gaussian": gaussian,
    "tanh": tanh,
    "masked": masked,
}


def reference_log_prob(distribution, actions):
    if isinstance(distribution, Categorical):
        return reference.categorical_log_prob(distribution.logits, actions)
    if isinstance(distribution, TanhGaussian):
        slopes = np.sum(np.log1p(-(np.tanh(actions) ** 2)), axis=-1)
        return reference.gaussian_log_prob(*distribution, actions) - slopes
    if isinstance(distribution, DiagonalGaussian):
        return reference.gaussian_log_prob(*distribution, actions)
    choices = np.moveaxis(actions, -1, 0)
    pairs = zip(distribution.factors, choices, strict=True)
    return sum(reference.categorical_log_prob(f.logits, c) for f, c in pairs)


def reference_entropy(distribution):
    if isinstance(distribution, Categorical):
        return reference.categorical_entropy(distribution.logits)
    if isinstance(distribution, TanhGaussian):
        grid = np.linspace(-12, 12, 100_001)
        weights = np.exp(-0.5 * grid**2) / np.sum(np.exp(-0.5 * grid**2))
        std = np.exp(distribution.log_std)[..., None]
        u = distribution.mean[..., None] + std * grid
        slopes = 2 * (np.log(2) - u - np.logaddexp(0, -2 * u)) @ weights
        return reference.gaussian_entropy(*distribution) + np.sum(slopes, axis=-1)
    if isinstance(distribution, DiagonalGaussian):
        return reference.gaussian_entropy(*distribution)
    return sum(reference.categorical_entropy(f.logits) for f in distribution.factors)


def reference_kl(old, new):
    if isinstance(old, Categorical):
        return reference.categorical_kl(old.logits, new.logits)
    if isinstance(old, DiagonalGaussian):
        return reference.gaussian_kl(*old, *new)
    pairs = zip(old.factors, new.factors, strict=True)
    return sum(reference.categorical_kl(o.logits, n.logits) for o, n in pairs)


def log_prob_entropy_and_kl(old, new, actions):
    return old.log_prob(actions), old.entropy(), old.kl_divergence(new)


evaluate = fast_jit(log_prob_entropy_and_kl)


@fast_jit
def draw(distribution):
    keys = jax.random.split(jax.random.key(0), SAMPLES)
    return jax.vmap(lambda key: distribution.sample(key))(keys)


@fast_jit
def log_prob_of_each(distribution, samples):
    return jax.vmap(distribution.log_prob)(samples)


@pytest.fixture(scope="module", params=MAKERS)
def pair(request):
    """Two unequal distributions of a kind, the old and the new."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        return MAKERS[request.param](rng), MAKERS[request.param](rng)


@pytest.fixture(scope="module")
def samples(pair):
    with jax.enable_x64(True):
        return draw(pair[0])


def as_numpy(distribution):
    return jax.tree.map(np.asarray, distribution)


def assert_mean(samples, expected):
    """A sample mean within five of its standard errors: one chance in a million."""
    error = np.std(samples, axis=0) / np.sqrt(len(samples))
    assert np.all(np.abs(np.mean(samples, axis=0) - expected) <= 5 * error)


def test_log_prob_entropy_and_kl_are_the_references(pair, samples, float64):
    old, new = as_numpy(pair)
    actions = np.asarray(samples[0])
    log_prob, entropy, kl = evaluate(old, new, actions)
    np.testing.assert_allclose(log_prob, reference_log_prob(old, actions), rtol=1e-12)
    by_quadrature = isinstance(old, TanhGaussian)
    np.testing.assert_allclose(
        entropy, reference_entropy(old), rtol=1e-4 if by_quadrature else 1e-12
    )
    np.testing.assert_allclose(kl, reference_kl(old, new), rtol=1e-10)


def test_kl_is_the_mean_log_ratio_under_the_old_policy(pair, samples, float64):
    old, new = pair
    ratios = log_prob_of_each(old, samples) - log_prob_of_each(new, samples)
    assert_mean(np.asarray(ratios), evaluate(old, new, samples[0])[2])


def test_entropy_is_the_mean_negative_log_prob(pair, samples, float64):
    old, new = pair
    log_probs = np.asarray(log_prob_of_each(old, samples))
    assert_mean(-log_probs, evaluate(old, new, samples[0])[1])


def test_kl_is_positive_directed_and_zero_only_at_equality(pair, samples, float64):
    old, new = pair
    forward = evaluate(old, new, samples[0])[2]
    backward = evaluate(new, old, samples[0])[2]
    assert np.all(forward > 0)
    assert not np.allclose(forward, backward, rtol=1e-2)
    np.testing.assert_array_equal(old.kl_divergence(old), np.zeros(STATES))


def test_kl_gradient_at_equality_is_zero(pair, float64):
    old, _ = pair
    gradient = fast_jit(jax.grad(lambda new: jnp.sum(old.kl_divergence(new))))(old)
    chex.assert_trees_all_close(gradient, jax.tree.map(jnp.zeros_like, old), atol=1e-15)


def test_mode_is_the_most_probable_action(pair, samples, float64):
    old, new = pair
    if isinstance(old, TanhGaussian):
        # Densities of a = tanh(u) may grow towards ±1: the median is taken instead.
        np.testing.assert_array_equal(old.mode(), DiagonalGaussian(*old).mode())
        return
    best = evaluate(old, new, old.mode())[0]
    assert np.all(log_prob_of_each(old, samples) <= best)


def test_a_gaussian_is_the_sum_of_its_action_dimensions(float64):
    rng = np.random.default_rng(1)
    old, new = as_numpy((gaussian(rng), gaussian(rng)))
    joint = evaluate(old, new, new.mean)
    single = [
        jax.tree.map(lambda leaf, d=d: leaf[:, [d]], (old, new, new.mean))
        for d in range(3)
    ]
    terms = [evaluate(*arguments) for arguments in single]
    for whole, parts in zip(joint, zip(*terms, strict=True), strict=True):
        np.testing.assert_allclose(whole, sum(parts), rtol=1e-12)


def test_multi_categorical_is_the_categorical_over_joint_actions(float64):
    rng = np.random.default_rng(2)
    old, new = as_numpy((multi_categorical(rng), multi_categorical(rng)))

    def joint(distribution):
        a, b, c = (factor.logits for factor in distribution.factors)
        sums = a[:, :, None, None] + b[:, None, :, None] + c[:, None, None, :]
        return Categorical(sums.reshape(STATES, -1))

    actions = rng.integers(0, [2, 4, 3], (STATES, 3))
    index = np.ravel_multi_index(actions.T, (2, 4, 3))
    chex.assert_trees_all_close(
        evaluate(old, new, actions),
        evaluate(joint(old), joint(new), index),
        rtol=1e-10,
    )


def test_samples_have_the_probabilities(pair, samples, float64):
    old, _ = pair
    samples = np.asarray(samples)
    if isinstance(old, DiagonalGaussian):
        assert_mean(samples, old.mean)
        assert_mean((samples - old.mean) ** 2, np.exp(2 * np.asarray(old.log_std)))
        return
    columns = [samples] if samples.ndim == 2 else np.moveaxis(samples, -1, 0)
    for factor, column in zip(getattr(old, "factors", [old]), columns, strict=True):
        probabilities = np.exp(reference.log_softmax(np.asarray(factor.logits)))
        assert_mean(np.eye(probabilities.shape[-1])[column], probabilities)


def test_categorical_ignores_a_shift_of_logits_and_stands_extreme_ones():
    old = Categorical(jnp.array([[0.0, 1.0, -2.0], [1e4, 0.0, -1e4]]))
    new = Categorical(old.logits[:, ::-1])
    shifted = Categorical(old.logits + 64)
    np.testing.assert_allclose(shifted.entropy(), old.entropy(), atol=1e-5)
    np.testing.assert_allclose(
        shifted.kl_divergence(new), old.kl_divergence(new), rtol=1e-5
    )
    np.testing.assert_allclose(old.kl_divergence(new)[1], 2e4, rtol=1e-6)
    assert old.entropy()[1] == 0


def test_one_log_std_for_all_states_is_broadcast(float64):
    rng = np.random.default_rng(5)
    old, other = as_numpy((gaussian(rng), gaussian(rng)))
    shared = DiagonalGaussian(old.mean, old.log_std[0])
    spread = DiagonalGaussian(old.mean, np.tile(old.log_std[0], (STATES, 1)))
    for arguments in ((shared, other), (other, shared)):
        tiled = [spread if policy is shared else policy for policy in arguments]
        chex.assert_trees_all_close(
            evaluate(*arguments, other.mean), evaluate(*tiled, other.mean), rtol=1e-12
        )
    assert draw(shared).shape == (SAMPLES, STATES, 3)


def test_gaussian_kl_of_nearly_equal_scales_survives_float32():
    """The naive ρ − 1 − log ρ loses all its digits here."""
    old = DiagonalGaussian(jnp.zeros((1, 1)), jnp.zeros((1, 1)))
    for shift in (1e-2, 1e-3, 1e-4):
        new = DiagonalGaussian(jnp.zeros((1, 1)), jnp.full((1, 1), shift, jnp.float32))
        np.testing.assert_allclose(old.kl_divergence(new), shift**2, rtol=3e-2)


def test_jit_eager_vmap_loop_and_any_batch_shape_agree(pair, samples, float64):
    old, new = pair
    arguments = (old, new, samples[0])
    eager = log_prob_entropy_and_kl(*arguments)
    chex.assert_trees_all_close(evaluate(*arguments), eager, rtol=1e-12)

    over_states = fast_jit(jax.vmap(log_prob_entropy_and_kl))(*arguments)
    chex.assert_trees_all_close(over_states, eager, rtol=1e-12)
    rows = [
        jax.tree.map(lambda leaf, n=n: leaf[n], as_numpy(arguments)) for n in (0, 4)
    ]
    for n, row in zip((0, 4), rows, strict=True):
        expected = jax.tree.map(lambda leaf, n=n: leaf[n], eager)
        chex.assert_trees_all_close(evaluate(*row), expected, rtol=1e-12)

    folded = jax.tree.map(
        lambda leaf: leaf.reshape(2, 3, *leaf.shape[1:]), as_numpy(arguments)
    )
    unfolded = jax.tree.map(lambda leaf: leaf.reshape(STATES), evaluate(*folded))
    chex.assert_trees_all_close(unfolded, eager, rtol=1e-12)


def test_a_second_call_compiles_nothing(pair, samples, float64):
    old, new = pair
    chex.clear_trace_counter()
    compiled = fast_jit(chex.assert_max_traces(log_prob_entropy_and_kl, n=1))
    first, second = compiled(old, new, samples[0]), compiled(new, old, samples[1])
    assert not np.allclose(first[2], second[2])


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_gradients_are_finite(kind, scale):
    rng = np.random.default_rng(7)
    old, new = (
        jax.tree.map(lambda leaf: scale * leaf, MAKERS[kind](rng, dtype=np.float32))
        for _ in range(2)
    )
    actions = old.mode()

    def total(new):
        terms = new.log_prob(actions) + new.entropy() + new.kl_divergence(old)
        return jnp.sum(terms)

    gradient = fast_jit(jax.grad(total))(new)
    chex.assert_tree_all_finite(gradient)
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("kind", MAKERS)
def test_satisfies_the_protocol_and_is_a_pytree(kind):
    policy = MAKERS[kind](np.random.default_rng(8), dtype=np.float32)
    assert isinstance(policy, Distribution)
    leaves, structure = jax.tree.flatten(policy)
    chex.assert_trees_all_equal(jax.tree.unflatten(structure, leaves), policy)


def test_an_action_that_does_not_exist_has_probability_zero():
    policy = Categorical(jnp.zeros((3, 4)))
    log_prob = policy.log_prob(jnp.array([-1, 2, 4]))
    np.testing.assert_array_equal(np.isneginf(log_prob), [True, False, True])


def test_actions_without_an_axis_of_dimensions_are_refused(no_shape_checks):
    """Broadcast against means [N, 1], they would make N × N differences."""
    policy = DiagonalGaussian(jnp.zeros((3, 1)), jnp.zeros(1))
    with pytest.raises(ValueError, match=r"write actions \[\.\.\., D\]"):
        policy.log_prob(jnp.zeros(3))


def test_tanh_log_prob_is_the_density_of_the_squashed_action(float64):
    """By the derivative of P(a ≤ x) = Φ((artanh x − μ)/σ)."""
    policy = TanhGaussian(jnp.array([[0.4]]), jnp.array([-0.3]))
    squashed = jnp.linspace(-0.95, 0.95, 7)

    def probability_below(x):
        z = (jnp.arctanh(x) - 0.4) * jnp.exp(0.3)
        return jax.scipy.stats.norm.cdf(z)

    density = jax.vmap(jax.grad(probability_below))(squashed)
    actions = jnp.arctanh(squashed)[:, None, None]
    log_probs = jax.vmap(policy.log_prob)(actions)[:, 0]
    np.testing.assert_allclose(jnp.exp(log_probs), density, rtol=1e-10)


def test_tanh_ratios_survive_saturation_in_float32():
    """At |u| = 30 the squashed action is 1 in float32, and its density is lost."""
    old = TanhGaussian(jnp.full((1, 1), 29.0), jnp.zeros(1))
    new = TanhGaussian(jnp.full((1, 1), 30.0), jnp.zeros(1))
    actions = jnp.full((1, 1), 30.0)
    ratio = new.log_prob(actions) - old.log_prob(actions)
    np.testing.assert_allclose(ratio, 0.5, rtol=1e-4)
    assert np.isfinite(old.entropy())


def gsde(rng, size=STATES):
    return GSDEGaussian(
        jnp.asarray(rng.normal(size=(size, 2))),
        jnp.asarray(rng.normal(size=(size, 5))),
        jnp.asarray(rng.normal(scale=0.4, size=(5, 2))),
    )


def test_gsde_is_a_gaussian_whose_variance_the_features_make(float64):
    rng = np.random.default_rng(3)
    old, new = gsde(rng), gsde(rng)
    assert isinstance(old, Distribution)
    gaussians = []
    for policy in as_numpy((old, new)):
        variance = np.einsum(
            "nf,fd->nd", policy.features**2, np.exp(2 * policy.log_std)
        )
        gaussians.append((policy.mean, 0.5 * np.log(variance + 1e-6)))
    actions = rng.normal(size=(STATES, 2))
    log_prob, entropy, kl = evaluate(old, new, actions)
    expected = reference.gaussian_log_prob(*gaussians[0], actions)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-12)
    expected = reference.gaussian_entropy(*gaussians[0])
    np.testing.assert_allclose(entropy, expected, rtol=1e-12)
    expected = reference.gaussian_kl(*gaussians[0], *gaussians[1])
    np.testing.assert_allclose(kl, expected, rtol=1e-10)


def test_gsde_samples_have_that_variance(float64):
    policy = gsde(np.random.default_rng(4))
    samples = np.asarray(draw(policy))
    variance = np.exp(2 * np.asarray(policy.marginal.log_std))
    assert_mean(samples, np.asarray(policy.mean))
    assert_mean((samples - policy.mean) ** 2, variance)


def test_gsde_noise_of_one_key_is_linear_in_the_features(float64):
    rng = np.random.default_rng(5)
    key = jax.random.key(0)
    first, second = gsde(rng), gsde(rng)
    both = first._replace(features=first.features + second.features)
    parts = [
        policy._replace(log_std=first.log_std).sample(key) - policy.mean
        for policy in (first, second, both)
    ]
    # But for the 10⁻³ that every action has besides.
    np.testing.assert_allclose(parts[0] + parts[1], parts[2], atol=5e-3)
    other = first.sample(jax.random.key(1)) - first.mean
    assert not np.allclose(parts[0], other, atol=0.1)


def test_gsde_without_features_has_a_density_still():
    policy = GSDEGaussian(jnp.zeros((1, 1)), jnp.zeros((1, 3)), jnp.zeros((3, 1)))
    assert np.isfinite(policy.log_prob(jnp.zeros((1, 1))))
    gradient = jax.grad(lambda p: jnp.sum(p.entropy() + p.kl_divergence(policy)))(
        policy
    )
    chex.assert_tree_all_finite(gradient)


def test_a_forbidden_action_has_probability_and_derivative_zero():
    mask = jnp.array([[True, False, True]])

    def policy_of(logits):
        return Categorical(mask_logits(logits, mask))

    logits, other = jnp.array([[1.0, 5.0, -1.0]]), jnp.array([[0.0, -3.0, 2.0]])
    policy, new = policy_of(logits), policy_of(other)
    allowed = [Categorical(values[:, ::2]) for values in (logits, other)]
    np.testing.assert_array_equal(jnp.exp(policy.log_probs())[:, 1], [0])
    np.testing.assert_allclose(policy.entropy(), allowed[0].entropy(), rtol=1e-6)
    np.testing.assert_allclose(
        policy.kl_divergence(new), allowed[0].kl_divergence(allowed[1]), rtol=1e-6
    )
    slope = jax.grad(lambda x: jnp.sum(policy.kl_divergence(policy_of(x))))(other)
    assert slope[0, 1] == 0
    assert np.all(slope[0, ::2] != 0)
    assert set(np.asarray(draw(policy)).ravel()) == {0, 2}


def test_a_mask_that_forbids_everything_is_named_or_leaves_a_nan(no_shape_checks):
    mask = jnp.array([[True, False], [False, False]])
    with pytest.raises(ValueError, match="forbids every action"):
        mask_logits(jnp.zeros((2, 2)), mask)
    masked = jax.jit(mask_logits)(jnp.zeros((2, 2)), mask)
    np.testing.assert_array_equal(np.isnan(masked), [[False] * 2, [True] * 2])
    with pytest.raises(ValueError, match="one flag for each action"):
        mask_logits(jnp.zeros((2, 3)), mask)
