"""Tuned settings by environment."""

import difflib
from typing import Any

import jax

from trpo_jax.networks import MLP, Value
from trpo_jax.training.config import Hyperparameters, TRPOConfig

_MINATAR: dict[str, Any] = {
    "total_timesteps": 10_000_000,
    "num_envs": 128,
    "rollout_length": 125,
    "activation": "relu",
    "max_kl": 0.05,
    "damping": 0.01,
    "gae_lambda": 0.9,
    "kl_schedule": "linear",
    "normalize_returns": True,
}

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
    "MountainCar-v0": {
        "total_timesteps": 100_000,
        "num_envs": 8,
        "rollout_length": 125,
        "fisher_stride": 1,
        "max_kl": 0.04,
        "kl_schedule": "linear",
        # Every step costs 1 until the flag: no discount may hide how far it is.
        "discount": 1.0,
        "critic_epochs": 20,
        "critic_learning_rate": 3e-3,
        "learning_rate_schedule": "linear",
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
    # bsuite ---------------------------------------------------------------------------
    "Catch-bsuite": {
        "total_timesteps": 50_000,
        "num_envs": 8,
        "rollout_length": 125,
        "fisher_stride": 1,
        "max_kl": 0.05,
        "kl_schedule": "linear",
        "normalize_returns": True,
    },
    "DeepSea-bsuite": {
        # Only one path of 256 pays: it has to be met by chance, many episodes at once.
        "total_timesteps": 204_800,
        "num_envs": 512,
        "rollout_length": 16,
        "max_kl": 0.02,
        "kl_schedule": "linear",
        "discount": 1.0,
        "gae_lambda": 1.0,
        "normalize_returns": True,
    },
    "DiscountingChain-bsuite": {
        "total_timesteps": 50_000,
        "num_envs": 20,
        "rollout_length": 100,
        "fisher_stride": 1,
        "max_kl": 0.02,
        "kl_schedule": "linear",
        "normalize_observations": True,
        "normalize_returns": True,
    },
    "UmbrellaChain-bsuite": {
        "total_timesteps": 50_000,
        "num_envs": 8,
        "rollout_length": 125,
        "fisher_stride": 1,
        "max_kl": 0.05,
        "kl_schedule": "linear",
        "discount": 1.0,
        "normalize_returns": True,
    },
    "FourRooms-misc": {
        "total_timesteps": 100_000,
        "num_envs": 16,
        "rollout_length": 125,
        "fisher_stride": 1,
        "max_kl": 0.02,
        "kl_schedule": "linear",
        "discount": 0.98,
        "normalize_observations": True,
        "normalize_returns": True,
    },
    # MinAtar: without an entropy bonus Breakout stays at 7, and Freeway at 30. --------
    "Asterix-MinAtar": {
        **_MINATAR,
        "gae_lambda": 0.7,
        "entropy_coefficient": 0.03,
        # A flat policy has 8 after 3M steps where convolutions have 50 after 2M; the
        # critic, most of the cost, does without.
        "channels": (8,),
        "hidden_sizes": (64,),
        "critic": Value(MLP((64, 64), jax.nn.relu)),
    },
    "Breakout-MinAtar": {**_MINATAR, "entropy_coefficient": 0.1},
    "Freeway-MinAtar": {**_MINATAR, "max_kl": 0.06, "entropy_coefficient": 0.1},
    "SpaceInvaders-MinAtar": {
        **_MINATAR,
        "num_envs": 64,
        "entropy_coefficient": 0.01,
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
