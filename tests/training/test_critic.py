import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from compiling import compilations, fast_jit
from jax.flatten_util import ravel_pytree
from policies import mlp

from trpo_jax.training import (
    Regression,
    explained_variance,
    fit_critic,
    fit_critic_in_trust_region,
)


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


def test_each_minibatch_has_one_of_each_neighbours():
    """So that none of them crosses from one device to another."""
    seen = []

    def spy(params, observations):
        jax.debug.callback(lambda rows: seen.append(sorted(rows)), observations)
        return params * observations

    rows = jnp.arange(24.0)
    problem = (jnp.zeros(()), rows, rows)
    fit(problem, optax.sgd(0.0), spy, epochs=1, num_minibatches=4)
    jax.effects_barrier()
    minibatches = [rows for rows in seen if len(rows) == 6]
    assert sorted(row for rows in minibatches[-4:] for row in rows) == [*range(24)]
    for rows in minibatches:
        assert [int(row) // 4 for row in rows] == [*range(6)]
    assert any(np.ptp(np.asarray(rows) % 4) for rows in minibatches)


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


# In a trust region -------------------------------------------------------------------


def gauss_newton(params, observations, targets, value_fn=mlp, stride=1, **options):
    batch = Regression(observations, targets)
    some = jax.tree.map(lambda leaf: leaf[::stride], batch)
    return fit_critic_in_trust_region(
        value_fn, params, batch, fisher_batch=some, **options
    )


STATIC = ("value_fn", "cg_iterations", "stride", "micro_batch_size")
fit_in_trust_region = fast_jit(gauss_newton, static_argnames=STATIC)


SHAPES = {"flat": (12,), "sequences": (6, 2)}


def random_problem(seed, shape=(12,), dtype=np.float64):
    """Return params, observations and targets of `mlp`, 15 parameters."""
    rng = np.random.default_rng(seed)
    params = {
        "hidden": rng.normal(size=(3, 3)),
        "bias": rng.normal(size=3),
        "output": rng.normal(size=3),
    }
    numbers = (params, rng.normal(size=(*shape, 3)), 3 * rng.normal(size=shape))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), numbers)


def dense_fit(problem, max_kl, damping, cg_iterations, stride):
    """Return the new θ, loss, KL, residual and candidates, with every matrix formed."""
    params, observations, targets = problem
    theta, params_of = ravel_pytree(params)
    theta, targets = np.asarray(theta), np.asarray(targets).ravel()

    def values(theta, observations=observations):
        return np.asarray(mlp(params_of(jnp.asarray(theta)), observations)).ravel()

    def jacobian(observations):
        columns = [
            (values(theta + h, observations) - values(theta - h, observations)) / 2e-6
            for h in 1e-6 * np.eye(len(theta))
        ]
        return np.stack(columns, axis=1)

    old = values(theta)
    variance = np.mean((old - targets) ** 2)
    gradient = jacobian(observations).T @ (targets - old) / len(targets)
    sampled = jacobian(observations[::stride])
    fisher = sampled.T @ sampled / len(sampled)
    matrix = fisher + damping * variance * np.eye(len(theta))
    x, _, residual = reference.conjugate_gradient(
        matrix, gradient, cg_iterations, tolerance=1e-5
    )
    step = min(1, np.sqrt(2 * max_kl * variance / (x @ fisher @ x))) * x

    def evaluate(fraction):
        new = values(theta + fraction * step)
        kl = np.mean((new - old) ** 2) / (2 * variance)
        return -np.mean((new - targets) ** 2), kl, True

    search = reference.line_search(
        evaluate, -variance, max_kl, 10, 0.5, interpolate=False
    )
    if not search.accepted:
        return theta, variance, 0.0, residual, search.evaluations
    moved = theta + search.fraction * step
    return moved, -search.surrogate, search.kl, residual, search.evaluations


@pytest.mark.parametrize(
    ("cg_iterations", "stride", "micro_batch_size"),
    [(40, 1, None), (3, 5, None), (3, 1, 5), (40, 5, 2)],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_is_that_of_dense_matrices(
    shape, cg_iterations, stride, micro_batch_size, float64
):
    candidates = []
    for seed in range(6):
        problem = random_problem(seed, SHAPES[shape])
        for max_kl, damping in ((1.0, 0.01), (0.02, 0.3)):
            params, info = fit_in_trust_region(
                *problem,
                max_kl=max_kl,
                damping=damping,
                cg_iterations=cg_iterations,
                stride=stride,
                micro_batch_size=micro_batch_size,
            )
            *expected, tried = dense_fit(
                problem, max_kl, damping, cg_iterations, stride
            )
            found = (ravel_pytree(params)[0], *info)
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
            candidates.append(tried)
    assert 1 in candidates
    assert max(candidates) > 1


@pytest.mark.parametrize("shape", SHAPES)
def test_one_step_of_a_linear_critic_is_the_least_squares_fit(shape, float64):
    _, observations, targets = random_problem(0, SHAPES[shape])
    params = {"w": jnp.ones(3), "b": jnp.ones(())}
    params, info = fit_in_trust_region(
        params, observations, targets, value_fn=linear, max_kl=1.0, damping=0.0
    )
    columns = np.insert(np.reshape(observations, (-1, 3)), 3, 1.0, axis=1)
    solution, squares, *_ = np.linalg.lstsq(columns, np.ravel(targets))
    np.testing.assert_allclose(params["w"], solution[:3], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(params["b"], solution[3], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(info.loss, squares[0] / targets.size, rtol=1e-8)


def errors(params, observations, targets):
    """Return values and mean squared errors in double precision, by problem."""
    params, observations, targets = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64), (params, observations, targets)
    )
    bias, output = params["bias"][:, None], params["output"][..., None]
    hidden = np.tanh(observations @ params["hidden"] + bias)
    values = (hidden @ output)[..., 0]
    return values, np.mean((values - targets) ** 2, axis=1)


def test_the_bound_holds_and_the_loss_never_rises():
    """Of hundreds of problems, side by side under `vmap`, in single precision."""
    problems = [random_problem(seed, dtype=np.float32) for seed in range(300)]
    problems = jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)
    old, loss_before = errors(*problems)
    side_by_side = fast_jit(
        jax.vmap(
            lambda problem, max_kl: gauss_newton(
                *problem, max_kl=max_kl, cg_iterations=4
            )
        )
    )
    moved = []
    for most in (1e-6, 1e-3, 1.0):
        max_kl = most * jnp.linspace(0.1, 1, 300)
        params, info = side_by_side(problems, max_kl)
        new, loss = errors(params, *problems[1:])
        kl = np.mean((new - old) ** 2, axis=1) / (2 * loss_before)
        np.testing.assert_array_less(kl, 1.001 * max_kl)
        np.testing.assert_array_less(info.kl, max_kl * (1 + 1e-6))
        np.testing.assert_array_less(loss, loss_before * (1 + 1e-6))
        np.testing.assert_allclose(info.loss, loss, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(info.kl, kl, rtol=0.01, atol=1e-9)
        moved.append(np.mean(info.kl > 0))
    assert min(moved) > 0.99
    # The last of them, alone.
    alone = fit_in_trust_region(*part(problems, -1), max_kl=max_kl[-1], cg_iterations=4)
    chex.assert_trees_all_close(alone, part((params, info), -1), rtol=1e-3, atol=1e-5)


def part(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def test_the_scale_of_rewards_does_not_matter(float64):
    params, observations, targets = random_problem(0)
    options = {"max_kl": 0.05, "damping": 0.1}
    fitted, info = fit_in_trust_region(params, observations, targets, **options)
    scaled, scaled_info = fit_in_trust_region(
        params,
        observations,
        1e3 * targets,
        value_fn=lambda params, observations: 1e3 * mlp(params, observations),
        **options,
    )
    chex.assert_trees_all_close(scaled, fitted, rtol=1e-9)
    expected = info._replace(loss=1e6 * info.loss)
    chex.assert_trees_all_close(scaled_info, expected, rtol=1e-9)
    assert info.kl > 0


def test_parameters_too_many_for_one_vector(float64, monkeypatch):
    problem = random_problem(0)
    expected = fit_in_trust_region(*problem, cg_iterations=3)
    monkeypatch.setattr("trpo_jax.trust_region.flat._LARGE", 1)
    as_tree = fast_jit(lambda problem: gauss_newton(*problem, cg_iterations=3))
    chex.assert_trees_all_close(as_tree(problem), expected, rtol=1e-9)


BAD_PLACES = {
    "targets": lambda problem, bad: (*problem[:2], problem[2].at[3].set(bad)),
    "observations": lambda problem, bad: (
        problem[0],
        problem[1].at[3, 1].set(bad),
        problem[2],
    ),
    "params": lambda problem, bad: (
        problem[0] | {"output": problem[0]["output"].at[1].set(bad)},
        *problem[1:],
    ),
}


@pytest.mark.parametrize("micro_batch_size", [None, 5])
@pytest.mark.parametrize("place", BAD_PLACES)
def test_a_bad_number_leaves_the_parameters_bit_for_bit(place, micro_batch_size):
    for bad in (np.nan, np.inf, -np.inf, 1e30):
        if place == "observations" and bad == 1e30:
            continue  # tanh makes a usual number of it
        spoilt = BAD_PLACES[place](random_problem(0, dtype=np.float32), bad)
        params, info = fit_in_trust_region(*spoilt, micro_batch_size=micro_batch_size)
        jax.tree.map(np.testing.assert_array_equal, params, spoilt[0])
        assert info.kl == 0
        assert np.isfinite(info.loss) == (place == "observations" and np.isinf(bad))


def test_where_nothing_is_to_be_learnt_nothing_moves():
    """No error; or one that no parameter has an influence on."""
    params, observations, targets = random_problem(0, dtype=np.float32)
    silent = params | {"output": jnp.zeros(3)}
    for problem in (
        (silent, observations, jnp.zeros_like(targets)),
        (silent | {"bias": jnp.zeros(3)}, jnp.zeros_like(observations), targets),
    ):
        fitted, info = fit_in_trust_region(*problem)
        jax.tree.map(np.testing.assert_array_equal, fitted, problem[0])
        assert info.kl == info.cg_relative_residual == 0
        np.testing.assert_allclose(info.loss, np.mean(problem[2] ** 2), rtol=1e-6)


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("shape", SHAPES)
def test_values_in_a_trust_region_must_fit_their_targets(shape):
    def column(params, observations):
        return mlp(params, observations)[..., None]

    problem = random_problem(0, SHAPES[shape], np.float32)
    with pytest.raises(ValueError, match=r"Write value\[..., 0\]"):
        fit_in_trust_region(*problem, value_fn=column)


def test_other_numbers_do_not_compile_again():
    options = {"max_kl": 0.1, "damping": 0.1}
    fit_in_trust_region(*random_problem(0, dtype=np.float32), **options)
    another = random_problem(1, dtype=np.float32)
    with compilations() as compiled:
        fit_in_trust_region(*another, max_kl=0.2, damping=0.0)
    assert not compiled


def outcome(point):
    """Return a number that everything in the fit has a part in."""
    params, observations, targets = random_problem(0)
    params, info = fit_critic_in_trust_region(
        mlp,
        jax.tree.map(lambda leaf: point["params"] * leaf, params),
        Regression(observations, point["targets"] * targets),
        max_kl=point["max_kl"],
        damping=point["damping"],
        cg_iterations=60,
        cg_tolerance=1e-12,
    )
    weights = sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(params))
    return weights + info.loss + info.kl


def test_derivatives_are_those_of_finite_differences(float64):
    point = {"params": 1.0, "targets": 1.0, "max_kl": 0.02, "damping": 0.1}
    point = jax.tree.map(jnp.asarray, point)
    value = fast_jit(outcome)
    gradient = fast_jit(jax.grad(outcome))(point)
    forward = fast_jit(jax.jacfwd(outcome))(point)
    chex.assert_trees_all_close(forward, gradient, rtol=1e-8)
    for name in point:
        width = 1e-5 * point[name]
        ahead, behind = (
            value(point | {name: point[name] + sign * width}) for sign in (1, -1)
        )
        slope = (ahead - behind) / (2 * width)
        np.testing.assert_allclose(gradient[name], slope, rtol=1e-5)
        assert slope != 0


def test_derivatives_are_finite_without_an_error():
    params, observations, targets = random_problem(0, dtype=np.float32)
    silent = params | {"output": jnp.zeros(3)}

    def learnt(scale):
        fitted, info = fit_critic_in_trust_region(
            mlp, silent, Regression(observations, scale * targets)
        )
        return jnp.sum(fitted["output"]) + sum(info)

    @fast_jit
    def slopes(scale):
        return jax.jvp(learnt, (scale,), (1.0,))[1], jax.grad(learnt)(scale)

    forward, reverse = slopes(jnp.float32(0))
    assert np.isfinite(forward)
    np.testing.assert_allclose(reverse, forward, rtol=1e-5)


def clipped_descent_by_hand(observations, targets, *, clipping, rate, epochs):
    """Gradient descent on mean max[(v − t)², (clip(v, v_old ± ε) − t)²], v = x · w."""
    weights = np.zeros(observations.shape[1])
    old, cut = observations @ weights, 0
    for _ in range(epochs):
        values = observations @ weights
        errors = values - targets
        clipped = np.clip(values, old - clipping, old + clipping) - targets
        slopes = np.where(clipped**2 > errors**2, 0, 2 * errors)
        cut += np.sum(slopes == 0)
        weights = weights - rate * slopes @ observations / len(targets)
    loss = np.mean(np.maximum(errors**2, clipped**2))
    return weights, loss, cut


@pytest.mark.parametrize("clipping", [0.05, 1e6])
def test_value_clipping_is_the_worse_of_two_errors(clipping, float64):
    rng = np.random.default_rng(0)
    observations, targets = rng.normal(size=(12, 3)), rng.normal(size=12)
    problem = (jnp.zeros(3), jnp.asarray(observations), jnp.asarray(targets))
    params, _, loss = fit(
        problem,
        optax.sgd(0.1),
        table,
        epochs=5,
        num_minibatches=1,
        value_clipping=clipping,
    )
    weights, expected, cut = clipped_descent_by_hand(
        observations, targets, clipping=clipping, rate=0.1, epochs=5
    )
    np.testing.assert_allclose(params, weights, rtol=1e-9)
    np.testing.assert_allclose(loss, expected, rtol=1e-9)
    assert (cut > 0) == (clipping < 1)


def test_an_integer_parameter_is_named(problem):
    params, observations, targets = problem
    params = params | {"count": jnp.int32(3)}
    with pytest.raises(TypeError, match=r"params\['count'\] is int32"):
        fit(
            (params, observations, targets), optax.sgd(0.1), epochs=1, num_minibatches=1
        )
    with pytest.raises(TypeError, match=r"params\['count'\] is int32"):
        fit_critic_in_trust_region(linear, params, Regression(observations, targets))
