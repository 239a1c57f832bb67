"""The preconditioner against its dense formula, and solves with it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import policies
import pytest
from compiling import fast_jit
from jax.flatten_util import ravel_pytree

from trpo_jax.errors import UsageError
from trpo_jax.trust_region import (
    Batch,
    Categorical,
    CGStatus,
    Problem,
    conjugate_gradient,
    damped,
    diagonal_preconditioner,
    kronecker_preconditioner,
    preconditioner,
    score_preconditioner,
    trust_region_update,
)

NUM_ROWS, GROUPS, DAMPING = 13, 3, 0.05


def make(kind, num_rows=NUM_ROWS):
    rng = np.random.default_rng(0)
    params = policies.make_params(kind, rng)
    batch = policies.make_batch(kind, rng, params, num_rows)
    return policies.POLICIES[kind], params, batch


def group_scores(policy_fn, params, batch):
    """Return G, of the leaves of params side by side.

    Group j has the rows j, j + 3, …; the thirteenth is left over.
    """

    @fast_jit
    def scores(params, batch):
        return jax.jacrev(
            lambda params: policy_fn(params, batch.observations).log_prob(batch.actions)
        )(params)

    leaves = jax.tree.leaves(scores(params, batch))
    score = np.concatenate([np.reshape(leaf, (NUM_ROWS, -1)) for leaf in leaves], 1)
    return np.stack([score[j:12:GROUPS].sum(axis=0) for j in range(GROUPS)]) / 12**0.5


@functools.partial(fast_jit, static_argnames=("make_fn", "policy_fn"))
def precondition(make_fn, policy_fn, params, batch, vector, damping=DAMPING):
    return make_fn(policy_fn, params, batch, groups=GROUPS, damping=damping)(vector)


@pytest.mark.parametrize("kind", policies.ALL_KINDS)
def test_it_is_the_inverse_of_the_estimated_fisher_information(kind, float64):
    policy_fn, params, batch = make(kind)
    vector = jax.tree.map(jnp.cos, params)
    solved = precondition(score_preconditioner, policy_fn, params, batch, vector)
    actual, _ = ravel_pytree(solved)
    g = group_scores(policy_fn, params, batch)
    mu = max(10 * DAMPING, 1e-3 * np.linalg.norm(g @ g.T))
    matrix = g.T @ g + mu * np.eye(g.shape[1])
    expected = mu * np.linalg.solve(matrix, ravel_pytree(vector)[0])
    np.testing.assert_allclose(actual, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("damping", [DAMPING, 1e-9])
def test_the_diagonal_one_divides_by_the_diagonal(damping, float64):
    policy_fn, params, batch = make("gaussian")
    vector = jax.tree.map(jnp.cos, params)
    actual, _ = ravel_pytree(
        precondition(diagonal_preconditioner, policy_fn, params, batch, vector, damping)
    )
    squares = (group_scores(policy_fn, params, batch) ** 2).sum(axis=0)
    mu = max(damping, 1e-6 * squares.max())
    expected = mu * ravel_pytree(vector)[0] / (squares + mu)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


@pytest.mark.parametrize("largest", [256, 3])
@pytest.mark.parametrize("damping", [DAMPING, 1e-9])
def test_the_kronecker_one_inverts_the_product_of_its_factors(
    damping, largest, float64, monkeypatch
):
    """The dense Kronecker product for a matrix; the diagonal for a vector."""
    monkeypatch.setattr(preconditioner, "_MAX_SIDE", largest)
    policy_fn, params, batch = make("gaussian")
    vector = jax.tree.map(jnp.cos, params)
    # Not the shared program, which may have been compiled for the other limit.
    solved = fast_jit(
        lambda params: kronecker_preconditioner(
            policy_fn, params, batch, groups=GROUPS, damping=damping
        )(vector)
    )(params)
    _, unravel = ravel_pytree(params)
    scores = jax.vmap(unravel)(jnp.asarray(group_scores(policy_fn, params, batch)))
    traces = jax.tree.map(lambda g: (g**2).sum(), scores)
    mu = max(damping, 1e-6 * max(jax.tree.leaves(traces)))

    def factor(g, ridge, trace):
        side = g.shape[1]
        matrix = sum(each @ each.T for each in g) / np.sqrt(trace)
        if side > largest:
            matrix = np.diag(np.diag(matrix))
        return matrix + ridge * np.eye(side)

    for name in ("hidden", "output"):
        g, trace = np.asarray(scores[name]), traces[name]
        pi = np.sqrt(g.shape[2] / g.shape[1])
        left = factor(g, pi * np.sqrt(mu), trace)
        right = factor(np.swapaxes(g, 1, 2), np.sqrt(mu) / pi, trace)
        dense = np.kron(left, right)
        expected = mu * np.linalg.solve(dense, np.ravel(vector[name]))
        np.testing.assert_allclose(np.ravel(solved[name]), expected, rtol=1e-5)
    squares = (scores["bias"] ** 2).sum(axis=0)
    expected = mu * vector["bias"] / (squares + mu)
    np.testing.assert_allclose(solved["bias"], expected, rtol=1e-9)


def test_its_estimate_has_the_fisher_information_as_its_mean(float64):
    """Over all actions of one state, weighted by their probabilities."""
    policy_fn, params, batch = make("categorical", 1)

    @fast_jit
    def mean_and_fisher(params):
        theta, unravel = ravel_pytree(params)

        def log_prob(theta, action):
            distribution = policy_fn(unravel(theta), batch.observations)
            return distribution.log_prob(jnp.array([action]))[0]

        mean = 0
        for action in range(3):
            value, score = jax.value_and_grad(log_prob)(theta, action)
            mean += jnp.exp(value) * jnp.outer(score, score)
        product = Problem(policy_fn, None, batch).fisher(params)
        columns = jax.vmap(lambda v: ravel_pytree(product(unravel(v)))[0])
        return mean, columns(jnp.eye(theta.size))

    mean, fisher = mean_and_fisher(params)
    np.testing.assert_allclose(fisher, mean, atol=1e-12)


@pytest.mark.parametrize(
    ("make_fn", "most"),
    [
        (score_preconditioner, 0.7),
        (diagonal_preconditioner, 0.9),
        (kronecker_preconditioner, 0.5),
    ],
)
def test_each_needs_fewer_products_for_the_same_solution(make_fn, most, float64):
    """Parameters whose scales are spread over three decades."""
    rng = np.random.default_rng(0)
    scales = np.geomspace(10, 0.01, 20)
    observations = jnp.asarray(rng.normal(size=(400, 20)) * scales)
    params = jnp.asarray(rng.normal(size=(20, 3)) / scales[:, None] / 10)
    actions = Categorical(observations @ params).sample(jax.random.key(0))
    problem = Problem(
        lambda params, observations: Categorical(observations @ params),
        lambda policy, batch: policy.log_prob(batch.actions) * batch.advantages,
        Batch(observations, actions, jnp.zeros(400), jnp.asarray(rng.normal(size=400))),
    )

    @functools.partial(fast_jit, static_argnums=1)
    def solve(params, groups):
        _, gradient = problem.value_and_gradient(params)
        fisher = jax.vmap(problem.fisher(params))(jnp.eye(60).reshape(60, 20, 3))
        cg = problem.natural_direction(
            params,
            gradient,
            damping=1e-4,
            cg_iterations=400,
            cg_tolerance=1e-9,
            preconditioner_groups=groups,
            make_preconditioner_fn=make_fn,
        )
        return cg, fisher.reshape(60, 60), gradient

    (plain, fisher, gradient), (cg, *_) = solve(params, 0), solve(params, 40)
    assert plain.status == cg.status == CGStatus.CONVERGED
    dense = np.linalg.solve(fisher + 1e-4 * np.eye(60), np.ravel(gradient))
    np.testing.assert_allclose(np.ravel(cg.x), dense, rtol=1e-4, atol=1e-6)
    assert cg.iterations < most * plain.iterations


def test_ten_products_reach_what_plain_ones_do_not(float64):
    """With eigenvalues spread over six decades, as those of a policy are."""
    rng = np.random.default_rng(0)
    scales = np.geomspace(30, 0.03, 40)
    observations = jnp.asarray(rng.normal(size=(400, 40)) * scales)
    actions = jnp.asarray(rng.integers(0, 3, 400))
    log_probs = jnp.full(400, -jnp.log(3))
    params = jnp.zeros((40, 3))
    problem = Problem(
        lambda params, observations: Categorical(observations @ params),
        lambda policy, batch: jnp.mean(policy.log_prob(batch.actions)),
        Batch(observations, actions, log_probs, jnp.zeros(400)),
    )

    @functools.partial(fast_jit, static_argnames=("groups", "max_iterations"))
    def solve(params, groups, max_iterations):
        _, gradient = problem.value_and_gradient(params)
        cg = conjugate_gradient(
            damped(problem.fisher(params), 1e-3),
            gradient,
            preconditioner_fn=problem.preconditioner(
                params, groups=groups, damping=1e-3
            ),
            max_iterations=max_iterations,
            tolerance=1e-8,
        )
        return cg, jnp.vdot(gradient, cg.x)

    (plain, most), (preconditioned, same) = (solve(params, n, 400) for n in (0, 64))
    assert plain.status == preconditioned.status == CGStatus.CONVERGED
    np.testing.assert_allclose(plain.x, preconditioned.x, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(same, most, rtol=1e-7)
    # gᵀx, of which half is what the quadratic model gains.
    assert solve(params, 0, 10)[1] < 0.7 * most
    assert solve(params, 64, 10)[1] > 0.85 * most


def update(policy_fn, params, batch, groups, **arguments):
    return trust_region_update(
        policy_fn,
        params,
        batch,
        preconditioner_groups=groups,
        cg_iterations=60,
        cg_tolerance=1e-10,
        line_search_width=1,
        **arguments,
    )


def test_an_update_and_its_derivatives_do_not_depend_on_it(float64):
    policy_fn, params, batch = make("gaussian", 24)

    @functools.partial(fast_jit, static_argnames="groups")
    def new_params(damping, groups):
        fn = functools.partial(update, policy_fn, batch=batch, groups=groups)

        def moved(damping):
            theta, info = fn(params, damping=damping, interpolate=False)
            return ravel_pytree(theta)[0], info.status

        return *moved(damping), jax.jacrev(lambda d: moved(d)[0])(damping)

    plain, preconditioned = new_params(0.1, 0), new_params(0.1, 6)
    chex.assert_trees_all_close(plain, preconditioned, rtol=1e-6, atol=1e-9)
    assert np.any(plain[2] != 0)


def test_more_groups_than_rows_are_refused(float64):
    policy_fn, params, batch = make("categorical")

    def trace(groups, fisher_batch=None):
        jax.eval_shape(
            lambda *problem: update(
                policy_fn, *problem, groups, fisher_batch=fisher_batch
            ),
            params,
            batch,
        )

    with pytest.raises(
        UsageError, match=r"14 groups .* above the 13 rows .*write fewer"
    ):
        trace(14)
    half = jax.tree.map(lambda leaf: leaf[::2], batch)
    with pytest.raises(UsageError, match=r"8 groups .* above the 7 rows"):
        trace(8, half)
    with pytest.raises(UsageError, match="groups=0 is not positive"):
        score_preconditioner(policy_fn, params, batch, groups=0, damping=0.1)
    with pytest.raises(UsageError, match="preconditioner_groups=-1 is negative"):
        trace(-1)


def test_one_dominant_direction_leaves_it_positive_definite():
    """In float32, where P⁻¹ is a difference of nearly equal numbers."""
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(2048, 8))
    params = jnp.zeros((8, 3))
    batch = Batch(
        None,
        jnp.asarray(rng.integers(0, 3, 2048)),
        jnp.full(2048, -jnp.log(3)),
        jnp.asarray(rng.normal(size=2048), jnp.float32),
    )

    @functools.partial(fast_jit, static_argnums=2)
    def gain(params, batch, groups):
        _, info = trust_region_update(
            lambda params, observations: Categorical(observations @ params),
            params,
            batch,
            preconditioner_groups=groups,
        )
        return info.cg_status, info.expected_improvement

    for offset in (300.0, 1e3, 1e4):
        moved = batch._replace(observations=jnp.float32(observations + offset))
        (_, plain), (status, gained) = gain(params, moved, 0), gain(params, moved, 32)
        assert status != CGStatus.NON_POSITIVE_CURVATURE
        np.testing.assert_allclose(gained, plain, rtol=1e-2)


@pytest.mark.parametrize(
    "make_fn",
    [score_preconditioner, diagonal_preconditioner, kronecker_preconditioner],
)
def test_without_scores_it_is_the_identity(make_fn, float64):
    policy_fn, params, batch = make("categorical")
    batch = batch._replace(actions=jnp.zeros((NUM_ROWS,), int))

    def one_action(params, observations):
        return Categorical(policy_fn(params, observations).logits[..., :1])

    for damping in (0.0, 0.1):
        same = precondition(make_fn, one_action, params, batch, params, damping)
        chex.assert_trees_all_close(same, params, rtol=1e-12)
