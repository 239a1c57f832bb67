"""Policies and critics that remember the episode so far."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from trpo_jax.errors import UsageError
from trpo_jax.networks.initializers import ScaledInitializer, orthogonal
from trpo_jax.networks.lru import LRU
from trpo_jax.observations import Observation, masks_of, values_of
from trpo_jax.trust_region.distributions import Distribution

Memory = Literal["gru", "lru"]


class RecurrentPolicy(nn.Module):
    """π(·|s₀ … sₜ): torso → memory → head.

    hₜ = GRU(hₜ₋₁, torso(sₜ)), with h = 0 before the first step of an episode; or the
    recurrence of `LRU`.

    Attributes:
        torso: A module, observations [N, …] ↦ features float[N, F].
        head: As in `Policy`.
        memory_size: H, the units of the memory. It has M = H numbers as a GRU, and
            M = 2H as an LRU, whose units are complex.
        memory: "gru", or "lru" for a linear recurrent unit.

    Source: Cho et al. 2014 (arXiv 1406.1078) for the GRU.
    """

    torso: nn.Module
    head: nn.Module
    memory_size: int = 64
    memory: Memory = "gru"

    def initial_memory(self, num_sequences: int) -> Float[Array, "B M"]:
        """Return the memory of `num_sequences` episodes before their first step."""
        return _initial_memory(self.memory, self.memory_size, num_sequences)

    @nn.compact
    def __call__(
        self,
        memory: Float[Array, "B M"],
        observations: Observation,
        starts: Bool[Array, "B T"],
    ) -> tuple[Float[Array, "B T M"], Distribution]:
        """Map B sequences of T observations to memories and distributions [B, T].

        Raises:
            UsageError: If there is no such `memory`.
        """
        remember = _Memory(self.torso, self.memory_size, self.memory)
        memories, features = remember(memory, values_of(observations), starts)
        return memories, self.head(features, *masks_of(observations))


class RecurrentValue(nn.Module):
    """V(s₀ … sₜ): torso → memory → one number; hₜ as in `RecurrentPolicy`.

    Attributes:
        torso: A module, observations [N, …] ↦ features float[N, F].
        memory_size: As in `RecurrentPolicy`.
        memory: As in `RecurrentPolicy`.
        initializer: Scale of a layer ↦ initialiser of its weights, for the last layer.
    """

    torso: nn.Module
    memory_size: int = 64
    memory: Memory = "gru"
    initializer: ScaledInitializer = orthogonal

    def initial_memory(self, num_sequences: int) -> Float[Array, "B M"]:
        """Return the memory of `num_sequences` episodes before their first step."""
        return _initial_memory(self.memory, self.memory_size, num_sequences)

    @nn.compact
    def __call__(
        self,
        memory: Float[Array, "B M"],
        observations: Observation,
        starts: Bool[Array, "B T"],
    ) -> tuple[Float[Array, "B T M"], Float[Array, "B T"]]:
        """Map B sequences of T observations to memories and values [B, T].

        Raises:
            UsageError: As `RecurrentPolicy`.
        """
        remember = _Memory(self.torso, self.memory_size, self.memory)
        memories, features = remember(memory, values_of(observations), starts)
        layer = nn.Dense(1, kernel_init=self.initializer(1.0))
        return memories, layer(features)[..., 0]


def _initial_memory(
    memory: Memory, size: int, num_sequences: int
) -> Float[Array, "B M"]:
    numbers = 2 if memory == "lru" else 1  # of each unit: an LRU's are complex
    return jnp.zeros((num_sequences, numbers * size))


class _Memory(nn.Module):
    """Torso on all observations at once, then the memory along each sequence."""

    torso: nn.Module
    size: int
    memory: Memory

    @nn.compact
    def __call__(
        self,
        memory: Float[Array, "B M"],
        observations: Observation,
        starts: Bool[Array, "B T"],
    ) -> tuple[Float[Array, "B T M"], Float[Array, "B T H"]]:
        steps = jax.tree.map(lambda leaf: jax.lax.collapse(leaf, 0, 2), observations)
        features = self.torso(steps).reshape(*starts.shape, -1)
        if self.memory == "lru":
            return LRU(self.size)(memory, features, starts)
        if self.memory != "gru":
            raise UsageError(f"memory={self.memory!r}; write 'gru' or 'lru'.")
        along_time = nn.scan(
            _ForgetfulGRU,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        _, memories = along_time(self.size)(memory, (features, starts))
        return memories, memories


class _ForgetfulGRU(nn.Module):
    """A GRU whose memory is emptied where an episode starts."""

    size: int

    @nn.compact
    def __call__(
        self,
        memory: Float[Array, "B H"],
        inputs: tuple[Float[Array, "B F"], Bool[Array, " B"]],
    ) -> tuple[Float[Array, "B H"], Float[Array, "B H"]]:
        features, start = inputs
        empty = jnp.zeros_like(memory)  # as every initial memory here is
        memory = jnp.where(start[:, None], empty, memory)
        # Flax's own orthogonal initialiser can deadlock under vmap, see `orthogonal`.
        cell = nn.GRUCell(self.size, recurrent_kernel_init=orthogonal())
        return cell(memory, features)
