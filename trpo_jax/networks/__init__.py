"""Networks: observations to a distribution or a value."""

from trpo_jax.networks.feed_forward import Policy, Value
from trpo_jax.networks.heads import (
    CategoricalHead,
    GaussianHead,
    GSDEHead,
    MultiCategoricalHead,
    StateDependentGaussianHead,
    TanhGaussianHead,
)
from trpo_jax.networks.initializers import lecun_normal, orthogonal, xavier_uniform
from trpo_jax.networks.lru import LRU
from trpo_jax.networks.nnx import NNXModule, NNXNetwork, as_network
from trpo_jax.networks.protocol import (
    Network,
    NetworkFns,
    RecurrentNetwork,
    RecurrentNetworkFns,
)
from trpo_jax.networks.purity import init_network
from trpo_jax.networks.recurrent import RecurrentPolicy, RecurrentValue
from trpo_jax.networks.torsos import CNN, MLP
from trpo_jax.observations import MaskedObservation, Observation

__all__ = [
    "CNN",
    "LRU",
    "MLP",
    "CategoricalHead",
    "GSDEHead",
    "GaussianHead",
    "MaskedObservation",
    "MultiCategoricalHead",
    "NNXModule",
    "NNXNetwork",
    "Network",
    "NetworkFns",
    "Observation",
    "Policy",
    "RecurrentNetwork",
    "RecurrentNetworkFns",
    "RecurrentPolicy",
    "RecurrentValue",
    "StateDependentGaussianHead",
    "TanhGaussianHead",
    "Value",
    "as_network",
    "init_network",
    "lecun_normal",
    "orthogonal",
    "xavier_uniform",
]
