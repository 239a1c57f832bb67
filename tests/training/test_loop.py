import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import compilations, fast_jit
from probes import CHAIN, TABULAR

from trpo_jax import (
    TRPOConfig,
    init,
    step,
    train,
)

NUM_UPDATES = 4
CONFIG = TRPOConfig(
    env=(TABULAR, CHAIN),
    num_envs=4,
    rollout_length=8,
    total_timesteps=NUM_UPDATES * 32,
    seed=3,
    hidden_sizes=(8,),
    cg_iterations=3,
    max_kl_schedule="linear",
    normalize_observations=True,
    max_kl=0.02,
)
FIRST_ORDER = dataclasses.replace(
    CONFIG,
    critic_fit="first_order",
    critic_epochs=2,
    critic_minibatches=2,
    critic_learning_rate=1e-2,
    critic_learning_rate_schedule=optax.exponential_decay(1.0, 1, 0.5),
)
FLOATS = CONFIG.hyperparameters


def numbers(tree):
    """The tree with its typed keys as numbers."""

    def convert(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(convert, tree)


def assert_close(actual, expected):
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    jax.tree.map(compare, numbers(actual), numbers(expected))


def part(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


@pytest.fixture(scope="module")
def trained():
    return train(CONFIG)


@pytest.fixture(scope="module")
def trained_first_order():
    return train(FIRST_ORDER)


@pytest.mark.parametrize("result", ["trained", "trained_first_order"])
def test_train_is_init_and_a_loop_of_step(result, request):
    result = request.getfixturevalue(result)
    config = result.config
    state = fast_jit(init)(config, jax.random.key(config.seed))
    program = fast_jit(step)
    for update in range(NUM_UPDATES):
        state, metrics = program(config, state)
        assert_close(part(result.metrics, update), metrics)
    assert_close(result.state, state)


def test_result_holds_one_entry_for_each_update(trained):
    assert trained.config is CONFIG
    assert {leaf.shape for leaf in jax.tree.leaves(trained.metrics)} == {(NUM_UPDATES,)}
    np.testing.assert_array_equal(trained.metrics.env_steps, [32, 64, 96, 128])
    assert trained.state.updates == NUM_UPDATES


def test_schedules_scale_their_hyperparameters(trained, trained_first_order):
    linear = [1, 0.75, 0.5, 0.25]
    rates = 1e-2 * 0.5 ** np.arange(NUM_UPDATES)
    metrics = trained_first_order.metrics
    np.testing.assert_allclose(metrics.critic_learning_rate, rates, rtol=1e-6)
    for metrics in (trained.metrics, trained_first_order.metrics):
        np.testing.assert_allclose(metrics.max_kl, 0.02 * np.array(linear))
        assert np.all(metrics.update.kl <= metrics.max_kl)


def test_the_critics_evidence_is_that_of_its_fit(trained, trained_first_order):
    for metrics in (trained.metrics, trained_first_order.metrics):
        assert np.all(np.isfinite(metrics.critic_loss))
    assert np.all(trained.metrics.critic_kl > 0)
    assert np.all(trained.metrics.critic_kl <= CONFIG.critic_max_kl)
    assert np.all(trained.metrics.critic_cg_relative_residual > 0)
    assert np.all(trained_first_order.metrics.critic_kl == 0)
    assert np.all(trained_first_order.metrics.critic_cg_relative_residual == 0)


def test_the_key_stands_for_the_seed(trained):
    assert_close(train(CONFIG, jax.random.key(3)).state, trained.state)


def test_another_seed_is_another_run_of_the_same_program(trained):
    with compilations() as compiled:
        other = train(dataclasses.replace(CONFIG, seed=4))
    assert not compiled
    assert np.all(other.metrics.critic_loss != trained.metrics.critic_loss)


def test_other_hyperparameters_are_another_run_of_the_same_program(trained):
    hyperparameters = CONFIG.hyperparameters._replace(max_kl=1e-4)
    replaced = dataclasses.replace(CONFIG, max_kl=1e-4)
    with compilations() as compiled:
        in_config = train(replaced)
        in_call = train(CONFIG, hyperparameters=hyperparameters)
    assert not compiled
    assert np.all(in_config.metrics.update.kl <= 1e-4)
    assert np.all(in_config.metrics.update.kl < trained.metrics.update.kl)
    assert_close(in_call.state.params, in_config.state.params)
    assert_close(in_call.metrics, in_config.metrics)


@pytest.mark.parametrize(
    ("hyperparameters", "error"),
    [
        (FLOATS._replace(max_kl=-0.01), ValueError),
        (FLOATS._replace(discount=1.5), ValueError),
        (FLOATS._replace(critic_max_kl=0.0), ValueError),
        (FLOATS._replace(critic_damping=-0.1), ValueError),
        (FLOATS._replace(max_kl=jnp.array([0.01, 0.02])), TypeError),
        ({"max_kl": 0.01}, TypeError),
    ],
)
@pytest.mark.usefixtures("no_shape_checks")
def test_bad_hyperparameters_are_refused(hyperparameters, error):
    with pytest.raises(error, match="; write "):
        train(CONFIG, hyperparameters=hyperparameters)


def test_several_seeds_are_independent_runs_side_by_side(trained):
    config = dataclasses.replace(CONFIG, num_seeds=2)
    together = fast_jit(train)(config)
    assert {leaf.shape for leaf in jax.tree.leaves(together.metrics)} == {(2, 4)}
    for seed, key in enumerate(jax.random.split(jax.random.key(CONFIG.seed), 2)):
        alone = train(CONFIG, key)
        assert_close(part(together.state, seed), alone.state)
        assert_close(part(together.metrics, seed), alone.metrics)
    losses = together.metrics.critic_loss
    assert np.all(losses[0] != losses[1])


def test_a_sweep_is_a_vmap_over_keys_and_hyperparameters(trained):
    keys = jax.random.split(jax.random.key(5), 3)
    radii = jnp.array([0.001, 0.01, 0.1])

    @fast_jit
    @jax.vmap
    def sweep(key, max_kl):
        hyperparameters = CONFIG.hyperparameters._replace(max_kl=max_kl)
        result = train(CONFIG, key, hyperparameters=hyperparameters)
        return result.state, result.metrics

    others = (keys[::-1], 2 * radii)
    swept = sweep(keys, radii)
    with compilations() as compiled:
        sweep(*others)
    assert not compiled
    for i in range(3):
        hyperparameters = CONFIG.hyperparameters._replace(max_kl=float(radii[i]))
        alone = train(CONFIG, keys[i], hyperparameters=hyperparameters)
        state, metrics = part(swept, i)
        assert_close((state.params, metrics), (alone.state.params, alone.metrics))
