"""Adapter to Gymnasium, whose environments are stepped on the host."""

import functools
import inspect
import math
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jaxtyping import Array, Int, Key, Num, PyTree

from trpo_jax.environments import suites
from trpo_jax.environments.protocol import (
    ActionSpace,
    Box,
    Discrete,
    MultiDiscrete,
    TimeStep,
)
from trpo_jax.errors import UsageError, UsageTypeError, array_types, describe_type
from trpo_jax.extras import import_extra
from trpo_jax.observations import Observation

# A run has the batch that it trains in, and those of its last evaluations.
_MOST_BATCHES = 4


class HostState(NamedTuple):
    """Handle that the device has of an environment on the host.

    It is a ticket for one step: a state that has been stepped from cannot be stepped
    from again, as the environment has moved on. Each call needs the state that the one
    before returned, which keeps the calls in order.

    Attributes:
        batch: Number of the batch that the environment belongs to, int32 scalar. It is
            random, so that a state from another process is recognised.
        row: Row of the environment in the batch, int32 scalar.
        steps: Steps of the batch so far, int32 scalar.
    """

    batch: Int[Array, ""]
    row: Int[Array, ""]
    steps: Int[Array, ""]


class _Batch(NamedTuple):
    """Environments on the host that are stepped together.

    Attributes:
        vector: A `gymnasium.vector.SyncVectorEnv` that does not reset itself.
        steps: Steps so far.
    """

    vector: Any
    steps: int


class GymnasiumEnvironment:
    """An environment of Gymnasium, stepped on the host by `io_callback`.

    A step of a batch is one call, in which a `gymnasium.vector.SyncVectorEnv` steps one
    environment after the other. Every episode starts from a reset with a seed from the
    key, so that a run repeats. Observations become float32, those from a Discrete space
    one-hot; bytes (uint8) stay as they are, and integers in a Dict or a Tuple space
    become int32 and must fit it. Actions are clipped to the Box.

    The environments cannot be copied, which `vmap` over seeds and exact resumption
    need: both are refused. The four batches that were used last are kept; a state of
    an earlier one cannot be stepped from.
    """

    on_host = True

    def __init__(self, env: str | Callable[..., Any], **kwargs: Any):
        """Describe an environment, of which a batch makes as many as it needs.

        One is made here and reset with seed 0, to check its observation; from a
        function, a second one is made, to check that it is another.

        Args:
            env: Its id in Gymnasium; or a function that returns a new
                `gymnasium.Env`, wrapped as you like.
            **kwargs: Arguments of `gymnasium.make`, or of the function.

        Raises:
            UsageError: If Gymnasium or a package of the environment is not installed,
                it does not have the environment, a space is not supported, the
                arguments are wrong, an observation is not of its space, or the
                function returns one environment twice.
            UsageTypeError: If `env` is neither, the function makes something else, or
                `reset` has other arguments than Gymnasium's or returns no pair.
        """
        self._gymnasium = gymnasium = import_extra("gymnasium", extra="gymnasium")
        self._vectors = import_extra("gymnasium.vector", extra="gymnasium")
        if isinstance(env, str):
            _check_id(env, gymnasium.registry)
            self.name = f"gymnasium/{env}"
            self._make = functools.partial(gymnasium.make, env, **kwargs)
        else:
            if not callable(env):
                raise UsageTypeError(
                    f"env is {describe_type(env)}, and a batch needs several; write "
                    "its id, or a function that makes a new one, such as lambda: "
                    "gymnasium.make('CartPole-v1')."
                )
            self.name = getattr(env, "__qualname__", type(env).__name__)
            self._make = functools.partial(env, **kwargs)
        one = self._make_one()
        try:
            self._actions, self._observations = one.action_space, one.observation_space
            self.action_space: ActionSpace = _action_space(self._actions, self.name)
            _check_observations(self._observations, self.name)
            first = self._first_observation(one)
            if not isinstance(env, str):
                self._check_new(one)
        finally:
            one.close()
        self._observation_type = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype),
            self._observe(first),
        )
        self.observation_shape: PyTree = suites.shape_of(self._observation_type)
        self.num_costs = 0
        self._batches: OrderedDict[int, _Batch] = OrderedDict()
        self._lock = threading.Lock()
        self._reset_batch = _batched(self._call_reset, self.name)
        self._step_batch = _batched(self._call_step, self.name)

    def __repr__(self) -> str:
        options = (f", {name}={value!r}" for name, value in self._make.keywords.items())
        return f"GymnasiumEnvironment({self.name}{''.join(options)})"

    def reset(self, key: Key[Array, ""]) -> tuple[HostState, Observation]:
        """Start an episode; consumes `key`. Returns (state, observation)."""
        return self._reset_batch(_seed(key))

    def step(
        self, key: Key[Array, ""], state: HostState, action: Num[Array, "..."]
    ) -> tuple[HostState, TimeStep]:
        """Act once, starting the next episode if this one ends; consumes `key`."""
        return self._step_batch(_seed(key), state, action)

    def _call_reset(self, seeds: Int[Array, " B"]) -> tuple[HostState, Observation]:
        types = (_STATE_TYPE, self._observation_type)
        return io_callback(self._reset_on_host, _of_batch(types, len(seeds)), seeds)

    def _call_step(
        self, seeds: Int[Array, " B"], state: HostState, actions: Num[Array, "B ..."]
    ) -> tuple[HostState, TimeStep]:
        observation = self._observation_type
        step = TimeStep(observation, _FLOAT, _FLAG, _FLAG, observation)
        types = _of_batch((_STATE_TYPE, step), len(seeds))
        if isinstance(self.action_space, Box):
            bits = jax.lax.bitcast_convert_type(actions.astype(jnp.float32), jnp.int32)
        else:
            bits = actions.astype(jnp.int32)
        # One array, because each that a callback takes costs it another 20 µs.
        columns = [*state, seeds, *bits.reshape(len(seeds), -1).T]
        return io_callback(self._step_on_host, types, jnp.stack(columns, axis=1))

    def _reset_on_host(self, seeds: Any) -> PyTree:
        seeds = np.asarray(seeds).tolist()
        with self._lock:
            vector = self._free_vector(len(seeds))
            observation, _ = vector.reset(seed=seeds)
            number = secrets.randbits(31)
            self._batches[number] = _Batch(vector, steps=0)
            return _state(number, len(seeds), 0), self._observe(observation)

    def _step_on_host(self, packed: Any) -> PyTree:
        packed = np.asarray(packed)
        seeds, bits = packed[:, 3], np.ascontiguousarray(packed[:, 4:])
        floating = isinstance(self.action_space, Box)
        actions = bits.view(np.float32) if floating else bits
        with self._lock:
            number, vector, steps = self._batch_of(*packed[:, :3].T)
            observation, reward, terminated, truncated, _ = vector.step(
                self._act(actions)
            )
            # Copies, because the vector writes the next observations into the same.
            final = first = self._observe(observation)
            ended = terminated | truncated
            if ended.any():
                observation, _ = vector.reset(
                    seed=seeds.tolist(), options={"reset_mask": ended}
                )
                first = self._observe(observation)
        return _state(number, len(ended), steps), TimeStep(
            observation=first,
            reward=reward.astype(np.float32),
            terminated=terminated,
            truncated=truncated & ~terminated,
            final_observation=final,
        )

    def _free_vector(self, num_envs: int) -> Any:
        """Return environments for a batch, those of the one used least if they fit."""
        if len(self._batches) == _MOST_BATCHES:
            _, (vector, _) = self._batches.popitem(last=False)
            if vector.num_envs == num_envs:
                return vector
            vector.close()
        return self._vectors.SyncVectorEnv(
            [self._make_one_of_batch] * num_envs,
            copy=False,
            autoreset_mode=self._vectors.AutoresetMode.DISABLED,
        )

    def _batch_of(
        self, numbers: np.ndarray, rows: np.ndarray, steps: np.ndarray
    ) -> tuple[int, Any, int]:
        """Return number and environments of the batch of a state, and its next step.

        Raises:
            UsageError: If the state is not the last one of a batch that is kept.
        """
        number = int(numbers[0])
        vector, made = self._batches.get(number, (None, 0))
        if vector is None:
            raise UsageError(
                f"the environments of this state of {self.name} are gone: it was made "
                f"in another process, or {_MOST_BATCHES} other batches have been reset "
                "or stepped since. Start anew by init(config, key).with_networks_of("
                "state)."
            )
        whole = len(rows) == vector.num_envs and (rows == np.arange(len(rows))).all()
        if not whole or (numbers != number).any() or (steps != made).any():
            raise UsageError(
                f"the environments of {self.name} have made {made} steps, and this is "
                f"not the state of all {vector.num_envs} of them after these. Go on "
                "from the state that was returned last, or start anew by "
                "init(config, key).with_networks_of(state)."
            )
        self._batches[number] = _Batch(vector, made + 1)
        self._batches.move_to_end(number)
        return number, vector, made + 1

    def _make_one_of_batch(self) -> Any:
        return _without_empty_options(self._make_one())

    def _make_one(self) -> Any:
        error = self._gymnasium.error
        try:
            made = self._make()
        except TypeError as problem:
            if not self._make.keywords:
                raise
            raise UsageError(
                f"{self.name} cannot be made with {self._make.keywords}: {problem}."
            ) from problem
        except (error.Error, ImportError) as problem:
            # The message of Gymnasium itself says how to install other packages.
            advice = "Install what it needs, or choose another environment."
            if "MuJoCo is not installed" in str(problem):
                advice = 'Install it with: pip install "trpo_jax[gymnasium]"'
            reason = str(problem).rstrip(".")
            raise UsageError(
                f"{self.name} cannot be made: {reason}. {advice}"
            ) from problem
        if not isinstance(made, self._gymnasium.Env):
            raise UsageTypeError(
                f"{self.name} returns {describe_type(made)}; write a function that "
                "returns a new gymnasium.Env."
            )
        return made

    def _check_new(self, one: Any) -> None:
        another = self._make_one()
        if another.unwrapped is one.unwrapped:
            raise UsageError(
                f"{self.name} returns the same environment twice, and the rows of a "
                "batch would share it; write a function that makes a new one, such as "
                "lambda: gymnasium.make('CartPole-v1')."
            )
        another.close()

    def _first_observation(self, one: Any) -> PyTree:
        """Return a batch of one observation after a reset.

        Raises:
            UsageError: If it is not of the observation space.
            UsageTypeError: If `reset` has other arguments than Gymnasium's or returns
                no pair.
        """
        space, utils = self._observations, self._vectors.utils
        try:
            inspect.signature(one.reset).bind(seed=0, options=None)
        except TypeError as problem:
            raise UsageTypeError(
                f"reset of {self.name} cannot be called: {problem}. Write "
                "def reset(self, *, seed=None, options=None)."
            ) from problem
        returned = one.reset(seed=0, options=None)
        if not isinstance(returned, tuple | list) or len(returned) != 2:
            raise UsageTypeError(
                f"reset of {self.name} returns {describe_type(returned)}; write "
                "(observation, info), as Gymnasium's environments do."
            )
        empty = utils.create_empty_array(space, n=1)
        try:
            return utils.concatenate(space, [returned[0]], empty)
        except (IndexError, KeyError, TypeError, ValueError) as problem:
            raise UsageError(
                f"{self.name} observes {array_types(returned[0])}, but its "
                f"observation_space is {space}; change one of them."
            ) from problem

    def observe(self, observation: Any) -> PyTree:
        """Return an observation of Gymnasium as a policy takes it.

        To play a trained policy in an environment of one's own:
        `env.step(environment.act(policy(environment.observe(observation), key)))`.

        Args:
            observation: One of Gymnasium's `reset` or `step`.
        """
        batch = jax.tree.map(lambda leaf: np.asarray(leaf)[None], observation)
        return jax.tree.map(lambda leaf: leaf[0], self._observe(batch))

    def act(self, action: Num[Array | np.ndarray, "..."]) -> Any:
        """Return a policy's action as Gymnasium's `step` takes it.

        Args:
            action: One of the action space of this environment.
        """
        return self._act(np.asarray(action)[None])[0]

    def _observe(self, observations: Any) -> PyTree:
        """Return a copy of observations [B, …], in the types of the device."""
        space = self._observations
        if isinstance(space, self._gymnasium.spaces.Discrete):
            categories = np.arange(space.start, space.start + space.n)
            chosen = observations[:, None] == categories
            unknown = ~chosen.any(axis=1)
            if unknown.any():
                raise UsageError(
                    f"{self.name} observes {observations[unknown][0]}, which is not in "
                    f"its observation_space {space}; change one of them."
                )
            return chosen.astype(np.float32)

        def convert(leaf: np.ndarray) -> np.ndarray:
            whole = leaf is observations
            if leaf.dtype == np.uint8:
                return leaf.copy()
            if whole or np.issubdtype(leaf.dtype, np.floating):
                return leaf.astype(np.float32)
            narrow = leaf.astype(np.int32)
            if (narrow != leaf).any():
                raise UsageError(
                    f"{self.name} observes integers outside int32, such as "
                    f"{leaf[narrow != leaf][0]}; convert them by "
                    "gymnasium.wrappers.TransformObservation, to floats for example."
                )
            return narrow

        return jax.tree.map(convert, observations)

    def _act(self, actions: np.ndarray) -> np.ndarray:
        """Return actions [B, …] of the policy as Gymnasium takes them."""
        space = self._actions
        actions = actions.reshape(-1, *space.shape)
        if hasattr(space, "low"):
            actions = np.clip(actions, space.low, space.high)
        return actions.astype(space.dtype) + getattr(space, "start", 0)


def _without_empty_options(env: Any) -> Any:
    """Return the environment, with reset options of {} replaced by None.

    From the second reset on, a SyncVectorEnv passes {}: its options without
    `reset_mask`.
    """
    import gymnasium

    class WithoutEmptyOptions(gymnasium.Wrapper):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return self.env.reset(seed=seed, options=options or None)

    return WithoutEmptyOptions(env)


@suites.made_once
def make_gymnasium(name: str) -> GymnasiumEnvironment:
    """Return an environment of Gymnasium.

    The same id gives the same object, so that nothing compiles twice.

    Args:
        name: Its id, built in or registered with `gymnasium.register`, such as
            "CartPole-v1"; with a module to import first, "module:Name-v0".

    Raises:
        UsageError: As `GymnasiumEnvironment`.
    """
    return GymnasiumEnvironment(name)


def is_on_host(env: Any) -> bool:
    """Return whether an environment, or the one of an id, is stepped on the host."""
    if isinstance(env, str):
        return env.startswith("gymnasium/")
    return getattr(env, "on_host", False)


_INT: Any = jax.ShapeDtypeStruct((), jnp.int32)
_FLOAT: Any = jax.ShapeDtypeStruct((), jnp.float32)
_FLAG: Any = jax.ShapeDtypeStruct((), bool)
_STATE_TYPE = HostState(_INT, _INT, _INT)


def _state(number: int, num_envs: int, steps: int) -> Any:
    fields: Any = np.broadcast_arrays(number, np.arange(num_envs), steps)
    return HostState(*(field.astype(np.int32) for field in fields))


def _of_batch(types: PyTree, size: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.update(shape=(size, *leaf.shape)), types)


def _seed(key: Key[Array, ""]) -> Int[Array, ""]:
    # Of 31 bits: some simulators take no more.
    return (jax.random.bits(key, (), jnp.uint32) >> 1).astype(jnp.int32)


def _batched(call_fn: Callable[..., PyTree], name: str) -> Callable[..., PyTree]:
    """Return a function of one environment, which `vmap` makes one call for a batch.

    Args:
        call_fn: A function of arrays [B, …] to arrays [B, …].
        name: Name of the environment, for the refusal of a second `vmap`.
    """

    @jax.custom_batching.custom_vmap
    def call_batch(*batch: PyTree) -> PyTree:
        return call_fn(*batch)

    @call_batch.def_vmap
    def refuse(axis_size: int, is_mapped: Any, *batches: PyTree) -> Any:
        raise UsageError(
            f"{name} is stepped on the host, where its environments cannot be copied "
            "for several runs. Instead of vmap over seeds, keys or hyperparameters, "
            "write a loop of train(config, key)."
        )

    @jax.custom_batching.custom_vmap
    def call_one(*arguments: PyTree) -> PyTree:
        results = call_batch(*jax.tree.map(lambda leaf: leaf[None], arguments))
        return jax.tree.map(lambda leaf: leaf[0], results)

    @call_one.def_vmap
    def call_all(axis_size: int, is_mapped: Any, *arguments: PyTree) -> Any:
        def spread(leaf: Array, mapped: bool) -> Array:
            return leaf if mapped else jnp.broadcast_to(leaf, (axis_size, *leaf.shape))

        results = call_batch(*jax.tree.map(spread, arguments, tuple(is_mapped)))
        return results, jax.tree.map(lambda _: True, results)

    return call_one


def _check_id(name: str, registry: Any) -> None:
    if ":" in name:  # Gymnasium imports the module, which registers it
        return
    advice = (
        "Import the package that registers it first, or write env="
        "trpo_jax.environments.GymnasiumEnvironment(function that makes it)."
    )
    suites.check_known(name, registry, "gymnasium", advice)


def _action_space(space: Any, name: str) -> ActionSpace:
    from gymnasium import spaces

    match space:
        case spaces.Discrete():
            return Discrete(int(space.n))
        case spaces.MultiDiscrete():
            return MultiDiscrete(tuple(int(n) for n in space.nvec.ravel()))
        case spaces.MultiBinary():
            return MultiDiscrete((2,) * math.prod(space.shape))
        case spaces.Box() if np.issubdtype(space.dtype, np.floating):
            return suites.flat_box(space.low, space.high, space.shape)
    raise UsageError(
        f"{name} has the action space {space}, which is not supported. Wrap the "
        "environment by gymnasium.wrappers.TransformAction so that it has a Discrete, "
        "a MultiDiscrete, a MultiBinary, or a Box of floats, and write env="
        "trpo_jax.environments.GymnasiumEnvironment(function that makes it)."
    )


def _check_observations(space: Any, name: str) -> None:
    from gymnasium import spaces

    match space:
        case spaces.Dict():
            for part in space.spaces.values():
                _check_observations(part, name)
        case spaces.Tuple():
            for part in space.spaces:
                _check_observations(part, name)
        case (
            spaces.Box()
            | spaces.Discrete()
            | spaces.MultiDiscrete()
            | spaces.MultiBinary()
        ):
            return
        case _:
            raise UsageError(
                f"{name} has the observation space {space}, which is not supported. "
                "Wrap the environment by gymnasium.wrappers.TransformObservation so "
                "that it has a Box, a Discrete, a MultiDiscrete, a MultiBinary, or a "
                "Dict or Tuple of these, and write env="
                "trpo_jax.environments.GymnasiumEnvironment(function that makes it)."
            )
