"""The command that sweeps over values of fields."""

import dataclasses
import pathlib
import shlex
from types import NoneType
from typing import Annotated, Any, get_args

from tyro import conf

from trpo_jax import sweeps
from trpo_jax.command_line.options import (
    Address,
    Count,
    Path,
    base_config,
    check_id,
    connected,
    whole_number,
)
from trpo_jax.errors import UsageError
from trpo_jax.runs.processes import is_writer
from trpo_jax.training import (
    PROGRAM_FIELDS,
    TRACED_FIELDS,
    Range,
    TRPOConfig,
    parse_range,
)

_Id = Annotated[str | None, conf.arg(metavar="ID", help_behavior_hint="")]

# Here a word is a value, so that one option has several: "64,64" is one value of
# hidden_sizes.
_Values = Annotated[
    tuple[str, ...], conf.arg(metavar="VALUE ...", help_behavior_hint="")
]
_SweptFields: Any = dataclasses.make_dataclass(
    "_SweptFields",
    [
        (name, _Values, dataclasses.field(default=()))
        for name in (*TRACED_FIELDS, *PROGRAM_FIELDS)
        if name not in ("policy", "critic")
    ],
    frozen=True,
    kw_only=True,
)


def sweep(
    *,
    env: _Id = None,
    folder: Path = None,
    config: Path = None,
    seed: Count = None,
    devices: Count = None,
    num_seeds: int = 8,
    num_settings: Count = None,
    search_seed: int = 0,
    halving: Annotated[
        tuple[float, ...], conf.arg(metavar="FLOAT ...", help_behavior_hint="")
    ] = (),
    eta: float = 2.0,
    num_episodes: int = 128,
    memory_gib: Annotated[
        float | None, conf.arg(metavar="GIB", help_behavior_hint="")
    ] = None,
    coordinator: Address = None,
    num_processes: Count = None,
    process: Count = None,
    fields: conf.OmitArgPrefixes[_SweptFields] = _SweptFields(),  # noqa: B008
) -> None:
    """Train several settings, each with several seeds, side by side, and rank them.

    Each option of `train` takes several values here, over which the sweep goes, as
    --max-kl 0.01 0.02 or --hidden-sizes 64,64 128,128; one value sets the field. Floats
    of a random search are drawn from an interval, in quotes, as
    --damping "log_uniform(0.001, 1)". Fields that are left out come from the --config
    file, then from the preset of the environment.

    Args:
        env: Id of an environment of gymnax, or of another suite, such as brax/ant.
        folder: Folder for the records, new or of this same sweep, which then goes on;
            without one, nothing is saved.
        config: A .json or .toml file with fields, such as a run's config.json.
        seed: Seed of all randomness.
        devices: Devices that the runs are spread over, any number; all by default.
        num_seeds: Runs of each setting.
        num_settings: Settings of a random search.
        search_seed: Seed of its draws.
        halving: Fractions of the updates after which only the best 1/eta of the
            settings go on, as 0.25 0.5.
        eta: The inverse of the share that goes on.
        num_episodes: Episodes that evaluate each policy.
        memory_gib: Memory that the programs may use; most of what is free by default.
        coordinator: Train in several processes, as `train`.
        num_processes: As `train`.
        process: As `train`.
        fields: Values of the fields.
    """
    with connected(coordinator, num_processes, process):
        base, swept = _read_fields(fields, env, config, seed)
        result = sweeps.sweep(
            base,
            folder,
            num_seeds=num_seeds,
            num_settings=num_settings,
            search_seed=search_seed,
            halving=halving,
            eta=eta,
            num_episodes=num_episodes,
            memory_gib=memory_gib,
            devices=devices,
            **swept,
        )
    if not is_writer():
        return
    if result.folder is None:
        print("nothing was saved; to save a sweep, write --folder NAME")
        return
    print(f"recorded in {folder}, the best setting as a run in {folder}/best; to look:")
    print(f"  python -m trpo_jax plot {shlex.quote(str(folder))}")


def _read_fields(
    fields: _SweptFields, env: str | None, config: pathlib.Path | None, seed: int | None
) -> tuple[TRPOConfig, dict[str, Any]]:
    """Return the config of a sweep, and the values of the fields that it goes over."""
    chosen = {
        name: getattr(fields, name)[0]
        for name in ("update", "critic_fit")
        if len(getattr(fields, name)) == 1
    }
    base = base_config(env, config, chosen)
    check_id(base.env)
    values = {
        name: [_read_value(name, word) for word in words]
        for name, words in vars(fields).items()
        if words
    }
    swept: dict[str, Any] = {
        name: found[0] if isinstance(found[0], Range) else found
        for name, found in values.items()
        if len(found) > 1 or isinstance(found[0], Range)
    }
    for name, found in values.items():
        if len(found) > 1 and any(isinstance(one, Range) for one in found):
            raise UsageError(
                f"{_option(name)} has an interval beside other values; write the "
                'interval alone, in quotes, as "log_uniform(0.001, 1)".'
            )
    if not swept:
        raise UsageError(
            "no option has several values; write some to sweep over, as --max-kl 0.01 "
            '0.02, or an interval, as --damping "log_uniform(0.001, 1)".'
        )
    # Set with one value each, in one step: some are only valid together.
    fixed = {name: found[0] for name, found in values.items() if name not in swept}
    if seed is not None:
        fixed["seed"] = seed
    return dataclasses.replace(base, **fixed), swept


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _read_value(name: str, word: str) -> Any:
    """Return the value of a field that a word stands for; UsageError if none."""
    found = parse_range(word)
    if found is not None:
        return found
    kinds = {field.name: field.type for field in dataclasses.fields(TRPOConfig)}
    kind: Any = kinds[name]
    try:
        if kind == tuple[int, ...]:
            words = () if word == "none" else word.split(",")
            return tuple(whole_number(one) for one in words)
        if word == "None" and NoneType in get_args(kind):
            return None
        if "," in word and tuple[str, ...] in get_args(kind):
            return tuple(word.split(","))
        if kind in (int, int | None):
            return whole_number(word)
        if kind in (float, float | None):
            return float(word)
        if kind is bool:
            return {"true": True, "false": False}[word.lower()]
    except (KeyError, ValueError):
        examples: dict[Any, str] = {
            float: "0.01",
            bool: "true or false",
            tuple[int, ...]: "64,64",
        }
        raise UsageError(
            f"{_option(name)} {word}: write {examples.get(kind, '64')}."
        ) from None
    return word
