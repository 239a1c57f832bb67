"""Epochs of an optimiser over minibatches; `fit_critic` has more in test_critic.py."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from compiling import fast_jit

from trpo_jax.trust_region import minimize_by_minibatches

ROWS = 12


def squared_error(params, rows):
    inputs, targets = rows["inputs"], rows["targets"]
    return jnp.mean((inputs @ params - targets) ** 2)


@partial(fast_jit, static_argnames=("epochs", "num_minibatches"))
def descend(params, state, rows, seed=0, epochs=3, num_minibatches=4):
    return minimize_by_minibatches(
        squared_error,
        params,
        optax.adam(0.1),
        state,
        rows,
        jax.random.key(seed),
        epochs=epochs,
        num_minibatches=num_minibatches,
    )


def make_problem():
    rng = np.random.default_rng(0)
    rows = {"inputs": rng.normal(size=(ROWS, 2)), "targets": rng.normal(size=ROWS)}
    params = jnp.asarray(rng.normal(size=2))
    return params, optax.adam(0.1).init(params), jax.tree.map(jnp.asarray, rows)


def test_steps_are_those_of_adam_by_hand(float64):
    params, state, rows = make_problem()
    rotations = np.ravel(jax.random.randint(jax.random.key(0), (3, 1), 0, 4))
    losses = []

    def gradient(params, taken):
        inputs, targets = (np.asarray(rows[k])[taken] for k in ("inputs", "targets"))
        errors = inputs @ params - targets
        losses.append(np.mean(errors**2))
        return 2 * errors @ inputs / len(taken)

    visits = [4 * np.arange(3) + (rotations + i) % 4 for i in range(4)] * 3
    expected = reference.adam(gradient, np.asarray(params), visits, 0.1)
    end = descend(params, state, rows)
    np.testing.assert_allclose(end.params, expected, rtol=1e-7)
    np.testing.assert_allclose(end.loss, np.mean(losses[-4:]), rtol=1e-7)
    assert end.finite
    assert end.optimizer_state[0].count == 12


def test_another_key_draws_other_minibatches(float64):
    params, state, rows = make_problem()
    weights = [descend(params, state, rows, seed).params for seed in (0, 0, 1)]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


@pytest.mark.parametrize("place", ["rows", "params", "moments"])
def test_an_end_that_is_not_finite_is_discarded(place, float64):
    params, state, rows = make_problem()
    if place == "rows":
        rows = rows | {"targets": rows["targets"].at[5].set(jnp.nan)}
    elif place == "params":
        params = params.at[0].set(jnp.inf)
    else:  # steps of length 0: the parameters stay finite
        state = (state[0]._replace(nu=jnp.full(2, jnp.inf)), *state[1:])
    end = descend(params, state, rows)
    assert not end.finite
    before = (params, state)
    jax.tree.map(np.testing.assert_array_equal, end[:2], before)


def test_minibatches_must_divide_the_rows():
    with pytest.raises(ValueError, match="num_minibatches=5 does not divide the 12"):
        descend(*make_problem(), num_minibatches=5)
