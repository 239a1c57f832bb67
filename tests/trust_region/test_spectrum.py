"""The spectrum from conjugate gradient and from probes, against dense eigenvalues."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit

from trpo_jax.errors import UsageError
from trpo_jax.trust_region import (
    conjugate_gradient,
    effective_dimension,
    lanczos_tridiagonal,
    ritz_values,
)

EIGENVALUES = np.array([0.0, 0.01, 0.1, 0.5, 1.0, 3.0, 9.0])
SIZE, DAMPING, MOST = len(EIGENVALUES), 0.2, 9


def make_system():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    return basis, basis * EIGENVALUES @ basis.T, rng.normal(size=SIZE)


def _solve(matrix, b, max_iterations=MOST, tolerance=1e-9):
    cg = conjugate_gradient(
        lambda v: matrix @ v + DAMPING * v,
        b,
        max_iterations=max_iterations,
        tolerance=tolerance,
    )
    ritz = ritz_values(cg)
    derived = ritz.condition_number, ritz.effective_dimension(DAMPING)
    return cg, lanczos_tridiagonal(cg), ritz, derived


solve = fast_jit(_solve, static_argnames=("max_iterations", "tolerance"))


def test_a_converged_solve_has_the_eigenvalues_and_the_weights_of_b(float64):
    basis, matrix, b = make_system()
    cg, _, ritz, (condition, dimension) = solve(matrix, b)
    assert cg.iterations == ritz.iterations == SIZE
    np.testing.assert_allclose(ritz.values[:SIZE], EIGENVALUES + DAMPING, rtol=1e-8)
    np.testing.assert_allclose(ritz.weights[:SIZE], (basis.T @ b) ** 2 / (b @ b))
    # Places that were not filled.
    np.testing.assert_array_equal(ritz.values[SIZE:], ritz.values[SIZE - 1])
    np.testing.assert_array_equal(ritz.weights[SIZE:], 0)
    np.testing.assert_allclose(condition, 9.2 / 0.2, rtol=1e-8)
    expected = np.sum(EIGENVALUES / (EIGENVALUES + DAMPING))
    np.testing.assert_allclose(dimension, expected, rtol=1e-8)


def test_a_shorter_solve_is_the_projection_on_its_krylov_space(float64):
    """T is QᵀAQ of the Lanczos vectors, and the estimates are lower bounds."""
    _, matrix, b = make_system()
    whole = matrix + DAMPING * np.eye(SIZE)
    _, (diagonal, off_diagonal), ritz, (condition, dimension) = solve(matrix, b, 4)
    krylov = np.stack([np.linalg.matrix_power(whole, k) @ b for k in range(4)], axis=1)
    q = np.linalg.qr(krylov)[0]
    projected = q.T @ whole @ q
    np.testing.assert_allclose(diagonal, np.diag(projected), rtol=1e-8)
    np.testing.assert_allclose(off_diagonal, abs(np.diag(projected, 1)), rtol=1e-8)
    np.testing.assert_allclose(ritz.values, np.linalg.eigvalsh(projected), rtol=1e-8)
    # Of degree 7 = 2n − 1.
    moment = b @ np.linalg.matrix_power(whole, 7) @ b / (b @ b)
    np.testing.assert_allclose(ritz.weights @ ritz.values**7, moment, rtol=1e-8)
    assert 1 < condition < 9.2 / 0.2
    assert 0 < dimension < np.sum(EIGENVALUES / (EIGENVALUES + DAMPING))


def test_coefficients_stop_where_the_iteration_does(float64):
    """With three distinct eigenvalues three iterations suffice."""
    matrix = jnp.diag(jnp.array([1.0, 1, 1, 2, 2, 5, 5]))
    cg, (diagonal, off_diagonal), ritz, _ = solve(matrix, np.ones(SIZE), 9, 1e-10)
    assert cg.iterations == 3
    np.testing.assert_array_equal(cg.alphas[3:], 0)
    np.testing.assert_array_equal(diagonal[3:], 0)
    np.testing.assert_array_equal(off_diagonal[2:], 0)
    np.testing.assert_allclose(ritz.values[:3], [1.2, 2.2, 5.2])
    np.testing.assert_allclose(ritz.weights[:3], np.array([3, 2, 2]) / 7)


def test_a_preconditioned_solve_has_the_spectrum_of_the_preconditioned_matrix(float64):
    _, matrix, b = make_system()
    whole = matrix + DAMPING * np.eye(SIZE)
    scales = np.linspace(1, 3, SIZE)
    ritz = ritz_values(
        conjugate_gradient(
            lambda v: whole @ v,
            jnp.asarray(b),
            preconditioner_fn=lambda r: r / scales,
            max_iterations=SIZE,
            tolerance=1e-12,
        )
    )
    expected = np.linalg.eigvalsh(whole / np.sqrt(np.outer(scales, scales)))
    np.testing.assert_allclose(ritz.values, expected, rtol=1e-6)


def test_vmap_is_the_loop(float64):
    _, matrix, _ = make_system()
    several = np.random.default_rng(1).normal(size=(3, SIZE))
    values, weights, _ = fast_jit(jax.vmap(lambda b: _solve(matrix, b, 4)[2]))(several)
    for lane, b in enumerate(several):
        ritz = solve(matrix, b, 4)[2]
        np.testing.assert_allclose(values[lane], ritz.values, rtol=1e-8)
        np.testing.assert_allclose(weights[lane], ritz.weights, rtol=1e-6)


def test_coefficients_that_nobody_uses_are_not_in_the_program():
    """The same instructions as of a solve that does not record them."""

    def loops(keep):
        def program(matrix, b):
            cg = conjugate_gradient(lambda v: matrix @ v, b, max_iterations=77)
            return cg if keep else (cg.x, cg.iterations)

        lowered = jax.jit(program).lower(jnp.eye(3), jnp.ones(3))
        return lowered.compile().as_text()

    assert "f32[77]" in loops(keep=True)
    assert "[77]" not in loops(keep=False)


def test_probes_estimate_the_effective_dimension(float64):
    _, matrix, _ = make_system()
    like = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}

    def matvec(tree):
        flat = matrix @ jnp.concatenate([tree["a"], tree["b"].ravel()])
        return {"a": flat[:3], "b": flat[3:].reshape(2, 2)}

    estimate = fast_jit(
        functools.partial(
            effective_dimension, matvec, like, probes=200, iterations=SIZE
        )
    )
    value, error = estimate(jax.random.key(0), damping=DAMPING)
    expected = np.sum(EIGENVALUES / (EIGENVALUES + DAMPING))
    assert abs(value - expected) < 3 * error < 0.5
    # Without correlations each probe of signs is exact.
    identity = effective_dimension(
        lambda tree: tree, like, jax.random.key(0), damping=0.25, probes=1
    )
    np.testing.assert_allclose(identity, (7 / 1.25, 0), rtol=1e-8)


@pytest.mark.parametrize(
    "wrong", [{"damping": 0.0}, {"probes": 0}, {"iterations": 0}], ids=str
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match=f"{next(iter(wrong))}=0"):
        effective_dimension(
            lambda v: v, jnp.ones(3), jax.random.key(0), **{"damping": 0.1} | wrong
        )
