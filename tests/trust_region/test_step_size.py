"""The step length: where the quadratic model of the KL reaches δ, exactly."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit

from trpo_jax.trust_region import (
    conjugate_gradient,
    damped_curvature,
    trust_region_step_size,
    undamped_curvature,
)

SIZE = 6


@partial(fast_jit, static_argnames="iterations")
def natural_step(matrix, gradient, damping, max_kl, iterations=10):
    """x, both curvatures and both step lengths of one damped system."""
    cg = conjugate_gradient(
        lambda v: matrix @ v + damping * v,
        gradient,
        max_iterations=iterations,
        tolerance=1e-10,
    )
    undamped = undamped_curvature(gradient, cg.x, damping)
    damped = damped_curvature(gradient, cg.x, damping)
    lengths = [trust_region_step_size(c, max_kl=max_kl) for c in (undamped, damped)]
    return cg.x, (undamped, damped), lengths


def system(seed=0, decay=1.0):
    """A Fisher matrix with a spectrum 1, 10^-decay, 100^-decay, … and a gradient."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    spectrum = 10.0 ** (-decay * np.arange(SIZE))
    return basis @ np.diag(spectrum) @ basis.T, rng.normal(size=SIZE)


@pytest.mark.parametrize("iterations", [1, 2, 4, 10])
@pytest.mark.parametrize("damping", [0.0, 0.001, 0.1])
def test_the_quadratic_model_reaches_the_radius(iterations, damping, float64):
    """Whatever the damping, and also where conjugate gradient stopped early."""
    matrix, gradient = system(decay=0.5)
    x, _, (length, _) = natural_step(matrix, gradient, damping, 0.01, iterations)
    model = 0.5 * length**2 * (x @ matrix @ x)
    np.testing.assert_allclose(model, 0.01, rtol=1e-9)


def test_undamped_curvature_needs_no_further_product(float64):
    matrix, gradient = system(1, decay=0.5)
    for iterations in (1, 2, 4, 10):
        x, (undamped, damped), _ = natural_step(matrix, gradient, 0.1, 0.01, iterations)
        np.testing.assert_allclose(undamped, x @ matrix @ x, rtol=1e-10)
        np.testing.assert_allclose(damped, x @ matrix @ x + 0.1 * (x @ x), rtol=1e-10)


def test_to_rounding_in_single_precision():
    matrix, gradient = system(2, decay=0.5)
    arguments = [np.asarray(array, np.float32) for array in (matrix, gradient)]
    x, _, (length, _) = natural_step(*arguments, 0.1, 0.01)
    x = np.asarray(x, np.float64)
    model = 0.5 * float(length) ** 2 * (x @ arguments[0].astype(np.float64) @ x)
    np.testing.assert_allclose(model, 0.01, rtol=1e-4)


def test_the_damped_length_falls_short_of_the_radius(float64):
    matrix, gradient = system(3)
    reached = []
    for damping in (0.0, 0.001, 0.1):
        x, _, (_, length) = natural_step(matrix, gradient, damping, 0.01)
        reached.append(float(0.5 * length**2 * (x @ matrix @ x)) / 0.01)
        curvature = x @ matrix @ x
        expected = curvature / (curvature + damping * (x @ x))
        np.testing.assert_allclose(reached[-1], expected, rtol=1e-6)
    np.testing.assert_allclose(reached[0], 1, rtol=1e-6)
    assert max(reached[1:]) < 0.9


def test_scaling_the_gradient_scales_x_and_not_the_step(float64):
    matrix, gradient = system(4, decay=0.5)
    x, _, lengths = natural_step(matrix, gradient, 0.1, 0.01)
    for scale in (1e-3, 1e3):
        scaled_x, _, scaled = natural_step(matrix, scale * gradient, 0.1, 0.01)
        for length, scaled_length in zip(lengths, scaled, strict=True):
            np.testing.assert_allclose(scaled_length * scaled_x, length * x, rtol=1e-10)


@pytest.mark.parametrize("curvature", [0.0, -1.0, np.nan, np.inf, -np.inf])
def test_no_usable_curvature_is_no_step(curvature):
    length_at = partial(trust_region_step_size, max_kl=0.01)
    length, slope = jax.value_and_grad(length_at)(jnp.float32(curvature))
    assert length == 0
    assert slope == 0


def test_known_values_and_their_slope(float64):
    curvatures = jnp.array([0.02, 2.0, 200.0])
    length_at = partial(trust_region_step_size, max_kl=0.01)
    np.testing.assert_allclose(jax.vmap(length_at)(curvatures), [1, 0.1, 0.01])
    slopes = jax.vmap(jax.grad(length_at))(curvatures)
    np.testing.assert_allclose(slopes, -0.5 * np.sqrt(0.02) * curvatures**-1.5)
    for curvature in curvatures:
        np.testing.assert_allclose(length_at(curvature), np.sqrt(0.02 / curvature))


@pytest.mark.parametrize("curvature_fn", [undamped_curvature, damped_curvature])
def test_curvature_of_a_pytree_is_its_flat_vectors(curvature_fn, float64):
    rng = np.random.default_rng(5)
    gradient, x = map(jnp.asarray, rng.normal(size=(2, SIZE)))

    def at(gradient, x):
        tree = [{"a": flat[:4].reshape(2, 2), "b": flat[4:]} for flat in (gradient, x)]
        return curvature_fn(*tree, 0.3)

    expected = gradient @ x
    if curvature_fn is undamped_curvature:
        expected -= 0.3 * (x @ x)
    np.testing.assert_allclose(at(gradient, x), expected, rtol=1e-12)
    chex.clear_trace_counter()
    compiled = fast_jit(chex.assert_max_traces(at, n=1))
    compiled(x, gradient)
    np.testing.assert_allclose(compiled(gradient, x), expected, rtol=1e-12)
    stacked = jax.vmap(at)(jnp.stack([gradient, x]), jnp.stack([x, gradient]))
    np.testing.assert_allclose(stacked[0], expected, rtol=1e-12)
    gradients = jax.grad(at, argnums=(0, 1))(gradient, x)
    np.testing.assert_allclose(gradients[0], x, rtol=1e-12)
    assert np.all(np.isfinite(gradients[1]))
