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


# Thresholds of each of the two rounds of `upper_quantile`.
_THRESHOLDS = 32


def upper_quantile(values: Float[Array, "*N"], level: float) -> Float[Array, ""]:
    """Return a quantile of values ≥ 0, with a relative error below 1.1 %.

    It counts the values under thresholds, first an octave apart and then a 32nd of one,
    and does not sort: over values that are split among devices, counts are sums, and a
    sort would exchange all values.

    Args:
        values: float[N], or of any shape; below 0 by rounding only.
        level: The share of values up to the quantile, in (0, 1], such as 0.95.

    Returns:
        The quantile, a scalar: the smallest value up to which there are `level` · N
        values. 0 if it is less than 2⁻³² of the largest value; NaN or ∞ if any value
        is.
    """
    values = values.reshape(-1)
    needed = math.ceil(level * values.size)
    steps = jnp.arange(1, _THRESHOLDS + 1, dtype=values.dtype)

    def lowest(top: Float[Array, ""], octaves: float) -> Float[Array, ""]:
        """Return the lowest of top · 2^(−k · octaves) with the values needed below."""
        thresholds = top * jnp.exp2(-octaves * steps)
        enough = jnp.sum(values[:, None] <= thresholds, axis=0) >= needed
        # Monotone: enough for the first thresholds, and too few for the others.
        return top * jnp.exp2(-octaves * jnp.sum(enough).astype(values.dtype))

    top = jnp.maximum(jnp.max(values), 0)
    end = lowest(lowest(top, 1.0), 1 / _THRESHOLDS)
    # The quantile is in the 1/32 of an octave below `end`, here its geometric middle.
    middle = end * 2 ** (-0.5 / _THRESHOLDS)
    found = jnp.where(end > top * 2.0**-_THRESHOLDS, middle, 0)
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
