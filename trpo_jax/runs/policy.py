"""A trained policy for use: in this process, or as a file that needs no package."""

import pathlib
import warnings
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Num, PyTree

from trpo_jax.environments import Box, MaskedObservation, SquashedActions
from trpo_jax.errors import UsageError, UsageTypeError
from trpo_jax.runs import checkpoints
from trpo_jax.runs.acting import Actions, act, check_actions, initial_memory
from trpo_jax.runs.chunks import state_type
from trpo_jax.runs.config_file import config_to_dict
from trpo_jax.runs.episodes import one_seed
from trpo_jax.runs.folder import RunFolder
from trpo_jax.training.components import make_components
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.keys import KeyLike, as_key
from trpo_jax.training.state import TrainState
from trpo_jax.version import __version__

# NumPy's arrays as well: what is used after training need not come from JAX.
Seen = Num[Array, "..."] | Num[np.ndarray, "..."] | MaskedObservation

CheckpointChoice = Literal["last", "best"]
_ORDERS = {"last": checkpoints.complete, "best": checkpoints.by_score}


class LoadedPolicy:
    """A policy that maps one observation to one action. Pure: `jit` it, `vmap` it.

    Observations are as the environment gives them; the normaliser of the run is
    inside. Actions are as the environment takes them: within its bounds, if it has any.

    Attributes:
        config: The run that it comes from.
        initial_memory: What it remembers before an episode; () if nothing.
    """

    def __init__(self, config: TRPOConfig, state: TrainState, actions: Actions):
        """Wrap the state of one seed."""
        check_actions(actions)
        self.config = config
        self._state = state
        self._actions = actions
        self._environment = make_components(config).environment
        self.initial_memory: PyTree = jax.tree.map(
            lambda leaf: leaf[0], initial_memory(config, 1)
        )

    def __call__(self, observation: Seen, key: KeyLike) -> Num[Array, "..."]:
        """Return the action for an observation; consumes `key` where it is drawn.

        Raises:
            TypeError: If the policy has a memory, which has to be handed on: `step`.
        """
        if jax.tree.leaves(self.initial_memory):
            raise UsageTypeError(
                "this policy has a memory; write memory, action = policy.step(memory, "
                "observation, key), from policy.initial_memory at each episode's start."
            )
        return self.step((), observation, key)[1]

    def step(
        self,
        memory: PyTree,
        observation: Seen,
        key: KeyLike,
        start: Bool[Array, ""] | bool = False,
    ) -> tuple[PyTree, Num[Array, "..."]]:
        """Return the memory after an observation, and the action for it.

        Args:
            memory: From the step before.
            observation: As the environment gave it.
            key: Randomness; consumed where actions are drawn.
            start: Whether an episode begins here: then the memory is emptied.

        Raises:
            TypeError: If `key` is not a key.
            ValueError: If the observation is not one of the run's environment.
        """
        key = as_key(key)
        self._check_observation(observation)
        inputs: Any = (memory, observation, jnp.asarray(start))
        memory, seen, starts = jax.tree.map(
            lambda leaf: jnp.asarray(leaf)[None], inputs
        )
        acted = act(self.config, self._state, key, memory, seen, starts, self._actions)
        memory, action = jax.tree.map(lambda leaf: leaf[0], acted)
        return memory, self._within_bounds(action)

    def _check_observation(self, observation: Seen) -> None:
        if isinstance(observation, MaskedObservation):
            observation = observation.values
        shape = observation.shape
        expected = self._environment.observation_shape
        if shape != expected:
            raise UsageError(
                f"the observation has the shape {shape}; this policy maps one, "
                f"{expected}, to one action. For a batch write jax.vmap(policy)("
                "observations, jax.random.split(key, len(observations)))."
            )

    def _within_bounds(self, action: Num[Array, "..."]) -> Num[Array, "..."]:
        if isinstance(self._environment, SquashedActions):
            return self._environment.squash(action)
        space = self._environment.action_space
        if isinstance(space, Box) and space.low is not None:
            return jnp.clip(action, jnp.array(space.low), jnp.array(space.high))
        return action


def load_state(
    folder: str | pathlib.Path,
    config: TRPOConfig | None = None,
    *,
    checkpoint: CheckpointChoice = "last",
) -> tuple[TRPOConfig, TrainState]:
    """Return what was run in a folder, and its state. Executes no code from there.

    Args:
        folder: Of a run.
        config: That it was given, if it has Python objects.
        checkpoint: The newest, or the one with the best return in training.

    Raises:
        ValueError: If there is no run, or no checkpoint yet; or the checkpoint is of
            another config or version, or damaged (the message names the file). Beside
            damaged ones the next whole one is taken, with a warning.
    """
    run_folder = RunFolder(folder)
    config = run_folder.read_config(config)
    if checkpoint not in _ORDERS:
        raise UsageError(f"checkpoint={checkpoint!r}; write 'last' or 'best'.")
    found = checkpoints.restore_last(
        run_folder.checkpoints,
        state_type(config),
        config_to_dict(config),
        __version__,
        warnings.warn,
        rename_damaged=False,
        order_fn=_ORDERS[checkpoint],
    )
    if found is None:
        saved = checkpoints.complete(run_folder.checkpoints)
        raise UsageError(
            f"{run_folder.path} has no {'scored ' if saved else ''}checkpoint yet; to "
            f"go on with the run: {run_folder.how_to_resume(config)}"
        )
    return config, found[0]


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
        folder: Of a run.
        config: That it was given, if it has Python objects.
        actions: The most probable action, or one drawn from the policy.
        seed_index: CheckpointChoice of the run's seeds.
        checkpoint: The newest, or the one with the best return in training.

    Raises:
        ValueError: As `load_state`; or if the run has fewer seeds.
    """
    config, state = load_state(folder, config, checkpoint=checkpoint)
    return LoadedPolicy(config, one_seed(config, state, seed_index), actions)


def export_policy(
    policy: LoadedPolicy,
    path: str | pathlib.Path,
    *,
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu"),
) -> None:
    """Write a policy to a file that runs with JAX and flatbuffers alone.

        exported = jax.export.deserialize(bytearray(open(path, "rb").read()))
        actions = exported.call(observations, seed)

    with a batch of observations float32[B, …] of any B, and a uint32 scalar from which
    actions are drawn, if they are. Where the environment has masks, observations are a
    pair of values and masks bool[B, K]. A policy with a memory is called as

        memory, actions = exported.call(memory, observations, starts, seed)

    with its memory, a list of arrays [B, …], zeros to begin with, and a bool[B] that is
    true where an episode begins.

    Args:
        policy: As `load_policy` returns it.
        path: The file; replaced if it is there.
        platforms: Where it is to run.
    """
    exported = jax.export.export(jax.jit(_batched(policy)), platforms=platforms)(
        *_argument_types(policy)
    )
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(exported.serialize())


def _batched(policy: LoadedPolicy) -> Callable:
    """Return the policy for a batch, with arguments of plain containers."""
    structure = jax.tree.structure(policy.initial_memory)

    def act(
        memory: list[Array], observations: PyTree, starts: Array, seed: Array
    ) -> tuple[list[Array], Array]:
        if isinstance(observations, tuple):
            observations = MaskedObservation(*observations)
        index = jnp.arange(starts.shape[0])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), index)
        state = jax.tree.unflatten(structure, memory)
        state, actions = jax.vmap(policy.step)(state, observations, keys, starts)
        return jax.tree.leaves(state), actions

    def act_without_memory(observations: PyTree, seed: Array) -> Array:
        starts = jnp.zeros(jax.tree.leaves(observations)[0].shape[0], bool)
        return act([], observations, starts, seed)[1]

    return act if jax.tree.leaves(policy.initial_memory) else act_without_memory


def _argument_types(policy: LoadedPolicy) -> tuple[PyTree, ...]:
    (batch,) = jax.export.symbolic_shape("batch")

    def batched(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *leaf.shape), leaf.dtype)

    _, observation = jax.eval_shape(
        make_components(policy.config).environment.reset, jax.random.key(0)
    )
    if isinstance(observation, MaskedObservation):
        observation = tuple(observation)
    memory = [batched(leaf) for leaf in jax.tree.leaves(policy.initial_memory)]
    observations = jax.tree.map(batched, observation)
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    if not memory:
        return observations, seed
    return memory, observations, jax.ShapeDtypeStruct((batch,), bool), seed
