"""A policy evaluated with what its layers take in exchanged for something else.

A layer is a product of matrices, wherever the policy has one, and whatever library or
hand wrote it: the policy's program is gone through equation by equation.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jax.extend.core.primitives import dot_general_p, jit_p
from jaxtyping import Array, PyTree


class Value(NamedTuple):
    """An array within a policy, or its type, and what it was made from."""

    array: Any
    of_params: bool = False
    of_states: bool = False


class Operand(NamedTuple):
    """What a layer takes in: an operand that depends on the state.

    Attributes:
        array: It, or its type.
        of_params: Whether it was made from parameters too.
        uses: Multiplications that each of its numbers takes part in.
    """

    array: Any
    of_params: bool
    uses: float


TakeInFn = Callable[[Operand], Array]


def evaluate_with_operands(
    policy: core.ClosedJaxpr,
    params: PyTree,
    observations: PyTree,
    take_in_fn: TakeInFn,
) -> list[Value]:
    """Return the leaves of policy_fn(params, observations), its operands exchanged.

    Args:
        policy: jax.make_jaxpr(policy_fn)(params, observations).
        params: θ, a pytree of arrays.
        observations: The states, a pytree of arrays.
        take_in_fn: Operand ↦ what its layer takes in for it, of the same shape and
            dtype; called in the order of evaluation. Of products of matrices in loops
            and conditions it is not told, and they are evaluated as they are.
    """
    values = [
        *(Value(leaf, of_params=True) for leaf in jax.tree.leaves(params)),
        *(Value(leaf, of_states=True) for leaf in jax.tree.leaves(observations)),
    ]
    return _evaluate(policy, values, take_in_fn)


def _evaluate(
    closed: core.ClosedJaxpr, arguments: Sequence[Value], take_in_fn: TakeInFn
) -> list[Value]:
    """Go through a program's equations, and through the jitted functions among them."""
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, map(Value, closed.consts), strict=True))
    values |= zip(jaxpr.invars, arguments, strict=True)

    def read(atom: core.Var | core.Literal) -> Value:
        return Value(atom.val) if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands = list(map(read, equation.invars))
        if equation.primitive is jit_p:
            results = _evaluate(equation.params["jaxpr"], operands, take_in_fn)
        else:
            of_params = any(operand.of_params for operand in operands)
            of_states = any(operand.of_states for operand in operands)
            if equation.primitive is dot_general_p:
                operands = _take_in(equation, operands, take_in_fn)
            arrays = _apply(jaxpr, equation, operands)
            results = [Value(array, of_params, of_states) for array in arrays]
        values |= zip(equation.outvars, results, strict=True)
    return list(map(read, jaxpr.outvars))


def _take_in(
    product: core.JaxprEqn, operands: Sequence[Value], take_in_fn: TakeInFn
) -> list[Value]:
    """Exchange the operands of a product of matrices that depend on the state."""
    (contracted, _), _ = product.params["dimension_numbers"]
    terms = math.prod(operands[0].array.shape[axis] for axis in contracted)
    result: Any = product.outvars[0].aval
    multiplications = terms * result.size

    def exchange(value: Value) -> Value:
        if not value.of_states:
            return value
        uses = multiplications / value.array.size
        return value._replace(
            array=take_in_fn(Operand(value.array, value.of_params, uses))
        )

    return list(map(exchange, operands))


def _apply(
    jaxpr: core.Jaxpr, equation: core.JaxprEqn, operands: Sequence[Value]
) -> list[Array]:
    """Return the results of one equation, as JAX itself evaluates it."""
    arrays = {
        atom: operand.array
        for atom, operand in zip(equation.invars, operands, strict=True)
        if not isinstance(atom, core.Literal)
    }
    alone = jaxpr.replace(
        constvars=[], invars=list(arrays), outvars=equation.outvars, eqns=[equation]
    )
    return core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*arrays.values())
