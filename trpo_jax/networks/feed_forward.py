"""Policies and critics of one observation."""

import flax.linen as nn
from jaxtyping import Array, Float

from trpo_jax.networks.initializers import orthogonal
from trpo_jax.observations import MaskedObservation, Observation
from trpo_jax.trust_region.distributions import Distribution


class Policy(nn.Module):
    """π(·|s): torso → features → head.

    Attributes:
        torso: A module, observations [N, …] ↦ features float[N, F].
        head: A module, features ↦ `Distribution`; where observations are masked, also
            (features, action_mask) ↦ `Distribution`.
    """

    torso: nn.Module
    head: nn.Module

    def __call__(self, observations: Observation) -> Distribution:
        """Map observations [N, …] to a distribution with batch [N]."""
        if isinstance(observations, MaskedObservation):
            features = self.torso(observations.values)
            return self.head(features, observations.action_mask)
        return self.head(self.torso(observations))


class Value(nn.Module):
    """V(s): torso → features → one number.

    Attributes:
        torso: A module, observations [N, …] ↦ features float[N, F].
    """

    torso: nn.Module

    @nn.compact
    def __call__(self, observations: Observation) -> Float[Array, " N"]:
        """Map observations [N, …] to values float[N]."""
        if isinstance(observations, MaskedObservation):
            observations = observations.values
        return nn.Dense(1, kernel_init=orthogonal())(self.torso(observations))[:, 0]
