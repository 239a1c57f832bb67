"""Settings of a sweep: grids, random draws, and the programs that they need."""

import dataclasses
import itertools
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import jax
import numpy as np

from trpo_jax.environments.gymnasium import is_on_host
from trpo_jax.errors import UsageError, UsageTypeError, describe_type
from trpo_jax.training.config import TRPOConfig, check_config
from trpo_jax.training.hyperparameters import Hyperparameters
from trpo_jax.trust_region.checks import whole

TRACED_FIELDS = Hyperparameters._fields
"""Fields of a config that are traced: all their values share one program."""

# What all settings of a sweep have in common: returns of different environments have no
# common ranking, and seeds and devices are those of every setting.
_COMMON = {
    "env": "write a sweep for each environment",
    "seed": "write num_seeds=8 for several seeds of each setting",
    "num_seeds": "write one number, as num_seeds=8",
    "devices": "write it in the config: the runs are spread over so many devices",
}

PROGRAM_FIELDS = tuple(
    field.name
    for field in dataclasses.fields(TRPOConfig)
    if field.name not in (*TRACED_FIELDS, *_COMMON)
)
"""Fields of a config that are part of the program: each value compiles its own."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Interval that a random search draws from; made by `uniform` and `log_uniform`.

    Attributes:
        low: Least value.
        high: Greatest value.
        logarithmic: Whether the logarithm is uniform, instead of the value.
    """

    low: float
    high: float
    logarithmic: bool

    def draw(self, generator: np.random.Generator) -> float:
        """Return a value, in six digits: a drawn setting can be written down."""
        low, high = self.low, self.high
        if self.logarithmic:
            value = math.exp(generator.uniform(math.log(low), math.log(high)))
        else:
            value = generator.uniform(low, high)
        return min(max(float(f"{value:.6g}"), low), high)

    def __str__(self) -> str:
        """Return the call that makes it, which `parse_range` reads."""
        name = "log_uniform" if self.logarithmic else "uniform"
        return f"{name}({self.low!r}, {self.high!r})"


def uniform(low: float | int, high: float | int) -> Range:
    """Return an interval that a random search draws from uniformly.

    Args:
        low: Least value.
        high: Greatest value.

    Raises:
        UsageTypeError: If an end is not a number.
        UsageError: If the ends are not finite, or not in this order.
    """
    return Range(*_ends("uniform", low, high), logarithmic=False)


def log_uniform(low: float | int, high: float | int) -> Range:
    """Return an interval that a random search draws from, uniformly in the logarithm.

    Args:
        low: Least value, above 0.
        high: Greatest value.

    Raises:
        UsageTypeError: If an end is not a number.
        UsageError: If the ends are not finite, not in this order, or not above 0.
    """
    low, high = _ends("log_uniform", low, high)
    if low <= 0:
        raise UsageError(
            f"log_uniform({low:g}, {high:g}): 0 has no logarithm; write a low end "
            "above 0, as log_uniform(0.001, 1), or uniform(...)."
        )
    return Range(low, high, logarithmic=True)


def parse_range(text: str) -> Range | None:
    """Return the `Range` that a text such as "log_uniform(0.001, 1)" calls for.

    None if it is another text.

    Raises:
        UsageError: As `uniform` and `log_uniform`, or if an end is not a number.
    """
    found = re.fullmatch(r"\s*((?:log_)?uniform)\s*\(([^,]*),([^,]*)\)\s*", text)
    if found is None:
        return None
    make = log_uniform if found[1] == "log_uniform" else uniform
    try:
        ends = float(found[2]), float(found[3])
    except ValueError:
        raise UsageError(
            f"{text}: the ends are not numbers; write {found[1]}(0.001, 1)."
        ) from None
    return make(*ends)


def _ends(name: str, low: Any, high: Any) -> tuple[float, float]:
    for end in (low, high):
        if not isinstance(end, numbers.Real) or isinstance(end, bool):
            raise UsageTypeError(
                f"{name}: {describe_type(end)} is not a number; write {name}(0.001, 1)."
            )
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(
            f"{name}({low:g}, {high:g}) is empty or not finite; write the lower end "
            f"first, as {name}(0.001, 1)."
        )
    return float(low), float(high)


def make_settings(
    config: TRPOConfig,
    fields: Mapping[str, Any],
    *,
    num_settings: int | None = None,
    search_seed: int = 0,
) -> list[TRPOConfig]:
    """Return the configs of a sweep: a grid of lists, or random draws.

    Args:
        config: The config whose fields are swept.
        fields: By the name of a field, a list of values, or a `Range`. Lists alone make
            the grid of all combinations, the last field varying fastest.
        num_settings: Number of random draws, where a field has a `Range`; fields with
            lists are then drawn from these.
        search_seed: Seed of these draws.

    Returns:
        A config for each setting, all different.

    Raises:
        UsageTypeError: If `config` is not a `TRPOConfig`, or a field has neither.
        UsageError: If a field cannot be swept, a list is empty or repeats a value, a
            value is out of range, `num_settings` is missing or not needed, or the
            environments are on the host.
    """
    check_config(config)
    if is_on_host(config.env):
        raise UsageError(
            f"a sweep trains settings side by side, and the environments of "
            f"{config.env}, which are on the host, cannot be copied for them; write a "
            "loop of trpo_jax.run(dataclasses.replace(config, max_kl=max_kl))."
        )
    _check_names(fields)
    fields = {name: as_list(values) for name, values in fields.items()}
    for name, values in fields.items():
        _check_values(name, values)
    is_random = any(isinstance(values, Range) for values in fields.values())
    if is_random and num_settings is None:
        raise UsageError(
            "num_settings is missing, but "
            f"{_first_range(fields)} is drawn at random; write num_settings=32, or a "
            "list of values for a grid."
        )
    if not is_random and num_settings is not None:
        raise UsageError(
            f"num_settings={num_settings} is for a random search, and these fields are "
            "a grid; leave it out, or write log_uniform(low, high) for a field."
        )
    if is_random:
        combinations = _draws(fields, whole("num_settings", num_settings), search_seed)
    else:
        combinations = list(itertools.product(*fields.values()))
    settings = [
        _replaced(config, dict(zip(fields, values, strict=True)))
        for values in combinations
    ]
    seen: dict[TRPOConfig, tuple] = {}
    for setting, values in zip(settings, combinations, strict=True):
        if setting in seen:
            advice = "wider intervals" if is_random else "each value once"
            raise UsageError(
                f"two settings are the same: {dict(zip(fields, values, strict=True))}; "
                f"write {advice}."
            )
        seen[setting] = values
    return settings


def as_list(values: Any) -> Any:
    """Return a list or an array as a list of Python's values; anything else as it is.

    Lists inside, which a JSON file has, become tuples.
    """
    if isinstance(values, jax.Array | np.ndarray):
        values = np.asarray(values).tolist()
    if isinstance(values, str) or not isinstance(values, Sequence):
        return values
    return [
        value.item()
        if isinstance(value, np.generic)
        else tuple(value)
        if isinstance(value, list)
        else value
        for value in values
    ]


def _draws(fields: Mapping[str, Any], count: int, search_seed: int) -> list[tuple]:
    generator = np.random.default_rng(whole("search_seed", search_seed, least=0))
    return [
        tuple(
            values.draw(generator)
            if isinstance(values, Range)
            else values[generator.integers(len(values))]
            for values in fields.values()
        )
        for _ in range(count)
    ]


def _first_range(fields: Mapping[str, Any]) -> str:
    return next(
        f"{name}={values}"
        for name, values in fields.items()
        if isinstance(values, Range)
    )


def _check_names(fields: Mapping[str, Any]) -> None:
    if not fields:
        raise UsageError(
            "no field to sweep over; write values for one, as max_kl=[0.01, 0.02]. "
            f"{_fields_to_sweep()}"
        )
    for name in fields:
        if name in _COMMON:
            raise UsageError(f"{name} is common to all settings; {_COMMON[name]}.")
        if name not in (*TRACED_FIELDS, *PROGRAM_FIELDS):
            near = get_close_matches(name, (*TRACED_FIELDS, *PROGRAM_FIELDS))
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise UsageError(
                f"{name} is not a field of a config.{hint} {_fields_to_sweep()}"
            )


def _fields_to_sweep() -> str:
    return (
        f"Traced fields, which share one program: {', '.join(TRACED_FIELDS)}. Fields "
        f"of which each value compiles a program: {', '.join(PROGRAM_FIELDS)}."
    )


def _check_values(name: str, values: Any) -> None:
    if isinstance(values, Range):
        if name not in TRACED_FIELDS:
            raise UsageError(
                f"{name}={values}: each value of {name} compiles a program of its own; "
                "write a list of a few."
            )
        return
    if not isinstance(values, list):
        range_advice = " or log_uniform(low, high)" * (name in TRACED_FIELDS)
        raise UsageTypeError(
            f"{name} is {describe_type(values)}; write a list of values, as "
            f"{name}=[...]{range_advice}."
        )
    sizes = {one.name: one.type for one in dataclasses.fields(TRPOConfig)}[name]
    if sizes == tuple[int, ...] and not all(isinstance(v, tuple) for v in values):
        raise UsageTypeError(
            f"{name}={values!r}: each of its values is a tuple; write "
            f"{name}=[(64, 64), (128,)]."
        )
    if not values:
        raise UsageError(f"{name} has no values; write at least one, or leave it out.")


def _replaced(config: TRPOConfig, values: dict[str, Any]) -> TRPOConfig:
    try:
        return dataclasses.replace(config, **values)
    except (UsageError, UsageTypeError) as error:
        given = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise type(error)(f"the setting {given} does not make a run: {error}") from None


def program_of(config: TRPOConfig) -> TRPOConfig:
    """Return the config that all settings share which differ in traced fields only.

    It has a single seed, a single device, and the default of every traced field.
    """
    floats = {name: getattr(TRPOConfig, name) for name in TRACED_FIELDS}
    return dataclasses.replace(config, num_seeds=1, devices=1, **floats)
