"""Adapter to gymnax, the only place that unpacks gymnax's `step`."""

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num, PyTree

from trpo_jax.environments import suites
from trpo_jax.environments.drawing import DRAWN_BY_GYMNAX, draw_gymnax
from trpo_jax.environments.protocol import (
    ActionSpace,
    Box,
    Discrete,
    MultiDiscrete,
    TimeStep,
)
from trpo_jax.environments.varied import VariedEnvironment, make_with_params
from trpo_jax.errors import UsageError
from trpo_jax.observations import Observation
from trpo_jax.tracing import cached, holds_tracers


class GymnaxEnvironment:
    """An environment of gymnax 1.x with its parameters.

    Observations become float32, those from a Discrete space one-hot; bytes (uint8), and
    integers in a Dict or a Tuple space, stay as they are. Rewards become float32;
    actions are clipped to the Box before the dynamics see them; `truncated` is false
    where the episode also terminated. An entry "cost" of `info` is the cost of a step.
    All is computed in 32 bits, also under `jax_enable_x64`.
    """

    @suites.single_precision
    def __init__(self, env: Any, env_params: Any = None):
        """Wrap `env`, an object with gymnax's `reset` and `step`.

        Args:
            env: The environment.
            env_params: Its parameters; its `default_params` if None.

        Raises:
            UsageError: If a space is not supported, or `step` has gymnax 0.x's form.
        """
        # Evaluated at once, even under a trace: spaces and parameters may be arrays.
        with jax.ensure_compile_time_eval():
            if env_params is None:
                env_params = suites.default_params_of(env)
            self._env = env = suites.narrowed_attributes(env)
            self.name = str(getattr(env, "name", type(env).__name__))
            self._params = env_params = suites.narrowed_params(env_params)
            default = suites.narrowed(suites.default_params_of(env))
            self._digest = suites.digest(env_params, default)
            self._raw_reset, self._raw_step = env.reset, env.step
            if holds_tracers(env):
                self._raw_reset, self._raw_step = map(_unjitted, (env.reset, env.step))
            self._space = env.action_space(env_params)
            self._num_categories = _num_categories(env, env_params, self.name)
        self.action_space: ActionSpace = _action_space(self._space, self.name)
        self.num_costs = suites.count_costs(self._checked_info())
        state, observation = jax.eval_shape(self.reset, jax.random.key(0))
        self._state_type = state
        # An overridden `step` may do more than `step_env` and a reset.
        if getattr(type(env), "step", None) is _base_class().step:
            self.step_without_reset = self._step_without_reset
        self.observation_shape: PyTree = suites.shape_of(observation)

    def __repr__(self) -> str:
        return f"GymnaxEnvironment({self.name}{self._digest})"

    @property
    def picture_suffix(self) -> str | None:
        """Suffix ".gif" if gymnax can draw the environment, else None."""
        return ".gif" if self.name in DRAWN_BY_GYMNAX else None

    @suites.single_precision
    def reset(self, key: Key[Array, ""]) -> tuple[PyTree, Observation]:
        """Start an episode; consumes `key`. Returns (state, observation)."""
        observation, state = self._raw_reset(key, self._params)
        return jax.tree.map(suites.strong, state), self._observe(observation)

    @suites.single_precision
    def step(
        self, key: Key[Array, ""], state: PyTree, action: Num[Array, "..."]
    ) -> tuple[PyTree, TimeStep]:
        """Act once, starting the next episode if this one ends; consumes `key`."""
        action = self._act(action)
        return self._taken(*self._raw_step(key, state, action, self._params))

    @suites.single_precision
    def _step_without_reset(
        self, key: Key[Array, ""], state: PyTree, action: Num[Array, "..."]
    ) -> tuple[PyTree, TimeStep]:
        """Act once as `step` does, but stay where the episode ends; consumes `key`."""
        key, _ = jax.random.split(key)  # as gymnax does; the other is for a reset
        action = self._act(action)
        observation, state, reward, terminated, info = self._env.step_env(
            key, state, action, self._params
        )
        truncated = self._env.is_truncated(state, self._params)
        info = {**info, "final_observation": observation}
        return self._taken(observation, state, reward, terminated, truncated, info)

    def _taken(
        self,
        observation: Any,
        state: PyTree,
        reward: Array,
        terminated: Array,
        truncated: Array,
        info: dict[str, Any],
    ) -> tuple[PyTree, TimeStep]:
        """Return what gymnax's `step` returns in the types of the protocol."""
        terminated = jnp.asarray(terminated, bool)
        return suites.strong_as(state, self._state_type), TimeStep(
            observation=self._observe(observation),
            reward=jnp.asarray(reward, jnp.float32),
            terminated=terminated,
            truncated=jnp.asarray(truncated, bool) & ~terminated,
            final_observation=self._observe(info["final_observation"]),
            cost=suites.cost_of(info),
        )

    def draw(
        self, states: PyTree, returns: Float[np.ndarray, " T"], path: Path
    ) -> None:
        """Draw one episode of T steps, by the renderer of gymnax."""
        while hasattr(states, "env_state"):  # of a wrapper
            states = states.env_state
        draw_gymnax(self._env, self._params, states, returns, path)

    def _checked_info(self) -> Any:
        """Return the types of what a step tells beside its results."""

        def one_step(key: Key[Array, ""]) -> Any:
            reset_key, step_key, action_key = jax.random.split(key, 3)
            _, state = self._raw_reset(reset_key, self._params)
            action = self._space.sample(action_key)
            return self._raw_step(step_key, state, action, self._params)

        result = jax.eval_shape(one_step, jax.random.key(0))
        if len(result) != 6 or "final_observation" not in result[-1]:
            raise UsageError(
                f"{self.name}.step returns {len(result)} values; gymnax 1.0's six are "
                "needed: (observation, state, reward, terminated, truncated, info) "
                'with info["final_observation"]. Derive it from gymnax 1.0\'s '
                "Environment."
            )
        return result[-1]

    def _observe(self, observation: Any) -> Observation:
        if self._num_categories is not None:
            return jax.nn.one_hot(observation, self._num_categories, dtype=jnp.float32)
        return suites.observed(observation)

    def _act(self, action: Num[Array, "..."]) -> Any:
        action = suites.narrowed(action)  # drawn outside of `single_precision`
        match self.action_space:
            case Box():
                shaped = action.reshape(self._space.shape)
                return jnp.clip(shaped, self._space.low, self._space.high)
            case MultiDiscrete(num_actions):
                return tuple(action[i] for i in range(len(num_actions)))
            case _:
                return action


def make_gymnax(
    env: str | tuple[Any, Any] | Any,
) -> GymnaxEnvironment | VariedEnvironment:
    """Return a gymnax environment by its id, from a pair, or from an object.

    The same argument gives the same object, so that nothing compiles twice.

    Args:
        env: An id, built in or registered with `gymnax.register`, such as
            "CartPole-v1"; the two values that `gymnax.make` returns; or the first of
            them, whose default parameters are then used. Parameters that have a leading
            axis [num_envs], all or some, make a `VariedEnvironment`.

    Raises:
        UsageError: If no environment has that id (the message names the nearest), its
            data or its spaces are not supported, or parameters do not have the axes of
            the default ones, or one number of rows.
        UsageTypeError: If parameters are not of the environment.
    """
    if isinstance(env, str):
        return _make_by_id(env)
    env, env_params = env if isinstance(env, tuple) else (env, None)
    return _make_from_pair(suites.ById((env, env_params)))


@cached
def _make_by_id(env_id: str) -> GymnaxEnvironment:
    gymnax = import_gymnax()
    advice = (
        "Register your own by gymnax.register(id, factory), or write env=(environment, "
        "params). Ids of other suites begin with the suite: 'brax/halfcheetah', "
        "'gymnasium/HalfCheetah-v5', 'navix/Navix-Empty-5x5-v0'; those of your own are "
        "'module:name'."
    )
    suites.check_known(env_id, gymnax.registered_envs, "gymnax", advice)
    try:
        # Evaluated at once, even under a trace: environments hold arrays.
        with jax.enable_x64(False), jax.ensure_compile_time_eval():
            env, env_params = gymnax.make(env_id)
    except OSError as error:
        suites.refuse_download(env_id, error)
    return GymnaxEnvironment(env, env_params)


# Gymnax imports these for its pictures; they take nine tenths of its import's 1.5 s.
_PLOTTING = ("matplotlib.pyplot", "seaborn")


def import_gymnax() -> Any:
    """Import gymnax without its plotting libraries, which load when they are used."""
    stand_ins = {name: _LoadedWhenUsed(name) for name in _PLOTTING}
    for name, stand_in in stand_ins.items():
        sys.modules.setdefault(name, stand_in)
    try:
        return importlib.import_module("gymnax")
    finally:
        for stand_in in stand_ins.values():
            stand_in.step_aside()


class _LoadedWhenUsed(types.ModuleType):
    """A stand-in for a module, which is imported at the first use of an attribute.

    Not `importlib.util.LazyLoader`: gymnax's `import matplotlib.pyplot as plt` would
    already count as a use.
    """

    def __getattr__(self, attribute: str) -> Any:
        self.step_aside()
        return getattr(importlib.import_module(self.__name__), attribute)

    def step_aside(self) -> None:
        """Make the next import load the module itself."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


@cached
def _make_from_pair(pair: suites.ById) -> GymnaxEnvironment | VariedEnvironment:
    return make_with_params(GymnaxEnvironment, *pair)


def _base_class() -> Any:
    from gymnax.environments import environment

    return environment.Environment


def _action_space(space: Any, name: str) -> ActionSpace:
    from gymnax.environments import spaces

    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n))
    if isinstance(space, spaces.Box):
        return suites.flat_box(space.low, space.high, space.shape)
    if isinstance(space, spaces.Tuple) and all(
        isinstance(factor, spaces.Discrete) for factor in space.spaces
    ):
        return MultiDiscrete(tuple(int(factor.n) for factor in space.spaces))
    raise UsageError(
        f"{name} has the action space {space!r}, which is not supported. Wrap the "
        "environment so that it has a Discrete, a Box, or a Tuple of Discrete spaces."
    )


def _num_categories(env: Any, env_params: Any, name: str) -> int | None:
    """Return the size of a Discrete observation space, None for other spaces."""
    from gymnax.environments import spaces

    space = env.observation_space(env_params)
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.Box | spaces.Dict | spaces.Tuple):
        return None
    raise UsageError(
        f"{name} has the observation space {space!r}, which is not supported. Wrap the "
        "environment so that it is a Box, a Discrete, a Dict or a Tuple space."
    )


def _unjitted(method: Any) -> Any:
    """Return a method without the `jit` around it.

    Gymnax jits with the environment as a static argument, which JAX keeps; one that
    holds tracers must not be kept.
    """
    inner = getattr(getattr(method, "__func__", method), "__wrapped__", None)
    return method if inner is None else types.MethodType(inner, method.__self__)
