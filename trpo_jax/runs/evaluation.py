"""How well a trained policy does, over whole episodes."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from trpo_jax.errors import UsageError
from trpo_jax.runs.acting import Actions, check_actions
from trpo_jax.runs.chunks import state_type
from trpo_jax.runs.episodes import Episodes, advance, check_seeds, start_episodes
from trpo_jax.training.compilation import is_short, jit_with_options
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.iteration import TrainState
from trpo_jax.training.keys import KeyLike, as_key

_MAX_STEPS = 10_000


def evaluate(
    config: TRPOConfig,
    state: TrainState,
    key: KeyLike,
    num_episodes: int = 128,
    *,
    actions: Actions = "mode",
    max_steps: int = _MAX_STEPS,
) -> Float[Array, "*seeds episodes"]:
    """Return the undiscounted returns of whole episodes, played on the device.

    Args:
        config: The run.
        state: Its state; with `config.num_seeds` > 1, the state of all its seeds.
        key: Randomness; consumed.
        num_episodes: How many episodes, side by side.
        actions: The most probable action, or one drawn from the policy.
        max_steps: An episode that has not ended by then counts as NaN.

    Returns:
        Returns float[num_episodes], or float[num_seeds, num_episodes].

    Raises:
        TypeError: If `config` or `state` is something else, or `key` not a key.
        ValueError: If a count is not positive, `actions` neither of the two, or the
            state is of another number of seeds.
    """
    key = as_key(key)
    for name, count in {"num_episodes": num_episodes, "max_steps": max_steps}.items():
        if count < 1:
            raise UsageError(f"{name}={count} is not positive; write at least 1.")
    check_actions(actions)
    check_seeds(config, state, "vmap evaluate over other axes")
    run = _program(config)
    return run(state, key, num_episodes, actions, max_steps)


@contextlib.contextmanager
def compiling_evaluation(config: TRPOConfig, num_episodes: int) -> Iterator[None]:
    """Compile what `evaluate(config, …, num_episodes)` runs while the block trains.

    Of a short run it is a good part; a long one does without. What goes wrong in the
    thread does so again, and is told, in `evaluate`. A block that is interrupted does
    not wait for the thread.
    """
    if not is_short(config.all_env_steps):
        yield
        return
    key_type = jax.eval_shape(lambda: jax.random.key(0))
    lowered = _program(config).lower(
        state_type(config), key_type, num_episodes, "mode", _MAX_STEPS
    )
    pool = ThreadPoolExecutor(max_workers=1)
    pool.submit(lowered.compile)
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False)
        raise
    pool.shutdown()


def summarize_returns(
    config: TRPOConfig, returns: Float[Array, "*seeds episodes"]
) -> dict[str, Any]:
    """Return what `evaluate` returned in a few numbers, as JSON knows them.

    Returns:
        Over the episodes that ended: `return_mean`, `return_std`, `return_by_seed`,
        None where none did; and `num_episodes` of each seed, `num_unended` of all.
    """
    by_seed = np.asarray(returns, np.float64).reshape(config.num_seeds, -1)

    def over_ended(fn: Callable, values: np.ndarray) -> float | None:
        ended = values[np.isfinite(values)]
        return float(fn(ended)) if ended.size else None

    return {
        "return_mean": over_ended(np.mean, by_seed),
        "return_std": over_ended(np.std, by_seed),
        "return_by_seed": [over_ended(np.mean, one) for one in by_seed],
        "num_episodes": by_seed.shape[1],
        "num_unended": int(np.sum(~np.isfinite(by_seed))),
    }


def in_words(evaluation: dict[str, Any]) -> str:
    """Return a line or two on what `summarize_returns` returned."""
    mean, std = evaluation["return_mean"], evaluation["return_std"]
    if mean is None:
        return "evaluation: no episode came to an end"
    text = (
        f"evaluation over {evaluation['num_episodes']} episodes: return {mean:.1f}, "
        f"standard deviation {std:.1f}"
    )
    by_seed = evaluation["return_by_seed"]
    if len(by_seed) > 1:
        means = ["–" if one is None else f"{one:.1f}" for one in by_seed]
        text += f"\nby seed: {', '.join(means)}"
    if evaluation["num_unended"]:
        text += f"\n{evaluation['num_unended']} episodes had not ended and are left out"
    return text


def _program(config: TRPOConfig) -> jax.stages.Wrapped:
    """Return `_evaluate`, jitted with the options of a short run: it is one."""
    static = (2, 3, 4)  # num_episodes, actions, max_steps
    return jit_with_options(_evaluate, config, env_steps=1, static_argnums=static)


def _evaluate(
    config: TRPOConfig,
    state: TrainState,
    key: KeyLike,
    num_episodes: int,
    actions: Actions,
    max_steps: int,
) -> Float[Array, "*seeds episodes"]:
    def play(state: TrainState, key: KeyLike) -> Float[Array, " episodes"]:
        reset_key, key = jax.random.split(key)

        def proceed(episodes: Episodes) -> Array:
            return (episodes.steps < max_steps) & ~jnp.all(episodes.ended)

        def step(episodes: Episodes) -> Episodes:
            return advance(config, state, key, episodes, actions)

        start = start_episodes(config, reset_key, num_episodes)
        episodes = jax.lax.while_loop(proceed, step, start)
        return jnp.where(episodes.ended, episodes.returns, jnp.nan)

    if config.num_seeds == 1:
        return play(state, key)
    return jax.vmap(play)(state, jax.random.split(key, config.num_seeds))
