"""A trained policy, acting."""

from typing import Literal

import jax
from jaxtyping import Array, Bool, Key, Num, PyTree

from trpo_jax.errors import UsageError
from trpo_jax.networks import Observation
from trpo_jax.training.batching import BoundNetwork
from trpo_jax.training.components import make_components
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.state import PRECISION, TrainState, observe
from trpo_jax.trust_region import Distribution

Actions = Literal["mode", "sample"]
"""The most probable action, or one drawn from the policy."""


def initial_memory(config: TRPOConfig, num_envs: int) -> PyTree:
    """Return what the policy remembers before an episode, [B, …]; () if nothing."""
    return make_components(config).policy.initial_memory(num_envs)


def act(
    config: TRPOConfig,
    state: TrainState,
    key: Key[Array, ""],
    memory: PyTree,
    observations: Observation,
    starts: Bool[Array, " B"],
    actions: Actions = "mode",
) -> tuple[PyTree, Num[Array, "B ..."]]:
    """Choose an action in each of B environments, as the policy did in training.

    Args:
        config: The run.
        state: Its state, of one seed.
        key: A typed key; consumed where actions are drawn.
        memory: What the policy remembers, [B, …]; `initial_memory` to begin with.
        observations: As the environments gave them, float32[B, …] or a
            `MaskedObservation` of such; normalised here if they were in training.
        starts: Which of them begin an episode, bool[B]: there, the memory is emptied.
        actions: The most probable action, or one drawn from the policy.

    Returns:
        The memory after the step, and the policy's own actions, [B, …]. The
        environment in `make_components(config)` takes them as they are; any other has
        to clip them to its bounds or, where `config.action_distribution` is
        "tanh_gaussian", to squash them (`SquashedActions`).
    """
    policy = BoundNetwork(make_components(config).policy, state.params)

    def choose(distribution: Distribution) -> Array:
        return distribution.sample(key) if actions == "sample" else distribution.mode()

    seen = observe(state, observations)
    with jax.default_matmul_precision(PRECISION):
        return policy.step(memory, seen, starts, choose)


def check_actions(actions: str) -> None:
    """Raise ValueError unless `actions` is one of the two."""
    if actions not in ("mode", "sample"):
        raise UsageError(f"actions={actions!r}; write 'mode' or 'sample'.")
