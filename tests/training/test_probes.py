"""Each probe fails with one part of training, and learns in seconds without a fault.

After Andy Jones, "Debugging RL, Without the Agonizing Pain" (2021).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit
from probes import TABULAR, by_state, make_tables

from trpo_jax import (
    TRPOConfig,
    UpdateStatus,
    init,
    step,
)
from trpo_jax.training.components import make_networks

DISCOUNT = 0.8
PROBES = {
    "value": make_tables(by_state(1)),
    "value by state": make_tables(by_state(-1, 1), num_starts=2),
    "discounting": make_tables(
        by_state(0, 1), next_position=1, terminal=by_state(False, True)
    ),
    "action": make_tables(np.tile([-1, 1], (4, 1))),
    "action by state": make_tables([[1, -1], [-1, 1], [0, 0], [0, 0]], num_starts=2),
    "delayed reward": make_tables(
        by_state(0, -1, 1),
        next_position=np.tile([1, 2], (4, 1)),
        terminal=by_state(False, True, True),
    ),
    "truncation": make_tables(by_state(1), terminal=False, max_steps_in_episode=3),
}


def learn(fit, tables, key):
    config = TRPOConfig(
        env=(TABULAR, tables),
        num_envs=8,
        rollout_length=16,
        total_timesteps=60 * 8 * 16,
        hidden_sizes=(8,),
        discount=DISCOUNT,
        **fit,
    )

    def body(state, _):
        return step(config, state)

    state, metrics = jax.lax.scan(body, init(config, key), length=config.num_updates)
    policy, critic = make_networks(config, config.env)
    values = critic.apply(state.critic_params, tables.features)
    log_probs = policy.apply(state.params, tables.features).log_probs()
    return {"V": values, "π": jnp.exp(log_probs), "metrics": metrics}


FITS = {
    "trust_region": {},
    "first_order": {"critic_fit": "first_order", "critic_learning_rate": 1e-2},
}


@pytest.fixture(scope="module", params=FITS)
def learnt(request):
    """Results of all probes, trained side by side in one program."""
    program = functools.partial(learn, FITS[request.param])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *PROBES.values())
    keys = jax.random.split(jax.random.key(0), len(PROBES))
    results = jax.device_get(fast_jit(jax.vmap(program))(stacked, keys))
    return {
        name: jax.tree.map(lambda leaf, i=i: leaf[i], results)
        for i, name in enumerate(PROBES)
    }


assert_close = functools.partial(np.testing.assert_allclose, atol=0.05)


def test_critic_learns_a_constant(learnt):
    assert_close(learnt["value"]["V"][0], 1)


def test_critic_tells_states_apart(learnt):
    assert_close(learnt["value by state"]["V"][:2], [-1, 1])


def test_critic_discounts_what_comes_later(learnt):
    assert_close(learnt["discounting"]["V"][:2], [DISCOUNT, 1])


def test_policy_prefers_the_better_action(learnt):
    probe = learnt["action"]
    assert probe["π"][0, 1] > 0.95
    assert_close(probe["V"][0], 2 * probe["π"][0, 1] - 1, atol=0.1)


def test_policy_prefers_another_action_in_another_state(learnt):
    probe = learnt["action by state"]
    assert probe["π"][0, 0] > 0.95
    assert probe["π"][1, 1] > 0.95
    assert_close(probe["V"][:2], 1, atol=0.1)


def test_policy_prefers_an_action_that_pays_later(learnt):
    probe = learnt["delayed reward"]
    assert probe["π"][0, 1] > 0.95
    assert_close(probe["V"][:3], [DISCOUNT, -1, 1], atol=0.1)


def test_critic_looks_beyond_a_time_limit(learnt):
    # r/(1−γ) = 5; the three steps that an episode has are worth 2.44 at most.
    assert_close(learnt["truncation"]["V"][0], 1 / (1 - DISCOUNT), atol=0.1)


def test_equal_advantages_are_no_update(learnt):
    """One state, one step, one reward: every advantage is the same."""
    status = learnt["value"]["metrics"].update.status
    assert np.mean(status == UpdateStatus.ZERO_GRADIENT) > 0.5
    assert np.all(learnt["value"]["metrics"].update.kl[status != 0] == 0)


@pytest.mark.parametrize("memory", ["gru", "lru"])
def test_policy_remembers_where_an_episode_started(memory):
    """Two starts lead to states that look alike and want different actions."""
    tables = make_tables(
        [[0, 0], [0, 0], [1, -1], [-1, 1]],
        next_position=by_state(2, 3),
        terminal=by_state(False, False, True, True),
        features=[[1, 0], [0, 1], [0, 0], [0, 0]],
        num_starts=2,
    )
    config = TRPOConfig(
        env=(TABULAR, tables),
        num_envs=8,
        rollout_length=16,
        total_timesteps=60 * 8 * 16,
        hidden_sizes=(8,),
        memory_size=4,
        memory=memory,
        max_kl=0.05,
    )

    def body(state, _):
        return step(config, state)

    @fast_jit
    def returns(key):
        _, metrics = jax.lax.scan(body, init(config, key), length=config.num_updates)
        return metrics.episode_return

    # Without a memory, 0 at best.
    assert np.mean(returns(jax.random.key(0))[-10:]) > 0.9
