"""Derivatives through a solve, a search and a whole update, in both modes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import policies
import pytest
from compiling import fast_jit

from trpo_jax.trust_region import (
    Candidate,
    conjugate_gradient,
    fisher_vector_product,
    gauss_newton_vector_product,
    line_search,
    trust_region_update,
)


def test_a_solution_is_differentiated_as_a_dense_solve_is(float64):
    rng = np.random.default_rng(0)
    root, b = rng.normal(size=(5, 5)), rng.normal(size=5)

    def matrix(root):
        return root @ root.T + jnp.eye(5)

    def by_products(root, b):
        matvec = partial(jnp.matmul, matrix(root))
        return conjugate_gradient(matvec, b, max_iterations=20, tolerance=1e-14).x

    def dense(root, b):
        return jnp.linalg.solve(matrix(root), b)

    for jacobian in (jax.jacrev, jax.jacfwd):
        for actual, expected in zip(
            fast_jit(jacobian(by_products, (0, 1)))(root, b),
            fast_jit(jacobian(dense, (0, 1)))(root, b),
            strict=True,
        ):
            np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


def test_a_solution_is_differentiated_under_vmap(float64):
    scales, b = jnp.array([1.0, 2.0, 4.0]), jnp.array([3.0, -1.0])

    def total(scale, b):
        return conjugate_gradient(lambda v: scale * v, b).x.sum()

    slopes = fast_jit(jax.vmap(jax.grad(total), (0, None)))(scales, b)
    np.testing.assert_allclose(slopes, -2.0 / scales**2, rtol=1e-12)


def test_no_residual_and_no_iterations_are_differentiated(float64):
    def residual(b):
        return conjugate_gradient(lambda v: 2.0 * v, b).relative_residual

    np.testing.assert_array_equal(jax.grad(residual)(jnp.ones(3)), np.zeros(3))


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize(("max_kl", "fraction"), [(1.0, 0.5), (1e-9, 0.0)])
def test_the_chosen_candidate_is_differentiated_at_its_fraction(
    width, max_kl, fraction, float64
):
    """If none is acceptable, the last one tried comes back, here at 2⁻³."""

    def search(slope):
        def evaluate(fraction):
            kl = (slope * fraction) ** 2
            return Candidate(slope * fraction, kl, jnp.array(True), slope**3)

        return line_search(
            evaluate,
            surrogate_old=jnp.zeros(()),
            max_kl=max_kl,
            max_backtracks=4,
            interpolate=False,
            width=width,
        )

    assert search(1.5).fraction == fraction
    seen = fraction or 0.125

    def evidence(slope):
        candidate = search(slope).candidate
        return candidate.surrogate, candidate.kl, candidate.evidence

    for jacobian in (jax.jacrev, jax.jacfwd):
        actual = fast_jit(jacobian(evidence))(1.5)
        expected = seen, 2 * 1.5 * seen**2, 3 * 1.5**2
        np.testing.assert_allclose(actual, expected, rtol=1e-12)
        assert jacobian(lambda slope: search(slope).fraction)(1.5) == 0


@pytest.mark.parametrize(
    ("kind", "operator_fn", "size"),
    [
        ("multi_categorical", gauss_newton_vector_product, None),
        ("gaussian", gauss_newton_vector_product, 3),
        ("categorical", fisher_vector_product, 3),
        ("gaussian", fisher_vector_product, None),
    ],
)
def test_an_update_is_differentiated_as_finite_differences_say(
    kind, operator_fn, size, float64
):
    """In its numbers, its batch and the parameters that it starts from, at once.

    A step shorter than usual, by √2, ends well inside of the trust region, so that the
    accepted fraction is the same nearby.
    """
    rng = np.random.default_rng(1)
    params = policies.make_params(kind, rng)
    batch = policies.make_batch(kind, rng, params, 8)

    def outcome(params, advantages, max_kl, damping, entropy_coefficient):
        new, info = trust_region_update(
            policies.POLICIES[kind],
            params,
            batch._replace(advantages=advantages),
            max_kl=max_kl,
            damping=damping,
            entropy_coefficient=entropy_coefficient,
            cg_iterations=60,
            cg_tolerance=1e-13,
            step_size_curvature_fn=lambda g, x, damping: 2 * jnp.vdot(g, x),
            interpolate=False,
            operator_fn=operator_fn,
            micro_batch_size=size,
        )
        moved = sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(new))
        return moved + info.kl + info.surrogate_after + info.entropy

    point = (params, batch.advantages, 0.01, 0.2, 0.1)
    direction = jax.tree.map(lambda leaf: jnp.cos(17 * jnp.asarray(leaf)), point)

    @fast_jit
    def slopes(point, direction):
        value, forward = jax.jvp(outcome, point, direction)
        gradient = jax.grad(outcome, argnums=range(5))(*point)
        return value, forward, optax.tree.vdot(gradient, direction)

    step = 1e-5
    (ahead, *_), (behind, *_) = (
        slopes(optax.tree.add_scale(point, sign * step, direction), direction)
        for sign in (1, -1)
    )
    _, forward, reverse = slopes(point, direction)
    np.testing.assert_allclose(forward, (ahead - behind) / (2 * step), rtol=1e-5)
    np.testing.assert_allclose(reverse, forward, rtol=1e-9)
