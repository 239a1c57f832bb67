"""The adapter to gymnax, the only place that unpacks gymnax's `step`."""

import functools
import importlib
import math
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num, PyTree

from trpo_jax.environments.drawing import DRAWN_BY_GYMNAX, draw_gymnax
from trpo_jax.environments.protocol import (
    ActionSpace,
    Box,
    Discrete,
    MultiDiscrete,
    TimeStep,
)
from trpo_jax.environments.suites import bound, nearest, strong
from trpo_jax.errors import UsageError


class GymnaxEnvironment:
    """An environment of gymnax 1.x with its parameters.

    Observations become float32, those from a Discrete space one-hot; rewards become
    float32; actions are clipped to the Box before the dynamics see them; `truncated`
    is false where the episode also terminated.
    """

    def __init__(self, env: Any, env_params: Any):
        """Wrap `env`, an object with gymnax's `reset` and `step`, and `env_params`.

        Raises:
            ValueError: If a space is not supported, or `step` has gymnax 0.x's form.
        """
        self._env = env
        self._params = env_params
        with jax.ensure_compile_time_eval():
            self._space = env.action_space(env_params)
            self._num_categories = _num_categories(env, env_params, self.name)
        self.action_space: ActionSpace = _action_space(self._space, self.name)
        _check_step(env, env_params, self.name)
        state, observation = jax.eval_shape(self.reset, jax.random.key(0))
        self._state_type = state
        self.observation_shape: tuple[int, ...] = observation.shape

    def __repr__(self) -> str:
        return f"GymnaxEnvironment({self.name})"

    @property
    def name(self) -> str:
        """The environment's own name."""
        return str(getattr(self._env, "name", type(self._env).__name__))

    @property
    def picture_suffix(self) -> str | None:
        """What it is drawn as: ".gif", if gymnax can draw it."""
        return ".gif" if self.name in DRAWN_BY_GYMNAX else None

    def reset(self, key: Key[Array, ""]) -> tuple[PyTree, Float[Array, "..."]]:
        """Start an episode; consumes `key`. Returns (state, observation)."""
        observation, state = self._env.reset(key, self._params)
        return jax.tree.map(strong, state), self._observe(observation)

    def step(
        self, key: Key[Array, ""], state: PyTree, action: Num[Array, "..."]
    ) -> tuple[PyTree, TimeStep]:
        """Act once, starting the next episode if this one ends; consumes `key`."""
        observation, state, reward, terminated, truncated, info = self._env.step(
            key, state, self._act(action), self._params
        )
        state = jax.tree.map(
            lambda leaf, like: strong(leaf, like.dtype), state, self._state_type
        )
        terminated = jnp.asarray(terminated, bool)
        return state, TimeStep(
            observation=self._observe(observation),
            reward=jnp.asarray(reward, jnp.float32),
            terminated=terminated,
            truncated=jnp.asarray(truncated, bool) & ~terminated,
            final_observation=self._observe(info["final_observation"]),
        )

    def draw(
        self, states: PyTree, returns: Float[np.ndarray, " T"], path: Path
    ) -> None:
        """Draw one episode of T steps, by the renderer of gymnax."""
        draw_gymnax(self._env, self._params, states, returns, path)

    def _observe(self, observation: Any) -> Float[Array, "..."]:
        if self._num_categories is not None:
            return jax.nn.one_hot(observation, self._num_categories, dtype=jnp.float32)
        return jnp.asarray(observation, jnp.float32)

    def _act(self, action: Num[Array, "..."]) -> Any:
        match self.action_space:
            case Box():
                shaped = action.reshape(self._space.shape)
                return jnp.clip(shaped, self._space.low, self._space.high)
            case MultiDiscrete(num_actions):
                return tuple(action[i] for i in range(len(num_actions)))
            case _:
                return action


def make_gymnax(env: str | tuple[Any, Any]) -> GymnaxEnvironment:
    """Return a gymnax environment by its id, or from an (environment, params) pair.

    The same argument gives the same object, so that nothing compiles twice.

    Args:
        env: An id, built in or registered with `gymnax.register`, such as
            "CartPole-v1"; or the two values that `gymnax.make` returns.

    Raises:
        ValueError: If no environment has that id (the message names the nearest), or
            its data or its spaces are not supported.
    """
    if isinstance(env, str):
        return _make_by_id(env)
    return _make_from_pair(_Pair(*env))


@functools.cache
def _make_by_id(env_id: str) -> GymnaxEnvironment:
    # Now, also where a program is being traced: environments hold arrays of their own.
    with jax.ensure_compile_time_eval():
        env, env_params = _make(env_id)
    return GymnaxEnvironment(env, env_params)


def _make(env_id: str) -> tuple[Any, Any]:
    gymnax = _import_gymnax()
    if env_id not in gymnax.registered_envs:
        near = nearest(env_id, gymnax.registered_envs)
        raise UsageError(
            f"no environment {env_id!r} in gymnax. Did you mean {near}? Your own comes "
            "in by gymnax.register(id, factory), or as env=(environment, params). Ids "
            "of other suites begin with the suite: 'brax/halfcheetah'."
        )
    try:
        return gymnax.make(env_id)
    except OSError as error:
        raise UsageError(
            f"{env_id} downloads its data when it is made, and that failed: {error}. "
            "Choose an environment without data, or make this one online once."
        ) from error


# What gymnax imports to draw its pictures: nine tenths of its second and a half.
_PLOTTING = ("matplotlib.pyplot", "seaborn")


def _import_gymnax() -> Any:
    """Import gymnax, but not yet the plotting libraries that only its pictures need."""
    stand_ins = {name: _LoadedWhenUsed(name) for name in _PLOTTING}
    for name, stand_in in stand_ins.items():
        sys.modules.setdefault(name, stand_in)
    try:
        return importlib.import_module("gymnax")
    finally:
        for stand_in in stand_ins.values():
            stand_in.step_aside()


class _LoadedWhenUsed(types.ModuleType):
    """Stands for a module in those that import it, until one of them uses it.

    `importlib.util.LazyLoader` would not do: there an import is a use already.
    """

    def __getattr__(self, attribute: str) -> Any:
        self.step_aside()
        return getattr(importlib.import_module(self.__name__), attribute)

    def step_aside(self) -> None:
        """Let the next import find the module itself."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


class _Pair:
    """An (environment, params) pair, equal to another of the same two objects."""

    def __init__(self, env: Any, env_params: Any):
        self.env, self.params = env, env_params

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Pair):
            return NotImplemented
        return self.env is other.env and self.params is other.params

    def __hash__(self) -> int:
        return hash((id(self.env), id(self.params)))


@functools.lru_cache(maxsize=128)
def _make_from_pair(pair: _Pair) -> GymnaxEnvironment:
    return GymnaxEnvironment(pair.env, pair.params)


def _action_space(space: Any, name: str) -> ActionSpace:
    from gymnax.environments import spaces

    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n))
    if isinstance(space, spaces.Box):
        low, high = (bound(value, space.shape) for value in (space.low, space.high))
        return Box(math.prod(space.shape), low, high)
    if isinstance(space, spaces.Tuple) and all(
        isinstance(factor, spaces.Discrete) for factor in space.spaces
    ):
        return MultiDiscrete(tuple(int(factor.n) for factor in space.spaces))
    raise UsageError(
        f"{name} has the action space {space!r}, which is not supported. Wrap the "
        "environment so that it has a Discrete, a Box, or a Tuple of Discrete spaces."
    )


def _num_categories(env: Any, env_params: Any, name: str) -> int | None:
    """Return the size of a Discrete observation space, None for arrays."""
    from gymnax.environments import spaces

    space = env.observation_space(env_params)
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.Box):
        return None
    raise UsageError(
        f"{name} has the observation space {space!r}, which is not supported. Wrap the "
        "environment so that it returns one array (a Box), or a Discrete observation."
    )


def _check_step(env: Any, env_params: Any, name: str) -> None:
    def one_step(key: Key[Array, ""]) -> Any:
        _, state = env.reset(key, env_params)
        action = env.action_space(env_params).sample(key)
        return env.step(key, state, action, env_params)

    result = jax.eval_shape(one_step, jax.random.key(0))
    if len(result) != 6 or "final_observation" not in result[-1]:
        raise UsageError(
            f"{name}.step returns {len(result)} values; gymnax 1.0's six are needed: "
            "(observation, state, reward, terminated, truncated, info) with "
            'info["final_observation"]. Derive it from gymnax 1.0\'s Environment.'
        )
