"""Runs by name: an environment's preset, with fields overridden on a command line."""

import ast
import shlex
from typing import Any

import trpo_jax
from trpo_jax.training import PRESETS


def parse_overrides(texts: tuple[str, ...]) -> dict[str, Any]:
    """Read `name=value` texts: values are Python literals, or else strings.

    Raises:
        ValueError: If a text has no `=`.
    """
    overrides = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--override {text} has no value; write {text}=VALUE.")
        try:
            overrides[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            overrides[name] = value
    return overrides


def configure(env: str, **overrides: Any) -> trpo_jax.TRPOConfig:
    """The preset of an environment, or the defaults, with fields set otherwise.

    Raises:
        TypeError: If an override is a not a field of the configuration.
    """
    if env in PRESETS:
        return trpo_jax.preset(env, **overrides)
    return trpo_jax.TRPOConfig(env=env, **overrides)


def command(module: str, env: str, **options: Any) -> str:
    """The command line of a module's `main`, without options that are None.

    A tuple is an option with several values, but `override` one that is repeated.
    """
    words = ["python", "-m", module, env]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if name == "override":
            words += [word for text in value for word in (flag, text)]
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)] if value else []
        elif value is not None:
            words += [flag, str(value)]
    return shlex.join(words)
