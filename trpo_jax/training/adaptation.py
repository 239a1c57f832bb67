"""Floats of a run that adapt to its updates."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.hyperparameters import Hyperparameters
from trpo_jax.trust_region import UpdateInfo, adapt_damping, adapt_radius

# Limits of the factors. A radius ten times too large or too small is a setting at
# fault; good dampings differ by more from the start of a run to its end.
_MAX_KL_LIMITS = {"low": 0.1, "high": 10.0}
_DAMPING_LIMITS = {"low": 0.01, "high": 100.0}


class Factors(NamedTuple):
    """Factors of `max_kl` and `damping` in the next update, float32 scalars."""

    max_kl: Float[Array, ""]
    damping: Float[Array, ""]


def init_factors(config: TRPOConfig) -> Factors | tuple[()]:
    """Return factors of 1; nothing if neither is adaptive."""
    if "adaptive" not in (config.max_kl_schedule, config.damping_schedule):
        return ()
    return Factors(jnp.float32(1), jnp.float32(1))


def next_factors(
    config: TRPOConfig, factors: Factors | tuple[()], info: UpdateInfo
) -> Factors | tuple[()]:
    """Return the factors after an update; one that is not adaptive stays at 1."""
    if not isinstance(factors, Factors):
        return factors
    if config.max_kl_schedule == "adaptive":
        max_kl = adapt_radius(factors.max_kl, info, **_MAX_KL_LIMITS)
        factors = factors._replace(max_kl=max_kl)
    if config.damping_schedule == "adaptive":
        damping = adapt_damping(factors.damping, info, **_DAMPING_LIMITS)
        factors = factors._replace(damping=damping)
    return factors


def times_factors(hyperparameters: Hyperparameters, factors: PyTree) -> Hyperparameters:
    """Return the hyperparameters in force, those given if nothing is adaptive.

    Args:
        hyperparameters: Those of the run.
        factors: The state of its policy update, which may be that of an optimiser.
    """
    if not isinstance(factors, Factors):
        return hyperparameters
    products = {
        name: getattr(hyperparameters, name) * factor
        for name, factor in factors._asdict().items()
    }
    return hyperparameters._replace(**products)
