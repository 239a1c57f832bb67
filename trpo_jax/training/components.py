"""Environment, policy and critic of a run, made from its config."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jaxtyping import PyTree

from trpo_jax import networks
from trpo_jax.environments import (
    Box,
    Discrete,
    Environment,
    MultiDiscrete,
    make_environment,
    squash_actions,
)
from trpo_jax.environments.contract import observation_type
from trpo_jax.errors import UsageError
from trpo_jax.networks.initializers import ScaledInitializer
from trpo_jax.observations import part_of, values_of
from trpo_jax.training.batching import BatchedNetwork, batched
from trpo_jax.training.config import TRPOConfig

_GAUSSIAN_HEADS = {
    "gaussian": networks.GaussianHead,
    "state_dependent_gaussian": networks.StateDependentGaussianHead,
    "gsde": networks.GSDEHead,
    "tanh_gaussian": networks.TanhGaussianHead,
}


AnyNetwork = networks.Network | networks.RecurrentNetwork


class Components(NamedTuple):
    """Environment, policy and critic of a run."""

    environment: Environment
    policy: BatchedNetwork
    critic: BatchedNetwork


def make_components(config: TRPOConfig) -> Components:
    """Return environment, policy and critic of a run.

    Raises:
        UsageError: If the environment is unknown or not supported, or the config asks
            for a distribution that does not fit its actions.
    """
    environment = make_environment(config.env)
    if config.action_distribution == "tanh_gaussian":
        environment = squash_actions(environment)
    policy, critic = make_networks(config, environment)
    return Components(
        environment,
        batched(policy, config.policy_observation),
        batched(critic, config.critic_observation),
    )


def make_networks(
    config: TRPOConfig, environment: Environment
) -> tuple[AnyNetwork, AnyNetwork]:
    """Return policy and critic: those of the config, or defaults that fit.

    Raises:
        UsageError: If the config asks for a Gaussian and actions are discrete.
    """
    # The config has replaced an NNX module by its `NNXNetwork`.
    policy: Any = config.policy
    critic: Any = config.critic
    policy_torso, critic_torso = _torsos(config, environment)
    size, memory = config.memory_size, config.memory
    if policy is None and size:
        head = _head(config, environment)
        policy = networks.RecurrentPolicy(policy_torso, head, size, memory)
    elif policy is None:
        policy = networks.Policy(policy_torso, _head(config, environment))
    if critic is None and size:
        critic = networks.RecurrentValue(
            critic_torso, size, memory, _initializer(config)
        )
    elif critic is None:
        critic = networks.Value(critic_torso, _initializer(config))
    return policy, critic


def _torsos(config: TRPOConfig, environment: Environment) -> list[nn.Module]:
    """Return the default torsos of policy and critic."""
    sizes, activation = config.hidden_sizes, getattr(jax.nn, config.activation)
    initializer = _initializer(config)
    mlp = networks.MLP(sizes, activation, initializer)
    if not config.channels:
        return [mlp, mlp]
    cnn = networks.CNN(
        config.channels, 3, config.convolution_stride, sizes, activation, initializer
    )
    parts = (config.policy_observation, config.critic_observation)
    if parts == (None, None):
        return [cnn, cnn]
    # One of them may see an image and the other flat entries alone.
    observation = observation_type(environment)
    convolves = [_has_image(part_of(observation, part)) for part in parts]
    return [cnn if one or not any(convolves) else mlp for one in convolves]


def _initializer(config: TRPOConfig) -> ScaledInitializer:
    return getattr(networks, config.initialization)


def _has_image(observation: PyTree) -> bool:
    leaves = jax.tree.leaves(values_of(observation))
    return any(len(leaf.shape) in (2, 3) for leaf in leaves)


def _head(config: TRPOConfig, environment: Environment) -> nn.Module:
    space = environment.action_space
    if config.action_distribution != "gaussian" and not isinstance(space, Box):
        raise UsageError(
            f"action_distribution={config.action_distribution!r} is for continuous "
            f"actions, but the environment takes {space}; leave it out."
        )
    initializer = _initializer(config)
    match space:
        case Discrete(num_actions):
            return networks.CategoricalHead(num_actions, initializer)
        case MultiDiscrete(num_actions):
            return networks.MultiCategoricalHead(num_actions, initializer)
        case Box(size):
            return _GAUSSIAN_HEADS[config.action_distribution](
                size, config.initial_log_std, initializer=initializer
            )
