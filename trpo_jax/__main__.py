"""The command line: `python -m trpo_jax --env CartPole-v1`."""

import argparse
import sys
from collections.abc import Sequence

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
