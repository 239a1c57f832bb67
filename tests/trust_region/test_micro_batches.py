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
    empirical_fisher_vector_product,
    fisher_vector_product,
    gauss_newton_vector_product,
    mean_over_rows,
    split_rows,
    trust_region_update,
)

NUM_ROWS = 12


OPERATORS = [
    gauss_newton_vector_product,
    fisher_vector_product,
    empirical_fisher_vector_product,
]


def moments(x):
    return {"mean": jnp.mean(x), "product": x.T @ x / len(x)}, x**2


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 11, 12, 100, None])
def test_every_size_gives_the_means_and_the_results_of_the_whole(size):
    x = jax.random.normal(jax.random.key(0), (12, 3))
    expected = moments(x)
    means, results = mean_over_rows(moments, split_rows(x, size))
    chex.assert_trees_all_close((means, results.join()), expected, rtol=1e-5)


@pytest.mark.parametrize("size", [3, 5, 7, None])
def test_results_are_cut_like_the_rows_that_they_came_from(size):
    x = jax.random.normal(jax.random.key(0), (7, 2))

    def distribution(mean):
        return (), DiagonalGaussian(mean, jnp.zeros(2))

    def difference(mean, distribution):
        assert distribution.mean.shape == mean.shape
        assert distribution.log_std.shape == (2,)  # which has no rows, and needs none
        return jnp.mean((distribution.mean - mean) ** 2), ()

    rows = split_rows(x, size)
    _, results = mean_over_rows(distribution, rows)
    assert mean_over_rows(difference, rows, results)[0] == 0


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="size=0 is not positive"):
        split_rows(jnp.zeros((4, 2)), 0)


@pytest.mark.parametrize("kind", policies.KINDS)
def test_an_update_in_micro_batches_is_the_update(float64, kind):
    rng = np.random.default_rng(0)
    params = policies.make_params(kind, rng)
    batch = policies.make_batch(kind, rng, params, NUM_ROWS)
    update = fast_jit(
        functools.partial(
            trust_region_update, policies.POLICIES[kind], interpolate=False
        ),
        static_argnames=("micro_batch_size", "line_search_width"),
    )
    expected = update(params, batch)
    assert expected[1].status == UpdateStatus.ACCEPTED
    for size, width in ((3, 1), (5, 2)):
        actual = update(params, batch, micro_batch_size=size, line_search_width=width)
        chex.assert_trees_all_close(actual[0], expected[0], rtol=1e-9)
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
