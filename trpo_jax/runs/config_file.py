"""Configs as files: readable, and enough to make the run again."""

import dataclasses
import json
import pathlib
import tomllib
from difflib import get_close_matches
from typing import Any

from trpo_jax.errors import UsageError
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.config_checks import ignored_fields

_FIELDS = {field.name for field in dataclasses.fields(TRPOConfig)}


def config_to_dict(config: TRPOConfig) -> dict[str, Any]:
    """Return the config as plain values, fit for JSON.

    A Python object (a network, a schedule, your own environment) becomes
    {"python": its description}, from which it cannot be made again. Two of these are
    compared by their descriptions, so functions by their names only. Fields that policy
    update and critic's fit ignore are left out: their defaults may change. So are the
    devices: a run may go on where there are others.
    """
    ignored = ["devices", *ignored_fields(config.update, config.critic_fit)]
    return {
        field.name: as_plain(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.name not in ignored
    }


def config_from_dict(values: dict[str, Any]) -> TRPOConfig:
    """Return the config that `config_to_dict` was given.

    Args:
        values: Fields by name; the others have their defaults.

    Raises:
        UsageError: If a name is unknown, a Python object is missing, or the values do
            not make a run.
        UsageTypeError: If a value is of the wrong type.
    """
    unknown = sorted(values.keys() - _FIELDS)
    if unknown:
        raise UsageError(
            f"no such field: {'; '.join(map(_with_nearest, unknown))}. "
            "docs/config.md lists them. Settings of a run, such as checkpoint_updates, "
            "are not fields: pass them as options, or in RunSettings."
        )
    missing = from_python(values)
    if missing:
        raise UsageError(
            "Python objects that a file does not hold: "
            + "; ".join(f"{name} ({values[name]['python']})" for name in missing)
            + ". In Python, pass the config that the run was started with as the "
            "argument config."
        )
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
    }
    return TRPOConfig(**values)


def _with_nearest(name: str) -> str:
    near = get_close_matches(name.lower(), sorted(_FIELDS))
    return f"{name} (did you mean {' or '.join(near)}?)" if near else name


def read_config_values(path: pathlib.Path) -> dict[str, Any]:
    """Return the fields in a .json or .toml file.

    Raises:
        UsageError: If there is no such file, or it cannot be read.
    """
    parsers = {".json": json.loads, ".toml": tomllib.loads}
    if path.suffix not in parsers:
        raise UsageError(f"{path} is neither .json nor .toml; name such a file.")
    try:
        values = parsers[path.suffix](path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"{path} is not {path.suffix[1:]}: {error}.") from error
    if not isinstance(values, dict):
        raise UsageError(f'{path} holds no fields; write {{"env": "CartPole-v1"}}.')
    return values


def from_python(values: dict[str, Any]) -> list[str]:
    """Return the fields of a `config_to_dict` that are Python objects."""
    return [
        name
        for name, value in values.items()
        if isinstance(value, dict) and value.keys() == {"python"}
    ]


def as_plain(value: Any) -> Any:
    """Return the value of a field, fit for JSON; see `config_to_dict`."""
    if isinstance(value, tuple) and all(
        isinstance(one, int | float | str) for one in value
    ):
        return list(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return {"python": _describe(value)}


def _describe(value: Any) -> str:
    """Return a function's qualified name, or the repr of another object."""
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    text = " ".join(repr(value).split())
    if " at 0x" in text:  # an address, which means nothing in another process
        return f"{type(value).__module__}.{type(value).__qualname__}"
    return text
