"""Arguments and results that the policy updates of a run share."""

from typing import Any, NamedTuple

from jaxtyping import Array, Float, Key, PyTree

from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.hyperparameters import Hyperparameters
from trpo_jax.trust_region import (
    Batch,
    ConstraintInfo,
    UpdateInfo,
    damped_curvature,
    diagonal_preconditioner,
    empirical_fisher_vector_product,
    fisher_vector_product,
    gauss_newton_vector_product,
    kronecker_preconditioner,
    score_preconditioner,
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


class RolloutCosts(NamedTuple):
    """The costs of a rollout, of which a constrained update keeps limits.

    Attributes:
        advantages: Of each of K costs, with mean 0, in units of cost, rows [N, K] or
            [N, T, K].
        episode_cost: J, an estimate of the cost of an episode, float[K].
        episode_length: That of its length, scalar, in steps.
        optimism: By how much predictions of J have been too low, float[K].
        limits: d, the limit of each J, float[K].
    """

    advantages: Float[Array, "N *T K"]
    episode_cost: Float[Array, " K"]
    episode_length: Float[Array, ""]
    optimism: Float[Array, " K"]
    limits: Float[Array, " K"]

    @property
    def excess(self) -> Float[Array, " K"]:
        """J − d."""
        return self.episode_cost - self.limits


class UpdateInputs(NamedTuple):
    """Arguments of a policy update.

    Attributes:
        policy_fn: (params, rows of observations) ↦ `Distribution`.
        params: θ_old.
        state: The state that the update before returned, at first that of
            `init_update`.
        batch: The rows of the rollout.
        fisher_batch: A subsample of them, for the Fisher information.
        micro_batch_size: Rows processed at a time, None for all.
        hyperparameters: The floats in force, after schedules and adaptation.
        key: Randomness of updates that draw minibatches.
        costs: Those of the rollout, for updates that keep limits; else None.
    """

    policy_fn: PolicyFn
    params: PyTree
    state: PyTree
    batch: Batch
    fisher_batch: Batch
    micro_batch_size: int | None
    hyperparameters: Hyperparameters
    key: Key[Array, ""]
    costs: RolloutCosts | None = None


class Updated(NamedTuple):
    """Results of a policy update.

    Attributes:
        params: The new parameters.
        state: The state for the next update.
        info: The evidence.
        constraints: That of updates that keep limits; else None.
    """

    params: PyTree
    state: PyTree
    info: UpdateInfo
    constraints: ConstraintInfo | None = None


def natural_options(config: TRPOConfig, inputs: UpdateInputs) -> dict[str, Any]:
    """Return the arguments that updates along a natural gradient share."""
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
    }


def search_options(config: TRPOConfig) -> dict[str, Any]:
    """Return the arguments of a line search."""
    return {
        "max_backtracks": config.max_backtracks,
        "backtrack_factor": config.backtrack_factor,
        "interpolate": config.line_search == "interpolation",
        "line_search_width": config.line_search_width,
    }


def step_size_options(config: TRPOConfig) -> dict[str, Any]:
    """Return the argument of a step size for a radius."""
    return {"step_size_curvature_fn": _STEP_SIZE_CURVATURES[config.step_size_curvature]}
