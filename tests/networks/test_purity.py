"""Networks that are not pure functions of their parameters are refused early."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from probes import CHAIN, TABULAR

from trpo_jax import TRPOConfig, init
from trpo_jax.environments import make_environment
from trpo_jax.networks import MLP, NetworkFns, Value, init_network

KEY = jax.random.key(0)
OBSERVATIONS = jnp.asarray(CHAIN.features)


class Middle(nn.Module):
    """A critic with one layer in its middle."""

    layer: nn.Module

    @nn.compact
    def __call__(self, observations):
        return nn.Dense(1)(self.layer(observations))[:, 0]


IMPURE = {
    "batch norm": (nn.BatchNorm(use_running_average=False), "batch_stats"),
    "statistics as they are": (
        nn.BatchNorm(use_running_average=True),
        "has variables beside them, batch_stats",
    ),
    "dropout": (nn.Dropout(0.5, deterministic=False), 'needs PRNG for "dropout"'),
    "spectral norm": (
        nn.SpectralNorm(nn.Dense(3), collection_name="spectra"),
        "spectra",
    ),
}


@pytest.mark.parametrize(("layer", "reason"), IMPURE.values(), ids=IMPURE)
def test_a_network_that_is_not_pure_is_refused(layer, reason):
    if isinstance(layer, nn.SpectralNorm):
        layer = Updating(layer)
    config = TRPOConfig(env=make_environment((TABULAR, CHAIN)), critic=Middle(layer))
    with pytest.raises(ValueError, match=reason) as raised:
        init(config, KEY)
    assert "Write nn.LayerNorm in place of nn.BatchNorm" in str(raised.value)
    assert "http" not in str(raised.value)


class Updating(nn.Module):
    norm: nn.Module

    def __call__(self, x):
        return self.norm(x, update_stats=True)


def test_functions_around_an_impure_module_are_refused_too():
    module = Middle(nn.Dropout(0.5, deterministic=False))
    functions = NetworkFns(lambda *inputs: module.init(*inputs), module.apply)
    with pytest.raises(ValueError, match="but NetworkFns is not: layer needs"):
        init_network(functions, KEY, OBSERVATIONS)


@pytest.mark.parametrize("layer", [nn.LayerNorm(), nn.Dropout(0.5, deterministic=True)])
def test_advice_works(layer):
    params = init_network(Middle(layer), KEY, OBSERVATIONS)
    assert set(params) == {"params"}


def test_a_pure_network_has_its_own_parameters():
    network = Value(MLP((4,)))
    expected = network.init(KEY, OBSERVATIONS)
    params = init_network(network, KEY, OBSERVATIONS)
    same = jax.tree.map(lambda one, other: (one == other).all(), params, expected)
    assert all(jax.tree.leaves(same))


def test_a_distribution_that_is_no_pytree_is_named():
    class Uniform:
        """A distribution of one's own, but not a pytree."""

    policy = NetworkFns(lambda key, x: {}, lambda params, x: Uniform())
    with pytest.raises(TypeError, match=r"Uniform.*make it a NamedTuple"):
        init(TRPOConfig(policy=policy, num_envs=2), jax.random.key(0))
