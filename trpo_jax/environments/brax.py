"""Adapter to brax, and to other environments with brax's `reset` and `step`."""

import copy
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from trpo_jax.environments import suites
from trpo_jax.environments.drawing import draw_bodies, has_bodies
from trpo_jax.environments.protocol import Box, TimeStep
from trpo_jax.environments.restart import restarting
from trpo_jax.errors import UsageError, UsageTypeError, describe_type
from trpo_jax.extras import import_extra
from trpo_jax.observations import Observation

_BACKENDS = ("spring", "generalized", "positional", "mjx")


class BraxState(NamedTuple):
    """State of an episode.

    Attributes:
        env_state: The environment's own state.
        length: Steps taken so far, int32 scalar.
    """

    env_state: PyTree
    length: Int[Array, ""]


class BraxEnvironment:
    """An environment in brax's form, cut after `episode_length` steps.

    Every episode starts from a new reset; brax's own wrapper would return to the first
    initial state. Actions are clipped to [−1, 1]. `terminated`
    is the environment's own `done`, `truncated` the time limit. An entry "cost" of the
    state's `info` is the cost of a step. All is computed in 32 bits, also under
    `jax_enable_x64`.
    """

    @suites.single_precision
    def __init__(self, env: Any, episode_length: int, name: str | None = None):
        """Wrap `env`, which has `action_size`, `reset(rng)` and `step(state, action)`.

        The two return a state with `obs`, `reward` and `done`.

        Args:
            env: The environment, without the wrappers that reset it, count its steps
                or map it.
            episode_length: Steps after which an episode is cut.
            name: Its name in messages; its class if None.

        Raises:
            UsageError: If `env` is in such a wrapper, its physics is Warp, or
                `episode_length` is not positive.
            UsageTypeError: If `episode_length` is not a whole number.
        """
        _check_alone(env)
        whole = isinstance(episode_length, int | np.integer)
        if not whole or isinstance(episode_length, bool):
            raise UsageTypeError(
                f"episode_length is {describe_type(episode_length)}; write a whole "
                "number of steps, as 1000."
            )
        if episode_length < 1:
            raise UsageError(
                f"episode_length={episode_length} is not positive; write 1000."
            )
        self._env = env = suites.narrowed_attributes(env)
        self._episode_length = episode_length
        self.name = name or type(env).__name__
        _mend_fluid()
        size = env.action_size
        self.action_space = Box(size, (-1.0,) * size, (1.0,) * size)
        raw = jax.eval_shape(self._reset, jax.random.key(0), {})
        self._state_type = raw
        self.observation_shape: PyTree = suites.shape_of(raw.obs)
        self.num_costs = suites.count_costs(getattr(raw, "info", None))
        # Leaves that replace those of the model, by index in `jax.tree.leaves`.
        self._leaves: dict[int, Array] = {}
        self._restart = restarting(self._start)

    def __repr__(self) -> str:
        return f"BraxEnvironment({self.name})"

    @property
    def picture_suffix(self) -> str | None:
        """Suffix ".html" if brax's viewer can draw the environment, else None."""
        return ".html" if has_bodies(self._env, self._state_type) else None

    def reset(self, key: Key[Array, ""]) -> tuple[BraxState, Observation]:
        """Start an episode; consumes `key`. Returns (state, observation)."""
        return self._start(key, self._leaves)

    def at_random_time(self, key: Key[Array, ""], state: BraxState) -> BraxState:
        """Return the state with a random part of its limit used up; consumes `key`."""
        return state._replace(
            length=jax.random.randint(key, (), 0, self._episode_length, jnp.int32)
        )

    @suites.single_precision
    def step(
        self, key: Key[Array, ""], state: BraxState, action: Float[Array, " D"]
    ) -> tuple[BraxState, TimeStep]:
        """Act once, starting the next episode if this one ends; consumes `key`."""
        # A copy: environments write into the dictionaries of the state they are given.
        raw = jax.tree.map(jnp.asarray, state.env_state)
        action = suites.narrowed(action)  # drawn outside of `single_precision`
        raw = self._env_of(self._leaves).step(raw, jnp.clip(action, -1, 1))
        raw = suites.strong_as(raw, self._state_type)
        length = state.length + 1
        terminated = raw.done > 0
        truncated = (length >= self._episode_length) & ~terminated
        final_observation = suites.observed(raw.obs)
        following, observation = self._restart(
            terminated | truncated,
            key,
            (BraxState(raw, length), final_observation),
            self._leaves,
        )
        return following, TimeStep(
            observation=observation,
            reward=jnp.asarray(raw.reward, jnp.float32),
            terminated=terminated,
            truncated=truncated,
            final_observation=final_observation,
            cost=suites.cost_of(getattr(raw, "info", None)),
        )

    def draw(
        self, states: BraxState, returns: Float[np.ndarray, " T"], path: Path
    ) -> None:
        """Draw one episode of T steps, by the viewer of brax."""
        draw_bodies(self._env_of(self._leaves), states.env_state, path)

    @property
    def model(self) -> PyTree:
        """Model of the body: `sys` in brax, `mjx_model` in Playground; None if none."""
        return getattr(self._env, self._model_name, None)

    def with_leaves(self, leaves: dict[int, Array]) -> "BraxEnvironment":
        """Return this environment with other leaves of its model, by their index."""
        other = copy.copy(self)
        other._leaves = leaves
        return other

    @property
    def _model_name(self) -> str:
        return "_mjx_model" if hasattr(self._env, "_mjx_model") else "sys"

    def _env_of(self, leaves: dict[int, Array]) -> Any:
        """Return the suite's environment with other leaves of its model."""
        if not leaves:
            return self._env
        own, structure = jax.tree.flatten(self.model)
        all_leaves = [leaves.get(index, leaf) for index, leaf in enumerate(own)]
        env = copy.copy(self._env)
        setattr(env, self._model_name, jax.tree.unflatten(structure, all_leaves))
        return env

    @suites.single_precision
    def _start(
        self, key: Key[Array, ""], leaves: dict[int, Array]
    ) -> tuple[BraxState, Observation]:
        raw = self._reset(key, leaves)
        return BraxState(raw, jnp.int32(0)), suites.observed(raw.obs)

    def _reset(self, key: Key[Array, ""], leaves: dict[int, Array]) -> Any:
        # Brax takes the uint32 array of jax.random.PRNGKey.
        raw = self._env_of(leaves).reset(suites.raw_key(key))
        return jax.tree.map(suites.strong, raw)


@suites.made_once
def make_brax(
    name: str, backend: str = "spring", episode_length: int = 1000
) -> BraxEnvironment:
    """Return an environment of brax.

    The same arguments give the same object, so that nothing compiles twice.

    Args:
        name: Its name in brax, built in or registered with
            `brax.envs.register_environment`, such as "halfcheetah".
        backend: The physics: "spring", "generalized", "positional" or "mjx".
        episode_length: Steps after which an episode is cut.

    Raises:
        UsageError: If brax is not installed, has no such environment or backend (the
            message names the nearest).
    """
    envs = import_extra("brax.envs", extra="brax")
    advice = "Register your own by brax.envs.register_environment(name, class)."
    suites.check_known(name, envs._envs, "brax", advice)  # the only list that brax has
    if backend not in _BACKENDS:
        raise UsageError(
            f"no backend {backend!r} in brax. Write one of {', '.join(_BACKENDS)}."
        )
    try:
        env = envs.get_environment(name, backend=backend)
    except ValueError as error:
        if backend == "generalized" or "backend" not in str(error):
            raise
        raise UsageError(
            f"brax/{name}/{backend} cannot be made: {error} Write another backend, as "
            f"'brax/{name}/generalized'."
        ) from error
    return BraxEnvironment(env, episode_length, f"brax/{name}/{backend}")


# Wrappers of brax and Playground whose work is done here, and would hide how an episode
# ended, or take a batch of keys.
_WRAPPERS = ("EpisodeWrapper", "AutoResetWrapper", "VmapWrapper", "EvalWrapper")


def _check_alone(env: Any) -> None:
    model = getattr(env, "mjx_model", None)
    if getattr(getattr(model, "impl", None), "name", None) == "WARP":
        raise UsageError(
            "the physics of env is Warp, whose state has arrays that a whole batch "
            "shares; make it with MJX in JAX: mujoco_playground.registry.load(name, "
            "config_overrides={'impl': 'jax'})."
        )
    wrapped = env
    while wrapped is not None:
        name = type(wrapped).__name__
        if name.endswith(_WRAPPERS):
            raise UsageError(
                f"env is wrapped in {name}, whose work the adapter does; write "
                "env.unwrapped, with wrappers of your own around it, or make it as by "
                "brax.envs.get_environment(name)."
            )
        wrapped = getattr(wrapped, "__dict__", {}).get("env")


def _mend_fluid() -> None:
    """Give `brax.fluid`, which moves the swimmer, a `clip` that takes `a_min`.

    JAX has renamed the argument; brax 0.14, no longer maintained, still uses it, and so
    does CRAX's copy of it.
    """
    for name in ("brax.fluid", "crax.fluid"):
        fluid: Any = sys.modules.get(name)
        if fluid is not None and fluid.jp is jnp:
            fluid.jp = types.SimpleNamespace(**vars(jnp) | {"clip": _clip})


def _clip(array: Array, *bounds: Any, **named: Any) -> Array:
    if "a_min" in named:
        named["min"] = named.pop("a_min")
    return jnp.clip(array, *bounds, **named)
