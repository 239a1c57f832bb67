"""Statistics over the states and transitions of an update, for its evidence."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def standard_error(samples: Float[Array, "*N"]) -> Float[Array, ""]:
    """Return the standard error of a mean, √(Var(samples) / (N − 1)); 0 for one sample.

    It takes the samples to be independent. Those of one episode are not, so that the
    error of an average over transitions is larger.

    Args:
        samples: float[N], or of any shape.
    """
    return jnp.sqrt(jnp.var(samples) / max(samples.size - 1, 1))


# Thresholds of each of the two rounds of `upper_quantile`.
_THRESHOLDS = 32


def upper_quantile(values: Float[Array, "*N"], level: float) -> Float[Array, ""]:
    """Return a quantile of positive values, with a relative error below 1.1 %.

    By counts over thresholds, an octave and then a 32nd of an octave apart, rather than
    by a sort: over devices that share the values it is a sum, and a sort an exchange of
    all of them. It is 0 where the quantile is more than 2³² below the largest value.

    Args:
        values: float[N], or of any shape, ≥ 0 but for rounding.
        level: The share of values up to the quantile, as 0.95.
    """
    values = values.reshape(-1)
    steps = jnp.arange(1, _THRESHOLDS + 1, dtype=values.dtype)

    def below(top: Float[Array, ""], octaves: float) -> Float[Array, ""]:
        """Return the lowest of the thresholds under `top` that still is an upper end.

        The ends are top · 2^(−k · octaves).
        """
        thresholds = top * jnp.exp2(-octaves * steps)
        within = jnp.mean(values[:, None] <= thresholds, axis=0) >= level
        # Monotone: the first k are met, and the others are not.
        return top * jnp.exp2(-octaves * jnp.sum(within).astype(values.dtype))

    top = jnp.maximum(jnp.max(values), 0)
    end = below(below(top, 1.0), 1 / _THRESHOLDS)
    # The quantile is within 1/32 of an octave under this end.
    middle = end * 2 ** (-0.5 / _THRESHOLDS)
    return jnp.where(end > top * 2.0 ** (-_THRESHOLDS), middle, 0)
