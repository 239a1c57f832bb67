"""Command line: `python -m trpo_jax COMMAND`."""

import argparse
import dataclasses
import difflib
import gc
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console

from trpo_jax import pictures, policies, runs
from trpo_jax.completion import completion_script
from trpo_jax.environments import make_environment
from trpo_jax.errors import UsageError, UsageTypeError
from trpo_jax.policies import Actions, format_evaluation, summarize_returns
from trpo_jax.runs import CheckpointChoice
from trpo_jax.runs.config_file import (
    config_from_dict,
    config_to_dict,
    read_config_values,
)
from trpo_jax.training import PRESETS, TRPOConfig, preset
from trpo_jax.training.schedules import SCHEDULES
from trpo_jax.version import __version__

_Folder = Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="FOLDER")]
_DEFAULT_RECORDS = runs.RunSettings()
_Fields = tyro.conf.OmitArgPrefixes[tyro.conf.SuppressFixed[TRPOConfig]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Train a policy, with live progress, and evaluate it.

    Options that are left out come from the --config file, then from the preset of the
    environment if there is one (see `presets`).
    """

    folder: pathlib.Path | None = None
    """New folder for records, checkpoints and the evaluation; without one, nothing is
    saved."""
    config: pathlib.Path | None = None
    """A .json or .toml file with the run options below, such as a run's config.json."""
    run: _Fields
    records: tyro.conf.OmitArgPrefixes[runs.RunSettings] = _DEFAULT_RECORDS

    def __call__(self, console: Console) -> None:
        """Train, and record the run if there is a folder."""
        config = self.run
        make_environment(config.env)
        if self.folder is None:
            self.records.check_without_folder()
        console.print(
            f"TRPO on {config.env}: {config.total_timesteps:,} steps, "
            f"{config.num_envs} environments × {config.rollout_length} steps per update"
            + (f", {config.num_seeds} seeds" if config.num_seeds > 1 else "")
        )
        if self.folder is None:
            runs.run(config, None, self.records)
            console.print("nothing was saved; to save a run, write --folder NAME")
            return
        runs.run(config, self.folder, self.records)
        name = shlex.quote(str(self.folder))
        commands = ["plot"]
        if getattr(make_environment(config.env), "picture_suffix", None) is not None:
            commands.append("render")
        console.print(
            f"recorded in {self.folder}; to look at it:"
            + "".join(
                f"\n  python -m trpo_jax {command} {name}" for command in commands
            ),
            soft_wrap=True,
            markup=False,
            highlight=False,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resume:
    """Resume a run that was interrupted or killed; the result is bit-identical."""

    folder: _Folder
    """Folder of the run."""

    def __call__(self, console: Console) -> None:
        """Resume."""
        runs.resume(self.folder)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate a trained policy over whole episodes."""

    folder: _Folder
    """Folder of the run."""
    num_episodes: int = 128
    """Episodes to play with each of the run's seeds."""
    actions: Actions = "mode"
    """Greedy actions (mode), or actions sampled from the policy."""
    checkpoint: CheckpointChoice = "last"
    """The newest checkpoint, or the one with the best return in training."""
    seed: int = 1
    """Random seed of the episodes."""

    def __call__(self, console: Console) -> None:
        """Play the episodes and print the returns."""
        config, state = runs.load_state(self.folder, checkpoint=self.checkpoint)
        key = _random_key(self.seed)
        returns = policies.evaluate(
            config, state, key, self.num_episodes, actions=self.actions
        )
        evaluation = summarize_returns(config, returns)
        console.print(format_evaluation(evaluation), highlight=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
    """Plot learning curves and diagnostics of one run, or of several in the same axes.

    Pictures of several runs go to `trpo_jax-pictures` in the current folder.
    """

    folders: Annotated[
        tyro.conf.Positional[tuple[pathlib.Path, ...]],
        tyro.conf.arg(metavar="FOLDER..."),
    ]
    """Folders of the runs."""
    output: pathlib.Path | None = None
    """Folder for the pictures; by default `pictures` in the run's folder."""

    def __call__(self, console: Console) -> None:
        """Plot, and print the paths of the pictures."""
        for path in pictures.plot_runs(self.folders, self.output):
            console.print(str(path), soft_wrap=True, highlight=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Render:
    """Render an episode of a trained policy as a GIF, or for brax as a web page."""

    folder: _Folder
    """Folder of the run."""
    output: pathlib.Path | None = None
    """File to write; by default `pictures/episode` in the run's folder."""
    actions: Actions = "mode"
    """Greedy actions (mode), or actions sampled from the policy."""
    checkpoint: CheckpointChoice = "last"
    """The newest checkpoint, or the one with the best return in training."""
    seed_index: int = 0
    """Which of the run's seeds to use, from 0."""
    seed: int = 1
    """Random seed of the episode."""

    def __call__(self, console: Console) -> None:
        """Play and render an episode, and print the path of the picture."""
        config, state = runs.load_state(self.folder, checkpoint=self.checkpoint)
        path = _output_file(self.output, self.folder / "pictures" / "episode")
        path.parent.mkdir(parents=True, exist_ok=True)
        episode = pictures.render_episode(
            config,
            state,
            path,
            key=_random_key(self.seed),
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
    """Export a trained policy to a file that needs JAX alone to run (jax.export)."""

    folder: _Folder
    """Folder of the run."""
    output: pathlib.Path | None = None
    """File to write; by default `policy.jaxexport` in the run's folder."""
    actions: Actions = "mode"
    """Greedy actions (mode), or actions sampled from the policy."""
    checkpoint: CheckpointChoice = "last"
    """The newest checkpoint, or the one with the best return in training."""
    seed_index: int = 0
    """Which of the run's seeds to use, from 0."""

    def __call__(self, console: Console) -> None:
        """Export, and print the path of the file."""
        policy = runs.load_policy(
            self.folder,
            actions=self.actions,
            seed_index=self.seed_index,
            checkpoint=self.checkpoint,
        )
        path = _output_file(self.output, self.folder / "policy.jaxexport")
        policies.export_policy(policy, path)
        console.print(str(path), soft_wrap=True, highlight=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Presets:
    """List the presets, or print the preset of one environment as a config file."""

    env: tyro.conf.Positional[str | None] = None
    """Environment whose preset to print."""

    def __call__(self, console: Console) -> None:
        """List the presets, or print one."""
        if self.env is not None:
            print(json.dumps(config_to_dict(preset(self.env)), indent=1))
            return
        for env in PRESETS:
            config = preset(env)
            console.print(
                f"{env:<28}{config.total_timesteps:>12,} steps, {config.num_envs} × "
                f"{config.rollout_length} per update",
                highlight=False,
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Measure compile time and training speed of a config on this machine."""

    config: pathlib.Path | None = None
    """A .json or .toml file with the run options below."""
    run: _Fields
    seconds: float = 5.0
    """Seconds to measure for."""

    def __call__(self, console: Console) -> None:
        """Measure, and print one line of JSON."""
        make_environment(self.run.env)
        print(json.dumps(runs.measure_throughput(self.run, seconds=self.seconds)))


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
        command(Console())
    except (UsageError, UsageTypeError) as error:
        errors.print(f"error: {error}", style="red")
        return 2
    except BrokenPipeError:  # as in `trpo_jax presets | head`
        return 0
    except (runs.RunError, OSError) as error:
        errors.print(f"error: {error}", style="red")
        return 1
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        errors.print(
            "error: the device has too little memory; reduce --num-envs, --num-seeds, "
            f"--micro-batch-size or --num-episodes.\n{error}",
            style="red",
        )
        return 1
    except runs.Interrupted as interrupted:
        errors.print(str(interrupted))
        return 128 + interrupted.signal
    except KeyboardInterrupt:
        errors.print("interrupted")
        return 130
    return 0


def _random_key(seed: int) -> jax.Array:
    """Return the key of a seed; UsageError if it has more than 64 bits."""
    try:
        return jax.random.key(seed)
    except OverflowError as error:
        raise UsageError(f"seed={seed} has more than 64 bits; write 0.") from error


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


# The installed script. Shells complete a program by its name, which `python -m` hides.
_PROGRAM = "trpo_jax"


def parse(args: Sequence[str]) -> Any:
    """Return the command that the arguments describe; `train` if none is named."""
    args = list(args)
    asked = args[1:] if args and args[0] in COMMANDS else args
    if asked and asked[0] in ("--tyro-print-completion", "--tyro-write-completion"):
        raise SystemExit(_complete(*asked[1:]))
    if args and args[0] in ("-h", "--help"):
        return _parse_all_commands(args)
    if not args or args[0] not in COMMANDS:
        args = ["train", *args]
    kind = COMMANDS[args[0]]
    default = {}
    if _has_config(kind):
        _check_options(args)
        default = {"default": kind(run=_default_config(args))}
    return tyro.cli(kind, args=args[1:], prog=f"{_PROGRAM} {args[0]}", **default)


def _parse_all_commands(args: Sequence[str]) -> Any:
    """Parse arguments that come before any command, such as --help."""
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
        description="Trust region policy optimisation in JAX. Without a command: "
        "train. --version prints the version of the package.",
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
    names: dict[str, Iterable[str]] = {
        "env": PRESETS,
        "max_kl_schedule": SCHEDULES,
        "critic_learning_rate_schedule": SCHEDULES,
    }
    script = completion_script(shell, _PROGRAM, COMMANDS, default="train", names=names)
    if path is None:
        print(script, end="")
    else:
        pathlib.Path(path).write_text(script, "utf-8")
    return 0


def _has_config(kind: Any) -> bool:
    return any(field.name == "run" for field in dataclasses.fields(kind))


def _default_config(args: Sequence[str]) -> TRPOConfig:
    """Return the config that the options override: --config's over the preset's."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # Without a value both are None here; tyro then says that the value is missing.
    first.add_argument("--env", nargs="?")
    first.add_argument("--config", nargs="?", type=pathlib.Path)
    given = first.parse_known_args(args)[0]
    values = read_config_values(given.config) if given.config else {}
    env = given.env or values.get("env", TRPOConfig.env)
    if not isinstance(env, str):
        raise UsageError(
            f"{given.config}: env is {env!r}; write the id of an environment, such as "
            '"CartPole-v1". An environment that is a Python object cannot come from a '
            "file: train it in Python, by trpo_jax.run(config, ...)."
        )
    base = config_to_dict(preset(env)) if env in PRESETS else {}
    try:
        return config_from_dict({**base, **values, "env": env})
    except (UsageError, UsageTypeError) as error:
        if given.config is None:
            raise
        raise UsageError(f"{given.config}: {error}") from error


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
