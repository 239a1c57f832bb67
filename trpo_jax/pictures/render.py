"""Rendering of an episode that a trained policy plays."""

import os
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from trpo_jax.environments import DRAWN_BY_GYMNAX, Drawable, Environment
from trpo_jax.environments.gymnasium import is_on_host
from trpo_jax.errors import UsageError
from trpo_jax.policies.acting import (
    Actions,
    Episodes,
    check_actions,
    start_episodes,
    state_of_seed,
    step_episodes,
)
from trpo_jax.training.compilation import jit_with_options
from trpo_jax.training.components import make_components
from trpo_jax.training.config import TRPOConfig, check_config
from trpo_jax.training.keys import KeyLike, as_key
from trpo_jax.training.state import TrainState
from trpo_jax.trust_region.checks import whole


class RenderedEpisode(NamedTuple):
    """A rendered episode.

    Attributes:
        path: The file of the picture.
        episode_return: Undiscounted return of the steps that were played.
        length: Steps that were played.
        ended: Whether the episode ended with the last of them.
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

    The episode is the one that `evaluate(config, state, key, 1)` plays: a GIF for
    gymnax, an HTML page for Brax and MuJoCo Playground. It shows the states in which an
    action was taken, without the state after the last action.

    Args:
        config: The run.
        state: Its state; with `config.num_seeds` > 1, the state of all its seeds.
        path: The file to write; its folder is made if it does not exist. A path without
            a suffix gets the one that fits, ".gif" or ".html".
        key: Randomness; consumed.
        max_steps: A longer episode is cut after so many steps.
        actions: The most probable action, or one sampled from the policy.
        seed_index: Index of one of the run's seeds.

    Returns:
        The path, and the return and length of the episode.

    Raises:
        UsageTypeError: If `config` or `state` is something else, or `key` not a key.
        UsageError: If the environment cannot be drawn (the message names those that
            can), or not into such a file; if `max_steps` is not positive, `actions`
            neither of the two, there is no such seed, the state has other seeds,
            observations or parameters than `config` makes, or the package that draws is
            not installed.
    """
    check_config(config)
    key = as_key(key)
    max_steps = whole("max_steps", max_steps)
    check_actions(actions)
    environment = make_components(config).environment
    drawable, path = _check_drawable(environment, Path(path))
    played = state_of_seed(config, state, seed_index)
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
    """Return the environment and the path with a suffix; raise if it has no picture."""
    if is_on_host(environment):
        raise UsageError(
            f"{environment!r} cannot be drawn, because its states are on the host and "
            "are not kept; play an episode in Gymnasium itself, made with render_mode, "
            "with the actions of trpo_jax.load_policy(folder)."
        )
    if not isinstance(environment, Drawable) or environment.picture_suffix is None:
        raise UsageError(
            f"{environment!r} cannot be drawn. These can: "
            f"{', '.join(DRAWN_BY_GYMNAX)}; the environments of 'brax/…' and "
            "'playground/…' that have bodies and no ellipsoids; and your own if it has "
            "the members of trpo_jax.environments.Drawable."
        )
    suffix = environment.picture_suffix
    path = path if path.suffix else path.with_suffix(suffix)
    if path.suffix.lower() != suffix:
        raise UsageError(
            f"{environment!r} is drawn as {suffix}, not {path.suffix}; write "
            f"{path.with_suffix(suffix)}."
        )
    return environment, path


def _play(
    config: TRPOConfig,
    state: TrainState,
    key: KeyLike,
    actions: Actions,
    max_steps: int,
) -> tuple[Episodes, PyTree, Float[Array, " T"]]:
    """Return one finished episode, its states [T, …] and the return after each step.

    Only the first `episodes.steps` of them are of the episode.
    """
    reset_key, key = jax.random.split(key)

    def step(episodes: Episodes, _: None) -> tuple[Episodes, tuple]:
        following = jax.lax.cond(
            episodes.ended[0],
            lambda episodes: episodes,
            lambda episodes: step_episodes(config, state, key, episodes, actions),
            episodes,
        )
        acted_in = jax.tree.map(lambda leaf: leaf[0], episodes.env_state)
        return following, (acted_in, following.returns[0])

    start = start_episodes(config, reset_key, 1)
    episodes, (states, returns) = jax.lax.scan(step, start, length=max_steps)
    return episodes, states, returns
