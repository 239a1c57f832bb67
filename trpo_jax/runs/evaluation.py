"""How well a trained policy does, over whole episodes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from trpo_jax.runs.acting import Actions, check_actions
from trpo_jax.runs.episodes import Episodes, advance, check_seeds, start_episodes
from trpo_jax.training.compilation import jit_with_options
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.step import TrainState, check_key


def evaluate(
    config: TRPOConfig,
    state: TrainState,
    key: Key[Array, ""],
    num_episodes: int = 128,
    *,
    actions: Actions = "mode",
    max_steps: int = 10_000,
) -> Float[Array, "*seeds episodes"]:
    """Return the undiscounted returns of whole episodes, played on the device.

    Args:
        config: The run.
        state: Its state; with `config.num_seeds` > 1, the state of all its seeds.
        key: A typed key; consumed.
        num_episodes: How many episodes, side by side.
        actions: The most probable action, or one drawn from the policy.
        max_steps: An episode that has not ended by then counts as NaN.

    Returns:
        Returns float[num_episodes], or float[num_seeds, num_episodes].

    Raises:
        TypeError: If `key` is not a typed key.
        ValueError: If a count is not positive, `actions` neither of the two, or the
            state is of another number of seeds.
    """
    check_key(key)
    for name, count in {"num_episodes": num_episodes, "max_steps": max_steps}.items():
        if count < 1:
            raise ValueError(f"{name}={count} is not positive; write at least 1.")
    check_actions(actions)
    check_seeds(config, state, "vmap evaluate over other axes")
    # For no steps: it compiles for longer than it runs.
    run = jit_with_options(
        _evaluate, (state, key), env_steps=0, static_argnums=(3, 4, 5)
    )
    return run(config, state, key, num_episodes, actions, max_steps)


def _evaluate(
    config: TRPOConfig,
    state: TrainState,
    key: Key[Array, ""],
    num_episodes: int,
    actions: Actions,
    max_steps: int,
) -> Float[Array, "*seeds episodes"]:
    def play(state: TrainState, key: Key[Array, ""]) -> Float[Array, " episodes"]:
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
