"""Damping and radius of the next update, from the evidence of the last."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from trpo_jax.trust_region.evidence import UpdateInfo, UpdateStatus

# As in Martens 2010. Two increases more than double a number; one decrease undoes one
# increase.
_CHANGE = 1.5


def adapt_damping(
    damping: Float[Array, ""] | float,
    info: UpdateInfo,
    *,
    low: float,
    high: float,
) -> Float[Array, ""]:
    """Return λ of the next update: more where the quadratic model of the KL was wrong.

    λ · 1.5 after a step whose KL was above 1.5 times the predicted one, or that was
    rejected for its KL or its objective; λ / 1.5 after one whose KL was below 1.25
    times the predicted one; otherwise λ.

    Args:
        damping: λ > 0 of the last update, or its factor.
        info: The evidence of the last update; of an update along the natural gradient,
            which makes a prediction.
        low: The smallest result.
        high: The largest result.

    Source: the rule of Levenberg and Marquardt, as in Martens 2010, "Deep learning via
    Hessian-free optimization", section 4.1. It compares the reductions of an objective;
    here it is the KL that the damped model is of, and only too large a KL counts.
    """
    moved = info.status == UpdateStatus.ACCEPTED
    more = _rejected(info) | (moved & (info.kl > 1.5 * info.kl_predicted))
    less = moved & (info.kl < 1.25 * info.kl_predicted)
    return _changed(damping, more, less, low, high)


def adapt_radius(
    max_kl: Float[Array, ""] | float,
    info: UpdateInfo,
    *,
    low: float,
    high: float,
) -> Float[Array, ""]:
    """Return δ of the next update: less where the last gain may have been noise.

    δ / 1.5 after a step whose gain L(θ) − L(θ_old) was below its standard error, or
    that was rejected for its KL or its objective; δ · 1.5 after one whose KL was within
    a quarter of the predicted one and whose gain was at least three quarters of the
    predicted one; otherwise δ.

    Args:
        max_kl: δ > 0 of the last update, or its factor.
        info: The evidence of the last update; of an update along the natural gradient,
            which makes a prediction.
        low: The smallest result.
        high: The largest result.

    Source: growth by agreement with the model is the trust region of Conn, Gould &
    Toint 2000, section 6.1, with its 3/4; to shrink by the standard error is our own.
    """
    moved = info.status == UpdateStatus.ACCEPTED
    gain = info.gain
    noise = moved & (gain < info.surrogate_standard_error)
    less = _rejected(info) | noise
    more = (
        moved
        & ~noise
        & (info.kl >= 0.75 * info.kl_predicted)
        & (info.kl <= 1.25 * info.kl_predicted)
        & (gain >= 0.75 * info.expected_improvement)
    )
    return _changed(max_kl, more, less, low, high)


def _rejected(info: UpdateInfo) -> Bool[Array, ""]:
    """Return whether the step was rejected for its KL or its objective."""
    exceeded = info.status == UpdateStatus.KL_EXCEEDED
    return exceeded | (info.status == UpdateStatus.NO_IMPROVEMENT)


def _changed(
    value: Float[Array, ""] | float,
    more: Bool[Array, ""],
    less: Bool[Array, ""],
    low: float,
    high: float,
) -> Float[Array, ""]:
    factor = jnp.where(more, _CHANGE, jnp.where(less, 1 / _CHANGE, 1.0))
    return jnp.clip(value * factor, low, high)
