"""Cells of a sweep, (setting, seed), side by side in one program."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.hyperparameters import Hyperparameters
from trpo_jax.training.iteration import step
from trpo_jax.training.loop import train
from trpo_jax.training.metrics import Metrics
from trpo_jax.training.seeds import run_keys
from trpo_jax.training.state import TrainState, init


class Cells(NamedTuple):
    """The cells of some settings, those of a setting side by side.

    Attributes:
        keys: The key that a cell starts from, one for each.
        evaluation_keys: The key that its evaluation starts from.
        hyperparameters: Its floats, leaves float32[cells].
    """

    keys: Key[Array, " cells"]
    evaluation_keys: Key[Array, " cells"]
    hyperparameters: Hyperparameters

    def take(self, index: Int[np.ndarray, " some"]) -> "Cells":
        """Return some of the cells."""
        return jax.tree.map(lambda leaf: leaf[index], self)


def make_cells(settings: Sequence[TRPOConfig]) -> Cells:
    """Return the cells of settings that have one program, seed by seed.

    Cells have the keys that `train(setting)` and the evaluation in `run(setting)` use
    for the setting's seeds, so that a setting can be run again alone.

    Args:
        settings: Configs with the same `program_of`, `seed` and `num_seeds`.
    """
    config = settings[0]
    key = jax.random.key(config.seed)

    def of_all(key: Key[Array, ""]) -> Key[Array, " cells"]:
        keys = run_keys(config, key).reshape(config.num_seeds)
        return jnp.tile(keys, len(settings))

    floats = np.array([setting.hyperparameters for setting in settings], np.float32)
    return Cells(
        keys=of_all(key),
        evaluation_keys=of_all(jax.random.fold_in(key, 1)),
        hyperparameters=Hyperparameters(*np.repeat(floats, config.num_seeds, 0).T),
    )


def init_cells(program: TRPOConfig, cells: Cells) -> TrainState:
    """Return the first state of each cell, leaves [cells, …].

    Args:
        program: `program_of` of their settings.
        cells: The cells; their keys are consumed.

    Returns:
        The state before any training.
    """

    def init_one(key: Key[Array, ""], hyperparameters: Hyperparameters) -> TrainState:
        return init(program, key)._replace(hyperparameters=hyperparameters)

    return jax.vmap(init_one)(cells.keys, cells.hyperparameters.as_float32())


def step_cells(program: TRPOConfig, state: TrainState) -> tuple[TrainState, Metrics]:
    """Take one training step in each cell.

    Args:
        program: `program_of` of their settings.
        state: The state that `init_cells` or the step before returned.

    Returns:
        The state after the step, and its metrics, leaves [cells, …].
    """
    return jax.vmap(lambda one: step(program, one))(state)


def train_cells(program: TRPOConfig, cells: Cells) -> tuple[TrainState, Metrics]:
    """Train each cell for `program.num_updates` steps, as one program.

    Pure: `jit` it, for example. A cell is `train(setting)` to rounding: products of
    matrices of several cells are one batched product, which adds in another order.

    Args:
        program: `program_of` of their settings.
        cells: The cells; their keys are consumed.

    Returns:
        The last state, leaves [cells, …], and the metrics of every step, leaves
        [cells, updates].
    """

    def train_one(
        key: Key[Array, ""], hyperparameters: Hyperparameters
    ) -> tuple[TrainState, Metrics]:
        result = train(program, key, hyperparameters=hyperparameters)
        return result.state, result.metrics

    return jax.vmap(train_one)(cells.keys, cells.hyperparameters.as_float32())
