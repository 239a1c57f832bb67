"""Generalised advantage estimation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from trpo_jax.errors import UsageError, UsageTypeError, describe_type
from trpo_jax.trust_region.checks import check_fraction


def generalized_advantages(
    rewards: Float[Array, "T *B"],
    values: Float[Array, "T *B"],
    next_values: Float[Array, "T *B"],
    terminated: Bool[Array, "T *B"],
    truncated: Bool[Array, "T *B"],
    *,
    discount: Float[Array, ""] | float,
    gae_lambda: Float[Array, ""] | float,
) -> Float[Array, "T *B"]:
    """Return the advantages Aₜ of T steps in B environments, time first.

    δₜ = rₜ + γ (1 − terminatedₜ) V(s′ₜ) − V(sₜ)
    Aₜ = δₜ + γλ (1 − doneₜ) Aₜ₊₁,  done = terminated or truncated,  A_T = 0

    s′ₜ is the state that the action led to, before any reset. A step bootstraps from it
    at truncation and at the end of the rollout, and from 0 only at termination. Nothing
    leaks from one episode into the one before.

    Args:
        rewards: rₜ, float[T, B].
        values: V(sₜ), float[T, B].
        next_values: V(s′ₜ), float[T, B].
        terminated: The episode terminated with this step, bool[T, B].
        truncated: The episode was truncated after this step, bool[T, B].
        discount: γ in [0, 1].
        gae_lambda: λ in [0, 1]; 0 is the one-step TD error, 1 the discounted return
            less the value.

    Returns:
        Advantages float[T, B], in units of return. `advantages + values` are the
        λ-returns that a critic is fitted to.

    Raises:
        UsageError: If the shapes differ, or γ or λ is not in [0, 1].
        UsageTypeError: If γ or λ is not a number, or flags are floats.

    Source: Schulman et al. 2016 (arXiv 1506.02438), equation 16; Pardo et al. 2018
    (arXiv 1712.00378) for time limits.
    """
    check_fraction(discount=discount, gae_lambda=gae_lambda)
    arrays = (rewards, values, next_values, terminated, truncated)
    shapes = [jnp.shape(array) for array in arrays]
    if len(set(shapes)) > 1:
        raise UsageError(
            "rewards, values, next_values, terminated and truncated have the shapes "
            f"{shapes}; write arrays of one shape [T, B]."
        )
    for name, flags in {"terminated": terminated, "truncated": truncated}.items():
        if jnp.issubdtype(jnp.result_type(flags), jnp.floating):
            raise UsageTypeError(
                f"{name} is {describe_type(flags)}; write {name}.astype(bool)."
            )
    errors = rewards + discount * jnp.where(terminated, 0, next_values) - values
    decays = discount * gae_lambda * jnp.where(terminated | truncated, 0.0, 1.0)
    return _accumulate(errors, decays.astype(errors.dtype))


def discounted_returns(
    rewards: Float[Array, "T *B"],
    done: Bool[Array, "T *B"],
    carried: Float[Array, "*B"],
    *,
    discount: Float[Array, ""] | float,
) -> tuple[Float[Array, "T *B"], Float[Array, "*B"]]:
    """Return the discounted sums of the rewards so far, by which rewards are scaled.

    Rₜ = rₜ + γ Rₜ₋₁, with R = 0 before the first step of an episode

    Args:
        rewards: rₜ, float[T, B].
        done: The episode ended with this step, either way, bool[T, B].
        carried: γ-discounted sum before the first step, as returned for the rollout
            before; zeros at first.
        discount: γ in [0, 1].

    Returns:
        Rₜ, float[T, B]; and R after the last step, 0 where the episode ended, float[B].

    Source: Engstrom et al. 2020 (arXiv 2005.12729), algorithm 1, which does not start
    anew at the end of an episode; OpenAI's baselines do.
    """
    # Forwards in time is backwards in reversed time.
    decays = discount * jnp.where(done, 0.0, 1.0).astype(rewards.dtype)
    first = rewards.at[0].add((discount * carried).astype(rewards.dtype))
    before = jnp.concatenate([jnp.zeros_like(decays[:1]), decays[:-1]])
    returns = _accumulate(first[::-1], before[::-1])[::-1]
    # A NaN would be carried for as long as the episode lasts.
    goes_on = ~done[-1] & jnp.isfinite(returns[-1])
    return returns, jnp.where(goes_on, returns[-1], 0).astype(carried.dtype)


def _accumulate(
    errors: Float[Array, "T *B"], decays: Float[Array, "T *B"]
) -> Float[Array, "T *B"]:
    """Return Aₜ = δₜ + cₜ Aₜ₊₁."""
    return jax.lax.platform_dependent(
        errors, decays, cpu=_accumulate_in_turn, default=_accumulate_in_log
    )


def _accumulate_in_turn(
    errors: Float[Array, "T *B"], decays: Float[Array, "T *B"]
) -> Float[Array, "T *B"]:
    """Return Aₜ = δₜ + cₜ Aₜ₊₁ in T steps, with the fewest operations."""

    def add(
        following: Float[Array, "*B"], step: tuple[Float[Array, "*B"], ...]
    ) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
        error, decay = step
        advantage = error + _decayed(decay, following)
        return advantage, advantage

    zeros = jnp.zeros_like(errors[0])
    return jax.lax.scan(add, zeros, (errors, decays), reverse=True)[1]


def _accumulate_in_log(
    errors: Float[Array, "T *B"], decays: Float[Array, "T *B"]
) -> Float[Array, "T *B"]:
    """The same in log₂ T steps: an accelerator waits for the launches of each."""

    def combine(
        later: tuple[Float[Array, "..."], ...], earlier: tuple[Float[Array, "..."], ...]
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        (following, later_decay), (error, decay) = later, earlier
        return error + _decayed(decay, following), decay * later_decay

    return jax.lax.associative_scan(combine, (errors, decays), reverse=True)[0]


def _decayed(
    decay: Float[Array, "..."], following: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Return decay · following. A product with 0 would let a NaN of it through."""
    return jnp.where(decay > 0, decay * following, 0)


def standardize(advantages: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """Return (A − mean A) / std A, so that updates do not depend on the reward's scale.

    Args:
        advantages: float[...], in units of return.

    Returns:
        Advantages of mean 0 and standard deviation 1; zeros if all are equal to
        rounding, whatever their size.
    """
    least, most = jnp.min(advantages), jnp.max(advantages)
    spread = most - least
    rounding = 4 * jnp.finfo(advantages.dtype).eps * jnp.maximum(-least, most)
    equal = jnp.isfinite(spread) & (spread <= rounding)
    # Not `jnp.std`, whose derivative at 0 is NaN, even where it is not selected.
    std = jnp.sqrt(jnp.where(equal, 1, jnp.var(advantages)))
    return jnp.where(equal, 0, (advantages - jnp.mean(advantages)) / std)
