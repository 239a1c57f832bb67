"""The seeds of a run side by side: their keys, first states, and types."""

import functools
from collections.abc import Callable

import jax
from jaxtyping import PyTree

from trpo_jax.training.compilation import jit_with_options
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.keys import KeyLike, as_key
from trpo_jax.training.placement import over_agents, state_shardings
from trpo_jax.training.state import TrainState, init


def run_keys(config: TRPOConfig, key: KeyLike | None = None) -> jax.Array:
    """Return the key that `train(config, key)` starts from, one for each seed."""
    key = as_key(jax.random.key(config.seed) if key is None else key)
    return jax.random.split(key, config.num_seeds) if config.num_seeds > 1 else key


def over_seeds(config: TRPOConfig, fn: Callable) -> Callable:
    """Return `fn`, mapped over a leading axis [num_seeds] if there are several."""
    return over_agents(config, fn) if config.num_seeds > 1 else fn


def init_seeds(config: TRPOConfig, keys: jax.Array) -> TrainState:
    """Return the first state for what `run_keys` returns; consumes `keys`."""
    return over_seeds(config, functools.partial(init, config))(keys)


def state_type(config: TRPOConfig) -> PyTree:
    """Return shapes, dtypes and devices of the state of `config`, without compiling.

    With several seeds, shapes have a leading axis [num_seeds].

    Raises:
        UsageError: If the config does not make a run, as `init`.
    """
    keys = jax.eval_shape(lambda: run_keys(config))
    # Through `jit` for its cache of traces, which also knows JAX's own settings (x64,
    # key implementation): under others, the types are others.
    jitted = jit_with_options(init_seeds, config, env_steps=0)
    state = jax.eval_shape(jitted, keys)
    shardings = state_shardings(config, state, num_seeds=config.num_seeds)
    if shardings is None:
        return state
    return jax.tree.map(
        lambda leaf, sharding: leaf.update(sharding=sharding), state, shardings
    )
