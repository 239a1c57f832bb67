"""Command line: `python -m trpo_jax COMMAND`."""

import argparse
import contextlib
import dataclasses
import difflib
import functools
import gc
import json
import os
import pathlib
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, get_args

import jax
import tyro
from rich.console import Console
from tyro import conf, constructors

from trpo_jax import pictures, policies, runs, sweeps
from trpo_jax.completion import completion_script
from trpo_jax.environments import make_environment
from trpo_jax.errors import UsageError, UsageTypeError
from trpo_jax.observations import Part
from trpo_jax.policies import Actions, format_evaluation, summarize_returns
from trpo_jax.runs import CheckpointChoice, connect_processes
from trpo_jax.runs.config_file import (
    config_from_dict,
    config_to_dict,
    read_config_values,
)
from trpo_jax.runs.processes import is_writer
from trpo_jax.sweeps.folder import holds_sweep
from trpo_jax.training import (
    PRESETS,
    PROGRAM_FIELDS,
    TRACED_FIELDS,
    Range,
    TRPOConfig,
    parse_range,
    preset,
)
from trpo_jax.training.config_checks import FIELDS_OF_FITS, UPDATES
from trpo_jax.trust_region.checks import whole
from trpo_jax.version import __version__

_ID_OF_FILE = conf.arg(metavar="ID", help_behavior_hint="")
_ID, _NAME = conf.arg(metavar="ID"), conf.arg(metavar="NAME")
_Schedule = Literal["constant", "linear", "cosine"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Options(TRPOConfig):
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
    policy_optimizer: Annotated[str, _NAME] = TRPOConfig.policy_optimizer
    """Optimiser of Optax, of --update ppo, ppo_penalty and projection."""
    policy_learning_rate_schedule: _Schedule = TRPOConfig.policy_learning_rate_schedule
    """Factor of --policy-learning-rate over the run."""
    critic_optimizer: Annotated[str, _NAME] = TRPOConfig.critic_optimizer
    """Optimiser of Optax, such as adam or rmsprop."""
    critic_learning_rate_schedule: _Schedule = TRPOConfig.critic_learning_rate_schedule
    """Factor of --critic-learning-rate over the run."""


_RECORDS = runs.RunSettings()
_Folder = Annotated[pathlib.Path, conf.arg(metavar="FOLDER")]
_Path = Annotated[pathlib.Path | None, conf.arg(metavar="PATH", help_behavior_hint="")]
_Folders = Annotated[
    tuple[pathlib.Path, ...],
    conf.arg(metavar="FOLDER...", help_behavior_hint="(required)"),
]
_Address = Annotated[str | None, conf.arg(metavar="HOST:PORT", help_behavior_hint="")]
_Count = Annotated[int | None, conf.arg(metavar="INT", help_behavior_hint="")]
_Preset = Annotated[str | None, conf.arg(metavar="[ID]", help_behavior_hint="")]


_REGISTRY = constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _read_counts(info: Any) -> Any:
    """Read whole numbers, also as `1e6`, and lists of them, also as `64,64`."""
    several = info.type_origin is tuple and get_args(info.type) == (int, ...)
    if info.type is not int and not several:
        return None

    def read(words: list[str]) -> int | tuple[int, ...]:
        counts = [_whole(one) for word in words for one in word.split(",") if one]
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


@_REGISTRY.primitive_rule
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


def _whole(word: str) -> int:
    with contextlib.suppress(ValueError):
        return int(word)
    with contextlib.suppress(ValueError):
        if float(word).is_integer():
            return int(float(word))
    raise ValueError(f"{word!r} is not a whole number; write one, as 64 or 1e6.")


@_REGISTRY.primitive_rule
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


def train(
    *,
    folder: _Path = None,
    config: _Path = None,
    warm_start: _Path = None,
    coordinator: _Address = None,
    num_processes: int | None = None,
    process: int | None = None,
    run: conf.OmitArgPrefixes[_Options],
    records: conf.OmitArgPrefixes[runs.RunSettings] = _RECORDS,
) -> None:
    """Train a policy, with live progress, and evaluate it.

    Options that are left out come from the --config file, then from the preset of the
    environment if there is one (see `presets`).

    Args:
        folder: New folder for records, checkpoints and the evaluation; without one,
            nothing is saved.
        config: A .json or .toml file with the run options below, such as a run's
            config.json.
        warm_start: Folder of a run whose policy, critic and normalisers to start with.
        coordinator: Train in several processes: the address of the first; or `auto`
            under Slurm, Kubernetes or on Cloud TPU.
        num_processes: How many processes there are, unless --coordinator is auto.
        process: Which of them this is, from 0.
        run: The run.
        records: What is recorded, and how often.
    """
    _connect(coordinator, num_processes, process)
    _check_environment(run.env)
    runs.run(TRPOConfig(**vars(run)), folder, records, warm_start=warm_start)
    if not is_writer():
        return
    if folder is None:
        print("nothing was saved; to save a run, write --folder NAME")
        return
    print(f"recorded in {folder}; to look at it:")
    print(f"  python -m trpo_jax plot {shlex.quote(str(folder))}")
    if getattr(make_environment(run.env), "picture_suffix", None) is not None:
        print(f"  python -m trpo_jax render {shlex.quote(str(folder))}")


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
    env: Annotated[str | None, _ID_OF_FILE] = None,
    folder: _Path = None,
    config: _Path = None,
    seed: _Count = None,
    devices: _Count = None,
    num_seeds: int = 8,
    num_settings: _Count = None,
    search_seed: int = 0,
    halving: Annotated[
        tuple[float, ...], conf.arg(metavar="FLOAT ...", help_behavior_hint="")
    ] = (),
    eta: float = 2.0,
    num_episodes: int = 128,
    memory_gib: Annotated[
        float | None, conf.arg(metavar="GIB", help_behavior_hint="")
    ] = None,
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
        devices: Devices that the runs are spread over; all by default.
        num_seeds: Runs of each setting.
        num_settings: Settings of a random search.
        search_seed: Seed of its draws.
        halving: Fractions of the updates after which only the best 1/eta of the
            settings go on, as 0.25 0.5.
        eta: The inverse of the share that goes on.
        num_episodes: Episodes that evaluate each policy.
        memory_gib: Memory that the programs may use; most of what is free by default.
        fields: Values of the fields.
    """
    chosen = {
        name: getattr(fields, name)[0]
        for name in ("update", "critic_fit")
        if len(getattr(fields, name)) == 1
    }
    base = _base_config(env, config, chosen)
    _check_environment(base.env)
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
    common = {"seed": seed, "devices": devices}
    fixed |= {name: value for name, value in common.items() if value is not None}
    result = sweeps.sweep(
        dataclasses.replace(base, **fixed),
        folder,
        num_seeds=num_seeds,
        num_settings=num_settings,
        search_seed=search_seed,
        halving=halving,
        eta=eta,
        num_episodes=num_episodes,
        memory_gib=memory_gib,
        **swept,
    )
    if result.folder is None:
        print("nothing was saved; to save a sweep, write --folder NAME")
        return
    print(f"recorded in {folder}, the best setting as a run in {folder}/best; to look:")
    print(f"  python -m trpo_jax plot {shlex.quote(str(folder))}")


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
            return tuple(_whole(one) for one in words)
        if word == "None" and NoneType in get_args(kind):
            return None
        if "," in word and tuple[str, ...] in get_args(kind):
            return tuple(word.split(","))
        if kind in (int, int | None):
            return _whole(word)
        if kind is float:
            return float(word)
        if kind is bool:
            return {"true": True, "false": False}[word.lower()]
    except (KeyError, ValueError):
        examples = {float: "0.01", bool: "true or false", tuple[int, ...]: "64,64"}
        raise UsageError(
            f"{_option(name)} {word}: write {examples.get(kind, '64')}."
        ) from None
    return word


def resume(
    folder: _Folder,
    /,
    *,
    total_timesteps: int | None = None,
    devices: int | None = None,
    coordinator: _Address = None,
    num_processes: int | None = None,
    process: int | None = None,
) -> None:
    """Resume a run that was interrupted or killed, or train it for longer; or a sweep.

    The result is bit-identical to that of an uninterrupted run or sweep.

    Args:
        folder: Folder of the run or the sweep.
        total_timesteps: Environment steps to train for in all, if the run is to be
            longer than first asked. Schedules extend over the new length.
        devices: Devices to go on with; by default as many of all as divide seeds and
            environments.
        coordinator: Go on in several processes, as `train`.
        num_processes: As `train`.
        process: As `train`.
    """
    _connect(coordinator, num_processes, process)
    if not holds_sweep(folder):
        runs.resume(folder, total_timesteps=total_timesteps, devices=devices)
    elif total_timesteps is devices is None:
        sweeps.resume_sweep(folder)
    elif devices is not None:
        raise UsageError(
            f"{folder} holds a sweep, which is resumed on as many devices as before; "
            "leave out --devices."
        )
    else:
        raise UsageError(
            f"{folder} holds a sweep, whose runs cannot be made longer; write resume "
            f"{folder / 'best'} --total-timesteps {total_timesteps} for its best "
            "setting, or sweep in another folder."
        )


def evaluate(
    folder: _Folder,
    /,
    *,
    num_episodes: int = 128,
    actions: Actions = "mode",
    checkpoint: CheckpointChoice = "last",
    seed: int = 1,
) -> None:
    """Evaluate a trained policy over whole episodes.

    Args:
        folder: Folder of the run.
        num_episodes: Episodes to play with each of the run's seeds.
        actions: Greedy actions (mode), or actions sampled from the policy.
        checkpoint: The newest checkpoint, or the one with the best return.
        seed: Random seed of the episodes.
    """
    config, state = runs.load_state(folder, checkpoint=checkpoint)
    key = _random_key(seed)
    played = policies.evaluate_with_costs(
        config, state, key, num_episodes, actions=actions
    )
    print(format_evaluation(summarize_returns(config, *played)))


def plot(folders: _Folders, /, *, output: _Path = None) -> None:
    """Plot learning curves and diagnostics of one run, or of several in the same axes.

    Of a sweep: the return against each swept field, and curves of the best settings.
    Pictures of several runs go to `trpo_jax-pictures` in the current folder.

    Args:
        folders: Folders of the runs, or the folder of a sweep.
        output: Folder for the pictures; by default `pictures` in the run's folder.
    """
    swept = [folder for folder in folders if holds_sweep(folder)]
    if swept and len(folders) > 1:
        raise UsageError(
            f"{swept[0]} holds a sweep, which has pictures of its own; write plot "
            f"{swept[0]}, or plot {swept[0] / 'best'} beside the other runs."
        )
    plotted = pictures.plot_sweep(swept[0], output) if swept else None
    print(*(plotted or pictures.plot_runs(folders, output)), sep="\n")


def render(
    folder: _Folder,
    /,
    *,
    output: _Path = None,
    actions: Actions = "mode",
    checkpoint: CheckpointChoice = "last",
    seed_index: int = 0,
    seed: int = 1,
) -> None:
    """Render an episode of a trained policy as a GIF, or for brax as a web page.

    Args:
        folder: Folder of the run.
        output: File to write; by default `pictures/episode` in the run's folder.
        actions: Greedy actions (mode), or actions sampled from the policy.
        checkpoint: The newest checkpoint, or the one with the best return.
        seed_index: Which of the run's seeds to use, from 0.
        seed: Random seed of the episode.
    """
    config, state = runs.load_state(folder, checkpoint=checkpoint)
    path = _output_file(output, folder / "pictures" / "episode")
    key = _random_key(seed)
    episode = pictures.render_episode(
        config, state, path, key=key, actions=actions, seed_index=seed_index
    )
    print(
        f"{episode.path}: {episode.length} steps, return {episode.episode_return:.1f}"
    )


def export(
    folder: _Folder,
    /,
    *,
    output: _Path = None,
    actions: Actions = "mode",
    checkpoint: CheckpointChoice = "last",
    seed_index: int = 0,
) -> None:
    """Export a trained policy to a file that needs JAX alone to run (jax.export).

    Args:
        folder: Folder of the run.
        output: File to write; by default `policy.jaxexport` in the run's folder.
        actions: Greedy actions (mode), or actions sampled from the policy.
        checkpoint: The newest checkpoint, or the one with the best return.
        seed_index: Which of the run's seeds to use, from 0.
    """
    policy = runs.load_policy(
        folder, actions=actions, seed_index=seed_index, checkpoint=checkpoint
    )
    path = _output_file(output, folder / "policy.jaxexport")
    policies.export_policy(policy, path)
    print(path)


def presets(env: _Preset = None, /) -> None:
    """List the presets, or print the preset of one environment as a config file.

    Args:
        env: Environment whose preset to print.
    """
    if env is None:
        for name in PRESETS:
            config = preset(name)
            print(
                f"{name:<28}{config.total_timesteps:>12,} steps, {config.num_envs} × "
                f"{config.rollout_length} per update"
            )
    elif env in PRESETS:
        print(json.dumps(config_to_dict(preset(env)), indent=1))
    else:
        raise UsageError(
            f"no preset for {env!r}. There are presets for {', '.join(PRESETS)}. "
            "Others are trained with the defaults: python -m trpo_jax train --env ID."
        )


def benchmark(
    *, config: _Path = None, run: conf.OmitArgPrefixes[_Options], seconds: float = 5.0
) -> None:
    """Measure compile time and training speed of a config on this machine.

    Args:
        config: A .json or .toml file with the run options below.
        run: The run.
        seconds: Seconds to measure for.
    """
    _check_environment(run.env)
    plain = TRPOConfig(**vars(run))
    print(json.dumps(runs.measure_throughput(plain, seconds=seconds)))


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Errors that a user can mend are printed without a traceback. All others keep theirs:
    they are bugs, here or in another package.

    Args:
        args: The command line without the program's name, `sys.argv[1:]` by default.

    Returns:
        0 on success; 2 if the options cannot work (the message says what to write
        instead); 1 if a run failed or a file cannot be read or written; 128 + the
        signal's number if a signal interrupted it.
    """
    errors = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    args = sys.argv[1:] if args is None else args
    if "--version" in args:
        print(f"trpo_jax {__version__}")
        return 0
    try:
        command = parse(args)
        keep_compiled_programs()
        command()
        sys.stdout.flush()
    except BrokenPipeError:  # as in `trpo_jax presets | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UsageError, UsageTypeError, runs.RunError, OSError) as error:
        errors.print(f"error: {error}", style="red")
        return 2 if isinstance(error, UsageError | UsageTypeError) else 1
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        errors.print(
            "error: the device has too little memory; reduce --num-envs, --num-seeds, "
            "--micro-batch-size or --num-episodes, or in a sweep --memory-gib.\n"
            f"{error}",
            style="red",
        )
        return 1
    except KeyboardInterrupt as interrupted:  # runs.Interrupted has a message
        errors.print(str(interrupted) or "interrupted")
        return 128 + getattr(interrupted, "signal", signal.SIGINT)
    return 0


def _connect(
    coordinator: str | None, num_processes: int | None, process: int | None
) -> None:
    """Connect the processes of a run, if there are several."""
    if coordinator == "auto" and num_processes is process is None:
        connect_processes()
    elif (coordinator, num_processes, process) != (None, None, None):
        connect_processes(coordinator, num_processes, process)


def _random_key(seed: int) -> jax.Array:
    """Return the key of a seed; UsageError if it is not one."""
    return jax.random.key(whole("seed", seed, least=0, most=2**63 - 1))


def _output_file(path: pathlib.Path | None, default: pathlib.Path) -> pathlib.Path:
    """Return the file to write; UsageError if `path` is a folder."""
    if path is not None and path.is_dir():
        raise UsageError(
            f"--output {path} is a folder; write a file in it: {path / default.name}."
        )
    return path or default


def keep_compiled_programs() -> None:
    """Keep compiled programs on disk, so that the same run starts faster next time.

    They are kept in `$XDG_CACHE_HOME/trpo_jax`, by default `~/.cache/trpo_jax`. A cache
    that JAX is configured with, as by JAX_COMPILATION_CACHE_DIR, is left as it is.
    """
    if jax.config.values.get("jax_compilation_cache_dir") is None:
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", f"{caches}/trpo_jax")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


COMMANDS: dict[str, Callable[..., None]] = {
    command.__name__: command
    for command in (
        train,
        sweep,
        resume,
        evaluate,
        plot,
        render,
        export,
        presets,
        benchmark,
    )
}


# The installed script. Shells complete a program by its name, which `python -m` hides.
_PROGRAM = "trpo_jax"


def parse(args: Sequence[str]) -> functools.partial:
    """Return the command that the arguments describe; `train` if none is named."""
    args = list(args)
    asked = args[1:] if args and args[0] in COMMANDS else args
    if asked and asked[0] in ("--tyro-print-completion", "--tyro-write-completion"):
        raise SystemExit(_complete(*asked[1:]))
    if args and args[0] in ("-h", "--help"):
        return tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            args=args,
            prog=_PROGRAM,
            description="Trust region policy optimisation in JAX. Without a command: "
            "train. --version prints the version of the package.",
        )
    if not args or args[0] not in COMMANDS:
        args = ["train", *args]
    command = COMMANDS[args[0]]

    @functools.wraps(command)
    def deferred(*args: Any, **kwargs: Any) -> functools.partial:
        return functools.partial(command, *args, **kwargs)

    options = {}
    if command in (train, sweep, benchmark):
        _check_options(args)
    if command in (train, benchmark):
        options = {"run": _Options(**vars(_default_config(args)))}
    return tyro.cli(
        functools.partial(deferred, **options),
        args=args[1:],
        prog=f"{_PROGRAM} {args[0]}",
        registry=_REGISTRY,
    )


def _check_options(args: Sequence[str]) -> None:
    """Raise UsageError if a word stands where only options can."""
    name = args[1] if args[1:] else "-"
    if not name.startswith("-"):
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        if near:
            raise UsageError(f"{name!r} is not a command; did you mean {near[0]!r}?")
        option = "--config" if name.endswith((".json", ".toml")) else "--env"
        raise UsageError(
            f"{name!r} is neither a command nor an option; write {args[0]} {option} "
            f"{name}, or one of the commands {', '.join(COMMANDS)}."
        )


def _complete(shell: str = "", path: str | None = None) -> int:
    """Print the completion script of a shell, or write it to a file; return 0."""
    script = completion_script(
        shell, _PROGRAM, COMMANDS, default="train", names={"env": PRESETS}
    )
    if path is None:
        print(script, end="")
    else:
        pathlib.Path(path).write_text(script, "utf-8")
    return 0


def _default_config(args: Sequence[str]) -> TRPOConfig:
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
    return _base_config(given.env, given.config, chosen)


def _base_config(
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


def _check_environment(env: str) -> None:
    """Raise UsageError if the environment is unknown. Leave out advice about Python."""
    try:
        make_environment(env)
    except UsageError as error:
        text = re.sub(
            r" Register your own .*?\(environment, params\)\.", "", str(error)
        )
        raise UsageError(text) from error


def script() -> int:
    """Run `main` as the whole process, with less work for the garbage collector.

    The modules live as long as the process does, so the collector need not traverse
    them; nor, at exit, the traced programs. Measured: a tenth off a first run.
    """
    gc.freeze()
    status = main()
    gc.freeze()
    return status


if __name__ == "__main__":
    sys.exit(script())
