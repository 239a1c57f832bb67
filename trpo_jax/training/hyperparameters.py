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

    `config.hyperparameters` has those of a config; `_replace` some of them.
    """

    max_kl: float
    """δ, the radius of the trust region: mean KL(old ‖ new) in nats."""
    damping: float
    """λ, added to the diagonal of the Fisher information."""
    discount: float
    """γ, the discount of future rewards."""
    gae_lambda: float
    """λ of generalised advantage estimation: 0 is TD, 1 Monte-Carlo."""
    critic_learning_rate: float
    """Step size of the critic's optimiser."""
    entropy_coefficient: float
    """Weight of the policy's mean entropy beside the surrogate of standardised
    advantages: more than 0 keeps a policy from settling early."""


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
        above = value > 0 if name == "max_kl" else value >= 0
        below = (
            value <= 1 if name in ("discount", "gae_lambda") else math.isfinite(value)
        )
        if not (above and below):
            raise UsageError(f"{name}={value} is out of range; write {advice[name]}.")
