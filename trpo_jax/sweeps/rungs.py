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
) -> Bool[np.ndarray, " settings"]:
    """Return which of the active settings are the best 1/η, rounded up.

    Args:
        returns: Mean returns of each cell in evaluation.
        active: The settings that were trained up to here.
        eta: η.
    """
    order = [one for one in best_first(returns, active.astype(int)) if active[one]]
    kept = np.zeros_like(active)
    kept[order[: math.ceil(len(order) / eta)]] = True
    return kept


def best_first(
    returns: Float[np.ndarray, "settings seeds"], rungs: Int[np.ndarray, " settings"]
) -> Int[np.ndarray, " settings"]:
    """Return the indices of the settings, the best one first.

    By the rung that they reached, then by the mean over seeds. A setting with a seed
    that has no finite return comes last in its rung: without that seed the mean would
    be biased.
    """
    means = np.asarray(returns, float).mean(axis=1)
    return np.lexsort((-np.where(np.isfinite(means), means, -np.inf), -rungs))
