"""The commands; their docstrings are the help of the command line."""

import json
import pathlib
import shlex
from typing import Annotated

import jax
from tyro import conf

from trpo_jax import pictures, policies, runs, sweeps
from trpo_jax.command_line.options import (
    Address,
    Folder,
    Options,
    Path,
    check_id,
    connected,
)
from trpo_jax.environments import make_environment
from trpo_jax.errors import UsageError
from trpo_jax.policies import Actions, format_evaluation, summarize_returns
from trpo_jax.runs import CheckpointChoice
from trpo_jax.runs.config_file import config_to_dict
from trpo_jax.runs.processes import is_writer, on_writer
from trpo_jax.sweeps.folder import holds_sweep
from trpo_jax.training import PRESETS, TRPOConfig, preset
from trpo_jax.trust_region.checks import whole

_RECORDS = runs.RunSettings()
_Folders = Annotated[
    tuple[pathlib.Path, ...],
    conf.arg(metavar="FOLDER...", help_behavior_hint="(required)"),
]
_Preset = Annotated[str | None, conf.arg(metavar="[ID]", help_behavior_hint="")]


def train(
    *,
    folder: Path = None,
    config: Path = None,
    warm_start: Path = None,
    coordinator: Address = None,
    num_processes: int | None = None,
    process: int | None = None,
    run: conf.OmitArgPrefixes[Options],
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
    with connected(coordinator, num_processes, process):
        check_id(run.env)
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


def resume(
    folder: Folder,
    /,
    *,
    total_timesteps: int | None = None,
    devices: int | None = None,
    coordinator: Address = None,
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
    with connected(coordinator, num_processes, process):
        if not on_writer(lambda: holds_sweep(folder)):
            runs.resume(folder, total_timesteps=total_timesteps, devices=devices)
            return
        if devices is not None:
            raise UsageError(
                f"{folder} holds a sweep, which is resumed on as many devices as "
                "before; leave out --devices."
            )
        if total_timesteps is not None:
            raise UsageError(
                f"{folder} holds a sweep, whose runs cannot be made longer; write "
                f"resume {folder / 'best'} --total-timesteps {total_timesteps} for its "
                "best setting, or sweep in another folder."
            )
        sweeps.resume_sweep(folder)


def evaluate(
    folder: Folder,
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


def plot(folders: _Folders, /, *, output: Path = None) -> None:
    """Plot learning curves and diagnostics of one run, or of several in the same axes.

    Of a sweep: the return against each swept field, and curves of the best settings.
    Pictures of several runs go to `trpo_jax-pictures` in the current folder.

    Args:
        folders: _Folders of the runs, or the folder of a sweep.
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
    folder: Folder,
    /,
    *,
    output: Path = None,
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
    folder: Folder,
    /,
    *,
    output: Path = None,
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
        width = max(map(len, PRESETS)) + 1
        for name, fields in PRESETS.items():
            # A config would make the environment, whose suite may not be installed.
            steps, num_envs, length = (
                fields.get(field, getattr(TRPOConfig, field))
                for field in ("total_timesteps", "num_envs", "rollout_length")
            )
            print(
                f"{name:<{width}}{steps:>11,} steps, {num_envs} × {length} per update"
            )
    elif env in PRESETS:
        print(json.dumps(config_to_dict(preset(env)), indent=1))
    else:
        raise UsageError(
            f"no preset for {env!r}. There are presets for {', '.join(PRESETS)}. "
            "Others are trained with the defaults: python -m trpo_jax train --env ID."
        )


def benchmark(
    *, config: Path = None, run: conf.OmitArgPrefixes[Options], seconds: float = 5.0
) -> None:
    """Measure compile time and training speed of a config on this machine.

    Args:
        config: A .json or .toml file with the run options below.
        run: The run.
        seconds: Seconds to measure for.
    """
    check_id(run.env)
    plain = TRPOConfig(**vars(run))
    print(json.dumps(runs.measure_throughput(plain, seconds=seconds)))


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
