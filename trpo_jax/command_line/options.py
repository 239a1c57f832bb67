"""Options: how fields, paths and numbers are written on the command line."""

import argparse
import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, get_args

from tyro import conf, constructors

from trpo_jax.environments import make_environment
from trpo_jax.errors import UsageError, UsageTypeError
from trpo_jax.observations import Part
from trpo_jax.runs import connect_processes
from trpo_jax.runs.config_file import (
    config_from_dict,
    config_to_dict,
    read_config_values,
)
from trpo_jax.runs.processes import together
from trpo_jax.training import PRESETS, TRPOConfig, preset
from trpo_jax.training.config_checks import FIELDS_OF_FITS, UPDATES

Folder = Annotated[pathlib.Path, conf.arg(metavar="FOLDER")]
Path = Annotated[pathlib.Path | None, conf.arg(metavar="PATH", help_behavior_hint="")]
Address = Annotated[str | None, conf.arg(metavar="HOST:PORT", help_behavior_hint="")]
Count = Annotated[int | None, conf.arg(metavar="INT", help_behavior_hint="")]
_ID, _NAME = conf.arg(metavar="ID"), conf.arg(metavar="NAME")
_Schedule = Literal["constant", "linear", "cosine"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(TRPOConfig):
    """A config of what can be written as text; help for the command line."""

    env: Annotated[str, _ID] = TRPOConfig.env
    """Id of an environment of gymnax, or of another suite, such as brax/ant."""
    total_timesteps: int = TRPOConfig.total_timesteps
    """Environment steps to train for, rounded up to whole rollouts."""
    devices: int | None = None
    """Devices to train on; None for as many of all as divide seeds and environments."""
    policy: conf.Suppress[None] = None
    critic: conf.Suppress[None] = None
    update: Literal[
        "trpo",
        "tnpg",
        "npg",
        "ppo",
        "ppo_penalty",
        "projection",
        "cpo",
        "pcpo",
        "trpo_lagrangian",
        "trpo_pid",
        "crpo",
    ] = TRPOConfig.update
    """Policy update: TRPO, or one of its relatives."""
    max_kl_schedule: Literal["constant", "linear", "cosine", "adaptive"] = (
        TRPOConfig.max_kl_schedule
    )
    """Factor of --max-kl over the run: constant, decay to 0, or adaptive."""
    entropy_coefficient_schedule: _Schedule = TRPOConfig.entropy_coefficient_schedule
    """Factor of --entropy-coefficient over the run."""
    policy_optimizer: Annotated[str, _NAME] = TRPOConfig.policy_optimizer
    """Optimiser of Optax, of --update ppo, ppo_penalty and projection."""
    policy_learning_rate_schedule: _Schedule = TRPOConfig.policy_learning_rate_schedule
    """Factor of --policy-learning-rate over the run."""
    critic_optimizer: Annotated[str, _NAME] = TRPOConfig.critic_optimizer
    """Optimiser of Optax, such as adam or rmsprop."""
    critic_learning_rate_schedule: _Schedule = TRPOConfig.critic_learning_rate_schedule
    """Factor of --critic-learning-rate over the run."""


REGISTRY = constructors.ConstructorRegistry()


@REGISTRY.primitive_rule
def _read_counts(info: Any) -> Any:
    """Read whole numbers, also as `1e6`, and lists of them, also as `64,64`."""
    several = info.type_origin is tuple and get_args(info.type) == (int, ...)
    if info.type is not int and not several:
        return None

    def read(words: list[str]) -> int | tuple[int, ...]:
        counts = [whole_number(one) for word in words for one in word.split(",") if one]
        return tuple(counts) if several else counts[0]

    return constructors.PrimitiveConstructorSpec(
        nargs="*" if several else 1,
        metavar="INT ..." if several else "INT",
        instance_from_str=read,
        is_instance=lambda value: True,
        str_from_instance=lambda value: (
            [*map(str, value)] or ["none"] if several else [str(value)]
        ),
    )


@REGISTRY.primitive_rule
def _read_part(info: Any) -> Any:
    """Read the names of entries of an observation, or the word None."""
    if info.type != Part:
        return None

    def read(words: list[str]) -> Part:
        if words == ["None"]:
            return None
        return words[0] if len(words) == 1 else tuple(words)

    return constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME ...",
        instance_from_str=read,
        is_instance=lambda value: True,
        str_from_instance=lambda value: (
            [*value] if isinstance(value, tuple) else [str(value)]
        ),
    )


def whole_number(word: str) -> int:
    """Return the number of a word such as 64 or 1e6; ValueError if it is none."""
    with contextlib.suppress(ValueError):
        return int(word)
    with contextlib.suppress(ValueError):
        if float(word).is_integer():
            return int(float(word))
    raise ValueError(f"{word!r} is not a whole number; write one, as 64 or 1e6.")


@REGISTRY.primitive_rule
def _read_optional(info: Any) -> Any:
    """Read `X | None` as X or the word None, and call it X in the help."""
    kinds = [kind for kind in get_args(info.type) if kind is not NoneType]
    if info.type_origin is not UnionType or len(kinds) != 1:
        return None
    info = constructors.PrimitiveTypeInfo.make(kinds[0], set())
    spec: Any = constructors.ConstructorRegistry.get_primitive_spec(info)
    return dataclasses.replace(
        spec,
        metavar="NAME" if kinds[0] is str else spec.metavar,
        instance_from_str=lambda words: (
            None if words == ["None"] else spec.instance_from_str(words)
        ),
        is_instance=lambda value: True,
        str_from_instance=lambda value: (
            ["None"] if value is None else spec.str_from_instance(value)
        ),
    )


def default_config(args: Sequence[str]) -> TRPOConfig:
    """Return the config that the options override: --config's over the preset's."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # Without a value both are None here; tyro then says that the value is missing.
    first.add_argument("--env", nargs="?")
    first.add_argument("--config", nargs="?", type=pathlib.Path)
    first.add_argument("--update", nargs="?")
    first.add_argument("--critic-fit", "--critic_fit", nargs="?")
    given = first.parse_known_args(args)[0]
    chosen = {"update": given.update, "critic_fit": given.critic_fit}
    known = (*UPDATES, *FIELDS_OF_FITS)  # tyro refuses others
    chosen = {name: word for name, word in chosen.items() if word in known}
    return base_config(given.env, given.config, chosen)


def base_config(
    env: str | None, path: pathlib.Path | None, chosen: dict[str, str]
) -> TRPOConfig:
    """Return the config of a file over the preset of its environment, or of `env`.

    Args:
        env: Environment that an option names.
        path: Config file.
        chosen: Update and critic's fit that options name. The preset is without the
            fields that these do not read.
    """
    values = read_config_values(path) if path else {}
    env = env or values.get("env", TRPOConfig.env)
    if not isinstance(env, str):
        raise UsageError(
            f"{path}: env is {env!r}; write the id of an environment, such as "
            '"CartPole-v1". An environment that is a Python object cannot come from a '
            "file: train it in Python, by trpo_jax.run(config, ...)."
        )
    values |= {"env": env, **chosen}
    chosen = {name: values[name] for name in ("update", "critic_fit") if name in values}
    try:
        base = config_to_dict(preset(env, **chosen)) if env in PRESETS else {}
        return config_from_dict({**base, **values})
    except (UsageError, UsageTypeError) as error:
        if path is None:
            raise
        raise UsageError(f"{path}: {error}") from error


def check_id(env: str) -> None:
    """Raise UsageError if the environment is unknown. Leave out advice about Python."""
    try:
        make_environment(env)
    except UsageError as error:
        text = re.sub(
            r" Register your own .*?\(environment, params\)\.", "", str(error)
        )
        raise UsageError(text) from error


@contextlib.contextmanager
def connected(
    coordinator: str | None, num_processes: int | None, process: int | None
) -> Iterator[None]:
    """Connect the processes of a command, if there are several, which end together."""
    if coordinator == "auto" and num_processes is process is None:
        connect_processes()
    elif (coordinator, num_processes, process) != (None, None, None):
        connect_processes(coordinator, num_processes, process)
    with together("Start all processes again with the same command."):
        yield
