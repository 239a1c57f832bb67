"""One curvature by four routes: two operators, a dense Hessian, and E[score scoreᵀ]."""

import itertools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import policies
import pytest
import reference
from compiling import fast_jit
from jax.flatten_util import ravel_pytree

from trpo_jax.errors import UsageTypeError
from trpo_jax.trust_region import (
    Batch,
    Categorical,
    DiagonalGaussian,
    GSDEGaussian,
    empirical_fisher_vector_product,
    fisher_vector_product,
    gauss_newton_vector_product,
    hessian_vector_product,
    mean_kl,
)

N = 5


class Problem(NamedTuple):
    policy_fn: object
    params: dict
    observations: jax.Array
    flat: jax.Array
    unravel: object


def dense(matvec, size):
    """Return the matrix of an operator on flat vectors, a column for each product."""
    return jax.vmap(matvec, out_axes=1)(jnp.eye(size))


def on_flat(operator, unravel):
    return lambda vector: ravel_pytree(operator(unravel(vector)))[0]


def dense_hessian_vector_product(problem, at):
    old = problem.policy_fn(problem.params, problem.observations)
    operator = hessian_vector_product(
        lambda params: mean_kl(old, problem.policy_fn(params, problem.observations)),
        problem.unravel(at),
    )
    return dense(on_flat(operator, problem.unravel), at.size)


def dense_operator(operator_fn, problem, at):
    states = policies.states(problem.observations)
    operator = operator_fn(problem.policy_fn, problem.unravel(at), states)
    return dense(on_flat(operator, problem.unravel), at.size)


def dense_hessian(problem, at):
    old = problem.policy_fn(problem.params, problem.observations)

    def divergence(flat):
        return mean_kl(
            old, problem.policy_fn(problem.unravel(flat), problem.observations)
        )

    return jax.hessian(divergence)(at)


def every_action(distribution):
    """Actions [M, N, …] and weights [M, N] whose weighted sums are expectations."""
    if isinstance(distribution, Categorical):
        probabilities = np.exp(reference.log_softmax(np.asarray(distribution.logits)))
        actions = np.tile(np.arange(probabilities.shape[1])[:, None], (1, N))
        return actions, probabilities.T
    if isinstance(distribution, GSDEGaussian):
        distribution = distribution.marginal
    if isinstance(distribution, DiagonalGaussian):
        actions, weights = reference.gaussian_quadrature(*map(np.asarray, distribution))
        return actions, np.tile(weights[:, None], (1, N))
    logits = [np.asarray(factor.logits) for factor in distribution.factors]
    choices = list(itertools.product(*(range(table.shape[1]) for table in logits)))
    actions = np.tile(np.array(choices)[:, None], (1, N, 1))
    log_probs = sum(
        reference.categorical_log_prob(np.tile(table, (len(choices), 1, 1)), column)
        for table, column in zip(logits, np.moveaxis(actions, -1, 0), strict=True)
    )
    return actions, np.exp(log_probs)


def mean_score_product(problem):
    """E[∇log π ∇log πᵀ], the expectation over actions exact."""
    distribution = problem.policy_fn(problem.params, problem.observations)
    actions, weights = every_action(distribution)
    np.testing.assert_allclose(np.sum(weights, axis=0), 1, rtol=1e-12)

    @fast_jit
    @jax.vmap
    def scores(actions):
        return jax.jacrev(
            lambda flat: problem.policy_fn(
                problem.unravel(flat), problem.observations
            ).log_prob(actions)
        )(problem.flat)

    scores = np.asarray(scores(jnp.asarray(actions)))
    return np.einsum("mn,mnp,mnq->pq", weights, scores, scores) / N


@pytest.fixture(scope="module", params=policies.ALL_KINDS)
def problem(request):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        params = policies.make_params(request.param, rng)
        observations = jnp.asarray(rng.normal(size=(N, policies.FEATURES)))
        flat, unravel = ravel_pytree(params)
    policy_fn = policies.POLICIES[request.param]
    return Problem(policy_fn, params, observations, flat, unravel)


@pytest.fixture(scope="module")
def matrices(problem):
    @fast_jit
    def routes(at):
        return {
            "fisher": dense_operator(fisher_vector_product, problem, at),
            "gauss_newton": dense_operator(gauss_newton_vector_product, problem, at),
            "hessian_vector_product": dense_hessian_vector_product(problem, at),
            "hessian": dense_hessian(problem, at),
        }

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, routes(problem.flat)), jax.tree.map(
            np.asarray, routes(problem.flat + 0.3)
        )


def test_both_operators_are_the_hessian_and_the_scores_outer_product(
    problem, matrices, float64
):
    at_old, _ = matrices
    expected = mean_score_product(problem)
    assert np.linalg.norm(expected) > 0.1
    for matrix in at_old.values():
        np.testing.assert_allclose(matrix, expected, rtol=1e-9, atol=1e-12)


def test_symmetric_and_positive_semi_definite(matrices):
    at_old, elsewhere = matrices
    for matrix in (*at_old.values(), elsewhere["gauss_newton"]):
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-13)
        assert np.min(np.linalg.eigvalsh(matrix)) >= -1e-12


def test_away_from_the_old_policy_only_one_is_the_hessian(matrices):
    """There the KL has a slope, and the network's own curvature comes in."""
    _, elsewhere = matrices
    np.testing.assert_allclose(
        elsewhere["hessian_vector_product"], elsewhere["hessian"], atol=1e-12
    )
    assert not np.allclose(elsewhere["gauss_newton"], elsewhere["hessian"], atol=1e-3)


@pytest.mark.parametrize(
    "policy", [reference.LinearSoftmax(3), reference.LinearGaussian(2)]
)
def test_is_the_references_matrix_of_a_linear_policy(policy, float64):
    rng = np.random.default_rng(1)
    observations = rng.normal(size=(N, 2))
    flat = rng.normal(scale=0.5, size=6)

    def policy_fn(flat, observations):
        if isinstance(policy, reference.LinearSoftmax):
            return Categorical(observations @ flat.reshape(3, 2).T)
        return DiagonalGaussian(observations @ flat[:4].reshape(2, 2).T, flat[4:])

    @fast_jit
    def matrix(flat):
        operator = gauss_newton_vector_product(
            policy_fn, flat, policies.states(observations)
        )
        return dense(operator, 6)

    expected = reference.fisher(policy, flat, observations)
    np.testing.assert_allclose(matrix(flat), expected, rtol=1e-10, atol=1e-13)


def test_the_mean_over_states_is_the_mean_of_each_states_operator(problem, float64):
    @fast_jit
    def product(observations, vector):
        return gauss_newton_vector_product(
            problem.policy_fn, problem.params, policies.states(observations)
        )(vector)

    vector = jax.tree.map(jnp.cos, problem.params)
    single = jax.vmap(product, in_axes=(0, None))(problem.observations[:, None], vector)
    mean = jax.tree.map(lambda leaf: np.mean(leaf, axis=0), single)
    chex.assert_trees_all_close(
        product(problem.observations, vector), mean, rtol=1e-10, atol=1e-13
    )


def test_the_policy_is_passed_through_once_whatever_the_number_of_products():
    calls = []

    def policy_fn(params, states):
        calls.append(None)
        return Categorical(jnp.tanh(states * params))

    params, states = jnp.array([0.1, 0.2, 0.3]), jnp.ones((2, 1))
    batch = policies.states(states)
    by_kl = fisher_vector_product(policy_fn, params, batch)
    by_factors = gauss_newton_vector_product(policy_fn, params, batch)
    before = len(calls)
    for _ in range(3):
        np.testing.assert_allclose(by_kl(params), by_factors(params), rtol=1e-5)
    assert len(calls) == before


def test_parameters_that_the_policy_ignores_have_no_curvature():
    params = {"used": np.array([[0.3, -0.2]]), "ignored": np.ones(3)}

    @fast_jit
    def product(params, vector):
        return gauss_newton_vector_product(
            lambda params, states: Categorical(states @ params["used"]),
            params,
            policies.states(jnp.ones((4, 1))),
        )(vector)

    result = product(params, params)
    np.testing.assert_array_equal(result["ignored"], np.zeros(3))
    assert np.all(result["used"] != 0)


STATES = policies.states(jnp.arange(6.0).reshape(2, 3))


def sines(params, states):
    return Categorical(jnp.sin(states * params))


def by_kl(params, vector):
    return fisher_vector_product(sines, params, STATES)(vector)


def by_factors(params, vector):
    return gauss_newton_vector_product(sines, params, STATES)(vector)


@pytest.mark.parametrize("product", [by_kl, by_factors])
def test_jit_eager_vmap_and_loop_agree_and_compile_once(product, float64):
    points = jnp.array([[0.1, 0.5, -0.4], [1.0, 2.0, -1.0]])
    vectors = jnp.array([[1.0, -2.0, 0.5], [0.3, 0.2, 0.1]])
    chex.clear_trace_counter()
    compiled = fast_jit(chex.assert_max_traces(product, n=1))
    pairs = list(zip(points, vectors, strict=True))
    looped = jnp.stack([compiled(*pair) for pair in pairs])
    np.testing.assert_allclose(product(*pairs[0]), looped[0], rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(
        fast_jit(jax.vmap(product))(points, vectors), looped, rtol=1e-10, atol=1e-14
    )


@pytest.mark.parametrize("product", [by_kl, by_factors])
def test_gradients_through_a_product_are_finite(product):
    slope = fast_jit(jax.grad(lambda params: jnp.sum(product(params, params) ** 2)))
    gradient = slope(np.array([0.1, 0.5, -0.4]))
    assert np.all(np.isfinite(gradient))
    assert np.any(gradient != 0)


# The empirical Fisher information -----------------------------------------------------


def test_with_sampled_actions_it_is_the_mean_outer_product_of_scores(problem, float64):
    rng = np.random.default_rng(1)
    kind = next(k for k, fn in policies.POLICIES.items() if fn is problem.policy_fn)
    actions = policies.make_actions(kind, rng, N)
    batch = Batch(problem.observations, actions, None, None)

    @fast_jit
    def routes(flat):
        def log_probs(flat):
            policy = problem.policy_fn(problem.unravel(flat), problem.observations)
            return policy.log_prob(actions)

        operator = empirical_fisher_vector_product(
            problem.policy_fn, problem.unravel(flat), batch
        )
        product = dense(on_flat(operator, problem.unravel), flat.size)
        return product, jax.jacrev(log_probs)(flat)

    matrix, scores = routes(problem.flat)
    np.testing.assert_allclose(matrix, scores.T @ scores / N, rtol=1e-9, atol=1e-12)


def test_its_mean_over_actions_is_the_fisher_information(float64):
    """A tabular policy of two states and three actions, over all nine samples."""
    tables = jnp.asarray(np.random.default_rng(2).normal(size=(2, 3)))
    observations = jnp.arange(2)

    def policy_fn(tables, observations):
        return Categorical(tables[observations])

    @fast_jit
    def matrix(operator_fn, actions):
        batch = Batch(observations, actions, None, None)
        operator = operator_fn(policy_fn, tables, batch)
        return jax.vmap(operator)(jnp.eye(6).reshape(6, 2, 3)).reshape(6, 6)

    mean = 0
    for actions in itertools.product(range(3), range(3)):
        actions = jnp.array(actions)
        log_probs = policy_fn(tables, observations).log_prob(actions)
        mean += jnp.exp(log_probs.sum()) * matrix(
            jax.tree_util.Partial(empirical_fisher_vector_product), actions
        )
    exact = matrix(
        jax.tree_util.Partial(gauss_newton_vector_product), jnp.zeros(2, int)
    )
    np.testing.assert_allclose(mean, exact, rtol=1e-9, atol=1e-12)


def test_an_operator_without_rows_says_what_to_write():
    def policy_fn(params, observations):
        return Categorical(observations @ params)

    params, observations = jnp.zeros((3, 2)), jnp.zeros((4, 3))
    with pytest.raises(UsageTypeError, match=r"batch is .*write .*Batch\("):
        gauss_newton_vector_product(policy_fn, params, observations)

    class States(NamedTuple):
        observations: jax.Array

    with pytest.raises(UsageTypeError, match=r"without actions.*write .*Batch\("):
        empirical_fisher_vector_product(policy_fn, params, States(observations))
