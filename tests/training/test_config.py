import copy
import dataclasses
import inspect
import math
import pickle
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import compilations
from probes import CHAIN, TABULAR

from trpo_jax import (
    TRPOConfig,
    evaluate,
    init,
    run,
    step,
    train,
)
from trpo_jax.networks import (
    MLP,
    NetworkFns,
    Policy,
    RecurrentNetworkFns,
    RecurrentValue,
    TanhGaussianHead,
)
from trpo_jax.trust_region import Categorical

pytestmark = pytest.mark.usefixtures("no_shape_checks")

SMALL = {"num_envs": 4, "rollout_length": 6, "total_timesteps": 48}


@pytest.mark.parametrize(
    ("field", "value", "error", "advice"),
    [
        ("total_timesteps", 50, ValueError, "write 48 or 72"),
        ("total_timesteps", 23, ValueError, "write 24."),
        ("total_timesteps", 2**31, ValueError, "below 2³¹; write 2147483640"),
        ("num_seeds", 1.0, TypeError, "write a whole number"),
        ("num_envs", True, TypeError, "write a whole number"),
        ("seed", 0.5, TypeError, "write a whole number"),
        ("hidden_sizes", [64, 64], TypeError, "write a tuple of ints, as (64, 64)"),
        ("hidden_sizes", 64, TypeError, "write a tuple of ints, as (64, 64)"),
        ("hidden_sizes", (8.0,), TypeError, "write a tuple of ints, as (64, 64)"),
        ("hidden_sizes", (8, 0), ValueError, "layer without units"),
        ("critic_minibatches", 5, ValueError, "does not divide the 24 transitions"),
        ("channels", [16], TypeError, "write a tuple of ints"),
        ("channels", (0,), ValueError, "layer without units"),
        ("memory_size", -1, ValueError, "write a number of units, or 0"),
        ("memory_size", 8.0, ValueError, "write a number of units, or 0"),
        ("action_distribution", "laplace", ValueError, "write one of gaussian, state_"),
        (
            "fisher_stride",
            25,
            ValueError,
            "at most 24 that shares no divisor with 4, as 23",
        ),
        ("fisher_stride", 2, ValueError, "would see some of the environments only"),
        ("backtrack_factor", 0.0, ValueError, "write 0.5"),
        ("backtrack_factor", 1.0, ValueError, "write 0.5"),
        ("cg_tolerance", -1e-5, ValueError, "write 1e-5"),
        ("cg_tolerance", float("nan"), ValueError, "write 1e-5"),
        ("backtrack_factor", "0.5", TypeError, "write a float"),
        ("initial_log_std", float("inf"), ValueError, "write 0.0"),
        ("normalize_observations", 1, TypeError, "write True or False"),
        ("normalize_returns", "yes", TypeError, "write True or False"),
        ("step_size_curvature", "short", ValueError, "write one of undamped, damped"),
        ("activation", "sigmoidal", ValueError, "write one of elu, gelu, relu"),
        ("policy", lambda observations: observations, TypeError, "write a Flax module"),
        ("critic", "mlp", TypeError, "write a Flax module"),
        ("max_kl_schedule", "exponential", ValueError, "write one of constant, linear"),
        ("max_kl_schedule", 0.5, ValueError, "an Optax schedule"),
        ("max_kl_schedule", None, ValueError, "an Optax schedule"),
        ("critic_learning_rate_schedule", [1.0], ValueError, "an Optax schedule"),
        ("critic_optimizer", "adamant", ValueError, "as 'adam' or 'rmsprop'"),
        ("critic_optimizer", "huber_loss", ValueError, "as 'adam' or 'rmsprop'"),
        ("critic_optimizer", 1e-3, ValueError, "as 'adam' or 'rmsprop'"),
        ("env", 7, TypeError, "write an id such as 'CartPole-v1'"),
    ],
)
def test_a_bad_field_is_refused_with_advice(field, value, error, advice):
    with pytest.raises(error, match=re.escape(advice)):
        TRPOConfig(**{**SMALL, field: value})


@pytest.mark.parametrize("value", [0, -4])
@pytest.mark.parametrize(
    "field",
    [
        "total_timesteps",
        "num_envs",
        "rollout_length",
        "num_seeds",
        "cg_iterations",
        "fisher_stride",
        "max_backtracks",
        "line_search_width",
        "convolution_stride",
        "noise_period",
        "critic_epochs",
        "critic_minibatches",
        "micro_batch_size",
    ],
)
def test_a_count_below_one_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}={value} .*write at least 1"):
        TRPOConfig(**{**SMALL, field: value})


@pytest.mark.parametrize(
    ("field", "value", "error", "advice"),
    [
        ("max_kl", 0.0, ValueError, "a positive number of nats"),
        ("max_kl", -0.01, ValueError, "a positive number of nats"),
        ("max_kl", float("nan"), ValueError, "a positive number of nats"),
        ("max_kl", "0.01", TypeError, "not a number"),
        ("damping", -1e-9, ValueError, "zero or more"),
        ("discount", 1.01, ValueError, "a number in [0, 1], as 0.99"),
        ("discount", -0.1, ValueError, "a number in [0, 1], as 0.99"),
        ("gae_lambda", 1.01, ValueError, "a number in [0, 1], as 0.95"),
        ("gae_lambda", -0.1, ValueError, "a number in [0, 1], as 0.95"),
        ("critic_learning_rate", -1e-3, ValueError, "zero or more"),
        ("max_kl", float("inf"), ValueError, "a positive number of nats"),
        ("damping", float("inf"), ValueError, "zero or more"),
        ("critic_learning_rate", float("inf"), ValueError, "zero or more"),
        ("max_kl", True, TypeError, "not a number"),
        ("max_kl", np.array([0.01, 0.02]), TypeError, "vmap train(config, hyper"),
        ("max_kl", jnp.array([0.01, 0.02]), TypeError, "vmap train(config, hyper"),
    ],
)
def test_a_bad_hyperparameter_is_refused_with_advice(
    field, value, error, advice, no_shape_checks
):
    with pytest.raises(error, match=re.escape(advice)):
        TRPOConfig(**SMALL, **{field: value})


@pytest.mark.parametrize(
    "floats",
    [
        {"discount": 1.0, "gae_lambda": 0.0, "damping": 0.0},
        {"discount": 0.0, "gae_lambda": 1.0, "critic_learning_rate": 0.0},
        {"max_kl": np.float32(0.02), "damping": 1},
    ],
)
def test_the_ends_of_the_ranges_are_allowed(floats, no_shape_checks):
    config = TRPOConfig(**SMALL, **floats)
    assert config.hyperparameters == config.hyperparameters._replace(**floats)


def test_numbers_of_numpy_become_pythons(no_shape_checks):
    config = TRPOConfig(backtrack_factor=np.float32(0.5), cg_tolerance=0, **SMALL)
    assert type(config.backtrack_factor) is type(config.cg_tolerance) is float
    assert config == TRPOConfig(backtrack_factor=0.5, cg_tolerance=0.0, **SMALL)


@pytest.mark.parametrize("run", [train, lambda c: init(c, jax.random.key(0))])
def test_an_unknown_environment_is_refused_before_anything_compiles(run):
    config = TRPOConfig(env="CartPol-v1", **SMALL)
    jax.random.key(0)
    with compilations() as compiled, pytest.raises(ValueError, match="'CartPole-v1'"):
        run(config)
    assert not compiled


@pytest.mark.parametrize("run", ["init", "train", "evaluate"])
@pytest.mark.parametrize(
    "key",
    [0, np.zeros(3, np.uint32), jnp.zeros(2), jax.random.split(jax.random.key(0))],
)
def test_what_is_not_a_key_is_refused_before_anything_compiles(
    run, key, no_shape_checks
):
    config = TRPOConfig(env=(TABULAR, CHAIN), **SMALL)
    call = {
        "init": lambda: init(config, key),
        "train": lambda: train(config, key),
        "evaluate": lambda: evaluate(config, None, key),
    }[run]
    with (
        compilations() as compiled,
        pytest.raises(TypeError, match=re.escape("write one key, jax.random.key(0)")),
    ):
        call()
    assert not compiled


def test_a_config_is_a_dataclass_like_any_other():
    config = TRPOConfig(**SMALL)
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    assert dataclasses.replace(config, seed=7).seed == 7
    assert {"env", "num_envs"} < set(inspect.signature(TRPOConfig).parameters)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Extended(TRPOConfig):
        purpose: str = "none"

    assert Extended(purpose="a test", **SMALL).purpose == "a test"


@pytest.mark.parametrize(
    ("call", "advice"),
    [
        (
            lambda config, key: train("Acrobot-v1"),
            "write trpo_jax.preset('Acrobot-v1')",
        ),
        (lambda config, key: train(7), "type int; write a trpo_jax.TRPOConfig"),
        (lambda config, key: init("Acrobot-v1", key), "TRPOConfig(env='Acrobot-v1')"),
        (lambda config, key: step(key, config), "write a trpo_jax.TRPOConfig"),
        (lambda config, key: step(config, {}), "has as result.state"),
        (lambda config, key: evaluate(config, (1, 2), key), "has as result.state"),
        (lambda config, key: run("Acrobot-v1", "never-made"), "preset('Acrobot-v1')"),
    ],
)
def test_what_is_no_config_or_state_is_refused_with_advice(call, advice):
    with pytest.raises(TypeError, match=re.escape(advice)):
        call(TRPOConfig(**SMALL), jax.random.key(0))


def test_a_config_passes_through_jit_and_vmap_as_it_is():
    config = TRPOConfig(**SMALL)
    assert jax.tree.leaves(config) == []
    assert jax.jit(lambda c, x: x * c.num_envs)(config, 2) == 8
    doubled = jax.vmap(lambda c, x: x * c.num_envs, in_axes=(None, 0))
    np.testing.assert_array_equal(doubled(config, jnp.arange(2)), [0, 4])


def test_equal_configs_share_a_program():
    traced = []
    program = jax.jit(lambda config: traced.append(config) or jnp.zeros(()))
    for _ in range(2):
        program(TRPOConfig(env=(TABULAR, CHAIN), **SMALL))
    assert len(traced) == 1
    program(TRPOConfig(env=(TABULAR, CHAIN), **SMALL, critic_epochs=3))
    assert len(traced) == 2


def test_a_config_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TRPOConfig(**SMALL).num_envs = 2


def test_counts_that_follow_from_others():
    config = TRPOConfig(**SMALL)
    assert (config.batch_size, config.num_updates) == (24, 2)


@pytest.mark.parametrize("number", [0.01, np.float32(0.01), jnp.float32(0.01)])
def test_configs_of_equal_numbers_are_one(number, no_shape_checks):
    first, second = (TRPOConfig(**SMALL, max_kl=number) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)


@pytest.mark.parametrize("name", ["max_kl", "critic_learning_rate"])
@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", (1 + np.cos(np.pi * np.arange(4) / 4)) / 2),
        (optax.exponential_decay(1.0, 1, 0.5), [1, 0.5, 0.25, 0.125]),
    ],
)
def test_a_schedule_is_a_factor_of_the_update(name, schedule, factors):
    config = TRPOConfig(
        **{**SMALL, "total_timesteps": 4 * 24}, **{f"{name}_schedule": schedule}
    )
    factor_fn = getattr(config, f"{name}_factor")
    made = [factor_fn(update) for update in range(4)]
    np.testing.assert_allclose(made, factors, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", optax.sgd])
def test_an_optimizer_by_its_name_or_itself(optimizer):
    made = TRPOConfig(**SMALL, critic_optimizer=optimizer).optimizer(0.5)
    updates, _ = made.update(jnp.ones(2), made.init(jnp.zeros(2)))
    np.testing.assert_array_equal(updates, [-0.5, -0.5])


@pytest.mark.parametrize("network", [nn.Dense(2), NetworkFns(print, print)])
def test_networks_of_ones_own_are_accepted(network):
    config = TRPOConfig(**SMALL, policy=network, critic=network)
    assert config.policy is network
    assert config.critic is network


@pytest.mark.parametrize(
    ("num_envs", "rollout_length", "stride", "epochs"),
    [
        (1, 8, 1, 10),  # a small batch is worth every state and many passes
        (8, 128, 5, 10),  # two hundred states remain, of all eight environments
        (8, 500, 9, 5),
        (64, 128, 9, 4),
        (1024, 128, 9, 4),  # no more than the paper's tenth, coprime with the batch
        (30, 4096, 7, 4),
        (1009, 128, 10, 4),
    ],
)
def test_stride_and_passes_follow_the_batch(num_envs, rollout_length, stride, epochs):
    batch = num_envs * rollout_length
    config = TRPOConfig(
        num_envs=num_envs,
        rollout_length=rollout_length,
        total_timesteps=batch,
        critic_minibatches=1,
    )
    assert (config.curvature_stride, config.critic_passes) == (stride, epochs)
    assert math.gcd(config.curvature_stride, num_envs) == 1
    set_by_hand = dataclasses.replace(config, fisher_stride=1, critic_epochs=7)
    assert (set_by_hand.curvature_stride, set_by_hand.critic_passes) == (1, 7)


def test_micro_batches_are_a_caches_worth_on_a_cpu_and_everything_elsewhere(
    monkeypatch,
):
    config = TRPOConfig()
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert config.steps_at_once == 8192
    assert dataclasses.replace(config, micro_batch_size=64).steps_at_once == 64
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert config.steps_at_once is None
    assert dataclasses.replace(config, micro_batch_size=64).steps_at_once == 64


@pytest.mark.parametrize(
    ("num_envs", "rollout_length", "steps"), [(8, 128, 8), (10, 50, 5), (1, 7, 7)]
)
def test_minibatches_divide_the_rollout(num_envs, rollout_length, steps):
    config = TRPOConfig(
        num_envs=num_envs,
        rollout_length=rollout_length,
        total_timesteps=num_envs * rollout_length,
    )
    assert config.critic_steps == steps


@pytest.mark.parametrize("name", ["adam", "rmsprop", "sgd"])
def test_a_named_optimizer_is_what_optax_has_by_that_name(name):
    params = {"w": jnp.array([[1.0, -2.0]]), "b": jnp.array([0.5])}
    gradient = {"w": jnp.array([[0.1, 0.3]]), "b": jnp.array([-2.0])}
    results = []
    named = TRPOConfig(critic_optimizer=name).optimizer(0.1)
    for optimizer in (named, getattr(optax, name)(0.1)):
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(gradient, state, params)
        results.append(updates)
    for mine, theirs in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)


def test_an_optimizer_that_looks_at_layers_sees_them():
    state = TRPOConfig(critic_optimizer="lamb").optimizer(0.1).init({"w": jnp.ones(2)})
    shapes = {jnp.shape(leaf) for leaf in jax.tree.leaves(state)}
    assert any(
        "w" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)
    )
    assert (2,) in shapes


@pytest.mark.parametrize("critic", [None, RecurrentValue(MLP((4,)), 3)])
def test_sequences_are_not_cut_into_minibatches(critic):
    """Four environments are four sequences: of eight minibatches four are left."""
    memory_size = 3 if critic is None else 0
    config = TRPOConfig(**SMALL, memory_size=memory_size, critic=critic)
    assert config.critic_rows == 4
    assert config.critic_steps == 4
    with pytest.raises(ValueError, match="its sequences"):
        dataclasses.replace(config, critic_minibatches=3)
    assert TRPOConfig(**SMALL).critic_rows == 24


def test_rollouts_of_one_step_are_no_sequences():
    """As many transitions as environments; the stride is still checked as theirs."""
    config = TRPOConfig(num_envs=4000, rollout_length=1, total_timesteps=4000)
    assert config.curvature_stride == 9
    with pytest.raises(ValueError, match="some of the environments only"):
        dataclasses.replace(config, fisher_stride=2)


@pytest.mark.parametrize(
    ("env", "fields", "advice"),
    [
        (
            (TABULAR, CHAIN),
            {"action_distribution": "gsde"},
            "is for continuous actions",
        ),
        (
            (TABULAR, CHAIN),
            {"action_distribution": "tanh_gaussian"},
            "is for continuous actions",
        ),
        ((TABULAR, CHAIN), {"channels": (4,)}, "are not images"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused_when_the_run_starts(env, fields, advice):
    config = TRPOConfig(env=env, **SMALL, fisher_stride=1, **fields)
    with pytest.raises(ValueError, match=advice):
        jax.eval_shape(init, config, jax.random.key(0))


def test_a_deviation_beyond_the_heads_bounds_is_refused():
    with pytest.raises(ValueError, match=r"not between the bounds .* -5.0 and 2.0"):
        TRPOConfig(action_distribution="state_dependent_gaussian", initial_log_std=3.0)


@pytest.mark.parametrize(
    "action_distribution", ["state_dependent_gaussian", "gsde", "tanh_gaussian"]
)
def test_every_action_distribution_trains(action_distribution):
    config = TRPOConfig(
        env="Pendulum-v1",
        **SMALL,
        hidden_sizes=(4,),
        action_distribution=action_distribution,
        noise_period=2,
    )
    state = jax.jit(init)(config, jax.random.key(0))
    _, metrics = jax.jit(step)(config, state)
    assert metrics.update.status == 0
    result = train(config)
    assert np.all(np.isfinite(result.metrics.update.kl))
    returns = evaluate(config, result.state, jax.random.key(1), 2)
    assert np.all(np.isfinite(returns))


def test_a_squashed_policy_of_ones_own_says_what_it_needs():
    policy = Policy(MLP((4,)), TanhGaussianHead(1))
    config = TRPOConfig(env="Pendulum-v1", **SMALL, policy=policy)
    with pytest.raises(
        ValueError, match="write action_distribution='tanh_gaussian', too"
    ):
        jax.eval_shape(init, config, jax.random.key(0))
    squashed = dataclasses.replace(config, action_distribution="tanh_gaussian")
    jax.eval_shape(init, squashed, jax.random.key(0))


@pytest.mark.parametrize("name", ["policy", "critic"])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_memory_that_changes_its_shape_is_refused(name, shape):
    """The last memory in place of one after each step."""

    def apply(params, memory, observations, starts):
        batch = observations.shape[:2]
        if name == "critic":
            return memory, jnp.zeros(batch)
        return memory, Categorical(jnp.zeros((*batch, 2)))

    network = RecurrentNetworkFns(
        initial_memory=lambda num: jnp.zeros((num, *shape)),
        init=lambda key, memory, observations, starts: (),
        apply=apply,
    )
    config = TRPOConfig(env=(TABULAR, CHAIN), **SMALL, **{name: network})
    with pytest.raises(ValueError, match=rf"the {name} returns the memory .*T, …\]"):
        jax.eval_shape(init, config, jax.random.key(0))


def test_the_stride_of_a_memory_counts_sequences():
    config = TRPOConfig(
        num_envs=8, rollout_length=1250, total_timesteps=10_000, memory_size=4
    )
    assert config.curvature_stride == 1
    assert dataclasses.replace(config, fisher_stride=2).curvature_stride == 2
    with pytest.raises(ValueError, match="above the 8 sequences"):
        dataclasses.replace(config, fisher_stride=9)
