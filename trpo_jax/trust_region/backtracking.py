"""Line search that lands near the boundary of the trust region, or backtracks."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.extend import core
from jaxtyping import Array, Bool, Float, Int, PyTree

from trpo_jax.errors import UsageError, UsageTypeError, describe_type
from trpo_jax.trust_region.checks import check_positive, whole


class Candidate(NamedTuple):
    """Evaluation of one candidate policy θ_old + fraction · step.

    Attributes:
        surrogate: L(θ), scalar.
        kl: mean KL(π_old ‖ π_θ), scalar, in nats.
        finite: Whether parameters, and the batch apart from observations, are finite,
            bool scalar; and whether any further constraint is kept.
        evidence: Any other results for the candidate, a pytree.
    """

    surrogate: Float[Array, ""]
    kl: Float[Array, ""]
    finite: Bool[Array, ""]
    evidence: PyTree = ()


class LineSearchResult(NamedTuple):
    """The candidate accepted, or the last one tried.

    Of one round of `width` candidates it is the largest acceptable fraction; of several
    rounds the one with the largest L.

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
    interpolate: bool = True,
    width: int = 1,
) -> LineSearchResult:
    """Search for an acceptable candidate, by interpolation for one near the boundary.

    Acceptable: KL ≤ δ *and* L(θ) > L(θ_old) *and* everything finite.

    The KL grows as the square of the fraction f. So a candidate's KL says where the
    boundary is, and the next fraction is f · √(0.9 δ / KL): smaller after a candidate
    outside of the trust region; larger, at most by 1/c, after an acceptable one with
    KL < 0.8 δ. A larger one is kept only if it is acceptable and has a larger L. The
    search ends when an acceptable candidate has KL ≥ 0.8 δ, when a larger fraction is
    no better, or when the next one would reach the smallest refused one. A candidate
    inside of the trust region that is refused for its L, or one that is not finite, is
    followed by f · c.

    Without interpolation, the first acceptable one of 1, c, c², …

    Differentiable in what `evaluate_fn` closes over: the candidate's derivatives are
    those at the chosen fraction, which is a constant.

    Args:
        evaluate_fn: fraction ↦ `Candidate`.
        surrogate_old: L(θ_old), scalar.
        max_kl: δ, in nats.
        max_backtracks: The largest number of fractions to try, 1 among them; with
            interpolation, of rounds of `width` fractions.
        backtrack_factor: c, the ratio of one fraction to the one before, in (0, 1).
        interpolate: Whether the next fraction follows from the KL of the one before.
        width: Candidates per evaluation, by `vmap`: f, f·r, f·r², … with r = c; with
            interpolation r = c^(1/width), so that they lie closer. 1 evaluates no
            candidate that is not needed.

    Returns:
        A `LineSearchResult`. Without interpolation it does not depend on `width`, apart
        from `evaluations`.

    Raises:
        UsageError: If a count is not positive, or `backtrack_factor` not in (0, 1).
        UsageTypeError: If `evaluate_fn` does not return a `Candidate` of scalars.

    Source: Schulman et al. 2015 (arXiv 1502.05477), appendix C; the interpolation as
    Nocedal & Wright 2006, section 3.5, on the KL in place of the objective.
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
    one = jnp.ones((), surrogate_old.dtype)
    converted, closed_over, returned = _with_closure_as_argument(evaluate_fn, one)
    if not isinstance(returned, Candidate) or any(
        getattr(part, "shape", None) != () for part in returned[:3]
    ):
        raise UsageTypeError(
            f"evaluate_fn returned {describe_type(returned)}; write "
            "trpo_jax.trust_region.Candidate(surrogate, kl, finite), three scalars."
        )
    most = max_backtracks
    if interpolate:
        most *= width
    rule = _Rule(most, backtrack_factor, interpolate, min(width, most))
    # They only select a candidate: its values do not depend on them.
    bounds = jax.lax.stop_gradient((surrogate_old, jnp.asarray(max_kl)))
    return _search(converted, rule, closed_over, bounds).result


# Where interpolation aims at, and where it is content, as shares of δ. Between them the
# KL may be a little less quadratic than it should be.
_AIM, _NEAR = 0.9, 0.8


class _Rule(NamedTuple):
    """The static arguments of a search."""

    most: int
    backtrack_factor: float
    interpolate: bool
    width: int

    def round_from(self, fraction: Float[Array, ""]) -> Float[Array, " W"]:
        """Return the fractions of one evaluation, the largest first."""
        spacing = self.width if self.interpolate else 1
        exponents = jnp.arange(self.width, dtype=fraction.dtype) / spacing
        return fraction * self.backtrack_factor**exponents

    def next_fraction(
        self,
        fraction: Float[Array, ""],
        candidate: Candidate,
        acceptable: Bool[Array, ""],
        max_kl: Float[Array, ""],
    ) -> Float[Array, ""]:
        """Return where to go on from the last candidate of a round."""
        shorter = fraction * self.backtrack_factor
        if not self.interpolate:
            return shorter
        # Rounding makes a tiny KL 0 or negative.
        kl = jnp.maximum(candidate.kl, jnp.finfo(candidate.kl.dtype).tiny)
        ratio = jnp.sqrt(_AIM * jnp.maximum(max_kl, 0) / kl)
        at_boundary = fraction * jnp.minimum(ratio, 1 / self.backtrack_factor)
        by_kl = acceptable | ((candidate.kl > max_kl) & jnp.isfinite(candidate.kl))
        return jnp.where(by_kl, at_boundary, shorter).astype(fraction.dtype)


class _Search(NamedTuple):
    """State of a search.

    Attributes:
        result: The result so far.
        kept: The fraction of `result.candidate`, accepted or not, scalar.
        refused: The smallest fraction that was not acceptable, scalar; ∞ if none.
        next_fraction: The largest fraction of the next evaluation, scalar.
        ended: Whether the search is over, bool scalar.
    """

    result: LineSearchResult
    kept: Float[Array, ""]
    refused: Float[Array, ""]
    next_fraction: Float[Array, ""]
    ended: Bool[Array, ""]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _search(
    evaluate_fn: Callable[..., Candidate],
    rule: _Rule,
    closed_over: list[Any],
    bounds: tuple[Float[Array, ""], Float[Array, ""]],
) -> _Search:
    """Evaluate `width` candidates at a time until one is acceptable, and near δ."""
    surrogate_old, max_kl = bounds

    @functools.partial(jax.jit, inline=True)  # traced once, for its shapes and the loop
    def evaluate(search: _Search) -> _Search:
        before = search.result
        tried = rule.round_from(search.next_fraction)
        candidates = jax.vmap(evaluate_fn, (0, None))(tried, closed_over)
        # The last round may reach past the largest number of candidates.
        evaluations = before.evaluations + 1 + jnp.arange(rule.width, dtype=jnp.int32)
        allowed = evaluations <= rule.most
        acceptable = (  # never a NaN, which compares as false
            allowed
            & candidates.finite
            & jnp.isfinite(candidates.surrogate)
            & (candidates.kl <= max_kl)
            & (candidates.surrogate > surrogate_old)
        )
        found = jnp.any(acceptable)
        last = jnp.sum(allowed) - 1
        chosen = jnp.where(found, jnp.argmax(acceptable), last)
        candidate = jax.tree.map(lambda leaf: leaf[chosen], candidates)
        better = ~before.accepted | (
            found & (candidate.surrogate > before.candidate.surrogate)
        )
        accepted = before.accepted | found
        kept, candidate = optax.tree.where(
            better, (tried[chosen], candidate), (search.kept, before.candidate)
        )
        count = evaluations[last]
        refused = jnp.min(jnp.where(acceptable, jnp.inf, tried), initial=search.refused)
        next_fraction = rule.next_fraction(kept, candidate, found, max_kl)
        near = (candidate.kl >= _NEAR * max_kl) if rule.interpolate else True
        return _Search(
            LineSearchResult(accepted, jnp.where(accepted, kept, 0), candidate, count),
            kept,
            refused,
            next_fraction,
            (count >= rule.most)
            | ~better
            | (accepted & (near | (next_fraction >= refused))),
        )

    start = jax.eval_shape(evaluate_fn, jnp.ones_like(bounds[0]), closed_over)
    one = jnp.ones_like(bounds[0])
    nothing = LineSearchResult(
        jnp.bool_(False),
        jnp.zeros_like(one),
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), start),
        jnp.int32(0),
    )
    return jax.lax.while_loop(
        lambda search: ~search.ended,
        evaluate,
        _Search(nothing, one, one * jnp.inf, one, jnp.bool_(False)),
    )


@_search.defjvp
def _search_jvp(
    evaluate_fn: Callable[..., Candidate], rule: _Rule, primals: tuple, tangents: tuple
) -> tuple[_Search, _Search]:
    """Differentiate the chosen candidate; which one is chosen is a constant.

    `lax.while_loop` has no reverse mode, and a fraction that jumps has no derivative.
    """
    search = _search(evaluate_fn, rule, *primals)
    _, change = jax.jvp(
        functools.partial(evaluate_fn, search.kept), primals[:1], tangents[:1]
    )
    constant = jax.custom_derivatives.zero_from_primal(search)
    result = constant.result._replace(candidate=change)
    return search, constant._replace(result=result)


def _with_closure_as_argument(
    fn: Callable[[Array], PyTree], example: Array
) -> tuple[Callable[[Array, list[Any]], PyTree], list[Any], PyTree]:
    """Return (x, closed over) ↦ fn(x), what `fn` closes over, and its result's types.

    JAX runs the rule of `custom_jvp` after the enclosing trace has ended: a tracer that
    the function closes over would have leaked by then. `jax.closure_convert` would turn
    only floating ones into arguments, not the actions of a batch.
    """
    program, result = jax.make_jaxpr(fn, return_shape=True)(example)
    # From JAX 0.11 on a jaxpr holds what it closes over: here, those very tracers.
    nothing = [None] * len(program.consts)
    jaxpr = core.ClosedJaxpr(program.jaxpr, nothing).jaxpr
    structure = jax.tree.structure(result)

    def converted(x: Array, closed_over: list[Any]) -> PyTree:
        outputs = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, closed_over))(x)
        return jax.tree.unflatten(structure, outputs)

    return converted, program.consts, result
