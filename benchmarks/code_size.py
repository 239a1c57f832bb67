"""Lines of code of each policy update."""

import ast
import inspect
from types import ModuleType

from trpo_jax.trust_region import (
    backtracking,
    cg,
    first_order,
    fisher,
    natural_gradient,
    ppo,
    projection,
    step_size,
    update,
)

# Modules that an update is made of, beside those that all need.
_NATURAL = (cg, fisher, step_size)
MODULES: dict[str, tuple[ModuleType, ...]] = {
    "trpo": (update, *_NATURAL, backtracking),
    "tnpg": (natural_gradient, *_NATURAL),
    "npg": (natural_gradient, *_NATURAL),
    "projection": (projection, first_order, backtracking),
    "ppo": (ppo, first_order),
    "ppo_penalty": (ppo, first_order),
}


def lines_of_code(update: str) -> int:
    """Return the lines of an update without blank ones, comments and docstrings."""
    return sum(len(_lines(inspect.getsource(module))) for module in MODULES[update])


def _lines(source: str) -> set[int]:
    tree = ast.parse(source)
    docs = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    texts = source.splitlines()
    return {
        number
        for number, text in enumerate(texts, start=1)
        if text.strip() and not text.strip().startswith("#") and number not in docs
    }
