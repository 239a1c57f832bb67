"""A trained policy as a function, and its export to a file that needs JAX alone."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Num, PyTree

from trpo_jax.environments import Box, MaskedObservation, SquashedActions
from trpo_jax.errors import UsageError, UsageTypeError, describe_type
from trpo_jax.observations import values_of
from trpo_jax.policies.acting import (
    Actions,
    act,
    check_actions,
    check_trained,
    initial_memory,
)
from trpo_jax.training.components import make_components
from trpo_jax.training.config import TRPOConfig, check_config
from trpo_jax.training.keys import KeyLike, as_key
from trpo_jax.training.state import TrainState, observation_type

# NumPy arrays as well: after training, observations need not come from JAX.
Seen = Num[Array, "..."] | Num[np.ndarray, "..."] | MaskedObservation


class LoadedPolicy:
    """A policy that maps one observation to one action. Pure: `jit` it, `vmap` it.

    Observations are as the environment returns them; the normaliser of the run is
    applied inside. Actions are as the environment takes them, within its bounds.

    Attributes:
        config: The run that it comes from.
        initial_memory: Its memory before an episode; () if it has none.
    """

    def __init__(self, config: TRPOConfig, state: TrainState, actions: Actions):
        """Wrap the state of one seed.

        Raises:
            UsageError: If the observations or parameters of the state are not those of
                `config`, or it has several seeds.
        """
        check_config(config)
        check_actions(actions)
        check_trained(dataclasses.replace(config, num_seeds=1), state)
        self.config = config
        self._state = state
        self._actions = actions
        self._environment = make_components(config).environment
        self._observation_type = observation_type(state)
        self.initial_memory: PyTree = jax.tree.map(
            lambda leaf: leaf[0], initial_memory(config, 1)
        )

    def __call__(self, observation: Seen, key: KeyLike) -> Num[Array, "..."]:
        """Return the action for an observation; consumes `key` if it is sampled.

        Raises:
            UsageTypeError: If the policy has a memory, which has to be passed on: use
                `step`.
            UsageError: As `step`.
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
            observation: As the environment returned it.
            key: Randomness; consumed if actions are sampled.
            start: Whether an episode begins here; if so, the memory is reset.

        Raises:
            UsageTypeError: If `key` is not a key, or the observation not numbers.
            UsageError: If the observation is not one of the run's environment.
        """
        key = as_key(key)
        if not isinstance(observation, MaskedObservation):
            try:
                observation = jnp.asarray(observation)
            except (TypeError, ValueError) as error:
                raise UsageTypeError(
                    f"the observation is {describe_type(observation)}; write one array "
                    f"of numbers {self._environment.observation_shape}."
                ) from error
        self._check_observation(observation)
        inputs: Any = (memory, observation, start)
        memory, seen, starts = jax.tree.map(lambda x: jnp.asarray(x)[None], inputs)
        acted = act(self.config, self._state, key, memory, seen, starts, self._actions)
        memory, action = jax.tree.map(lambda leaf: leaf[0], acted)
        return memory, self._within_bounds(action)

    def _check_observation(self, observation: Seen) -> None:
        masked = isinstance(self._observation_type, MaskedObservation)
        if isinstance(observation, MaskedObservation) != masked:
            raise UsageError(
                f"{self.config.env} has {'' if masked else 'no '}action masks; write "
                + ("MaskedObservation(values, mask)." if masked else "an array.")
            )
        shape = values_of(observation).shape
        expected = values_of(self._observation_type).shape
        if shape == expected:
            return
        advice = "."
        if shape[1:] == expected:  # a batch
            advice = (
                "; for a batch write jax.vmap(policy)(observations, "
                f"jax.random.split(key, {shape[0]}))."
            )
        raise UsageError(
            f"the observation has the shape {shape}, but this policy maps one "
            f"observation {expected} to one action{advice}"
        )

    def _within_bounds(self, action: Num[Array, "..."]) -> Num[Array, "..."]:
        if isinstance(self._environment, SquashedActions):
            return self._environment.squash(action)
        space = self._environment.action_space
        if isinstance(space, Box) and space.low is not None:
            return jnp.clip(action, jnp.array(space.low), jnp.array(space.high))
        return action


def export_policy(
    policy: LoadedPolicy,
    path: str | pathlib.Path,
    *,
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu"),
) -> None:
    """Write a policy to a file that runs with JAX and flatbuffers alone.

        exported = jax.export.deserialize(bytearray(open(path, "rb").read()))
        actions = exported.call(observations, seed)

    with a batch of observations float32[B, …] of any B, and a uint32 scalar that seeds
    the sampling of actions, if they are sampled. Where the environment has action
    masks, observations are a pair of values and masks bool[B, K]. A policy with a
    memory is called as

        memory, actions = exported.call(memory, observations, starts, seed)

    with its memory, a list of arrays [B, …], zeros to begin with, and a bool[B] that is
    true where an episode begins.

    Args:
        policy: As `load_policy` returns it.
        path: The file; replaced if it exists.
        platforms: The platforms that it can run on.

    Raises:
        UsageTypeError: If `policy` is something else.
    """
    if not isinstance(policy, LoadedPolicy):
        raise UsageTypeError(
            f"policy is of type {type(policy).__name__}; write "
            "trpo_jax.load_policy(folder)."
        )
    act, argument_types = _batched(policy)
    exported = jax.export.export(jax.jit(act), platforms=platforms)(*argument_types)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(exported.serialize())


def _batched(policy: LoadedPolicy) -> tuple[Callable, tuple[PyTree, ...]]:
    """Return the policy for a batch, and the types of its arguments.

    Arguments are in plain containers.
    """
    (batch,) = jax.export.symbolic_shape("batch")

    def batched(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *leaf.shape), leaf.dtype)

    leaves, structure = jax.tree.flatten(policy.initial_memory)
    observations = jax.tree.map(batched, policy._observation_type)
    if isinstance(observations, MaskedObservation):
        observations = tuple(observations)
    starts = jax.ShapeDtypeStruct((batch,), bool)
    seed = jax.ShapeDtypeStruct((), jnp.uint32)

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

    if leaves:
        return act, ([batched(leaf) for leaf in leaves], observations, starts, seed)
    return act_without_memory, (observations, seed)
