import flax.linen as nn
import jax
import numpy as np
import pytest

from trpo_jax import (
    TRPOConfig,
    evaluate,
    train,
)
from trpo_jax.networks import (
    NetworkFns,
)

pytestmark = pytest.mark.usefixtures("no_shape_checks")

SMALL = {"num_envs": 4, "rollout_length": 6, "total_timesteps": 48}


@pytest.mark.parametrize("network", [nn.Dense(2), NetworkFns(print, print)])
def test_networks_of_ones_own_are_accepted(network):
    config = TRPOConfig(**SMALL, policy=network, critic=network)
    assert config.policy is network
    assert config.critic is network


@pytest.mark.parametrize(
    "action_distribution", ["state_dependent_gaussian", "gsde", "tanh_gaussian"]
)
def test_every_action_distribution_trains(action_distribution):
    config = TRPOConfig(
        env="Pendulum-v1",
        **SMALL,
        hidden_sizes=(4,),
        action_distribution=action_distribution,
        noise_period=2,
    )
    result = train(config)
    assert result.metrics.update.status[0] == 0
    assert np.all(np.isfinite(result.metrics.update.kl))
    returns = evaluate(config, result.state, jax.random.key(1), 2)
    assert np.all(np.isfinite(returns))
