"""Adapter from Flax's NNX modules, which hold their parameters, to `Network`."""

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.tree_util import keystr
from jaxtyping import Array, Key, PyTree

from trpo_jax.errors import UsageError, UsageTypeError, describe_type


@runtime_checkable
class NNXModule(Protocol):
    """Protocol of `flax.nnx.Module`, which is slow to import."""

    @property
    def set_attributes(self) -> Callable[..., None]:
        """Set attributes of the module and the modules inside."""

    @property
    def perturb(self) -> Callable[..., Any]:
        """Add a variable whose gradient is an output's."""


class NNXNetwork:
    """A network made from an NNX module: `Network`, or `RecurrentNetwork`.

    The module is called with observations [N, …]. If it has a method `initial_memory`,
    it is called with (memory, observations, starts), as `RecurrentNetwork` says.

    Its `nnx.Param`s are the parameters. A factory makes new ones for every seed; from a
    module every seed starts with the values that it has now. Other variables are
    constants: those of the module, or of `factory(nnx.Rngs(0))`.
    """

    def __init__(self, source: Any):
        """Split a module into structure, parameters and other variables, once.

        Args:
            source: A module, or a function that makes one from `nnx.Rngs`, such as its
                class: `NNXNetwork(MyPolicy)`.

        Raises:
            UsageTypeError: If it is neither, or a parameter is not a float.
        """
        nnx = _nnx()
        self._source = source
        self._is_factory = callable(source) and not isinstance(source, nnx.Module)
        module = source
        if self._is_factory:
            # Evaluated at once, even under a trace, which the other variables outlive.
            with jax.ensure_compile_time_eval():
                module = source(nnx.Rngs(0))
        if not isinstance(module, nnx.Module):
            raise UsageTypeError(
                f"{describe_type(source)} is neither an NNX module nor makes one; write"
                " NNXNetwork(module), or NNXNetwork(lambda rngs: MyPolicy(..., rngs))."
            )
        self._name = type(module).__qualname__
        self._graph, params, rest = nnx.split(module, nnx.Param, ...)
        self._params, self._params_tree = _by_path(params)
        self._rest, self._rest_tree = jax.tree.flatten(rest)
        for path, leaf in self._params.items():
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise UsageTypeError(
                    f"the parameter {path} of {self._name} is {describe_type(leaf)}; "
                    "make it an nnx.Variable, or a float."
                )
        if hasattr(module, "initial_memory"):
            # On the object, not in the class: this method tells RecurrentNetwork apart.
            self.initial_memory = self._initial_memory

    def __repr__(self) -> str:
        return f"NNXNetwork({self._name})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NNXNetwork) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:
        """Return what makes two networks the same program with the same start."""
        if self._is_factory:
            return (self._source,)
        # Arrays do not change, and are kept by both: their identity will do.
        leaves = (*self._params.values(), *self._rest)
        return (self._graph, *map(id, leaves))

    def init(self, key: Key[Array, ""], *inputs: PyTree) -> dict[str, Array]:
        """Return parameters by their paths; consumes `key`."""
        params = self._params
        if self._is_factory:
            nnx = _nnx()
            module = self._source(nnx.Rngs(key))
            params, _ = _by_path(nnx.state(module, nnx.Param))
        return dict(params)

    def apply(self, params: dict[str, Array], *inputs: PyTree) -> Any:
        """Return the module's output.

        Raises:
            UsageError: If the module changes a variable, as BatchNorm and Dropout do.
        """
        module = self._merge(params)
        variables = dict(_nnx().to_flat_state(_nnx().state(module)))
        before = {path: one.get_raw_value() for path, one in variables.items()}
        output = module(*inputs)
        changed = {
            f"{type(variable).__name__} {'.'.join(map(str, path))}"
            for path, variable in variables.items()
            if variable.get_raw_value() is not before[path]
        }
        if changed:
            raise UsageError(
                "a network is a pure function of its parameters and observations here, "
                f"but {self._name} changes {', '.join(sorted(changed))}. Write "
                "nnx.LayerNorm in place of nnx.BatchNorm and leave out nnx.Dropout, or "
                "switch both off: module.eval(), in a factory before it returns."
            )
        return output

    def _initial_memory(self, num_sequences: int) -> PyTree:
        return self._merge(self._params).initial_memory(num_sequences)

    def _merge(self, params: dict[str, Array]) -> Any:
        """Return a fresh module with these parameters."""
        # Unflattened anew: NNX refuses to change a variable of another trace, and
        # outside of one it would change ours.
        leaves = [params[path] for path in self._params]
        return _nnx().merge(
            self._graph,
            jax.tree.unflatten(self._params_tree, leaves),
            jax.tree.unflatten(self._rest_tree, self._rest),
        )


def as_network(network: Any) -> Any:
    """Return `network`; an NNX module as `NNXNetwork(module)`."""
    is_nnx = "flax.nnx" in sys.modules and isinstance(network, _nnx().Module)
    return NNXNetwork(network) if is_nnx else network


@functools.cache
def _nnx() -> Any:
    """Import `flax.nnx` where it is used: it takes a fifth of the package's import."""
    return importlib.import_module("flax.nnx")


def _by_path(state: PyTree) -> tuple[dict[str, Array], Any]:
    """Return the arrays of a state as {"layers.0.kernel": …}, and its structure.

    A plain dictionary is a checkpoint that can be read without NNX.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(state)
    # The last part of a path leads from a variable to its value.
    by_path = {
        keystr(path[:-1], simple=True, separator="."): leaf for path, leaf in leaves
    }
    return by_path, tree
