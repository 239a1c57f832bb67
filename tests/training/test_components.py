import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import CHAIN, TWO_CHOICES

from trpo_jax import (
    TRPOConfig,
    evaluate,
    train,
)
from trpo_jax.environments.contract import observation_type
from trpo_jax.networks import NetworkFns
from trpo_jax.training.batching import init_params
from trpo_jax.training.components import make_components

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


def kernels(config):
    """Return the matrices of the dense layers of policy and critic, by name."""
    environment, *networks = make_components(config)
    observations = jax.tree.map(
        lambda leaf: jnp.zeros((2, *leaf.shape), leaf.dtype),
        observation_type(environment),
    )
    params = [init_params(one, jax.random.key(0), observations) for one in networks]
    named = {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(params)
    }
    return {
        name: leaf
        for name, leaf in named.items()
        if "kernel" in name and "GRU" not in name
    }


@pytest.mark.parametrize(
    ("fields", "layers"),
    [
        ({"env": "CartPole-v1"}, 4),
        ({"env": "CartPole-v1", "memory_size": 8}, 4),
        ({"env": "Asterix-MinAtar", "channels": (6,)}, 6),
        ({"env": "Pendulum-v1"}, 4),
        ({"env": "Pendulum-v1", "action_distribution": "gsde"}, 4),
        ({"env": "Pendulum-v1", "action_distribution": "tanh_gaussian"}, 4),
        ({"env": "Pendulum-v1", "action_distribution": "state_dependent_gaussian"}, 4),
        ({"env": (TWO_CHOICES, CHAIN)}, 4),
    ],
)
def test_every_layer_is_initialized_as_the_config_says(fields, layers):
    config = TRPOConfig(**SMALL, **fields, hidden_sizes=(200,))
    found = kernels(config)
    assert len(found) == layers
    for matrix in found.values():
        singular_values = np.linalg.svd(matrix, compute_uv=False)
        np.testing.assert_allclose(singular_values, singular_values[0], rtol=1e-4)
    for name, deviation_fn in (
        ("xavier_uniform", lambda inputs, outputs: np.sqrt(2 / (inputs + outputs))),
        ("lecun_normal", lambda inputs, outputs: np.sqrt(1 / inputs)),
    ):
        found = kernels(dataclasses.replace(config, initialization=name))
        assert len(found) == layers
        for matrix in found.values():
            np.testing.assert_allclose(np.std(matrix), deviation_fn(*matrix.shape), 0.2)
