"""What a few runs say of an algorithm, as Agarwal et al. 2021 define it.

Scores are a list of tasks, each float[..., runs], runs being seeds. The definitions are
those of arXiv 2108.13264 (sections 4.1 to 4.3) and of its library, rliable, which does
not import beside pandas 3; there, every task has as many runs.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from trpo_jax.runs.curves import mean_interval

Scores = Sequence[ArrayLike]


def summarize(by_seed: ArrayLike) -> dict[str, Any]:
    """What the returns of one environment's seeds, float[seeds], say together.

    As JSON can hold it. `interval` is half the width of that of the mean.
    """
    values = np.asarray(by_seed, float)
    _, half_width = mean_interval(values[:, None])
    low, high = stratified_bootstrap(interquartile_mean, [values])
    return {
        "mean": finite(values.mean()),
        # Of the seeds that have a return, of which the mean is not.
        "interval": finite(half_width[0]) if np.isfinite(values).all() else None,
        "iqm": finite(interquartile_mean([values])),
        "iqm_interval": [finite(low), finite(high)],
        "by_seed": [finite(value) for value in values],
    }


def interquartile_mean(tasks: Scores) -> NDArray:
    """The mean of all runs of all tasks without a quarter of them at either end.

    Args:
        tasks: Scores, float[..., runs] each.

    Returns:
        float[...]
    """
    pooled = np.concatenate([np.asarray(runs, float) for runs in tasks], axis=-1)
    return np.asarray(scipy.stats.trim_mean(pooled, 0.25, axis=-1))


def performance_profile(tasks: Scores, thresholds: ArrayLike) -> NDArray:
    """The share of runs above each threshold: F(τ) = 1/M Σₘ 1/Nₘ Σₙ 1[xₘₙ > τ].

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
    """The ends of a statistic's 95 % interval: percentiles over resampled runs.

    Runs are drawn with replacement, as many as there are, for each task by itself.

    Args:
        statistic: Of tasks float[repeats, runs] each, float[repeats, ...].
        tasks: Scores, float[runs] each.
        repeats: How many times to resample.
        seed: Of the resampling.

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
    """Returns as scores: 0 a random policy's, 1 the reference's.

    None where one of the two is missing, or the reference is no better than random.
    """
    if random is None or reference is None or reference <= random:
        return None
    return (np.asarray(returns, float) - random) / (reference - random)


def finite(value: Any) -> float | None:
    """A float of six digits, or None for what JSON has no number for."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
