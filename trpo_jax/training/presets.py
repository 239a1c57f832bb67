"""Tuned settings of each environment."""

import difflib
from typing import Any

import jax

from trpo_jax.errors import UsageError, UsageTypeError, describe_type
from trpo_jax.networks import MLP, Value
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.config_checks import ignored_fields

# Every preset has these.
_COMMON: dict[str, Any] = {"max_kl_schedule": "linear", "normalize_returns": True}

_CLASSIC: dict[str, Any] = {
    "total_timesteps": 100_000,
    "num_envs": 8,
    "rollout_length": 125,
    "fisher_stride": 1,
    "normalize_observations": True,
}

_SMALL: dict[str, Any] = {
    "num_envs": 16,
    "rollout_length": 125,
    "fisher_stride": 1,
    "max_kl": 0.03,
}

_CHAIN: dict[str, Any] = {
    **_SMALL,
    "total_timesteps": 50_000,
    "num_envs": 8,
    "max_kl": 0.05,
}

_MEMORY: dict[str, Any] = {
    **_SMALL,
    "num_envs": 32,
    "rollout_length": 100,
    "hidden_sizes": (32,),
    "memory_size": 32,
}

_MINATAR: dict[str, Any] = {
    "total_timesteps": 10_000_000,
    "num_envs": 128,
    "rollout_length": 125,
    "activation": "relu",
    "max_kl": 0.05,
    "damping": 0.01,
    # Over 960k steps, 8 seeds, 50 plain products → preconditioned ones: Breakout
    # 14.3 ± 1.5 → 14.7 ± 2.0 (26 products, in 0.9 of the time; 15.8 in the mean of
    # fourteen runs at neighbouring settings); SpaceInvaders 104 ± 12 → 113 ± 9 (30).
    "cg_iterations": 26,
    "preconditioner_groups": 40,
    "gae_lambda": 0.9,
}

_MINATAR_FLAT: dict[str, Any] = {
    **_MINATAR,
    # Breakout over 960k steps, 8 seeds: 14.0 ± 2.4 with the defaults, 0.2 and 0.1; with
    # these and 40 products 15.7 ± 2.1.
    "critic_max_kl": 1.0,
    "critic_damping": 1e-3,
}

# Small steps from a high entropy bonus that falls to none. With this damping ten
# products leave a residual of 0.1 on Breakout.
_MINATAR_SMALL_STEPS: dict[str, Any] = {
    "num_envs": 64,
    "normalize_observations": True,
    "max_kl_schedule": "constant",
    "damping": 0.1,
    "cg_iterations": 10,
    "entropy_coefficient_schedule": "linear",
}

# Convolutions for the policy alone. On Asterix, one run of a flat policy had 8 after 3M
# steps where convolutions had 50 after 2M; the critic, most of the cost, does without.
_MINATAR_CONVOLUTIONS: dict[str, Any] = {
    **_MINATAR,
    "entropy_coefficient": 0.03,
    "channels": (8,),
    "hidden_sizes": (64,),
    "critic": Value(MLP((64, 64), jax.nn.relu)),
    # Asterix over 10M steps: 71.0 ± 2.4 with this (4 seeds), 67.1 with the critic in
    # its trust region (one).
    "critic_fit": "first_order",
}

# Where no comment compares the two fits of the critic, only the first-order one was
# tried.
_BRAX: dict[str, Any] = {
    "critic_fit": "first_order",
    "total_timesteps": 1_966_080,
    "num_envs": 64,
    "rollout_length": 64,
    "initial_log_std": -0.5,
    "max_kl": 0.05,
    "damping": 0.03,
    "backtrack_factor": 0.8,
    "normalize_observations": True,
}

# A fall ends the episode and all later reward: with the discount of the others, hopper
# hops and falls. In a sweep over 2M steps the entropy bonus had no effect; without it,
# one run of 6M fell back, from 1,000 to 800.
_BRAX_UPRIGHT: dict[str, Any] = {
    **_BRAX,
    "total_timesteps": 9_830_400,
    "discount": 0.999,
    "gae_lambda": 0.97,
    "entropy_coefficient": 0.01,
}

# Playground's control suite: whole episodes of 1,000 steps. Cheetah had 538 after 410k
# steps with these, 148 with a λ of 0.95 and 133 with a discount of 0.99 (one seed).
_CONTROL: dict[str, Any] = {
    **_BRAX,
    "critic_fit": "trust_region",
    "total_timesteps": 983_040,
    "max_kl": 0.1,
    "discount": 0.995,
    "gae_lambda": 0.97,
}

# With those, CartpoleBalance fell at once from the 600 of an untrained policy to 150. A
# likely reason: where all environments are reset together, most batches have no state
# near a reset. CartpoleSwingup had 362 and 117 after 9.8M steps with those, 835 and 652
# after 0.5M with these. Cheetah had 425 with these (one seed), 582 and 683 with those.
_CONTROL_STAGGERED: dict[str, Any] = {
    **_CONTROL,
    "rollout_length": 192,
    "staggered_starts": True,
    "max_kl": 0.05,
    "entropy_coefficient": 0.01,
}

# Tasks that pay nothing until they are solved need more exploration.
_CONTROL_SPARSE: dict[str, Any] = {
    **_CONTROL_STAGGERED,
    "discount": 0.99,
    "initial_log_std": 0.0,
}

_EPISODES: dict[str, Any] = {
    "num_envs": 8,
    "rollout_length": 1000,
    "update": "cpo",
    "cost_limits": (25.0,),
}

# With ids one-hot. Over 200k steps of xland's DoorKey-5x5, 4 seeds had 0.40 in the
# first sixth of training, where ids as numbers had 0.15.
_GRID: dict[str, Any] = {
    "total_timesteps": 100_352,
    "num_envs": 32,
    "rollout_length": 64,
}

# Evaluate it with sampled actions: greedy ones get stuck (1.2 beside 4.3 after 500k
# steps). A λ of 0.9 was no better (one seed).
_CRAFTAX: dict[str, Any] = {
    "total_timesteps": 999_424,
    "num_envs": 64,
    "rollout_length": 64,
    "hidden_sizes": (128, 128),
    "max_kl": 0.03,
    "gae_lambda": 0.8,
    "entropy_coefficient": 0.01,
}

_PRESETS: dict[str, dict[str, Any]] = {
    "CartPole-v1": {
        **_SMALL,
        "total_timesteps": 100_000,
        "num_envs": 8,
        "fisher_stride": 5,
        "max_kl": 0.02,
        "gae_lambda": 0.98,
    },
    "Acrobot-v1": {
        **_CLASSIC,
        "max_kl": 0.03,
        "gae_lambda": 0.9,
    },
    "Pendulum-v1": {
        **_CLASSIC,
        "max_kl": 0.02,
        "discount": 0.95,
        "gae_lambda": 0.85,
        # The initial σ is the bound of the torque, 2.
        "initial_log_std": 0.7,
    },
    "MountainCar-v0": {
        **_CLASSIC,
        "max_kl": 0.04,
        "damping": 0.03,
        # -113 with the critic in its trust region (32 seeds), -105 ± 3 with this (8).
        "critic_fit": "first_order",
        "critic_epochs": 20,
        # Every step costs 1 until the flag: a discount would hide how far it is.
        "discount": 1.0,
    },
    "MountainCarContinuous-v0": {
        **_CLASSIC,
        "total_timesteps": 50_000,
        "max_kl": 0.02,
        "damping": 0.01,
        "gae_lambda": 0.98,
        # Wide enough to be clipped most of the time: full throttle either way reaches
        # the flag by chance, more often if it lasts. With a log σ of 1.5, three seeds
        # in 32 did not find it in time; with new noise in each step, one in sixteen.
        "initial_log_std": 2.0,
        "noise_period": 4,
    },
    # bsuite ---------------------------------------------------------------------------
    "Catch-bsuite": _CHAIN,
    "DeepSea-bsuite": {
        # Only one path of 256 pays, and is found by chance: many episodes at once.
        "total_timesteps": 204_800,
        "num_envs": 512,
        "rollout_length": 16,
        "fisher_stride": 7,
        "max_kl": 0.02,
        "discount": 1.0,
        "gae_lambda": 1.0,
    },
    "DiscountingChain-bsuite": {
        **_SMALL,
        "total_timesteps": 50_000,
        "num_envs": 20,
        "rollout_length": 100,
        "max_kl": 0.02,
        "normalize_observations": True,
    },
    "MNISTBandit-bsuite": {
        # Without an entropy bonus one run had half of the digits right, with 0.3 five
        # in six.
        **_SMALL,
        "total_timesteps": 204_800,
        "num_envs": 32,
        "rollout_length": 16,
        "max_kl": 0.06,
        "entropy_coefficient": 0.6,
        "channels": (8,),
        "convolution_stride": 2,
        "critic_fit": "first_order",
        "activation": "relu",
    },
    "MemoryChain-bsuite": {**_MEMORY, "total_timesteps": 64_000},
    "SimpleBandit-bsuite": {**_SMALL, "total_timesteps": 20_000, "num_envs": 8},
    "UmbrellaChain-bsuite": {**_CHAIN, "discount": 1.0},
    # misc -----------------------------------------------------------------------------
    "BernoulliBandit-misc": {**_MEMORY, "total_timesteps": 208_000},
    "FourRooms-misc": {
        **_SMALL,
        "total_timesteps": 100_000,
        "max_kl": 0.02,
        "discount": 0.98,
        "normalize_observations": True,
    },
    "FrozenLake-misc": {**_SMALL, "total_timesteps": 200_000, "max_kl": 0.01},
    "GaussianBandit-misc": {
        # The second arm pays in one episode of six, which is learned only by trying it.
        # With few episodes at once, most seeds learned never to try, which is worth 0.
        **_SMALL,
        "critic_fit": "first_order",
        "total_timesteps": 1_024_000,
        "num_envs": 128,
        "rollout_length": 100,
        "entropy_coefficient": 0.03,
        "normalize_observations": True,
    },
    "MetaMaze-misc": {
        **_MEMORY,
        "total_timesteps": 601_600,
        # As long as an episode, so that gradients reach back to its beginning.
        "rollout_length": 200,
        "hidden_sizes": (64,),
        "memory_size": 64,
        "max_kl": 0.05,
        "damping": 0.03,
        "normalize_observations": True,
    },
    "PointRobot-misc": {
        **_MEMORY,
        "critic_fit": "first_order",
        "total_timesteps": 2_016_000,
        "initial_log_std": -2.0,
        "normalize_observations": True,
    },
    "Pong-misc": {
        **_SMALL,
        "total_timesteps": 200_000,
        "hidden_sizes": (32,),
        "fisher_stride": 5,
    },
    "Reacher-misc": {
        **_SMALL,
        "total_timesteps": 300_000,
        "initial_log_std": -0.5,
        "normalize_observations": True,
    },
    "Swimmer-misc": {
        **_SMALL,
        "total_timesteps": 300_000,
        # 410 ± 5 with the critic in its trust region, 415 ± 14 with this; by
        # backtracking, 423 ± 6.
        "critic_fit": "first_order",
    },
    # MinAtar: an entropy bonus helped wherever runs were made with and without it. ----
    "Asterix-MinAtar": {**_MINATAR_CONVOLUTIONS, "gae_lambda": 0.7},
    "Breakout-MinAtar": {
        **_MINATAR_FLAT,
        **_MINATAR_SMALL_STEPS,
        "fisher_stride": 7,
        "gae_lambda": 0.95,
        "max_kl": 0.01,
        # The game is deterministic: with 0.1 throughout, policies settle on one path to
        # a dozen bricks; with 0.5, most learn little.
        "entropy_coefficient": 0.3,
    },
    "Freeway-MinAtar": {**_MINATAR_FLAT, "max_kl": 0.06, "entropy_coefficient": 0.1},
    # All of four seeds learned to surface; with convolutions one of four did. Only the
    # first-order fit of the critic was tried.
    "Seaquest-MinAtar": {
        **_MINATAR,
        **_MINATAR_SMALL_STEPS,
        "max_kl": 0.003,
        "critic_fit": "first_order",
        "entropy_coefficient": 0.2,
    },
    "SpaceInvaders-MinAtar": {
        **_MINATAR_FLAT,
        "num_envs": 64,
        "fisher_stride": 7,
        "cg_iterations": 30,
        "entropy_coefficient": 0.01,
    },
    # brax: settings found on hopper and walker2d. -------------------------------------
    "brax/ant": _BRAX,
    "brax/halfcheetah": _BRAX,
    "brax/hopper": _BRAX_UPRIGHT,
    "brax/inverted_pendulum": _BRAX,
    "brax/reacher": _BRAX,
    "brax/walker2d": _BRAX_UPRIGHT,
    # limits on costs: a rollout is a whole episode of each environment ---------------
    # As long as an hour on two cores allows for six updates of both bodies.
    "safe/halfcheetah_velocity": {
        **_BRAX,
        **_EPISODES,
        "total_timesteps": 800_000,
    },
    "safe/hopper_velocity": {
        **_BRAX_UPRIGHT,
        **_EPISODES,
        "total_timesteps": 1_440_000,
    },
    "safe/point_hazards": {
        "total_timesteps": 800_000,
        "num_envs": 160,
        "rollout_length": 100,
        "hidden_sizes": (32, 32),
        "initial_log_std": -0.5,
        "max_kl": 0.02,
        "max_kl_schedule": "constant",
        "update": "cpo",
        "cost_limits": (2.0,),
    },
    "safe/toll_grid": {
        "total_timesteps": 503_808,
        "num_envs": 64,
        "rollout_length": 64,
        "hidden_sizes": (32,),
        # Its episodes end by chance: the sum that counts has no discount.
        "discount": 1.0,
        "gae_lambda": 0.97,
        "max_kl_schedule": "constant",
        "update": "cpo",
        "cost_limits": (1.5,),
    },
    "craftax/Craftax-Classic-Symbolic-v1": _CRAFTAX,
    # grid worlds ----------------------------------------------------------------------
    "navix/Navix-DoorKey-5x5-v0": {**_GRID, "total_timesteps": 200_704},
    "navix/Navix-Empty-5x5-v0": _GRID,
    # MuJoCo Playground: settings found on cheetah, ball and CartpoleBalance. ---------
    "playground/AcrobotSwingup": _CONTROL_STAGGERED,
    "playground/BallInCup": _CONTROL_SPARSE,
    "playground/CartpoleBalance": {**_CONTROL_STAGGERED, "total_timesteps": 491_520},
    "playground/CartpoleSwingup": {**_CONTROL_STAGGERED, "total_timesteps": 491_520},
    "playground/CheetahRun": _CONTROL,
    "playground/FingerSpin": {**_CONTROL_SPARSE, "discount": 0.95},
    # The critic sees what the robot cannot measure. With the σ of the others every
    # reward is cut off at 0, and nothing is learnt.
    "playground/Go1JoystickFlatTerrain": {
        **_BRAX,
        "critic_fit": "trust_region",
        "rollout_length": 80,
        "hidden_sizes": (128, 128),
        "policy_observation": ("state",),
        "critic_observation": ("privileged_state",),
        "discount": 0.97,
        "initial_log_std": -1.5,
    },
    "playground/HopperHop": _CONTROL,
    "playground/ReacherHard": _CONTROL_SPARSE,
    "playground/WalkerWalk": _CONTROL,
    "xland/MiniGrid-Empty-5x5": _GRID,
}

PRESETS = {env: {**_COMMON, **fields} for env, fields in _PRESETS.items()}
"""Fields that differ from their defaults, by environment id."""


def preset(env: str, /, **overrides: Any) -> TRPOConfig:
    """Return the tuned settings for an environment.

    Args:
        env: The id of an environment that has a preset.
        **overrides: Fields of `TRPOConfig` to set otherwise; among them another `env`,
            such as the same one in a wrapper, to train with these settings.

    Returns:
        A `TRPOConfig`.

    Raises:
        UsageError: If there is no preset for `env` (the message names the nearest).
        UsageTypeError: If `env` is not an id.
        TypeError: If an override is not a field.

    Example:
        `preset("CartPole-v1", num_seeds=16, max_kl=0.02)`
    """
    if not isinstance(env, str):
        raise UsageTypeError(
            f"{describe_type(env)} is not the id of a preset; write preset(ID, "
            "env=...) for the settings of one, or TRPOConfig(env=...) for the defaults."
        )
    if env not in PRESETS:
        near = difflib.get_close_matches(env, PRESETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(
            f"no preset for {env!r}.{hint} There are presets for {', '.join(PRESETS)}; "
            f"for the defaults write TRPOConfig(env={env!r})."
        )
    fields = {"env": env, **PRESETS[env], **overrides}
    # Another update or fit than the preset's does not read some of its fields.
    chosen = [
        fields.get(name, getattr(TRPOConfig, name)) for name in ("update", "critic_fit")
    ]
    for name in set(ignored_fields(*chosen)) - overrides.keys():
        fields.pop(name, None)
    return TRPOConfig(**fields)
