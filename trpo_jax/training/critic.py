"""Regression of the value function on returns, by a first-order optimiser."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from trpo_jax.errors import UsageError, UsageTypeError, describe_type

ValueFn = Callable[[PyTree, PyTree[Shaped[Array, "N ..."]]], Float[Array, "N *T"]]


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
) -> tuple[PyTree, optax.OptState, Float[Array, ""]]:
    """Minimise mean (V(s) − target)² by minibatches of rows in a random order.

    Rows are shuffled once, so that every minibatch is a slice. A new order in every
    epoch, with its gather, took half of the time of a fit.

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
        key: Randomness for the order; consumed.
        epochs: Passes over the data.
        num_minibatches: Gradient steps in each pass; must divide N.

    Returns:
        New parameters, new optimiser state, and the mean loss over the last epoch.

    Raises:
        UsageError: If `num_minibatches` does not divide N, or there is not one value
            for each target.

    Source: Schulman et al. 2016 (arXiv 1506.02438), section 5, with a first-order
    optimiser in place of a trust region.
    """
    values = jax.eval_shape(value_fn, params, observations)
    check_values(values, targets.shape)
    size, rest = divmod(targets.shape[0], num_minibatches)
    if rest:
        raise UsageError(
            f"num_minibatches={num_minibatches} does not divide the {targets.shape[0]} "
            "rows (sequences, if the critic has a memory); write a divisor."
        )

    def loss_fn(params: PyTree, batch: tuple[PyTree, Array]) -> Float[Array, ""]:
        inputs, wanted = batch
        return jnp.mean((value_fn(params, inputs) - wanted) ** 2)

    # One sort of random bits; `jax.random.permutation` sorts again for large N, to rule
    # out equal bits, whose order does not matter here.
    order = jnp.argsort(jax.random.bits(key, targets.shape[:1]))
    minibatches = jax.tree.map(
        lambda leaf: leaf[order].reshape(num_minibatches, size, *leaf.shape[1:]),
        (observations, targets),
    )

    def descend(carry: tuple, index: Int[Array, ""]) -> tuple[tuple, Float[Array, ""]]:
        params, optimizer_state = carry
        batch = jax.tree.map(lambda leaf: leaf[index], minibatches)
        loss, gradient = jax.value_and_grad(loss_fn)(params, batch)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), loss

    start = (params, optimizer_state)
    visits = jnp.arange(epochs * num_minibatches) % num_minibatches
    end, losses = jax.lax.scan(descend, start, visits)
    # The optimiser's moments are checked as well: an infinite one would stay for good.
    params, optimizer_state = jax.lax.cond(_all_finite(end), lambda: end, lambda: start)
    return params, optimizer_state, jnp.mean(losses[-num_minibatches:])


def _all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Return whether all floating numbers in a pytree are finite."""
    leaves = jax.tree.leaves(tree)
    floating = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    vector, _ = ravel_pytree(floating)
    return jnp.isfinite(vector).all()


def check_values(values: Any, expected: tuple[int, ...]) -> None:
    """Raise unless there is one value for each observation."""
    if not hasattr(values, "dtype"):
        raise UsageTypeError(
            f"the critic returns {describe_type(values)}; write a network that returns "
            f"values, an array {list(expected)}."
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
