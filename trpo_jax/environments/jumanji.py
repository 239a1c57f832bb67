"""Adapter to Jumanji: structured observations, action masks, compound actions."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, Num, PyTree

from trpo_jax.environments import suites
from trpo_jax.environments.protocol import (
    ActionSpace,
    Box,
    Discrete,
    MultiDiscrete,
    TimeStep,
)
from trpo_jax.environments.restart import restarting
from trpo_jax.errors import UsageError
from trpo_jax.extras import import_extra
from trpo_jax.observations import MaskedObservation, Observation, values_of


class JumanjiEnvironment:
    """An environment of Jumanji that resets itself.

    The fields of an observation become one float32 vector, in their order; an
    observation of a single array keeps its shape. A field `action_mask` becomes the
    mask of a `MaskedObservation`; a mask that forbids every action, as of a snake that
    is boxed in, is replaced by one that allows every action. Where an action has
    several parts and the mask has an entry for each combination of them, the
    combinations become one `Discrete` space. A 2 × 2 mask of two binary choices is
    ambiguous, and is read as a mask of combinations.

    An episode that ends with discount 0 terminated; one that ends with another discount
    was truncated. Most of Jumanji's environments also end with 0 at their time limit,
    and observe the steps taken. All is computed in 32 bits, also under
    `jax_enable_x64`.
    """

    @suites.single_precision
    def __init__(self, env: Any, name: str | None = None):
        """Wrap `env`, a `jumanji.Environment` that does not reset itself.

        Args:
            env: The environment.
            name: Its name in messages; its class if None.

        Raises:
            UsageError: If its rewards, actions or masks are not supported.
        """
        self._env = env = suites.narrowed_attributes(env)
        self.name = name or type(env.unwrapped).__name__
        self._spec = env.action_spec
        _, first = jax.eval_shape(env.reset, jax.random.key(0))
        if first.reward.shape:
            raise UsageError(
                f"{self.name} has a reward for each of {first.reward.size} agents, "
                "which is not supported. Add them up: env=trpo_jax.environments."
                "JumanjiEnvironment(jumanji.wrappers.MultiToSingleWrapper(env))."
            )
        _, mask = _values_and_mask(first.observation)
        num_values = getattr(self._spec, "num_values", ())
        self._sizes = tuple(map(int, np.ravel(num_values)))
        self.action_space: ActionSpace = _action_space(
            self._spec, self._sizes, None if mask is None else mask.shape, self.name
        )
        state, observation = jax.eval_shape(self.reset, jax.random.key(0))
        self._state_type = state
        self.observation_shape: PyTree = suites.shape_of(values_of(observation))
        self.num_costs = 0
        self._restart = restarting(self.reset)

    def __repr__(self) -> str:
        return f"JumanjiEnvironment({self.name})"

    @suites.single_precision
    def reset(self, key: Key[Array, ""]) -> tuple[PyTree, Observation]:
        """Start an episode; consumes `key`. Returns (state, observation)."""
        state, first = self._env.reset(key)
        return jax.tree.map(suites.strong, state), _observe(first.observation)

    @suites.single_precision
    def step(
        self, key: Key[Array, ""], state: PyTree, action: Num[Array, "..."]
    ) -> tuple[PyTree, TimeStep]:
        """Act once, starting the next episode if this one ends; consumes `key`."""
        state, taken = self._env.step(state, self._act(action))
        state = suites.strong_as(state, self._state_type)
        ended = taken.last()
        terminated = ended & (taken.discount == 0)
        final_observation = _observe(taken.observation)
        state, observation = self._restart(ended, key, (state, final_observation))
        return state, TimeStep(
            observation=observation,
            reward=jnp.asarray(taken.reward, jnp.float32),
            terminated=terminated,
            truncated=ended & ~terminated,
            final_observation=final_observation,
        )

    def _act(self, action: Num[Array, "..."]) -> Num[Array, "..."]:
        action = suites.narrowed(action)  # drawn outside of `single_precision`
        match self.action_space:
            case Box():
                shaped = action.reshape(self._spec.shape)
                return jnp.clip(shaped, self._spec.minimum, self._spec.maximum)
            case Discrete() if self._spec.shape:
                action = jnp.stack(jnp.unravel_index(action, self._sizes))
        return action.reshape(self._spec.shape).astype(self._spec.dtype)


@suites.made_once
def make_jumanji(env: str | Any) -> JumanjiEnvironment:
    """Return an environment of Jumanji.

    The same argument gives the same object, so that nothing compiles twice.

    Args:
        env: Its id in Jumanji, built in or registered with `jumanji.register`, such as
            "Snake-v1"; or a `jumanji.Environment`.

    Raises:
        UsageError: If Jumanji is not installed, has no such environment (the message
            names the nearest) or cannot load its data, or its rewards, actions or masks
            are not supported.
    """
    if not isinstance(env, str):
        return JumanjiEnvironment(env)
    jumanji = import_extra("jumanji", extra="jumanji")
    advice = (
        "Register your own by jumanji.register(id, entry_point), or write env="
        "trpo_jax.environments.JumanjiEnvironment(env)."
    )
    known = sorted(jumanji.registered_environments())
    suites.check_known(env, known, "jumanji", advice)
    try:
        return JumanjiEnvironment(jumanji.make(env), f"jumanji/{env}")
    except OSError as error:
        suites.refuse_download(env, error)


def _observe(observation: Any) -> Observation:
    values, mask = _values_and_mask(observation)
    if len(values) == 1:
        vector = jnp.asarray(values[0], jnp.float32)
    else:
        flat = [jnp.asarray(value, jnp.float32).ravel() for value in values]
        vector = jnp.concatenate(flat)
    if mask is None:
        return vector
    allowed = jnp.asarray(mask, bool).ravel()
    return MaskedObservation(vector, allowed | ~allowed.any())


def _values_and_mask(observation: Any) -> tuple[list[Any], Any]:
    """Return the arrays of an observation, and its mask, None if it has none."""
    values, mask = [], None
    for path, leaf in jax.tree.leaves_with_path(observation):
        if jax.tree_util.keystr(path, simple=True) == "action_mask":
            mask = leaf
        else:
            values.append(leaf)
    return values, mask


def _action_space(
    spec: Any, sizes: tuple[int, ...], mask_shape: tuple[int, ...] | None, name: str
) -> ActionSpace:
    from jumanji import specs

    space: ActionSpace | None = None
    mask_size = sum(sizes)
    if isinstance(spec, specs.DiscreteArray):
        space = Discrete(mask_size)
    elif isinstance(spec, specs.MultiDiscreteArray):
        space = MultiDiscrete(sizes)
        if mask_shape == sizes:  # an entry for each combination
            mask_size = math.prod(sizes)
            space = Discrete(mask_size)
    elif isinstance(spec, specs.BoundedArray) and spec.dtype == jnp.float32:
        space = suites.flat_box(spec.minimum, spec.maximum, spec.shape)
    if space is None or (mask_shape is not None and math.prod(mask_shape) != mask_size):
        masked = "" if mask_shape is None else f" with a mask {[*mask_shape]}"
        raise UsageError(
            f"{name} has the actions {spec!r}{masked}, which are not supported. Wrap "
            "the environment so that they are a DiscreteArray, a MultiDiscreteArray "
            "with a mask for each part or for each combination, or a BoundedArray of "
            "floats, and write env=trpo_jax.environments.JumanjiEnvironment(wrapped)."
        )
    return space
