"""A picture of what a trained policy does."""

import os
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from trpo_jax.environments import DRAWN_BY_GYMNAX, Drawable, Environment
from trpo_jax.errors import UsageError
from trpo_jax.runs.acting import Actions, check_actions
from trpo_jax.runs.episodes import (
    Episodes,
    advance,
    one_seed,
    start_episodes,
)
from trpo_jax.training.compilation import jit_with_options
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.iteration import TrainState
from trpo_jax.training.keys import KeyLike, as_key
from trpo_jax.training.networks import assemble


class RenderedEpisode(NamedTuple):
    """An episode that was drawn.

    Attributes:
        path: Of the picture.
        episode_return: Undiscounted, of the steps that were played.
        length: How many those are.
        ended: Whether the episode had by then.
    """

    path: Path
    episode_return: float
    length: int
    ended: bool


def render_episode(
    config: TRPOConfig,
    state: TrainState,
    path: str | os.PathLike[str],
    *,
    key: KeyLike,
    max_steps: int = 1000,
    actions: Actions = "mode",
    seed_index: int = 0,
) -> RenderedEpisode:
    """Play one episode on the device and draw it into a file.

    It is the episode that `evaluate(config, state, key, 1)` plays: of gymnax's
    environments a GIF, of brax's and MuJoCo Playground's an HTML page. What is drawn
    are the states that were acted in: where the last action led is not.

    Args:
        config: The run.
        state: Its state; with `config.num_seeds` > 1, the state of all its seeds.
        path: The file to write, and its folder if there is none. If the path has no
            suffix it gets the one of what is written, ".gif" or ".html".
        key: Randomness; consumed.
        max_steps: How much of a longer episode to play.
        actions: The most probable action, or one drawn from the policy.
        seed_index: Which of the run's seeds.

    Returns:
        The path, and what there is to see.

    Raises:
        TypeError: If `key` is not a key.
        ValueError: If the environment cannot be drawn (the message names those that
            can), or not into such a file; if `max_steps` is not positive, `actions`
            neither of the two, there is no such seed, the state is of another number
            of seeds, or what draws is not installed.
    """
    key = as_key(key)
    if max_steps < 1:
        raise UsageError(f"max_steps={max_steps} is not positive; write at least 1.")
    check_actions(actions)
    environment, _, _ = assemble(config)
    drawable, path = _check_drawable(environment, Path(path))
    played = one_seed(config, state, seed_index)
    if config.num_seeds > 1:
        key = jax.random.split(key, config.num_seeds)[seed_index]
    play = jit_with_options(_play, config, env_steps=max_steps, static_argnums=(2, 3))
    episodes, states, returns = play(played, key, actions, max_steps)
    length = int(episodes.steps)
    states, returns = jax.tree.map(
        lambda leaf: np.asarray(leaf)[:length], (states, returns)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    drawable.draw(states, returns, path)
    return RenderedEpisode(
        path, float(episodes.returns[0]), length, bool(episodes.ended[0])
    )


def _check_drawable(environment: Environment, path: Path) -> tuple[Drawable, Path]:
    """Return the environment, and the path with its suffix, if it can be drawn."""
    if not isinstance(environment, Drawable) or environment.picture_suffix is None:
        raise UsageError(
            f"{environment!r} cannot be drawn. What can: {', '.join(DRAWN_BY_GYMNAX)}; "
            "of 'brax/…' and 'playground/…', whatever has bodies and no ellipsoids; "
            "and an environment of your own that has the two members of "
            "trpo_jax.environments.Drawable."
        )
    suffix = environment.picture_suffix
    path = path if path.suffix else path.with_suffix(suffix)
    if path.suffix.lower() != suffix:
        raise UsageError(
            f"{path.name} would be {environment!r}, which is drawn as {suffix}; write "
            f"{path.with_suffix(suffix).name}."
        )
    return environment, path


def _play(
    config: TRPOConfig,
    state: TrainState,
    key: KeyLike,
    actions: Actions,
    max_steps: int,
) -> tuple[Episodes, PyTree, Float[Array, " T"]]:
    """Return one episode's end, its states [T, …] and its return after each step.

    What comes after `steps` of them is of no account.
    """
    reset_key, key = jax.random.split(key)

    def step(episodes: Episodes, _: None) -> tuple[Episodes, tuple]:
        following = jax.lax.cond(
            episodes.ended[0],
            lambda episodes: episodes,
            lambda episodes: advance(config, state, key, episodes, actions),
            episodes,
        )
        acted_in = jax.tree.map(lambda leaf: leaf[0], episodes.env_state)
        return following, (acted_in, following.returns[0])

    start = start_episodes(config, reset_key, 1)
    episodes, (states, returns) = jax.lax.scan(step, start, length=max_steps)
    return episodes, states, returns
