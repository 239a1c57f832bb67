"""The curvature of the mean KL, as products with vectors: F is never formed.

Each operator is linearised once: the pass through the policy that does not depend on
the vector is not repeated in every iteration of a solver. In micro-batches it is, since
what it stores would not fit.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import Array, Float, PyTree, Shaped

from trpo_jax.errors import UsageTypeError, describe_type
from trpo_jax.trust_region.distributions import Distribution
from trpo_jax.trust_region.objective import mean_kl

MatVec = Callable[[PyTree], PyTree]
PolicyFn = Callable[[PyTree, PyTree[Shaped[Array, "N ..."]]], Distribution]

# (policy_fn, params, batch) ↦ (v ↦ F v), v and F v pytrees like params. The batch is a
# `Batch`, or another named tuple of rows with `observations`.
OperatorFn = Callable[[PolicyFn, PyTree, Any], MatVec]


def fisher_vector_product(policy_fn: PolicyFn, params: PyTree, batch: Any) -> MatVec:
    """Return v ↦ F v with F = ∇² mean_s KL(π_old ‖ π_θ) at θ_old, by `jvp` over `grad`.

    There, F equals the Fisher information E[∇log π ∇log πᵀ].

    Args:
        policy_fn: (params, observations [N, …]) ↦ `Distribution` with batch [N].
        params: θ_old.
        batch: N transitions or sequences, a `Batch`; only `observations` are read.

    Returns:
        A linear function on pytrees like `params`; symmetric, positive semi-definite.

    Raises:
        UsageTypeError: If `batch` has no `observations`.

    Source: Schulman et al. 2015 (arXiv 1502.05477), appendix C.
    """
    observations = _observations(batch)
    # Not `stop_gradient`: π_old is outside of what is differentiated here, and whoever
    # differentiates the whole update needs its derivative.
    old = policy_fn(params, observations)
    return hessian_vector_product(
        lambda theta: mean_kl(old, policy_fn(theta, observations)), params
    )


def gauss_newton_vector_product(
    policy_fn: PolicyFn, params: PyTree, batch: Any
) -> MatVec:
    """Return v ↦ Jᵀ M J v, equal to `fisher_vector_product` at `params`, and cheaper.

    J is the Jacobian of the distributions' own parameters (logits, means, …) in θ, and
    M the Hessian of the mean KL in those. The term that the full Hessian has beyond
    this, Σ ∂KL/∂output · ∇²output, vanishes where the KL does.

    Args:
        policy_fn: (params, observations [N, …]) ↦ `Distribution` with batch [N].
        params: θ_old.
        batch: N transitions or sequences, a `Batch`; only `observations` are read.

    Returns:
        A linear function on pytrees like `params`; symmetric, positive semi-definite.

    Raises:
        UsageTypeError: If `batch` has no `observations`.

    Source: Schraudolph 2002, "Fast curvature matrix-vector products"; Martens 2014
    (arXiv 1412.1193), section 9.
    """
    observations = _observations(batch)
    old, jacobian = jax.linearize(lambda theta: policy_fn(theta, observations), params)
    # The transpose of the forward derivative that is linearised already: `jax.vjp`
    # would pass through the policy a second time.
    jacobian_transpose = jax.linear_transpose(jacobian, params)
    metric = hessian_vector_product(lambda new: mean_kl(old, new), old)

    def matvec(vector: PyTree) -> PyTree:
        (product,) = jacobian_transpose(metric(jacobian(vector)))
        return product

    return matvec


def empirical_fisher_vector_product(
    policy_fn: PolicyFn, params: PyTree, batch: Any
) -> MatVec:
    """Return v ↦ F̂ v with F̂ = mean_i ∇log π(a_i|s_i) ∇log π(a_i|s_i)ᵀ.

    The Fisher information with the actions sampled, where `fisher_vector_product` has
    the expectation over them: E[F̂] = F if they are drawn from the policy at `params`.
    Its rank is at most the number of transitions.

    Args:
        policy_fn: (params, observations [N, …]) ↦ `Distribution` with batch [N].
        params: θ_old.
        batch: N transitions or sequences, a `Batch`; actions drawn from θ_old's policy.

    Returns:
        A linear function on pytrees like `params`; symmetric, positive semi-definite.

    Raises:
        UsageTypeError: If `batch` has no `observations`, or no `actions`.

    Source: Schulman et al. 2015 (arXiv 1502.05477), appendix C.1, the "empirical FIM".
    """
    observations = _observations(batch)
    if not hasattr(batch, "actions"):
        raise UsageTypeError(
            f"batch is {describe_type(batch)} without actions, whose scores the "
            "empirical Fisher information is made of; write "
            "trpo_jax.trust_region.Batch(observations, actions, log_probs, advantages)."
        )
    log_probs, scores = jax.linearize(
        lambda theta: policy_fn(theta, observations).log_prob(batch.actions), params
    )
    scores_transpose = jax.linear_transpose(scores, params)

    def matvec(vector: PyTree) -> PyTree:
        (product,) = scores_transpose(scores(vector) / log_probs.size)
        return product

    return matvec


def hessian_vector_product(
    fn: Callable[[PyTree], Float[Array, ""]], primal: PyTree
) -> MatVec:
    """Return v ↦ ∇²fn(x) v, by `jvp` over `grad`.

    Args:
        fn: x ↦ scalar, such as θ ↦ mean_s KL(π_old ‖ π_θ) with π_old fixed.
        primal: x, a pytree of floating arrays.

    Returns:
        A linear function on pytrees like `primal`; symmetric.

    Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian".
    """
    _, matvec = jax.linearize(jax.grad(fn), primal)
    return matvec


def damped(matvec: MatVec, damping: Float[Array, ""] | float) -> MatVec:
    """Return v ↦ (F + λI) v.

    Args:
        matvec: v ↦ F v.
        damping: λ ≥ 0.
    """

    def product(vector: PyTree) -> PyTree:
        # λ may be wider than a half-precision vector, whose dtype CG must keep.
        total = optax.tree.add_scale(matvec(vector), damping, vector)
        return optax.tree.cast_like(total, vector)

    return product


def _observations(batch: Any) -> PyTree:
    if not hasattr(batch, "observations"):
        raise UsageTypeError(
            f"batch is {describe_type(batch)}; write trpo_jax.trust_region.Batch("
            "observations, actions, log_probs, advantages)."
        )
    return batch.observations
