"""Linear recurrent unit: a memory that a parallel scan computes for all steps."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Complex, Float, Key

from trpo_jax.networks.initializers import orthogonal

# Slow modes, as in the paper's tasks with long sequences: the slowest forget in a
# thousand steps, the fastest in ten.
_RADII = (0.9, 0.999)
_LARGEST_PHASE = math.pi / 10


class LRU(nn.Module):
    """Linear recurrent unit, its state complex, with a nonlinear output.

    hₜ = λ ⊙ hₜ₋₁ + γ ⊙ B xₜ,  yₜ = tanh(Re(C hₜ) + D xₜ + d)

    with λ = exp(−exp ν + i exp θ), so that |λ| < 1 for all parameters, and h = 0 before
    the first step of an episode. γ starts at √(1 − |λ|²), which gives hₜ the scale of
    B xₜ, and is learned by its logarithm.

    The paper follows the recurrence with a gated layer of its own; here D is a full
    matrix and one tanh follows.

    Attributes:
        size: H, the length of h (complex) and of y (real).

    Source: Orvieto et al. 2023 (arXiv 2303.06349).
    """

    size: int

    @nn.compact
    def __call__(
        self,
        memory: Float[Array, "B M"],
        features: Float[Array, "B T F"],
        starts: Bool[Array, "B T"],
    ) -> tuple[Float[Array, "B T M"], Float[Array, "B T H"]]:
        """Map features to the memory after each step and y.

        Args:
            memory: Real and imaginary parts of h before the first step, M = 2H.
            features: x.
            starts: Which steps begin an episode.
        """
        nu = self.param("nu", _log_decay, (self.size,))
        theta = self.param("theta", _log_phase, (self.size,))
        # Only its initial value follows λ.
        log_gamma = self.param("log_gamma", lambda _: _log_norm(nu))
        decay = jnp.exp(jax.lax.complex(-jnp.exp(nu), jnp.exp(theta)))
        project = nn.Dense(2 * self.size, use_bias=False, kernel_init=orthogonal())
        inputs = jnp.exp(log_gamma) * _complex(project(features))
        states = linear_recurrence(decay, _complex(memory), inputs, starts)
        memories = jnp.concatenate([states.real, states.imag], axis=-1)
        # Re(C h) + D x is one matrix on the parts of h and x.
        read = nn.Dense(self.size, kernel_init=orthogonal())
        return memories, nn.tanh(read(jnp.concatenate([memories, features], axis=-1)))


@jax.custom_jvp
def linear_recurrence(
    decay: Complex[Array, " H"],
    memory: Complex[Array, "B H"],
    inputs: Complex[Array, "B T H"],
    starts: Bool[Array, "B T"],
) -> Complex[Array, "B T H"]:
    """Return hₜ = λ ⊙ hₜ₋₁ + uₜ for all t, with hₜ₋₁ = 0 where an episode starts.

    Args:
        decay: λ.
        memory: h before the first step.
        inputs: u.
        starts: Which steps begin an episode.

    Source: Blelloch 1990, "Prefix sums and their applications", for the scan; Lu et al.
    2023 (arXiv 2303.03982) for resets inside it.
    """
    factors = jnp.where(starts[..., None], 0, decay)
    remembered = _scaled(factors[:, :1], memory[:, None])
    inputs = jnp.concatenate([inputs[:, :1] + remembered, inputs[:, 1:]], axis=1)

    def combine(
        earlier: tuple[Array, Array], later: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        factor, state = later
        return factor * earlier[0], _scaled(factor, earlier[1]) + state

    _, states = jax.lax.associative_scan(combine, (factors, inputs), axis=1)
    return states


# The derivative is the recurrence again, driven by dλ hₜ₋₁ + duₜ. That of the scan
# would carry the derivatives of products of λ as well: ten Gauss–Newton products took
# 1.15 (100 steps) to 1.9 times (800 steps) as long.
@linear_recurrence.defjvp
def _linear_recurrence_jvp(
    primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Complex[Array, "B T H"], Complex[Array, "B T H"]]:
    decay, memory, _, starts = primals
    decay_change, memory_change, inputs_change, _ = tangents
    states = linear_recurrence(*primals)
    before = jnp.concatenate([memory[:, None], states[:, :-1]], axis=1)
    driven = jnp.where(starts[..., None], 0, decay_change * before) + inputs_change
    return states, linear_recurrence(decay, memory_change, driven, starts)


def _scaled(factor: Array, state: Array) -> Array:
    """Return the product, 0 where the factor is: 0 · NaN would not forget a NaN."""
    return jnp.where(factor == 0, 0, factor * state)


def _complex(parts: Float[Array, "*N M"]) -> Complex[Array, "*N H"]:
    return jax.lax.complex(*jnp.split(parts, 2, axis=-1))


def _log_decay(
    key: Key[Array, ""], shape: Sequence[int], dtype: DTypeLike = jnp.float32
) -> Float[Array, " H"]:
    """Return ν with λ uniformly distributed over a ring."""
    low, high = (radius**2 for radius in _RADII)
    squares = jax.random.uniform(key, shape, dtype, low, high)
    return jnp.log(-0.5 * jnp.log(squares))


def _log_phase(
    key: Key[Array, ""], shape: Sequence[int], dtype: DTypeLike = jnp.float32
) -> Float[Array, " H"]:
    """Return θ with uniformly distributed phases."""
    # `uniform` has 0, whose logarithm is infinite, but not 1.
    return jnp.log(_LARGEST_PHASE * (1 - jax.random.uniform(key, shape, dtype)))


def _log_norm(nu: Float[Array, " H"]) -> Float[Array, " H"]:
    """Return log √(1 − |λ|²)."""
    return 0.5 * jnp.log(-jnp.expm1(-2 * jnp.exp(nu)))
