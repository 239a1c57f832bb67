"""The Jacobian of a policy by its layers: products with it for half the work.

Forward mode takes two products of matrices in each layer, for the change of its weights
and for the change of its input; reverse mode as many. But in one state the change of
the input a_l of a layer moves the K outputs y by [K, size of a_l] numbers that do not
depend on the vector. Where K is small these are stored, and a product with the Jacobian
J takes one product of matrices in each layer:

    J v = ẏ + Σ_l S_l ȧ_l    with (ẏ, ȧ) = T v  and  S_l = ∂y/∂a_l

T is the derivative in the parameters of y and of every a_l, each computed from the a's
before it as if those were constants.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array, Float, PyTree

from trpo_jax.trust_region.operands import Operand, Value, evaluate_with_operands

_PolicyFn = Callable[[PyTree, PyTree], PyTree]

# What a multiplication by a stored number costs, in those of a product of matrices:
# measured with 64 to 1,024 units, 2 to 16 outputs and 200 to 16,384 states on a CPU.
_STORED_COST = 12


def linearize_policy(
    policy_fn: _PolicyFn, params: PyTree, observations: PyTree, *, num_products: int
) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """Return y = policy_fn(params, observations), and v ↦ J v, linear in v.

    Args:
        policy_fn: (params, observations [N, …]) ↦ a pytree of arrays, [N, …] or shared
            by all states; what it says of one state depends on no other.
        params: θ, a pytree of floating arrays.
        observations: The N states, a pytree of arrays [N, …].
        num_products: How often J v and its transpose will be asked for, which must be
            worth what is stored. It changes the cost, and the result to rounding.
    """
    policy = _trace(policy_fn, params, observations)
    is_row, is_stored = _plan(
        policy, _trace(policy_fn, params, _one_more(observations)), num_products
    )
    if not any(is_stored):
        return jax.linearize(lambda params: policy_fn(params, observations), params)

    def evaluate(params: PyTree, exchange_fn: Callable[[Array], Array]) -> list[Array]:
        stored = iter(is_stored)

        def take_in(operand: Operand) -> Array:
            return exchange_fn(operand.array) if next(stored) else operand.array

        outputs = evaluate_with_operands(policy.program, params, observations, take_in)
        return [output.array for output in outputs]

    def apart(params: PyTree) -> tuple[list[Array], list[Array]]:
        """Return y and the a's, each as if the a's before it were constants."""
        inputs: list[Array] = []

        def hold(a: Array) -> Array:
            inputs.append(a)
            return jax.lax.stop_gradient(a)

        return evaluate(params, hold), inputs

    def totals(shifts: Sequence[Array]) -> list[Array]:
        """Return Σ_s y(s) with shifted a's: in one state, they move its y(s) alone."""
        shift = iter(shifts)
        rows = itertools.compress(evaluate(params, lambda a: a + next(shift)), is_row)
        return [output.sum(axis=0) for output in rows]

    (outputs, inputs), direct = jax.linearize(apart, params)
    stored = [
        [list(S.reshape(-1, *a.shape)) for S, a in zip(of_one, inputs, strict=True)]
        for of_one in jax.jacrev(totals)(jax.tree.map(jnp.zeros_like, inputs))
    ]

    def jacobian(vector: PyTree) -> PyTree:
        changes, input_changes = direct(vector)
        of_one = iter(stored)
        for i in itertools.compress(range(len(changes)), is_row):
            for move in map(_move, next(of_one), input_changes):
                changes[i] += move.reshape(changes[i].shape)
        return policy.structure.unflatten(changes)

    return policy.structure.unflatten(outputs), jacobian


def _move(
    stored: Sequence[Float[Array, "N ..."]], changes: Float[Array, "N ..."]
) -> Float[Array, "N K"]:
    """Return S ȧ in each state, for one output of K numbers.

    One number after the other: XLA has no quick way to sum over all of them at once.
    """
    axes = tuple(range(1, changes.ndim))
    return jnp.stack([jnp.sum(S * changes, axes) for S in stored], axis=-1)


class _Traced(NamedTuple):
    """A policy's program, and the types of what is in it.

    Attributes:
        program: The program of (params, observations).
        structure: Of the outputs.
        outputs: Their leaves.
        operands: What its layers take in, in the order of evaluation.
    """

    program: core.ClosedJaxpr
    structure: Any
    outputs: list[Value]
    operands: list[Operand]


def _trace(policy_fn: _PolicyFn, params: PyTree, observations: PyTree) -> _Traced:
    """Look at a policy without computing anything."""
    program, outputs_type = jax.make_jaxpr(policy_fn, return_shape=True)(
        params, observations
    )
    operands: list[Operand] = []
    outputs: list[Value] = []

    def note(operand: Operand) -> Array:
        operands.append(operand._replace(array=jax.typeof(operand.array)))
        return operand.array

    def run(params: PyTree, states: PyTree) -> None:
        outputs.extend(
            output._replace(array=jax.typeof(output.array))
            for output in evaluate_with_operands(program, params, states, note)
        )

    jax.eval_shape(run, params, observations)
    return _Traced(program, jax.tree.structure(outputs_type), outputs, operands)


def _one_more(observations: PyTree) -> PyTree:
    """Return the types of the observations of one state more."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (leaf.shape[0] + 1, *leaf.shape[1:]), leaf.dtype
        ),
        observations,
    )


def _plan(
    policy: _Traced, longer: _Traced, num_products: int
) -> tuple[list[bool], list[bool]]:
    """Return which outputs have rows of the states, and which operands an S stored.

    Rows are what one state more makes longer.
    """
    is_row = list(map(_is_row, policy.outputs, longer.outputs))
    num_outputs = sum(
        math.prod(output.array.shape[1:])
        for output in itertools.compress(policy.outputs, is_row)
    )
    # An output without rows may still depend on all states together: on a mean, say.
    by_state = all(
        row or not output.of_states
        for row, output in zip(is_row, policy.outputs, strict=True)
    )

    def is_worth_it(operand: Operand, longer: Operand) -> bool:
        if not (by_state and operand.of_params and _is_row(operand, longer)):
            return False
        return num_outputs * (_STORED_COST / operand.uses + 1 / num_products) < 1

    return is_row, list(map(is_worth_it, policy.operands, longer.operands))


def _is_row(value: Value | Operand, longer: Value | Operand) -> bool:
    """Return whether one more state makes it longer by one along its first axis."""
    shape, longer_shape = value.array.shape, longer.array.shape
    return longer_shape != shape and longer_shape == (shape[0] + 1, *shape[1:])
