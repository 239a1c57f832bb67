"""Packages that only some uses need, imported when they are."""

import importlib
from typing import Any

from trpo_jax.errors import UsageError


def import_extra(module: str, *, extra: str) -> Any:
    """Import `module`, which `pip install "trpo_jax[extra]"` brings.

    Raises:
        UsageError: If it cannot be imported; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{module} cannot be imported ({error}). Install it with: "
            f'pip install "trpo_jax[{extra}]"'
        ) from error
