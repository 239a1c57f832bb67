"""The mathematics of one policy update: arrays, pytrees and floats only."""

from trpo_jax.trust_region.adaptation import adapt_damping, adapt_radius
from trpo_jax.trust_region.backtracking import (
    Candidate,
    LineSearchResult,
    line_search,
)
from trpo_jax.trust_region.certificate import (
    ratio_or_nan,
    standard_error,
    upper_quantile,
)
from trpo_jax.trust_region.cg import (
    CGResult,
    CGStatus,
    conjugate_gradient,
)
from trpo_jax.trust_region.constrained import (
    ConstraintInfo,
    constrained_update,
    cost_changes,
)
from trpo_jax.trust_region.distributions import (
    Categorical,
    DiagonalGaussian,
    Distribution,
    GSDEGaussian,
    MultiCategorical,
    TanhGaussian,
    mask_logits,
)
from trpo_jax.trust_region.evidence import UpdateInfo, UpdateStatus, certify
from trpo_jax.trust_region.first_order import Descent, minimize_by_minibatches
from trpo_jax.trust_region.fisher import (
    damped,
    empirical_fisher_vector_product,
    fisher_vector_product,
    gauss_newton_vector_product,
    hessian_vector_product,
)
from trpo_jax.trust_region.micro_batches import MicroBatches, mean_over_rows, split_rows
from trpo_jax.trust_region.natural_gradient import natural_gradient_update
from trpo_jax.trust_region.objective import (
    improvement_bound,
    mean_kl,
    mean_kl_improvement_bound,
    surrogate,
    surrogate_terms,
)
from trpo_jax.trust_region.ppo import (
    clipped_terms,
    clipped_update,
    kl_penalized_update,
    next_kl_coefficient,
)
from trpo_jax.trust_region.preconditioner import (
    diagonal_preconditioner,
    kronecker_preconditioner,
    score_preconditioner,
)
from trpo_jax.trust_region.problem import (
    Batch,
    Comparison,
    OldPolicy,
    Problem,
    surrogate_with_entropy,
)
from trpo_jax.trust_region.projection import project, projection_update
from trpo_jax.trust_region.quadratic_program import (
    Combination,
    LinearModel,
    optimal_step,
    projected_step,
    recovery_step,
)
from trpo_jax.trust_region.spectrum import (
    RitzValues,
    TraceEstimate,
    effective_dimension,
    lanczos_tridiagonal,
    ritz_values,
)
from trpo_jax.trust_region.step_size import (
    damped_curvature,
    trust_region_step_size,
    undamped_curvature,
)
from trpo_jax.trust_region.update import trust_region_update

__all__ = [
    "Batch",
    "CGResult",
    "CGStatus",
    "Candidate",
    "Categorical",
    "Combination",
    "Comparison",
    "ConstraintInfo",
    "Descent",
    "DiagonalGaussian",
    "Distribution",
    "GSDEGaussian",
    "LineSearchResult",
    "LinearModel",
    "MicroBatches",
    "MultiCategorical",
    "OldPolicy",
    "Problem",
    "RitzValues",
    "TanhGaussian",
    "TraceEstimate",
    "UpdateInfo",
    "UpdateStatus",
    "adapt_damping",
    "adapt_radius",
    "certify",
    "clipped_terms",
    "clipped_update",
    "conjugate_gradient",
    "constrained_update",
    "cost_changes",
    "damped",
    "damped_curvature",
    "diagonal_preconditioner",
    "effective_dimension",
    "empirical_fisher_vector_product",
    "fisher_vector_product",
    "gauss_newton_vector_product",
    "hessian_vector_product",
    "improvement_bound",
    "kl_penalized_update",
    "kronecker_preconditioner",
    "lanczos_tridiagonal",
    "line_search",
    "mask_logits",
    "mean_kl",
    "mean_kl_improvement_bound",
    "mean_over_rows",
    "minimize_by_minibatches",
    "natural_gradient_update",
    "next_kl_coefficient",
    "optimal_step",
    "project",
    "projected_step",
    "projection_update",
    "ratio_or_nan",
    "recovery_step",
    "ritz_values",
    "score_preconditioner",
    "split_rows",
    "standard_error",
    "surrogate",
    "surrogate_terms",
    "surrogate_with_entropy",
    "trust_region_step_size",
    "trust_region_update",
    "undamped_curvature",
    "upper_quantile",
]
