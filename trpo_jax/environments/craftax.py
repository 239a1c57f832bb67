"""Adapter to Craftax, whose environments have gymnax 0.x's form."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from trpo_jax.environments import suites
from trpo_jax.environments.protocol import Discrete, TimeStep
from trpo_jax.environments.restart import restarting
from trpo_jax.environments.varied import VariedEnvironment, make_with_params
from trpo_jax.extras import import_extra
from trpo_jax.observations import Observation

_NAMES = (
    "Craftax-Symbolic-v1",
    "Craftax-Pixels-v1",
    "Craftax-Classic-Symbolic-v1",
    "Craftax-Classic-Pixels-v1",
)


class CraftaxEnvironment:
    """An environment of Craftax that resets itself.

    Craftax ends an episode by one flag. An episode that would also have ended without
    the time limit, `max_timesteps`, terminated; the others were truncated. All is
    computed in 32 bits, also under `jax_enable_x64`.
    """

    @suites.single_precision
    def __init__(self, env: Any, env_params: Any = None, name: str | None = None):
        """Wrap `env`, with or without Craftax's own reset, which is not used.

        Args:
            env: The environment.
            env_params: Its parameters; its `default_params` if None.
            name: Its name in messages; its class if None.
        """
        # Evaluated at once, even under a trace: parameters may be arrays.
        with jax.ensure_compile_time_eval():
            if env_params is None:
                env_params = suites.default_params_of(env)
            self._env = env = suites.narrowed_attributes(env)
            self._params = suites.narrowed_params(env_params)
            default = suites.narrowed(suites.default_params_of(env))
            self._digest = suites.digest(self._params, default)
        self.name = name or type(env).__name__
        self.action_space = Discrete(int(env.num_actions))
        state, observation = jax.eval_shape(self.reset, jax.random.key(0))
        self._state_type = state
        self.observation_shape: PyTree = suites.shape_of(observation)
        self.num_costs = 0
        self._restart = restarting(self._start)

    def __repr__(self) -> str:
        return f"CraftaxEnvironment({self.name}{self._digest})"

    def reset(self, key: Key[Array, ""]) -> tuple[PyTree, Observation]:
        """Start an episode; consumes `key`. Returns (state, observation)."""
        return self._start(key, self._params)

    @suites.single_precision
    def step(
        self, key: Key[Array, ""], state: PyTree, action: Int[Array, ""]
    ) -> tuple[PyTree, TimeStep]:
        """Act once, starting the next episode if this one ends; consumes `key`."""
        step_key, restart_key = jax.random.split(key)
        observation, state, reward, ended, _ = self._env.step_env(
            step_key, state, suites.narrowed(action), self._params
        )
        state = suites.strong_as(state, self._state_type)
        ended = jnp.asarray(ended, bool)
        unlimited = self._params.replace(max_timesteps=jnp.iinfo(jnp.int32).max)
        terminated = jnp.asarray(self._env.is_terminal(state, unlimited), bool)
        final_observation = suites.observed(observation)
        state, observation = self._restart(
            ended, restart_key, (state, final_observation), self._params
        )
        return state, TimeStep(
            observation=observation,
            reward=jnp.asarray(reward, jnp.float32),
            terminated=terminated,
            truncated=ended & ~terminated,
            final_observation=final_observation,
        )

    @suites.single_precision
    def _start(self, key: Key[Array, ""], params: Any) -> tuple[PyTree, Observation]:
        observation, state = self._env.reset_env(key, params)
        return jax.tree.map(suites.strong, state), suites.observed(observation)


def make_craftax(
    env: str | tuple[Any, Any] | Any,
) -> CraftaxEnvironment | VariedEnvironment:
    """Return an environment of Craftax by its id, from a pair, or from an object.

    The same argument gives the same object, so that nothing compiles twice.

    Args:
        env: Its id in Craftax, such as "Craftax-Symbolic-v1"; an (environment, params)
            pair; or the environment alone for its default parameters. Parameters with a
            leading axis [num_envs], all or some, make a `VariedEnvironment`.

    Raises:
        UsageError: If Craftax is not installed or has no such environment (the message
            names the nearest), or parameters do not fit, see `make_with_params`.
    """
    if isinstance(env, str):
        return _make_by_id(env)
    return _wrap(suites.ById(env if isinstance(env, tuple) else (env,)))


@suites.made_once
def _make_by_id(name: str) -> CraftaxEnvironment:
    craftax_env = import_extra("craftax.craftax_env", extra="craftax")
    advice = "For your own write env=(environment, params)."
    suites.check_known(name, _NAMES, "craftax", advice)
    env = craftax_env.make_craftax_env_from_name(name, auto_reset=False)
    return CraftaxEnvironment(env, name=f"craftax/{name}")


@suites.made_once
def _wrap(objects: suites.ById) -> CraftaxEnvironment | VariedEnvironment:
    return make_with_params(CraftaxEnvironment, *objects)
