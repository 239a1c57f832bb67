"""Checks that policy and critic fit their environment, from shapes alone."""

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
from trpo_jax.errors import UsageError
from trpo_jax.training.batching import BatchedNetwork, BoundNetwork
from trpo_jax.training.critic import check_values
from trpo_jax.training.rollouts import RolloutState
from trpo_jax.trust_region import Categorical, Distribution, TanhGaussian
from trpo_jax.trust_region.problem import check_distribution


def check_policy(
    policy: BatchedNetwork,
    params: PyTree,
    environment: Environment,
    state: RolloutState,
) -> None:
    """Raise unless the policy's actions are what the environment takes."""

    def draw(distribution: Distribution) -> Array:
        check_distribution("the policy", distribution)
        if isinstance(distribution, TanhGaussian) and not isinstance(
            environment, SquashedActions
        ):
            raise UsageError(
                "the policy returned a TanhGaussian, whose actions have to be squashed "
                "before the environment sees them; write "
                "action_distribution='tanh_gaussian', too."
            )
        if isinstance(distribution, Categorical) and isinstance(space, Discrete):
            choices = distribution.logits.shape[-1]
            if choices != space.num_actions:
                raise UsageError(
                    f"the policy chooses among {choices} actions, but the environment "
                    f"takes {space}; write trpo_jax.networks.CategoricalHead"
                    f"({space.num_actions})."
                )
        return distribution.sample(jax.random.key(0))

    def sample(params: PyTree, state: RolloutState) -> Array:
        starts = state.episode_length == 0
        seen = (state.memory, state.observation, starts)
        return BoundNetwork(policy, params).step(*seen, draw)[1]

    space = environment.action_space
    check_memory("policy", policy, params, state.memory, state)
    actions = jax.eval_shape(sample, params, state)
    kind = "real floating" if isinstance(space, Box) else "integral"
    match space:
        case Box(size):
            event_shape: tuple[int, ...] = (size,)
        case MultiDiscrete(num_actions):
            event_shape = (len(num_actions),)
        case _:
            event_shape = ()
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

    def evaluate(params: PyTree, state: RolloutState) -> Array:
        starts = state.episode_length == 0
        seen = (memory, state.observation, starts)
        return BoundNetwork(critic, params).step(*seen, lambda values: values)[1]

    check_memory("critic", critic, params, memory, state)
    values = jax.eval_shape(evaluate, params, state)
    check_values(values, state.episode_length.shape)


def check_memory(
    name: str,
    network: BatchedNetwork,
    params: PyTree,
    memory: PyTree,
    state: RolloutState,
) -> None:
    """Raise unless the network returns its memory after each step, [B, T, …]."""
    one_step = jax.tree.map(
        lambda leaf: leaf[None], (state.observation, state.episode_length == 0)
    )
    memories, _ = jax.eval_shape(network.apply, params, network.rows(memory, *one_step))
    expected = jax.tree.map(lambda leaf: leaf[:, None], memory)

    def types(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: f"{leaf.dtype}{[*leaf.shape]}", tree)

    if types(memories) != types(expected):
        raise UsageError(
            f"after one step the {name} returns the memory {types(memories)}; it must "
            f"be {types(expected)}: the memory after each of T steps, [B, T, …], like "
            "initial_memory."
        )
