"""Environment, policy and critic of a run, made from its config."""

from typing import NamedTuple

import flax.linen as nn

from trpo_jax.environments import (
    Box,
    Discrete,
    Environment,
    MultiDiscrete,
    make_environment,
    squash_actions,
)
from trpo_jax.errors import UsageError
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
from trpo_jax.training.batching import BatchedNetwork, batched
from trpo_jax.training.config import TRPOConfig

_GAUSSIAN_HEADS = {
    "gaussian": GaussianHead,
    "state_dependent_gaussian": StateDependentGaussianHead,
    "gsde": GSDEHead,
    "tanh_gaussian": TanhGaussianHead,
}


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
    networks = make_networks(config, environment)
    return Components(environment, *map(batched, networks))


def make_networks(
    config: TRPOConfig, environment: Environment
) -> tuple[Network | RecurrentNetwork, Network | RecurrentNetwork]:
    """Return policy and critic: those of the config, or defaults that fit.

    Raises:
        UsageError: If the config asks for a Gaussian and actions are discrete.
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
