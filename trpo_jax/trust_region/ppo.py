"""Proximal policy optimisation: epochs of first-order steps on a bounded objective."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from trpo_jax.trust_region.checks import check_not_negative, check_positive
from trpo_jax.trust_region.distributions import Distribution
from trpo_jax.trust_region.evidence import UpdateInfo, UpdateStatus, certify
from trpo_jax.trust_region.first_order import minimize_by_minibatches
from trpo_jax.trust_region.fisher import PolicyFn
from trpo_jax.trust_region.objective import surrogate_terms
from trpo_jax.trust_region.problem import Batch, check_batch, surrogate_with_entropy


def clipped_update(
    policy_fn: PolicyFn,
    params: PyTree,
    batch: Batch,
    optimizer: optax.GradientTransformation,
    optimizer_state: optax.OptState,
    key: Key[Array, ""],
    *,
    clip_ratio: Float[Array, ""] | float = 0.2,
    entropy_coefficient: Float[Array, ""] | float = 0.0,
    epochs: int = 10,
    num_minibatches: int = 4,
    max_kl: Float[Array, ""] | float = 0.01,
    micro_batch_size: int | None = None,
) -> tuple[PyTree, optax.OptState, UpdateInfo]:
    """Maximise the clipped surrogate of proximal policy optimisation (PPO).

    max_θ mean[min(ρ A, clip(ρ, 1 − ε, 1 + ε) A)] + c · mean_s H(π_θ(·|s)),
    ρ = π_θ(a|s) / π_old(a|s)

    Args:
        policy_fn: (params, observations [N, …]) ↦ `Distribution` over actions.
        params: θ_old.
        batch: The transitions, see `Batch`.
        optimizer: An Optax optimiser, which minimises.
        optimizer_state: Its state.
        key: Randomness of the minibatches; consumed.
        clip_ratio: ε > 0.
        entropy_coefficient: c ≥ 0.
        epochs: Passes over the batch.
        num_minibatches: Gradient steps in each pass; must divide the rows.
        max_kl: δ, which bounds nothing here: a yardstick for the evidence.
        micro_batch_size: Rows that are compared at a time for the evidence.

    Returns:
        The new parameters, the optimiser's new state, and the `UpdateInfo`, whose L is
        the surrogate without clipping. If they are not finite, parameters and optimiser
        state are the old ones.

    Raises:
        UsageTypeError: As `trust_region_update`.
        UsageError: As `trust_region_update`, or if `num_minibatches` does not divide.

    Source: Schulman et al. 2017 (arXiv 1707.06347), equation 7.
    """
    check_positive(clip_ratio=clip_ratio)

    def loss_fn(params: PyTree, batch: Batch) -> Float[Array, ""]:
        policy = policy_fn(params, batch.observations)
        log_probs = policy.log_prob(batch.actions)
        bounded = clipped_terms(
            log_probs, batch.log_probs, batch.advantages, clip_ratio=clip_ratio
        )
        return -jnp.mean(bounded + entropy_coefficient * policy.entropy())

    return _descend(
        policy_fn,
        params,
        batch,
        loss_fn,
        optimizer,
        optimizer_state,
        key,
        entropy_coefficient=entropy_coefficient,
        epochs=epochs,
        num_minibatches=num_minibatches,
        max_kl=max_kl,
        micro_batch_size=micro_batch_size,
    )


def clipped_terms(
    log_probs: Float[Array, "*N"],
    old_log_probs: Float[Array, "*N"],
    advantages: Float[Array, "*N"],
    *,
    clip_ratio: Float[Array, ""] | float,
) -> Float[Array, "*N"]:
    """Return min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) for each action.

    ρ = π(a|s) / π_old(a|s)

    Args:
        log_probs: log π(a|s), float[N], or of any shape.
        old_log_probs: log π_old(a|s), likewise.
        advantages: A(s, a), likewise.
        clip_ratio: ε > 0.

    Source: Schulman et al. 2017 (arXiv 1707.06347), equation 7.
    """
    terms = surrogate_terms(log_probs, old_log_probs, advantages)
    ratio = jnp.exp(log_probs - old_log_probs)
    clipped = jnp.clip(ratio, 1 - clip_ratio, 1 + clip_ratio)
    return jnp.minimum(terms, clipped * advantages)


def kl_penalized_update(
    policy_fn: PolicyFn,
    params: PyTree,
    batch: Batch,
    optimizer: optax.GradientTransformation,
    optimizer_state: optax.OptState,
    kl_coefficient: Float[Array, ""] | float,
    key: Key[Array, ""],
    *,
    max_kl: Float[Array, ""] | float = 0.01,
    entropy_coefficient: Float[Array, ""] | float = 0.0,
    epochs: int = 10,
    num_minibatches: int = 4,
    micro_batch_size: int | None = None,
) -> tuple[PyTree, optax.OptState, Float[Array, ""], UpdateInfo]:
    """Maximise the surrogate with a penalty on the KL, whose weight adapts.

    max_θ mean[ρ A] − β · mean_s KL(π_old ‖ π_θ) + c · mean_s H(π_θ(·|s))

    Then β is halved if the KL is below δ / 1.5, and doubled if it is above 1.5 δ.

    Args:
        policy_fn: (params, observations [N, …]) ↦ `Distribution` over actions.
        params: θ_old.
        batch: The transitions, see `Batch`.
        optimizer: An Optax optimiser, which minimises.
        optimizer_state: Its state.
        kl_coefficient: β > 0.
        key: Randomness of the minibatches; consumed.
        max_kl: δ, the target of the KL, in nats.
        entropy_coefficient: c ≥ 0.
        epochs: Passes over the batch.
        num_minibatches: Gradient steps in each pass; must divide the rows.
        micro_batch_size: Rows that are compared at a time for the evidence.

    Returns:
        The new parameters, the optimiser's new state, the next β, and the `UpdateInfo`.
        If they are not finite, parameters, optimiser state and β are the old ones.

    Raises:
        UsageTypeError: As `trust_region_update`.
        UsageError: As `trust_region_update`, or if `num_minibatches` does not divide.

    Source: Schulman et al. 2017 (arXiv 1707.06347), section 4.
    """
    check_positive(max_kl=max_kl, kl_coefficient=kl_coefficient)
    # Strongly typed, as it is returned: a weak type would compile a second call again.
    kl_coefficient = jnp.asarray(kl_coefficient, jnp.result_type(float, kl_coefficient))
    objective_fn = surrogate_with_entropy(entropy_coefficient)

    def loss_fn(new: PyTree, batch: Batch) -> Float[Array, ""]:
        policy = policy_fn(new, batch.observations)
        # Not cut from one evaluation of all rows: a leaf that all states share, such
        # as log σ, has no rows.
        old: Distribution = policy_fn(params, batch.observations)
        kl = jnp.mean(old.kl_divergence(policy))
        return kl_coefficient * kl - jnp.mean(objective_fn(policy, batch))

    params, optimizer_state, info = _descend(
        policy_fn,
        params,
        batch,
        loss_fn,
        optimizer,
        optimizer_state,
        key,
        entropy_coefficient=entropy_coefficient,
        epochs=epochs,
        num_minibatches=num_minibatches,
        max_kl=max_kl,
        micro_batch_size=micro_batch_size,
    )
    adapted = next_kl_coefficient(kl_coefficient, info.kl, max_kl=max_kl)
    accepted = info.status == UpdateStatus.ACCEPTED
    kl_coefficient = jnp.where(accepted, adapted, kl_coefficient)
    return params, optimizer_state, kl_coefficient, info


def next_kl_coefficient(
    kl_coefficient: Float[Array, ""],
    kl: Float[Array, ""],
    *,
    max_kl: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """Return the next weight of the KL penalty.

    β / 2 if KL < δ / 1.5;  2 β if KL > 1.5 δ;  β in between

    Args:
        kl_coefficient: β > 0, scalar.
        kl: The KL of the last update, in nats.
        max_kl: δ, its target.

    Source: Schulman et al. 2017 (arXiv 1707.06347), section 4.
    """
    factor = jnp.where(kl < max_kl / 1.5, 0.5, jnp.where(kl > 1.5 * max_kl, 2, 1))
    # Beyond these limits the penalty is nothing or all of the objective; and a β that
    # has reached 0 or infinity would stay there.
    return jnp.clip(kl_coefficient * factor, 1e-6, 1e6).astype(kl_coefficient.dtype)


def _descend(
    policy_fn: PolicyFn,
    params: PyTree,
    batch: Batch,
    loss_fn: Callable[[PyTree, Any], Float[Array, ""]],
    optimizer: optax.GradientTransformation,
    optimizer_state: optax.OptState,
    key: Key[Array, ""],
    *,
    entropy_coefficient: Float[Array, ""] | float,
    epochs: int,
    num_minibatches: int,
    max_kl: Float[Array, ""] | float,
    micro_batch_size: int | None,
) -> tuple[PyTree, optax.OptState, UpdateInfo]:
    """Minimise a loss, and describe the policy that it leads to."""
    check_not_negative(entropy_coefficient=entropy_coefficient)
    check_batch(policy_fn, params, batch)
    end = minimize_by_minibatches(
        loss_fn,
        params,
        optimizer,
        optimizer_state,
        batch,
        key,
        epochs=epochs,
        num_minibatches=num_minibatches,
    )
    info = certify(
        policy_fn,
        params,
        end.params,
        batch,
        max_kl=max_kl,
        entropy_coefficient=entropy_coefficient,
        micro_batch_size=micro_batch_size,
        finite=end.finite,
    )
    params, optimizer_state = optax.tree.where(
        info.status == UpdateStatus.ACCEPTED,
        (end.params, end.optimizer_state),
        (params, optimizer_state),
    )
    return params, optimizer_state, info
