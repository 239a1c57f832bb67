"""Training under the switches that people use to find faults of their own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import CHAIN, NO_LIMIT, TABULAR

from trpo_jax import TRPOConfig, UpdateStatus, init, step, train

CONFIG = TRPOConfig(
    env=(TABULAR, CHAIN),
    num_envs=2,
    rollout_length=4,
    total_timesteps=16,
    hidden_sizes=(3,),
    cg_iterations=2,
    critic_cg_iterations=2,
    max_kl_schedule="linear",
    normalize_observations=True,
    normalize_returns=True,
)
FIRST_ORDER = {
    "critic_fit": "first_order",
    "critic_cg_iterations": 10,
    "critic_epochs": 1,
}
ENDLESS = CHAIN.replace(
    terminal=jnp.zeros_like(CHAIN.terminal), max_steps_in_episode=jnp.int32(NO_LIMIT)
)
NO_REWARD = CHAIN.replace(reward=jnp.zeros_like(CHAIN.reward))


@pytest.mark.parametrize(
    ("tables", "fields"),
    [
        (CHAIN, {"memory_size": 2}),
        (ENDLESS, {}),
        (NO_REWARD, {}),
        (NO_REWARD, FIRST_ORDER),
    ],
)
def test_no_nan_is_met_that_is_meant(tables, fields):
    """Where no episode ends, and where nothing varies, among others."""
    config = dataclasses.replace(CONFIG, env=(TABULAR, tables), **fields)
    with jax.debug_nans(True), jax.debug_infs(True):
        metrics = train(config).metrics
    assert np.all(np.isnan(metrics.episode_return) == (metrics.episode_count == 0))


def test_a_nan_of_the_environment_is_found():
    bad = CHAIN.replace(reward=CHAIN.reward * jnp.nan)
    config = dataclasses.replace(CONFIG, env=(TABULAR, bad))
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        train(config)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "Catch-bsuite"])
def test_training_in_double_precision_after_single(env):
    config = dataclasses.replace(CONFIG, env=env)
    train_once = jax.jit(train, static_argnums=0)
    for x64 in (False, True):
        with jax.enable_x64(x64):
            metrics = train_once(config, jax.random.key(0)).metrics
        assert np.all(metrics.update.status == UpdateStatus.ACCEPTED)


def test_another_key_implementation():
    with jax.default_prng_impl("rbg"):
        metrics = train(CONFIG).metrics
    assert np.all(metrics.update.status == UpdateStatus.ACCEPTED)


def test_without_jit_it_is_the_same_to_rounding(no_shape_checks):
    config = dataclasses.replace(CONFIG, rollout_length=2)
    state = jax.jit(init)(config, jax.random.key(0))
    _, compiled = jax.jit(step)(config, state)
    with jax.disable_jit():
        _, eager = step(config, state)
    np.testing.assert_allclose(eager.update.kl, compiled.update.kl, rtol=1e-3)


def test_nothing_leaks():
    with jax.checking_leaks():
        metrics = train(CONFIG).metrics
    assert np.all(metrics.update.status == UpdateStatus.ACCEPTED)
