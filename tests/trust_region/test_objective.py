"""The surrogate and the mean KL, against NumPy and against what they mean."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import policies
import pytest
import reference
from compiling import fast_jit

from trpo_jax.trust_region import Categorical, mean_kl, surrogate

N = 12


@pytest.fixture(params=policies.KINDS)
def kind(request, float64):
    return request.param


@pytest.fixture
def problem(kind):
    rng = np.random.default_rng(0)
    params = policies.make_params(kind, rng)
    batch = policies.make_batch(kind, rng, params, N)
    return policies.POLICIES[kind], params, batch


def test_surrogate_is_the_reference():
    rng = np.random.default_rng(1)
    new, old, advantages = rng.normal(size=(3, N))
    arrays = [jnp.asarray(array, jnp.float32) for array in (new, old, advantages)]
    expected = reference.surrogate(*map(np.float64, arrays))
    np.testing.assert_allclose(surrogate(*arrays), expected, rtol=1e-5)


def test_at_the_old_policy_every_ratio_is_one(kind, problem):
    _, params, batch = problem
    again = policies.log_prob(kind, params, batch.observations, batch.actions)
    np.testing.assert_array_equal(np.exp(again - batch.log_probs), np.ones(N))
    value = surrogate(again, batch.log_probs, batch.advantages)
    assert value == jnp.mean(batch.advantages)


def test_at_the_old_policy_the_kl_and_its_gradient_are_zero(problem):
    policy_fn, params, batch = problem

    @fast_jit
    @jax.value_and_grad
    def divergence(params):
        old = policy_fn(jax.lax.stop_gradient(params), batch.observations)
        return mean_kl(old, policy_fn(params, batch.observations))

    value, gradient = divergence(params)
    assert value == 0
    zeros = jax.tree.map(jnp.zeros_like, params)
    chex.assert_trees_all_close(gradient, zeros, atol=1e-15)


def test_surrogate_gradient_at_the_old_policy_is_the_policy_gradient(problem):
    """∇L = mean[A ∇log π(a|s)], from the score of each transition alone."""
    policy_fn, params, batch = problem

    def log_prob(params, observation, action):
        return policy_fn(params, observation[None]).log_prob(action[None])[0]

    def objective(params):
        log_probs = policy_fn(params, batch.observations).log_prob(batch.actions)
        return surrogate(log_probs, batch.log_probs, batch.advantages)

    score = fast_jit(jax.grad(log_prob))
    rows = zip(*map(np.asarray, (batch.observations, batch.actions)), strict=True)
    scores = [score(params, observation, action) for observation, action in rows]
    expected = jax.tree.map(
        lambda *leaves: np.tensordot(batch.advantages, np.stack(leaves), 1) / N, *scores
    )
    gradient = fast_jit(jax.grad(objective))(params)
    chex.assert_trees_all_close(gradient, expected, rtol=1e-10, atol=1e-14)


def test_surrogate_gradient_is_the_hand_written_one(float64):
    rng = np.random.default_rng(2)
    policy = reference.LinearSoftmax(num_actions=3)
    params, observations = rng.normal(size=6), rng.normal(size=(N, 2))
    actions, advantages = rng.integers(0, 3, N), rng.normal(size=N)
    log_probs = rng.normal(size=N) - 1

    def objective(params):
        logits = jnp.asarray(observations) @ params.reshape(3, 2).T
        return surrogate(
            Categorical(logits).log_prob(jnp.asarray(actions)),
            jnp.asarray(log_probs),
            jnp.asarray(advantages),
        )

    expected = reference.surrogate_gradient(
        policy, params, observations, actions, log_probs, advantages
    )
    gradient = fast_jit(jax.grad(objective))(params)
    np.testing.assert_allclose(gradient, expected, rtol=1e-10)


def test_surrogate_estimates_the_new_policys_expected_advantage(float64):
    """Importance sampling: the mean over old actions is the sum over new ones."""
    old = np.array([0.5, 0.3, 0.2])
    new = np.array([0.1, 0.3, 0.6])
    advantage = np.array([-1.0, 0.5, 2.0])
    actions = np.repeat(np.arange(3), np.round(10 * old).astype(int))
    estimate = surrogate(
        *map(jnp.asarray, (np.log(new)[actions], np.log(old)[actions])),
        jnp.asarray(advantage[actions]),
    )
    np.testing.assert_allclose(estimate, new @ advantage, rtol=1e-12)


def test_mean_kl_averages_over_states_the_divergence_from_the_old_policy(float64):
    rng = np.random.default_rng(4)
    old, new = rng.normal(size=(2, N, 4))
    expected = np.mean([reference.categorical_kl(old[n], new[n]) for n in range(N)])
    value = mean_kl(Categorical(jnp.asarray(old)), Categorical(jnp.asarray(new)))
    np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_jit_and_vmap_agree_with_a_loop_and_compile_once(problem):
    policy_fn, params, batch = problem
    scales = jnp.array([0.9, 1.1, 1.2])

    def both(scale):
        old = policy_fn(params, batch.observations)
        new = policy_fn(
            jax.tree.map(lambda leaf: scale * leaf, params), batch.observations
        )
        log_probs = new.log_prob(batch.actions)
        value = surrogate(log_probs, batch.log_probs, batch.advantages)
        return value, mean_kl(old, new)

    eager = [both(scale) for scale in scales]
    chex.clear_trace_counter()
    compiled = fast_jit(chex.assert_max_traces(both, n=1))
    for scale, values in zip(scales, eager, strict=True):
        chex.assert_trees_all_close(compiled(scale), values, rtol=1e-10)
    stacked = tuple(map(jnp.stack, zip(*eager, strict=True)))
    chex.assert_trees_all_close(fast_jit(jax.vmap(both))(scales), stacked, rtol=1e-10)


def test_unequal_shapes_are_shown(no_shape_checks):
    """They might broadcast, and a mean over [N, N] means nothing."""
    vector = jnp.zeros(N)
    with pytest.raises(ValueError, match=rf"\({N}, 1\).*write one value of each"):
        surrogate(vector[:, None], vector, vector)
