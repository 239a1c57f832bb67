"""The optimisation problem of one policy update.

max_θ L(θ)  subject to  mean_s KL(π_old ‖ π_θ) ≤ δ

Every update of this kind evaluates three things on a policy and a batch: the objective
and its gradient, Fisher-vector products, and candidates. TRPO, the natural gradient,
constrained policy optimisation and a critic's trust region differ only in how they use
them.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Num, PyTree, Shaped

from trpo_jax.errors import UsageError, UsageTypeError, describe_type
from trpo_jax.trust_region.backtracking import Candidate
from trpo_jax.trust_region.cg import CGResult, conjugate_gradient
from trpo_jax.trust_region.checks import check_not_negative, whole
from trpo_jax.trust_region.distributions import Distribution
from trpo_jax.trust_region.fisher import (
    MatVec,
    OperatorFn,
    PolicyFn,
    damped,
    gauss_newton_vector_product,
)
from trpo_jax.trust_region.flat import flatten, max_norm
from trpo_jax.trust_region.micro_batches import MicroBatches, mean_over_rows, split_rows
from trpo_jax.trust_region.objective import surrogate_terms
from trpo_jax.trust_region.preconditioner import (
    MakePreconditionerFn,
    score_preconditioner,
)

# (distribution of the policy in the batch's states, batch) ↦ a term for each row.
ObjectiveFn = Callable[[Any, Any], Float[Array, "N *T"]]


class Batch(NamedTuple):
    """N transitions of the policy to be improved, or N sequences of T transitions.

    A policy with a memory takes whole sequences. Means over transitions are then over
    all N·T of them.

    Attributes:
        observations: Inputs of the policy, [N, …] or a pytree of such arrays; for
            sequences, all that it needs to be applied to them again.
        actions: Its actions, unclipped and unsquashed, [N] or [N, D]; for sequences
            [N, T] or [N, T, D].
        log_probs: log π_old(a|s) under the params to be improved, float[N]; [N, T] for
            sequences. They are not checked: those of other params give ratios
            at θ_old that are not 1.
        advantages: A(s, a), float[N] or [N, T]; standardised by convention.
    """

    observations: PyTree[Shaped[Array, "N ..."]]
    actions: Num[Array, "N ..."]
    log_probs: Float[Array, "N *T"]
    advantages: Float[Array, "N *T"]


class OldPolicy(NamedTuple):
    """The policy at θ_old, which candidates are compared with.

    Attributes:
        theta: θ_old.
        value: L(θ_old), scalar.
        terms: Those of which L(θ_old) is the mean, split like the batch.
        distributions: π_old(·|s) of all states, split likewise.
        entropy: mean_s H(π_old(·|s)), scalar, in nats.
        finite: Whether the batch, apart from observations, is finite, bool scalar. The
            ratio to a log-probability of +∞ is 0, so that it would go unnoticed.
    """

    theta: PyTree
    value: Float[Array, ""]
    terms: MicroBatches
    distributions: MicroBatches
    entropy: Float[Array, ""]
    finite: Bool[Array, ""]


class Comparison(NamedTuple):
    """A policy π_θ beside the old one, for each transition.

    Attributes:
        kl: KL(π_old(·|s) ‖ π_θ(·|s)), float[N] or [N, T], in nats.
        gains: Terms of L(θ) − L(θ_old), float[N] or [N, T].
        entropy: mean_s H(π_θ(·|s)), scalar, in nats.
    """

    kl: Float[Array, "N *T"]
    gains: Float[Array, "N *T"]
    entropy: Float[Array, ""]


class Problem(NamedTuple):
    """A policy with parameters θ, an objective, and a batch.

    Attributes:
        policy_fn: (params, observations [N, …]) ↦ `Distribution` with batch [N].
        objective_fn: (distribution of the policy, batch) ↦ the terms [N] or [N, T] of
            which L is the mean.
        batch: A `Batch`, or another named tuple of rows [N, …] with `observations`.
        params_of: θ ↦ params, linear. θ may be params, or all of them as one vector.
        micro_batch_size: Most rows processed at a time, None for all. It bounds the
            memory, and changes results to rounding only.
        fisher_batch: The rows over which F is computed, such as a subsample of `batch`;
            None for `batch`. F is the same matrix in every product of a solve.
    """

    policy_fn: PolicyFn
    objective_fn: ObjectiveFn
    batch: Any
    params_of: Callable[[PyTree], PyTree] = lambda theta: theta
    micro_batch_size: int | None = None
    fisher_batch: Any = None

    def value_and_gradient(self, theta: PyTree) -> tuple[OldPolicy, PyTree]:
        """Return the old policy, with L(θ_old), and the gradient g = ∇L there."""

        def evaluate(theta: PyTree, batch: Any) -> tuple[Array, tuple]:
            distribution = self._policy(theta, batch.observations)
            terms = self.objective_fn(distribution, batch)
            return jnp.mean(terms), (terms, distribution)

        def differentiate(batch: Any) -> tuple[tuple, tuple]:
            value_and_gradient = jax.value_and_grad(evaluate, has_aux=True)
            (value, (terms, old)), gradient = value_and_gradient(theta, batch)
            return (value, gradient, jnp.mean(old.entropy())), (terms, old)

        means, rows = mean_over_rows(differentiate, self._split(self.batch))
        value, gradient, entropy = means
        # Observations are left out: the policy may ignore a bad one, and if it does not
        # the objective shows it.
        finite = jnp.isfinite(max_norm(self.batch._replace(observations=())))
        terms, old = rows.unzip()
        return OldPolicy(theta, value, terms, old, entropy, finite), gradient

    def fisher(
        self,
        theta: PyTree,
        *,
        operator_fn: OperatorFn = gauss_newton_vector_product,
    ) -> MatVec:
        """Return v ↦ F v at θ_old, over the rows of `fisher_batch`.

        Args:
            theta: θ_old.
            operator_fn: See `OperatorFn`.
        """
        micro_batches = self._split(self._fisher_rows)
        # Operators get params, not θ, because their curvature may be structured by
        # layers. The transpose of the linear map θ ↦ params leads back.
        params, pull_back = jax.vjp(self.params_of, theta)
        if micro_batches.equal is None:
            product_fn = operator_fn(self.policy_fn, params, self._fisher_rows)
            return lambda vector: pull_back(product_fn(self.params_of(vector)))[0]

        # Each product linearises again. A stored linearisation holds the activations
        # of all rows, which is the memory that micro-batches are to save.
        def matvec(vector: PyTree) -> PyTree:
            def multiply(rows: Any) -> tuple[PyTree, tuple]:
                product_fn = operator_fn(self.policy_fn, params, rows)
                return product_fn(self.params_of(vector)), ()

            product, _ = mean_over_rows(multiply, micro_batches)
            return pull_back(product)[0]

        return matvec

    def natural_direction(
        self,
        theta: PyTree,
        gradient: PyTree,
        *,
        damping: Float[Array, ""] | float,
        cg_iterations: int = 10,
        cg_tolerance: float = 1e-5,
        preconditioner_groups: int = 0,
        make_preconditioner_fn: MakePreconditionerFn = score_preconditioner,
        operator_fn: OperatorFn = gauss_newton_vector_product,
    ) -> CGResult:
        """Solve (F + λI) x = g by conjugate gradient, with F at θ_old.

        Args:
            theta: θ_old.
            gradient: g, a pytree like θ.
            damping: λ ≥ 0.
            cg_iterations: The largest number of Fisher-vector products.
            cg_tolerance: Relative residual at which the iteration stops earlier.
            preconditioner_groups: Gradients that precondition the solve; 0 for none.
            make_preconditioner_fn: See `MakePreconditionerFn`.
            operator_fn: See `OperatorFn`.
        """
        return conjugate_gradient(
            damped(self.fisher(theta, operator_fn=operator_fn), damping),
            gradient,
            preconditioner_fn=self.preconditioner(
                theta,
                groups=preconditioner_groups,
                damping=damping,
                make_preconditioner_fn=make_preconditioner_fn,
            ),
            max_iterations=whole("cg_iterations", cg_iterations, least=0),
            tolerance=cg_tolerance,
        )

    def preconditioner(
        self,
        theta: PyTree,
        *,
        groups: int,
        damping: Float[Array, ""] | float,
        make_preconditioner_fn: MakePreconditionerFn = score_preconditioner,
    ) -> MatVec | None:
        """Return r ↦ P⁻¹ r for the solve with `fisher`, None if there are no groups.

        Args:
            theta: θ_old.
            groups: Gradients that it is made of, see `score_preconditioner`.
            damping: λ ≥ 0 of the solve.
            make_preconditioner_fn: See `MakePreconditionerFn`.
        """
        if not whole("preconditioner_groups", groups, least=0):
            return None
        # As for operators: from params, and by the transpose back to θ.
        params, pull_back = jax.vjp(self.params_of, theta)
        precondition = make_preconditioner_fn(
            self.policy_fn, params, self._fisher_rows, groups=groups, damping=damping
        )
        return lambda residual: pull_back(precondition(self.params_of(residual)))[0]

    def candidate(self, theta: PyTree, old: OldPolicy) -> Candidate:
        """Return L and KL at θ, with the `Comparison` as evidence."""

        def compare(
            batch: Any, old: Distribution, old_terms: Array
        ) -> tuple[tuple, tuple]:
            new = self._policy(theta, batch.observations)
            kl = old.kl_divergence(new)
            terms = self.objective_fn(new, batch)
            means = jnp.mean(terms), jnp.mean(kl), jnp.mean(new.entropy())
            return means, (kl, terms - old_terms)

        (value, kl, entropy), rows = mean_over_rows(
            compare, self._split(self.batch), old.distributions, old.terms
        )
        chex.assert_rank((value, kl, entropy), 0)
        # Two compilations of L may differ in the last bit, which must not count as an
        # improvement where θ has not moved.
        distance = max_norm(optax.tree.sub(theta, old.theta))
        value = jnp.where(distance == 0, old.value, value)
        finite = jnp.isfinite(distance) & old.finite
        divergences, gains = rows.join()
        evidence = Comparison(divergences, gains, entropy)
        return Candidate(value, kl, finite, evidence)

    @property
    def _fisher_rows(self) -> Any:
        return self.batch if self.fisher_batch is None else self.fisher_batch

    def _policy(self, theta: PyTree, observations: PyTree) -> Distribution:
        return self.policy_fn(self.params_of(theta), observations)

    def _split(self, rows: PyTree) -> MicroBatches:
        return split_rows(rows, self.micro_batch_size)


def surrogate_problem(
    policy_fn: PolicyFn,
    params: PyTree,
    batch: Batch,
    *,
    entropy_coefficient: Float[Array, ""] | float,
    micro_batch_size: int | None,
    fisher_batch: Batch | None,
) -> tuple[Problem, PyTree]:
    """Return the problem of an update along the natural gradient, checked, and θ_old.

    θ is what the vector algebra of CG and line search works on; the policy, and the
    caller, keep their params.
    """
    check_not_negative(entropy_coefficient=entropy_coefficient)
    check_batch(policy_fn, params, batch)
    if fisher_batch is not None:
        check_batch(policy_fn, params, fisher_batch)
    theta_old, params_of = flatten(params)
    objective_fn = surrogate_with_entropy(entropy_coefficient)
    problem = Problem(
        policy_fn, objective_fn, batch, params_of, micro_batch_size, fisher_batch
    )
    return problem, theta_old


def surrogate_with_entropy(coefficient: Float[Array, ""] | float) -> ObjectiveFn:
    """Return the objective L(θ) = mean[ratio · A] + c · mean_s H(π_θ(·|s)).

    Args:
        coefficient: c ≥ 0, the weight of the entropy bonus.
    """

    def objective(policy: Distribution, batch: Batch) -> Float[Array, "N *T"]:
        log_probs = policy.log_prob(batch.actions)
        terms = surrogate_terms(log_probs, batch.log_probs, batch.advantages)
        return terms + coefficient * policy.entropy()

    return objective


def check_batch(policy_fn: PolicyFn, params: PyTree, batch: Batch) -> None:
    """Raise with advice, from shapes alone, before anything is computed."""
    try:
        inspect.signature(policy_fn).bind(params, None)
    except TypeError:  # None, or a Flax module in place of its apply
        raise UsageTypeError(
            f"policy_fn is {describe_type(policy_fn)}; write a function (params, "
            "observations) ↦ distribution, as "
            "trpo_jax.networks.as_network(module).apply."
        ) from None
    if not all(hasattr(batch, name) for name in Batch._fields):
        raise UsageTypeError(
            f"batch is {describe_type(batch)}; write trpo_jax.trust_region.Batch("
            "observations, actions, log_probs, advantages)."
        )
    check_params("params", params)
    leading = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    shape = jnp.shape(batch.log_probs)
    if (
        len(leading) > 1
        or not shape
        or not shape[0]
        or jnp.shape(batch.advantages) != shape
    ):
        raise UsageError(
            f"the batch's shapes are {jax.tree.map(jnp.shape, batch)}. Write "
            "observations [N, ...], actions [N] or [N, D], log_probs [N] and "
            "advantages [N] with one N: flatten time and environments to one axis; or "
            "[N, T] for whole sequences."
        )

    def evaluate(params: PyTree) -> tuple[Array, Array]:
        distribution = policy_fn(params, batch.observations)
        check_distribution("policy_fn", distribution)
        return distribution.log_prob(batch.actions), distribution.entropy()

    log_probs, entropy = jax.eval_shape(evaluate, params)
    if log_probs.shape != jnp.shape(batch.log_probs):
        raise UsageError(
            f"policy_fn's distribution gives log_prob(batch.actions) of shape "
            f"{log_probs.shape} for actions of shape {jnp.shape(batch.actions)}; it "
            f"must be {jnp.shape(batch.log_probs)}, one joint log-probability for each "
            "transition. Write actions[:, 0] for a Categorical, and sum the "
            "log-probabilities of several action dimensions."
        )
    check_rows("policy_fn", entropy.shape, log_probs.shape)


def check_params(name: str, params: PyTree) -> None:
    """Raise UsageTypeError unless all parameters, called `name`, are floating."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise UsageTypeError(
                f"{name}{jax.tree_util.keystr(path)} is {jnp.result_type(leaf)}; every "
                "parameter is optimised and must be floating. Close over constants "
                "instead."
            )


def check_rows(name: str, shape: tuple[int, ...], rows: tuple[int, ...]) -> None:
    """Raise UsageError unless a policy has a distribution for each observation.

    One distribution for all would broadcast against the actions in silence.
    """
    if shape != rows:
        raise UsageError(
            f"{name} returned distributions of shape {shape} for observations "
            f"of shape {rows}: write a policy that keeps the leading axes of its "
            "observations, one distribution for each."
        )


def check_distribution(name: str, returned: Any) -> None:
    """Raise UsageTypeError unless a policy, called `name`, returned a distribution."""
    # A class has the methods of its instances.
    if isinstance(returned, Distribution) and not isinstance(returned, type):
        for dtype in map(jnp.result_type, jax.tree.leaves(returned)):
            if jnp.issubdtype(dtype, jnp.integer):
                raise UsageTypeError(
                    f"{name} returned a {type(returned).__name__} of {dtype} numbers, "
                    "which have no derivative; write floating ones."
                )
        return
    advice = "return trpo_jax.trust_region.Categorical(logits) or another distribution"
    if hasattr(returned, "dtype"):
        advice = (
            "wrap it, as trpo_jax.trust_region.Categorical(logits) or "
            "trpo_jax.trust_region.DiagonalGaussian(mean, log_std)"
        )
    raise UsageTypeError(f"{name} returned {describe_type(returned)}; {advice}.")
