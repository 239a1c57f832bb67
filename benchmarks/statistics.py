"""Statistics of a few runs, after Agarwal et al. 2021.

Scores are a list of tasks, each float[..., runs], where a run is a seed. The
definitions are those of arXiv 2108.13264 (sections 4.1 to 4.3) and its library rliable,
which cannot be imported together with pandas 3 and requires equally many runs for all
tasks.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from trpo_jax.runs.intervals import mean_interval

Scores = Sequence[ArrayLike]


def summarize(by_seed: ArrayLike) -> dict[str, Any]:
    """Summarise the returns of the seeds of one environment, float[seeds], as JSON.

    `interval` is the half-width of the mean's 95 % confidence interval. The mean is
    None if a seed has no finite return, since dropping that seed would bias it.
    """
    values = np.asarray(by_seed, float)
    _, half_width = mean_interval(values[:, None])
    low, high = stratified_bootstrap(interquartile_mean, [values])
    return {
        "mean": finite(values.mean()),
        # `mean_interval` drops seeds that are not finite, which the mean does not.
        "interval": finite(half_width[0]) if np.isfinite(values).all() else None,
        "iqm": finite(interquartile_mean([values])),
        "iqm_interval": [finite(low), finite(high)],
        "by_seed": [finite(value) for value in values],
    }


def interquartile_mean(tasks: Scores) -> NDArray:
    """Return the mean over all runs of all tasks without the outer quarters.

    Args:
        tasks: Scores, float[..., runs] each.

    Returns:
        float[...]
    """
    pooled = np.concatenate([np.asarray(runs, float) for runs in tasks], axis=-1)
    return np.asarray(scipy.stats.trim_mean(pooled, 0.25, axis=-1))


def performance_profile(tasks: Scores, thresholds: ArrayLike) -> NDArray:
    """Return the share of runs above each threshold: 1/M Σₘ 1/Nₘ Σₙ 1[xₘₙ > τ].

    Args:
        tasks: Scores of M tasks, float[..., Nₘ] each.
        thresholds: τ, float[thresholds].

    Returns:
        float[..., thresholds]
    """

    def share(threshold: float) -> NDArray:
        above = [np.mean(np.asarray(runs) > threshold, axis=-1) for runs in tasks]
        return np.mean(above, axis=0)

    return np.stack([share(threshold) for threshold in np.asarray(thresholds)], axis=-1)


def stratified_bootstrap(
    statistic: Callable[[Scores], NDArray],
    tasks: Scores,
    *,
    repeats: int = 10_000,
    seed: int = 0,
) -> tuple[NDArray, NDArray]:
    """Return the ends of a statistic's 95 % percentile bootstrap interval.

    Runs are resampled with replacement within each task.

    Args:
        statistic: Maps tasks float[repeats, runs] each to float[repeats, ...].
        tasks: Scores, float[runs] each.
        repeats: Number of resamples.
        seed: Random seed of the resampling.

    Returns:
        The two ends, float[...] each.
    """
    generator = np.random.default_rng(seed)
    resampled = [
        generator.choice(np.asarray(runs, float), (repeats, len(np.asarray(runs))))
        for runs in tasks
    ]
    low, high = np.percentile(statistic(resampled), [2.5, 97.5], axis=0)
    return low, high


def normalized(
    returns: ArrayLike, *, random: float | None, reference: float | None
) -> NDArray | None:
    """Normalise returns to scores: 0 for the random policy, 1 for the reference.

    Returns None if one of the two is missing, or the reference is not above random.
    """
    if random is None or reference is None or reference <= random:
        return None
    return (np.asarray(returns, float) - random) / (reference - random)


def finite(value: Any) -> float | None:
    """Round to six digits; None if the value is not finite, as JSON requires."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
