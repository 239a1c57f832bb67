"""Evaluation of a trained policy over whole episodes."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from trpo_jax.policies.acting import (
    Actions,
    Episodes,
    check_actions,
    check_trained,
    start_episodes,
    step_episodes,
)
from trpo_jax.training.compilation import is_short, jit_with_options
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.keys import KeyLike, as_key
from trpo_jax.training.placement import check_placed, replicate, split_episodes
from trpo_jax.training.seeds import over_seeds, run_keys, state_type
from trpo_jax.training.state import TrainState
from trpo_jax.trust_region.checks import whole

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

    Differentiable in forward mode only: episodes have no fixed length.

    Args:
        config: The run.
        state: Its state; with `config.num_seeds` > 1, the state of all its seeds.
        key: Randomness; consumed.
        num_episodes: Episodes of each seed, played side by side.
        actions: The most probable action, or one sampled from the policy.
        max_steps: The return of an episode that is longer is NaN.

    Returns:
        Returns float[num_episodes], or float[num_seeds, num_episodes].

    Raises:
        UsageTypeError: If `config`, `state`, `key` or a count is of another type.
        UsageError: If a count is not positive, `actions` is unknown, or the seeds,
            observations or parameters of the state are not those of `config`, or it is
            on other devices.
    """
    played = evaluate_with_costs(
        config, state, key, num_episodes, actions=actions, max_steps=max_steps
    )
    return jnp.asarray(played.returns)


class Evaluation(NamedTuple):
    """Results of whole episodes.

    Attributes:
        returns: Undiscounted returns, float[num_episodes], or float[num_seeds,
            num_episodes]; NaN for an episode that did not end.
        costs: Undiscounted costs, likewise with a last axis [K]; None in an environment
            without costs.
    """

    returns: Float[Array | np.ndarray, "*seeds episodes"]
    costs: Float[Array | np.ndarray, "*seeds episodes K"] | None


def evaluate_with_costs(
    config: TRPOConfig,
    state: TrainState,
    key: KeyLike,
    num_episodes: int = 128,
    *,
    actions: Actions = "mode",
    max_steps: int = _MAX_STEPS,
) -> Evaluation:
    """Return returns and costs of whole episodes, played on the device.

    A limit is one on the costs of the policy that trains, which samples: to compare
    them with it, write actions="sample".

    Args:
        config: As all that follow, see `evaluate`.
        state: The state of the run.
        key: Randomness; consumed.
        num_episodes: Episodes of each seed.
        actions: The most probable action, or one sampled from the policy.
        max_steps: Return and costs of an episode that is longer are NaN.

    Returns:
        An `Evaluation`.

    Raises:
        UsageTypeError: As `evaluate`.
        UsageError: As `evaluate`.
    """
    key = as_key(key)
    num_episodes = whole("num_episodes", num_episodes)
    max_steps = whole("max_steps", max_steps)
    check_actions(actions)
    check_trained(config, state)
    check_placed(config, state.key)
    pending = start_evaluation(config, state, key, num_episodes, actions, max_steps)
    if isinstance(pending.returns, jax.core.Tracer):
        return pending.mark_unended(jnp)
    return jax.device_put(pending.fetch())


class PendingEpisodes(NamedTuple):
    """Episodes that are being played on the device.

    Attributes:
        returns: Undiscounted returns, float[num_episodes], or float[num_seeds,
            num_episodes].
        ended: Which episodes ended, bool of the same shape.
        costs: Undiscounted costs, with a last axis [K]; None if there are none.
    """

    returns: Float[Array, "*seeds episodes"]
    ended: Bool[Array, "*seeds episodes"]
    costs: Float[Array, "*seeds episodes K"] | None = None

    def fetch(self) -> Evaluation:
        """Wait for the episodes and return their results."""
        # With NumPy: `jax_debug_nans`, with which users look for their own NaN, would
        # stop at a NaN that leaves a compiled program.
        return self.mark_unended(np)

    def mark_unended(self, numpy: Any) -> Evaluation:
        """Return the results, NaN where an episode did not end.

        Args:
            numpy: NumPy, or its counterpart in JAX.
        """
        returns = numpy.where(self.ended, self.returns, numpy.nan)
        if self.costs is None:
            return Evaluation(returns, None)
        ended = numpy.expand_dims(self.ended, -1)
        return Evaluation(returns, numpy.where(ended, self.costs, numpy.nan))


def start_evaluation(
    config: TRPOConfig,
    state: TrainState,
    key: KeyLike,
    num_episodes: int,
    actions: Actions = "mode",
    max_steps: int = _MAX_STEPS,
) -> PendingEpisodes:
    """Start the episodes of `evaluate`, without its checks and without waiting."""
    return _program(config)(state, key, num_episodes, actions, max_steps)


def lower_evaluation(config: TRPOConfig, num_episodes: int) -> jax.stages.Lowered:
    """Return the program of `evaluate(config, …, num_episodes)` to compile it ahead.

    JAX keeps the executable with the lowered program, where the call of the same jitted
    function finds it.
    """
    key_type = jax.eval_shape(lambda: jax.random.key(0))
    return _program(config).lower(
        state_type(config), key_type, num_episodes, "mode", _MAX_STEPS
    )


@contextlib.contextmanager
def compiling_evaluation(config: TRPOConfig, num_episodes: int) -> Iterator[None]:
    """Compile `evaluate(config, …, num_episodes)` in a thread while the block trains.

    In a short run this compilation takes a large part of the time; in a long run it is
    left to `evaluate`. An error in the thread is ignored: `evaluate` raises it again. A
    block that is interrupted does not wait for the thread.
    """
    without_jit = jax.config.jax_disable_jit  # type: ignore[attr-defined]
    if without_jit or not is_short(config.all_env_steps):
        yield
        return
    lowered = lower_evaluation(config, num_episodes)
    pool = ThreadPoolExecutor(max_workers=1)
    pool.submit(lowered.compile)
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False)
        raise
    pool.shutdown()


def summarize_returns(
    config: TRPOConfig,
    returns: Float[Array | np.ndarray, "*seeds episodes"],
    costs: Float[Array | np.ndarray, "*seeds episodes K"] | None = None,
) -> dict[str, Any]:
    """Summarise an evaluation in a few numbers, fit for JSON.

    Args:
        config: The run.
        returns: Returns float[num_episodes], or float[num_seeds, num_episodes]; NaN for
            an episode that did not end.
        costs: Its costs, if there are any, as `evaluate_with_costs` returns them.

    Returns:
        Over the episodes that ended: `return_mean`, `return_std` and `return_by_seed`,
        None where none did; `num_episodes` of each seed, and `num_unended` of all, with
        those whose return is NaN. With costs, `cost_mean` of each, their
        `cost_by_seed`, and `num_unknown_costs`, of other episodes with a cost of NaN.
    """
    by_seed = np.asarray(returns, np.float64).reshape(config.num_seeds, -1)

    def over_ended(fn: Callable, values: np.ndarray) -> float | None:
        ended = values[np.isfinite(values)]
        return float(fn(ended)) if ended.size else None

    summary = {
        "return_mean": over_ended(np.mean, by_seed),
        "return_std": over_ended(np.std, by_seed),
        "return_by_seed": [over_ended(np.mean, one) for one in by_seed],
        "num_episodes": by_seed.shape[1],
        "num_unended": int(np.sum(~np.isfinite(by_seed))),
    }
    if costs is None:
        return summary
    of_each = np.asarray(costs, np.float64).reshape(*by_seed.shape, -1)
    unknown = np.isfinite(by_seed) & ~np.isfinite(of_each).all(axis=-1)
    of_each = np.moveaxis(of_each, -1, 0)  # [K, seeds, episodes]
    return summary | {
        "num_unknown_costs": int(np.sum(unknown)),
        "cost_mean": [over_ended(np.mean, one) for one in of_each],
        "cost_by_seed": [[over_ended(np.mean, s) for s in one] for one in of_each],
    }


def mean_over_ended(
    returns: Float[np.ndarray, "*seeds episodes"],
) -> Float[np.ndarray, "*seeds"]:
    """Return the mean return of the episodes that ended; NaN if none did."""
    ended = np.isfinite(returns)
    total = np.sum(returns, axis=-1, where=ended, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / ended.sum(axis=-1))


def format_evaluation(evaluation: dict[str, Any]) -> str:
    """Return the result of `summarize_returns` as one to three lines of text."""
    mean, std = evaluation["return_mean"], evaluation["return_std"]
    if mean is None:
        return "evaluation: no episode ended with a return that is finite"
    text = (
        f"evaluation over {evaluation['num_episodes']} episodes: return {mean:.1f}, "
        f"standard deviation {std:.1f}"
    )
    if costs := evaluation.get("cost_mean"):
        means = ["–" if cost is None else f"{cost:.2f}" for cost in costs]
        text += f", cost {', '.join(means)}"
    by_seed = evaluation["return_by_seed"]
    if len(by_seed) > 1:
        means = ["–" if one is None else f"{one:.1f}" for one in by_seed]
        text += f"\nby seed: {', '.join(means)}"
    if evaluation["num_unended"]:
        text += (
            f"\nleft out: {evaluation['num_unended']} without an end, or with a NaN in "
            "their rewards"
        )
    if unknown := evaluation.get("num_unknown_costs"):
        text += f"\nof unknown cost: {unknown} with a NaN in their costs"
    return text


def _program(config: TRPOConfig) -> jax.stages.Wrapped:
    """Return `_evaluate`, jitted with the options of the run.

    A long run may evaluate often, and with the options of a short run an evaluation on
    CartPole takes 1.75 times as long.
    """
    return jit_with_options(
        _evaluate,
        config,
        env_steps=config.all_env_steps,
        static_argnums=(2, 3, 4),  # num_episodes, actions, max_steps
    )


def _evaluate(
    config: TRPOConfig,
    state: TrainState,
    key: KeyLike,
    num_episodes: int,
    actions: Actions,
    max_steps: int,
) -> PendingEpisodes:
    """Play the episodes of all seeds."""

    def play_one(state: TrainState, key: KeyLike) -> PendingEpisodes:
        reset_key, key = jax.random.split(key)

        def unfinished(episodes: Episodes) -> Array:
            return (episodes.steps < max_steps) & ~jnp.all(episodes.ended)

        def step(episodes: Episodes) -> Episodes:
            return step_episodes(config, state, key, episodes, actions)

        start = start_episodes(config, reset_key, num_episodes)
        start = split_episodes(config, start, num_episodes)
        episodes = jax.lax.while_loop(unfinished, step, start)
        return PendingEpisodes(episodes.returns, episodes.ended, episodes.costs)

    played = over_seeds(config, play_one)(state, run_keys(config, key))
    return replicate(config, played)
