"""Log-probabilities, entropies, divergences and samples, by formula and by sampling."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from compiling import fast_jit

from trpo_jax import Categorical, DiagonalGaussian, Distribution, MultiCategorical

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


MAKERS = {
    "categorical": categorical,
    "multi_categorical": multi_categorical,
    "gaussian": gaussian,
}


def reference_log_prob(distribution, actions):
    if isinstance(distribution, Categorical):
        return reference.categorical_log_prob(distribution.logits, actions)
    if isinstance(distribution, DiagonalGaussian):
        return reference.gaussian_log_prob(*distribution, actions)
    choices = np.moveaxis(actions, -1, 0)
    pairs = zip(distribution.factors, choices, strict=True)
    return sum(reference.categorical_log_prob(f.logits, c) for f, c in pairs)


def reference_entropy(distribution):
    if isinstance(distribution, Categorical):
        return reference.categorical_entropy(distribution.logits)
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
    np.testing.assert_allclose(entropy, reference_entropy(old), rtol=1e-12)
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
