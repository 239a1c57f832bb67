"""Configs and commands of runs: presets with overridden fields."""

import ast
import shlex
from typing import Any

import trpo_jax
from benchmarks.environments import PRESET_OF
from trpo_jax.training import PRESETS


def parse_overrides(texts: tuple[str, ...]) -> dict[str, Any]:
    """Parse `name=value` texts; values are Python literals, otherwise strings.

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
    """Return the preset of an environment, or the defaults, with fields overridden.

    Raises:
        TypeError: If an override is not a field of the config.
    """
    preset = PRESET_OF.get(env, env)
    if preset in PRESETS:
        return trpo_jax.preset(preset, env=env, **overrides)
    return trpo_jax.TRPOConfig(env=env, **overrides)


def command(module: str, *arguments: str, **options: Any) -> str:
    """Return the command line of a module's `main`, without options that are None.

    A tuple becomes one option with several values; `override` is repeated instead.
    """
    words = ["python", "-m", module, *arguments]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if name == "override":
            words += [word for text in value for word in (flag, text)]
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)] if value else []
        elif value is not None:
            words += [flag, str(value)]
    return shlex.join(words)
