"""Policies and critics of one observation."""

import flax.linen as nn
from jaxtyping import Array, Float

from trpo_jax.networks.initializers import ScaledInitializer, orthogonal
from trpo_jax.observations import Observation, masks_of, values_of
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
        return self.head(self.torso(values_of(observations)), *masks_of(observations))


class Value(nn.Module):
    """V(s): torso → features → one number.

    Attributes:
        torso: A module, observations [N, …] ↦ features float[N, F].
        initializer: Scale of a layer ↦ initialiser of its weights.
    """

    torso: nn.Module
    initializer: ScaledInitializer = orthogonal

    @nn.compact
    def __call__(self, observations: Observation) -> Float[Array, " N"]:
        """Map observations [N, …] to values float[N]."""
        features = self.torso(values_of(observations))
        return nn.Dense(1, kernel_init=self.initializer(1.0))(features)[:, 0]
