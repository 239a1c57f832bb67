"""A run in the terminal: live progress, then an evaluation."""

import time

import jax
import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from trpo_jax.runs.evaluation import evaluate
from trpo_jax.runs.live import iterate
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.step import Metrics, TrainState

# Where there is no terminal to draw a bar in, a run prints about this many lines.
_NUM_PLAIN_LINES = 20


def train_in_console(config: TRPOConfig, console: Console) -> TrainState:
    """Train with live progress: return, KL against δ, steps per second, time left.

    Where `console` is no terminal, plain lines are printed instead of a bar.
    """
    progress = Progress(
        SpinnerColumn(),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        disable=not console.is_terminal,
    )
    line_every = max(1, config.num_updates // _NUM_PLAIN_LINES)
    episode_return = float("nan")
    with progress:
        task = progress.add_task("compiling", total=config.total_timesteps)
        for update, latest in enumerate(iterate(config), start=1):
            state, metrics = latest
            if update == 1:  # blocks until it has been compiled and run
                jax.block_until_ready(metrics)
                start = time.perf_counter()
            episode_return = _mean_return(metrics, otherwise=episode_return)
            env_steps = update * config.batch_size
            # The first update's time is compilation: speed is that of the others.
            seconds = time.perf_counter() - start
            speed = config.num_seeds * (env_steps - config.batch_size) / (seconds or 1)
            line = _describe(metrics, episode_return, speed)
            progress.update(task, completed=env_steps, description=line)
            last = update == config.num_updates
            if not console.is_terminal and (update % line_every == 0 or last):
                console.print(f"{env_steps:>11,} steps  {line}", soft_wrap=True)
    return state


def report_evaluation(
    config: TRPOConfig, state: TrainState, console: Console, num_episodes: int = 128
) -> None:
    """Play whole episodes with the most probable actions and print the mean return."""
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    returns = np.asarray(evaluate(config, state, key, num_episodes))
    by_seed = returns.reshape(config.num_seeds, num_episodes).mean(axis=1)
    console.print(
        f"evaluation over {num_episodes} episodes: return "
        f"{returns.mean():.1f}, standard deviation {returns.std():.1f}"
    )
    if config.num_seeds > 1:
        console.print("by seed: " + ", ".join(f"{value:.1f}" for value in by_seed))


def _mean_return(metrics: Metrics, otherwise: float) -> float:
    """Mean over the episodes that ended, of every seed; `otherwise` if none did."""
    counts = np.asarray(metrics.episode_count)
    total = np.sum(np.where(counts > 0, metrics.episode_return, 0) * counts)
    return float(total / counts.sum()) if counts.sum() else otherwise


def _describe(metrics: Metrics, episode_return: float, speed: float) -> str:
    kl, max_kl = np.mean(metrics.update.kl), np.mean(metrics.max_kl)
    return (
        f"return {episode_return:8.2f}  KL {kl:.4f} of {max_kl:.4f}  "
        f"{speed:9,.0f} steps/s"
    )
