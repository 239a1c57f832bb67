"""The curvature of the mean KL, as products with vectors: F is never formed.

Both operators are linearised once, so that the pass through the policy that does not
depend on the vector is not repeated in every iteration of a solver.
"""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float, PyTree

from trpo_jax.trust_region.checks import check_positive
from trpo_jax.trust_region.distributions import Distribution
from trpo_jax.trust_region.layers import linearize_policy
from trpo_jax.trust_region.objective import mean_kl

MatVec = Callable[[PyTree], PyTree]


def fisher_vector_product(
    mean_kl_fn: Callable[[PyTree], Float[Array, ""]], params: PyTree
) -> MatVec:
    """Return v ↦ F v with F = ∇² mean_kl_fn(params), by `jvp` over `grad`.

    Args:
        mean_kl_fn: θ ↦ mean_s KL(π_old(·|s) ‖ π_θ(·|s)), a scalar, with π_old fixed.
        params: θ_old, where F equals the Fisher information E[∇log π ∇log πᵀ].

    Returns:
        A linear function on pytrees like `params`.

    Source: Schulman et al. 2015 (arXiv 1502.05477), appendix C; Pearlmutter 1994,
    "Fast exact multiplication by the Hessian".
    """
    _, matvec = jax.linearize(jax.grad(mean_kl_fn), params)
    return matvec


def gauss_newton_vector_product(
    policy_fn: Callable[[PyTree, PyTree], Distribution],
    params: PyTree,
    observations: PyTree,
    *,
    num_products: int = 10,
) -> MatVec:
    """Return v ↦ Jᵀ M J v, equal to the Fisher-vector product at `params`, cheaper.

    J is the Jacobian of the distributions' own parameters (logits, means, …) in θ, and
    M the Hessian of the mean KL in those. The term that the full Hessian has beyond
    this, Σ ∂KL/∂output · ∇²output, vanishes where the KL does.

    Args:
        policy_fn: (params, observations [N, …]) ↦ `Distribution` with batch [N].
        params: θ_old.
        observations: The N states, a pytree of arrays [N, …].
        num_products: About how many products will be asked for. Where that is worth it,
            what they have in common is stored: for each layer as many arrays like its
            input as there are logits or means. Time and memory depend on it, the
            result to rounding.

    Returns:
        A linear function on pytrees like `params`; symmetric, positive semi-definite.

    Raises:
        ValueError: If `num_products` is not positive.

    Source: Schraudolph 2002, "Fast curvature matrix-vector products"; Martens 2014
    (arXiv 1412.1193), section 9.
    """
    check_positive(num_products=num_products)
    old, jacobian = linearize_policy(
        policy_fn, params, observations, num_products=num_products
    )
    jacobian_transpose = jax.linear_transpose(jacobian, params)
    metric = fisher_vector_product(lambda new: mean_kl(old, new), old)

    def matvec(vector: PyTree) -> PyTree:
        (product,) = jacobian_transpose(metric(jacobian(vector)))
        return product

    return matvec
