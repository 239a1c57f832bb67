"""A trust region in every state: policies projected onto it, and their update."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from trpo_jax.errors import UsageTypeError, describe_type
from trpo_jax.trust_region.backtracking import (
    Candidate,
    LineSearchResult,
    line_search,
)
from trpo_jax.trust_region.checks import check_not_negative, check_positive
from trpo_jax.trust_region.distributions import Distribution
from trpo_jax.trust_region.evidence import UpdateInfo, UpdateStatus, describe
from trpo_jax.trust_region.first_order import minimize_by_minibatches
from trpo_jax.trust_region.fisher import PolicyFn
from trpo_jax.trust_region.flat import move
from trpo_jax.trust_region.problem import (
    Batch,
    OldPolicy,
    Problem,
    check_batch,
    surrogate_with_entropy,
)


def projection_update(
    policy_fn: PolicyFn,
    params: PyTree,
    batch: Batch,
    optimizer: optax.GradientTransformation,
    optimizer_state: optax.OptState,
    key: Key[Array, ""],
    *,
    max_kl: Float[Array, ""] | float = 0.01,
    entropy_coefficient: Float[Array, ""] | float = 0.0,
    regression_coefficient: Float[Array, ""] | float = 10.0,
    epochs: int = 10,
    num_minibatches: int = 4,
    micro_batch_size: int | None = None,
) -> tuple[PyTree, optax.OptState, UpdateInfo]:
    """Maximise the surrogate of a policy that is projected in every state.

    max_θ mean[ρ̃ A] + c · mean_s H(π̃(·|s)) − α · mean_s KL(π̃ ‖ π_θ),
    π̃ = `project`(π_old, π_θ),  ρ̃ = π̃(a|s) / π_old(a|s)

    with π̃ a constant in the last term, which keeps the parameters' own policy near the
    projected one. Then θ is drawn back towards θ_old until that policy, without any
    projection, is in the trust region in every state of the batch:

    KL(π_old(·|s) ‖ π_θ(·|s)) ≤ δ for all s

    Args:
        policy_fn: (params, observations [N, …]) ↦ `Distribution` over actions, with a
            method `interpolate`, as all of this package have.
        params: θ_old.
        batch: The transitions, see `Batch`.
        optimizer: An Optax optimiser, which minimises.
        optimizer_state: Its state.
        key: Randomness of the minibatches; consumed.
        max_kl: δ, the bound on the KL in each state, in nats.
        entropy_coefficient: c ≥ 0.
        regression_coefficient: α ≥ 0. On CartPole and Pendulum 1, 10 and 100 learn
            alike.
        epochs: Passes over the batch.
        num_minibatches: Gradient steps in each pass; must divide the rows.
        micro_batch_size: Rows of a candidate that are compared at a time.

    Returns:
        The new parameters, the optimiser's new state, and the `UpdateInfo`, whose L is
        that of the parameters' own policy and whose fraction is at most 1. If no
        fraction improves L within the trust region, parameters and optimiser state are
        the old ones, bit for bit.

    Raises:
        UsageTypeError: As `trust_region_update`, or if distributions cannot be
            interpolated.
        UsageError: As `trust_region_update`, or if `num_minibatches` does not divide.

    Source: Otto et al. 2021 (arXiv 2101.09207), section 4, with the KL of the package.
    There the projected policy acts, which has to carry all old policies along; the
    search, after which the parameters' own policy can act, is ours.
    """
    check_positive(max_kl=max_kl)
    check_not_negative(
        entropy_coefficient=entropy_coefficient,
        regression_coefficient=regression_coefficient,
    )
    check_batch(policy_fn, params, batch)
    objective_fn = surrogate_with_entropy(entropy_coefficient)

    def loss_fn(new: PyTree, batch: Batch) -> Float[Array, ""]:
        policy = policy_fn(new, batch.observations)
        # Again for each minibatch: leaves that all states share cannot be cut.
        old: Distribution = policy_fn(params, batch.observations)
        projected = project(old, policy, max_kl=max_kl)
        excess = jax.lax.stop_gradient(projected).kl_divergence(policy)
        objective = objective_fn(projected, batch) - regression_coefficient * excess
        return -jnp.mean(objective)

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
    problem = Problem(policy_fn, objective_fn, batch, micro_batch_size=micro_batch_size)
    step = optax.tree.sub(end.params, params)
    # The gradient is not used, and is removed from the compiled program.
    old, _ = problem.value_and_gradient(params)
    search = line_search(
        lambda fraction: _in_every_state(problem, old, fraction, step),
        surrogate_old=old.value,
        max_kl=max_kl,
    )
    info = _evidence(old, search, max_kl, end.finite)
    params, optimizer_state = optax.tree.where(
        search.accepted,
        (move(params, search.fraction, step), end.optimizer_state),
        (params, optimizer_state),
    )
    return params, optimizer_state, info


def _in_every_state(
    problem: Problem, old: OldPolicy, fraction: Float[Array, ""], step: PyTree
) -> Candidate:
    """Return a candidate whose KL is the largest over states, not the mean."""
    # The search lengthens a step that is well inside the trust region. One of an
    # optimiser that has converged there is long enough: it gets the same step again,
    # which is no better, and ends.
    fraction = jnp.minimum(fraction, 1)
    candidate = problem.candidate(move(old.theta, fraction, step), old)
    return candidate._replace(kl=jnp.max(candidate.evidence.kl))


def _evidence(
    old: OldPolicy,
    search: LineSearchResult,
    max_kl: Float[Array, ""] | float,
    descended: Bool[Array, ""],
) -> UpdateInfo:
    candidate = search.candidate
    finite = candidate.finite & jnp.isfinite(candidate.surrogate + candidate.kl)
    finite &= descended
    reasons = [
        (search.accepted, UpdateStatus.ACCEPTED),
        (~(finite & jnp.isfinite(max_kl)), UpdateStatus.NON_FINITE),
        (candidate.kl > max_kl, UpdateStatus.KL_EXCEEDED),
    ]
    conditions, values = zip(*reasons, strict=True)
    info = describe(
        old,
        candidate._replace(kl=jnp.mean(candidate.evidence.kl)),
        search.accepted,
        jnp.select(conditions, values, UpdateStatus.NO_IMPROVEMENT),
        max_kl,
    )
    return info._replace(
        accepted_fraction=search.fraction, evaluations=search.evaluations
    )


def project(
    old: Distribution, new: Distribution, *, max_kl: Float[Array, ""] | float
) -> Any:
    """Return the distribution nearest to the new one in a ball around the old one.

    q* = argmin_q KL(π_new ‖ q)  subject to  KL(π_old ‖ q) ≤ δ,  in each state

    The Lagrangian with multiplier λ is −(1 + λ) E_m[log q] up to constants, m the
    mixture (1 − η) π_old + η π_new with η = 1/(1 + λ): q* is the maximum-likelihood fit
    to m, which in an exponential family has the moments of m. Where KL(π_old ‖ π_new)
    ≤ δ, λ = 0 and q* = π_new. Elsewhere KL(π_old ‖ q*) = δ, which has one solution: the
    divergence of a Lagrangian's minimum falls with λ, and so it grows with η.

    Differentiable in both distributions and δ, by the implicit function theorem.

    Args:
        old: π_old, the middle of the ball, batch [N].
        new: π_new, of the same kind, batch [N].
        max_kl: δ > 0, the radius of the ball, in nats.

    Returns:
        q*, batch [N]: `old.interpolate(new, η)`. Where π_new is in the ball its
        parameters are those of π_new, bit for bit.

    Raises:
        UsageTypeError: If `old` cannot be interpolated.
        UsageError: If `max_kl` is not positive.

    Source: Otto et al. 2021 (arXiv 2101.09207), section 4, which projects by the
    divergence from q to the old policy.
    """
    check_positive(max_kl=max_kl)
    if not hasattr(old, "interpolate"):
        raise UsageTypeError(
            f"the policy returned {describe_type(old)}, which cannot be projected; "
            "give it a method interpolate(self, other, weight) that returns the "
            "distribution with the moments (1 − weight) · its own + weight · those of "
            "other, as Categorical has."
        )
    max_kl = jnp.asarray(max_kl)
    weight = _largest_weight(*jax.lax.stop_gradient((old, new, max_kl)))
    # Where the constraint is not met with equality, η is a constant.
    bound = (weight > 0) & (weight < 1)

    def residual(unknown: Float[Array, "*N"]) -> Float[Array, "*N"]:
        kl = old.kl_divergence(old.interpolate(new, unknown))
        return jnp.where(bound, kl - max_kl, unknown - weight)

    # It has been found. What is left to do is to differentiate it; the Jacobian of one
    # equation for each state is diagonal.
    weight = jax.lax.custom_root(
        residual,
        weight,
        lambda _, found: found,
        lambda jacobian, rhs: rhs / jacobian(jnp.ones_like(rhs)),
    )
    return old.interpolate(new, weight)


def _largest_weight(old: Any, new: Any, max_kl: Float[Array, ""]) -> Float[Array, "*N"]:
    """Return the largest η in [0, 1] with KL(π_old ‖ q_η) ≤ δ, for each state."""
    kl = old.kl_divergence(new)
    # Bisection over floating numbers themselves, which are ordered as their bits are:
    # η may be tiny, and is exact to its last bit after as many steps as it has bits.
    whole = jnp.dtype(f"int{8 * kl.dtype.itemsize}")
    one = jax.lax.bitcast_convert_type(jnp.ones_like(kl), whole)

    def weight_of(bits: Int[Array, "*N"]) -> Float[Array, "*N"]:
        return jax.lax.bitcast_convert_type(bits, kl.dtype)

    def halve(_: Int[Array, ""] | int, ends: tuple) -> tuple:
        low, high = ends
        middle = low + (high - low) // 2
        within = old.kl_divergence(old.interpolate(new, weight_of(middle))) <= max_kl
        return jnp.where(within, middle, low), jnp.where(within, high, middle)

    steps = 8 * kl.dtype.itemsize - 2
    # The lower end is kept, where the divergence has been found to be at most δ.
    low, _ = jax.lax.fori_loop(0, steps, halve, (jnp.zeros_like(one), one))
    return jnp.where(kl <= max_kl, 1, weight_of(low))
