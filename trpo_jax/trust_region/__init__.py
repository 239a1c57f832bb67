"""The mathematics of one policy update: arrays, pytrees and floats only."""

from trpo_jax.trust_region.backtracking import (
    Candidate,
    LineSearchResult,
    line_search,
)
from trpo_jax.trust_region.cg import (
    CGResult,
    CGStatus,
    conjugate_gradient,
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
from trpo_jax.trust_region.evidence import UpdateInfo, UpdateStatus
from trpo_jax.trust_region.fisher import (
    fisher_vector_product,
    gauss_newton_vector_product,
    hessian_vector_product,
)
from trpo_jax.trust_region.micro_batches import MicroBatches, mean_over_rows, split_rows
from trpo_jax.trust_region.objective import (
    improvement_bound,
    mean_kl,
    mean_kl_improvement_bound,
    surrogate,
)
from trpo_jax.trust_region.preconditioner import score_preconditioner
from trpo_jax.trust_region.problem import Batch, OldPolicy, Problem
from trpo_jax.trust_region.step_size import (
    damped_curvature,
    trust_region_step_size,
    undamped_curvature,
)
from trpo_jax.trust_region.update import damped, trust_region_update

__all__ = [
    "Batch",
    "CGResult",
    "CGStatus",
    "Candidate",
    "Categorical",
    "DiagonalGaussian",
    "Distribution",
    "GSDEGaussian",
    "LineSearchResult",
    "MicroBatches",
    "MultiCategorical",
    "OldPolicy",
    "Problem",
    "TanhGaussian",
    "UpdateInfo",
    "UpdateStatus",
    "conjugate_gradient",
    "damped",
    "damped_curvature",
    "fisher_vector_product",
    "gauss_newton_vector_product",
    "hessian_vector_product",
    "improvement_bound",
    "line_search",
    "mask_logits",
    "mean_kl",
    "mean_kl_improvement_bound",
    "mean_over_rows",
    "score_preconditioner",
    "split_rows",
    "surrogate",
    "trust_region_step_size",
    "trust_region_update",
    "undamped_curvature",
]
