"""Statistics over the states and transitions of an update, for its evidence."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num


def standard_error(samples: Float[Array, "*N"]) -> Float[Array, ""]:
    """Return the standard error of a mean, √(Var(samples) / (N − 1)); 0 for one sample.

    It takes the samples to be independent. Transitions of one episode are not, so that
    the error of a mean over them is larger than this.

    Args:
        samples: float[N], or of any shape.
    """
    return root(jnp.var(samples) / max(samples.size - 1, 1))


def root(square: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return √square, whose derivative at 0 is 0 here.

    That of `jnp.sqrt` is ∞, and makes NaN of the zeros that differentiation sends back
    to results without influence.
    """
    zero = square == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))


# Rounds of `upper_quantile`, thresholds of each, and the octaves that they cover.
_ROUNDS, _THRESHOLDS, _OCTAVES = 3, 11, 33


def upper_quantile(values: Float[Array, "*N"], level: float) -> Float[Array, ""]:
    """Return a quantile of values ≥ 0, with a relative error below 0.9 %.

    It counts the values under thresholds, first three octaves apart, then 3/11 of one,
    then 3/121, and does not sort: over values that are split among devices, counts are
    sums, and a sort would exchange all values.

    Args:
        values: float[N], or of any shape; below 0 by rounding only.
        level: The share of values up to the quantile, in (0, 1], such as 0.95.

    Returns:
        The quantile, a scalar: the smallest value up to which there are `level` · N
        values. 0 if it is less than 2⁻³³ of the largest value; NaN or ∞ if any value
        is.
    """
    values = values.reshape(-1)
    needed = math.ceil(level * values.size)
    steps = jnp.arange(1, _THRESHOLDS + 1, dtype=values.dtype)
    top = jnp.maximum(jnp.max(values), 0)
    # The lowest threshold so far with the values needed below it.
    end, octaves = top, float(_OCTAVES)
    for _ in range(_ROUNDS):
        octaves /= _THRESHOLDS
        thresholds = end * jnp.exp2(-octaves * steps)
        # One row a threshold: the other way round, XLA on CPU takes 1.7 times as long.
        enough = jnp.sum(values <= thresholds[:, None], axis=1) >= needed
        # Monotone: enough for the first thresholds, and too few for the others.
        end *= jnp.exp2(-octaves * jnp.sum(enough).astype(values.dtype))
    # The quantile is in the last step below `end`, here its geometric middle.
    found = jnp.where(end > top * 2.0**-_OCTAVES, end * 2 ** (-octaves / 2), 0)
    return jnp.where(jnp.isfinite(top), found, top)


def ratio_or_nan(
    numerator: Num[Array | np.ndarray, "..."],
    denominator: Num[Array | np.ndarray, "..."],
) -> Float[Array | np.ndarray, "..."]:
    """Return numerator / denominator, NaN where the denominator is 0.

    For results that are read outside of compiled programs: `jax_debug_nans`, by which
    people look for NaNs of their own, must not stop at one that is intended; NumPy
    ignores the switch.

    Args:
        numerator: Numbers.
        denominator: Numbers of the same shape.
    """
    both = numerator, denominator
    traced = any(isinstance(value, jax.core.Tracer) for value in both)
    module = jnp if traced else np
    numerator, denominator = map(module.asarray, both)
    known = denominator != 0
    ratio = numerator / module.where(known, denominator, 1)
    return module.where(known, ratio, module.nan)
