"""Advantages against two definitions, with each way for an episode to end alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from compiling import fast_jit

from trpo_jax.training import advantages, generalized_advantages, standardize

T, B = 9, 6
DISCOUNT, GAE_LAMBDA = 0.9, 0.8


def make_rollout(seed=0, ends=0.25, shape=(T, B)):
    """V(s′ₜ) is V(sₜ₊₁) within an episode, and something else where one ends."""
    rng = np.random.default_rng(seed)
    rewards, values, next_values = rng.normal(size=(3, *shape))
    terminated, truncated = rng.random((2, *shape)) < ends
    goes_on = ~(terminated | truncated)[:-1]
    next_values[:-1] = np.where(goes_on, values[1:], next_values[:-1])
    return rewards, values, next_values, terminated, truncated


compiled = fast_jit(generalized_advantages)


def advantages_of(rollout, discount=DISCOUNT, gae_lambda=GAE_LAMBDA):
    return compiled(*rollout, discount=discount, gae_lambda=gae_lambda)


def short(terminated=(False,) * 3, truncated=(False,) * 3):
    """Three steps, every reward 1, V = 10 before and V = 20 after each."""
    return (
        np.ones(3),
        np.full(3, 10.0),
        np.full(3, 20.0),
        *map(np.array, (terminated, truncated)),
    )


BOOTSTRAPPED = 1 + 0.9 * 20 - 10
ENDED = 1 - 10
DECAY = 0.9 * 0.8


def test_the_rollouts_end_bootstraps_from_the_next_value():
    a2 = BOOTSTRAPPED
    a1 = BOOTSTRAPPED + DECAY * a2
    a0 = BOOTSTRAPPED + DECAY * a1
    np.testing.assert_allclose(advantages_of(short()), [a0, a1, a2], rtol=1e-6)


def test_termination_bootstraps_from_zero_and_cuts_the_chain():
    a2 = BOOTSTRAPPED
    a1 = ENDED
    a0 = BOOTSTRAPPED + DECAY * a1
    rollout = short(terminated=(False, True, False))
    np.testing.assert_allclose(advantages_of(rollout), [a0, a1, a2], rtol=1e-6)


def test_truncation_bootstraps_from_the_final_state_and_cuts_the_chain():
    a2 = BOOTSTRAPPED
    a1 = BOOTSTRAPPED
    a0 = BOOTSTRAPPED + DECAY * a1
    rollout = short(truncated=(False, True, False))
    np.testing.assert_allclose(advantages_of(rollout), [a0, a1, a2], rtol=1e-6)


def test_with_both_flags_termination_decides():
    both = short(terminated=(False, True, False), truncated=(False, True, False))
    terminated = short(terminated=(False, True, False))
    np.testing.assert_array_equal(advantages_of(both), advantages_of(terminated))


@pytest.mark.parametrize("last", ["terminated", "truncated"])
def test_an_episode_that_ends_with_the_rollout(last):
    rollout = short(**{last: (False, False, True)})
    a2 = ENDED if last == "terminated" else BOOTSTRAPPED
    np.testing.assert_allclose(advantages_of(rollout)[2], a2, rtol=1e-6)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("ends", [0.0, 0.25, 0.7])
def test_is_both_references_trajectory_by_trajectory(gae_lambda, ends, float64):
    rollout = make_rollout(ends=ends)
    advantages = advantages_of(rollout, gae_lambda=gae_lambda)
    for b in range(B):
        column = [np.asarray(leaf)[:, b] for leaf in rollout]
        for definition in (
            reference.generalized_advantages,
            reference.advantages_by_definition,
        ):
            expected = definition(*column, DISCOUNT, gae_lambda)
            np.testing.assert_allclose(
                advantages[:, b], expected, rtol=1e-10, atol=1e-12
            )


def test_a_batch_is_its_trajectories_alone(float64):
    rollout = make_rollout(seed=1)
    batched = advantages_of(rollout)
    alone = [
        advantages_of([leaf[:, b] for leaf in rollout])
        for b in range(rollout[0].shape[1])
    ]
    np.testing.assert_allclose(batched, jnp.stack(alone, axis=1), rtol=1e-12)
    vmapped = jax.vmap(lambda *r: advantages_of(r), in_axes=1, out_axes=1)(*rollout)
    np.testing.assert_allclose(vmapped, batched, rtol=1e-12)


@pytest.mark.parametrize("flag", ["terminated", "truncated"])
def test_nothing_leaks_from_one_episode_into_the_one_before(flag, float64):
    first, second = make_rollout(seed=2, ends=0), make_rollout(seed=3, ends=0)
    index = {"terminated": 3, "truncated": 4}[flag]
    first[index][-1] = True
    joined = [np.concatenate(pair) for pair in zip(first, second, strict=True)]
    advantages = advantages_of(joined)
    np.testing.assert_allclose(advantages[:T], advantages_of(first), rtol=1e-12)
    np.testing.assert_allclose(advantages[T:], advantages_of(second), rtol=1e-12)


def test_not_even_a_nan_leaks_into_the_episode_before():
    rollout = short(terminated=(False, True, False))
    rollout[0][2] = np.nan
    advantages = advantages_of(rollout)
    assert np.isnan(advantages[2])
    assert np.all(np.isfinite(advantages[:2]))


def test_the_value_after_termination_is_never_looked_at():
    clean, rollout = (short(terminated=(False, True, False)) for _ in range(2))
    rollout[2][1] = np.nan
    np.testing.assert_array_equal(advantages_of(rollout), advantages_of(clean))


def test_lambda_zero_is_the_td_error_and_lambda_one_the_return_less_the_value(float64):
    rewards, values, next_values, _, _ = rollout = make_rollout(seed=4, ends=0)
    errors = rewards + DISCOUNT * next_values - values
    np.testing.assert_allclose(
        advantages_of(rollout, gae_lambda=0.0), errors, rtol=1e-12
    )
    powers = DISCOUNT ** np.arange(T)
    returns = powers @ rewards + DISCOUNT**T * next_values[-1]
    first = advantages_of(rollout, gae_lambda=1.0)[0]
    np.testing.assert_allclose(first, returns - values[0], rtol=1e-10)


def test_discount_and_lambda_may_be_traced_and_swept(float64):
    rollout = make_rollout(seed=5)
    discounts, lambdas = np.array([0.5, 0.9, 1.0]), np.array([0.0, 0.95, 1.0])
    swept = jax.vmap(lambda g, lam: advantages_of(rollout, g, lam))(discounts, lambdas)
    for i in range(3):
        one = advantages_of(rollout, float(discounts[i]), float(lambdas[i]))
        np.testing.assert_allclose(swept[i], one, rtol=1e-12)


def test_jit_agrees_and_compiles_once(float64):
    chex.clear_trace_counter()
    once = fast_jit(chex.assert_max_traces(generalized_advantages, n=1))
    for seed in range(2):
        rollout = list(map(jnp.asarray, make_rollout(seed=seed)))
        names = {"discount": 0.9, "gae_lambda": 0.7}
        eager = generalized_advantages(*rollout, **names)
        np.testing.assert_allclose(once(*rollout, **names), eager, rtol=1e-12)


def test_gradient_in_the_rewards_is_the_decay(float64):
    rollout = make_rollout(seed=6, ends=0, shape=(T,))

    def first_advantage(rewards):
        arguments = map(jnp.asarray, rollout[1:])
        names = {"discount": DISCOUNT, "gae_lambda": GAE_LAMBDA}
        return generalized_advantages(rewards, *arguments, **names)[0]

    gradient = fast_jit(jax.grad(first_advantage))(rollout[0])
    np.testing.assert_allclose(gradient, DECAY ** np.arange(T), rtol=1e-12)


def test_the_dtype_is_kept():
    rollout = make_rollout()
    half = [leaf.astype(np.float16) for leaf in rollout[:3]]
    assert advantages_of((*half, *rollout[3:])).dtype == jnp.float16


@pytest.mark.parametrize("wrong", range(1, 5))
def test_unequal_shapes_are_named_in_the_error(wrong, no_shape_checks):
    rollout = list(make_rollout())
    rollout[wrong] = rollout[wrong][:-1]
    with pytest.raises(ValueError, match=rf"\({T - 1}, {B}\).* of one shape \[T, B\]"):
        advantages_of(rollout)


@pytest.mark.parametrize("name", ["terminated", "truncated"])
def test_flags_that_are_floats_are_cast_as_advised(name, no_shape_checks):
    names = ("rewards", "values", "next_values", "terminated", "truncated")
    arguments = dict(zip(names, short(terminated=(False, True, False)), strict=True))
    expected = advantages_of(tuple(arguments.values()))
    flags = arguments[name].astype(np.float32)
    factors = {"discount": DISCOUNT, "gae_lambda": GAE_LAMBDA}
    with pytest.raises(TypeError, match=rf"float32\[3\]; write {name}\.astype\(bool\)"):
        generalized_advantages(**arguments | {name: flags}, **factors)
    followed = compiled(**arguments | {name: flags.astype(bool)}, **factors)
    np.testing.assert_array_equal(followed, expected)


@pytest.mark.parametrize("name", ["discount", "gae_lambda"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_factor_out_of_range_is_named(name, value):
    names = {"discount": 0.9, "gae_lambda": 0.9} | {name: value}
    rollout = map(jnp.asarray, make_rollout())
    with pytest.raises(ValueError, match=rf"{name}={value}.*write"):
        generalized_advantages(*rollout, **names)


standardized = fast_jit(standardize)


def test_standardized_advantages_have_mean_zero_and_standard_deviation_one(float64):
    advantages = 1e3 + 5 * make_rollout(seed=7)[0]
    result = np.asarray(standardized(advantages))
    assert result.shape == (T, B)
    np.testing.assert_allclose(result.mean(), 0, atol=1e-12)
    np.testing.assert_allclose(result.std(), 1, rtol=1e-12)
    expected = (advantages - np.mean(advantages)) / np.std(advantages)
    np.testing.assert_allclose(result, expected, rtol=1e-10)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e3, 1e12])
def test_standardizing_undoes_any_scale(scale):
    advantages = make_rollout(seed=8)[0]
    np.testing.assert_allclose(
        standardized(scale * advantages), standardized(advantages), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("size", [1, 7, 1000, 8192])
@pytest.mark.parametrize("value", [0.0, 0.1, 0.3, -7.7, 1e3])
def test_equal_advantages_standardize_to_zeros(size, value):
    """To rounding: the mean of many equal numbers is not quite that number."""
    result = standardized(jnp.full(size, value, jnp.float32))
    np.testing.assert_array_equal(result, np.zeros(size))


def test_standardizing_does_not_hide_a_nan():
    assert np.all(np.isnan(standardized(jnp.array([1.0, jnp.nan, 2.0]))))


def test_standardize_gradient_is_finite_and_blind_to_shift_and_scale():
    advantages = jnp.array([1.0, 2.0, 4.0])
    gradient = np.asarray(fast_jit(jax.grad(lambda a: standardize(a)[0]))(advantages))
    assert np.all(gradient != 0)
    np.testing.assert_allclose(np.sum(gradient), 0, atol=1e-5)
    np.testing.assert_allclose(gradient @ advantages, 0, atol=1e-5)


@pytest.mark.parametrize("accumulate", ["_accumulate_in_turn", "_accumulate_in_log"])
def test_discounted_returns_are_the_recurrence_over_two_rollouts(
    accumulate, monkeypatch, float64
):
    monkeypatch.setattr(advantages, "_accumulate", getattr(advantages, accumulate))
    rng = np.random.default_rng(0)
    rewards, done = rng.normal(size=(9, 2)), rng.random(size=(9, 2)) < 0.3
    done[4] = True, False
    expected, following = [], np.zeros(2)
    for reward, end in zip(rewards, done, strict=True):
        following = reward + 0.9 * following
        expected.append(following)
        following = np.where(end, 0, following)
    found, carried = [], jnp.zeros(2)
    for part in (slice(0, 5), slice(5, 9)):
        returns, carried = advantages.discounted_returns(
            jnp.asarray(rewards[part]), jnp.asarray(done[part]), carried, discount=0.9
        )
        found.append(returns)
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-12)
    np.testing.assert_allclose(carried, following, rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_reward_is_not_carried_into_the_next_rollout(bad):
    rewards = jnp.ones((3, 2)).at[1, 0].set(bad)
    _, carried = advantages.discounted_returns(
        rewards, jnp.zeros((3, 2), bool), jnp.zeros(2), discount=0.5
    )
    np.testing.assert_array_equal(carried, [0, 1.75])
