import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit

from trpo_jax.training.packing import pack

B, T = 3, 5
TREE = {
    "flags": jnp.array([True, False, True]),
    "counts": jnp.array([2**24 + 1, 2**31 - 1, -(2**31)]),
    "floats": jnp.array([[1.5, jnp.nan], [-jnp.inf, 0.0], [1e-38, 3e38]]),
    "images": jnp.ones((B, 4, 4, 3)),
    "bytes": jnp.arange(B, dtype=jnp.uint8),
    "ints": jnp.full((B, 2), 2**31 - 1),
    "nothing": (),
}


def test_what_is_packed_comes_back_bit_for_bit():
    packed = pack(TREE)
    assert packed.packed.shape == (B, 1 + 2 + 2 + 4)
    assert len(packed.others) == 2  # too large, or of another type
    chex.assert_trees_all_equal(packed.unpack(), TREE)
    chex.assert_trees_all_equal_dtypes(packed.unpack(), TREE)


def test_it_is_stacked_by_a_scan_under_vmap():
    def one(scale):
        def body(carry, t):
            tree = jax.tree.map(lambda leaf: leaf * t.astype(leaf.dtype), TREE)
            return carry * scale, pack(tree)

        return jax.lax.scan(body, scale, jnp.arange(T))[1].unpack()

    stacked = fast_jit(jax.vmap(one))(jnp.ones(2))
    assert stacked["images"].shape == (2, T, B, 4, 4, 3)
    np.testing.assert_array_equal(
        stacked["counts"][1, :, 0], (2**24 + 1) * np.arange(T)
    )
    assert stacked["flags"].dtype == bool


@pytest.mark.parametrize("name", ["floats", "images"])
def test_derivatives_pass_through(name):
    tree = {"floats": jnp.ones((B, 2)), "images": jnp.ones((B, 50))}

    def loss(x):
        leaf = pack(tree | {name: x}).unpack()[name]
        return jnp.sum(leaf**2)

    gradient = jax.grad(loss)(3 * tree[name])
    np.testing.assert_array_equal(gradient, 6 * tree[name])
