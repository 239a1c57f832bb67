import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trpo_jax
from trpo_jax.networks import orthogonal


@pytest.mark.parametrize("shape", [(8, 3), (3, 8), (5, 5), (4, 1), (1, 4)])
@pytest.mark.parametrize("scale", [1.0, 0.01, np.sqrt(2)])
def test_rows_or_columns_are_orthonormal_times_the_scale(shape, scale):
    matrix = orthogonal(scale)(jax.random.key(0), shape)
    assert matrix.shape == shape
    assert matrix.dtype == jnp.float32
    singular_values = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(singular_values, scale, rtol=1e-5)


def test_scale_and_shape_are_what_flax_takes():
    key = jax.random.key(0)
    plain = orthogonal(2.0)(key, (4, 3))
    np.testing.assert_array_equal(orthogonal(jnp.float32(2.0))(key, [4, 3]), plain)
    traced = jax.jit(lambda scale: orthogonal(scale)(key, (4, 3)))(2.0)
    np.testing.assert_allclose(traced, plain, rtol=1e-6)


@pytest.mark.parametrize("shape", [(96, 96), (200, 64)])
def test_it_is_the_factor_of_a_factorisation(shape):
    """Q of the QR factorisation whose R has a positive diagonal, which is unique."""
    key = jax.random.key(3)
    gaussian = np.asarray(jax.random.normal(key, shape), np.float64)
    q, r = np.linalg.qr(gaussian)
    matrix = orthogonal()(key, shape)
    np.testing.assert_allclose(matrix, q * np.sign(np.diag(r)), atol=1e-4)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(shape[1]), atol=2e-6)


def test_signs_and_directions_are_uniform():
    """Without a sign convention, a factorisation's corner has always one sign."""
    keys = jax.random.split(jax.random.key(0), 300)
    matrices = np.asarray(jax.lax.map(lambda k: orthogonal()(k, (3, 2)), keys))
    # Each entry of a uniform orthonormal 3 × 2 matrix has mean 0 and variance 1/3.
    np.testing.assert_allclose(matrices.mean(0), 0, atol=4 * np.sqrt(1 / 3 / 300))
    np.testing.assert_allclose((matrices**2).mean(0), 1 / 3, atol=0.08)
    np.testing.assert_allclose((matrices > 0).mean(0), 0.5, atol=4 * 0.5 / np.sqrt(300))


def test_another_key_is_another_matrix():
    matrices = [orthogonal()(jax.random.key(seed), (3, 3)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(matrices[0], matrices[1])
    assert not np.allclose(matrices[0], matrices[2])


@pytest.mark.parametrize("shape", [(4,), (3, 3, 2, 8)])
def test_only_matrices_are_orthogonal(shape):
    with pytest.raises(ValueError, match="write \\(inputs, outputs\\)"):
        orthogonal()(jax.random.key(0), shape)


VMAPPED = """
import jax, jax.numpy as jnp, numpy as np
from trpo_jax.networks import MLP, CategoricalHead, Policy

policy = Policy(MLP((64, 64)), CategoricalHead(2))
init = lambda key: policy.init(key, jnp.zeros((1, 4)))
keys = jax.random.split(jax.random.key(0), 64)
together = jax.jit(jax.vmap(init))(keys)
alone = jax.lax.map(init, keys)
# What is left of the last column of a square matrix magnifies rounding, up to some
# hundred times.
jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    together, alone,
)
print("equal")
"""


@pytest.mark.timeout(60)
def test_vmap_under_jit_ends_and_equals_a_loop():
    # A process of its own: LAPACK's batched factorisations can hang so that nothing
    # stops them.
    path = str(Path(trpo_jax.__file__).parents[1])
    finished = subprocess.run(
        [sys.executable, "-c", VMAPPED],
        capture_output=True,
        text=True,
        timeout=55,
        env={"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
    )
    assert finished.stdout == "equal\n", finished.stderr
