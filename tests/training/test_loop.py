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
    critic_epochs=2,
    critic_minibatches=2,
    max_kl_schedule="linear",
    critic_learning_rate_schedule=optax.exponential_decay(1.0, 1, 0.5),
    normalize_observations=True,
    max_kl=0.02,
    critic_learning_rate=1e-2,
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


def test_train_is_init_and_a_loop_of_step(trained):
    state = fast_jit(init)(CONFIG, jax.random.key(CONFIG.seed))
    program = fast_jit(step)
    for update in range(NUM_UPDATES):
        state, metrics = program(CONFIG, state)
        assert_close(part(trained.metrics, update), metrics)
    assert_close(trained.state, state)


def test_result_holds_one_entry_for_each_update(trained):
    assert trained.config is CONFIG
    assert {leaf.shape for leaf in jax.tree.leaves(trained.metrics)} == {(NUM_UPDATES,)}
    np.testing.assert_array_equal(trained.metrics.env_steps, [32, 64, 96, 128])
    assert trained.state.updates == NUM_UPDATES


def test_schedules_scale_their_hyperparameters(trained):
    linear = [1, 0.75, 0.5, 0.25]
    np.testing.assert_allclose(trained.metrics.max_kl, 0.02 * np.array(linear))
    rates = 1e-2 * 0.5 ** np.arange(NUM_UPDATES)
    np.testing.assert_allclose(trained.metrics.critic_learning_rate, rates, rtol=1e-6)
    assert np.all(trained.metrics.update.kl <= trained.metrics.max_kl)


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
