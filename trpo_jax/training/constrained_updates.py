"""Policy updates that keep limits on costs, by the names that a configuration uses."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from trpo_jax.training.advantages import standardize
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.update_inputs import (
    RolloutCosts,
    Updated,
    UpdateInputs,
    natural_options,
    search_options,
    step_size_options,
)
from trpo_jax.trust_region import (
    ConstraintInfo,
    constrained_update,
    cost_changes,
    optimal_step,
    projected_step,
    trust_region_update,
)

_STEPS = {"cpo": optimal_step, "pcpo": projected_step}


class Multipliers(NamedTuple):
    """State of the controller of the multipliers, of K costs.

    Attributes:
        integral: I, float[K].
        episode_cost: J of the update before, float[K]; ∞ before the first.
    """

    integral: Float[Array, " K"]
    episode_cost: Float[Array, " K"]


def init_constrained(config: TRPOConfig) -> Multipliers | tuple[()]:
    """Return the state of the first update of a run, () if it keeps none."""
    if config.update not in ("trpo_lagrangian", "trpo_pid"):
        return ()
    zeros = jnp.zeros(len(config.cost_limits or ()))
    return Multipliers(zeros, jnp.full_like(zeros, jnp.inf))


def next_multipliers(
    state: Multipliers,
    costs: RolloutCosts,
    *,
    proportional: Float[Array, ""] | float,
    integral: Float[Array, ""] | float,
    derivative: Float[Array, ""] | float,
) -> tuple[Multipliers, Float[Array, " K"]]:
    """Return the controller's next state, and the multipliers of this update.

    Δ = (J − d) / d,  I ← max(I + K_I Δ, 0),
    ν = max(K_P Δ + I + K_D max((J − J_before) / d, 0), 0)

    With K_P = K_D = 0 it is dual ascent on the Lagrangian. A limit d = 0 is no unit:
    then differences are absolute.

    Args:
        state: The state before.
        costs: J and d.
        proportional: K_P ≥ 0.
        integral: K_I ≥ 0.
        derivative: K_D ≥ 0.

    Source: Stooke et al. 2020 (arXiv 2007.03964), algorithm 2, where differences are
    absolute, so that gains depend on the unit of cost.
    """
    unit = jnp.where(costs.limits > 0, costs.limits, 1)
    above = costs.excess / unit
    rise = jnp.maximum(costs.episode_cost - state.episode_cost, 0) / unit
    total = jnp.maximum(state.integral + integral * above, 0)
    multipliers = jnp.maximum(proportional * above + total + derivative * rise, 0)
    # A NaN would stay for ever.
    finite = jnp.isfinite(costs.episode_cost)
    following = Multipliers(total, costs.episode_cost)
    following = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), following, state
    )
    return following, multipliers


def update_by_program(config: TRPOConfig, inputs: UpdateInputs) -> Updated:
    """Update by the quadratic program of CPO, or the projection of PCPO.

    Unlike in the papers, an excess includes the optimism of the latest predictions: the
    surrogate of a cost falls further in its own batch than the cost does afterwards.
    Among hazards with a limit of 2, CPO ended at a cost of 3.32 ± 0.11 without it, and
    at 2.11 ± 0.08 with it (8 seeds, 800k steps).
    """
    costs = _costs_of(inputs)
    expected = costs.excess + jnp.maximum(costs.optimism, 0)
    per_step = expected / costs.episode_length
    params, info, constraints = constrained_update(
        inputs.policy_fn,
        inputs.params,
        inputs.batch,
        costs.advantages,
        per_step,
        step_fn=_STEPS[config.update],
        **search_options(config),
        **natural_options(config, inputs),
    )
    return Updated(params, inputs.state, info, _per_episode(constraints, costs))


def update_by_multipliers(config: TRPOConfig, inputs: UpdateInputs) -> Updated:
    """Update by TRPO, on the Lagrangian with controlled multipliers."""
    costs, floats = _costs_of(inputs), inputs.hyperparameters
    by_pid = config.update == "trpo_pid"
    state, multipliers = next_multipliers(
        inputs.state,
        costs,
        proportional=floats.multiplier_proportional_gain if by_pid else 0.0,
        integral=floats.multiplier_learning_rate,
        derivative=floats.multiplier_derivative_gain if by_pid else 0.0,
    )
    penalty = _standardized(costs) @ multipliers
    advantages = standardize(inputs.batch.advantages - penalty)
    return _update_on(
        config, inputs, advantages, multipliers, jnp.bool_(False)
    )._replace(state=state)


def update_by_rectification(config: TRPOConfig, inputs: UpdateInputs) -> Updated:
    """Update by TRPO: on the reward, or on the cost furthest above its limit if any is.

    Source: Xu et al. 2021 (arXiv 2011.05869), algorithm 1.
    """
    costs = _costs_of(inputs)
    above = costs.excess / jnp.where(costs.limits > 0, costs.limits, 1)
    is_worst = jnp.arange(len(above)) == jnp.argmax(above)
    chosen = jnp.where(is_worst & (above > 0), 1.0, 0)
    rectifies = jnp.any(chosen > 0)
    advantages = jnp.where(
        rectifies, -_standardized(costs) @ chosen, inputs.batch.advantages
    )
    # The comparisons above are false for a NaN, which has to refuse the update.
    is_known = jnp.all(jnp.isfinite(costs.excess))
    is_known &= jnp.all(jnp.isfinite(costs.advantages))
    advantages = jnp.where(is_known, advantages, jnp.nan)
    return _update_on(config, inputs, advantages, chosen, rectifies)


def _update_on(
    config: TRPOConfig,
    inputs: UpdateInputs,
    advantages: Float[Array, "N *T"],
    multipliers: Float[Array, " K"],
    recovered: Bool[Array, ""],
) -> Updated:
    """Update by TRPO on advantages that take the costs into account."""
    costs = _costs_of(inputs)
    params, info = trust_region_update(
        inputs.policy_fn,
        inputs.params,
        inputs.batch._replace(advantages=advantages),
        **search_options(config),
        **step_size_options(config),
        **natural_options(config, inputs),
    )
    change, predicted = cost_changes(
        inputs.policy_fn,
        inputs.params,
        params,
        inputs.batch,
        costs.advantages,
        micro_batch_size=inputs.micro_batch_size,
    )
    constraints = ConstraintInfo(
        costs.excess / costs.episode_length,
        multipliers,
        change,
        predicted,
        recovered,
    )
    return Updated(params, inputs.state, info, _per_episode(constraints, costs))


def _costs_of(inputs: UpdateInputs) -> RolloutCosts:
    assert inputs.costs is not None
    return inputs.costs


def _standardized(costs: RolloutCosts) -> Float[Array, "N *T K"]:
    """Return standardised advantages; NaN for a cost whose variance overflows."""

    def of_one(advantages: Array) -> Array:
        known = jnp.isfinite(jnp.var(advantages))
        return jnp.where(known, standardize(advantages), jnp.nan)

    return jax.vmap(of_one, in_axes=-1, out_axes=-1)(costs.advantages)


def _per_episode(constraints: ConstraintInfo, costs: RolloutCosts) -> ConstraintInfo:
    """Return evidence in units of cost per episode."""
    length = costs.episode_length
    return constraints._replace(
        excess=costs.excess,
        cost_change=length * constraints.cost_change,
        cost_change_predicted=length * constraints.cost_change_predicted,
    )
