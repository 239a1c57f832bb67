"""States and policies, loaded from the folder of a run."""

import functools
import pathlib
import warnings
from typing import Literal

from trpo_jax.errors import UsageError
from trpo_jax.policies.acting import Actions, state_of_seed
from trpo_jax.policies.policy import LoadedPolicy
from trpo_jax.runs import checkpoints
from trpo_jax.runs.folder import RunFolder
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.seeds import state_type
from trpo_jax.training.state import TrainState

CheckpointChoice = Literal["last", "best"]
"""The newest checkpoint, or the one with the best return.

That of the latest evaluation if the run evaluates in training, else in training itself.
"""


def load_state(
    folder: str | pathlib.Path,
    config: TRPOConfig | None = None,
    *,
    checkpoint: CheckpointChoice = "last",
) -> tuple[TRPOConfig, TrainState]:
    """Return the config of the run in a folder, and its state.

    Executes no code from there. A state may be loaded under other settings of JAX
    (x64, key implementation) than it was trained with; it keeps its types.

    Args:
        folder: The folder of a run.
        config: The config that `run` was given, if it has Python objects.
        checkpoint: The newest, or the one with the best return.

    Raises:
        UsageError: If there is no run or no such checkpoint; or the checkpoint is of
            another config or version, or damaged (the message names the file). If
            another one is whole, it is taken instead of a damaged one, with a warning.
    """
    run_folder = RunFolder(folder)
    config = run_folder.read_config(config)
    if checkpoint not in ("last", "best"):
        raise UsageError(f"checkpoint={checkpoint!r}; write 'last' or 'best'.")
    stored = run_folder.read_state(config, warnings.warn, best=checkpoint == "best")
    if stored is None:
        if checkpoints.complete(run_folder.checkpoints):
            above = ", or a cost was above its limit" if config.cost_limits else ""
            raise UsageError(
                f"no checkpoint in {run_folder.path} has a return: before each, no "
                f"episode had ended{above}; write checkpoint='last', on the command "
                "line --checkpoint last."
            )
        raise UsageError(
            f"{run_folder.path} has no checkpoint yet; to go on with the run: "
            f"{run_folder.how_to_resume(config)}"
        )
    return config, stored.as_state(functools.partial(state_type, config))


def load_policy(
    folder: str | pathlib.Path,
    config: TRPOConfig | None = None,
    *,
    actions: Actions = "mode",
    seed_index: int = 0,
    checkpoint: CheckpointChoice = "last",
) -> LoadedPolicy:
    """Return the policy trained in a folder, `policy(observation, key) -> action`.

    Executes no code from there.

    Args:
        folder: The folder of a run.
        config: The config that `run` was given, if it has Python objects.
        actions: The most probable action, or one sampled from the policy.
        seed_index: Index of one of the run's seeds.
        checkpoint: The newest, or the one with the best return.

    Raises:
        UsageError: As `load_state`; or if the run has fewer seeds.
    """
    config, state = load_state(folder, config, checkpoint=checkpoint)
    return LoadedPolicy(config, state_of_seed(config, state, seed_index), actions)
