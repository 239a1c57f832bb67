"""Both bounds hold for exact returns of random tabular MDPs after a real update."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from compiling import fast_jit

from benchmarks import bounds as tabular
from trpo_jax.trust_region import (
    Batch,
    Categorical,
    improvement_bound,
    mean_kl_improvement_bound,
    trust_region_update,
)

STATES, ACTIONS, SAMPLES = 5, 3, 256
DISCOUNTS = (0.3, 0.5, 0.8, 0.95)
RADII = (1e-5, 1e-3, 1e-2, 1e-1)
MDPS_EACH = 5


def tabular_policy(params, observations):
    return Categorical(params[observations])


@fast_jit
@partial(jax.vmap, in_axes=(0, 0, None))
@partial(jax.vmap, in_axes=(None, None, 0))
def update(params, batch, max_kl):
    return trust_region_update(
        tabular_policy, params, batch, max_kl=max_kl, damping=1e-3
    )


def sample_batch(rng, mdp, policy):
    states = rng.choice(STATES, SAMPLES, p=reference.discounted_states(mdp, policy))
    actions = np.array([rng.choice(ACTIONS, p=policy[s]) for s in states])
    advantages = reference.exact_advantages(mdp, policy)[states, actions]
    return states, actions, np.log(policy)[states, actions], advantages


def probabilities(logits):
    return np.exp(reference.log_softmax(np.asarray(logits, np.float64)))


@pytest.fixture(scope="module")
def changes():
    """(discount, δ, status, exact change) of every MDP and radius."""
    rng = np.random.default_rng(0)
    mdps = [
        reference.random_mdp(rng, STATES, ACTIONS, discount)
        for discount in DISCOUNTS
        for _ in range(MDPS_EACH)
    ]
    logits = rng.normal(size=(len(mdps), STATES, ACTIONS))
    with jax.enable_x64(True):
        batches = [
            Batch(*map(jnp.asarray, sample_batch(rng, mdp, probabilities(table))))
            for mdp, table in zip(mdps, logits, strict=True)
        ]
        batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
        new, info = update(jnp.asarray(logits), batch, jnp.asarray(RADII))
        new, status = np.asarray(new), np.asarray(info.status)
    return [
        (
            mdp.discount,
            radius,
            status[i, j],
            reference.policy_change(
                mdp, probabilities(logits[i]), probabilities(new[i, j])
            ),
        )
        for i, mdp in enumerate(mdps)
        for j, radius in enumerate(RADII)
    ]


def bounds(change, discount):
    worst_case = improvement_bound(
        jnp.asarray(change.expected_advantage),
        jnp.asarray(change.max_kl),
        jnp.asarray(change.max_advantage),
        discount=discount,
    )
    average_case = mean_kl_improvement_bound(
        jnp.asarray(change.expected_advantage),
        jnp.asarray(change.mean_kl),
        jnp.asarray(change.max_expected_advantage),
        discount=discount,
    )
    return worst_case, average_case


def test_the_reference_obeys_the_performance_difference_lemma():
    """J(π) − J(π_old) = E_{s∼π, a∼π}[A_old] / (1 − γ), Kakade & Langford 2002."""
    rng = np.random.default_rng(1)
    for discount in DISCOUNTS:
        mdp = reference.random_mdp(rng, STATES, ACTIONS, discount)
        old, new = (probabilities(rng.normal(size=(STATES, ACTIONS))) for _ in range(2))
        under_new = np.sum(new * reference.exact_advantages(mdp, old), axis=1)
        expected = reference.discounted_states(mdp, new) @ under_new / (1 - discount)
        change = reference.policy_change(mdp, old, new)
        np.testing.assert_allclose(change.improvement, expected, rtol=1e-10)


def test_the_updates_moved_the_policies_within_the_radius(changes):
    assert np.mean([status == 0 for _, _, status, _ in changes]) > 0.9
    # The constraint is on the sampled states; the exact mean is near it.
    for _, radius, _, change in changes:
        assert change.mean_kl <= 2 * radius


def test_both_bounds_hold_for_the_exact_improvement(changes, float64):
    for discount, _, _, change in changes:
        worst_case, average_case = bounds(change, discount)
        rounding = 1e-12 * (1 + abs(change.improvement))
        assert change.improvement >= worst_case - rounding
        assert change.improvement >= average_case - rounding


def test_both_bounds_are_the_references(changes, float64):
    for discount, _, _, change in changes:
        worst_case, average_case = bounds(change, discount)
        expected = reference.improvement_bound(change, discount)
        np.testing.assert_allclose(worst_case, expected, rtol=1e-10, atol=1e-14)
        expected = reference.mean_kl_improvement_bound(change, discount)
        np.testing.assert_allclose(average_case, expected, rtol=1e-10, atol=1e-14)


def test_the_bounds_say_something_at_small_radii(changes, float64):
    """They promise an improvement, and without their penalty they would be false."""
    small = [
        bounds(change, discount)
        for discount, radius, _, change in changes
        if radius <= 1e-3 and discount <= 0.5
    ]
    worst_case, average_case = np.mean(np.array(small) > 0, axis=0)
    assert worst_case > 0.25
    assert average_case > 0.5
    without_penalty = [
        change.expected_advantage / (1 - discount) - change.improvement
        for discount, _, _, change in changes
    ]
    assert np.max(without_penalty) > 1e-6


def test_exact_changes_are_the_references(float64):
    rng = np.random.default_rng(3)
    mdp = jax.tree.map(lambda leaf: leaf[0], tabular.random_mdps(rng, np.array([0.9])))
    logits = jnp.asarray(rng.normal(size=(tabular.STATES, tabular.ACTIONS)))
    new, found = fast_jit(tabular.improve)(mdp, jnp.asarray(0.05), logits)
    exact = reference.TabularMDP(*map(np.asarray, mdp))
    change = reference.policy_change(exact, probabilities(logits), probabilities(new))
    worst_case, average_case = bounds(change, 0.9)
    expected = change.improvement, worst_case, average_case, change.mean_kl
    np.testing.assert_allclose(found[:4], expected, rtol=1e-9)
    # The mean over discounted states is what the update constrains.
    assert 0.8 * 0.05 <= found.kl <= 0.05


def test_both_bounds_hold_in_each_of_ten_thousand_updates(float64):
    """With exact advantages: ten updates each of 1,050 policies; some are refused."""
    rng = np.random.default_rng(4)
    discounts = rng.choice([0.0, 0.3, 0.8, 0.95, 0.99], size=1050)
    radii = 10 ** rng.uniform(-6, -1, size=1050)
    logits = jnp.asarray(rng.normal(size=(1050, tabular.STATES, tabular.ACTIONS)))
    change = fast_jit(tabular.improve_often, static_argnums=3)(
        tabular.random_mdps(rng, discounts), jnp.asarray(radii), logits, 10
    )
    change = tabular.Change(*map(np.asarray, change))
    assert np.sum(change.accepted) > 10_000
    for bound in (change.largest_kl, change.mean_kl):
        assert not tabular.violated(change.improvement, bound, discounts[:, None]).any()
        # Neither far below 0 everywhere, nor without effect.
        assert np.mean(bound > 0) > 0.2
        assert np.mean(bound < change.improvement * (1 - 1e-6)) > 0.7


def test_known_values():
    values = map(jnp.float32, (0.5, 0.01, 2.0))
    np.testing.assert_allclose(
        improvement_bound(*values, discount=0.5), 1 - 16 * 0.01, rtol=1e-6
    )
    values = map(jnp.float32, (0.5, 0.02, 2.0))
    np.testing.assert_allclose(
        mean_kl_improvement_bound(*values, discount=0.5), 1 - 8 * 0.1, rtol=1e-6
    )
    zeros = [jnp.float32(0), jnp.float32(0), jnp.float32(3)]
    assert improvement_bound(*zeros, discount=0.9) == 0
    assert mean_kl_improvement_bound(*zeros, discount=0.9) == 0


def test_a_kl_of_zero_that_rounding_made_negative_is_no_nan():
    """As Σ p (log p − log q) may be, in single precision, for equal p and q."""
    arguments = jnp.float32(0.5), jnp.float32(-1e-9), jnp.float32(2.0)
    for bound in (improvement_bound, mean_kl_improvement_bound):
        np.testing.assert_allclose(bound(*arguments, discount=0.5), 1, atol=1e-6)


@pytest.mark.parametrize("bound", [improvement_bound, mean_kl_improvement_bound])
def test_jit_vmap_and_gradients(bound, float64):
    rng = np.random.default_rng(2)
    columns = [jnp.asarray(column) for column in rng.uniform(0.1, 1, size=(3, 4))]

    def at(*arguments):
        return bound(*arguments, discount=0.9)

    looped = jnp.stack([at(*row) for row in zip(*columns, strict=True)])
    chex.clear_trace_counter()
    compiled = fast_jit(chex.assert_max_traces(at, n=1))
    rows = [compiled(*row) for row in zip(*columns, strict=True)]
    np.testing.assert_allclose(jnp.stack(rows), looped, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(at)(*columns), looped, rtol=1e-12)
    gradients = jax.vmap(jax.grad(at, argnums=(0, 1, 2)))(*columns)
    assert np.all(np.isfinite(gradients))
    np.testing.assert_allclose(gradients[0], 10.0, rtol=1e-12)
    assert np.all(np.array(gradients[1:]) < 0)


@pytest.mark.parametrize("bound", [improvement_bound, mean_kl_improvement_bound])
@pytest.mark.parametrize("discount", [-0.1, 1.0, 1.5])
def test_a_discount_without_a_bound_is_refused(bound, discount):
    one = jnp.float32(1)
    with pytest.raises(ValueError, match=rf"discount={discount:g}.*write"):
        bound(one, one, one, discount=discount)
