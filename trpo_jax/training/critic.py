"""Regression of the value function on returns: in a trust region, or first-order."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree, Shaped

from trpo_jax.errors import UsageError, UsageTypeError, describe_type
from trpo_jax.trust_region import (
    DiagonalGaussian,
    Problem,
    line_search,
    minimize_by_minibatches,
    trust_region_step_size,
    undamped_curvature,
)
from trpo_jax.trust_region.flat import flatten, move
from trpo_jax.trust_region.problem import check_params

ValueFn = Callable[[PyTree, PyTree[Shaped[Array, "N ..."]]], Float[Array, "N *T"]]


class Regression(NamedTuple):
    """Observations [N, …], and the value to fit in each, float[N] or float[N, T]."""

    observations: PyTree[Shaped[Array, "N ..."]]
    targets: Float[Array, "N *T"]


class CriticInfo(NamedTuple):
    """Evidence of one fit in a trust region.

    Attributes:
        loss: mean (V − target)² at the parameters kept, scalar.
        kl: mean (V − V_old)² / 2σ², at most ε; 0 if the step was rejected.
        cg_relative_residual: ‖g − (F + λσ²I) x‖ / ‖g‖.
    """

    loss: Float[Array, ""]
    kl: Float[Array, ""]
    cg_relative_residual: Float[Array, ""]


def fit_critic_in_trust_region(
    value_fn: ValueFn,
    params: PyTree,
    batch: Regression,
    *,
    max_kl: Float[Array, ""] | float = 0.2,
    damping: Float[Array, ""] | float = 0.1,
    cg_iterations: int = 10,
    cg_tolerance: float = 1e-5,
    fisher_batch: Regression | None = None,
    micro_batch_size: int | None = None,
) -> tuple[PyTree, CriticInfo]:
    """Take one Gauss–Newton step on the values, inside a trust region.

    min_φ mean (V_φ(s) − target)²  subject to  mean (V_φ(s) − V_old(s))² / 2σ² ≤ ε

    solved by  (F + λσ²I) x = g,  β = min(1, √(2εσ² / xᵀFx)),  φ = φ_old + fraction·β x

    with g = mean (target − V) ∇V, F = mean ∇V ∇Vᵀ, and the mean squared error before
    the step as σ². A value is the mean of a Gaussian of that variance, and ε a KL in
    nats. λ and ε therefore do not depend on the scale of rewards.

    Args:
        value_fn: (params, observations [N, …]) ↦ values float[N], or float[N, T] of a
            critic that takes whole sequences.
        params: φ_old, a pytree of floating arrays.
        batch: Observations and targets.
        max_kl: ε, the radius of the trust region, in nats.
        damping: λ ≥ 0, in units of σ².
        cg_iterations: The largest number of products with F.
        cg_tolerance: Relative residual at which conjugate gradient stops earlier.
        fisher_batch: The rows over which F is computed, None for those of `batch`.
        micro_batch_size: Rows processed at a time, None for all.

    Returns:
        New parameters and their `CriticInfo`. If no candidate reduces the loss, or one
        of the numbers is not finite, the parameters are the old ones, bit for bit.

    Raises:
        UsageError: If there is not one value for each target.
        UsageTypeError: If a parameter is not floating.

    Source: Schulman et al. 2016 (arXiv 1506.02438), section 5.
    """
    check_params("params", params)
    values = jax.eval_shape(value_fn, params, batch.observations)
    check_values(values, batch.targets.shape)
    theta_old, params_of = flatten(params)

    # Of variance 1: the Gaussian's L, F and KL are then those above times σ².
    def predict(params: PyTree, observations: PyTree) -> DiagonalGaussian:
        values = value_fn(params, observations)[..., None]
        return DiagonalGaussian(values, jnp.zeros(1, values.dtype))

    def objective_fn(predicted: DiagonalGaussian, batch: Regression) -> Array:
        return -0.5 * (predicted.mean[..., 0] - batch.targets) ** 2

    problem = Problem(
        predict, objective_fn, batch, params_of, micro_batch_size, fisher_batch
    )
    old, gradient = problem.value_and_gradient(theta_old)
    variance = -2 * old.value
    damping, max_kl = damping * variance, max_kl * variance
    cg = problem.natural_direction(
        theta_old,
        gradient,
        damping=damping,
        cg_iterations=cg_iterations,
        cg_tolerance=cg_tolerance,
    )
    curvature = undamped_curvature(gradient, cg.x, damping)
    # At 1 the damped quadratic model of the loss has its minimum.
    step_size = jnp.minimum(1, trust_region_step_size(curvature, max_kl=max_kl))
    step = optax.tree.scale(step_size, cg.x)
    search = line_search(
        lambda fraction: problem.candidate(move(theta_old, fraction, step), old),
        surrogate_old=old.value,
        max_kl=max_kl,
        interpolate=False,
    )
    moved = move(theta_old, search.fraction, step)
    # Guarded, because the derivative of the side that is not selected counts as well.
    kl = search.candidate.kl / jnp.where(variance > 0, variance, 1)
    theta, value, kl = optax.tree.where(
        search.accepted,
        (moved, search.candidate.surrogate, kl),
        (theta_old, old.value, jnp.zeros_like(old.value)),
    )
    return params_of(theta), CriticInfo(-2 * value, kl, cg.relative_residual)


def fit_critic(
    value_fn: ValueFn,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    optimizer_state: optax.OptState,
    observations: PyTree[Shaped[Array, "N ..."]],
    targets: Float[Array, "N *T"],
    key: Key[Array, ""],
    *,
    epochs: int,
    num_minibatches: int,
    value_clipping: float = 0.0,
) -> tuple[PyTree, optax.OptState, Float[Array, ""]]:
    """Minimise mean (V(s) − target)² by minibatches of random rows.

    With a value clipping ε, minimise

    mean max[(V(s) − target)², (clip(V(s), V_old(s) − ε, V_old(s) + ε) − target)²]

    A fit that ends in a NaN or an infinity is discarded: parameters and optimiser state
    come back unchanged, and the loss shows why.

    Args:
        value_fn: (params, observations[N, …]) ↦ values float[N], or float[N, T] of a
            critic that takes whole sequences.
        params: The critic's parameters.
        optimizer: An Optax optimiser.
        optimizer_state: Its state.
        observations: Inputs, [N, …] or a pytree of such arrays.
        targets: Values to regress on, float[N] or float[N, T].
        key: Randomness of the minibatches; consumed.
        epochs: Passes over the data.
        num_minibatches: Gradient steps in each pass; must divide N.
        value_clipping: ε, in units of the targets; 0 for none.

    Returns:
        New parameters, new optimiser state, and the mean loss over the last epoch.

    Raises:
        UsageError: If `num_minibatches` does not divide N, or there is not one value
            for each target.
        UsageTypeError: If a parameter is not floating.

    Source: Engstrom et al. 2020 (arXiv 2005.12729), section 3, for the clipping.
    """
    check_params("params", params)
    values = jax.eval_shape(value_fn, params, observations)
    check_values(values, targets.shape)

    def loss_fn(params: PyTree, batch: tuple[PyTree, Array]) -> Float[Array, ""]:
        inputs, wanted = batch
        return jnp.mean((value_fn(params, inputs) - wanted) ** 2)

    def clipped_loss_fn(params: PyTree, batch: tuple) -> Float[Array, ""]:
        inputs, wanted, old = batch
        values = value_fn(params, inputs)
        clipped = jnp.clip(values, old - value_clipping, old + value_clipping)
        worse = jnp.maximum((values - wanted) ** 2, (clipped - wanted) ** 2)
        return jnp.mean(worse)

    rows: tuple = (observations, targets)
    if value_clipping:
        loss_fn, rows = clipped_loss_fn, (*rows, value_fn(params, observations))

    fitted = minimize_by_minibatches(
        loss_fn,
        params,
        optimizer,
        optimizer_state,
        rows,
        key,
        epochs=epochs,
        num_minibatches=num_minibatches,
    )
    return fitted.params, fitted.optimizer_state, fitted.loss


def check_values(values: Any, expected: tuple[int, ...]) -> None:
    """Raise unless there is one value for each observation."""
    if not hasattr(values, "dtype"):
        raise UsageTypeError(
            f"the critic returns {describe_type(values)}; write a network that returns "
            f"values, an array {list(expected)}."
        )
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise UsageTypeError(
            f"the critic returns {values.dtype} values; write a network that returns "
            "float32 ones."
        )
    shape = values.shape
    if shape != expected:
        raise UsageError(
            f"the critic returns values of shape {shape}; they must be {expected}, one "
            "for each observation. Write value[..., 0] after a last layer of width 1."
        )


def explained_variance(
    values: Float[Array, "*N"], returns: Float[Array, "*N"]
) -> Float[Array, ""]:
    """Return 1 − Var(returns − values) / Var(returns), at most 1.

    0 where all returns are equal: there is no variance to explain.

    Args:
        values: The critic's values, float[...].
        returns: The returns that they predict, float[...].
    """
    variance = jnp.var(returns)
    varies = variance > 0
    left = jnp.var(returns - values) / jnp.where(varies, variance, 1)
    return jnp.where(varies, 1 - left, 0)
