"""Conjugate gradient against dense solutions, and its status when it fails."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from compiling import fast_jit

from trpo_jax.trust_region import CGStatus, conjugate_gradient

SIZE = 6


@partial(fast_jit, static_argnames=("max_iterations", "tolerance"))
def solve(matrix, b, max_iterations=10, tolerance=1e-10):
    return conjugate_gradient(
        lambda v: matrix @ v, b, max_iterations=max_iterations, tolerance=tolerance
    )


def positive_definite(rng, size=SIZE, smallest=0.1):
    factor = rng.normal(size=(size, size))
    return factor @ factor.T / size + smallest * np.eye(size)


def system(seed=0):
    rng = np.random.default_rng(seed)
    return positive_definite(rng), rng.normal(size=SIZE)


def rotation(rng):
    return np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]


@pytest.mark.parametrize("iterations", [1, 3, 5])
def test_every_iterate_is_the_references(iterations, float64):
    matrix, b = system()
    result = solve(matrix, b, iterations)
    x, count, residual = reference.conjugate_gradient(matrix, b, iterations, 1e-10)
    np.testing.assert_allclose(result.x, x, rtol=1e-9)
    assert result.iterations == count == iterations
    np.testing.assert_allclose(result.relative_residual, residual, rtol=1e-8)
    assert result.status == CGStatus.MAX_ITERATIONS


def test_exact_in_as_many_iterations_as_dimensions(float64):
    for seed in range(5):
        matrix, b = system(seed)
        result = solve(matrix, b)
        assert result.status == CGStatus.CONVERGED
        assert result.iterations <= SIZE
        np.testing.assert_allclose(result.x, np.linalg.solve(matrix, b), rtol=1e-8)


def test_as_many_iterations_as_distinct_eigenvalues(float64):
    basis = rotation(np.random.default_rng(1))
    for eigenvalues, distinct in (([1, 1, 1, 4, 4, 4], 2), ([1, 1, 2, 2, 9, 9], 3)):
        matrix = basis @ np.diag(eigenvalues) @ basis.T
        assert solve(matrix, np.ones(SIZE)).iterations == distinct


def test_running_out_of_iterations_reports_the_true_residual(float64):
    matrix, b = system(2)
    result = solve(matrix, b, 3)
    assert result.status == CGStatus.MAX_ITERATIONS
    expected = np.linalg.norm(b - matrix @ result.x) / np.linalg.norm(b)
    np.testing.assert_allclose(result.relative_residual, expected, rtol=1e-8)
    assert expected > 1e-3


def test_an_early_stop_is_the_best_of_its_krylov_space(float64):
    matrix, b = system(3)
    result = solve(matrix, b, 3)
    krylov = np.stack([np.linalg.matrix_power(matrix, k) @ b for k in range(3)], axis=1)
    weights = np.linalg.solve(krylov.T @ matrix @ krylov, krylov.T @ b)
    np.testing.assert_allclose(result.x, krylov @ weights, rtol=1e-7)


def test_stops_at_the_relative_tolerance(float64):
    matrix, b = system(4)
    result = solve(matrix, b, tolerance=0.1)
    assert result.status == CGStatus.CONVERGED
    residual = np.linalg.norm(b - matrix @ result.x) / np.linalg.norm(b)
    assert 1e-4 < residual <= 0.1
    earlier = reference.conjugate_gradient(matrix, b, int(result.iterations) - 1, 0.1)
    assert earlier[2] > 0.1


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_scaling_the_right_hand_side_scales_the_solution_and_nothing_else(scale):
    """By a power of two, so that not even the rounding differs."""
    matrix, b = (np.asarray(array, np.float32) for array in system(5))
    result, scaled = (
        solve(matrix, b, 4, 1e-5),
        solve(matrix, np.float32(scale) * b, 4, 1e-5),
    )
    np.testing.assert_array_equal(scaled.x, np.float32(scale) * result.x)
    chex.assert_trees_all_equal(scaled[1:], result[1:])


def test_a_zero_right_hand_side_has_the_zero_solution():
    matrix, _ = system()
    result = solve(matrix, np.zeros(SIZE))
    np.testing.assert_array_equal(result.x, np.zeros(SIZE))
    assert result.status == CGStatus.CONVERGED
    assert result.iterations == 0
    assert result.relative_residual == 0


def test_energy_identity_at_every_early_stop(float64):
    """xᵀAx = bᵀx, since the residual is orthogonal to x."""
    matrix, b = system(6)
    for iterations in (1, 3, 5, 10):
        x = np.asarray(solve(matrix, b, iterations).x)
        np.testing.assert_allclose(x @ matrix @ x, b @ x, rtol=1e-10)


def test_a_negative_operator_stops_at_zero():
    matrix, b = system()
    result = solve(-matrix, b)
    assert result.status == CGStatus.NON_POSITIVE_CURVATURE
    assert result.iterations == 0
    np.testing.assert_array_equal(result.x, np.zeros(SIZE))


def test_an_indefinite_operator_stops_at_the_last_good_x(float64):
    basis = rotation(np.random.default_rng(7))
    matrix = basis @ np.diag([5.0, 4.0, 3.0, 2.0, 1.0, -1.0]) @ basis.T
    b = basis @ np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.5])
    result = solve(matrix, b)
    x, count, residual = reference.conjugate_gradient(matrix, b, 10, 1e-10)
    assert result.status == CGStatus.NON_POSITIVE_CURVATURE
    assert 0 < count < SIZE
    assert result.iterations == count
    np.testing.assert_allclose(result.x, x, rtol=1e-8)
    np.testing.assert_allclose(result.relative_residual, residual, rtol=1e-8)


def test_a_null_direction_is_not_divided_by():
    matrix = np.diag([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    outside = solve(matrix, np.array([0.0, 0, 0, 1, 2, 3]))
    assert outside.status == CGStatus.NON_POSITIVE_CURVATURE
    np.testing.assert_array_equal(outside.x, np.zeros(SIZE))
    inside = solve(matrix, np.array([1.0, 2, 3, 0, 0, 0]))
    assert inside.status == CGStatus.CONVERGED
    np.testing.assert_allclose(inside.x, [1, 2, 3, 0, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_right_hand_side_that_is_not_finite(bad):
    matrix, b = system()
    b[2] = bad
    result = solve(matrix, b)
    assert result.status == CGStatus.NON_FINITE
    np.testing.assert_array_equal(result.x, np.zeros(SIZE))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_operator_that_is_not_finite(bad):
    matrix, b = system()
    matrix[2, 3] = bad
    result = solve(matrix, b)
    assert result.status == CGStatus.NON_FINITE
    np.testing.assert_array_equal(result.x, np.zeros(SIZE))


def test_an_operator_that_fails_later_leaves_the_last_good_x(float64):
    matrix, b = system(8)

    @fast_jit
    def solve_failing(b):
        def matvec(v):
            along_b = jnp.allclose(v / jnp.abs(v).max(), b / jnp.abs(b).max())
            return jnp.where(along_b, matrix @ v, jnp.nan)

        return conjugate_gradient(matvec, b)

    result = solve_failing(b)
    first, _, residual = reference.conjugate_gradient(matrix, b, 1, 1e-10)
    assert result.status == CGStatus.NON_FINITE
    assert result.iterations == 1
    np.testing.assert_allclose(result.x, first, rtol=1e-10)
    np.testing.assert_allclose(result.relative_residual, residual, rtol=1e-8)


def test_x_is_finite_whatever_the_numbers():
    """Random matrices of every magnitude, with NaNs and infinities in some."""
    rng = np.random.default_rng(9)
    count = 2_000
    matrices = rng.normal(size=(count, SIZE, SIZE))
    matrices = matrices + np.swapaxes(matrices, 1, 2)
    matrices *= 10.0 ** rng.uniform(-30, 30, (count, 1, 1))
    b = rng.normal(size=(count, SIZE)) * 10.0 ** rng.uniform(-30, 30, (count, 1))
    spoilt = rng.random((count, SIZE)) < 0.02
    b[spoilt] = rng.choice([np.nan, np.inf, -np.inf], spoilt.sum())
    matrices[::7, 0, 0] = np.nan
    matrices[3::7] = np.abs(matrices[3::7]) + np.eye(SIZE)
    result = jax.vmap(lambda matrix, b: solve(matrix, b, 3))(
        matrices.astype(np.float32), b.astype(np.float32)
    )
    assert np.all(np.isfinite(result.x))
    assert set(np.unique(result.status)) == set(map(int, CGStatus))


def test_a_pytree_is_solved_as_its_flat_vector(float64):
    matrix, b = system(10)

    @fast_jit
    def solve_tree(tree):
        def matvec(tree):
            flat = jnp.concatenate([tree["a"].ravel(), tree["b"]])
            product = matrix @ flat
            return {"a": product[:4].reshape(2, 2), "b": product[4:]}

        return conjugate_gradient(matvec, tree, max_iterations=4, tolerance=1e-10)

    tree = solve_tree({"a": b[:4].reshape(2, 2), "b": b[4:]})
    flat = solve(matrix, b, 4)
    np.testing.assert_allclose(tree.x["a"].ravel(), flat.x[:4], rtol=1e-10)
    np.testing.assert_allclose(tree.x["b"], flat.x[4:], rtol=1e-10)
    assert (tree.iterations, tree.status) == (flat.iterations, flat.status)


def test_vmap_is_a_loop_though_each_stops_elsewhere(float64):
    rng = np.random.default_rng(11)
    matrices = np.stack(
        [
            np.eye(SIZE),
            positive_definite(rng),
            positive_definite(rng, smallest=1e-4),
            -np.eye(SIZE),
            np.full((SIZE, SIZE), np.nan),
        ]
    )
    b = rng.normal(size=(5, SIZE))
    together = jax.vmap(solve, in_axes=(0, 0, None, None))(matrices, b, 10, 1e-6)
    for n in range(5):
        alone = solve(matrices[n], b[n], 10, 1e-6)
        single = jax.tree.map(lambda leaf, n=n: leaf[n], together)
        chex.assert_trees_all_close(single, alone, rtol=1e-6, atol=1e-9)
    assert len(set(np.asarray(together.iterations))) >= 3
    assert len(set(np.asarray(together.status))) == 3


def test_eager_agrees_and_a_second_call_compiles_nothing(float64):
    def from_right_hand_side(b):
        return conjugate_gradient(lambda v: jnp.arange(1.0, SIZE + 1) * v, b)

    b = jnp.asarray(system(12)[1])
    chex.clear_trace_counter()
    compiled = fast_jit(chex.assert_max_traces(from_right_hand_side, n=1))
    compiled(2 * b)
    chex.assert_trees_all_close(
        compiled(b), from_right_hand_side(b), rtol=1e-9, atol=1e-12
    )


def test_the_forward_derivative_is_the_solution_for_the_tangent(float64):
    """x is linear in b once converged; reverse mode stops at the loop."""
    matrix, b = system(13)
    _, tangent = system(14)
    _, derivative = jax.jvp(lambda b: solve(matrix, b).x, (b,), (tangent,))
    np.testing.assert_allclose(derivative, np.linalg.solve(matrix, tangent), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_scale_of_b_changes_nothing_else(scale):
    """Squares of the first and the last are not float32s, nor those of cotangents."""
    matrix, b = (jnp.asarray(one, jnp.float32) for one in system(5))

    @fast_jit
    def outcome(b):
        result = conjugate_gradient(lambda v: matrix @ v, b)
        total, transpose = jax.vjp(
            lambda b: conjugate_gradient(lambda v: matrix @ v, b).x, b
        )
        return result, transpose(b)[0], total

    result, pulled_back, _ = outcome(scale * b)
    expected, same, _ = outcome(b)
    assert result.iterations == expected.iterations
    np.testing.assert_allclose(result.x / scale, expected.x, rtol=1e-4)
    np.testing.assert_allclose(pulled_back / scale, same, rtol=1e-4)


@partial(fast_jit, static_argnames=("max_iterations", "tolerance"))
def precondition_and_solve(matrix, inverse, b, max_iterations, tolerance=1e-10):
    return conjugate_gradient(
        lambda v: matrix @ v,
        b,
        preconditioner_fn=lambda r: inverse @ r,
        max_iterations=max_iterations,
        tolerance=tolerance,
    )


@pytest.mark.parametrize("iterations", [1, 3, 5])
def test_preconditioned_iterates_are_those_of_the_transformed_system(
    iterations, float64
):
    """With P = L Lᵀ: L⁻¹ A L⁻ᵀ y = L⁻¹ b and x = L⁻ᵀ y."""
    matrix, b = system(4)
    p = positive_definite(np.random.default_rng(5))
    left = np.linalg.inv(np.linalg.cholesky(p))
    y, _, _ = reference.conjugate_gradient(
        left @ matrix @ left.T, left @ b, iterations, 1e-30
    )
    result = precondition_and_solve(matrix, np.linalg.inv(p), b, iterations)
    np.testing.assert_allclose(result.x, left.T @ y, rtol=1e-8)
    residual = np.linalg.norm(b - matrix @ result.x) / np.linalg.norm(b)
    np.testing.assert_allclose(result.relative_residual, residual, rtol=1e-8)
    # As x comes from zero.
    np.testing.assert_allclose(result.x @ matrix @ result.x, b @ result.x, rtol=1e-8)


def test_an_exact_preconditioner_leaves_one_iteration(float64):
    matrix, b = system(6)
    result = precondition_and_solve(matrix, 7 * np.linalg.inv(matrix), b, 10)
    assert (result.status, result.iterations) == (CGStatus.CONVERGED, 1)
    np.testing.assert_allclose(result.x, np.linalg.solve(matrix, b), rtol=1e-9)


@pytest.mark.parametrize(
    ("inverse", "status"),
    [
        (-np.eye(SIZE), CGStatus.NON_POSITIVE_CURVATURE),
        (np.full((SIZE, SIZE), np.nan), CGStatus.NON_FINITE),
    ],
)
def test_a_bad_preconditioner_stops_at_the_last_good_x(inverse, status, float64):
    matrix, b = system(7)
    result = precondition_and_solve(matrix, inverse, b, 10)
    assert (result.status, result.iterations) == (status, 0)
    np.testing.assert_array_equal(result.x, 0)


def test_derivatives_do_not_depend_on_the_preconditioner(float64):
    matrix, b = system(8)
    inverse = np.linalg.inv(positive_definite(np.random.default_rng(9)))

    def solution(matrix, b, inverse):
        return conjugate_gradient(
            lambda v: matrix @ v, b, preconditioner_fn=lambda r: inverse @ r
        ).x

    for derivative in (jax.jacfwd, jax.jacrev):
        differentiate = fast_jit(derivative(solution, (0, 1, 2)))
        by_matrix, by_b, by_inverse = differentiate(matrix, b, inverse)
        dense = np.linalg.inv(matrix)
        np.testing.assert_allclose(by_b, dense, rtol=1e-7)
        x = dense @ b
        expected = -np.einsum("ij,k->ijk", dense, x)
        np.testing.assert_allclose(by_matrix, expected, rtol=1e-6, atol=1e-9)
        np.testing.assert_array_equal(by_inverse, 0)


@pytest.mark.parametrize(
    ("value", "dtype"), [(3e38, np.float32), (1e-37, np.float32), (1.4, np.float16)]
)
def test_the_largest_and_the_smallest_numbers_are_solved(value, dtype):
    b = jnp.full(20_000, value, dtype)
    result = conjugate_gradient(lambda v: v, b)
    assert result.status == CGStatus.CONVERGED
    np.testing.assert_allclose(result.x, b, rtol=1e-3)
