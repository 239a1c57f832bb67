"""Training under the switches that people use to find faults of their own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import checking_leaks, fast_jit
from probes import CHAIN, NO_LIMIT, TABULAR

from trpo_jax import (
    RunSettings,
    TRPOConfig,
    UpdateStatus,
    evaluate,
    init,
    run,
    step,
    train,
)

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
SHORT = dataclasses.replace(CONFIG, rollout_length=2)
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
    ("fields", "environments"),
    [
        ({"memory_size": 2}, [CHAIN]),
        ({}, [ENDLESS, NO_REWARD]),
        (FIRST_ORDER, [NO_REWARD]),
    ],
)
def test_no_nan_is_met_that_is_meant(fields, environments):
    """Also where no episode ends, and where nothing varies."""

    @fast_jit
    def metrics_in(tables):
        config = dataclasses.replace(CONFIG, env=(TABULAR, tables), **fields)
        return train(config).metrics

    for tables in environments:
        with jax.debug_nans(True), jax.debug_infs(True):
            metrics = metrics_in(tables)
            returns = metrics.episode_return
        assert np.all(np.isnan(returns) == (metrics.episode_count == 0))


def test_a_nan_of_the_environment_is_found():
    bad = CHAIN.replace(reward=CHAIN.reward * jnp.nan)
    config = dataclasses.replace(CONFIG, env=(TABULAR, bad))
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        train(config)


@pytest.mark.parametrize(
    ("env", "precisions"),
    [
        ("CartPole-v1", ("single", "double")),
        ("Pendulum-v1", ("double",)),
        ("Catch-bsuite", ("double",)),
    ],
)
def test_training_in_double_precision_also_after_single(env, precisions):
    config = dataclasses.replace(CONFIG, env=env)
    train_once = fast_jit(train, static_argnums=0)
    for precision in precisions:
        with jax.enable_x64(precision == "double"):
            metrics = train_once(config, jax.random.key(0)).metrics
        assert np.all(metrics.update.status == UpdateStatus.ACCEPTED)


def test_another_key_implementation():
    with jax.default_prng_impl("rbg"):
        metrics = train(CONFIG).metrics
    assert np.all(metrics.update.status == UpdateStatus.ACCEPTED)


def test_without_jit_it_is_the_same_to_rounding(no_shape_checks):
    state = jax.jit(init)(SHORT, jax.random.key(0))
    _, compiled = jax.jit(step)(SHORT, state)
    with jax.disable_jit():
        _, eager = step(SHORT, state)
    np.testing.assert_allclose(eager.update.kl, compiled.update.kl, rtol=1e-3)


def test_nothing_leaks():
    with checking_leaks():
        metrics = train(CONFIG).metrics
    assert np.all(metrics.update.status == UpdateStatus.ACCEPTED)


@pytest.mark.parametrize(
    "fields",
    [
        {"memory_size": 2},
        {"env": "Pendulum-v1", "action_distribution": "gsde", "noise_period": 2},
    ],
)
def test_no_key_is_used_twice(fields):
    """JAX's own checker works on traces, without compilation."""
    config = dataclasses.replace(CONFIG, **fields)
    with jax.debug_key_reuse(True):
        start, playing, key = jax.random.split(jax.random.key(0), 3)
        jax.eval_shape(lambda key: train(config, key)[:2], key)
        jax.eval_shape(
            lambda start, key: evaluate(config, init(config, start), key, 2),
            start,
            playing,
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_legacy_prng_key", "error"),
        ("jax_enable_checks", True),
        ("jax_threefry_partitionable", False),
        ("jax_default_matmul_precision", "bfloat16"),
    ],
)
def test_training_and_evaluation_trace_under_other_settings(name, value):
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        key = jax.random.key(0)
        jax.eval_shape(lambda: train(CONFIG, key)[:2])
        jax.eval_shape(lambda: evaluate(CONFIG, init(CONFIG, key), key, 2))
    finally:
        jax.config.update(name, before)


def test_a_compiled_step_moves_nothing_to_the_device():
    program = jax.jit(step)
    state, _ = program(SHORT, jax.jit(init)(SHORT, jax.random.key(0)))
    with jax.transfer_guard("disallow"):
        program(SHORT, state)


def test_a_run_leaks_nothing():
    with checking_leaks():
        settings = RunSettings(evaluation_episodes=2)
        result = run(CONFIG, settings=settings, progress=False)
    assert result.state.updates == 2


def test_programs_of_other_settings_are_not_taken_for_these():
    """The same config trains under other settings before, between and after."""

    def returns():
        result = train(CONFIG, jax.random.key(0))
        return result.metrics.critic_loss, evaluate(
            CONFIG, result.state, jax.random.key(1), 2
        )

    with jax.enable_x64(True):
        returns()
    first = returns()
    with jax.default_prng_impl("rbg"):
        other = returns()
    jax.tree.map(np.testing.assert_array_equal, returns(), first)
    assert np.all(other[0] != first[0])
