"""Backtracking line search, with several candidates evaluated at once."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array, Bool, Float, Int, PyTree

from trpo_jax.errors import UsageError
from trpo_jax.trust_region.checks import check_positive, whole


class Candidate(NamedTuple):
    """Evaluation of one candidate policy θ_old + fraction · step.

    Attributes:
        surrogate: L(θ), scalar.
        kl: mean KL(π_old ‖ π_θ), scalar, in nats.
        finite: Whether parameters, and the batch, are finite, bool scalar.
        evidence: Any other results for the candidate, a pytree.
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
        evaluations: Number of candidates evaluated, int32 scalar.
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

    Differentiable in what `evaluate_fn` closes over: the candidate's derivatives are
    those at the chosen fraction, which is a constant.

    Args:
        evaluate_fn: fraction ↦ `Candidate`.
        surrogate_old: L(θ_old), scalar.
        max_kl: δ, in nats.
        max_backtracks: The largest number of fractions to try, 1 among them.
        backtrack_factor: Ratio of one fraction to the one before, in (0, 1).
        width: Candidates per evaluation, by `vmap`. 1 evaluates no candidate that is
            not needed; `max_backtracks` evaluates all of them at once.

    Returns:
        A `LineSearchResult`. Apart from `evaluations`, it does not depend on `width`.

    Raises:
        UsageError: If a count is not positive, or `backtrack_factor` not in (0, 1).

    Source: Schulman et al. 2015 (arXiv 1502.05477), appendix C.
    """
    max_backtracks = whole("max_backtracks", max_backtracks)
    width = whole("width", width)
    check_positive(backtrack_factor=backtrack_factor)
    if not backtrack_factor < 1:
        raise UsageError(
            f"backtrack_factor={backtrack_factor} is not below 1; write 0.5."
        )
    chex.assert_rank((surrogate_old, max_kl), 0)
    surrogate_old = jnp.asarray(surrogate_old)
    dtype = surrogate_old.dtype
    fractions = jnp.asarray(backtrack_factor, dtype) ** jnp.arange(
        max_backtracks, dtype=dtype
    )
    converted, closed_over = _with_closure_as_argument(evaluate_fn, fractions[0])
    # They decide which candidate is chosen, and nothing else.
    bounds = jax.lax.stop_gradient((surrogate_old, jnp.asarray(max_kl)))
    width = min(width, max_backtracks)
    return _search(converted, width, closed_over, fractions, bounds)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _search(
    evaluate_fn: Callable[..., Candidate],
    width: int,
    closed_over: list[Any],
    fractions: Float[Array, " K"],
    bounds: tuple[Float[Array, ""], Float[Array, ""]],
) -> LineSearchResult:
    """Evaluate `width` candidates at a time until one is acceptable."""
    last = fractions.size - 1

    @functools.partial(jax.jit, inline=True)  # traced once, for its shapes and the loop
    def evaluate_from(first: Int[Array, ""]) -> LineSearchResult:
        # The last round may reach past the end: there it repeats the last fraction.
        tried = fractions[jnp.minimum(first + jnp.arange(width), last)]
        candidates = jax.vmap(evaluate_fn, (0, None))(tried, closed_over)
        acceptable = _is_acceptable(candidates, *bounds)
        accepted = jnp.any(acceptable)
        chosen = jnp.where(accepted, jnp.argmax(acceptable), width - 1)
        return LineSearchResult(
            accepted=accepted,
            fraction=jnp.where(accepted, tried[chosen], 0),
            candidate=jax.tree.map(lambda leaf: leaf[chosen], candidates),
            evaluations=jnp.minimum(first + width, last + 1),
        )

    def proceed(result: LineSearchResult) -> Bool[Array, ""]:
        return ~result.accepted & (result.evaluations <= last)

    shapes = jax.eval_shape(evaluate_from, jnp.int32(0))
    # `accepted` and `evaluations` are 0 here, so that the loop runs at least once.
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.while_loop(
        proceed, lambda result: evaluate_from(result.evaluations), nothing
    )


@_search.defjvp
def _search_jvp(
    evaluate_fn: Callable[..., Candidate], width: int, primals: tuple, tangents: tuple
) -> tuple[LineSearchResult, LineSearchResult]:
    """Differentiate the chosen candidate; which one is chosen is a constant.

    `lax.while_loop` has no reverse mode, and a fraction that jumps has no derivative.
    """
    result = _search(evaluate_fn, width, *primals)
    closed_over, fractions, _ = primals
    fraction = jnp.where(result.accepted, result.fraction, fractions[-1])
    _, change = jax.jvp(
        functools.partial(evaluate_fn, fraction), (closed_over,), tangents[:1]
    )
    constant = jax.custom_derivatives.zero_from_primal(result)
    return result, constant._replace(candidate=change)


def _with_closure_as_argument(
    fn: Callable[[Array], PyTree], example: Array
) -> tuple[Callable[[Array, list[Any]], PyTree], list[Any]]:
    """Return (x, closed over) ↦ fn(x), and what `fn` closes over.

    JAX runs the rule of `custom_jvp` after the enclosing trace has ended: a tracer that
    the function closes over would have leaked by then. `jax.closure_convert` would turn
    only floating ones into arguments, not the actions of a batch.
    """
    program, result = jax.make_jaxpr(fn, return_shape=True)(example)
    jaxpr, structure = program.jaxpr, jax.tree.structure(result)

    def converted(x: Array, closed_over: list[Any]) -> PyTree:
        outputs = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, closed_over))(x)
        return jax.tree.unflatten(structure, outputs)

    return converted, program.consts


def _is_acceptable(
    candidate: Candidate,
    surrogate_old: Float[Array, ""],
    max_kl: Float[Array, ""] | float,
) -> Bool[Array, "*W"]:
    """Return which candidates are acceptable: never a NaN, which compares as false."""
    return (
        candidate.finite
        & jnp.isfinite(candidate.surrogate)
        & (candidate.kl <= max_kl)
        & (candidate.surrogate > surrogate_old)
    )
