"""The floats of a run."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from trpo_jax.errors import UsageTypeError
from trpo_jax.trust_region.checks import (
    check_fraction,
    check_not_negative,
    check_positive,
)


class Hyperparameters(NamedTuple):
    """The floats of a run, traced: `vmap` over them, or `trpo_jax.sweep`.

    The fields are those of `TRPOConfig` with the same names. `config.hyperparameters`
    has those of a config; `_replace` some of them.
    """

    max_kl: float
    damping: float
    discount: float
    gae_lambda: float
    critic_learning_rate: float
    critic_max_kl: float
    critic_damping: float
    entropy_coefficient: float
    clip_ratio: float
    kl_coefficient: float
    natural_step_size: float
    policy_learning_rate: float
    multiplier_learning_rate: float
    multiplier_proportional_gain: float
    multiplier_derivative_gain: float

    def as_float32(self) -> "Hyperparameters":
        """Return them as strongly typed arrays: a weak type would compile twice."""
        return jax.tree.map(jnp.float32, self)


_POSITIVE = (
    "max_kl",
    "critic_max_kl",
    "clip_ratio",
    "kl_coefficient",
    "natural_step_size",
)


def check_hyperparameters(hyperparameters: Hyperparameters) -> None:
    """Raise UsageTypeError for what is not a float, UsageError if it is out of range.

    Traced values pass: only their shape is known.
    """
    if not isinstance(hyperparameters, Hyperparameters):
        raise UsageTypeError(
            f"hyperparameters={hyperparameters!r}; write "
            "config.hyperparameters._replace(max_kl=0.01)."
        )
    floats = hyperparameters
    try:
        check_fraction(discount=floats.discount, gae_lambda=floats.gae_lambda)
        check_positive(**{name: getattr(floats, name) for name in _POSITIVE})
        check_not_negative(**floats._asdict())
    except UsageTypeError as error:
        raise UsageTypeError(
            f"{error} To sweep over several, vmap train(config, hyperparameters=...)."
        ) from None
