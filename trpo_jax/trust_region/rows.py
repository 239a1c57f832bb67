"""Which values within a policy belong to one state each, found without computing any.

A value has rows if its first axis is that of the states, in their order, and each row
was made from that state alone. The equations below keep rows apart; of what any other
makes from states nothing is said.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.extend import core


class Origin(NamedTuple):
    """What a value was made from.

    Attributes:
        of_params: Whether there are parameters in it.
        of_states: Whether there are states in it.
        has_rows: Whether it has rows; True of what has no states in it.
    """

    of_params: bool = False
    of_states: bool = False
    has_rows: bool = True


class Operand(NamedTuple):
    """What a product of matrices takes in.

    Attributes:
        type: Shape and dtype.
        origin: What it was made from.
        uses: Multiplications that each of its numbers takes part in.
    """

    type: Any
    origin: Origin
    uses: float


def find_rows(
    jaxpr: core.Jaxpr, arguments: Sequence[Origin]
) -> tuple[list[Operand], list[Origin]]:
    """Return the operands of all products of matrices, and the outputs' origins.

    The operands are in the order of evaluation, both of a product one after the other;
    those within loops, conditions and custom derivatives are left out.
    """
    origins = dict.fromkeys(jaxpr.constvars, Origin())
    origins |= zip(jaxpr.invars, arguments, strict=True)

    def read(atom: core.Var | core.Literal) -> Origin:
        return Origin() if isinstance(atom, core.Literal) else origins[atom]

    found: list[Operand] = []
    for equation in jaxpr.eqns:
        inputs = list(map(read, equation.invars))
        name = equation.primitive.name
        if name in _FUNCTIONS:
            operands, outputs = find_rows(_inner(equation), inputs)
            found += operands if name == "jit" else []
        else:
            if name == "dot_general":
                found += _operands(equation, inputs)
            outputs = [_origin(equation, inputs)] * len(equation.outvars)
        origins |= zip(equation.outvars, outputs, strict=True)
    return found, list(map(read, jaxpr.outvars))


def _origin(equation: core.JaxprEqn, inputs: Sequence[Origin]) -> Origin:
    """Return what the results of one equation were made from."""
    name = equation.primitive.name
    keeps_rows = _KEEPS_ROWS.get(name, lambda *_: name in _ELEMENTWISE)
    has_rows = all(origin.has_rows for origin in inputs)
    of_states = any(origin.of_states for origin in inputs)
    return Origin(
        of_params=any(origin.of_params for origin in inputs),
        of_states=of_states,
        has_rows=not of_states or (has_rows and bool(keeps_rows(equation, inputs))),
    )


def _operands(product: core.JaxprEqn, inputs: Sequence[Origin]) -> list[Operand]:
    types: list[Any] = [atom.aval for atom in (*product.invars, *product.outvars)]
    (contracted, _), _ = product.params["dimension_numbers"]
    terms = math.prod(types[0].shape[axis] for axis in contracted)
    multiplications = terms * math.prod(types[2].shape)
    return [
        Operand(type_, origin, multiplications / max(1, math.prod(type_.shape)))
        for type_, origin in zip(types, inputs, strict=False)
    ]


def _inner(equation: core.JaxprEqn) -> core.Jaxpr:
    """Return the program that an equation calls."""
    called: Any = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    return getattr(called, "jaxpr", called)


_FUNCTIONS = {"jit", "custom_jvp_call", "checkpoint"}

_ELEMENTWISE = set(
    """
    abs acos acosh add and asin asinh atan atan2 atanh cbrt ceil clamp
    convert_element_type copy cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1
    floor ge gt integer_pow is_finite le lgamma log log1p logistic lt max min mul name
    ne neg not optimization_barrier or pow real reduce_precision rem round rsqrt
    select_n sign sin sinh sqrt square stop_gradient sub tan tanh xor
    """.split()  # noqa: SIM905 (sixty lines)
)


def _dot_general(product: core.JaxprEqn, inputs: Sequence[Origin]) -> bool:
    """Rows stay in front if they are a batch of products, or the left one's rows."""
    contracted, batch = product.params["dimension_numbers"]
    if any(batch):
        return all(
            axes[0] == 0
            for axes, origin in zip(batch, inputs, strict=True)
            if origin.of_states
        )
    return not inputs[1].of_states and 0 not in contracted[0]


def _of_axes(name: str) -> Callable[[core.JaxprEqn, Sequence[Origin]], bool]:
    """Rows are kept by what works along other axes."""

    def keeps_rows(equation: core.JaxprEqn, _: Sequence[Origin]) -> bool:
        axes = equation.params[name]
        return 0 not in (axes if isinstance(axes, tuple) else (axes,))

    return keeps_rows


def _as_many(equation: core.JaxprEqn) -> bool:
    """Return whether the result is as long as what it was made from."""
    types: list[Any] = [atom.aval for atom in (equation.invars[0], *equation.outvars)]
    before, after = (type_.shape[:1] for type_ in types)
    return before == after


def _broadcast(equation: core.JaxprEqn, _: Sequence[Origin]) -> bool:
    """Rows stay in front, and a single one is not made many."""
    in_front = equation.params["broadcast_dimensions"][:1] == (0,)
    return in_front and _as_many(equation)


def _reshape(equation: core.JaxprEqn, _: Sequence[Origin]) -> bool:
    return _as_many(equation) and equation.params["dimensions"] is None


def _slice(equation: core.JaxprEqn, _: Sequence[Origin]) -> bool:
    type_: Any = equation.invars[0].aval
    strides = equation.params["strides"] or (1,)
    return (
        equation.params["start_indices"][0] == 0
        and equation.params["limit_indices"][0] == type_.shape[0]
        and strides[0] == 1
    )


def _transpose(equation: core.JaxprEqn, _: Sequence[Origin]) -> bool:
    return equation.params["permutation"][0] == 0


_KEEPS_ROWS: dict[str, Callable[[core.JaxprEqn, Sequence[Origin]], bool]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _of_axes("dimension"),
    "cumsum": _of_axes("axis"),
    "dot_general": _dot_general,
    "reduce_and": _of_axes("axes"),
    "reduce_max": _of_axes("axes"),
    "reduce_min": _of_axes("axes"),
    "reduce_or": _of_axes("axes"),
    "reduce_sum": _of_axes("axes"),
    "reshape": _reshape,
    "slice": _slice,
    "split": _of_axes("axis"),
    "squeeze": _of_axes("dimensions"),
    "transpose": _transpose,
}
