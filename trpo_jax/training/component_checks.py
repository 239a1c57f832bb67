"""Checks that policy and critic fit their environment, from shapes alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from trpo_jax.environments import (
    Box,
    Discrete,
    Environment,
    MultiDiscrete,
    SquashedActions,
)
from trpo_jax.environments.contract import action_type
from trpo_jax.errors import UsageError, array_types
from trpo_jax.training.batching import BatchedNetwork, one_step
from trpo_jax.training.critic import check_values
from trpo_jax.training.rollouts import RolloutState
from trpo_jax.trust_region import (
    Categorical,
    Distribution,
    MultiCategorical,
    TanhGaussian,
)
from trpo_jax.trust_region.problem import (
    check_distribution,
    check_params,
    check_rows,
)


def check_policy(
    policy: BatchedNetwork,
    params: PyTree,
    environment: Environment,
    state: RolloutState,
) -> None:
    """Raise unless the policy's actions are what the environment takes."""

    def draw(distribution: Distribution, rows: tuple[int, ...]) -> Array:
        check_distribution("the policy", distribution)
        check_rows("the policy", distribution.entropy().shape, rows)
        if isinstance(distribution, TanhGaussian) and not isinstance(
            environment, SquashedActions
        ):
            raise UsageError(
                "the policy returned a TanhGaussian, whose actions have to be squashed "
                "before the environment sees them; write "
                "action_distribution='tanh_gaussian', too."
            )
        if isinstance(space, Discrete) and isinstance(distribution, Categorical):
            choices = distribution.logits.shape[-1]
            check_choices("CategoricalHead", choices, space.num_actions)
        if isinstance(space, MultiDiscrete) and isinstance(
            distribution, MultiCategorical
        ):
            several = tuple(part.logits.shape[-1] for part in distribution.factors)
            check_choices("MultiCategoricalHead", several, space.num_actions)
        return distribution.sample(jax.random.key(0))

    def check_choices(head: str, choices: Any, num_actions: Any) -> None:
        if choices != num_actions:
            raise UsageError(
                f"the policy chooses among {choices} actions, but the environment "
                f"takes {space}; write trpo_jax.networks.{head}({num_actions})."
            )

    space = environment.action_space
    actions = _choose("policy", policy, params, state.memory, state, draw)
    kind = "real floating" if isinstance(space, Box) else "integral"
    event_shape = action_type(environment).shape
    if actions.shape[1:] != event_shape or not jnp.isdtype(actions.dtype, kind):
        raise UsageError(
            f"the policy draws actions {actions.dtype}{list(actions.shape[1:])}, but "
            f"the environment takes {space}: {kind} {list(event_shape)}. Write a "
            "policy whose distribution has those."
        )


def check_critic(
    critic: BatchedNetwork, params: PyTree, memory: PyTree, state: RolloutState
) -> None:
    """Raise unless the critic returns one value for each observation."""

    def check(values: Array, rows: tuple[int, ...]) -> Array:
        check_values(values, rows)
        return values

    _choose("critic", critic, params, memory, state, check)


def _choose(
    name: str,
    network: BatchedNetwork,
    params: PyTree,
    memory: PyTree,
    state: RolloutState,
    choose_fn: Callable[[Any, tuple[int, ...]], Array],
) -> jax.ShapeDtypeStruct:
    """Return the type of what `choose_fn` makes of the output of one step, [B, …].

    It also gets the shape of the rows that the network was applied to.

    Raises:
        UsageTypeError: If a parameter is not floating.
        UsageError: Unless the network returns its memory after each step, [B, T, …],
            and works for a batch of more than one.
    """
    check_params(f"the {name}'s params", params)

    def step(params: PyTree, memory: PyTree, state: RolloutState) -> tuple:
        seen = one_step((state.observation, state.episode_length == 0))
        memories, output = network.apply(params, network.rows(memory, *seen))
        rows = network.to_rows(one_step(state.episode_length)).shape
        by_time = network.from_rows(choose_fn(output, rows), 1)
        return memories, jax.tree.map(lambda leaf: leaf[0], by_time)

    memories, chosen = jax.eval_shape(step, params, memory, state)
    found = array_types(memories)
    wanted = array_types(jax.tree.map(lambda leaf: leaf[:, None], memory))
    if found != wanted:
        raise UsageError(
            f"after one step the {name} returns the memory {found}; it must be "
            f"{wanted}: the memory after each of T steps, [B, T, …], like "
            "initial_memory."
        )
    if len(state.episode_length) == 1:
        # With one row, an output for the whole batch looks like one for each row.
        memory, state = jax.tree.map(
            lambda leaf: jnp.concatenate([leaf, leaf]), (memory, state)
        )
        try:
            _choose(name, network, params, memory, state, choose_fn)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"the {name} works for one observation only, but an update has more. "
                f"With two: {error}"
            ) from error
    return chosen
