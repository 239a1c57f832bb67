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
from trpo_jax.environments.suites import shape_of
from trpo_jax.errors import (
    UsageError,
    UsageTypeError,
    array_types,
    describe_type,
)
from trpo_jax.observations import (
    Observation,
    entries_of,
    part_of,
    values_of,
    with_values,
)
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


class LoadedPolicy:
    """A policy that maps one observation to one action. Pure: `jit` it, `vmap` it.

    Observations are as the environment returns them; entries that the policy does not
    see (`policy_observation`) may be left out, then the others are a dict. The
    normaliser of the run is applied inside. Actions are as the environment takes them,
    within its bounds.

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
        # Named one by one: what is left of an observation is then a dict.
        seen = config.policy_observation
        self._names = (seen,) if isinstance(seen, str) else seen
        self._seen_type = part_of(self._observation_type, self._names)
        self.initial_memory: PyTree = jax.tree.map(
            lambda leaf: leaf[0], initial_memory(config, 1)
        )

    def __call__(self, observation: PyTree, key: KeyLike) -> Num[Array, "..."]:
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
        observation: PyTree,
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
            UsageTypeError: If `key` is not a key, the observation is not made of
                arrays, or it has values that the run's dtypes cannot represent.
            UsageError: If the observation is not one of the run's environment.
        """
        key = as_key(key)
        inputs: Any = (memory, self._complete(self._seen(observation)), start)
        memory, seen, starts = jax.tree.map(lambda x: jnp.asarray(x)[None], inputs)
        acted = act(self.config, self._state, key, memory, seen, starts, self._actions)
        memory, action = jax.tree.map(lambda leaf: leaf[0], acted)
        return memory, self._within_bounds(action)

    def _seen(self, observation: PyTree) -> Observation:
        """Return what the policy sees of an observation, as arrays."""
        masked = isinstance(self._observation_type, MaskedObservation)
        if isinstance(observation, MaskedObservation) != masked:
            wanted = "MaskedObservation(values, mask)" if masked else "values alone"
            raise UsageError(
                f"{self.config.env} has {'' if masked else 'no '}action masks; write "
                f"{wanted}."
            )
        try:
            part = part_of(observation, self._names)
            seen = jax.tree.map(_as_array, self._seen_type, part)
        except UsageTypeError:
            raise
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            wanted = f"a pytree {array_types(self._seen_type)}"
            if isinstance(self._seen_type, jax.ShapeDtypeStruct):
                wanted = f"one array {array_types(self._seen_type)}"
            raise UsageTypeError(
                f"the observation is {describe_type(observation)}; write {wanted}."
            ) from error
        shape, expected = map(shape_of, (seen, self._seen_type))
        if shape == expected:
            return seen
        advice, sizes = ".", {leaf.shape[:1] for leaf in jax.tree.leaves(seen)}
        one = jax.tree.map(lambda leaf: leaf.shape[1:], seen)
        if one == expected and len(sizes) == 1:  # a batch
            (num_observations,) = sizes.pop()
            advice = (
                "; for a batch write jax.vmap(policy)(observations, "
                f"jax.random.split(key, {num_observations}))."
            )
        raise UsageError(
            f"the observation has the shape {shape}, but this policy maps one "
            f"observation {expected} to one action{advice}"
        )

    def _complete(self, seen: Observation) -> Observation:
        """Return an observation with zeros for what the policy does not see."""
        if self._names is None:
            return seen
        values = values_of(self._observation_type)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), values)
        entries = entries_of(zeros) | values_of(seen)
        container = jax.tree.structure(values, is_leaf=lambda node: node is not values)
        return with_values(seen, jax.tree.unflatten(container, entries.values()))

    def _within_bounds(self, action: Num[Array, "..."]) -> Num[Array, "..."]:
        if isinstance(self._environment, SquashedActions):
            return self._environment.squash(action)
        space = self._environment.action_space
        if isinstance(space, Box) and space.low is not None:
            return jnp.clip(action, jnp.array(space.low), jnp.array(space.high))
        return action


def _as_array(wanted: jax.ShapeDtypeStruct, leaf: Any) -> Array:
    """Return a leaf of an observation as an array of the wanted type.

    Floats keep their own precision: networks convert it.

    Raises:
        UsageTypeError: If an integer or a mask is wanted and the conversion would
            change a value. Of traced arrays only the dtype is checked: floats are
            refused, integers are converted.
    """
    if jnp.issubdtype(wanted.dtype, jnp.floating):
        # jnp.asarray would first wrap int64 to int32.
        if isinstance(leaf, np.ndarray | np.integer) and leaf.dtype.kind in "iu":
            leaf = leaf.astype(wanted.dtype)
        array = jnp.asarray(leaf)
        whole = jnp.issubdtype(array.dtype, jnp.integer) or array.dtype == bool
        return array.astype(wanted.dtype) if whole else array
    if getattr(leaf, "dtype", None) == wanted.dtype:
        return jnp.asarray(leaf)
    if any(isinstance(one, jax.core.Tracer) for one in jax.tree.leaves(leaf)):
        leaf = jnp.asarray(leaf)
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            raise _lossy_conversion(f"numbers {leaf.dtype}", wanted)
        return leaf.astype(wanted.dtype)
    numbers = np.asarray(leaf)
    if not (jnp.issubdtype(numbers.dtype, jnp.number) or numbers.dtype == bool):
        raise TypeError(f"{numbers.dtype} is not a type of numbers")
    with np.errstate(invalid="ignore"):
        converted = numbers.astype(wanted.dtype)
    changed = numbers != converted
    if changed.any():
        raise _lossy_conversion(f"the number {numbers[changed][0]}", wanted)
    return jnp.asarray(converted)


def _lossy_conversion(found: str, wanted: jax.ShapeDtypeStruct) -> UsageTypeError:
    return UsageTypeError(
        f"the observation has {found} where the policy was trained on {wanted.dtype}; "
        "pass the observation as the run's environment returns it."
    )


def export_policy(
    policy: LoadedPolicy,
    path: str | pathlib.Path,
    *,
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu"),
) -> None:
    """Write a policy to a file that runs with JAX and flatbuffers alone.

        exported = jax.export.deserialize(bytearray(open(path, "rb").read()))
        actions = exported.call(observations, seed)

    with a batch of observations [B, …] of any B, and a uint32 scalar that seeds the
    sampling of actions, if they are sampled. Observations with entries are a dict if
    they are one in the environment or `policy_observation` selects what the policy
    sees, and that alone; of other containers, a tuple. Where the environment has action
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
    observations = jax.tree.map(batched, policy._seen_type)
    seen = jax.tree.structure(observations)
    starts = jax.ShapeDtypeStruct((batch,), bool)
    seed = jax.ShapeDtypeStruct((), jnp.uint32)

    def act(
        memory: list[Array], observations: PyTree, starts: Array, seed: Array
    ) -> tuple[list[Array], Array]:
        observations = jax.tree.unflatten(seen, jax.tree.leaves(observations))
        index = jnp.arange(starts.shape[0])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), index)
        state = jax.tree.unflatten(structure, memory)
        state, actions = jax.vmap(policy.step)(state, observations, keys, starts)
        return jax.tree.leaves(state), actions

    def act_without_memory(observations: PyTree, seed: Array) -> Array:
        starts = jnp.zeros(jax.tree.leaves(observations)[0].shape[0], bool)
        return act([], observations, starts, seed)[1]

    if leaves:
        memory = [batched(leaf) for leaf in leaves]
        return act, (memory, _plain(observations), starts, seed)
    return act_without_memory, (_plain(observations), seed)


def _plain(tree: PyTree) -> PyTree:
    """Return a pytree with its containers, but for dicts, as tuples."""
    entries = entries_of(tree)
    if type(tree) is dict:
        return {name: _plain(entry) for name, entry in tree.items()}
    return tuple(map(_plain, entries.values())) if entries else tree
