"""Policy updates by the names that a configuration uses.

Each takes the same rollout, and returns parameters, what it keeps for the next one, and
the same evidence.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from trpo_jax.errors import UsageTypeError, array_types
from trpo_jax.training.adaptation import init_factors, next_factors
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.config_checks import FIRST_ORDER
from trpo_jax.training.defaults import resolve_sizes
from trpo_jax.training.hyperparameters import Hyperparameters
from trpo_jax.training.optimizers import make_optimizer
from trpo_jax.trust_region import (
    Batch,
    UpdateInfo,
    UpdateStatus,
    certify,
    clipped_update,
    damped_curvature,
    diagonal_preconditioner,
    empirical_fisher_vector_product,
    fisher_vector_product,
    gauss_newton_vector_product,
    kl_penalized_update,
    kronecker_preconditioner,
    natural_gradient_update,
    projection_update,
    score_preconditioner,
    trust_region_update,
    undamped_curvature,
)
from trpo_jax.trust_region.fisher import PolicyFn

_STEP_SIZE_CURVATURES = {"undamped": undamped_curvature, "damped": damped_curvature}
_FISHER_OPERATORS = {
    "gauss_newton": gauss_newton_vector_product,
    "kl_hessian": fisher_vector_product,
    "empirical": empirical_fisher_vector_product,
}
_PRECONDITIONERS = {
    "score": score_preconditioner,
    "diagonal": diagonal_preconditioner,
    "kronecker": kronecker_preconditioner,
}


class UpdateInputs(NamedTuple):
    """What a policy update is given.

    Attributes:
        policy_fn: (params, rows of observations) ↦ `Distribution`.
        params: θ_old.
        state: The state that the update before returned, at first that of
            `init_update`.
        batch: The rows of the rollout.
        fisher_batch: A subsample of them, for the Fisher information.
        micro_batch_size: Rows processed at a time, None for all.
        hyperparameters: The floats in force, times the factors of their schedules.
        key: Randomness of updates that draw minibatches.
    """

    policy_fn: PolicyFn
    params: PyTree
    state: PyTree
    batch: Batch
    fisher_batch: Batch
    micro_batch_size: int | None
    hyperparameters: Hyperparameters
    key: Key[Array, ""]


Updated = tuple[PyTree, PyTree, UpdateInfo]


def init_update(config: TRPOConfig, params: PyTree) -> PyTree:
    """Return the state of the first update of a run, () if it keeps none.

    It is that of the optimiser; for "ppo_penalty" beside it the weight of the penalty
    as a multiple of `kl_coefficient`, which may be another in each cell of a sweep.
    """
    if config.update not in FIRST_ORDER:
        return init_factors(config)
    optimizer = _optimizer(config, jnp.float32(config.policy_learning_rate))
    state = optimizer.init(params)
    return (state, jnp.float32(1)) if config.update == "ppo_penalty" else state


def update_policy(config: TRPOConfig, inputs: UpdateInputs) -> Updated:
    """Update the policy as `config.update` says.

    Returns:
        New parameters, the state of the next update, and the evidence.
    """
    if callable(config.update):
        return _update_by_function(config.update, inputs)
    return _UPDATES[config.update](config, inputs)


def _trust_region(config: TRPOConfig, inputs: UpdateInputs) -> Updated:
    params, info = trust_region_update(
        inputs.policy_fn,
        inputs.params,
        inputs.batch,
        max_backtracks=config.max_backtracks,
        backtrack_factor=config.backtrack_factor,
        interpolate=config.line_search == "interpolation",
        line_search_width=config.line_search_width,
        **_natural_options(config, inputs),
    )
    return params, next_factors(config, inputs.state, info), info


def _natural_gradient(config: TRPOConfig, inputs: UpdateInputs) -> Updated:
    fixed = inputs.hyperparameters.natural_step_size
    params, info = natural_gradient_update(
        inputs.policy_fn,
        inputs.params,
        inputs.batch,
        step_size=fixed if config.update == "npg" else None,
        **_natural_options(config, inputs),
    )
    return params, next_factors(config, inputs.state, info), info


def _natural_options(config: TRPOConfig, inputs: UpdateInputs) -> dict[str, Any]:
    """Return the arguments that updates along the natural gradient share."""
    return {
        "max_kl": inputs.hyperparameters.max_kl,
        "damping": inputs.hyperparameters.damping,
        "entropy_coefficient": inputs.hyperparameters.entropy_coefficient,
        "cg_iterations": config.cg_iterations,
        "cg_tolerance": config.cg_tolerance,
        "preconditioner_groups": config.preconditioner_groups,
        "make_preconditioner_fn": _PRECONDITIONERS[config.preconditioner],
        "fisher_batch": inputs.fisher_batch,
        "micro_batch_size": inputs.micro_batch_size,
        "operator_fn": _FISHER_OPERATORS[config.fisher_operator],
        "step_size_curvature_fn": _STEP_SIZE_CURVATURES[config.step_size_curvature],
    }


def _clipped(config: TRPOConfig, inputs: UpdateInputs) -> Updated:
    return clipped_update(
        inputs.policy_fn,
        inputs.params,
        inputs.batch,
        _optimizer(config, inputs.hyperparameters.policy_learning_rate),
        inputs.state,
        inputs.key,
        clip_ratio=inputs.hyperparameters.clip_ratio,
        **_first_order_options(config, inputs),
    )


def _kl_penalized(config: TRPOConfig, inputs: UpdateInputs) -> Updated:
    optimizer_state, multiple = inputs.state
    initial = inputs.hyperparameters.kl_coefficient
    params, optimizer_state, kl_coefficient, info = kl_penalized_update(
        inputs.policy_fn,
        inputs.params,
        inputs.batch,
        _optimizer(config, inputs.hyperparameters.policy_learning_rate),
        optimizer_state,
        initial * multiple,
        inputs.key,
        **_first_order_options(config, inputs),
    )
    return params, (optimizer_state, kl_coefficient / initial), info


def _projected(config: TRPOConfig, inputs: UpdateInputs) -> Updated:
    return projection_update(
        inputs.policy_fn,
        inputs.params,
        inputs.batch,
        _optimizer(config, inputs.hyperparameters.policy_learning_rate),
        inputs.state,
        inputs.key,
        **_first_order_options(config, inputs),
    )


def _optimizer(
    config: TRPOConfig, learning_rate: Float[Array, ""] | float
) -> optax.GradientTransformation:
    optimizer_fn = make_optimizer(
        config.policy_optimizer, max_gradient_norm=config.policy_max_gradient_norm
    )
    return optimizer_fn(learning_rate)


def _first_order_options(config: TRPOConfig, inputs: UpdateInputs) -> dict[str, Any]:
    """Return the arguments that updates by epochs of minibatches share."""
    return {
        "max_kl": inputs.hyperparameters.max_kl,
        "entropy_coefficient": inputs.hyperparameters.entropy_coefficient,
        "epochs": config.policy_epochs,
        "num_minibatches": resolve_sizes(config).policy_minibatches,
        "micro_batch_size": inputs.micro_batch_size,
    }


_UPDATES: dict[str, Callable[[TRPOConfig, UpdateInputs], Updated]] = {
    "trpo": _trust_region,
    "tnpg": _natural_gradient,
    "npg": _natural_gradient,
    "ppo": _clipped,
    "ppo_penalty": _kl_penalized,
    "projection": _projected,
}


def _update_by_function(
    update_fn: Callable[..., PyTree], inputs: UpdateInputs
) -> Updated:
    """Apply an update of the user's own, and measure what it did."""
    params, batch = inputs.params, inputs.batch
    moved = update_fn(
        inputs.policy_fn, params, batch, inputs.key, inputs.hyperparameters
    )
    if array_types(moved) != array_types(params):
        raise UsageTypeError(
            f"update returns {array_types(moved)} for params {array_types(params)}; "
            "write a function (policy_fn, params, batch, key, hyperparameters) ↦ "
            "params, of the same shapes and dtypes."
        )
    info = certify(
        inputs.policy_fn,
        params,
        moved,
        batch,
        max_kl=inputs.hyperparameters.max_kl,
        entropy_coefficient=inputs.hyperparameters.entropy_coefficient,
        micro_batch_size=inputs.micro_batch_size,
    )
    accepted = info.status == UpdateStatus.ACCEPTED
    return optax.tree.where(accepted, moved, params), inputs.state, info
