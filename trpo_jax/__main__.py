"""The command line: `python -m trpo_jax COMMAND`."""

import argparse
import dataclasses
import difflib
import gc
import json
import os
import pathlib
import shlex
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console

from trpo_jax import pictures, policies, runs
from trpo_jax.environments import make_environment
from trpo_jax.errors import UsageError
from trpo_jax.policies import Actions, format_evaluation, summarize_returns
from trpo_jax.runs import CheckpointChoice
from trpo_jax.runs.config_file import (
    config_from_dict,
    config_to_dict,
    read_config_values,
)
from trpo_jax.training import PRESETS, TRPOConfig, preset
from trpo_jax.version import __version__

_Folder = Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="FOLDER")]
_DEFAULT_RECORDS = runs.RunSettings()
_Fields = tyro.conf.OmitArgPrefixes[tyro.conf.SuppressFixed[TRPOConfig]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Train a policy, with live progress, and end with an evaluation.

    Options left out come from the file that --config names, then from the environment's
    preset, if it has one (see `presets`).
    """

    folder: pathlib.Path | None = None
    """A new folder for records, checkpoints and the evaluation; without one, nothing is
    kept."""
    config: pathlib.Path | None = None
    """A .json or .toml file of the run options below, as a run's config.json."""
    run: _Fields
    records: tyro.conf.OmitArgPrefixes[runs.RunSettings] = _DEFAULT_RECORDS

    def __call__(self, console: Console) -> None:
        """Train, in a folder or in passing."""
        config = self.run
        make_environment(config.env)
        if self.folder is None:
            self.records.check_without_folder()
        console.print(
            f"TRPO on {config.env}: {config.total_timesteps:,} steps, "
            f"{config.num_envs} environments × {config.rollout_length} steps an update"
            + (f", {config.num_seeds} seeds" if config.num_seeds > 1 else "")
        )
        if self.folder is None:
            runs.run(config, None, self.records)
            console.print("nothing was kept; to keep a run, write --folder NAME")
            return
        runs.run(config, self.folder, self.records)
        name = shlex.quote(str(self.folder))
        ways = ["plot"]
        if getattr(make_environment(config.env), "picture_suffix", None) is not None:
            ways.append("render")
        console.print(
            f"recorded in {self.folder}; look at it by"
            + "".join(f"\n  python -m trpo_jax {way} {name}" for way in ways),
            soft_wrap=True,
            markup=False,
            highlight=False,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resume:
    """Go on with a run that was interrupted or killed, to the same bits."""

    folder: _Folder
    """That it was started in."""

    def __call__(self, console: Console) -> None:
        """Resume."""
        runs.resume(self.folder)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Play whole episodes with a trained policy."""

    folder: _Folder
    """Of the run."""
    num_episodes: int = 128
    """Episodes of each seed."""
    actions: Actions = "mode"
    """The most probable action, or one drawn from the policy."""
    checkpoint: CheckpointChoice = "last"
    """The newest, or the one with the best return in training."""
    seed: int = 1
    """Of the episodes."""

    def __call__(self, console: Console) -> None:
        """Play, and print the returns."""
        config, state = runs.load_state(self.folder, checkpoint=self.checkpoint)
        key = jax.random.key(self.seed)
        returns = policies.evaluate(
            config, state, key, self.num_episodes, actions=self.actions
        )
        console.print(
            format_evaluation(summarize_returns(config, returns)), highlight=False
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
    """Draw learning curves and diagnostics, of several runs over each other.

    Those of several runs go to `trpo_jax-pictures`, where the command is given.
    """

    folders: Annotated[
        tyro.conf.Positional[tuple[pathlib.Path, ...]],
        tyro.conf.arg(metavar="FOLDER..."),
    ]
    """Of the runs."""
    output: pathlib.Path | None = None
    """Where the pictures go; the run's own `pictures` if it is one run."""

    def __call__(self, console: Console) -> None:
        """Draw, and print where."""
        for path in pictures.plot_runs(self.folders, self.output):
            console.print(str(path), soft_wrap=True, highlight=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Render:
    """Show an episode of a trained policy: a GIF, or for brax a web page."""

    folder: _Folder
    """Of the run."""
    output: pathlib.Path | None = None
    """The file; `pictures/episode` in the folder, with the suffix that fits."""
    actions: Actions = "mode"
    """The most probable action, or one drawn from the policy."""
    checkpoint: CheckpointChoice = "last"
    """The newest, or the one with the best return in training."""
    seed_index: int = 0
    """CheckpointChoice of the run's seeds."""
    seed: int = 1
    """Of the episode."""

    def __call__(self, console: Console) -> None:
        """Play, draw, and print where."""
        config, state = runs.load_state(self.folder, checkpoint=self.checkpoint)
        path = self.output or self.folder / "pictures" / "episode"
        path.parent.mkdir(parents=True, exist_ok=True)
        episode = pictures.render_episode(
            config,
            state,
            path,
            key=jax.random.key(self.seed),
            actions=self.actions,
            seed_index=self.seed_index,
        )
        console.print(
            f"{episode.path}: {episode.length} steps, return "
            f"{episode.episode_return:.1f}",
            soft_wrap=True,
            highlight=False,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Write a trained policy to a file that runs with JAX alone (jax.export)."""

    folder: _Folder
    """Of the run."""
    output: pathlib.Path | None = None
    """The file; `policy.jaxexport` in the folder."""
    actions: Actions = "mode"
    """The most probable action, or one drawn from the policy."""
    checkpoint: CheckpointChoice = "last"
    """The newest, or the one with the best return in training."""
    seed_index: int = 0
    """CheckpointChoice of the run's seeds."""

    def __call__(self, console: Console) -> None:
        """Export, and print where."""
        policy = runs.load_policy(
            self.folder,
            actions=self.actions,
            seed_index=self.seed_index,
            checkpoint=self.checkpoint,
        )
        path = self.output or self.folder / "policy.jaxexport"
        policies.export_policy(policy, path)
        console.print(str(path), soft_wrap=True, highlight=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Presets:
    """List the tuned settings, or print those of one environment as a config file."""

    env: tyro.conf.Positional[str | None] = None
    """An environment, to print the fields of its preset."""

    def __call__(self, console: Console) -> None:
        """List them, or print one."""
        if self.env is not None:
            print(json.dumps(config_to_dict(preset(self.env)), indent=1))
            return
        for env in PRESETS:
            config = preset(env)
            console.print(
                f"{env:<28}{config.total_timesteps:>12,} steps, {config.num_envs} × "
                f"{config.rollout_length} an update",
                highlight=False,
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Measure how fast a config trains on this machine: compilation, then steps."""

    config: pathlib.Path | None = None
    """A .json or .toml file of the run options below."""
    run: _Fields
    seconds: float = 5.0
    """How long to measure."""

    def __call__(self, console: Console) -> None:
        """Measure, and print a line of JSON."""
        make_environment(self.run.env)
        print(json.dumps(runs.measure_throughput(self.run, seconds=self.seconds)))


def main(args: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit status.

    Args:
        args: The command line without the program's name, `sys.argv[1:]` by default.

    Returns:
        0; 2 if the options make no sense (the message says what to write); 1 if a run
        had to stop on the way; 128 + the signal's number if it was interrupted.
    """
    errors = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    args = sys.argv[1:] if args is None else args
    if "--version" in args:
        print(f"trpo_jax {__version__}")
        return 0
    try:
        command = parse(args)
        keep_compiled_programs()
        command(Console())
    except (ValueError, TypeError) as error:
        if not _is_advice(error):
            raise
        errors.print(f"error: {error}", style="red")
        return 2
    except BrokenPipeError:  # whoever read has read enough
        return 0
    except (runs.RunError, OSError) as error:
        errors.print(f"error: {error}", style="red")
        return 1
    except runs.Interrupted as interrupted:
        errors.print(str(interrupted))
        return 128 + interrupted.signal
    except KeyboardInterrupt:
        errors.print("interrupted")
        return 130
    return 0


def _is_advice(error: Exception) -> bool:
    """Return whether this package raised it: then its message says what to write."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = pathlib.Path(__file__).parent in pathlib.Path(last.filename).parents
    return ours and (last.line or "").startswith("raise")  # and not Python, there


def keep_compiled_programs() -> None:
    """Keep what is compiled on disk, so that the next run of its kind starts at once.

    In `$XDG_CACHE_HOME/trpo_jax`, by default `~/.cache/trpo_jax`; where JAX has been
    told of a directory, by JAX_COMPILATION_CACHE_DIR, in that one and on its terms.
    """
    if jax.config.values.get("jax_compilation_cache_dir") is None:
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", f"{caches}/trpo_jax")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


COMMANDS = {
    "train": Train,
    "resume": Resume,
    "evaluate": Evaluate,
    "plot": Plot,
    "render": Render,
    "export": Export,
    "presets": Presets,
    "benchmark": Benchmark,
}


# The installed script: shells complete that, and `python` is not ours.
_PROGRAM = "trpo_jax"


def parse(args: Sequence[str]) -> Any:
    """Return the command that the options make; `train` if none is named."""
    args = list(args)
    asked = args[1:] if args and args[0] in COMMANDS else args
    if asked and asked[0].startswith("--tyro-"):  # a completion, which is of them all
        return _parse_all_commands(asked)
    if args and args[0] in ("-h", "--help"):
        return _parse_all_commands(args)
    if not args or args[0] not in COMMANDS:
        args = ["train", *args]
    kind = COMMANDS[args[0]]
    start = {}
    if _has_config(kind):
        _check_options(args)
        start = {"default": kind(run=_start(args))}
    return tyro.cli(kind, args=args[1:], prog=f"{_PROGRAM} {args[0]}", **start)


def _parse_all_commands(args: Sequence[str]) -> Any:
    """Answer what is asked of all commands together: help, and completions."""
    kinds: Any = tuple(
        Annotated[kind, tyro.conf.subcommand(name)] for name, kind in COMMANDS.items()
    )
    union: Any = kinds[0]
    for kind in kinds[1:]:
        union = union | kind
    return tyro.cli(
        union,
        args=args,
        prog=_PROGRAM,
        description="Trust region policy optimisation, whole on the accelerator. "
        "Without a command: train; --version prints the package's.",
    )


def _check_options(args: Sequence[str]) -> None:
    """Raise ValueError for a name that stands where only options can."""
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


def _has_config(kind: Any) -> bool:
    return any(field.name == "run" for field in dataclasses.fields(kind))


def _start(args: Sequence[str]) -> TRPOConfig:
    """Return the config that options override: of a file, of a preset, or neither."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--env", nargs="?")  # what is missing, tyro says below
    first.add_argument("--config", nargs="?", type=pathlib.Path)
    given = first.parse_known_args(args)[0]
    values = read_config_values(given.config) if given.config else {}
    env = given.env or values.get("env", TRPOConfig.env)
    if not isinstance(env, str):
        raise UsageError(
            f'{given.config}: env is {env!r}; name one, as "CartPole-v1". One that was '
            "made in Python cannot be had from a file: write trpo_jax.run(config, ...)."
        )
    base = config_to_dict(preset(env)) if env in PRESETS else {}
    try:
        return config_from_dict({**base, **values, "env": env})
    except (ValueError, TypeError) as error:
        if given.config is None:
            raise
        raise UsageError(f"{given.config}: {error}") from error


def script() -> int:
    """Do as `main` in a process of its own, with less for the garbage collector to do.

    What was imported lives as long as the process, and is not searched again and again;
    nor is, when it ends, all that was traced and compiled: a tenth off a first run.
    """
    gc.freeze()
    status = main()
    gc.freeze()
    return status


if __name__ == "__main__":
    sys.exit(script())
