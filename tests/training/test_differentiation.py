"""Derivatives through whole steps, and a meta-gradient that improves something."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import policies
import pytest
from compiling import fast_jit
from probes import CHAIN, TABULAR, by_state, make_tables

from trpo_jax import TRPOConfig, init, step
from trpo_jax.trust_region import surrogate, trust_region_update

CONFIG = TRPOConfig(
    env=(TABULAR, CHAIN),
    num_envs=4,
    rollout_length=6,
    total_timesteps=48,
    hidden_sizes=(3,),
    fisher_stride=1,
    cg_iterations=50,
    cg_tolerance=1e-12,
    # An accepted fraction is a constant to differentiation. That of interpolation moves
    # with the hyperparameters.
    line_search="backtracking",
    critic_cg_iterations=50,
    normalize_observations=True,
    normalize_returns=True,
)
FITS = {
    "trust_region": CONFIG,
    "first_order": dataclasses.replace(
        CONFIG,
        critic_cg_iterations=10,
        critic_fit="first_order",
        critic_epochs=2,
        critic_minibatches=2,
    ),
}
OF_OTHER_UPDATES = {
    "clip_ratio",
    "kl_coefficient",
    "natural_step_size",
    "policy_learning_rate",
    "multiplier_learning_rate",
    "multiplier_proportional_gain",
    "multiplier_derivative_gain",
}
IGNORED = {
    "trust_region": {"critic_learning_rate"} | OF_OTHER_UPDATES,
    "first_order": {"critic_max_kl", "critic_damping"} | OF_OTHER_UPDATES,
}
"""Hyperparameters that a step with this fit does not read."""


def two_steps(config, state):
    """Return the state after two steps, and the metrics of the second."""
    # A loop, so that the step is compiled once.
    state, metrics = jax.lax.scan(lambda state, _: step(config, state), state, length=2)
    return state, jax.tree.map(lambda leaf: leaf[1], metrics)


@pytest.mark.parametrize(
    ("memory_size", "fit"),
    [
        (0, "first_order"),
        (0, "trust_region"),
        pytest.param(2, "trust_region", marks=pytest.mark.slow),
    ],
)
def test_two_steps_are_differentiated_as_finite_differences_say(
    memory_size, fit, float64
):
    """In all floats at once; what is drawn in the second rollout stays the same."""
    config = dataclasses.replace(FITS[fit], memory_size=memory_size)
    start = fast_jit(init)(config, jax.random.key(0))
    state = jax.tree.map(
        lambda leaf: leaf.astype(float) if leaf.dtype == jnp.float32 else leaf, start
    )._replace(rollout=start.rollout)  # environments stay in single precision

    def outcome(hyperparameters):
        after, metrics = two_steps(
            config, state._replace(hyperparameters=hyperparameters)
        )
        leaves = jax.tree.leaves((after.params, after.critic_params))
        weights = sum(jnp.sum(jnp.sin(leaf)) for leaf in leaves)
        return weights + metrics.critic_loss + metrics.update.surrogate_after

    point = config.hyperparameters._replace(
        max_kl=0.01,
        damping=0.1,
        discount=0.9,
        gae_lambda=0.8,
        critic_learning_rate=1e-2,
        critic_max_kl=0.05,  # so small that it bounds the step
        critic_damping=0.01,
        entropy_coefficient=0.05,
    )
    point = jax.tree.map(jnp.asarray, point)
    scales = jax.tree.map(lambda value: 0.1 * value, point)

    @fast_jit
    def slopes(point):
        value, forward = jax.jvp(outcome, (point,), (scales,))
        return value, forward, jax.grad(outcome)(point)

    _, forward, gradient = slopes(point)
    width = 1e-5
    (ahead, *_), (behind, *_) = (
        slopes(optax.tree.add_scale(point, sign * width, scales)) for sign in (1, -1)
    )
    np.testing.assert_allclose(forward, (ahead - behind) / (2 * width), rtol=1e-4)
    np.testing.assert_allclose(optax.tree.vdot(gradient, scales), forward, rtol=1e-8)
    for name, slope in gradient._asdict().items():
        assert (slope == 0) == (name in IGNORED[fit]), name


def test_a_meta_gradient_finds_a_better_damping(float64):
    """Ascend, in log λ, what an update gains on transitions that it has not seen."""
    rng = np.random.default_rng(0)
    params = policies.make_params("categorical", rng)
    seen, unseen = (policies.make_batch("categorical", rng, params, 40) for _ in "ab")

    def gain(log_damping):
        new, _ = trust_region_update(
            policies.categorical,
            params,
            seen,
            damping=jnp.exp(log_damping),
            cg_iterations=30,
            interpolate=False,  # which makes up for most of what a damping does
        )
        log_probs = policies.categorical(new, unseen.observations).log_prob(
            unseen.actions
        )
        return surrogate(log_probs, unseen.log_probs, unseen.advantages)

    value_and_slope = fast_jit(jax.value_and_grad(gain))
    log_damping, gains = jnp.log(1e-3), []
    for _ in range(30):
        value, slope = value_and_slope(log_damping)
        gains.append(value)
        log_damping += 0.5 * jnp.sign(slope)
    assert max(gains) > gains[0] + 0.01


# Each has a derivative that is NaN unless it is kept out, in one part of the step:
# the tables of the environment, and a factor of the radius.
NOTHING_VARIES = {
    # A gradient that is always 0 has a second moment of 0 in Adam.
    "constant observations": (
        CHAIN.replace(features=CHAIN.features.at[:, 0].set(0.0)),
        1.0,
    ),
    # Every episode is one step with the same reward: the variance of advantages and of
    # returns is 0, and so are the policy gradient and xᵀFx in the step size.
    "equal advantages": (make_tables(by_state(1.0), features=np.eye(4, 3)), 1.0),
    # The root of δ in the step size.
    "no radius": (CHAIN, 0.0),
}


@functools.partial(fast_jit, static_argnames="fit")
def meta_gradient(fit, tables, factor):
    config = dataclasses.replace(
        FITS[fit],
        env=(TABULAR, tables),
        cg_iterations=5,
        activation="relu",
        max_kl_schedule=lambda update: factor,
    )

    def outcome(hyperparameters):
        state = init(config, jax.random.key(0))._replace(
            hyperparameters=hyperparameters
        )
        _, metrics = two_steps(config, state)
        evidence = metrics.critic_loss + metrics.critic_kl
        return evidence + metrics.update.surrogate_after

    floats = jax.tree.map(jnp.float32, config.hyperparameters)
    return jax.grad(outcome)(floats)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("case", NOTHING_VARIES)
def test_meta_gradients_are_finite_where_nothing_varies(case, fit):
    gradient = meta_gradient(fit, *NOTHING_VARIES[case])
    assert all(np.isfinite(slope) for slope in gradient)
