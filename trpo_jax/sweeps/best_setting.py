"""The best setting of a sweep as the folder of a run, which all commands take."""

import dataclasses
import functools
import json
import pathlib
import shutil
from collections.abc import Callable

from trpo_jax.runs import checkpoints
from trpo_jax.runs.chunks import by_cost
from trpo_jax.runs.config_file import config_to_dict
from trpo_jax.runs.folder import RunFolder
from trpo_jax.runs.processes import on_writer
from trpo_jax.runs.records import summarize_seeds
from trpo_jax.runs.settings import RunSettings
from trpo_jax.sweeps.cell_groups import Arrays, mean_or_nan
from trpo_jax.sweeps.folder import write_text
from trpo_jax.training.components import make_components
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.seeds import state_type
from trpo_jax.training.state import TrainState


def write_best(
    path: pathlib.Path,
    config: TRPOConfig,
    state: TrainState,
    metrics: Arrays,
    num_episodes: int,
) -> None:
    """Write a setting as the folder of a run, which appears once it is complete.

    Args:
        path: The folder.
        config: The setting, with all its seeds.
        state: Its last state.
        metrics: Its metrics by name, [num_seeds, updates].
        num_episodes: Episodes of an evaluation.

    Raises:
        OSError: If the disk is full, for example.
    """
    partial = path.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    folder = RunFolder(partial)
    folder.create(config, RunSettings(evaluation_episodes=num_episodes))
    counts = metrics["episode_count"]
    returns = mean_or_nan(metrics["episode_return_sum"], counts)
    shown = {"episode_return": returns, **metrics}
    for name in ("episode_return_sum", "episode_length_sum"):
        del shown[name]
    if "episode_cost_sum" in shown:
        costs = mean_or_nan(shown.pop("episode_cost_sum"), counts)
        shown |= by_cost("episode_cost", costs)
    seed = slice(None) if config.num_seeds > 1 else 0
    lines = ""
    for update in range(config.num_updates):
        row = {"update": update + 1, "env_steps": (update + 1) * config.batch_size}
        row |= summarize_seeds({n: v[seed, update, ...] for n, v in shown.items()})
        lines += json.dumps(row) + "\n"
    write_text(folder.metrics, lines)
    manifest = checkpoints.Manifest(
        updates=config.num_updates,
        score=None,
        config=config_to_dict(config),
        jax_settings=checkpoints.jax_settings(),
        action_space=str(make_components(config).environment.action_space),
    )
    checkpoints.save(folder.checkpoints, state, manifest)
    partial.rename(path)


def read_best(
    path: pathlib.Path, config: TRPOConfig, warn_fn: Callable[[str], None]
) -> TrainState | None:
    """Return the state that `write_best` wrote; None if there is none.

    Args:
        path: The folder.
        config: The setting.
        warn_fn: Called with a message about a damaged checkpoint.

    Raises:
        UsageError: If the checkpoint is damaged, or of another config.
    """
    stored = on_writer(lambda: RunFolder(path).read_state(config, warn_fn))
    alone = dataclasses.replace(config, devices=1)
    return stored and stored.as_state(functools.partial(state_type, alone))
