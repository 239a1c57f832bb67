"""Config fields that a state was made from."""

import dataclasses
from typing import Any

import jax
import numpy as np

from trpo_jax.errors import differing
from trpo_jax.tracing import holds_tracers
from trpo_jax.training.components import make_components
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.hyperparameters import Hyperparameters

# Fields that the content of a state depends on, beside the floats. Objects (a policy,
# an optimiser) are left out: two that are built alike need not be equal. Their shapes
# are compared.
_FIELDS = (
    "num_envs",
    "hidden_sizes",
    "activation",
    "channels",
    "convolution_stride",
    "memory_size",
    "memory",
    "policy_observation",
    "critic_observation",
    "action_distribution",
    "update",
    "critic_fit",
    "normalize_observations",
    "normalize_returns",
    "scale_rewards",
)

NETWORK_FIELDS = tuple(
    name for name in _FIELDS if name not in ("num_envs", "update", "critic_fit")
)
"""Fields that parameters and normalisers depend on."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Origin:
    """Config fields that a state was made from.

    Static, so that `step` can compare them with its config under `jit`, where the
    state's own numbers are unknown.
    """

    fields: tuple[Any, ...]
    floats: Hyperparameters
    action_space: str

    @classmethod
    def of(
        cls, config: TRPOConfig, hyperparameters: Hyperparameters | None = None
    ) -> "Origin":
        """Return the fields of a config that its states depend on.

        Args:
            config: Configuration of the run.
            hyperparameters: The state's, where they are not those of the config. Traced
                ones are unknown: then those of the config stand for them.
        """
        floats = hyperparameters or config.hyperparameters
        if any(isinstance(value, jax.core.Tracer) for value in floats):
            floats = config.hyperparameters
        # As float32, which the state has.
        rounded = (float(str(np.float32(value))) for value in floats)
        fields = tuple(getattr(config, name) for name in _FIELDS)
        space = make_components(config).environment.action_space
        # Bounds that are traced are unknown.
        named = type(space).__name__ if holds_tracers(space) else str(space)
        return cls(fields, Hyperparameters(*rounded), named)

    def with_floats_of(self, other: "Origin") -> "Origin":
        """Return these fields with the floats of another."""
        return dataclasses.replace(self, floats=other.floats)

    def differences(self, other: "Origin") -> list[str]:
        """Return the fields that differ, with the values of both."""
        return differing(self._named(), other._named())

    def network_differences(self, other: "Origin") -> list[str]:
        """Return which `NETWORK_FIELDS`, and action spaces, differ, with both."""
        left, right = (
            {"action_space": origin.action_space}
            | {name: origin._named()[name] for name in NETWORK_FIELDS}
            for origin in (self, other)
        )
        return differing(left, right, str)

    def _named(self) -> dict[str, Any]:
        return dict(zip(_FIELDS, self.fields, strict=True)) | self.floats._asdict()
