"""A different environment in each row of a batch."""

from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num, PyTree

from trpo_jax.environments import suites
from trpo_jax.environments.contract import num_costs
from trpo_jax.environments.gymnasium import is_on_host
from trpo_jax.environments.protocol import (
    ActionSpace,
    Environment,
    TimeStep,
    at_random_time,
    step_without_reset,
)
from trpo_jax.errors import UsageError, UsageTypeError, array_types, describe_type
from trpo_jax.observations import Observation


class VariedState(NamedTuple):
    """State of an episode.

    Attributes:
        env_state: The environment's own state.
        params: The parameters of its row.
    """

    env_state: PyTree
    params: PyTree


class VariedEnvironment:
    """Environments that differ in numbers: row i of a batch has parameters i.

    For domain randomisation and meta-learning. Rows keep their parameters through all
    episodes. In a batch of another size, as in an evaluation, row i has parameters
    i mod V, and fewer rows are spread evenly over the parameters. The action space has
    no bounds where they depend on the parameters: each environment clips to its own.
    """

    def __init__(
        self,
        make_fn: Callable[[PyTree], Any],
        params: PyTree,
        digest: str | None = None,
    ):
        """Describe the environments of V rows.

        Args:
            make_fn: params ↦ `Environment`, of one row. The parameters are traced, so
                that shapes and spaces cannot depend on them.
            params: The parameters of all rows, leaves [V, …].
            digest: What a run knows these environments by, see `suites.digest`; that
                of `params` if None.

        Raises:
            UsageError: If the leaves do not have the same number of rows, at least one,
                an integer is beyond 32 bits, or the environment is stepped on the host.
            UsageTypeError: If `make_fn` does not make an `Environment`.
        """
        if not callable(make_fn):
            raise UsageTypeError(
                f"make_fn is {describe_type(make_fn)}; write a function params ↦ "
                "Environment, of one row."
            )
        self._make_fn = make_fn
        self._params = params = suites.narrowed_params(params)
        self._digest = suites.digest(params) if digest is None else digest
        sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(params)}
        if len(sizes) != 1 or not sizes.isdisjoint({(), (0,)}):
            raise UsageError(
                f"parameters {array_types(params)} do not have the same number of rows;"
                " write arrays with one leading axis, [num_envs, …]."
            )
        ((self.num_variants,),) = sizes
        made: list[Environment] = []
        jax.eval_shape(lambda: made.append(make_fn(self._params_of(0))))
        if not isinstance(made[0], Environment):
            raise UsageTypeError(
                f"make_fn returned {describe_type(made[0])}; return an Environment, "
                "such as trpo_jax.environments.GymnaxEnvironment(env, params)."
            )
        if is_on_host(made[0]):
            raise UsageError(
                f"{made[0]!r} is stepped on the host, and parameters are chosen on the "
                "device; write an environment of another suite."
            )
        self.action_space: ActionSpace = made[0].action_space
        self.observation_shape: PyTree = made[0].observation_shape
        self.num_costs = num_costs(made[0])
        self.picture_suffix: str | None = getattr(made[0], "picture_suffix", None)
        self._name = getattr(made[0], "name", type(made[0]).__name__)
        if hasattr(made[0], "at_random_time"):
            self.at_random_time = self._at_random_time

    def __repr__(self) -> str:
        return f"VariedEnvironment({self._name} × {self.num_variants}{self._digest})"

    def reset(self, key: Key[Array, ""]) -> tuple[VariedState, Observation]:
        """Start an episode of row 0; consumes `key`. Returns (state, observation)."""
        return self.reset_variant(key, 0)

    def reset_variant(
        self, key: Key[Array, ""], row: Int[Array, ""] | int
    ) -> tuple[VariedState, Observation]:
        """Start an episode with the parameters of a row, modulo V; consumes `key`."""
        params = self._params_of(row)
        env_state, observation = self._make_fn(params).reset(key)
        return VariedState(env_state, params), observation

    def step(
        self, key: Key[Array, ""], state: VariedState, action: Num[Array, "..."]
    ) -> tuple[VariedState, TimeStep]:
        """Act once, starting the next episode if this one ends; consumes `key`."""
        step_fn = self._make_fn(state.params).step
        env_state, step = step_fn(key, state.env_state, action)
        return VariedState(env_state, state.params), step

    def step_without_reset(
        self, key: Key[Array, ""], state: VariedState, action: Num[Array, "..."]
    ) -> tuple[VariedState, TimeStep]:
        """Act once as `step` does, without a reset where supported; consumes `key`."""
        step_fn = step_without_reset(self._make_fn(state.params))
        env_state, step = step_fn(key, state.env_state, action)
        return VariedState(env_state, state.params), step

    def _at_random_time(self, key: Key[Array, ""], state: VariedState) -> VariedState:
        """Return the state with a random part of its time limit used up."""
        time_fn = at_random_time(self._make_fn(state.params))
        return state._replace(env_state=time_fn(key, state.env_state))

    def draw(
        self, states: VariedState, returns: Float[np.ndarray, " T"], path: Path
    ) -> None:
        """Draw one episode of T steps, as the environment of its row does."""
        params = jax.tree.map(lambda leaf: leaf[0], states.params)
        self._make_fn(params).draw(states.env_state, returns, path)

    def _params_of(self, row: Int[Array, ""] | int) -> PyTree:
        return jax.tree.map(
            lambda leaf: jnp.asarray(leaf)[row % self.num_variants], self._params
        )


def make_with_params(
    make_fn: Callable[[Any, Any], Any], env: Any, params: Any = None
) -> Any:
    """Return the environment with its parameters, a different one in each row if asked.

    Args:
        make_fn: (env, params) ↦ `Environment`.
        env: An environment with `default_params`, an attribute or a method.
        params: Its parameters; the default ones if None. Leaves with one axis more than
            those, [num_envs] in front, make a `VariedEnvironment`.

    Raises:
        UsageError: If parameters do not have the axes of the default ones, or one
            number of rows.
        UsageTypeError: If parameters are not of the environment.
    """
    if params is None:
        return make_fn(env, None)
    default = suites.default_params_of(env)
    if default is not None:
        _check_params(env, params, default)
    params = suites.narrowed_params(params)
    leaves, defaults = _leaves_by_name(params), _leaves_by_name(default)
    varied = {
        name: leaf
        for name, leaf in leaves.items()
        if leaves.keys() == defaults.keys()
        and jnp.ndim(leaf) == jnp.ndim(defaults[name]) + 1
    }
    if not varied:
        return make_fn(env, params)

    def make(rows: dict[str, Array]) -> Any:
        chosen = list((leaves | rows).values())
        return make_fn(env, jax.tree.unflatten(jax.tree.structure(params), chosen))

    return VariedEnvironment(make, varied, suites.digest(params, default))


def _check_params(env: Any, params: Any, default: Any) -> None:
    """Raise with advice unless parameters are like the default ones.

    A class derived from that of the default ones may have other leaves.
    """
    call = "()" if callable(env.default_params) else ""
    advice = f"env.default_params{call}.replace(…) with numbers or arrays"
    if not isinstance(params, type(default)):
        raise UsageTypeError(
            f"params is {describe_type(params)}; {type(env).__name__} takes "
            f"{type(default).__module__}.{type(default).__name__}: write {advice}."
        )
    if type(params) is not type(default):
        return
    leaves, defaults = _leaves_by_name(params), _leaves_by_name(default)
    for name in sorted(defaults.keys() - leaves.keys()):  # None, or a list
        raise UsageTypeError(
            f"params{name} is not a number or an array; write {advice}."
        )
    for name, leaf in leaves.items():
        number = hasattr(leaf, "dtype") or isinstance(leaf, Real)
        if name not in defaults or not number:
            raise UsageTypeError(
                f"params{name} is {describe_type(leaf)}; write {advice}."
            )
        # An environment may take arrays of other sizes.
        shape, usual = jnp.shape(leaf), jnp.shape(defaults[name])
        extra = len(shape) - len(usual)
        if extra not in (0, 1) or shape[:extra] == (0,):
            raise UsageError(
                f"params{name} has the shape {shape} and by default {usual}; write as "
                "many axes, or one more in front, [num_envs], for a different "
                "environment in each row."
            )


def _leaves_by_name(tree: PyTree) -> dict[str, Any]:
    """Return the leaves by their paths, such as ".gravity"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def reset_batch(
    environment: Environment, keys: Key[Array, " B"]
) -> tuple[PyTree, Observation]:
    """Start an episode in each of B environments; consumes `keys`.

    Fewer episodes than parameters are spread evenly over them.

    Returns:
        States and first observations, leaves [B, …].
    """
    reset_variant = getattr(environment, "reset_variant", None)
    if reset_variant is None:
        return jax.vmap(environment.reset)(keys)
    stride = max(1, getattr(environment, "num_variants", 1) / len(keys))
    rows = (np.arange(len(keys)) * stride).astype(np.int32)
    return jax.vmap(reset_variant)(keys, jnp.asarray(rows))
