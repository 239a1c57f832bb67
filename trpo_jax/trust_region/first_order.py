"""Epochs of a first-order optimiser over minibatches of rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from trpo_jax.errors import UsageError
from trpo_jax.trust_region.flat import max_norm


class Descent(NamedTuple):
    """Parameters and optimiser state after some steps.

    Attributes:
        params: New parameters.
        optimizer_state: New state of the optimiser.
        loss: Mean loss over the last epoch, scalar.
        finite: Whether all of the new parameters and state are finite, bool scalar. If
            not, both are those from before, and the loss shows why.
    """

    params: PyTree
    optimizer_state: optax.OptState
    loss: Float[Array, ""]
    finite: Bool[Array, ""]


def minimize_by_minibatches(
    loss_fn: Callable[[PyTree, Any], Float[Array, ""]],
    params: PyTree,
    optimizer: optax.GradientTransformation,
    optimizer_state: optax.OptState,
    rows: PyTree,
    key: Key[Array, ""],
    *,
    epochs: int,
    num_minibatches: int,
) -> Descent:
    """Minimise a mean over rows by an optimiser's steps on minibatches.

    Of every `num_minibatches` consecutive rows, each minibatch gets one, at random: a
    stratified sample, for which no row leaves the device that holds its neighbours.
    Minibatches are drawn once. New ones in every epoch took half of the time of a fit.

    Args:
        loss_fn: (params, rows of a minibatch) ↦ loss, scalar.
        params: A pytree of floating arrays.
        optimizer: An Optax optimiser.
        optimizer_state: Its state.
        rows: A pytree of arrays [N, …].
        key: Randomness of the minibatches; consumed.
        epochs: Passes over the data.
        num_minibatches: Gradient steps in each pass; must divide N.

    Returns:
        A `Descent`.

    Raises:
        UsageError: If `num_minibatches` does not divide N.
    """
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    size, rest = divmod(num_rows, num_minibatches)
    if rest:
        raise UsageError(
            f"num_minibatches={num_minibatches} does not divide the {num_rows} rows "
            "(sequences, of a network with a memory); write a divisor."
        )
    # A rotation of each stratum, in place of a permutation: it needs no sort.
    first = jax.random.randint(key, (size, 1), 0, num_minibatches)
    order = (first + jnp.arange(num_minibatches)) % num_minibatches

    def divide(leaf: Array) -> Array:
        strata = leaf.reshape(size, num_minibatches, *leaf.shape[1:])
        rotated = jax.vmap(lambda stratum, order: stratum[order])(strata, order)
        return jnp.swapaxes(rotated, 0, 1)

    minibatches = jax.tree.map(divide, rows)

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
    finite = jnp.isfinite(max_norm(end))
    params, optimizer_state = jax.lax.cond(finite, lambda: end, lambda: start)
    return Descent(params, optimizer_state, jnp.mean(losses[-num_minibatches:]), finite)
