"""Running mean and variance, for normalising observations and returns."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Shaped

# A dimension that hardly varies is centred but not amplified. The value is the square
# root of the 1e-8 that VecNormalize in Stable-Baselines3 adds to the variance.
_SMALLEST_STD = 1e-4

# In float32, moments would take in only the largest changes of batches that weigh less,
# and drift. Only a run of more than 2¹⁸ updates forgets its first samples by it.
_SMALLEST_WEIGHT = 2.0**-18


class RunningStatistics(NamedTuple):
    """Moments of all samples so far; after 2¹⁸ batches, the oldest fade.

    Attributes:
        num_samples: Their number, float32 scalar. It stops growing where a batch is
            below its precision, about 2²⁴ batches.
        mean: Their mean, float32[…].
        variance: Their variance, mean of (x − mean)², float32[…].
    """

    num_samples: Float[Array, ""]
    mean: Float[Array, "*S"]
    variance: Float[Array, "*S"]

    @property
    def std(self) -> Float[Array, "*S"]:
        """Their standard deviation, float32[…]; 1 before the first sample."""
        # The bound inside the root, whose derivative at 0 is infinite.
        std = jnp.sqrt(jnp.maximum(self.variance, _SMALLEST_STD**2))
        return jnp.where(self.num_samples > 0, std, 1.0)


def init_statistics(shape: tuple[int, ...]) -> RunningStatistics:
    """Return the statistics of no samples; normalising by them is the identity."""
    return RunningStatistics(jnp.float32(0), jnp.zeros(shape), jnp.zeros(shape))


def update_statistics(
    statistics: RunningStatistics, samples: Float[Array, "*N"]
) -> RunningStatistics:
    """Return the statistics with more samples.

    A batch with a NaN or an infinity is skipped: one bad reward must not spoil the
    statistics for the rest of a run.

    Args:
        statistics: The moments so far.
        samples: Samples of the shape *S of the mean, float[..., *S].

    Source: Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance".
    """
    axes = tuple(range(samples.ndim - statistics.mean.ndim))
    added = jnp.float32(math.prod(samples.shape[: len(axes)]))
    # Two passes over the batch, then one merge: a running sum of squares would lose all
    # digits where the mean is large.
    mean = jnp.mean(samples, axis=axes)
    variance = jnp.mean((samples - mean) ** 2, axis=axes)
    count = statistics.num_samples + added
    # The source adds up Σ (x − mean)². Beyond 10¹⁰ samples this sum is rounded unlike
    # the count, and their quotient drifts by tens of per cent; a variance does not.
    weight = jnp.maximum(added / count, _SMALLEST_WEIGHT)
    shift = mean - statistics.mean
    excess = variance - statistics.variance + shift**2 * (1 - weight)
    merged = RunningStatistics(
        num_samples=count,
        mean=statistics.mean + shift * weight,
        variance=statistics.variance + excess * weight,
    )
    finite = jnp.all(jnp.isfinite(mean)) & jnp.all(jnp.isfinite(variance))
    return optax.tree.where(finite, merged, statistics)


def normalize(
    statistics: RunningStatistics,
    samples: Float[Array, "*N"],
    *,
    clip: float = float("inf"),
) -> Float[Array, "*N"]:
    """Return (x − mean) / std, clipped to ±clip.

    Args:
        statistics: Moments of samples of shape *S.
        samples: x, float[..., *S].
        clip: The largest magnitude, in standard deviations.
    """
    scaled = (samples - statistics.mean) / statistics.std
    return jnp.clip(scaled, -clip, clip)


def denormalize(
    statistics: RunningStatistics, samples: Float[Array, "*N"]
) -> Float[Array, "*N"]:
    """Return mean + std · x, the inverse of `normalize` without a clip.

    Args:
        statistics: Moments of samples of shape *S.
        samples: x, float[..., *S].
    """
    return statistics.mean + statistics.std * samples


def absorb(
    statistics: RunningStatistics | None, samples: Shaped[Array, "T B *S"]
) -> RunningStatistics | None:
    """Return running statistics with those of a rollout; None if there are none."""
    if statistics is None:
        return None
    return update_statistics(statistics, samples)
