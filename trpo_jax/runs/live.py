"""A run watched from the host, one update at a time."""

from collections.abc import Iterator

import jax

from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.step import Metrics, TrainState, check_key, init, step


_start = jax.jit(init)
_advance = jax.jit(step, donate_argnums=1)
_start_seeds = jax.jit(jax.vmap(init, in_axes=(None, 0)))
_advance_seeds = jax.jit(jax.vmap(step, in_axes=(None, 0)), donate_argnums=1)


def iterate(
    config: TRPOConfig, key: jax.Array | None = None
) -> Iterator[tuple[TrainState, Metrics]]:
    """Yield the state and metrics after each update of the run that `train` does.

    Update and metrics are those of `train(config, key)` to rounding; with several
    seeds every leaf has a leading axis [num_seeds]. A state is given up to the next
    update: keep the last, or copy.

    Args:
        config: The run.
        key: A typed key in place of `jax.random.key(config.seed)`; consumed.
    """
    if key is None:
        key = jax.random.key(config.seed)
    check_key(key)
    start, advance = _start, _advance
    if config.num_seeds > 1:
        key = jax.random.split(key, config.num_seeds)
        start, advance = _start_seeds, _advance_seeds
    state = start(config, key)
    for _ in range(config.num_updates):
        state, metrics = advance(config, state)
        yield state, metrics
