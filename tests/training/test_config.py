import copy
import dataclasses
import inspect
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
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
from trpo_jax.training.seeds import run_keys

pytestmark = pytest.mark.usefixtures("no_shape_checks")

SMALL = {"num_envs": 4, "rollout_length": 6, "total_timesteps": 48}


def test_numbers_of_numpy_become_pythons(no_shape_checks):
    config = TRPOConfig(backtrack_factor=np.float32(0.5), cg_tolerance=0, **SMALL)
    assert type(config.backtrack_factor) is type(config.cg_tolerance) is float
    assert config == TRPOConfig(backtrack_factor=0.5, cg_tolerance=0.0, **SMALL)


@pytest.mark.parametrize("run", [train, lambda c: init(c, jax.random.key(0))])
def test_an_unknown_environment_is_refused_before_anything_compiles(run):
    config = TRPOConfig(env="CartPol-v1", **SMALL)
    # Numbers become arrays by programs of their own, compiled here.
    jax.block_until_ready((run_keys(config), config.hyperparameters.as_float32()))
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
        (
            lambda config, key: step(config, {}),
            "or result.state for the result of train",
        ),
        (
            lambda config, key: evaluate(config, (1, 2), key),
            "or result.state for the result of train",
        ),
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
    program(TRPOConfig(env=(TABULAR, CHAIN), **SMALL, cg_iterations=3))
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


@pytest.mark.parametrize(("asked", "whole"), [(1, 24), (24, 24), (50, 72), (1e3, 1008)])
def test_steps_are_rounded_up_to_whole_rollouts(asked, whole, no_shape_checks):
    config = TRPOConfig(**{**SMALL, "total_timesteps": asked})
    assert config.total_timesteps == config.num_updates * config.batch_size == whole
