"""The command line: `python -m trpo_jax --env CartPole-v1`."""

import argparse
import os
import sys
from collections.abc import Sequence

import jax
import tyro
from rich.console import Console

from trpo_jax.environments import make_environment
from trpo_jax.runs.console import report_evaluation, train_in_console
from trpo_jax.training import PRESETS, TRPOConfig, preset


def main(args: Sequence[str] | None = None) -> int:
    """Train with live progress and end with an evaluation; return the exit status.

    Args:
        args: The command line without the program's name, `sys.argv[1:]` by default.

    Returns:
        0; 2 if the options do not make a run (the message says what to write); 130 if
        it was interrupted.
    """
    try:
        config = parse(sys.argv[1:] if args is None else args)
        make_environment(config.env)
    except (ValueError, TypeError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False)
        return 2
    keep_compiled_programs()
    console = Console()
    console.print(
        f"TRPO on {config.env}: {config.total_timesteps:,} steps, "
        f"{config.num_envs} environments × {config.rollout_length} steps an update"
        + (f", {config.num_seeds} seeds" if config.num_seeds > 1 else "")
    )
    try:
        state = train_in_console(config, console)
        report_evaluation(config, state, console)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted")
        return 130
    return 0


def keep_compiled_programs() -> None:
    """Keep what is compiled on disk, so that the next run of its kind starts at once.

    In `$XDG_CACHE_HOME/trpo_jax`, by default `~/.cache/trpo_jax`; where JAX has been
    told of a directory, by JAX_COMPILATION_CACHE_DIR, in that one and on its terms.
    """
    if jax.config.values.get("jax_compilation_cache_dir") is None:
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", f"{caches}/trpo_jax")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def parse(args: Sequence[str]) -> TRPOConfig:
    """Return the configuration that the options make.

    The environment's preset is where they start from, if it has one.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--env", default=TRPOConfig.env)
    env = first.parse_known_args(args)[0].env
    start = preset(env) if env in PRESETS else TRPOConfig(env=env)
    return tyro.cli(
        tyro.conf.OmitArgPrefixes[tyro.conf.SuppressFixed[TRPOConfig]],
        args=args,
        default=start,
        prog="python -m trpo_jax",
        description=(
            "Train a policy by trust region policy optimisation. Options left out have "
            "the environment's tuned values, if it has a preset: "
            f"{', '.join(PRESETS)}."
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
