"""Successive halving: rungs of a sweep, and the settings that reach the next one.

Source: Jamieson & Talwalkar 2016 (arXiv 1502.07943).
"""

import itertools
import math
import numbers
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from trpo_jax.errors import UsageError, UsageTypeError, describe_type


def check_halving(halving: Sequence[float], eta: float | int) -> None:
    """Raise UsageError unless fractions increase in (0, 1), and η is above 1."""
    if isinstance(halving, str) or not isinstance(halving, Sequence):
        raise UsageTypeError(
            f"halving is {describe_type(halving)}; write fractions of the updates, as "
            "(0.25, 0.5)."
        )
    for fraction in halving:
        if not isinstance(fraction, numbers.Real) or not 0 < fraction < 1:
            raise UsageError(
                f"halving={tuple(halving)}: {fraction!r} is not a fraction of the "
                "updates; write numbers between 0 and 1, as (0.25, 0.5)."
            )
    if any(one >= other for one, other in itertools.pairwise(halving)):
        raise UsageError(
            f"halving={tuple(halving)} does not increase; write "
            f"{tuple(sorted(set(halving)))}."
        )
    if not isinstance(eta, numbers.Real) or not 1 < eta < math.inf:
        raise UsageError(
            f"eta={eta!r}; write a number above 1: eta=2 keeps the better half."
        )


def rung_ends(num_updates: int, halving: Sequence[float]) -> list[int]:
    """Return the updates after which each rung ends; the last is `num_updates`.

    Raises:
        UsageError: If the run has too few updates for so many rungs.
    """
    ends = [*(round(fraction * num_updates) for fraction in halving), num_updates]
    if ends[0] < 1 or any(one >= other for one, other in itertools.pairwise(ends)):
        raise UsageError(
            f"halving={tuple(halving)} leaves a rung without an update, of "
            f"{num_updates} in a run; write fewer fractions, or raise total_timesteps."
        )
    return ends


def survivors(
    returns: Float[np.ndarray, "settings seeds"],
    active: Bool[np.ndarray, " settings"],
    eta: float | int,
    excess: Float[np.ndarray, " settings"] | None = None,
) -> Bool[np.ndarray, " settings"]:
    """Return which of the active settings are the best 1/η, rounded up.

    Args:
        returns: Mean returns of each cell in evaluation.
        active: The settings that were trained up to here.
        eta: η.
        excess: As `best_first`.
    """
    ranked = best_first(returns, active.astype(int), excess)
    order = [one for one in ranked if active[one]]
    kept = np.zeros_like(active)
    kept[order[: math.ceil(len(order) / eta)]] = True
    return kept


def best_first(
    returns: Float[np.ndarray, "settings seeds"],
    rungs: Int[np.ndarray, " settings"],
    excess: Float[np.ndarray, " settings"] | None = None,
) -> Int[np.ndarray, " settings"]:
    """Return the indices of the settings, the best one first.

    By the rung that they reached, then those that keep their limits by the mean over
    seeds, then the others by their excess. A setting with a seed that has no finite
    return comes last in its rung: without that seed the mean would be biased.

    Args:
        returns: Mean returns of each cell in evaluation.
        rungs: The rungs.
        excess: `excess_over_limits`, 0 for a setting that keeps them; None without any.
    """
    means = np.asarray(returns, float).mean(axis=1)
    known = np.isfinite(means)
    above = np.zeros(len(means)) if excess is None else excess
    above = np.where(known & np.isfinite(above), above, np.inf)
    return np.lexsort((-np.where(known, means, -np.inf), above, -rungs))


def excess_over_limits(
    costs: Float[np.ndarray, "settings seeds K"],
    limits: Sequence[Sequence[float] | None],
) -> Float[np.ndarray, " settings"]:
    """Return how far each setting is above its limits, 0 if it keeps them.

    Σ_k max(J_k / d_k − 1, 0), with J_k its mean over seeds; max(J_k, 0) for d_k = 0

    Args:
        costs: Mean costs of each cell in evaluation.
        limits: d of each setting; None for one without.
    """
    means = np.asarray(costs, float).mean(axis=1)
    excess = np.zeros(len(means))
    for one, limit in enumerate(limits):
        if limit is not None:
            bound = np.asarray(limit, float)
            unit = np.where(bound > 0, bound, 1)
            excess[one] = np.maximum((means[one] - bound) / unit, 0).sum()
    return excess
