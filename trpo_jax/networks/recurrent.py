"""Policies and critics that remember the episode so far, with a GRU."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from trpo_jax.networks.initializers import orthogonal
from trpo_jax.observations import Observation, masks_of, values_of
from trpo_jax.trust_region.distributions import Distribution


class RecurrentPolicy(nn.Module):
    """π(·|s₀ … sₜ): torso → GRU → head.

    hₜ = GRU(hₜ₋₁, torso(sₜ)), with h = 0 before the first step of an episode.

    Attributes:
        torso: A module, observations [N, …] ↦ features float[N, F].
        head: As in `Policy`.
        memory_size: H, the units of the GRU.

    Source: Cho et al. 2014 (arXiv 1406.1078) for the GRU.
    """

    torso: nn.Module
    head: nn.Module
    memory_size: int = 64

    def initial_memory(self, num_sequences: int) -> Float[Array, "B H"]:
        """Return the memory of `num_sequences` episodes before their first step."""
        return jnp.zeros((num_sequences, self.memory_size))

    @nn.compact
    def __call__(
        self,
        memory: Float[Array, "B H"],
        observations: Observation,
        starts: Bool[Array, "B T"],
    ) -> tuple[Float[Array, "B T H"], Distribution]:
        """Map B sequences of T observations to memories and distributions [B, T]."""
        remember = _Memory(self.torso, self.memory_size)
        memories = remember(memory, values_of(observations), starts)
        return memories, self.head(memories, *masks_of(observations))


class RecurrentValue(nn.Module):
    """V(s₀ … sₜ): torso → GRU → one number; hₜ as in `RecurrentPolicy`.

    Attributes:
        torso: A module, observations [N, …] ↦ features float[N, F].
        memory_size: H, the units of the GRU.
    """

    torso: nn.Module
    memory_size: int = 64

    def initial_memory(self, num_sequences: int) -> Float[Array, "B H"]:
        """Return the memory of `num_sequences` episodes before their first step."""
        return jnp.zeros((num_sequences, self.memory_size))

    @nn.compact
    def __call__(
        self,
        memory: Float[Array, "B H"],
        observations: Observation,
        starts: Bool[Array, "B T"],
    ) -> tuple[Float[Array, "B T H"], Float[Array, "B T"]]:
        """Map B sequences of T observations to memories and values [B, T]."""
        remember = _Memory(self.torso, self.memory_size)
        memories = remember(memory, values_of(observations), starts)
        return memories, nn.Dense(1, kernel_init=orthogonal())(memories)[..., 0]


class _Memory(nn.Module):
    """Torso on all observations at once, then a GRU along each sequence."""

    torso: nn.Module
    size: int

    @nn.compact
    def __call__(
        self,
        memory: Float[Array, "B H"],
        observations: Observation,
        starts: Bool[Array, "B T"],
    ) -> Float[Array, "B T H"]:
        steps = jax.tree.map(
            lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), observations
        )
        features = self.torso(steps).reshape(*starts.shape, -1)
        along_time = nn.scan(
            _ForgetfulGRU,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        _, memories = along_time(self.size)(memory, (features, starts))
        return memories


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
