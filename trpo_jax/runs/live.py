"""A run watched from the host, one update at a time."""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from trpo_jax.training.compilation import compiler_options
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.step import Metrics, TrainState, check_key, init, step


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
    if config.num_seeds > 1:
        key = jax.random.split(key, config.num_seeds)
    start, advance = _compile(config, jax.typeof(key))
    state = start(config, key)
    for _ in range(config.num_updates):
        state, metrics = advance(config, state)
        yield state, metrics


@functools.lru_cache(maxsize=16)
def _compile(config: TRPOConfig, key_type: Any) -> tuple[Any, Any]:
    """Return `init` and `step` compiled, the one while the other is."""
    start: Callable = init
    advance: Callable = step
    if config.num_seeds > 1:
        start, advance = (jax.vmap(fn, in_axes=(None, 0)) for fn in (init, step))
    key = jax.ShapeDtypeStruct(key_type.shape, key_type.dtype)
    state = jax.eval_shape(start, config, key)
    lowered = [
        jax.jit(start).lower(config, key),
        jax.jit(advance, donate_argnums=1).lower(config, state),
    ]
    options = [compiler_options(env_steps=0), compiler_options(config.all_env_steps)]
    with ThreadPoolExecutor() as pool:
        compiled_start, compiled_advance = pool.map(
            lambda program, chosen: program.compile(chosen), lowered, options
        )
    return compiled_start, compiled_advance
