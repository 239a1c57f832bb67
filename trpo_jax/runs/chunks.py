"""A run watched from the host: the compiled `step` looped on the device, in chunks."""

import functools
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from trpo_jax.training.compilation import compiler_options
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.iteration import Metrics, step
from trpo_jax.training.keys import as_key
from trpo_jax.training.state import TrainState, init

# A chunk is to take about so long: the host wakes up seldom beside an update, the
# program seldom asks the system for its memory anew (some 40 MB at 1024 × 128), and a
# person who watches, or who interrupts, need not wait.
_CHUNK_SECONDS = 2.0

# Updates in a chunk at most; so many rows of metrics are kept on the device.
_CAPACITY = 256


class Chunk(NamedTuple):
    """Some updates of a run, one after the other.

    Attributes:
        updates: Updates that the run has made with them.
        metrics: Of each of the chunk's n updates, NumPy leaves [n], or [n, num_seeds]
            with several seeds.
        state: The state after the last, or None if it was not asked for.
        seconds: Since the chunk before was done.
    """

    updates: int
    metrics: Metrics
    state: TrainState | None
    seconds: float


class Programs(NamedTuple):
    """What a run is made of, compiled.

    Attributes:
        init: key ↦ state.
        advance: (state, n) ↦ (state, metrics [_CAPACITY, …] of which n are filled);
            gives the state that it gets up.
        copy: state ↦ another in memory of its own.
    """

    init: Callable[[jax.Array], TrainState]
    advance: Callable[[TrainState, Int[Array, ""]], tuple[TrainState, Metrics]]
    copy: Callable[[TrainState], TrainState]


def run_keys(config: TRPOConfig, key: jax.Array | None = None) -> jax.Array:
    """Return the key that `train(config, key)` starts from, one for each seed."""
    if key is None:
        key = jax.random.key(config.seed)
    key = as_key(key)
    return jax.random.split(key, config.num_seeds) if config.num_seeds > 1 else key


@functools.lru_cache(maxsize=16)
def state_type(config: TRPOConfig) -> PyTree:
    """Return shapes and dtypes of the state of `config`, without compiling.

    Raises:
        ValueError: If the config does not make a run, as `init`.
    """
    return jax.eval_shape(_start, config, run_keys(config))


@functools.lru_cache(maxsize=16)
def compile_programs(config: TRPOConfig) -> Programs:
    """Compile what `config` runs, the one program while the next is traced."""
    keys = run_keys(config)
    key_type = jax.ShapeDtypeStruct(keys.shape, keys.dtype)
    like = state_type(config)
    quick = compiler_options(env_steps=0)
    programs: tuple[tuple[Any, tuple, dict], ...] = (
        (_start, (config, key_type), quick),
        (
            jax.jit(_advance, donate_argnums=1),
            (config, like, jnp.int32(1)),
            compiler_options(config.all_env_steps),
        ),
        (jax.jit(_copy), (config, like), quick),
    )
    with ThreadPoolExecutor() as pool:
        compiling = [
            pool.submit(jitted.lower(*arguments).compile, options)
            for jitted, arguments, options in programs
        ]
    return Programs(*(functools.partial(one.result(), config) for one in compiling))


def advance(
    programs: Programs,
    state: TrainState,
    *,
    first: int,
    last: int,
    wants_state_fn: Callable[[int], bool] = lambda updates: False,
    boundary_every: int | None = None,
    stop_fn: Callable[[], bool] = lambda: False,
) -> Iterator[Chunk]:
    """Yield the updates `first` + 1 … `last` as they are made.

    The device has the next chunk in hand while the host looks at one. How updates are
    cut into chunks follows the clock, and changes no bit of them.

    Args:
        programs: The run's.
        state: After `first` updates; given up.
        first: Updates made already.
        last: Updates to stop after.
        wants_state_fn: Whether the chunk that ends after so many updates is to bring
            the state. The last one always does.
        boundary_every: Chunks end at the multiples of this number.
        stop_fn: Asked before each chunk; once true, what is in hand is finished.
    """
    in_hand: deque[tuple[int, int, Metrics, TrainState | None]] = deque()
    pace = _Pace()
    updates = first
    while updates < last and not stop_fn():
        end = min(updates + pace.updates, last)
        if boundary_every is not None:
            end = min(end, (updates // boundary_every + 1) * boundary_every)
        count, updates = end - updates, end
        state, metrics = programs.advance(state, jnp.int32(count))
        wanted = updates < last and wants_state_fn(updates)
        kept = programs.copy(state) if wanted else None
        in_hand.append((updates, count, metrics, kept))
        if len(in_hand) > 1:
            yield _fetch(*in_hand.popleft(), pace)
    while in_hand:
        ends, count, metrics, kept = in_hand.popleft()
        kept = kept if in_hand else state
        yield _fetch(ends, count, metrics, kept, pace)


class _Pace:
    """Chooses how many updates to hand out at a time."""

    def __init__(self) -> None:
        self.updates = 1
        self._last = time.perf_counter()

    def lap(self, count: int) -> float:
        """Return the seconds since the last call, in which `count` were made."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        fitting = int(count * _CHUNK_SECONDS / max(seconds, 1e-9))
        # At most twice as many: one short lap may be an accident.
        self.updates = max(1, min(fitting, 2 * count, _CAPACITY))
        return seconds


def _fetch(
    updates: int, count: int, metrics: Metrics, state: TrainState | None, pace: _Pace
) -> Chunk:
    """Wait for a chunk's metrics."""
    filled = jax.tree.map(lambda leaf: leaf[:count], jax.device_get(metrics))
    return Chunk(updates, filled, state, pace.lap(count))


def _init(config: TRPOConfig, keys: jax.Array) -> TrainState:
    if config.num_seeds == 1:
        return init(config, keys)
    return jax.vmap(init, in_axes=(None, 0))(config, keys)


# One for `state_type` and `compile_programs`, so that it is traced once.
_start = jax.jit(_init)


def _copy(config: TRPOConfig, state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)


def _step(config: TRPOConfig, state: TrainState) -> tuple[TrainState, Metrics]:
    if config.num_seeds == 1:
        return step(config, state)
    return jax.vmap(step, in_axes=(None, 0))(config, state)


def _advance(
    config: TRPOConfig, state: TrainState, count: Int[Array, ""]
) -> tuple[TrainState, Metrics]:
    """Make `count` updates, known only when it runs: every chunk is one program."""
    one_step = jax.jit(functools.partial(_step, config), inline=True)  # traced once

    def body(i: Array, carry: tuple[TrainState, Any]) -> tuple[TrainState, Any]:
        state, records = carry
        state, metrics = one_step(state)
        put = functools.partial(jax.tree.map, lambda kept, new: kept.at[i].set(new))
        return state, put(records, metrics)

    _, metrics_type = jax.eval_shape(one_step, state)
    records = jax.tree.map(
        lambda leaf: jnp.zeros((_CAPACITY, *leaf.shape), leaf.dtype), metrics_type
    )
    return jax.lax.fori_loop(0, count, body, (state, records))


def by_update(metrics: Metrics) -> list[dict[str, np.ndarray]]:
    """Return a chunk's metrics update by update, the update's own evidence among them.

    Args:
        metrics: Leaves [n] or [n, num_seeds].

    Returns:
        n dictionaries of scalars, or of arrays [num_seeds], by the names of `Metrics`
        and `UpdateInfo`.
    """
    flat = metrics._asdict()
    flat |= flat.pop("update")._asdict()
    del flat["episode_return_sum"], flat["episode_length_sum"]
    flat["episode_return"] = metrics.episode_return
    flat["episode_length"] = metrics.episode_length
    count = len(metrics.env_steps)
    return [
        {name: values[i, ...] for name, values in flat.items()} for i in range(count)
    ]
