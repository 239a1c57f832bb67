"""Each update by its name in a config, and one of the user's own."""

import dataclasses
import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import policies
import pytest
import tiny
from compiling import fast_jit
from probes import CHAIN, TABULAR, Toll
from tiny import Line

from trpo_jax import TRPOConfig, UpdateStatus, init, step
from trpo_jax.environments import Discrete
from trpo_jax.training import (
    config_checks,
    init_cells,
    make_cells,
    make_settings,
    program_of,
)
from trpo_jax.training import policy_update as module
from trpo_jax.training.policy_update import UpdateInputs, init_update, update_policy
from trpo_jax.trust_region import certify, trust_region_update

SMALL = {
    "env": (TABULAR, CHAIN),
    "num_envs": 4,
    "rollout_length": 8,
    "total_timesteps": 4 * 32,
    "hidden_sizes": (4,),
}
N = 12


def ascend(policy_fn, params, batch, key, hyperparameters):
    """A step of the policy gradient."""

    def surrogate(params):
        log_probs = policy_fn(params, batch.observations).log_prob(batch.actions)
        return jnp.mean(jnp.exp(log_probs - batch.log_probs) * batch.advantages)

    gradient = jax.grad(surrogate)(params)
    return optax.tree.add_scale(params, hyperparameters.policy_learning_rate, gradient)


UPDATES = (*config_checks.UPDATES, ascend)


def make_inputs(config):
    """What an update is given, of a policy with two layers."""
    rng = np.random.default_rng(0)
    params = policies.make_params("categorical", rng, np.float32)
    batch = policies.make_batch("categorical", rng, params, N, np.float32)
    return UpdateInputs(
        policies.categorical,
        params,
        init_update(config, params),
        batch,
        batch,
        None,
        jax.tree.map(jnp.float32, config.hyperparameters),
        jax.random.key(0),
    )


def updated(config, inputs=None):
    """Return (params, state, evidence) of one compiled update."""
    inputs = inputs or make_inputs(config)
    fixed = {name: getattr(inputs, name) for name in ("policy_fn", "micro_batch_size")}
    traced = inputs._replace(**dict.fromkeys(fixed))
    return fast_jit(lambda traced: update_policy(config, traced._replace(**fixed)))(
        traced
    )[:3]


@pytest.mark.parametrize("update", UPDATES)
def test_the_state_keeps_its_structure_shapes_and_types(update):
    limited = update in config_checks.CONSTRAINED
    costs = {"env": Toll(), "cost_limits": (1.0, 2.0)} if limited else {}
    config = TRPOConfig(**SMALL | costs, update=update)
    before = jax.eval_shape(init, config, jax.random.key(0))
    after, _ = jax.eval_shape(step, config, before)

    def describe(leaf):
        return leaf.shape, leaf.dtype, leaf.weak_type

    assert jax.tree.structure(after) == jax.tree.structure(before)
    assert jax.tree.map(describe, after) == jax.tree.map(describe, before)
    kept = update in (*config_checks.FIRST_ORDER, "trpo_lagrangian", "trpo_pid")
    assert (after.update_state == ()) is not kept


FIRST_ORDER = {"policy_epochs": 3, "policy_minibatches": 2}
SOLVE = {"cg_iterations": 3, "cg_tolerance": 1e-4, "preconditioner_groups": 4}
SEARCH = {"max_backtracks": 7, "backtrack_factor": 0.7, "line_search_width": 2}


@pytest.mark.parametrize(
    ("name", "fields", "passed"),
    [
        ("trust_region_update", {"update": "trpo", **SOLVE, **SEARCH}, SOLVE | SEARCH),
        ("natural_gradient_update", {"update": "npg", **SOLVE}, SOLVE),
        ("natural_gradient_update", {"update": "tnpg"}, {"step_size": None}),
        (
            "clipped_update",
            {"update": "ppo", **FIRST_ORDER},
            {"epochs": 3, "num_minibatches": 2},
        ),
        (
            "projection_update",
            {"update": "projection", **FIRST_ORDER},
            {"epochs": 3, "num_minibatches": 2},
        ),
        (
            "kl_penalized_update",
            {"update": "ppo_penalty", **FIRST_ORDER},
            {"epochs": 3, "num_minibatches": 2},
        ),
    ],
)
def test_every_field_reaches_its_update(name, fields, passed, monkeypatch):
    seen = {}
    part = getattr(module, name)

    def watched(*args, **kwargs):
        seen.update(kwargs)
        return part(*args, **kwargs)

    monkeypatch.setattr(module, name, watched)
    config = TRPOConfig(**SMALL, **fields, max_kl=0.02, entropy_coefficient=0.05)
    inputs = make_inputs(config)
    jax.eval_shape(
        lambda params: update_policy(config, inputs._replace(params=params)),
        inputs.params,
    )
    assert {option: seen[option] for option in passed} == passed
    assert seen["max_kl"] == np.float32(0.02)
    assert seen["entropy_coefficient"] == np.float32(0.05)


def test_without_a_radius_of_its_own_npg_takes_its_step_size():
    config = TRPOConfig(**SMALL, update="npg", natural_step_size=0.3)
    *_, info = updated(config)
    assert info.step_size == np.float32(0.3)
    *_, truncated = updated(TRPOConfig(**SMALL, update="tnpg"))
    assert truncated.kl_predicted == pytest.approx(0.01, rel=1e-3)


def test_an_update_of_ones_own_moves_the_policy_and_is_described():
    config = TRPOConfig(**SMALL, update=ascend, policy_learning_rate=0.5)
    inputs = make_inputs(config)
    params, state, info = updated(config, inputs)
    expected = ascend(*inputs[:2], inputs.batch, inputs.key, inputs.hyperparameters)
    chex.assert_trees_all_close(params, expected, rtol=1e-5)
    assert state == ()
    evidence = certify(*inputs[:2], expected, inputs.batch)
    chex.assert_trees_all_close(info, evidence, rtol=1e-3, atol=1e-6)
    assert info.status == UpdateStatus.ACCEPTED
    assert info.surrogate_after > info.surrogate_before
    assert info.kl > 0


def test_an_update_of_ones_own_may_bring_its_evidence():
    def own(policy_fn, params, batch, key, hyperparameters):
        return trust_region_update(policy_fn, params, batch, damping=0.3)

    config = TRPOConfig(**SMALL, update=own)
    inputs = make_inputs(config)
    params, _, info = updated(config, inputs)
    expected, evidence = own(*inputs[:2], inputs.batch, None, None)
    chex.assert_trees_all_close(params, expected, rtol=1e-4)
    assert info.cg_iterations == evidence.cg_iterations > 0
    np.testing.assert_allclose(info.kl_ratio, evidence.kl_ratio, rtol=1e-2)

    def diverge(*args):
        return jax.tree.map(lambda leaf: leaf * jnp.nan, own(*args)[0]), evidence

    def spoilt(*args):
        params, evidence = own(*args)
        return params, evidence._replace(kl=jnp.ones(3))

    with pytest.raises(TypeError, match=r"kl=float32\[3\].* as of .*certify"):
        updated(TRPOConfig(**SMALL, update=spoilt), inputs)

    kept, _, info = updated(TRPOConfig(**SMALL, update=diverge), inputs)
    jax.tree.map(np.testing.assert_array_equal, kept, inputs.params)
    assert info.status == UpdateStatus.NON_FINITE


def test_an_update_of_ones_own_that_is_not_finite_is_refused():
    def diverge(policy_fn, params, batch, key, hyperparameters):
        return jax.tree.map(lambda leaf: leaf + jnp.nan, params)

    config = TRPOConfig(**SMALL, update=diverge)
    inputs = make_inputs(config)
    params, _, info = updated(config, inputs)
    jax.tree.map(np.testing.assert_array_equal, params, inputs.params)
    assert info.status == UpdateStatus.NON_FINITE
    assert info.kl == 0


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda params: params["bias"], "update returns float32[4] for params"),
        (lambda params: (params, 0.5), "update returns ({'bias': float32[4]"),
        (lambda params: params | {"bias": 1.0}, "'bias': float"),
        (lambda params: None, "update returns None"),
        (lambda params: (), "update returns ()"),
        (
            lambda params: params | {"bias": params["bias"].astype(jnp.float16)},
            "float16[4]",
        ),
    ],
)
def test_an_update_that_returns_something_else_is_refused_with_advice(change, found):
    def own(policy_fn, params, batch, key, hyperparameters):
        return change(params)

    config = TRPOConfig(**SMALL, update=own)
    advice = "write a function (policy_fn, params, batch, key, hyperparameters) ↦ par"
    with pytest.raises(TypeError, match=re.escape(found)) as raised:
        update_policy(config, make_inputs(config))
    assert advice in str(raised.value)


# Settings in sweeps and later runs ---------------------------------------------------


def test_the_weight_of_the_penalty_starts_at_that_of_each_cell():
    """It is a float of the run, which a sweep replaces in the state."""
    config = TRPOConfig(**SMALL, update="ppo_penalty", max_kl=1e-6)
    settings = make_settings(config, {"kl_coefficient": [0.5, 4.0]})
    state = fast_jit(init_cells)(program_of(config), make_cells(settings))
    np.testing.assert_array_equal(state.hyperparameters.kl_coefficient, [0.5, 4.0])
    np.testing.assert_array_equal(state.update_state[1], [1, 1])
    inputs = make_inputs(config)

    @fast_jit
    @jax.vmap
    def weights(kl_coefficient):
        floats = inputs.hyperparameters._replace(kl_coefficient=kl_coefficient)
        params, state, *_ = update_policy(
            config, inputs._replace(hyperparameters=floats)
        )
        return params, state[1]

    params, multiples = weights(jnp.array([0.5, 4.0]))
    np.testing.assert_array_equal(multiples, [2, 2])
    assert np.any(params["output"][0] != params["output"][1])


def test_the_weight_of_the_penalty_follows_its_hyperparameter():
    config = TRPOConfig(**SMALL, update="ppo_penalty")
    before = fast_jit(init)(config, jax.random.key(0))
    learned = before._replace(update_state=(before.update_state[0], jnp.float32(0.25)))
    other = dataclasses.replace(config, kl_coefficient=8.0)
    state = learned.with_hyperparameters_of(other)
    assert state.hyperparameters.kl_coefficient * state.update_state[1] == 2
    jax.eval_shape(partial(step, other), state)


def test_floats_of_each_update_are_swept_in_one_program():
    ratios = jnp.array([0.001, 0.5])
    config = TRPOConfig(**SMALL, update="ppo", policy_learning_rate=0.05)
    inputs = make_inputs(config)

    @fast_jit
    @jax.vmap
    def kl(clip_ratio):
        floats = inputs.hyperparameters._replace(clip_ratio=clip_ratio)
        return update_policy(config, inputs._replace(hyperparameters=floats))[2].kl

    small, large = kl(ratios)
    assert 0 < small < large


def test_a_warm_start_of_another_update_begins_with_a_fresh_optimiser():
    trained = fast_jit(init)(TRPOConfig(**SMALL), jax.random.key(0))
    config = TRPOConfig(**SMALL, update="ppo")
    fresh = fast_jit(init)(config, jax.random.key(1))
    warm = fresh.with_networks_of(trained)
    jax.tree.map(np.testing.assert_array_equal, warm.params, trained.params)
    jax.tree.map(np.testing.assert_array_equal, warm.update_state, fresh.update_state)
    with pytest.raises(ValueError, match="update: 'trpo' and 'ppo'"):
        step(config, trained)


# Whole runs ---------------------------------------------------------------------------


def test_several_seeds_of_a_policy_with_a_memory_and_masked_actions():
    config, state = tiny.make_state(
        Line(Discrete(3), masked=True),
        update="ppo_penalty",
        memory_size=2,
        num_seeds=2,
        policy_learning_rate=0.05,
        critic_fit="first_order",
    )
    steps = fast_jit(jax.vmap(partial(step, config)))
    _, metrics = steps(state)
    np.testing.assert_array_equal(metrics.update.status, UpdateStatus.ACCEPTED)
    assert np.all(np.isfinite(metrics.update.kl))
    assert metrics.update.kl.shape == (2,)


def test_a_run_of_ppo_is_resumed_bit_for_bit(tmp_path, monkeypatch):
    config = dataclasses.replace(
        tiny.CONFIG, update="ppo_penalty", total_timesteps=16 * 6
    )
    settings = dataclasses.replace(tiny.SETTINGS, checkpoint_updates=2)
    whole = tiny.run(tmp_path / "whole", config, settings)
    tiny.run_until_killed(tmp_path / "run", 3, monkeypatch, config, settings)
    resumed = tiny.resume(tmp_path / "run")
    for name in ("params", "update_state"):
        jax.tree.map(
            np.testing.assert_array_equal,
            getattr(resumed.state, name),
            getattr(whole.state, name),
        )


def test_learning_rates_are_annealed():
    """Half of the way through, a step of gradient descent is half as long."""
    config = TRPOConfig(
        **SMALL,
        update="ppo",
        policy_epochs=1,
        policy_minibatches=1,
        policy_optimizer="sgd",
        policy_learning_rate=0.1,
        policy_learning_rate_schedule="linear",
        critic_fit="first_order",
        critic_epochs=1,
        critic_minibatches=1,
        critic_optimizer="sgd",
        critic_learning_rate=0.1,
        critic_learning_rate_schedule="linear",
    )
    state = fast_jit(init)(config, jax.random.key(0))
    moved = fast_jit(partial(step, config))
    first, _ = moved(state)
    later, metrics = moved(state._replace(updates=jnp.int32(2)))
    assert metrics.critic_learning_rate == np.float32(0.05)
    for name in ("params", "critic_params"):
        start = getattr(state, name)
        full, half = (
            optax.tree.sub(getattr(end, name), start) for end in (first, later)
        )
        assert optax.tree.norm(full) > 1e-4
        chex.assert_trees_all_close(
            half, optax.tree.scale(0.5, full), rtol=1e-3, atol=1e-7
        )
