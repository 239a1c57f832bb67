"""Environment, policy and critic of a run, made from its config."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax

from trpo_jax import networks
from trpo_jax.environments import (
    Box,
    Discrete,
    Environment,
    MultiDiscrete,
    make_environment,
    squash_actions,
)
from trpo_jax.errors import UsageError
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
    return Components(environment, batched(policy), batched(critic))


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
    torso, size = _torso(config), config.memory_size
    if policy is None and size:
        policy = networks.RecurrentPolicy(torso, _head(config, environment), size)
    elif policy is None:
        policy = networks.Policy(torso, _head(config, environment))
    if critic is None:
        critic = networks.RecurrentValue(torso, size) if size else networks.Value(torso)
    return policy, critic


def _torso(config: TRPOConfig) -> nn.Module:
    sizes, activation = config.hidden_sizes, getattr(jax.nn, config.activation)
    if config.channels:
        stride = config.convolution_stride
        return networks.CNN(config.channels, 3, stride, sizes, activation)
    return networks.MLP(sizes, activation)


def _head(config: TRPOConfig, environment: Environment) -> nn.Module:
    space = environment.action_space
    if config.action_distribution != "gaussian" and not isinstance(space, Box):
        raise UsageError(
            f"action_distribution={config.action_distribution!r} is for continuous "
            f"actions, but the environment takes {space}; leave it out."
        )
    match space:
        case Discrete(num_actions):
            return networks.CategoricalHead(num_actions)
        case MultiDiscrete(num_actions):
            return networks.MultiCategoricalHead(num_actions)
        case Box(size):
            return _GAUSSIAN_HEADS[config.action_distribution](
                size, config.initial_log_std
            )
