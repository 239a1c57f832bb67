"""Heads of a policy: features to a distribution over actions."""

import itertools
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from trpo_jax.errors import UsageError
from trpo_jax.networks.initializers import ScaledInitializer, orthogonal
from trpo_jax.trust_region.distributions import (
    Categorical,
    DiagonalGaussian,
    GSDEGaussian,
    MultiCategorical,
    TanhGaussian,
    mask_logits,
)

# A small last layer starts every policy near its uniform or centred distribution.
# Source: Andrychowicz et al. 2020 (arXiv 2006.05990).
_OUTPUT_SCALE = 0.01


def _output(size: int, initializer: ScaledInitializer) -> nn.Dense:
    return nn.Dense(size, kernel_init=initializer(_OUTPUT_SCALE))


class CategoricalHead(nn.Module):
    """One choice among K actions.

    Attributes:
        num_actions: K.
        initializer: Scale of a layer ↦ initialiser of its weights.
    """

    num_actions: int
    initializer: ScaledInitializer = orthogonal

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "*N F"],
        action_mask: Bool[Array, "*N K"] | None = None,
    ) -> Categorical:
        """Map features [*N, F], and which actions are allowed, to a Categorical."""
        logits = _output(self.num_actions, self.initializer)(features)
        if action_mask is not None:
            logits = mask_logits(logits, action_mask)
        return Categorical(logits)


class MultiCategoricalHead(nn.Module):
    """D choices, independent given the features.

    Attributes:
        num_actions: (K₁, …, K_D).
        initializer: Scale of a layer ↦ initialiser of its weights.
    """

    num_actions: tuple[int, ...]
    initializer: ScaledInitializer = orthogonal

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "*N F"],
        action_mask: Bool[Array, "*N sum_K"] | None = None,
    ) -> MultiCategorical:
        """Map features [*N, F], and which actions are allowed, to a MultiCategorical.

        The mask has the masks of the D choices side by side, bool[*N, ΣK].
        """
        ends = list(itertools.accumulate(self.num_actions))
        output = _output(ends[-1], self.initializer)
        logits = jnp.split(output(features), ends[:-1], axis=-1)
        if action_mask is not None:
            masks = jnp.split(action_mask, ends[:-1], axis=-1)
            logits = [mask_logits(*pair) for pair in zip(logits, masks, strict=True)]
        return MultiCategorical(tuple(map(Categorical, logits)))


class GaussianHead(nn.Module):
    """N(μ(s), σ²) with one learned log σ for each dimension.

    Attributes:
        action_size: D.
        initial_log_std: log σ before training, in units of the action.
        initializer: Scale of a layer ↦ initialiser of its weights.
    """

    action_size: int
    initial_log_std: float = 0.0
    initializer: ScaledInitializer = orthogonal

    @nn.compact
    def __call__(self, features: Float[Array, "*N F"]) -> DiagonalGaussian:
        """Map features [*N, F] to a DiagonalGaussian with batch [*N]."""
        initial = nn.initializers.constant(self.initial_log_std)
        log_std = self.param("log_std", initial, (self.action_size,))
        mean = _output(self.action_size, self.initializer)(features)
        return DiagonalGaussian(mean, log_std)


class TanhGaussianHead(nn.Module):
    """tanh(N(μ(s), σ²)) with one learned log σ for each dimension.

    Attributes:
        action_size: D.
        initial_log_std: log σ before training and before tanh.
        initializer: Scale of a layer ↦ initialiser of its weights.
    """

    action_size: int
    initial_log_std: float = 0.0
    initializer: ScaledInitializer = orthogonal

    @nn.compact
    def __call__(self, features: Float[Array, "*N F"]) -> TanhGaussian:
        """Map features [*N, F] to a TanhGaussian with batch [*N]."""
        return TanhGaussian(
            *GaussianHead(self.action_size, self.initial_log_std, self.initializer)(
                features
            )
        )


class StateDependentGaussianHead(nn.Module):
    """N(μ(s), σ(s)²) with log σ(s) between two bounds.

    log σ = low + ½ (high − low) (1 + tanh z),  z linear in the features

    Attributes:
        action_size: D.
        initial_log_std: About log σ before training, in units of the action.
        log_std_bounds: (low, high).
        initializer: Scale of a layer ↦ initialiser of its weights.
    """

    action_size: int
    initial_log_std: float = 0.0
    log_std_bounds: tuple[float, float] = (-5.0, 2.0)
    initializer: ScaledInitializer = orthogonal

    @nn.compact
    def __call__(self, features: Float[Array, "*N F"]) -> DiagonalGaussian:
        """Map features [*N, F] to a DiagonalGaussian with batch [*N].

        Raises:
            UsageError: If `initial_log_std` is not between the bounds.
        """
        low, high = self.log_std_bounds
        if not low < self.initial_log_std < high:
            raise UsageError(
                f"initial_log_std={self.initial_log_std} is not between the bounds "
                f"{low} and {high} of a state-dependent log σ; write one that is."
            )
        start = math.atanh(2 * (self.initial_log_std - low) / (high - low) - 1)
        output = _output(2 * self.action_size, self.initializer)
        mean, z = jnp.split(output(features), 2, axis=-1)
        log_std = low + 0.5 * (high - low) * (1 + jnp.tanh(z + start))
        return DiagonalGaussian(mean, log_std)


class GSDEHead(nn.Module):
    """Generalised state-dependent exploration: noise that is affine in the features.

    A constant is appended to the features. Without it there is hardly any noise where
    they are all near zero, as in the middle of normalised observations: 6 of 16 seeds
    of MountainCarContinuous never found the flag.

    As published, the derivative of the noise stops at the features: gradient and
    curvature leave out how a change of features changes σ(s), while the line search
    includes it. On Pendulum (8 seeds, noise_period 4) the mean return is −162 and the
    worst −185 without this derivative, −436 and −784 with it.

    Attributes:
        action_size: D.
        initial_log_std: log σ(s) before training where every feature is ±1, in units of
            the action; half of the variance is the constant's.
        initializer: Scale of a layer ↦ initialiser of its weights.

    Source: Raffin, Kober & Stulp 2021 (arXiv 2005.05719), which has no constant.
    """

    action_size: int
    initial_log_std: float = 0.0
    initializer: ScaledInitializer = orthogonal

    @nn.compact
    def __call__(self, features: Float[Array, "*N F"]) -> GSDEGaussian:
        """Map features [*N, F] to a GSDEGaussian with batch [*N]."""
        mean = _output(self.action_size, self.initializer)(features)
        constant = jnp.ones_like(features[..., :1])
        affine = jnp.concatenate([features, constant], axis=-1)
        shape = (affine.shape[-1], self.action_size)
        log_std = self.param("log_std", _half_constant(self.initial_log_std), shape)
        return GSDEGaussian(mean, jax.lax.stop_gradient(affine), log_std)


def _half_constant(log_std: float) -> Callable[..., Float[Array, "F D"]]:
    """Return an initialiser: half of the variance for the last row, half for the rest.

    (key, (F, D), dtype) ↦ log σ_fd with Σ_f σ_fd² = exp(2 `log_std`).
    """

    def initialize(
        key: Key[Array, ""], shape: Sequence[int], dtype: DTypeLike = float
    ) -> Float[Array, "F D"]:
        shares = jnp.full(shape, 0.5 / (shape[0] - 1), dtype).at[-1].set(0.5)
        return log_std + 0.5 * jnp.log(shares)

    return initialize
