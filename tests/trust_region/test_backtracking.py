"""The line search against a loop, on tables of candidates and at any width."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from compiling import fast_jit

from trpo_jax.trust_region import Candidate, line_search

COUNT = 10
WIDTHS = (1, 3, COUNT)
MAX_KL = 0.01


@partial(fast_jit, static_argnames=("backtrack_factor", "width"))
def search(table, backtrack_factor, width):
    """Backtrack through tables of (surrogates, KLs, finite flags), one a search."""

    @jax.vmap
    def search_one(surrogates, kls, finite):
        def evaluate(fraction):
            index = jnp.round(jnp.log(fraction) / jnp.log(backtrack_factor)).astype(int)
            return Candidate(surrogates[index], kls[index], finite[index], index)

        return line_search(
            evaluate,
            surrogate_old=jnp.zeros_like(surrogates[0]),
            max_kl=MAX_KL,
            max_backtracks=COUNT,
            backtrack_factor=backtrack_factor,
            width=width,
            interpolate=False,
        )

    return search_one(*table)


def random_tables(count=300):
    rng = np.random.default_rng(0)
    surrogates = rng.normal(loc=-1, size=(count, COUNT))
    kls = rng.uniform(0, 3 * MAX_KL, (count, COUNT))
    finite = rng.random((count, COUNT)) < 0.8
    for array in (surrogates, kls):
        spoilt = rng.random(array.shape) < 0.1
        array[spoilt] = rng.choice([np.nan, np.inf, -np.inf], spoilt.sum())
    # A KL of minus infinity is not in the power of any distribution.
    kls[np.isneginf(kls)] = np.inf
    surrogates[:20] = -1.0
    return surrogates, kls, finite


def table_of(surrogates=1.0, kls=0.0, finite=True):
    """One table, each row given in full or by its one value."""
    rows = [
        np.broadcast_to(np.asarray(row), (1, COUNT)).copy()
        for row in (surrogates, kls, finite)
    ]
    return rows[0].astype(float), rows[1].astype(float), rows[2]


def only(result):
    return jax.tree.map(lambda leaf: leaf[0], result)


@pytest.mark.parametrize(
    ("width", "backtrack_factor"), [(1, 0.5), (3, 0.5), (COUNT, 0.5), (3, 0.8)]
)
def test_is_the_references_loop_at_any_width(width, backtrack_factor, float64):
    tables = random_tables()
    result = jax.tree.map(np.asarray, search(tables, backtrack_factor, width))
    accepted = 0
    for n, rows in enumerate(zip(*tables, strict=True)):

        def evaluate(fraction, rows=rows):
            index = int(np.round(np.log(fraction) / np.log(backtrack_factor)))
            return tuple(row[index] for row in rows)

        expected = reference.line_search(
            evaluate, 0.0, MAX_KL, COUNT, backtrack_factor, interpolate=False
        )
        accepted += expected.accepted
        assert result.accepted[n] == expected.accepted
        np.testing.assert_allclose(result.fraction[n], expected.fraction, rtol=1e-12)
        np.testing.assert_array_equal(result.candidate.surrogate[n], expected.surrogate)
        np.testing.assert_array_equal(result.candidate.kl[n], expected.kl)
        assert result.candidate.evidence[n] == expected.evaluations - 1
        whole_rounds = -(-expected.evaluations // width) * width
        assert result.evaluations[n] == min(whole_rounds, COUNT)
    assert 50 < accepted < 250


@pytest.mark.parametrize("width", WIDTHS)
def test_the_first_acceptable_candidate_is_taken(width):
    surrogates = np.full(COUNT, -1.0)
    surrogates[[4, 6, 9]] = 1.0, 5.0, 9.0
    result = only(search(table_of(surrogates), 0.5, width))
    assert result.accepted
    assert result.fraction == 0.5**4
    assert result.candidate.surrogate == 1.0


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "table",
    [
        table_of(surrogates=np.nan),
        table_of(surrogates=np.inf),
        table_of(surrogates=-np.inf),
        table_of(kls=np.nan),
        table_of(kls=np.inf),
        table_of(finite=False),
        table_of(kls=2 * MAX_KL),
        table_of(surrogates=0.0),
        table_of(surrogates=-1.0),
    ],
)
def test_no_acceptable_candidate_is_no_step(table, width):
    result = only(search(table, 0.5, width))
    assert not result.accepted
    assert result.fraction == 0
    assert result.evaluations == COUNT
    # What is reported is the smallest candidate, the last that could have served.
    assert result.candidate.evidence == COUNT - 1


def test_the_constraint_may_be_met_exactly_and_the_surrogate_must_rise():
    on_the_edge = np.float32(MAX_KL)
    assert only(search(table_of(kls=on_the_edge), 0.5, 1)).fraction == 1
    beyond = np.nextafter(on_the_edge, np.float32(1))
    assert not only(search(table_of(kls=beyond), 0.5, 1)).accepted
    above = np.nextafter(np.float32(0), np.float32(1)) * 2**24
    assert only(search(table_of(surrogates=above), 0.5, 1)).accepted


def test_nothing_is_above_a_nan():
    @fast_jit
    def from_nan(surrogate_old):
        return line_search(
            lambda fraction: Candidate(fraction, 0 * fraction, jnp.bool_(True)),
            surrogate_old=surrogate_old,
            max_kl=MAX_KL,
        )

    assert from_nan(0.0).accepted
    assert not from_nan(jnp.nan).accepted


@pytest.mark.parametrize("first", [0, 3, COUNT])
def test_width_one_evaluates_no_candidate_that_nobody_needs(first):
    fractions = []

    def evaluate(fraction):
        jax.debug.callback(lambda f: fractions.append(float(f)), fraction)
        surrogate = jnp.where(fraction <= 0.5**first, 1.0, -1.0)
        return Candidate(surrogate, 0 * fraction, jnp.bool_(True))

    result = fast_jit(
        lambda old: line_search(
            evaluate, surrogate_old=old, max_kl=MAX_KL, interpolate=False
        )
    )(0.0)
    jax.block_until_ready(result)
    jax.effects_barrier()
    evaluations = min(first + 1, COUNT)
    assert result.evaluations == evaluations
    assert fractions == [0.5**k for k in range(evaluations)]


def test_eager_and_a_single_search_agree_with_the_batch(float64):
    tables = random_tables(4)
    together = search(tables, 0.5, 3)

    def alone(n):
        surrogates, kls, finite = (jnp.asarray(row[n]) for row in tables)

        def evaluate(fraction):
            index = jnp.round(-jnp.log2(fraction)).astype(int)
            return Candidate(surrogates[index], kls[index], finite[index], index)

        old = jnp.float64(0)
        return line_search(
            evaluate, surrogate_old=old, max_kl=MAX_KL, width=3, interpolate=False
        )

    for n in range(2):
        single = jax.tree.map(lambda leaf, n=n: leaf[n], together)
        chex.assert_trees_all_equal(single, alone(n))


def test_a_second_call_compiles_nothing():
    def from_surrogate(surrogate_old):
        return line_search(
            lambda fraction: Candidate(fraction, fraction / 50, jnp.bool_(True)),
            surrogate_old=surrogate_old,
            max_kl=MAX_KL,
            interpolate=False,
        )

    chex.clear_trace_counter()
    compiled = fast_jit(chex.assert_max_traces(from_surrogate, n=1))
    assert compiled(0.0).fraction == 0.5
    assert not compiled(2.0).accepted


# Interpolation -----------------------------------------------------------------------


@partial(fast_jit, static_argnames="width")
def interpolated_search(problems, width):
    """KL a fᵖ, surrogate f − b f², not finite above c; a NaN above d."""

    @jax.vmap
    def search_one(scale, power, bend, finite_below, nan_above):
        def evaluate(fraction):
            surrogate = fraction - bend * fraction**2
            surrogate = jnp.where(fraction > nan_above, jnp.nan, surrogate)
            return Candidate(
                surrogate, scale * fraction**power, fraction < finite_below, fraction
            )

        zero = jnp.zeros_like(scale)
        return line_search(evaluate, surrogate_old=zero, max_kl=MAX_KL, width=width)

    return search_one(*problems)


def random_problems(count=10_000):
    rng = np.random.default_rng(0)
    return (
        MAX_KL * 10 ** rng.uniform(-4, 4, count),
        rng.uniform(1, 4, count),
        10 ** rng.uniform(-3, 3, count),
        np.where(rng.random(count) < 0.8, np.inf, rng.uniform(0, 2, count)),
        np.where(rng.random(count) < 0.8, np.inf, rng.uniform(0, 2, count)),
    )


def test_interpolation_is_the_references_loop(float64):
    problems = random_problems()
    result = jax.tree.map(np.asarray, interpolated_search(problems, 1))
    for n, problem in enumerate(zip(*problems, strict=True)):

        def evaluate(fraction, problem=problem):
            scale, power, bend, finite_below, nan_above = problem
            surrogate = fraction - bend * fraction**2
            value = np.nan if fraction > nan_above else surrogate
            return value, scale * fraction**power, fraction < finite_below

        expected = reference.line_search(evaluate, 0.0, MAX_KL, COUNT, 0.5)
        assert result.accepted[n] == expected.accepted
        assert result.evaluations[n] == expected.evaluations
        np.testing.assert_allclose(result.fraction[n], expected.fraction, rtol=1e-9)
        np.testing.assert_allclose(result.candidate.kl[n], expected.kl, rtol=1e-9)


@pytest.mark.parametrize("width", WIDTHS)
def test_what_interpolation_accepts_keeps_every_condition(width, float64):
    problems = random_problems()
    result = jax.tree.map(np.asarray, interpolated_search(problems, width))
    accepted, candidate = result.accepted, result.candidate
    assert accepted.mean() > 0.5
    assert (candidate.kl[accepted] <= MAX_KL).all()
    assert (candidate.surrogate[accepted] > 0).all()
    assert candidate.finite[accepted].all()
    # The candidate reported is the one at the fraction, and 0 is none.
    assert (candidate.evidence == result.fraction)[accepted].all()
    assert (result.fraction[~accepted] == 0).all()
    assert (result.evaluations <= COUNT * width).all()


@pytest.mark.parametrize(
    ("evaluate_fn", "found"),
    [
        (lambda f: (f, f, f > 0), r"a tuple \(float32\[\], float32\[\], bool\[\]\)"),
        (lambda f: f, r"an array float32\[\]"),
        (
            lambda f: Candidate(jnp.ones(3) * f, f, f > 0),
            r"a Candidate\(.*float32\[3\].*",
        ),
        (lambda f: Candidate(f, None, f > 0), r"a Candidate\(.*kl=None.*"),
    ],
)
def test_what_is_not_a_candidate_is_named(evaluate_fn, found):
    with pytest.raises(TypeError, match=rf"returned {found}; write .*Candidate\("):
        line_search(evaluate_fn, surrogate_old=jnp.float32(0), max_kl=MAX_KL)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0, 30.0, 1e4])
def test_a_quadratic_kl_is_landed_on(width, scale, float64):
    problem = [np.array([x]) for x in (scale * MAX_KL, 2.0, 0.0, np.inf, np.inf)]
    result = only(interpolated_search(problem, width))
    assert 0.8 * MAX_KL <= result.candidate.kl <= MAX_KL


def test_a_longer_step_that_is_worse_is_not_kept(float64):
    # L rises up to f = 1 and is lower at 2, though the KL of both is tiny.
    problem = [np.array([x]) for x in (1e-3 * MAX_KL, 2.0, 0.5, np.inf, np.inf)]
    result = only(interpolated_search(problem, 1))
    assert result.fraction == 1
    assert result.evaluations == 2
