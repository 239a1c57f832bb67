"""Adapter to Navix: MiniGrid in JAX."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from trpo_jax.environments import suites
from trpo_jax.environments.protocol import Discrete, TimeStep
from trpo_jax.environments.restart import restarting
from trpo_jax.extras import import_extra
from trpo_jax.observations import Observation

# Ids of entities, colours, and states of doors or directions.
_NUM_IDS = (11, 6, 4)


class NavixEnvironment:
    """An environment of Navix that resets itself.

    Symbolic observations, Navix's default, become one-hot, bool[H, W, 21]: 11 entities,
    6 colours, 4 states. Images stay bytes, and other integers become float32.
    Terminated and truncated are told apart as by Navix. All is computed in 32 bits,
    also under `jax_enable_x64`.
    """

    @suites.single_precision
    def __init__(self, env: Any, name: str | None = None):
        """Wrap `env`, a `navix.environments.Environment`.

        Args:
            env: The environment.
            name: Its name in messages; its class if None.
        """
        observations = import_extra("navix.observations", extra="navix")
        self._env = env
        self._is_symbolic = env.observation_fn in (
            observations.symbolic,
            observations.symbolic_first_person,
        )
        self.name = name or type(env).__name__
        self.action_space = Discrete(len(env.action_set))
        state, observation = jax.eval_shape(self.reset, jax.random.key(0))
        self._state_type = state
        self.observation_shape: PyTree = suites.shape_of(observation)
        self.num_costs = 0
        self._restart = restarting(self.reset)

    def __repr__(self) -> str:
        return f"NavixEnvironment({self.name})"

    @suites.single_precision
    def reset(self, key: Key[Array, ""]) -> tuple[PyTree, Observation]:
        """Start an episode; consumes `key`. Returns (state, observation)."""
        first = self._env.reset(key)
        return jax.tree.map(suites.strong, first), self._observe(first.observation)

    @suites.single_precision
    def step(
        self, key: Key[Array, ""], state: PyTree, action: Int[Array, ""]
    ) -> tuple[PyTree, TimeStep]:
        """Act once, starting the next episode if this one ends; consumes `key`."""
        # Not `step`, which would compute a reset, too, in each step of a batch.
        taken = self._env._step(state, suites.narrowed(action))
        taken = suites.strong_as(taken, self._state_type)
        terminated, truncated = taken.is_termination(), taken.is_truncation()
        final_observation = self._observe(taken.observation)
        state, observation = self._restart(
            terminated | truncated, key, (taken, final_observation)
        )
        return state, TimeStep(
            observation=observation,
            reward=jnp.asarray(taken.reward, jnp.float32),
            terminated=terminated,
            truncated=truncated,
            final_observation=final_observation,
        )

    def _observe(self, observation: Any) -> Observation:
        if self._is_symbolic:
            return suites.one_hot_layers(observation, _NUM_IDS)
        return suites.observed(observation)


def make_navix(env: str | Any) -> NavixEnvironment:
    """Return an environment of Navix.

    The same argument gives the same object, so that nothing compiles twice.

    Args:
        env: Its id in Navix, built in or registered with `navix.register_env`, such as
            "Navix-Empty-5x5-v0"; or a `navix.environments.Environment`.

    Raises:
        UsageError: If Navix is not installed or has no such environment (the message
            names the nearest).
    """
    if not isinstance(env, str):
        return _wrap(suites.ById((env,)))
    return _make_by_id(env)


@suites.made_once
def _wrap(objects: suites.ById) -> NavixEnvironment:
    return NavixEnvironment(*objects)


@suites.made_once
def _make_by_id(name: str) -> NavixEnvironment:
    navix = import_extra("navix", extra="navix")
    advice = (
        "Register your own by navix.register_env(id, constructor), or write env="
        "trpo_jax.environments.NavixEnvironment(env)."
    )
    suites.check_known(name, navix.registry(), "navix", advice)
    return NavixEnvironment(navix.make(name), f"navix/{name}")
