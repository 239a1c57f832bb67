"""Running mean and variance, for normalising observations and returns."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

# A dimension that hardly varies is centred but not amplified. The value is the square
# root of the 1e-8 that VecNormalize in Stable-Baselines3 adds to the variance.
_SMALLEST_STD = 1e-4


class RunningStatistics(NamedTuple):
    """Moments of all samples so far.

    Attributes:
        num_samples: Their number, float32 scalar.
        mean: Their mean, float32[…].
        sum_sq: Σ (x − mean)², float32[…].
    """

    num_samples: Float[Array, ""]
    mean: Float[Array, "*S"]
    sum_sq: Float[Array, "*S"]

    @property
    def std(self) -> Float[Array, "*S"]:
        """Their standard deviation, float32[…]; 1 before the first sample."""
        variance = self.sum_sq / jnp.maximum(self.num_samples, 1)
        # The bound inside the root, whose derivative at 0 is infinite.
        std = jnp.sqrt(jnp.maximum(variance, _SMALLEST_STD**2))
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
    sum_sq = jnp.sum((samples - mean) ** 2, axis=axes)
    count = statistics.num_samples + added
    shift = mean - statistics.mean
    merged = RunningStatistics(
        num_samples=count,
        mean=statistics.mean + shift * added / count,
        sum_sq=statistics.sum_sq
        + sum_sq
        + shift**2 * statistics.num_samples * added / count,
    )
    finite = jnp.all(jnp.isfinite(mean)) & jnp.all(jnp.isfinite(sum_sq))
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
