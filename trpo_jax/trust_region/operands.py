"""A program evaluated with what its products of matrices take in exchanged."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jax.extend import core
from jax.extend.core.primitives import dot_general_p, jit_p
from jaxtyping import Array

ExchangeFn = Callable[[Array], Array]


def evaluate_with_operands(
    program: core.ClosedJaxpr,
    arguments: Sequence[Any],
    exchange_fns: Iterator[ExchangeFn],
) -> list[Any]:
    """Return the program's outputs.

    Args:
        program: What is gone through equation by equation, and into jitted functions.
        arguments: Its inputs.
        exchange_fns: Of each operand of a product of matrices, in the order of
            `find_rows`: operand ↦ what is taken in for it, of the same shape and dtype.
    """
    jaxpr = program.jaxpr
    arrays = dict(zip(jaxpr.constvars, program.consts, strict=True))
    arrays |= zip(jaxpr.invars, arguments, strict=True)

    def read(atom: core.Var | core.Literal) -> Any:
        return atom.val if isinstance(atom, core.Literal) else arrays[atom]

    for equation in jaxpr.eqns:
        inputs = list(map(read, equation.invars))
        if equation.primitive is jit_p:
            inner = equation.params["jaxpr"]
            outputs = evaluate_with_operands(inner, inputs, exchange_fns)
        else:
            if equation.primitive is dot_general_p:
                inputs = [next(exchange_fns)(operand) for operand in inputs]
            outputs = _apply(jaxpr, equation, inputs)
        arrays |= zip(equation.outvars, outputs, strict=True)
    return list(map(read, jaxpr.outvars))


def _apply(
    jaxpr: core.Jaxpr, equation: core.JaxprEqn, inputs: Sequence[Any]
) -> list[Any]:
    """Return the results of one equation, as JAX itself evaluates it."""
    arrays = {
        atom: array
        for atom, array in zip(equation.invars, inputs, strict=True)
        if not isinstance(atom, core.Literal)
    }
    alone = jaxpr.replace(
        constvars=[], invars=list(arrays), outvars=equation.outvars, eqns=[equation]
    )
    return core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*arrays.values())
