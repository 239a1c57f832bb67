"""Some rows at a time: the same as all at once, and no more than that in memory."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import policies
import pytest
from compiling import fast_jit

from trpo_jax import UpdateStatus
from trpo_jax.trust_region import (
    DiagonalGaussian,
    gauss_newton_vector_product,
    micro_batched,
    trust_region_update,
)

NUM_ROWS = 12


OPERATORS = [gauss_newton_vector_product, policies.hessian_operator]


def moments(rows):
    x, shift = rows
    shifted = x + shift
    means = {"mean": jnp.mean(shifted), "product": shifted.T @ shifted / len(x)}
    return means, (shifted**2, shift)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 11, 12, 100, None])
def test_every_size_gives_the_means_and_the_results_of_the_whole(size):
    x = jax.random.normal(jax.random.key(0), (12, 3))
    rows = (x, jnp.array([1.0, -2.0, 0.5]))
    expected = moments(rows)
    actual = micro_batched(moments, rows, num_rows=12, size=size, is_row=(True, False))
    assert jax.tree.map(jnp.shape, actual) == jax.tree.map(jnp.shape, expected)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5), actual, expected
    )


def test_results_may_be_distributions_whose_spread_does_not_depend_on_the_row():
    mean = jax.random.normal(jax.random.key(0), (7, 2))

    def fn(mean):
        return (), DiagonalGaussian(mean, jnp.zeros(2))

    _, actual = micro_batched(fn, mean, num_rows=7, size=3)
    assert actual.log_std.shape == (2,)
    np.testing.assert_array_equal(actual.mean, mean)


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="size=0 is not positive"):
        micro_batched(moments, jnp.zeros((4, 2)), num_rows=4, size=0)


@pytest.mark.parametrize("kind", policies.KINDS)
@pytest.mark.parametrize("size", [3, 5])
def test_an_update_in_micro_batches_is_the_update(float64, kind, size):
    rng = np.random.default_rng(0)
    params = policies.make_params(kind, rng)
    batch = policies.make_batch(kind, rng, params, NUM_ROWS)
    update = fast_jit(
        functools.partial(trust_region_update, policies.POLICIES[kind]),
        static_argnames=("micro_batch_size", "line_search_width"),
    )
    expected = update(params, batch)
    for width in (1, 2):
        actual = update(params, batch, micro_batch_size=size, line_search_width=width)
        chex.assert_trees_all_close(actual[0], expected[0], rtol=1e-9)
    assert expected[1].status == UpdateStatus.ACCEPTED
    chex.assert_trees_all_close(
        actual[1]._replace(evaluations=0),
        expected[1]._replace(evaluations=0),
        rtol=1e-6,
        atol=1e-12,
    )


@pytest.mark.parametrize("operator_fn", OPERATORS)
def test_the_program_holds_no_more_hidden_units_than_those_of_a_micro_batch(
    operator_fn,
):
    rng = np.random.default_rng(0)
    params = policies.make_params("categorical", rng, np.float32)
    batch = policies.make_batch("categorical", rng, params, NUM_ROWS, np.float32)

    def program(size):
        update = functools.partial(
            trust_region_update,
            policies.categorical,
            micro_batch_size=size,
            operator_fn=operator_fn,
        )
        return jax.jit(update).lower(params, batch).as_text()

    whole = f"tensor<{NUM_ROWS}x{policies.HIDDEN}xf32>"
    part = f"tensor<3x{policies.HIDDEN}xf32>"
    assert whole in program(None)
    assert whole not in program(3)
    assert part in program(3)
