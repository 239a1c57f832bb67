"""Multilayer perceptrons for policies and values, kept in separate networks."""

import itertools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from trpo_jax.networks.initializers import orthogonal
from trpo_jax.trust_region.distributions import (
    Categorical,
    DiagonalGaussian,
    MultiCategorical,
)

Activation = Callable[[Float[Array, "..."]], Float[Array, "..."]]

# A small last layer starts every policy near its uniform or centred distribution,
# and every value near zero. Source: Andrychowicz et al. 2020 (arXiv 2006.05990).
_POLICY_OUTPUT_SCALE = 0.01


class MLP(nn.Module):
    """Dense layers with an activation between them, on flattened observations.

    Attributes:
        hidden_sizes: Width of each hidden layer.
        output_size: Width of the last, linear, layer.
        activation: Function between the layers.
        output_scale: Singular value of the last layer's initial weights.
    """

    hidden_sizes: tuple[int, ...]
    output_size: int
    activation: Activation = nn.tanh
    output_scale: float = 1.0

    @nn.compact
    def __call__(self, observations: Num[Array, "N ..."]) -> Float[Array, "N output"]:
        """Map observations [N, …] to outputs float[N, output_size]."""
        x = observations.reshape(observations.shape[0], -1)
        for size in self.hidden_sizes:
            layer = nn.Dense(size, kernel_init=orthogonal(math.sqrt(2)))
            x = self.activation(layer(x))
        return nn.Dense(self.output_size, kernel_init=orthogonal(self.output_scale))(x)


class CategoricalPolicy(nn.Module):
    """π(·|s) over one choice among K actions: MLP → logits.

    Attributes:
        num_actions: K.
        hidden_sizes: Width of each hidden layer.
        activation: Function between the layers.
    """

    num_actions: int
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: Activation = nn.tanh

    @nn.compact
    def __call__(self, observations: Num[Array, "N ..."]) -> Categorical:
        """Map observations [N, …] to a Categorical with batch [N]."""
        mlp = MLP(
            self.hidden_sizes, self.num_actions, self.activation, _POLICY_OUTPUT_SCALE
        )
        return Categorical(mlp(observations))


class MultiCategoricalPolicy(nn.Module):
    """π(·|s) over D choices, independent given s: MLP → the logits of all.

    Attributes:
        num_actions: (K₁, …, K_D).
        hidden_sizes: Width of each hidden layer.
        activation: Function between the layers.
    """

    num_actions: tuple[int, ...]
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: Activation = nn.tanh

    @nn.compact
    def __call__(self, observations: Num[Array, "N ..."]) -> MultiCategorical:
        """Map observations [N, …] to a MultiCategorical with batch [N]."""
        mlp = MLP(
            self.hidden_sizes,
            sum(self.num_actions),
            self.activation,
            _POLICY_OUTPUT_SCALE,
        )
        ends = list(itertools.accumulate(self.num_actions))[:-1]
        logits = jnp.split(mlp(observations), ends, axis=-1)
        return MultiCategorical(tuple(Categorical(part) for part in logits))


class GaussianPolicy(nn.Module):
    """π(·|s) = N(μ(s), σ²): MLP → μ, and one learned log σ for each dimension.

    Attributes:
        action_size: D.
        hidden_sizes: Width of each hidden layer.
        activation: Function between the layers.
        initial_log_std: log σ before training, in units of the action.
    """

    action_size: int
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: Activation = nn.tanh
    initial_log_std: float = 0.0

    @nn.compact
    def __call__(self, observations: Num[Array, "N ..."]) -> DiagonalGaussian:
        """Map observations [N, …] to a DiagonalGaussian with batch [N]."""
        mean = MLP(
            self.hidden_sizes, self.action_size, self.activation, _POLICY_OUTPUT_SCALE
        )(observations)
        initial = nn.initializers.constant(self.initial_log_std)
        return DiagonalGaussian(
            mean, self.param("log_std", initial, (self.action_size,))
        )


class Value(nn.Module):
    """V(s): MLP → scalar.

    Attributes:
        hidden_sizes: Width of each hidden layer.
        activation: Function between the layers.
    """

    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: Activation = nn.tanh

    @nn.compact
    def __call__(self, observations: Num[Array, "N ..."]) -> Float[Array, " N"]:
        """Map observations [N, …] to values float[N]."""
        return MLP(self.hidden_sizes, 1, self.activation)(observations)[:, 0]


ACTIVATIONS: dict[str, Activation] = {
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}
"""Activations by the names that a configuration uses."""
