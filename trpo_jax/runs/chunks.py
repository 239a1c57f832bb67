"""Training in chunks of updates, while the host handles the chunk before."""

import functools
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from trpo_jax.policies.evaluation import (
    Evaluation,
    PendingEpisodes,
    lower_evaluation,
    mean_over_ended,
)
from trpo_jax.runs.processes import on_writer
from trpo_jax.training.compilation import jit_with_options
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.iteration import step
from trpo_jax.training.metrics import Metrics
from trpo_jax.training.placement import place, replicate
from trpo_jax.training.seeds import init_seeds, over_seeds, run_keys, state_type
from trpo_jax.training.state import TrainState

# Seconds that a chunk should take: long enough that the host is seldom awake beside an
# update, and that the program seldom asks the system for its memory again (some 40 MB
# at 1024 × 128); short enough for a person who watches or interrupts.
_CHUNK_SECONDS = 2.0

CAPACITY = 256
"""Updates in a chunk at most: rows of metrics that are kept on the device."""


class Chunk(NamedTuple):
    """Some consecutive updates of a run.

    Attributes:
        updates: Updates that the run has made up to the end of the chunk.
        metrics: Metrics of the chunk's n updates, NumPy leaves [n], or [n, num_seeds]
            with several seeds.
        state: The state after the last update, or None if it was neither asked for nor
            evaluated.
        seconds: Seconds since the end of the chunk before.
        evaluation: The episodes that evaluate the state after the last update; None if
            it was not evaluated.
        wanted: Whether the state was asked for.
    """

    updates: int
    metrics: Metrics
    state: TrainState | None
    seconds: float
    evaluation: Evaluation | None = None
    wanted: bool = False


class Programs(NamedTuple):
    """The compiled functions of a run.

    Attributes:
        init: keys ↦ state; for the cells of a sweep, cells ↦ state.
        run_updates: (state, n) ↦ (state, metrics [CAPACITY, …] of which n are filled);
            the state is donated.
        copy: state ↦ a copy in memory of its own.
        gather: state ↦ the same, with all environments, in this process alone.
    """

    init: Callable[[Any], TrainState]
    run_updates: Callable[[TrainState, Array], tuple[TrainState, Metrics]]
    copy: Callable[[TrainState], TrainState]
    gather: Callable[[TrainState], TrainState] = lambda state: state


def compile_programs(
    config: TRPOConfig, *, interim_episodes: int | None = None
) -> Programs:
    """Compile the functions of a run, one while the next is traced.

    Args:
        config: The run.
        interim_episodes: Also compile the evaluation over so many episodes.
    """
    like = state_type(config)
    # `init` and `copy` run seldom: compiling fast matters more than running fast.
    programs = (
        jit_with_options(init_seeds, config, env_steps=0),
        jit_with_options(
            _run_updates, config, env_steps=config.all_env_steps, donate_argnums=(0,)
        ),
        jit_with_options(_copy, config, env_steps=0),
    )
    keys = jax.eval_shape(lambda: run_keys(config))
    arguments = ((keys,), (like, jax.ShapeDtypeStruct((), jnp.int32)), (like,))

    def lowered() -> Iterator[jax.stages.Lowered]:
        for program, inputs in zip(programs, arguments, strict=True):
            yield program.lower(*inputs)
        if interim_episodes is not None:
            yield lower_evaluation(config, interim_episodes)

    # JAX keeps each executable with its lowered program, where the first call of the
    # same jitted function finds it. A cache of our own would also have to distinguish
    # JAX's settings (x64, key implementation). Under JAX_DISABLE_JIT, `lower` raises.
    if not jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        with ThreadPoolExecutor() as pool:
            list(pool.map(jax.stages.Lowered.compile, lowered()))
    return Programs(*programs, gather=functools.partial(gather, config))


def run_chunks(
    programs: Programs,
    state: TrainState,
    *,
    first: int,
    last: int,
    wants_state_fn: Callable[[int], bool] = lambda updates: False,
    boundary_every: int | None = None,
    evaluate_fn: Callable[[TrainState, int], PendingEpisodes] | None = None,
    evaluate_every: int | None = None,
    stop_fn: Callable[[], bool] = lambda: False,
) -> Iterator[Chunk]:
    """Yield the updates `first` + 1 … `last` in chunks, as they are made.

    The device already works on the next chunk while the host handles one. How updates
    are cut into chunks follows the clock, of the writer where there are several
    processes, and does not change a bit of their results.

    Args:
        programs: The functions of the run.
        state: After `first` updates; donated.
        first: Updates made already.
        last: Updates to stop after.
        wants_state_fn: Whether the chunk that ends after so many updates is to bring
            the state; asked in the writer. The last one always does.
        boundary_every: Chunks end at the multiples of this number.
        evaluate_fn: (state, its updates) ↦ the episodes that evaluate it, started but
            not waited for.
        evaluate_every: Chunks also end at the multiples of this number, and bring the
            evaluation of their last state, and that state.
        stop_fn: Asked before each chunk, in the writer; once true, the chunks in flight
            are finished.
    """
    in_flight: deque[
        tuple[int, int, Metrics, TrainState | None, PendingEpisodes | None, bool]
    ] = deque()
    boundaries = [every for every in (boundary_every, evaluate_every) if every]
    size, clock, updates = 1, time.perf_counter(), first

    def fetch() -> Chunk:
        """Wait for the metrics of the first chunk in flight."""
        nonlocal size, clock
        ends, count, metrics, kept, pending, wanted = in_flight.popleft()
        filled = jax.tree.map(lambda leaf: leaf[:count], jax.device_get(metrics))
        evaluation = pending.fetch() if pending else None
        before, clock = clock, time.perf_counter()
        fitting = int(count * _CHUNK_SECONDS / max(clock - before, 1e-9))
        # At most twice as many: one short chunk may be an accident.
        size = max(1, min(fitting, 2 * count, CAPACITY))
        return Chunk(ends, filled, kept, clock - before, evaluation, wanted)

    def next_chunk() -> tuple[int, bool] | None:
        """Return where it ends and whether it brings the state; None to stop."""
        if updates == last or stop_fn():
            return None
        ends = ((updates // every + 1) * every for every in boundaries)
        end = min(updates + size, last, *ends)
        return end, end < last and wants_state_fn(end)

    while (chunk := on_writer(next_chunk)) is not None:
        end, wanted = chunk
        count, updates = end - updates, end
        state, metrics = programs.run_updates(state, jnp.int32(count))
        evaluated = evaluate_every is not None and updates % evaluate_every == 0
        # A copy, because the next updates overwrite the state, perhaps beside the
        # evaluation.
        copied = updates < last and (wanted or evaluated)
        kept = programs.copy(state) if copied else state
        pending = evaluate_fn(kept, updates) if evaluate_fn and evaluated else None
        brought = programs.gather(kept) if wanted or pending else None
        in_flight.append((updates, count, metrics, brought, pending, wanted))
        if len(in_flight) > 1:
            yield fetch()
    while in_flight:
        fetched = fetch()
        yield fetched if in_flight else fetched._replace(state=state, wanted=True)


def gather(config: TRPOConfig, state: TrainState) -> TrainState:
    """Return a state with all environments, in this process alone."""
    if jax.process_count() == 1 or jax.tree.leaves(state)[0].is_fully_addressable:
        return state
    whole = jit_with_options(replicate, config, env_steps=0)(state)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)


def _copy(config: TRPOConfig, state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)


def _run_updates(
    config: TRPOConfig, state: TrainState, count: Int[Array, ""]
) -> tuple[TrainState, Metrics]:
    one_step = over_seeds(config, functools.partial(step, config))
    state, records = repeat_step(one_step, state, count)
    # Loops of both kinds of program start from, and end in, the same placement.
    state = place(config, state, num_seeds=config.num_seeds)
    return state, replicate(config, records)


def repeat_step(
    step_fn: Callable[[TrainState], tuple[TrainState, Metrics]],
    state: TrainState,
    count: Int[Array, ""],
) -> tuple[TrainState, Metrics]:
    """Make `count` steps; traced, so that chunks of all sizes are one program.

    Args:
        step_fn: state ↦ (state, metrics).
        state: The state, of one run or of several.
        count: At most `CAPACITY`.

    Returns:
        The last state, and metrics [CAPACITY, …] of which `count` are filled.
    """
    # Under `jit` for its cache, so that `eval_shape` and the loop trace it once.
    one_step = jax.jit(step_fn, inline=True)

    def body(i: Array, carry: tuple[TrainState, Any]) -> tuple[TrainState, Any]:
        state, records = carry
        state, metrics = one_step(state)
        put = functools.partial(jax.tree.map, lambda kept, new: kept.at[i].set(new))
        return state, put(records, metrics)

    _, metrics_type = jax.eval_shape(one_step, state)
    records = jax.tree.map(
        lambda leaf: jnp.zeros((CAPACITY, *leaf.shape), leaf.dtype), metrics_type
    )
    return jax.lax.fori_loop(0, count, body, (state, records))


def by_update(chunk: Chunk) -> list[dict[str, np.ndarray]]:
    """Return a chunk's metrics update by update, with the fields of `UpdateInfo`.

    Returns:
        n dictionaries of scalars, or of arrays [num_seeds], by the names of `Metrics`
        and `UpdateInfo`, with their ratios; under "update" the updates that the run has
        made, and in the last one, if it was evaluated, under "evaluation_return" the
        mean return. In an environment with costs also "episode_cost" and, of an update
        that keeps limits, the fields of `ConstraintInfo`; of several costs, each under
        a name of its own, "episode_cost_0" and so on.
    """
    metrics = chunk.metrics
    flat = metrics._asdict()
    flat |= flat.pop("update")._asdict()
    for name in (
        "updates",
        "batch_size",
        "episode_return_sum",
        "episode_length_sum",
        "episode_cost_sum",
        "constraints",
    ):
        del flat[name]
    flat["episode_return"] = metrics.episode_return
    flat["episode_length"] = metrics.episode_length
    for name in ("kl_ratio", "improvement_ratio", "signal_to_noise"):
        flat[name] = getattr(metrics.update, name)
    flat |= by_cost("episode_cost", metrics.episode_cost)
    if metrics.constraints is not None:
        constraints = metrics.constraints._asdict()
        flat["recovered"] = constraints.pop("recovered")
        for name, values in constraints.items():
            flat |= by_cost(name, values)
    count = len(metrics.updates)
    made = np.arange(chunk.updates - count, chunk.updates) + 1
    flat = {"update": made, "env_steps": metrics.env_steps, **flat}
    rows = [
        {name: values[i, ...] for name, values in flat.items()} for i in range(count)
    ]
    if chunk.evaluation is not None:
        played = chunk.evaluation
        rows[-1]["evaluation_return"] = mean_over_ended(np.asarray(played.returns))
        if played.costs is not None:
            costs = mean_over_ended(np.moveaxis(np.asarray(played.costs), -1, -2))
            rows[-1] |= by_cost("evaluation_cost", costs)
    return rows


def by_cost(name: str, values: Any) -> dict[str, np.ndarray]:
    """Return a number of each cost, [..., K], by name; nothing if there are none."""
    if values is None:
        return {}
    if values.shape[-1] == 1:
        return {name: values[..., 0]}
    return {f"{name}_{i}": values[..., i] for i in range(values.shape[-1])}
