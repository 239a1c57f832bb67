"""Training as one compiled program."""

import dataclasses
from typing import NamedTuple

import jax
from jaxtyping import Array, Key

from trpo_jax.training.compilation import jit_with_options
from trpo_jax.training.config import TRPOConfig, check_config
from trpo_jax.training.hyperparameters import Hyperparameters, check_hyperparameters
from trpo_jax.training.iteration import step
from trpo_jax.training.keys import KeyLike
from trpo_jax.training.metrics import Metrics
from trpo_jax.training.origin import Origin
from trpo_jax.training.seeds import over_seeds, run_keys
from trpo_jax.training.state import TrainState, init


class TrainResult(NamedTuple):
    """A finished run.

    Attributes:
        state: The last `TrainState`; with several seeds, every leaf has a leading axis
            [num_seeds].
        metrics: The `Metrics` of every step, leaves [num_updates], or
            [num_seeds, num_updates] with several seeds.
        config: Its configuration.
    """

    state: TrainState
    metrics: Metrics
    config: TRPOConfig


def train(
    config: TRPOConfig,
    key: KeyLike | None = None,
    *,
    hyperparameters: Hyperparameters | None = None,
) -> TrainResult:
    """Train a policy: `config.num_updates` steps, for `num_seeds` runs in parallel.

    Pure and compiled as one program: `jit` it, or `vmap` it over keys and
    hyperparameters. Runs that differ only in these, or in the seed, share the program.

    Args:
        config: Configuration of the run.
        key: In place of `jax.random.key(config.seed)`; consumed.
        hyperparameters: In place of `config.hyperparameters`. Leaves may be traced, so
            that `vmap` over them is a sweep.

    Returns:
        A `TrainResult`.

    Raises:
        UsageTypeError: If `config` is not a `TRPOConfig`, or `key` not a key.
        UsageError: If the environment is unknown or not supported, or a hyperparameter
            that is known is out of range.
    """
    check_config(config)
    keys = run_keys(config, key)
    if hyperparameters is None:
        hyperparameters = config.hyperparameters
    check_hyperparameters(hyperparameters)
    hyperparameters = hyperparameters.as_float32()
    program = dataclasses.replace(config, seed=0, **_ANY_FLOATS)
    run = jit_with_options(_train, program, env_steps=config.all_env_steps)
    state, metrics = run(keys, hyperparameters)
    # The shared program ran with other floats in its config, the caller's as arguments.
    state = state._replace(origin=Origin.of(config, hyperparameters))
    return TrainResult(state, metrics, config)


# Configs that differ only in these share one program, which takes them as arguments.
_ANY_FLOATS = {name: getattr(TRPOConfig, name) for name in Hyperparameters._fields}


def _train(
    config: TRPOConfig, keys: Key[Array, "*seeds"], hyperparameters: Hyperparameters
) -> tuple[TrainState, Metrics]:
    def train_one(key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        state = init(config, key)._replace(hyperparameters=hyperparameters)

        def body(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
            return step(config, state)

        return jax.lax.scan(body, state, length=config.num_updates)

    return over_seeds(config, train_one)(keys)
