"""Policy updates by the names that a configuration uses.

Each takes the same rollout, and returns parameters, what it keeps for the next one, and
the same evidence.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from trpo_jax.errors import UsageTypeError, array_types
from trpo_jax.training.adaptation import init_factors, next_factors
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.config_checks import CONSTRAINED, FIRST_ORDER
from trpo_jax.training.constrained_updates import (
    init_constrained,
    update_by_multipliers,
    update_by_program,
    update_by_rectification,
)
from trpo_jax.training.defaults import resolve_sizes
from trpo_jax.training.optimizers import make_optimizer
from trpo_jax.training.update_inputs import (
    Updated,
    UpdateInputs,
    natural_options,
    search_options,
    step_size_options,
)
from trpo_jax.trust_region import (
    UpdateInfo,
    UpdateStatus,
    certify,
    clipped_update,
    kl_penalized_update,
    natural_gradient_update,
    projection_update,
    trust_region_update,
)


def init_update(config: TRPOConfig, params: PyTree) -> PyTree:
    """Return the state of the first update of a run, () if it keeps none.

    First-order updates keep that of the optimiser; "ppo_penalty" also the weight of the
    penalty, as a multiple of `kl_coefficient`, which may differ between the cells of a
    sweep. Other updates keep the factors of what adapts, or the multipliers of limits.
    """
    if config.update in CONSTRAINED:
        return init_constrained(config)
    if config.update not in FIRST_ORDER:
        return init_factors(config)
    optimizer = _optimizer(config, jnp.float32(config.policy_learning_rate))
    state = optimizer.init(params)
    return (state, jnp.float32(1)) if config.update == "ppo_penalty" else state


def update_policy(config: TRPOConfig, inputs: UpdateInputs) -> Updated:
    """Update the policy as `config.update` says."""
    if callable(config.update):
        return _update_by_function(config.update, inputs)
    return _UPDATES[config.update](config, inputs)


def _trust_region(config: TRPOConfig, inputs: UpdateInputs) -> Updated:
    params, info = trust_region_update(
        inputs.policy_fn,
        inputs.params,
        inputs.batch,
        **search_options(config),
        **step_size_options(config),
        **natural_options(config, inputs),
    )
    return Updated(params, next_factors(config, inputs.state, info), info)


def _natural_gradient(config: TRPOConfig, inputs: UpdateInputs) -> Updated:
    fixed = inputs.hyperparameters.natural_step_size
    params, info = natural_gradient_update(
        inputs.policy_fn,
        inputs.params,
        inputs.batch,
        step_size=fixed if config.update == "npg" else None,
        **step_size_options(config),
        **natural_options(config, inputs),
    )
    return Updated(params, next_factors(config, inputs.state, info), info)


def _clipped(config: TRPOConfig, inputs: UpdateInputs) -> Updated:
    return Updated(
        *clipped_update(
            inputs.policy_fn,
            inputs.params,
            inputs.batch,
            _optimizer(config, inputs.hyperparameters.policy_learning_rate),
            inputs.state,
            inputs.key,
            clip_ratio=inputs.hyperparameters.clip_ratio,
            **_first_order_options(config, inputs),
        )
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
    return Updated(params, (optimizer_state, kl_coefficient / initial), info)


def _projected(config: TRPOConfig, inputs: UpdateInputs) -> Updated:
    return Updated(
        *projection_update(
            inputs.policy_fn,
            inputs.params,
            inputs.batch,
            _optimizer(config, inputs.hyperparameters.policy_learning_rate),
            inputs.state,
            inputs.key,
            **_first_order_options(config, inputs),
        )
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
    "cpo": update_by_program,
    "pcpo": update_by_program,
    "trpo_lagrangian": update_by_multipliers,
    "trpo_pid": update_by_multipliers,
    "crpo": update_by_rectification,
}


def _update_by_function(
    update_fn: Callable[..., PyTree], inputs: UpdateInputs
) -> Updated:
    """Apply an update of the user's own, and measure what it did unless it says."""
    params, batch = inputs.params, inputs.batch
    moved = update_fn(
        inputs.policy_fn, params, batch, inputs.key, inputs.hyperparameters
    )
    own_info = None
    if type(moved) is tuple and [type(part) for part in moved[1:]] == [UpdateInfo]:
        moved, own_info = moved
    if array_types(moved) != array_types(params):
        raise UsageTypeError(
            f"update returns {array_types(moved)} for params {array_types(params)}; "
            "write a function (policy_fn, params, batch, key, hyperparameters) ↦ "
            "params, of the same shapes and dtypes, or (params, UpdateInfo)."
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
    if own_info is not None:
        if array_types(own_info) != array_types(info):
            raise UsageTypeError(
                f"update returns the evidence {array_types(own_info)}; write an "
                "UpdateInfo as of trpo_jax.trust_region.certify, with scalars of its "
                "dtypes."
            )
        info = optax.tree.where(accepted, own_info, info)
    return Updated(optax.tree.where(accepted, moved, params), inputs.state, info)
