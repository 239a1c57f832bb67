"""What a few runs say of an algorithm, as Agarwal et al. 2021 define it.

Scores are float[runs, tasks], runs being seeds. The definitions are those of arXiv
2108.13264 (sections 4.1 to 4.3) and of its library, rliable, which does not import
beside pandas 3.
"""

from collections.abc import Callable

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

REPEATS = 10_000


def student_half_width(values: ArrayLike) -> float:
    """Half the width of the 95 % confidence interval of the mean; NaN for one value."""
    values = np.asarray(values)
    if len(values) < 2:
        return float("nan")
    return float(scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values))


def interquartile_mean(scores: ArrayLike) -> NDArray:
    """The mean of all runs of all tasks without a quarter of them at either end.

    Args:
        scores: float[..., runs, tasks].

    Returns:
        float[...]
    """
    scores = np.asarray(scores, float)
    pooled = scores.reshape(*scores.shape[:-2], -1)
    return np.asarray(scipy.stats.trim_mean(pooled, 0.25, axis=-1))


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> NDArray:
    """The share of runs above each threshold: F(τ) = 1/MN Σₘ Σₙ 1[xₘₙ > τ].

    Args:
        scores: float[..., runs, tasks].
        thresholds: τ, float[thresholds].

    Returns:
        float[..., thresholds]
    """
    scores = np.asarray(scores, float)
    above = [np.mean(scores > tau, axis=(-2, -1)) for tau in np.asarray(thresholds)]
    return np.stack(above, axis=-1)


def stratified_bootstrap(
    statistic: Callable[[NDArray], NDArray],
    scores: ArrayLike,
    *,
    repeats: int = REPEATS,
    seed: int = 0,
) -> tuple[NDArray, NDArray]:
    """The ends of a statistic's 95 % interval: percentiles over resampled runs.

    Runs are drawn with replacement, as many as there are, for each task by itself.

    Args:
        statistic: float[repeats, runs, tasks] ↦ float[repeats, ...].
        scores: float[runs, tasks].
        repeats: How many times to resample.
        seed: Of the resampling.

    Returns:
        The two ends, float[...] each.
    """
    scores = np.asarray(scores, float)
    runs = np.random.default_rng(seed).integers(
        len(scores), size=(repeats, *scores.shape)
    )
    resampled = statistic(scores[runs, np.arange(scores.shape[1])])
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    return low, high


def normalized(
    returns: ArrayLike, random: float, reference: float | None
) -> NDArray | None:
    """Returns as scores: 0 a random policy's, 1 the reference's.

    None where there is no reference, or it is no better than random.
    """
    if reference is None or not reference > random:
        return None
    return (np.asarray(returns) - random) / (reference - random)
