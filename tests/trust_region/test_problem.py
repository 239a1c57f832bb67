"""`Problem` against formulas over the whole batch, and other updates built on it."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import policies
import pytest
from compiling import fast_jit
from jax.flatten_util import ravel_pytree

from trpo_jax.trust_region import (
    DiagonalGaussian,
    Problem,
    conjugate_gradient,
    fisher_vector_product,
    gauss_newton_vector_product,
    mean_kl,
    natural_gradient_update,
    surrogate_terms,
    trust_region_step_size,
    trust_region_update,
    undamped_curvature,
)

NUM_ROWS = 12
OPERATORS = [gauss_newton_vector_product, fisher_vector_product]


def terms_of(policy, batch):
    log_probs = policy.log_prob(batch.actions)
    return surrogate_terms(log_probs, batch.log_probs, batch.advantages)


def make_problem(kind, num_rows=NUM_ROWS):
    rng = np.random.default_rng(0)
    params = policies.make_params(kind, rng)
    batch = policies.make_batch(kind, rng, params, num_rows)
    problem = Problem(
        policies.POLICIES[kind],
        terms_of,
        batch,
        fisher_batch=jax.tree.map(lambda leaf: leaf[::2], batch),
    )
    return problem, params


@pytest.mark.parametrize("kind", policies.ALL_KINDS)
def test_each_answer_is_the_formula_over_the_whole_batch(kind, float64):
    whole, params = make_problem(kind)
    moved = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(leaf), params)
    policy_fn, batch = whole.policy_fn, whole.batch

    @functools.partial(fast_jit, static_argnames="size")
    def answers(params, moved, size):
        problem = whole._replace(micro_batch_size=size)
        old, gradient = problem.value_and_gradient(params)
        products = [
            problem.fisher(params, operator_fn=operator_fn)(moved)
            for operator_fn in OPERATORS
        ]
        return old, gradient, products, problem.candidate(moved, old)

    @fast_jit
    def formulas(params, moved):
        def value(params):
            return terms_of(policy_fn(params, batch.observations), batch).mean()

        old, new = (policy_fn(p, batch.observations) for p in (params, moved))
        states = batch.observations[::2]
        thinned = policy_fn(params, states)
        gradient_of_kl = jax.grad(lambda p: mean_kl(thinned, policy_fn(p, states)))
        product = jax.jvp(gradient_of_kl, (params,), (moved,))[1]
        kl = old.kl_divergence(new)
        return {
            "at_old": (value(params), jnp.mean(old.entropy()), jax.grad(value)(params)),
            "product": product,
            "at_new": (value(moved), jnp.mean(kl), new.entropy().mean()),
            "by_row": (kl, terms_of(new, batch) - terms_of(old, batch)),
        }

    expected = formulas(params, moved)
    close = functools.partial(chex.assert_trees_all_close, rtol=1e-9, atol=1e-12)
    for size in (None, 5):
        old, gradient, products, candidate = answers(params, moved, size)
        close((old.value, old.entropy, gradient), expected["at_old"])
        for product in products:
            close(product, expected["product"])
        compared = candidate.evidence
        close((candidate.surrogate, candidate.kl, compared.entropy), expected["at_new"])
        close((compared.kl, compared.gains), expected["by_row"])
        assert candidate.finite


def test_theta_may_be_a_vector_that_params_are_linear_in(float64):
    problem, params = make_problem("gaussian")
    theta, params_of = ravel_pytree(params)
    by_vector = problem._replace(params_of=params_of)

    @fast_jit
    def of_vector(theta):
        old, gradient = by_vector.value_and_gradient(theta)
        product = by_vector.fisher(theta)(gradient)
        candidate = by_vector.candidate(theta + 0.1, old)
        return params_of(gradient), params_of(product), candidate

    @fast_jit
    def of_tree(params):
        old, gradient = problem.value_and_gradient(params)
        moved = jax.tree.map(lambda leaf: leaf + 0.1, params)
        candidate = problem.candidate(moved, old)
        return gradient, problem.fisher(params)(gradient), candidate

    chex.assert_trees_all_close(of_vector(theta), of_tree(params), rtol=1e-12)


def test_staying_is_no_improvement_and_a_bad_batch_is_not_finite(float64):
    problem, params = make_problem("categorical")

    @fast_jit
    def stay(batch):
        here = problem._replace(batch=batch)
        old, _ = here.value_and_gradient(params)
        return old, here.candidate(params, old)

    old, same = stay(problem.batch)
    assert same.surrogate == old.value
    assert abs(same.kl) < 1e-15
    for field in ("log_probs", "advantages"):
        spoiled = getattr(problem.batch, field).at[3].set(-jnp.inf)
        assert not stay(problem.batch._replace(**{field: spoiled}))[1].finite


# Relatives --------------------------------------------------------------------------


def truncated_natural_gradient(policy_fn, params, batch, *, max_kl, damping=0.1):
    """θ + √(2δ / xᵀFx) x with x ≈ (F + λI)⁻¹ ∇L: TRPO without its line search."""
    problem = Problem(policy_fn, terms_of, batch)
    old, gradient = problem.value_and_gradient(params)
    cg = problem.natural_direction(params, gradient, damping=damping)
    curvature = undamped_curvature(gradient, cg.x, damping)
    step_size = trust_region_step_size(curvature, max_kl=max_kl)
    moved = optax.tree.add_scale(params, step_size, cg.x)
    return moved, problem.candidate(moved, old)


@pytest.mark.parametrize("kind", policies.KINDS)
def test_an_update_of_ones_own_is_a_few_lines_on_the_problem(kind, float64):
    problem, params = make_problem(kind, num_rows=40)

    @fast_jit
    def both(params):
        inputs = (problem.policy_fn, params, problem.batch)
        shipped, info = natural_gradient_update(*inputs, max_kl=1e-4)
        return truncated_natural_gradient(*inputs, max_kl=1e-4), shipped, info.kl

    (own, candidate), shipped, kl = both(params)
    chex.assert_trees_all_close(own, shipped, rtol=1e-9)
    np.testing.assert_allclose(candidate.kl, kl, rtol=1e-7)


@pytest.mark.parametrize("kind", policies.KINDS)
def test_trpo_is_the_truncated_natural_gradient_cut_to_the_accepted_fraction(
    kind, float64
):
    problem, params = make_problem(kind, num_rows=40)

    @fast_jit
    def updates(params, max_kl):
        inputs = (problem.policy_fn, params, problem.batch)
        moved, unsearched = natural_gradient_update(*inputs, max_kl=max_kl)
        actual, info = trust_region_update(*inputs, max_kl=max_kl)
        change = optax.tree.sub(moved, params)
        expected = optax.tree.add_scale(params, info.accepted_fraction, change)
        return actual, expected, info, unsearched.kl

    for max_kl in (1e-4, 3.0):
        actual, expected, info, unsearched_kl = updates(params, max_kl)
        chex.assert_trees_all_close(actual, expected, rtol=1e-9)
        assert 0 < info.kl <= max_kl
        assert (unsearched_kl > info.kl) == (info.accepted_fraction < 1)


class Targets(NamedTuple):
    observations: jax.Array
    values: jax.Array


def test_a_critic_has_a_trust_region_too(float64):
    """V(s) is the mean of a Gaussian of fixed σ: its KL is half the mean square change.

    The Fisher information is the Gauss–Newton matrix of the squared error, so that one
    undamped step from a linear critic is the least-squares solution.
    """
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(30, 3)))
    targets = jnp.asarray(rng.normal(size=30))
    batch = Targets(features, targets)

    def value_fn(params, features):
        return DiagonalGaussian((features @ params)[:, None], jnp.zeros(1))

    def minus_squared_error(value, batch):
        return -0.5 * (value.mean[:, 0] - batch.values) ** 2

    problem = Problem(value_fn, minus_squared_error, batch)
    params = jnp.asarray(rng.normal(size=3))

    @fast_jit
    def take_step(params):
        old, gradient = problem.value_and_gradient(params)
        step = conjugate_gradient(problem.fisher(params), gradient, tolerance=1e-12).x
        return old, step, problem.candidate(params + step, old)

    old, step, candidate = take_step(params)
    solution = np.linalg.lstsq(features, targets, rcond=None)[0]
    np.testing.assert_allclose(params + step, solution, rtol=1e-9)
    np.testing.assert_allclose(candidate.kl, 0.5 * np.mean((features @ step) ** 2))
    assert candidate.surrogate > old.value
