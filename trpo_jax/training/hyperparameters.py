"""The floats of a run."""

import math
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Hyperparameters(NamedTuple):
    """The floats of a run. They are traced: a sweep over them is a `vmap`."""

    max_kl: float = 0.01
    """δ, the radius of the trust region: mean KL(old ‖ new) in nats."""
    damping: float = 0.1
    """λ, added to the diagonal of the Fisher information."""
    discount: float = 0.99
    """γ, the discount of future rewards."""
    gae_lambda: float = 0.95
    """λ of generalised advantage estimation: 0 is TD, 1 Monte-Carlo."""
    critic_learning_rate: float = 1e-3
    """Step size of the critic's optimiser."""
    entropy_coefficient: float = 0.0
    """Weight of the policy's mean entropy beside the surrogate of standardised
    advantages: more than 0 keeps a policy from settling early."""


def check_hyperparameters(hyperparameters: Hyperparameters) -> None:
    """Raise TypeError or ValueError for what is no float, or out of range.

    Traced values, as under `vmap`, pass: nothing is known of them but their shape.
    """
    if not isinstance(hyperparameters, Hyperparameters):
        raise TypeError(
            f"hyperparameters={hyperparameters!r}; write "
            "trpo_jax.Hyperparameters(max_kl=0.01, ...)."
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
        number = isinstance(value, (numbers.Real, jax.Array))
        if isinstance(value, bool) or not number or jnp.ndim(value):
            raise TypeError(
                f"{name}={value!r} is not a number; write {advice[name]}. To sweep "
                "over several, vmap train(config, hyperparameters=...)."
            )
        if isinstance(value, jax.core.Tracer):
            continue
        above = value > 0 if name == "max_kl" else value >= 0
        below = (
            value <= 1 if name in ("discount", "gae_lambda") else math.isfinite(value)
        )
        if not (above and below):
            raise ValueError(f"{name}={value} is out of range; write {advice[name]}.")
