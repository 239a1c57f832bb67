"""Action distributions: what a policy returns for a batch of observations.

Each is a pytree of its own parameters with Distrax's method names. The last axis
of an action is its event axis: log-probabilities, entropies and divergences are
*joint*, summed over action dimensions, so that a trust region of δ means the same
whatever the number of dimensions.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Num

from trpo_jax.errors import UsageError


@runtime_checkable
class Distribution(Protocol):
    """The methods that `trust_region_update` needs of a policy's distributions."""

    def sample(self, key: Key[Array, ""]) -> Num[Array, "..."]:
        """Draw one action for each element of the batch; consumes `key`."""

    def mode(self) -> Num[Array, "..."]:
        """Return the most probable action of each element."""

    def log_prob(self, actions: Num[Array, "..."]) -> Float[Array, "..."]:
        """Return log π(a) for each element."""

    def entropy(self) -> Float[Array, "..."]:
        """Return −E[log π(a)] for each element, in nats."""

    def kl_divergence(self, other: Any) -> Float[Array, "..."]:
        """Return KL(self ‖ other) = E_self[log self(a) − log other(a)], in nats."""


class Categorical(NamedTuple):
    """A choice among K actions, π(k) ∝ exp(logits[k]).

    Attributes:
        logits: Unnormalised log-probabilities, float[..., K], finite: to forbid an
            action, use `mask_logits` instead of −∞.
    """

    logits: Float[Array, "*N K"]

    def log_probs(self) -> Float[Array, "*N K"]:
        """Return log π(k) for every action k: logits − logsumexp(logits)."""
        return jax.nn.log_softmax(self.logits)

    def sample(self, key: Key[Array, ""]) -> Int[Array, "*N"]:
        """Draw actions int32[...] in 0 … K−1; consumes `key`."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def mode(self) -> Int[Array, "*N"]:
        """Return argmax_k π(k), int32[...]."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def log_prob(self, actions: Int[Array, "*N"]) -> Float[Array, "*N"]:
        """Return log π(a) for actions int[...]; −∞ for those outside 0 … K−1.

        A comparison and a sum rather than an index: the derivative of an index is a
        scatter, which is slow on every device.
        """
        log_probs = self.log_probs()
        chosen = actions[..., None] == jnp.arange(log_probs.shape[-1])
        total = jnp.sum(jnp.where(chosen, log_probs, 0), axis=-1)
        exists = (actions >= 0) & (actions < log_probs.shape[-1])
        return jnp.where(exists, total, -jnp.inf)

    def entropy(self) -> Float[Array, "*N"]:
        """Return −Σ_k π(k) log π(k), between 0 and log K."""
        log_probs = self.log_probs()
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    def kl_divergence(self, other: "Categorical") -> Float[Array, "*N"]:
        """Return Σ_k π(k) (log π(k) − log π_other(k))."""
        log_probs = self.log_probs()
        difference = log_probs - other.log_probs()
        return jnp.sum(jnp.exp(log_probs) * difference, axis=-1)

    def interpolate(
        self, other: "Categorical", weight: Float[Array, "*N"]
    ) -> "Categorical":
        """Return (1 − w) π(k) + w π_other(k).

        At w = 0 and 1 the logits are those of the one or the other, bit for bit.

        Args:
            other: Another distribution over the same actions.
            weight: w in [0, 1] for each element, float[...].
        """
        w = weight[..., None]
        # At 0 and 1 a logarithm would be infinite, and its derivative with it.
        limits = jnp.finfo(w.dtype)
        inner = jnp.clip(w, limits.tiny, 1 - limits.epsneg)
        mixed = jnp.logaddexp(
            jnp.log1p(-inner) + self.log_probs(), jnp.log(inner) + other.log_probs()
        )
        logits = jnp.where(w == 0, self.logits, mixed)
        return Categorical(jnp.where(w == 1, other.logits, logits))


# Its exponential is exactly 0, and sums of a few such logits stay finite: a forbidden
# action adds 0 · finite to a divergence, not 0 · ∞.
_FORBIDDEN = -1e9


def mask_logits(
    logits: Float[Array, "*N K"], action_mask: Bool[Array, "*N K"]
) -> Float[Array, "*N K"]:
    """Return logits under which forbidden actions have probability 0, exactly.

    Their derivatives are 0 as well: the KL and its curvature are those of a choice
    among the allowed actions only.

    Args:
        logits: Unnormalised log-probabilities, float[..., K].
        action_mask: True where an action is allowed, bool[..., K].

    Returns:
        Logits float[..., K]; NaN where no action is allowed: an update on such a state
        is rejected as NON_FINITE.

    Raises:
        UsageError: If the shapes differ, or a mask that is known (not traced) forbids
            every action.

    Source: Huang & Ontañón 2020 (arXiv 2006.14171).
    """
    if jnp.shape(action_mask) != jnp.shape(logits):
        raise UsageError(
            f"action_mask has the shape {jnp.shape(action_mask)} and the logits "
            f"{jnp.shape(logits)}; write one flag for each action, [..., K]."
        )
    possible = jnp.any(action_mask, axis=-1, keepdims=True)
    if not isinstance(possible, jax.core.Tracer) and not possible.all():
        raise UsageError(
            "action_mask forbids every action of a state; allow one at least, such as "
            "one that does nothing, or end the episode there."
        )
    forbidden = max(_FORBIDDEN, float(jnp.finfo(logits.dtype).min) / 4)
    masked = jnp.where(action_mask, logits, forbidden)
    return jnp.where(possible, masked, jnp.nan)


class DiagonalGaussian(NamedTuple):
    """Independent normal action dimensions, a_d ~ N(μ_d, σ_d²).

    Attributes:
        mean: μ, float[..., D], in the units of the action.
        log_std: log σ, float[..., D] or, independent of the state, float[D].
    """

    mean: Float[Array, "*N D"]
    log_std: Float[Array, "*M D"]

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*N D"]:
        """Draw actions μ + σ ε with ε ~ N(0, 1), float[..., D]; consumes `key`."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(self.log_std) * noise

    def mode(self) -> Float[Array, "*N D"]:
        """Return μ."""
        return self.mean

    def log_prob(self, actions: Float[Array, "*N D"]) -> Float[Array, "*N"]:
        """Return Σ_d −½ ((a_d − μ_d)/σ_d)² − log σ_d − ½ log 2π.

        Raises:
            UsageError: If actions have no axis of D dimensions.
        """
        shape = jnp.shape(actions)
        if len(shape) < self.mean.ndim or shape[-1] != self.mean.shape[-1]:
            raise UsageError(
                f"actions have the shape {shape} and the mean {self.mean.shape}; write "
                "actions [..., D], as actions[:, None] for D = 1."
            )
        z = (actions - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * z**2 - self.log_std - 0.5 * jnp.log(2 * jnp.pi), axis=-1)

    def entropy(self) -> Float[Array, "*N"]:
        """Return Σ_d log σ_d + ½ log 2πe."""
        log_std = jnp.broadcast_to(self.log_std, self.mean.shape)
        return jnp.sum(log_std + 0.5 * jnp.log(2 * jnp.pi * jnp.e), axis=-1)

    @property
    def marginal(self) -> "DiagonalGaussian":
        """The distribution itself: that of a `GSDEGaussian` is one of these."""
        return self

    def kl_divergence(
        self, other: "DiagonalGaussian | GSDEGaussian"
    ) -> Float[Array, "*N"]:
        """Return Σ_d ½ (ρ_d − 1 − log ρ_d + ((μ_d − μ′_d)/σ′_d)²), ρ = σ²/σ′².

        `expm1` keeps the difference ρ − 1 exact where the two are nearly equal,
        which is where a trust region lives.
        """
        mean, log_std = other.marginal
        log_ratio = 2 * (self.log_std - log_std)
        z = (self.mean - mean) * jnp.exp(-log_std)
        return 0.5 * jnp.sum(jnp.expm1(log_ratio) - log_ratio + z**2, axis=-1)

    def interpolate(
        self, other: "DiagonalGaussian | GSDEGaussian", weight: Float[Array, "*N"]
    ) -> "DiagonalGaussian":
        """Return the Gaussian with the moments of (1 − w) N(μ, σ²) + w N(μ′, σ′²).

        Its mean is (1 − w) μ + w μ′, its variance
        (1 − w) σ² + w σ′² + w (1 − w) (μ′ − μ)².

        Args:
            other: Another distribution over the same actions.
            weight: w in [0, 1] for each element, float[...].
        """
        w = weight[..., None]
        # Seen from the nearer of the two, nothing cancels, and w = 0 and 1 are exact.
        theirs = other.marginal
        far = w > 0.5
        near_mean, far_mean = _swap(far, self.mean, theirs.mean)
        near_log_std, far_log_std = _swap(far, self.log_std, theirs.log_std)
        share = jnp.where(far, 1 - w, w)
        difference = far_mean - near_mean
        z = difference * jnp.exp(-near_log_std)
        growth = jnp.expm1(2 * (far_log_std - near_log_std)) + (1 - share) * z**2
        return self._replace(
            mean=near_mean + share * difference,
            log_std=near_log_std + 0.5 * jnp.log1p(share * growth),
        )


class TanhGaussian(DiagonalGaussian):
    """Actions a = tanh(u) in (−1, 1) with u_d ~ N(μ_d, σ_d²), handled as u.

    Samples and arguments are u, which loses no digits near ±1; densities and entropies
    are those of a. The map is one to one, so that ratios of densities and divergences
    are those of the Gaussian underneath. The mode is u = μ; tanh μ is the median of a.

    Attributes:
        mean: μ, float[..., D].
        log_std: log σ, float[..., D] or, independent of the state, float[D].

    Source: Haarnoja et al. 2018 (arXiv 1801.01290), appendix C.
    """

    def log_prob(self, actions: Float[Array, "*N D"]) -> Float[Array, "*N"]:
        """Return log N(u; μ, σ²) − Σ_d log(1 − tanh² u_d), the log-density of a."""
        slopes = jnp.sum(_log_tanh_slope(actions), axis=-1)
        return super().log_prob(actions) - slopes

    def entropy(self) -> Float[Array, "*N"]:
        """Return H(u) + Σ_d E[log(1 − tanh² u_d)], by Gauss–Hermite quadrature."""
        std = jnp.exp(jnp.broadcast_to(self.log_std, self.mean.shape))
        u = self.mean[..., None] + std[..., None] * jnp.asarray(_NODES, std.dtype)
        expected = _log_tanh_slope(u) @ jnp.asarray(_WEIGHTS, std.dtype)
        return super().entropy() + jnp.sum(expected, axis=-1)


def _log_tanh_slope(u: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """Return log d tanh(u)/du = log(1 − tanh² u), exact for large |u|."""
    return 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))


def _swap(
    condition: Bool[Array, "*N"], first: Float[Array, "*M"], second: Float[Array, "*M"]
) -> tuple[Float[Array, "*K"], Float[Array, "*K"]]:
    """Return both, the second first where the condition holds."""
    return jnp.where(condition, second, first), jnp.where(condition, first, second)


# Nodes and weights of E[f(ε)], ε ~ N(0, 1). With 32 an entropy is exact to 1e-7 at
# σ = 1 and to 2e-3 at σ = e.
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()

# Added to the variance: without it there is no density where all features are 0. The
# value is that of Stable-Baselines3.
_GSDE_VARIANCE = 1e-6


class GSDEGaussian(NamedTuple):
    """Generalised state-dependent exploration: a = μ(s) + Eᵀφ(s), E_fd ~ N(0, σ_fd²).

    The noise is a random linear function of the features φ. Sampled with the same key
    in several states it is one function of the state, and exploration is smooth. The
    marginal of each action is Gaussian with the variance Σ_f φ_f² σ_fd² + 10⁻⁶;
    log-probabilities and divergences are those of the marginals.

    Attributes:
        mean: μ, float[..., D].
        features: φ, float[..., F].
        log_std: log σ, float[F, D].

    Source: Raffin, Kober & Stulp 2021 (arXiv 2005.05719), section 3.
    """

    mean: Float[Array, "*N D"]
    features: Float[Array, "*N F"]
    log_std: Float[Array, "F D"]

    @property
    def marginal(self) -> DiagonalGaussian:
        """The marginal distribution of each action."""
        variance = self.features**2 @ jnp.exp(2 * self.log_std) + _GSDE_VARIANCE
        return DiagonalGaussian(self.mean, 0.5 * jnp.log(variance))

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*N D"]:
        """Draw one E for each element and the actions it makes; consumes `key`."""
        matrix_key, vector_key = jax.random.split(key)
        shape = (*self.features.shape, self.log_std.shape[-1])
        noise = jax.random.normal(matrix_key, shape, self.mean.dtype)
        rest = jax.random.normal(vector_key, self.mean.shape, self.mean.dtype)
        explored = jnp.sum(
            self.features[..., None] * jnp.exp(self.log_std) * noise, axis=-2
        )
        return self.mean + explored + math.sqrt(_GSDE_VARIANCE) * rest

    def mode(self) -> Float[Array, "*N D"]:
        """Return μ."""
        return self.mean

    def log_prob(self, actions: Float[Array, "*N D"]) -> Float[Array, "*N"]:
        """Return the log-density of each action's marginal."""
        return self.marginal.log_prob(actions)

    def entropy(self) -> Float[Array, "*N"]:
        """Return the entropy of each action's marginal."""
        return self.marginal.entropy()

    def kl_divergence(
        self, other: "DiagonalGaussian | GSDEGaussian"
    ) -> Float[Array, "*N"]:
        """Return the divergence of each action's marginal."""
        return self.marginal.kl_divergence(other)

    def interpolate(
        self, other: "DiagonalGaussian | GSDEGaussian", weight: Float[Array, "*N"]
    ) -> DiagonalGaussian:
        """Interpolate each action's marginal, see `DiagonalGaussian.interpolate`."""
        return self.marginal.interpolate(other, weight)


class MultiCategorical(NamedTuple):
    """A product of independent categorical choices, one for each action dimension.

    Attributes:
        factors: D distributions; their numbers of actions K_d may differ.
    """

    factors: tuple[Categorical, ...]

    def sample(self, key: Key[Array, ""]) -> Int[Array, "*N D"]:
        """Draw one choice for each dimension, int[..., D]; consumes `key`."""
        keys = jax.random.split(key, len(self.factors))
        pairs = zip(self.factors, keys, strict=True)
        return jnp.stack([factor.sample(k) for factor, k in pairs], axis=-1)

    def mode(self) -> Int[Array, "*N D"]:
        """Return the most probable choice in each dimension, int[..., D]."""
        return jnp.stack([factor.mode() for factor in self.factors], axis=-1)

    def log_prob(self, actions: Int[Array, "*N D"]) -> Float[Array, "*N"]:
        """Return Σ_d log π_d(a_d)."""
        choices = jnp.moveaxis(actions, -1, 0)
        pairs = zip(self.factors, choices, strict=True)
        return _sum(factor.log_prob(choice) for factor, choice in pairs)

    def entropy(self) -> Float[Array, "*N"]:
        """Return Σ_d H(π_d)."""
        return _sum(factor.entropy() for factor in self.factors)

    def kl_divergence(self, other: "MultiCategorical") -> Float[Array, "*N"]:
        """Return Σ_d KL(π_d ‖ π′_d)."""
        pairs = zip(self.factors, other.factors, strict=True)
        return _sum(mine.kl_divergence(theirs) for mine, theirs in pairs)

    def interpolate(
        self, other: "MultiCategorical", weight: Float[Array, "*N"]
    ) -> "MultiCategorical":
        """Return (1 − w) π_d(k) + w π′_d(k) in each dimension d.

        Args:
            other: Another distribution over the same actions.
            weight: w in [0, 1] for each element, float[...].
        """
        pairs = zip(self.factors, other.factors, strict=True)
        return MultiCategorical(
            tuple(mine.interpolate(theirs, weight) for mine, theirs in pairs)
        )


def _sum(terms: Iterable[Float[Array, "*N"]]) -> Float[Array, "*N"]:
    return jnp.sum(jnp.stack(list(terms)), axis=0)
