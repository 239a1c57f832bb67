"""Intervals over seeds."""

import math
import warnings

import numpy as np
from jaxtyping import Float


def mean_interval(
    by_seed: Float[np.ndarray, "S U"],
) -> tuple[Float[np.ndarray, " U"], Float[np.ndarray, " U"]]:
    """Return the mean over seeds, and half the width of its 95 % interval.

    x̄ ± t₀.₉₇₅(n − 1) · s / √n, with Student's t, over the n seeds that are not NaN. The
    mean of no seed, and the interval of fewer than two, are NaN.
    """
    values = np.where(np.isfinite(by_seed), by_seed, np.nan)
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        mean, std = np.nanmean(values, axis=0), np.nanstd(values, axis=0, ddof=1)
    counts = np.isfinite(by_seed).sum(axis=0)
    return mean, std * [quantile_of_mean(int(count)) for count in counts]


def quantile_of_mean(count: int) -> float:
    """Return t₀.₉₇₅(n − 1) / √n; NaN for fewer than two."""
    from scipy.special import stdtrit

    if count < 2:
        return math.nan
    return float(stdtrit(count - 1, 0.975)) / math.sqrt(count)
