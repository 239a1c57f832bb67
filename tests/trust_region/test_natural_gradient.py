"""Steps along the natural gradient against NumPy, and beside the line search."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import policies
import pytest
import reference
from compiling import fast_jit

from trpo_jax import UpdateStatus
from trpo_jax.trust_region import natural_gradient_update, trust_region_update

N = 12
KINDS = tuple(policies.LINEAR)


@partial(fast_jit, static_argnames=("kind", "micro_batch_size"))
def update(kind, params, batch, step_size=None, max_kl=0.01, micro_batch_size=None):
    """TNPG without a step size, NPG with one."""
    return natural_gradient_update(
        policies.LINEAR[kind],
        params,
        batch,
        step_size=step_size,
        max_kl=max_kl,
        damping=0.1,
        entropy_coefficient=0.03,
        micro_batch_size=micro_batch_size,
    )


def make_problem(kind):
    policy, theta, unravel, batch = policies.linear_problem(kind, N)
    batch = jax.tree.map(jnp.asarray, batch)
    return policy, theta, unravel, jax.tree.map(jnp.asarray, unravel(theta)), batch


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fixed", [None, 0.7])
def test_a_step_is_the_references(kind, fixed, float64):
    policy, theta, unravel, params, batch = make_problem(kind)
    gradient = reference.surrogate_gradient(policy, theta, *batch)
    gradient += 0.03 * reference.entropy_gradient(policy, theta, batch.observations)
    fisher = reference.fisher(policy, theta, batch.observations)
    damped = fisher + 0.1 * np.eye(len(theta))
    x, _, _ = reference.conjugate_gradient(damped, gradient, 10, 1e-5)
    step_size = fixed or np.sqrt(2 * 0.01 / (x @ fisher @ x))
    moved, info = update(kind, params, batch, fixed)
    for name, leaf in unravel(theta + step_size * x).items():
        np.testing.assert_allclose(moved[name], leaf, rtol=1e-7)
    np.testing.assert_allclose(info.step_size, step_size, rtol=1e-7)
    predicted = 0.5 * step_size**2 * (x @ fisher @ x)
    np.testing.assert_allclose(info.kl_predicted, predicted, rtol=1e-6)
    np.testing.assert_allclose(
        info.expected_improvement, step_size * (gradient @ x), rtol=1e-7
    )
    assert (info.accepted_fraction, info.evaluations) == (1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_with_its_own_step_size_fixed_it_is_the_same_step(kind, float64):
    """And TRPO's, where the line search accepts its first candidate."""
    *_, params, batch = make_problem(kind)
    moved, info = update(kind, params, batch)
    fixed, _ = update(kind, params, batch, info.step_size)
    chex.assert_trees_all_close(fixed, moved, rtol=1e-12)
    searched, search = fast_jit(
        partial(
            trust_region_update,
            policies.LINEAR[kind],
            damping=0.1,
            entropy_coefficient=0.03,
            interpolate=False,
        )
    )(params, batch)
    assert (search.accepted_fraction == 1) == (info.kl <= 0.01)
    expected = jax.tree.map(
        lambda new, old: old + search.accepted_fraction * (new - old), moved, params
    )
    chex.assert_trees_all_close(searched, expected, rtol=1e-9)


def test_nothing_bounds_the_kl_of_a_fixed_step(float64):
    *_, params, batch = make_problem("softmax")
    _, info = update("softmax", params, batch, 50.0)
    assert info.status == UpdateStatus.ACCEPTED
    assert info.kl > 0.01
    assert info.share_beyond > 0.5


def test_micro_batches_and_vmap_change_nothing(float64):
    *_, params, batch = make_problem("gaussian")
    sizes = jnp.array([0.1, 0.7])
    together = jax.vmap(partial(update, "gaussian"), (None, None, 0))(
        params, batch, sizes
    )
    for index in range(2):
        alone = update("gaussian", params, batch, sizes[index], micro_batch_size=5)
        one = jax.tree.map(lambda leaf, i=index: leaf[i], together)
        chex.assert_trees_all_close(one, alone, rtol=1e-7, atol=1e-10)
    with jax.disable_jit():
        eager = update("gaussian", params, batch, sizes[1])
    chex.assert_trees_all_close(one, eager, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("fixed", [None, 0.7])
def test_a_step_to_nowhere_is_refused_with_its_reason(fixed, float64):
    *_, params, batch = make_problem("softmax")
    for advantages, reason in (
        (batch.advantages.at[2].set(jnp.nan), UpdateStatus.NON_FINITE),
        (batch.advantages.at[2].set(jnp.inf), UpdateStatus.NON_FINITE),
    ):
        spoilt = batch._replace(advantages=advantages)
        kept, info = update("softmax", params, spoilt, fixed)
        jax.tree.map(np.testing.assert_array_equal, kept, params)
        assert info.status == reason
        assert info.kl == info.accepted_fraction == info.share_beyond == 0


def test_equal_advantages_are_no_direction(float64):
    *_, params, batch = make_problem("softmax")
    silent = batch._replace(advantages=jnp.zeros(N))
    kept, info = fast_jit(partial(natural_gradient_update, policies.LINEAR["softmax"]))(
        params, silent
    )
    jax.tree.map(np.testing.assert_array_equal, kept, params)
    assert info.status == UpdateStatus.ZERO_GRADIENT


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"step_size": 0.0}, "step_size=0.0 is out of range; write a finite number"),
        ({"max_kl": -1.0}, "max_kl=-1.0 is out of range; write a finite number above"),
        ({"damping": -1.0}, "write a finite number, 0 or more"),
        ({"preconditioner_groups": -1}, "write at least 0"),
    ],
)
def test_bad_arguments_are_refused_with_advice(options, advice):
    *_, params, batch = make_problem("softmax")
    with pytest.raises(ValueError, match=advice):
        natural_gradient_update(policies.LINEAR["softmax"], params, batch, **options)
