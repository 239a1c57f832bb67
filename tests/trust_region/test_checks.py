"""Arguments of a wrong type or size are named; counts may have any number type."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import policies
import pytest
from flax import nnx

from trpo_jax.networks import (
    MLP,
    CategoricalHead,
    Policy,
    as_network,
    init_network,
)
from trpo_jax.trust_region import (
    Categorical,
    conjugate_gradient,
    trust_region_update,
)
from trpo_jax.trust_region.checks import whole

pytestmark = pytest.mark.usefixtures("no_shape_checks")

RNG = np.random.default_rng(0)
PARAMS = policies.make_params("categorical", RNG, jnp.float32)
BATCH = policies.make_batch("categorical", RNG, PARAMS, 6, jnp.float32)


class Actor(nnx.Module):
    def __init__(self):
        self.linear = nnx.Linear(policies.FEATURES, 3, rngs=nnx.Rngs(0))

    def __call__(self, observations):
        return Categorical(self.linear(observations))


MODULES = (Policy(MLP((2,)), CategoricalHead(3)), Actor())


def update(policy_fn=policies.categorical, params=PARAMS, batch=BATCH, **options):
    return trust_region_update(policy_fn, params, batch, **options)


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ({"policy_fn": MODULES[0]}, r"a Policy.*as_network\(module\)\.apply"),
        ({"policy_fn": MODULES[1]}, r"an Actor.*as_network\(module\)\.apply"),
        ({"policy_fn": None}, "policy_fn is None; write a function"),
        ({"policy_fn": lambda params, x: Categorical}, "returned the class Categor"),
        ({"batch": tuple(BATCH)}, r"batch is a tuple .*write .*Batch\(observations, "),
        ({"batch": BATCH._asdict()}, r"batch is a dict .*write .*Batch\(observations"),
        ({"batch": None}, "batch is None"),
        ({"max_kl": None}, "max_kl is None; write one number"),
        ({"max_kl": "0.01"}, "max_kl is the str '0.01'; write one number"),
        ({"max_kl": np.array([0.01])}, r"max_kl is an array float64\[1\]; write one"),
        ({"damping": jnp.ones(2)}, r"damping is an array float32\[2\]; write one"),
        ({"cg_iterations": "3"}, "iterations is the str '3'"),
        ({"entropy_coefficient": [0.0]}, "entropy_coefficient is a list"),
        ({"fisher_batch": tuple(BATCH)}, r"batch is a tuple .*write .*Batch\("),
        ({"preconditioner_groups": 1.5}, "groups is the float 1.5; write a whole"),
        ({"micro_batch_size": "all"}, "size is the str 'all'; write a whole"),
    ],
)
def test_arguments_of_the_wrong_type_are_named(arguments, advice):
    with pytest.raises(TypeError, match=advice):
        jax.eval_shape(lambda: update(**arguments))


@pytest.mark.parametrize("module", MODULES, ids=["linen", "nnx"])
def test_a_module_is_updated_by_the_apply_of_its_network(module):
    """The error about a module in place of a function advises this."""
    network = as_network(module)
    params = init_network(network, jax.random.key(0), BATCH.observations)
    new, _ = jax.eval_shape(lambda: update(network.apply, params))
    assert jax.tree.structure(new) == jax.tree.structure(params)


@pytest.mark.parametrize("two", [2, 2.0, np.int64(2), np.array(2), jnp.int32(2)])
def test_counts_are_whole_numbers_of_any_type(two):
    assert type(whole("count", two)) is int
    counts = ("cg_iterations", "micro_batch_size", "max_backtracks")
    jax.eval_shape(lambda: update(**dict.fromkeys(counts, two), line_search_width=two))


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (2**31, "write at most 2147483647"),
        (0, "at least 1"),
        (-1.0, "write at least 1"),
    ],
)
def test_counts_fit_an_int32(value, advice):
    with pytest.raises(ValueError, match=advice):
        whole("count", value)
    assert whole("count", 2**31 - 1) == 2**31 - 1
    assert whole("count", -1, least=None) == -1
    assert whole("count", 2**31, most=2**32) == 2**31


def test_a_traced_count_is_named_as_an_array():
    with pytest.raises(TypeError, match=r"count is an array int32\[\]; write a whole"):
        jax.jit(lambda count: whole("count", count))(3)


def test_a_matrix_in_place_of_its_product_is_refused():
    matrix, b = 2 * jnp.eye(3), jnp.ones(3)
    with pytest.raises(TypeError, match="write a function, as lambda v: A @ v"):
        conjugate_gradient(matrix, b)
    x = conjugate_gradient(lambda v: matrix @ v, b).x  # as advised
    np.testing.assert_allclose(x, 0.5, rtol=1e-6)


def test_an_update_promotes_no_types():
    """JAX's switch against promotions raises no false alarm."""

    def summed(params):
        new, info = update(params=params, fisher_batch=BATCH, micro_batch_size=4)
        return optax.tree.norm(new) + info.kl

    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(jax.grad(summed), PARAMS)
