"""The surrogate objective, the mean KL, and the bounds on improvement they give."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trpo_jax.errors import UsageError
from trpo_jax.trust_region.certificate import root
from trpo_jax.trust_region.checks import check_fraction
from trpo_jax.trust_region.distributions import Distribution


def surrogate(
    log_probs: Float[Array, "*N"],
    old_log_probs: Float[Array, "*N"],
    advantages: Float[Array, "*N"],
) -> Float[Array, ""]:
    """Return the surrogate objective L(θ) = mean[ratio · A].

    Args:
        log_probs: log π_θ(a|s) of the actions taken, float[N], or of any shape.
        old_log_probs: log π_old(a|s) of the same actions, float[N].
        advantages: A(s, a), float[N], in units of return (or standardised).

    Returns:
        L(θ), the mean of `surrogate_terms`, a scalar in the units of the advantages.

    Raises:
        UsageError: If the shapes differ.

    Source: Schulman et al. 2015 (arXiv 1502.05477), equation 14.
    """
    return jnp.mean(surrogate_terms(log_probs, old_log_probs, advantages))


def surrogate_terms(
    log_probs: Float[Array, "*N"],
    old_log_probs: Float[Array, "*N"],
    advantages: Float[Array, "*N"],
) -> Float[Array, "*N"]:
    """Return ratio · A for each action, the terms of the surrogate objective.

    With ratio = π_θ(a|s) / π_old(a|s) their mean L(θ) is an importance-sampled
    estimate, from the old policy's samples, of the new policy's advantage over the old
    one. At θ_old every ratio is 1 and ∇L is the policy gradient.

    Args:
        log_probs: log π_θ(a|s) of the actions taken, float[N], or of any shape.
        old_log_probs: log π_old(a|s) of the same actions, float[N].
        advantages: A(s, a), float[N], in units of return (or standardised).

    Returns:
        The terms, in the shape and the units of the advantages.

    Raises:
        UsageError: If the shapes differ.

    Source: Schulman et al. 2015 (arXiv 1502.05477), equation 14.
    """
    shapes = [jnp.shape(x) for x in (log_probs, old_log_probs, advantages)]
    if len(set(shapes)) > 1:
        raise UsageError(
            f"log_probs, old_log_probs and advantages have the shapes {shapes}; write "
            "one value of each for each of N transitions: [N]."
        )
    return jnp.exp(log_probs - old_log_probs) * advantages


def mean_kl(old: Distribution, new: Distribution) -> Float[Array, ""]:
    """Return mean_s KL(π_old(·|s) ‖ π_new(·|s)), the size of a policy change.

    The expectation is under the *old* policy, and the divergence is the joint one,
    summed over action dimensions. At new = old it is 0, its gradient is 0, and its
    Hessian is the Fisher information.

    Args:
        old: Distributions of the policy that collected the states, batch [N].
        new: Distributions of the candidate policy at the same states, batch [N].

    Returns:
        The mean divergence over states, a scalar in nats.

    Source: Schulman et al. 2015 (arXiv 1502.05477), equation 12.
    """
    return jnp.mean(old.kl_divergence(new))


def improvement_bound(
    expected_advantage: Float[Array, ""],
    max_kl: Float[Array, ""],
    max_advantage: Float[Array, ""],
    *,
    discount: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """Return a lower bound on J(π) − J(π_old) from the largest KL over states.

    J(π) − J(π_old) ≥ E[A] / (1−γ) − 4 ε γ / (1−γ)² · max_s KL(π_old ‖ π)

    Args:
        expected_advantage: E[A_old(s, a)], scalar, over a ~ π and discounted states
            s ~ (1−γ) Σ γᵗ P(sₜ = s | π_old): the exact, unstandardised surrogate.
        max_kl: max_s KL(π_old(·|s) ‖ π(·|s)), scalar, in nats.
        max_advantage: ε = max_{s,a} |A_old(s, a)|, scalar.
        discount: γ in [0, 1).

    Returns:
        The bound, a scalar in units of discounted return. It is 0 at π = π_old.

    Raises:
        UsageError: If `discount` is not in [0, 1).

    Source: Schulman et al. 2015 (arXiv 1502.05477), theorem 1.
    """
    _check_discount(discount)
    penalty = 4 * max_advantage * discount / (1 - discount) ** 2
    return expected_advantage / (1 - discount) - penalty * max_kl


def mean_kl_improvement_bound(
    expected_advantage: Float[Array, ""],
    kl: Float[Array, ""],
    max_expected_advantage: Float[Array, ""],
    *,
    discount: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """Return a lower bound on J(π) − J(π_old) from the mean KL.

    J(π) − J(π_old) ≥ 1/(1−γ) · (E[A] − 2 γ ε′ / (1−γ) · √(KL̄ / 2))

    Args:
        expected_advantage: E[A_old(s, a)], as in `improvement_bound`.
        kl: KL̄, the mean of KL(π_old ‖ π) over the same discounted states, scalar.
        max_expected_advantage: ε′ = max_s |E_{a∼π} A_old(s, a)|, scalar.
        discount: γ in [0, 1).

    Returns:
        The bound, a scalar in units of discounted return. It is 0 at π = π_old.

    Raises:
        UsageError: If `discount` is not in [0, 1).

    Source: Achiam et al. 2017 (arXiv 1705.10528), corollaries 1 and 3: the total
    variation is bounded by Pinsker's inequality. The KL there is KL(π ‖ π_old); the
    inequality holds for either direction.
    """
    _check_discount(discount)
    penalty = 2 * discount * max_expected_advantage / (1 - discount)
    # Rounding may leave a KL of equal policies just below 0.
    total_variation = root(jnp.maximum(kl, 0) / 2)
    return (expected_advantage - penalty * total_variation) / (1 - discount)


def _check_discount(discount: Float[Array, ""] | float) -> None:
    check_fraction(discount=discount)
    if not isinstance(discount, jax.core.Tracer) and discount == 1:
        raise UsageError("discount=1 has no bound: it grows as 1/(1−γ)²; write less.")
