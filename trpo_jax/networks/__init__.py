"""Networks that turn observations into a distribution or a value."""

from trpo_jax.networks.initializers import orthogonal
from trpo_jax.networks.mlp import (
    ACTIVATIONS,
    MLP,
    CategoricalPolicy,
    GaussianPolicy,
    MultiCategoricalPolicy,
    Value,
)
from trpo_jax.networks.protocol import Network, NetworkFns

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "CategoricalPolicy",
    "GaussianPolicy",
    "MultiCategoricalPolicy",
    "Network",
    "NetworkFns",
    "Value",
    "orthogonal",
]
