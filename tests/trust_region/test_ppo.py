"""Proximal policy optimisation against NumPy, and what it does with bad numbers."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import policies
import pytest
import reference
from compiling import fast_jit

from trpo_jax import UpdateStatus
from trpo_jax.trust_region import (
    Batch,
    certify,
    clipped_terms,
    clipped_update,
    kl_penalized_update,
    next_kl_coefficient,
)

N, MINIBATCHES, EPOCHS, RATE = 12, 3, 2, 0.1
DELTA = 0.002
KINDS = tuple(policies.LINEAR)
OPTIONS = {"epochs": EPOCHS, "num_minibatches": MINIBATCHES, "max_kl": DELTA}


@partial(fast_jit, static_argnames="kind")
def clipped(kind, params, state, batch, key, clip_ratio, entropy_coefficient=0.03):
    return clipped_update(
        policies.LINEAR[kind],
        params,
        batch,
        optax.adam(RATE),
        state,
        key,
        clip_ratio=clip_ratio,
        entropy_coefficient=entropy_coefficient,
        **OPTIONS,
    )


@partial(fast_jit, static_argnames="kind")
def penalized(kind, params, state, batch, key, kl_coefficient):
    return kl_penalized_update(
        policies.LINEAR[kind],
        params,
        batch,
        optax.adam(RATE),
        state,
        kl_coefficient,
        key,
        entropy_coefficient=0.03,
        **OPTIONS,
    )


@partial(fast_jit, static_argnames="kind")
def evidence_of(kind, params, moved, batch):
    options = {"max_kl": DELTA, "entropy_coefficient": 0.03}
    return certify(policies.LINEAR[kind], params, moved, batch, **options)


def make_problem(kind, off_policy=0.0):
    """A policy of the reference with its parameters, ours with theirs, and a batch."""
    policy, theta, unravel, batch = policies.linear_problem(kind, N, off_policy)
    batch = jax.tree.map(jnp.asarray, batch)
    params = jax.tree.map(jnp.asarray, unravel(theta))
    return policy, theta, unravel, params, batch


def minibatches_of(batch, key):
    """The minibatches of all epochs: of each three neighbours, one by a rotation."""
    rotations = jax.random.randint(key, (N // MINIBATCHES, 1), 0, MINIBATCHES)
    first = MINIBATCHES * np.arange(N // MINIBATCHES)
    for _ in range(EPOCHS):
        for index in range(MINIBATCHES):
            rows = first + (np.ravel(rotations) + index) % MINIBATCHES
            yield Batch(*(np.asarray(leaf)[rows] for leaf in batch))


@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_of_the_clipped_terms_are_the_references(kind, float64):
    policy, theta, unravel, params, batch = make_problem(kind, off_policy=0.4)

    @fast_jit
    @jax.value_and_grad
    def objective(params):
        log_probs = policies.LINEAR[kind](params, batch.observations).log_prob(
            batch.actions
        )
        return jnp.mean(
            clipped_terms(log_probs, batch.log_probs, batch.advantages, clip_ratio=0.2)
        )

    value, gradient = objective(params)
    expected, slope, cut = reference.clipped_objective(policy, theta, *batch, 0.2)
    assert 0 < cut < N, "some rows are cut, and some are not"
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    for name, leaf in unravel(slope).items():
        np.testing.assert_allclose(gradient[name], leaf, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_all_steps_of_a_clipped_update_are_the_references(kind, float64):
    policy, theta, unravel, params, batch = make_problem(kind)
    key, cuts = jax.random.key(1), []

    def descent(theta, rows):
        _, slope, cut = reference.clipped_objective(policy, theta, *rows, 0.05)
        cuts.append(cut)
        entropy = reference.entropy_gradient(policy, theta, rows.observations)
        return -slope - 0.03 * entropy

    expected = reference.adam(descent, theta, minibatches_of(batch, key), RATE)
    state = optax.adam(RATE).init(params)
    moved, state, info = clipped(kind, params, state, batch, key, 0.05)
    for name, leaf in unravel(expected).items():
        np.testing.assert_allclose(moved[name], leaf, rtol=1e-6)
    assert sum(cuts) > 0
    assert state[0].count == EPOCHS * MINIBATCHES
    evidence = evidence_of(kind, params, moved, batch)
    chex.assert_trees_all_close(info, evidence, rtol=1e-9, atol=1e-12)
    assert info.status == UpdateStatus.ACCEPTED
    assert info.kl > DELTA, "the clipping bounds no KL"
    assert 0 < info.share_beyond <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_all_steps_of_a_penalized_update_are_the_references(kind, float64):
    policy, theta, unravel, params, batch = make_problem(kind)
    key, weight = jax.random.key(2), 2.0

    def descent(new, rows):
        surrogate = reference.surrogate_gradient(policy, new, *rows)
        entropy = reference.entropy_gradient(policy, new, rows.observations)
        kl = reference.kl_gradient(policy, theta, new, rows.observations)
        return weight * kl - surrogate - 0.03 * entropy

    expected = reference.adam(descent, theta, minibatches_of(batch, key), RATE)
    state = optax.adam(RATE).init(params)
    moved, _, following, info = penalized(
        kind, params, state, batch, key, jnp.asarray(weight)
    )
    for name, leaf in unravel(expected).items():
        np.testing.assert_allclose(moved[name], leaf, rtol=1e-6)
    evidence = evidence_of(kind, params, moved, batch)
    chex.assert_trees_all_close(info, evidence, rtol=1e-9, atol=1e-12)
    assert info.kl > 1.5 * DELTA
    assert following == 2 * weight


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(0.0, 0.5), (0.066, 0.5), (0.067, 1), (0.1, 1), (0.149, 1), (0.151, 2), (9.0, 2)],
)
def test_the_weight_of_the_penalty_follows_the_kl(kl, factor):
    following = next_kl_coefficient(jnp.float32(3), jnp.float32(kl), max_kl=0.1)
    assert following == 3 * factor
    assert following.dtype == jnp.float32


def test_the_weight_of_the_penalty_stays_above_zero_and_finite():
    """It could leave neither again by halving and doubling."""
    low, high = jnp.float32(1), jnp.float32(1)
    for _ in range(200):
        low = next_kl_coefficient(low, jnp.float32(0), max_kl=0.1)
        high = next_kl_coefficient(high, jnp.float32(np.inf), max_kl=0.1)
    assert 0 < low < 1e-5
    assert 1e5 < high < np.inf


def assert_unchanged(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["advantages", "log_probs", "actions"])
def test_a_bad_batch_leaves_everything_bit_for_bit(place, bad, float64):
    *_, params, batch = make_problem("gaussian")
    leaf = getattr(batch, place)
    spoilt = batch._replace(**{place: leaf.at[3].set(bad)})
    state = optax.adam(RATE).init(params)
    key = jax.random.key(0)
    *kept, info = clipped("gaussian", params, state, spoilt, key, 0.2)
    assert_unchanged(kept, [params, state])
    weight = jnp.asarray(2.0)
    *also_kept, other = penalized("gaussian", params, state, spoilt, key, weight)
    assert_unchanged(also_kept, [params, state, weight])
    for one in (info, other):
        assert one.status == UpdateStatus.NON_FINITE
        assert one.kl == one.kl_95 == one.kl_max == one.share_beyond == 0


def test_an_optimiser_that_overflows_is_a_refused_update(float64):
    """The batch is finite, and so are the parameters that come back."""
    *_, params, batch = make_problem("gaussian")
    state = optax.adam(RATE).init(params)
    inner = state[0]._replace(nu=jax.tree.map(lambda leaf: leaf + np.inf, params))
    overflown = (inner, *state[1:])
    *kept, info = clipped("gaussian", params, overflown, batch, jax.random.key(0), 0.2)
    assert_unchanged(kept, [params, overflown])
    assert info.status == UpdateStatus.NON_FINITE
    assert info.kl == 0
    assert info.surrogate_after == info.surrogate_before


@pytest.mark.parametrize(
    ("update", "values"), [(clipped, [0.01, 0.5]), (penalized, [50.0, 2.0])]
)
def test_an_update_needs_no_jit_and_is_mapped_over_values_and_keys(
    update, values, float64
):
    *_, params, batch = make_problem("softmax")
    state = optax.adam(RATE).init(params)
    values, keys = jnp.array(values), jax.random.split(jax.random.key(0))
    together = jax.vmap(partial(update, "softmax"), (None, None, None, 0, 0))(
        params, state, batch, keys, values
    )
    for index in range(2):
        # The first without a compiler.
        with jax.disable_jit(index == 0):
            alone = update("softmax", params, state, batch, keys[index], values[index])
        one = jax.tree.map(lambda leaf, i=index: leaf[i], together)
        chex.assert_trees_all_close(one, alone, rtol=1e-9, atol=1e-12)
    kl = together[-1].kl
    assert kl[0] < kl[1]


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("kl_coefficient", [0.0, -1.0, np.inf])
def test_a_penalty_of_no_or_infinite_weight_is_refused(kl_coefficient):
    *_, params, batch = make_problem("softmax")
    state = optax.adam(RATE).init(params)
    arguments = ("softmax", params, state, batch, jax.random.key(0))
    with pytest.raises(ValueError, match=r"kl_coefficient=.* write a finite number ab"):
        penalized.__wrapped__(*arguments, kl_coefficient)
    for weight in (2.0, 1):  # half of a whole 1 would be 0
        following = jax.eval_shape(partial(penalized.__wrapped__, *arguments), weight)
        assert (following[2].dtype, following[2].weak_type) == (jnp.float32, False)


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"clip_ratio": 0.0}, "clip_ratio=0.0 is out of range; write a finite number"),
        ({"entropy_coefficient": -1.0}, "write a finite number, 0 or more"),
        ({"num_minibatches": 5}, "does not divide the 12 rows"),
        ({"batch": None}, r"write trpo_jax\.trust_region\.Batch"),
    ],
)
def test_bad_arguments_are_refused_with_advice(options, advice):
    *_, params, batch = make_problem("softmax")
    optimizer = optax.adam(RATE)
    with pytest.raises((ValueError, TypeError), match=advice):
        clipped_update(
            policies.LINEAR["softmax"],
            params,
            options.pop("batch", batch),
            optimizer,
            optimizer.init(params),
            jax.random.key(0),
            **options,
        )
