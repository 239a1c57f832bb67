import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit
from probes import CHAIN, TABULAR

from trpo_jax import (
    TRPOConfig,
    UpdateStatus,
    init,
    step,
)
from trpo_jax.networks import (
    MLP,
    CategoricalHead,
    Network,
    NetworkFns,
    Policy,
)
from trpo_jax.trust_region import Categorical


def policy_fn(params, observations):
    """A policy as one writes it for `trust_region_update`, without a framework."""
    return Categorical(jnp.tanh(observations @ params["w1"]) @ params["w2"])


def init_params(key, observations):
    shape = (observations.shape[-1], 5)
    return {"w1": jax.random.normal(key, shape) / 3, "w2": jnp.zeros((5, 2))}


class QuadraticValue(nn.Module):
    """A Flax module that is not ours."""

    @nn.compact
    def __call__(self, observations):
        features = jnp.concatenate([observations, observations**2], axis=-1)
        return nn.Dense(1)(features)[:, 0]


def test_networks_of_ones_own_train():
    config = TRPOConfig(
        env=(TABULAR, CHAIN),
        num_envs=4,
        rollout_length=8,
        total_timesteps=32,
        policy=NetworkFns(init_params, policy_fn),
        critic=QuadraticValue(),
    )

    @fast_jit
    def run(key):
        state = init(config, key)
        return state, *step(config, state)

    before, after, metrics = run(jax.random.key(0))
    assert metrics.update.status == UpdateStatus.ACCEPTED
    assert set(after.params) == {"w1", "w2"}
    assert np.all(after.params["w2"] != 0)
    kernels = [s.critic_params["params"]["Dense_0"]["kernel"] for s in (before, after)]
    assert kernels[0].shape == (6, 1)
    assert np.all(kernels[0] != kernels[1])


@pytest.mark.parametrize(
    "network",
    [
        NetworkFns(init_params, policy_fn),
        QuadraticValue(),
        Policy(MLP(), CategoricalHead(3)),
    ],
)
def test_networks_are_recognized_and_static(network):
    assert isinstance(network, Network)
    assert hash(network) == hash(network)


@pytest.mark.parametrize("other", [policy_fn, "mlp", {"init": init_params}, None])
def test_other_things_are_not_networks(other):
    assert not isinstance(other, Network)
