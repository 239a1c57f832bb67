"""The networks of a run, and whether they fit its environment."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from trpo_jax.environments import (
    Box,
    Discrete,
    Environment,
    MultiDiscrete,
    SquashedActions,
    make_environment,
    squash_actions,
)
from trpo_jax.errors import UsageError, UsageTypeError
from trpo_jax.networks import (
    ACTIVATIONS,
    CNN,
    MLP,
    CategoricalHead,
    GaussianHead,
    GSDEHead,
    MultiCategoricalHead,
    Network,
    Policy,
    RecurrentNetwork,
    RecurrentPolicy,
    RecurrentValue,
    StateDependentGaussianHead,
    TanhGaussianHead,
    Value,
    as_network,
)
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.critic import check_values
from trpo_jax.training.rollouts import RolloutState
from trpo_jax.training.views import View, apply_once, view_of
from trpo_jax.trust_region import Categorical, Distribution, TanhGaussian

_GAUSSIAN_HEADS = {
    "gaussian": GaussianHead,
    "state_dependent_gaussian": StateDependentGaussianHead,
    "gsde": GSDEHead,
    "tanh_gaussian": TanhGaussianHead,
}


def assemble(config: TRPOConfig) -> tuple[Environment, View, View]:
    """Return the environment of a run, and the views of its policy and critic."""
    environment = make_environment(config.env)
    if config.action_distribution == "tanh_gaussian":
        environment = squash_actions(environment)
    policy, critic = make_networks(config, environment)
    return environment, view_of(policy), view_of(critic)


def make_networks(
    config: TRPOConfig, environment: Environment
) -> tuple[Network | RecurrentNetwork, Network | RecurrentNetwork]:
    """Return policy and critic: the config's own, or such as fit the environment.

    Raises:
        ValueError: If the config asks for a Gaussian and actions are discrete.
    """
    policy, critic = as_network(config.policy), as_network(config.critic)
    torso, size = _torso(config), config.memory_size
    if policy is None:
        head = _head(config, environment)
        policy = RecurrentPolicy(torso, head, size) if size else Policy(torso, head)
    if critic is None:
        critic = RecurrentValue(torso, size) if size else Value(torso)
    return policy, critic


def _torso(config: TRPOConfig) -> nn.Module:
    sizes, activation = config.hidden_sizes, ACTIVATIONS[config.activation]
    if config.channels:
        stride = config.convolution_stride
        return CNN(config.channels, 3, stride, sizes, activation)
    return MLP(sizes, activation)


def _head(config: TRPOConfig, environment: Environment) -> nn.Module:
    space = environment.action_space
    if config.action_distribution != "gaussian" and not isinstance(space, Box):
        raise UsageError(
            f"action_distribution={config.action_distribution!r} is for continuous "
            f"actions, but the environment takes {space}; leave it out."
        )
    match space:
        case Discrete(num_actions):
            return CategoricalHead(num_actions)
        case MultiDiscrete(num_actions):
            return MultiCategoricalHead(num_actions)
        case Box(size):
            return _GAUSSIAN_HEADS[config.action_distribution](
                size, config.initial_log_std
            )


def check_policy(
    policy: View, params: PyTree, environment: Environment, state: RolloutState
) -> None:
    """Raise unless the policy's actions are what the environment takes."""

    def draw(distribution: Distribution) -> Array:
        if not isinstance(distribution, Distribution):
            raise UsageTypeError(
                f"the policy returned {type(distribution).__name__}, which is not a "
                "distribution; return trpo_jax.trust_region.Categorical(logits), "
                "trpo_jax.trust_region.DiagonalGaussian(mean, log_std) or another."
            )
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
        return apply_once(policy, params, *seen, draw)[1]

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
    critic: View, params: PyTree, memory: PyTree, state: RolloutState
) -> None:
    """Raise unless the critic returns one value for each observation."""

    def evaluate(params: PyTree, state: RolloutState) -> Array:
        starts = state.episode_length == 0
        seen = (memory, state.observation, starts)
        return apply_once(critic, params, *seen, lambda values: values)[1]

    check_memory("critic", critic, params, memory, state)
    values = jax.eval_shape(evaluate, params, state)
    check_values(values.shape, state.episode_length.shape)


def check_memory(
    name: str, view: View, params: PyTree, memory: PyTree, state: RolloutState
) -> None:
    """Raise unless the network returns its memory after each step, [B, T, …]."""
    one_step = jax.tree.map(
        lambda leaf: leaf[None], (state.observation, state.episode_length == 0)
    )
    memories, _ = jax.eval_shape(view.apply, params, view.rows(memory, *one_step))
    expected = jax.tree.map(lambda leaf: leaf[:, None], memory)

    def types(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: f"{leaf.dtype}{[*leaf.shape]}", tree)

    if types(memories) != types(expected):
        raise UsageError(
            f"after one step the {name} returns the memory {types(memories)}; it must "
            f"be {types(expected)}: the memory after each of T steps, [B, T, …], like "
            "initial_memory."
        )
