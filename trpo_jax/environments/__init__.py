"""Environments: one protocol, and one adapter for each suite."""

from trpo_jax.environments.brax import BraxEnvironment, make_brax
from trpo_jax.environments.costs import CostEnvironment
from trpo_jax.environments.craftax import CraftaxEnvironment, make_craftax
from trpo_jax.environments.crax import make_crax
from trpo_jax.environments.domains import randomize_domain
from trpo_jax.environments.drawing import DRAWN_BY_GYMNAX
from trpo_jax.environments.gymnasium import GymnasiumEnvironment, make_gymnasium
from trpo_jax.environments.gymnax import GymnaxEnvironment, make_gymnax
from trpo_jax.environments.jumanji import JumanjiEnvironment, make_jumanji
from trpo_jax.environments.making import SUITES, make_environment
from trpo_jax.environments.navix import NavixEnvironment, make_navix
from trpo_jax.environments.playground import make_playground
from trpo_jax.environments.protocol import (
    ActionSpace,
    Box,
    Discrete,
    Drawable,
    Environment,
    MultiDiscrete,
    TimeStep,
)
from trpo_jax.environments.safe import make_safe
from trpo_jax.environments.squashed import SquashedActions, squash_actions
from trpo_jax.environments.target_gym import make_target_gym
from trpo_jax.environments.toll_grid import TollGrid
from trpo_jax.environments.varied import VariedEnvironment
from trpo_jax.environments.xland import XLandEnvironment, make_xland
from trpo_jax.observations import MaskedObservation

__all__ = [
    "DRAWN_BY_GYMNAX",
    "ActionSpace",
    "Box",
    "BraxEnvironment",
    "CostEnvironment",
    "CraftaxEnvironment",
    "Discrete",
    "Drawable",
    "Environment",
    "GymnasiumEnvironment",
    "GymnaxEnvironment",
    "JumanjiEnvironment",
    "MaskedObservation",
    "MultiDiscrete",
    "NavixEnvironment",
    "SquashedActions",
    "TimeStep",
    "TollGrid",
    "VariedEnvironment",
    "XLandEnvironment",
    "make_brax",
    "make_craftax",
    "make_crax",
    "make_environment",
    "make_gymnasium",
    "make_gymnax",
    "make_jumanji",
    "make_navix",
    "make_playground",
    "make_safe",
    "make_target_gym",
    "make_xland",
    "randomize_domain",
    "squash_actions",
]

# Here: these tasks wrap environments of the other suites.
SUITES["safe"] = make_safe
