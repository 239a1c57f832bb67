"""Tuned settings by environment."""

import difflib
from typing import Any

from trpo_jax.training.config import Hyperparameters, TRPOConfig

PRESETS: dict[str, dict[str, Any]] = {
    "CartPole-v1": {
        "total_timesteps": 100_000,
        "num_envs": 8,
        "rollout_length": 125,
        "fisher_stride": 5,
        "critic_minibatches": 4,
        "max_kl": 0.02,
        "kl_schedule": "linear",
        "gae_lambda": 0.98,
        "normalize_returns": True,
    },
    "Acrobot-v1": {
        "total_timesteps": 100_000,
        "num_envs": 8,
        "rollout_length": 125,
        "max_kl": 0.03,
        "kl_schedule": "linear",
        "normalize_observations": True,
        "normalize_returns": True,
    },
    "Pendulum-v1": {
        "total_timesteps": 200_000,
        "num_envs": 16,
        "rollout_length": 125,
        "max_kl": 0.02,
        "kl_schedule": "linear",
        "discount": 0.9,
        "gae_lambda": 0.9,
        "critic_epochs": 20,
        # σ is the torque's bound, 2, to begin with.
        "initial_log_std": 0.7,
        "normalize_observations": True,
        "normalize_returns": True,
    },
    "MountainCarContinuous-v0": {
        "total_timesteps": 50_000,
        "num_envs": 16,
        "rollout_length": 125,
        "fisher_stride": 5,
        "critic_minibatches": 4,
        "max_kl": 0.05,
        "kl_schedule": "linear",
        "damping": 0.01,
        "discount": 0.999,
        "gae_lambda": 0.98,
        # Wide enough to be clipped most of the time: full throttle either way is what
        # reaches the flag by chance.
        "initial_log_std": 1.0,
        "normalize_observations": True,
        "normalize_returns": True,
    },
}
"""Settings that differ from the defaults, fields and hyperparameters alike, by id."""


def preset(env: str, **overrides: Any) -> TRPOConfig:
    """Return the tuned settings for an environment.

    Args:
        env: The id of an environment that has a preset.
        **overrides: Fields of `TRPOConfig` or of `Hyperparameters` to set otherwise.

    Returns:
        A `TRPOConfig`.

    Raises:
        ValueError: If there is no preset for `env` (the message names the nearest).
        TypeError: If an override is a field of neither.

    Example:
        `preset("CartPole-v1", num_seeds=16, max_kl=0.02)`
    """
    if env not in PRESETS:
        near = difflib.get_close_matches(env, PRESETS, n=1, cutoff=0.6)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"no preset for {env!r}.{hint} There are presets for {', '.join(PRESETS)}; "
            f"for the defaults write TRPOConfig(env={env!r})."
        )
    settings = {**PRESETS[env], **overrides}
    floats = Hyperparameters._fields
    traced = {name: settings.pop(name) for name in floats if name in settings}
    hyperparameters = settings.pop("hyperparameters", Hyperparameters())
    return TRPOConfig(
        env=env, hyperparameters=hyperparameters._replace(**traced), **settings
    )
