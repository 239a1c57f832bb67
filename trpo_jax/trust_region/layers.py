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

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, Float, PyTree

from trpo_jax.trust_region.operands import ExchangeFn, evaluate_with_operands
from trpo_jax.trust_region.rows import Operand, Origin, find_rows

# What a multiplication by a stored number costs, in those of a product of matrices:
# measured with 64 to 1,024 units, 2 to 16 outputs and 200 to 16,384 states on a CPU.
_STORED_COST = 12


def linearize_policy(
    policy_fn: Callable[[PyTree, PyTree], PyTree],
    params: PyTree,
    observations: PyTree,
    *,
    num_products: int,
) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """Return y = policy_fn(params, observations), and v ↦ J v, linear in v.

    S is stored where that is worth it, and where it can be seen that each state has its
    y from itself alone; else J is what `jax.linearize` makes of the policy.

    Args:
        policy_fn: (params, observations [N, …]) ↦ a pytree of arrays.
        params: θ, a pytree of floating arrays.
        observations: The N states, a pytree of arrays [N, …].
        num_products: How often J v and its transpose will be asked for. It changes what
            is stored, K arrays like the input of a layer, and with it time and memory,
            and the result to rounding.
    """
    program, outputs_type = jax.make_jaxpr(policy_fn, return_shape=True)(
        params, observations
    )
    program = _without_dead_code(program)
    operands, is_row = _plan(program, len(jax.tree.leaves(params)), num_products)
    types = [operand.type for operand in operands if operand is not None]
    if not types:
        return jax.linearize(lambda params: policy_fn(params, observations), params)

    def evaluate(params: PyTree, exchange_fn: ExchangeFn) -> list[Array]:
        fns = (_keep if operand is None else exchange_fn for operand in operands)
        leaves = jax.tree.leaves((params, observations))
        return evaluate_with_operands(program, leaves, fns)

    def totals(shifts: Sequence[Array]) -> tuple[list[Array], tuple]:
        """Return Σ_s y(s) with shifted a's: in one state, they move its y(s) alone."""
        inputs: list[Array] = []
        shift = iter(shifts)

        def add(a: Array) -> Array:
            inputs.append(a + next(shift))
            return inputs[-1]

        outputs = evaluate(params, add)
        rows = itertools.compress(outputs, is_row)
        return [output.sum(axis=0) for output in rows], (outputs, inputs)

    zeros = [jnp.zeros(type_.shape, type_.dtype) for type_ in types]
    responses, (outputs, inputs) = jax.jacrev(totals, has_aux=True)(zeros)
    stored = [
        [list(S.reshape(-1, *a.shape)) for S, a in zip(of_one, inputs, strict=True)]
        for of_one in responses
    ]

    def apart(params: PyTree) -> tuple[list[Array], list[Array]]:
        """Return y and the a's, each as if the a's before it were constants."""
        changing: list[Array] = []
        constant = iter(inputs)

        def hold(a: Array) -> Array:
            changing.append(a)
            return next(constant)

        return evaluate(params, hold), changing

    _, direct = jax.linearize(apart, params)
    structure = jax.tree.structure(outputs_type)

    def jacobian(vector: PyTree) -> PyTree:
        changes, input_changes = direct(vector)
        of_one = iter(stored)
        for i in itertools.compress(range(len(changes)), is_row):
            for move in map(_move, next(of_one), input_changes):
                changes[i] += move.reshape(changes[i].shape).astype(changes[i].dtype)
        return jax.tree.unflatten(structure, changes)

    return jax.tree.unflatten(structure, outputs), jacobian


def _keep(operand: Array) -> Array:
    return operand


def _move(
    stored: Sequence[Float[Array, "N ..."]], changes: Float[Array, "N ..."]
) -> Float[Array, "N K"]:
    """Return S ȧ in each state, for one output of K numbers.

    One number after the other: XLA has no quick way to sum over all of them at once.
    """
    axes = tuple(range(1, changes.ndim))
    return jnp.stack([jnp.sum(S * changes, axes) for S in stored], axis=-1)


def _without_dead_code(program: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Return the program without what comes to nothing, such as a critic beside it."""
    used = [True] * len(program.jaxpr.outvars)
    jaxpr, _ = dce_jaxpr(program.jaxpr, used, instantiate=True)
    return core.ClosedJaxpr(jaxpr, program.consts)


def _plan(
    program: core.ClosedJaxpr, num_params: int, num_products: int
) -> tuple[list[Operand | None], list[bool]]:
    """Return the operands for which to store S, None for others, and which y have rows.

    The operands are all those of the program, in the order of evaluation.
    """
    origins = [
        Origin(of_params=i < num_params, of_states=i >= num_params)
        for i in range(len(program.jaxpr.invars))
    ]
    operands, outputs = find_rows(program.jaxpr, origins)
    is_row = [output.of_states for output in outputs]
    num_outputs = sum(
        math.prod(type_.shape[1:])
        for type_ in itertools.compress(program.out_avals, is_row)
    )
    if num_outputs == 0 or not all(output.has_rows for output in outputs):
        return [None] * len(operands), is_row

    def is_worth_it(operand: Operand) -> bool:
        of_params, of_states, has_rows = operand.origin
        floating = jnp.issubdtype(operand.type.dtype, jnp.floating)
        cost = num_outputs * (_STORED_COST / operand.uses + 1 / num_products)
        return of_params and of_states and has_rows and floating and cost < 1

    return [one if is_worth_it(one) else None for one in operands], is_row
