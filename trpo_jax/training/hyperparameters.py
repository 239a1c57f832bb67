"""The floats of a run."""

import math
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trpo_jax.errors import UsageError, UsageTypeError, describe_type


class Hyperparameters(NamedTuple):
    """The floats of a run, traced: a sweep over them is a `vmap`.

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


def check_hyperparameters(hyperparameters: Hyperparameters) -> None:
    """Raise UsageTypeError for what is not a float, UsageError if it is out of range.

    Traced values pass: only their shape is known.
    """
    if not isinstance(hyperparameters, Hyperparameters):
        raise UsageTypeError(
            f"hyperparameters={hyperparameters!r}; write "
            "config.hyperparameters._replace(max_kl=0.01)."
        )
    advice = {
        "max_kl": "a positive number of nats, as 0.01",
        "damping": "zero or more, as 0.1",
        "discount": "a number in [0, 1], as 0.99",
        "gae_lambda": "a number in [0, 1], as 0.95",
        "critic_learning_rate": "zero or more, as 1e-3",
        "critic_max_kl": "a positive number of nats, as 0.2",
        "critic_damping": "zero or more, as 0.1",
        "entropy_coefficient": "zero or more, as 0.01",
    }
    for name, value in hyperparameters._asdict().items():
        number = isinstance(value, numbers.Real | jax.Array | np.ndarray)
        if isinstance(value, bool) or not number or jnp.ndim(value):
            raise UsageTypeError(
                f"{name} is {describe_type(value)}; write {advice[name]}. To sweep "
                "over several, vmap train(config, hyperparameters=...)."
            )
        if isinstance(value, jax.core.Tracer):
            continue
        most = 1 if name in ("discount", "gae_lambda") else math.inf
        in_range = 0 <= value <= most and math.isfinite(value)
        if not in_range or (name in ("max_kl", "critic_max_kl") and value == 0):
            raise UsageError(f"{name}={value} is out of range; write {advice[name]}.")
