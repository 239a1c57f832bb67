"""Initial parameters of a network, which is checked to be a pure function of them."""

from typing import Any

import flax.errors
import flax.linen as nn
import jax
from jaxtyping import Array, Key, PyTree

from trpo_jax.errors import UsageError, UsageTypeError, describe_type


def init_network(network: Any, key: Key[Array, ""], *inputs: PyTree) -> PyTree:
    """Return `network.init(key, *inputs)`, if the network is a pure function.

    Args:
        network: A `Network` or a `RecurrentNetwork`.
        key: Randomness; consumed.
        *inputs: Those of its `apply`, after the parameters.

    Raises:
        UsageError: If a Flax module has mutable state, as of BatchNorm, or needs random
            numbers when it is applied, as Dropout does.
        UsageTypeError: If what it returns is not a pytree of arrays.
    """

    def apply(params: PyTree, *inputs: PyTree) -> PyTree:
        output = network.apply(params, *inputs)
        for leaf in jax.tree.leaves(output):
            if not (hasattr(leaf, "dtype") or isinstance(leaf, int | float)):
                raise UsageTypeError(
                    f"{type(network).__name__} returned {describe_type(leaf)}, which "
                    "is not a pytree of arrays; make it a NamedTuple or a "
                    "flax.struct.dataclass of arrays."
                )
        return output

    try:
        params = network.init(key, *inputs)
        jax.eval_shape(apply, params, *inputs)
    except (flax.errors.InvalidRngError, flax.errors.ModifyScopeVariableError) as error:
        reason = str(error).partition(" (http")[0].rstrip(".")
        raise UsageError(_impure(network, f"is not: {reason}")) from error
    collections = set(params) - {"params"} if isinstance(network, nn.Module) else ()
    if collections:
        # They would be trained as if they were parameters.
        names = ", ".join(sorted(collections))
        raise UsageError(_impure(network, f"has variables beside them, {names}"))
    return params


def _impure(network: Any, reason: str) -> str:
    return (
        "a network is a pure function of its parameters and observations here, but "
        f"{type(network).__name__} {reason}. Write nn.LayerNorm in place of "
        "nn.BatchNorm, and leave out nn.Dropout or switch it off: nn.Dropout(rate, "
        "deterministic=True)."
    )
