"""Projections against a general solver, and the trust region of every state."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import policies
import pytest
import reference
import scipy.optimize
from compiling import fast_jit
from probes import CHAIN, TABULAR

import trpo_jax
from trpo_jax import UpdateStatus
from trpo_jax.trust_region import (
    Batch,
    Categorical,
    DiagonalGaussian,
    GSDEGaussian,
    MultiCategorical,
    project,
    projection_update,
)

# Projections -------------------------------------------------------------------------

# Kind of distribution ↦ the number of its parameters, and what it is made from them.
FAMILIES = {
    "categorical": (3, Categorical),
    "multi_categorical": (
        5,
        lambda x: MultiCategorical((Categorical(x[..., :2]), Categorical(x[..., 2:]))),
    ),
    "gaussian": (2, lambda x: DiagonalGaussian(x[..., :1], x[..., 1:])),
    "gaussian_2d": (4, lambda x: DiagonalGaussian(x[..., :2], x[..., 2:])),
}


@functools.partial(fast_jit, static_argnames="family")
def projected(family, old, new, max_kl):
    """Project distributions made from parameters; a radius for each batch."""
    make = FAMILIES[family][1]

    def one(old, new, max_kl):
        return project(make(old), make(new), max_kl=max_kl)

    return jax.vmap(one)(old, new, max_kl)


def factors(family, parameters):
    """Arguments of the reference's distributions: one tuple for each factor."""
    parameters = np.asarray(parameters, np.float64)
    if family == "categorical":
        return [(parameters,)]
    if family == "multi_categorical":
        return [(parameters[..., :2],), (parameters[..., 2:],)]
    return [tuple(np.split(parameters, 2, axis=-1))]


def divergence(family, old, new):
    kl = reference.categorical_kl if "categorical" in family else reference.gaussian_kl
    pairs = zip(factors(family, old), factors(family, new), strict=True)
    return sum(kl(*one, *other) for one, other in pairs)


def parameters_of(distribution):
    """Return the array that a distribution is made from."""
    return np.concatenate(jax.tree.leaves(distribution), axis=-1)


def random_pairs(rng, family, *shape):
    """Return parameters of old and new policies, from near to far, also extreme."""
    size, _ = FAMILIES[family]
    scale = 10 ** rng.uniform(-1, 1, (*shape, 1))
    old, new = scale * rng.normal(size=(2, *shape, size))
    distance = 10 ** rng.uniform(-3, 2, (*shape, 1))
    if "categorical" in family:
        return old, old + distance * new
    old[..., size // 2 :] = np.clip(old[..., size // 2 :], -8, 8)
    mean, log_std = np.split(new, 2, axis=-1)
    std = np.exp(old[..., size // 2 :])
    old[..., : size // 2] *= std
    new = np.concatenate([distance * std * mean, np.clip(log_std, -8, 8)], axis=-1)
    return old, np.where(rng.random((*shape, 1)) < 0.5, new, old + 0.1 * (new - old))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_other_distribution_in_the_ball_is_nearer(family, float64):
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=(2, 4, FAMILIES[family][0]))
    max_kl = np.array([0.001, 0.01, 0.03, 0.1])
    found = parameters_of(projected(family, old, new, max_kl))
    for state in range(4):
        mine, theirs, radius = old[state], new[state], max_kl[state]
        assert divergence(family, mine, theirs) > radius
        ball = {
            "type": "ineq",
            "fun": lambda q, mine=mine, radius=radius: (
                radius - divergence(family, mine, q)
            ),
        }
        solution = scipy.optimize.minimize(
            lambda q, theirs=theirs: divergence(family, theirs, q),
            mine,
            constraints=ball,
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 500},
        )
        assert solution.success
        value = divergence(family, theirs, found[state])
        np.testing.assert_allclose(value, solution.fun, rtol=1e-6)
        # Logits up to a constant.
        assert divergence(family, found[state], solution.x) < 1e-7


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bound_holds_in_every_state(family):
    rng = np.random.default_rng(1)
    batches, states = 10_000, 4
    old, new = (
        pair.astype(np.float32) for pair in random_pairs(rng, family, batches, states)
    )
    max_kl = (10 ** rng.uniform(-4, 0, batches)).astype(np.float32)
    found = projected(family, old, new, max_kl)
    radius, inside = max_kl[:, None], divergence(family, old, new) <= max_kl[:, None]
    assert 0.1 < np.mean(inside) < 0.9
    kl = divergence(family, old, parameters_of(found))
    # Log-probabilities in float32 are exact to about 1e-7, and so is their mean.
    assert np.all(kl <= radius * (1 + 1e-4) + 1e-6)
    # Where the new policy is in the ball by more than rounding, it is kept as it is.
    clear = inside & (divergence(family, old, new) < 0.99 * radius - 1e-6)
    np.testing.assert_array_equal(parameters_of(found)[clear], new[clear])
    # Elsewhere the boundary is reached, unless the weight that reaches it is 1 in
    # float32.
    assert np.mean((kl > 0.99 * radius - 1e-6)[~inside]) > 0.95


@pytest.mark.parametrize("family", ["categorical", "multi_categorical", "gaussian_2d"])
def test_derivatives_are_those_of_finite_differences(family, float64):
    rng = np.random.default_rng(2)
    size, make = FAMILIES[family]
    old, new, targets = rng.normal(size=(3, 3, size))
    new[0] = old[0] + 0.01 * new[0]  # in the ball
    point = (old, new, np.float64(0.05))
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), point)
    direction = (*direction[:2], 0.1)

    def total(point):
        old, new, max_kl = point
        bounded = project(make(old), make(new), max_kl=max_kl)
        return jnp.sum(bounded.kl_divergence(make(targets)))

    @fast_jit
    def derivatives(point, direction):
        """Return value, gradient, and the product of Hessian and direction."""
        value, gradient = jax.value_and_grad(total)(point)
        _, product = jax.jvp(jax.grad(total), (point,), (direction,))
        return value, gradient, product

    def moved(length):
        return optax.tree.add_scale(point, length, direction)

    _, gradient, product = derivatives(point, direction)
    (low, low_gradient, _), (high, high_gradient, _) = (
        derivatives(moved(length), direction) for length in (-1e-5, 1e-5)
    )
    slope = optax.tree.vdot(gradient, direction)
    np.testing.assert_allclose(slope, (high - low) / 2e-5, rtol=1e-6)
    changes = jax.tree.map(
        lambda *two: (two[0] - two[1]) / 2e-5, high_gradient, low_gradient
    )
    for actual, expected in zip(product, changes, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_boundary_out_of_reach_has_no_infinite_derivative():
    """Between probabilities of 0 and 1, weights in float32 do not reach it."""
    old = Categorical(jnp.array([[0.0, 0.0], [0.0, 1e4]]))
    new = jnp.array([[0.0, 1e4], [1e4, 0.0]])

    def entry(logits):
        return jnp.sum(project(old, Categorical(logits), max_kl=0.01).logits)

    value, gradient = fast_jit(jax.value_and_grad(entry))(new)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_allclose(entry(new), value, rtol=1e-6)


def test_moments_are_interpolated(float64):
    rng = np.random.default_rng(4)
    weight = jnp.array([0.0, 1e-3, 0.4, 0.9, 1.0])
    w = np.asarray(weight)[:, None]
    old, new = (jnp.asarray(x) for x in rng.normal(size=(2, 5, 4)))
    mixed = np.exp(Categorical(old).interpolate(Categorical(new), weight).log_probs())
    probs, others = (np.exp(reference.log_softmax(x)) for x in (old, new))
    np.testing.assert_allclose(mixed, (1 - w) * probs + w * others, rtol=1e-12)

    # One σ for all states, as a network's parameter.
    ours = DiagonalGaussian(old[:, :2], old[0, 2:])
    theirs = DiagonalGaussian(new[:, :2], new[0, 2:])
    mean, log_std = ours.interpolate(theirs, weight)
    np.testing.assert_allclose(mean, (1 - w) * ours.mean + w * theirs.mean, rtol=1e-12)
    squares = [np.exp(2 * d.log_std) + d.mean**2 for d in (ours, theirs)]
    second = (1 - w) * squares[0] + w * squares[1]
    np.testing.assert_allclose(np.exp(2 * log_std) + mean**2, second, rtol=1e-12)


def test_noise_that_depends_on_features_is_projected_by_its_marginals(float64):
    rng = np.random.default_rng(5)
    old, new = (
        GSDEGaussian(*map(jnp.asarray, parts))
        for parts in zip(
            rng.normal(size=(2, 6, 2)),
            rng.normal(size=(2, 6, 3)),
            rng.normal(size=(2, 3, 2)),
            strict=True,
        )
    )
    found = project(old, new, max_kl=0.02)
    expected = project(old.marginal, new.marginal, max_kl=0.02)
    np.testing.assert_array_equal(found.log_std, expected.log_std)
    np.testing.assert_allclose(old.kl_divergence(found), 0.02, rtol=1e-9)
    np.testing.assert_array_equal(
        found.kl_divergence(new), found.kl_divergence(new.marginal)
    )


class Own(NamedTuple):
    """A distribution that cannot be interpolated."""

    logits: jax.Array
    log_probs = Categorical.log_probs
    sample = Categorical.sample
    mode = Categorical.mode
    log_prob = Categorical.log_prob
    entropy = Categorical.entropy

    def kl_divergence(self, other):
        return Categorical(self.logits).kl_divergence(Categorical(other.logits))


class OwnInterpolated(Own):
    """The advice, followed."""

    def interpolate(self, other, weight):
        return OwnInterpolated(*Categorical.interpolate(self, other, weight))


def test_a_distribution_without_interpolation_is_refused(no_shape_checks):
    own = Own(jnp.zeros((2, 3)))
    with pytest.raises(trpo_jax.UsageTypeError, match=r"Own.* cannot be projected"):
        project(own, own, max_kl=0.01)
    logits = jnp.arange(6.0).reshape(2, 3)
    found = project(OwnInterpolated(own.logits), OwnInterpolated(logits), max_kl=0.01)
    expected = project(Categorical(own.logits), Categorical(logits), max_kl=0.01)
    np.testing.assert_array_equal(found.logits, expected.logits)


# Updates -----------------------------------------------------------------------------

OPTIMIZER = optax.adam(0.03)
ROWS = 16


def updated(kind, params, batch, key, max_kl):
    return projection_update(
        policies.POLICIES[kind],
        params,
        batch,
        OPTIMIZER,
        OPTIMIZER.init(params),
        key,
        max_kl=max_kl,
        epochs=4,
        num_minibatches=2,
        micro_batch_size=8,
    )


update = fast_jit(updated, static_argnames="kind")
compare = fast_jit(
    lambda kind, old, new, states: policies.POLICIES[kind](old, states).kl_divergence(
        policies.POLICIES[kind](new, states)
    ),
    static_argnames="kind",
)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def projected_by_roots(old, new, max_kl):
    """Log-probabilities of `project` for categoricals, by SciPy's root of the KL."""
    rows = []
    for p, q in zip(np.exp(old), np.exp(new), strict=True):

        def excess(weight, p=p, q=q):
            mixture = (1 - weight) * p + weight * q
            return np.sum(p * np.log(p / mixture)) - max_kl

        inside = excess(1.0) <= 0
        weight = 1.0 if inside else scipy.optimize.brentq(excess, 0, 1, xtol=1e-15)
        rows.append(np.log((1 - weight) * p + weight * q))
    return np.stack(rows)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("epochs", "eager"), [(5, False), (2, True)])
def test_steps_are_those_of_finite_differences(epochs, eager):
    """Steps up the projected objective, the later ones out of the trust region."""
    rng = np.random.default_rng(2)
    features, actions = rng.normal(size=(6, 2)), rng.integers(3, size=6)
    theta, advantages = rng.normal(size=(2, 3)), rng.normal(size=6)
    max_kl, bonus, regression, rate = 0.02, 0.1, 2.0, 2.0
    old = log_softmax(features @ theta)
    taken = np.arange(6), actions

    def objective(log_probs):
        entropy = -np.sum(np.exp(log_probs) * log_probs, axis=-1)
        ratio = np.exp(log_probs[taken] - old[taken])
        return np.mean(ratio * advantages + bonus * entropy)

    def loss(vector, target):
        new = log_softmax(features @ vector.reshape(2, 3))
        projected = projected_by_roots(old, new, max_kl)
        excess = np.sum(np.exp(target) * (target - new), axis=-1)
        return -objective(projected) + regression * np.mean(excess)

    expected, outside = theta.reshape(-1), []
    for _ in range(epochs):
        new = log_softmax(features @ expected.reshape(2, 3))
        target = projected_by_roots(old, new, max_kl)  # a constant to the derivative
        outside.append(np.mean(np.sum(np.exp(old) * (old - new), axis=-1) > max_kl))
        steps = 1e-6 * np.eye(6)
        slope = [
            loss(expected + step, target) - loss(expected - step, target)
            for step in steps
        ]
        expected = expected - rate * np.array(slope) / 2e-6
    assert 0 < np.mean(outside) < 1  # inside and outside are both tested

    optimizer = optax.sgd(rate)
    batch = Batch(*map(jnp.asarray, (features, actions, old[taken], advantages)))
    with jax.disable_jit(eager):
        found, _, info = projection_update(
            lambda params, states: Categorical(states @ params),
            jnp.asarray(theta),
            batch,
            optimizer,
            optimizer.init(jnp.asarray(theta)),
            jax.random.key(0),
            max_kl=max_kl,
            entropy_coefficient=bonus,
            regression_coefficient=regression,
            epochs=epochs,
            num_minibatches=1,
        )
    assert info.status == UpdateStatus.ACCEPTED
    assert 0 < info.accepted_fraction <= 1
    step = expected.reshape(2, 3) - theta
    np.testing.assert_allclose(
        found - theta, info.accepted_fraction * step, rtol=1e-6, atol=1e-9
    )


def problem(kind, seed=0):
    rng = np.random.default_rng(seed)
    params = policies.make_params(kind, rng, np.float32)
    batch = policies.make_batch(kind, rng, params, ROWS, np.float32)
    return params, batch, jax.random.key(seed)


@pytest.mark.parametrize("kind", ["categorical", "tanh", "gsde"])
def test_an_update_improves_within_the_trust_region_of_every_state(kind):
    params, batch, key = problem(kind)
    for max_kl in (1e-3, 0.3):
        new, state, info = update(kind, params, batch, key, max_kl)
        assert info.status == UpdateStatus.ACCEPTED
        assert info.surrogate_after > info.surrogate_before
        kl = compare(kind, params, new, batch.observations)
        np.testing.assert_allclose(info.kl_max, kl.max(), rtol=1e-3)
        np.testing.assert_allclose(info.kl, kl.mean(), rtol=1e-3)
        nearest = np.quantile(kl, 0.95, method="inverted_cdf")
        np.testing.assert_allclose(info.kl_95, nearest, rtol=0.01)
        assert kl.max() <= max_kl * (1 + 1e-3)
        assert info.share_beyond == 0
        assert 0 < info.accepted_fraction <= 1
        assert optax.tree.get(state, "count") == 8


def test_updates_side_by_side_are_those_of_a_loop():
    problems = [problem("categorical", seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)
    together = fast_jit(
        jax.vmap(functools.partial(updated, "categorical"), (0, 0, 0, None))
    )(*stacked, 0.01)
    for lane, (params, batch, key) in enumerate(problems):
        alone = update("categorical", params, batch, key, 0.01)
        jax.tree.map(
            lambda mine, all_, lane=lane: np.testing.assert_allclose(
                mine, all_[lane], rtol=1e-3, atol=1e-5
            ),
            alone,
            together,
        )


@pytest.mark.parametrize("field", ["advantages", "log_probs"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_batch_changes_nothing(field, value):
    params, batch, key = problem("categorical")
    spoilt = getattr(batch, field).at[3].set(value)
    batch = batch._replace(**{field: spoilt})
    new, state, info = update("categorical", params, batch, key, 0.01)
    assert info.status == UpdateStatus.NON_FINITE
    assert info.kl_max == info.accepted_fraction == 0
    for name, leaf in params.items():
        np.testing.assert_array_equal(leaf, new[name])
    assert optax.tree.get(state, "count") == 0


def test_advantages_of_zero_change_nothing():
    params, batch, key = problem("categorical")
    batch = batch._replace(advantages=jnp.zeros(ROWS))
    new, _, info = update("categorical", params, batch, key, 0.01)
    assert info.status == UpdateStatus.NO_IMPROVEMENT
    np.testing.assert_array_equal(params["output"], new["output"])


def test_a_run():
    config = trpo_jax.TRPOConfig(
        env=(TABULAR, CHAIN),
        update="projection",
        num_envs=2,
        rollout_length=8,
        total_timesteps=64,
        hidden_sizes=(4,),
        policy_epochs=2,
    )
    metrics = trpo_jax.train(config).metrics
    assert np.all(np.asarray(metrics.update.share_beyond) == 0)
    assert np.all(np.asarray(metrics.update.kl_max) <= 0.01)
    assert np.any(np.asarray(metrics.update.accepted_fraction) > 0)
