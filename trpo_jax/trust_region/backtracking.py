"""Backtracking line search with its candidates evaluated side by side."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from trpo_jax.errors import UsageError
from trpo_jax.trust_region.checks import check_positive


class Candidate(NamedTuple):
    """What is known of one candidate policy θ_old + fraction · step.

    Attributes:
        surrogate: L(θ), scalar.
        kl: mean KL(π_old ‖ π_θ), scalar, in nats.
        finite: Whether the parameters hold no NaN and no infinity, bool scalar.
        evidence: Anything else worth knowing of the candidate, a pytree.
    """

    surrogate: Float[Array, ""]
    kl: Float[Array, ""]
    finite: Bool[Array, ""]
    evidence: PyTree = ()


class LineSearchResult(NamedTuple):
    """The first acceptable candidate, or the last one tried.

    Attributes:
        accepted: Whether any candidate was acceptable, bool scalar.
        fraction: Its fraction of the full step, scalar; 0 if none was accepted.
        candidate: The `Candidate` accepted or, if none was, the smallest one tried.
        evaluations: How many candidates were evaluated, int32 scalar.
    """

    accepted: Bool[Array, ""]
    fraction: Float[Array, ""]
    candidate: Candidate
    evaluations: Int[Array, ""]


def line_search(
    evaluate_fn: Callable[[Float[Array, ""]], Candidate],
    *,
    surrogate_old: Float[Array, ""],
    max_kl: Float[Array, ""] | float,
    max_backtracks: int = 10,
    backtrack_factor: float = 0.5,
    width: int = 1,
) -> LineSearchResult:
    """Return the largest fraction 1, c, c², … whose candidate is acceptable.

    Acceptable: KL ≤ δ *and* L(θ) > L(θ_old) *and* everything finite.

    Args:
        evaluate_fn: fraction ↦ `Candidate`.
        surrogate_old: L(θ_old), scalar.
        max_kl: δ, in nats.
        max_backtracks: How many fractions to try at most.
        backtrack_factor: Ratio of one fraction to the one before, in (0, 1).
        width: How many candidates one evaluation takes, by `vmap`. 1 pays for no
            candidate that nobody needs; `max_backtracks` evaluates all at once.

    Returns:
        A `LineSearchResult`. But for `evaluations`, it does not depend on `width`.

    Raises:
        ValueError: If a count is not positive, or `backtrack_factor` not in (0, 1).

    Source: Schulman et al. 2015 (arXiv 1502.05477), appendix C.
    """
    check_positive(
        max_backtracks=max_backtracks, width=width, backtrack_factor=backtrack_factor
    )
    if not backtrack_factor < 1:
        raise UsageError(
            f"backtrack_factor={backtrack_factor} is not below 1; write 0.5."
        )
    width = min(width, max_backtracks)

    @functools.partial(jax.jit, inline=True)  # the loop's shapes and body, traced once
    def evaluate_from(first: Int[Array, ""]) -> LineSearchResult:
        index = jnp.minimum(first + jnp.arange(width), max_backtracks - 1)
        fractions = jnp.asarray(backtrack_factor, surrogate_old.dtype) ** index
        candidates = jax.vmap(evaluate_fn)(fractions)
        acceptable = _is_acceptable(candidates, surrogate_old, max_kl)
        accepted = jnp.any(acceptable)
        chosen = jnp.where(accepted, jnp.argmax(acceptable), width - 1)
        return LineSearchResult(
            accepted=accepted,
            fraction=jnp.where(accepted, fractions[chosen], 0),
            candidate=jax.tree.map(lambda leaf: leaf[chosen], candidates),
            evaluations=jnp.minimum(first + width, max_backtracks),
        )

    def proceed(result: LineSearchResult) -> Bool[Array, ""]:
        return ~result.accepted & (result.evaluations < max_backtracks)

    shapes = jax.eval_shape(evaluate_from, jnp.int32(0))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.while_loop(
        proceed, lambda result: evaluate_from(result.evaluations), nothing
    )


def _is_acceptable(
    candidate: Candidate,
    surrogate_old: Float[Array, ""],
    max_kl: Float[Array, ""] | float,
) -> Bool[Array, "*W"]:
    """Every comparison with a NaN is false, so that a NaN is never acceptable."""
    return (
        candidate.finite
        & jnp.isfinite(candidate.surrogate)
        & (candidate.kl <= max_kl)
        & (candidate.surrogate > surrogate_old)
    )
