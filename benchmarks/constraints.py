"""Updates that keep a limit on a cost, beside TRPO without one.

    python -m benchmarks.constraints                          # toll grid, point robot
    python -m benchmarks.constraints safe/hopper_velocity safe/halfcheetah_velocity
    python -m benchmarks.constraints crax/safe_goal_point     # with the extra crax

All updates of an environment share its settings. Returns and costs are of the policies
as they act in training. On the toll grid they are exact, from its transition arrays,
and beside them stand the optima that a linear program finds. Elsewhere they are means
over the episodes that end in the rollout after an update.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from numpy.typing import NDArray

import trpo_jax
from benchmarks.harness import RESULTS, append_row
from benchmarks.occupancy import Process, evaluate, optimum
from benchmarks.statistics import finite, summarize
from trpo_jax import TrainState, TRPOConfig
from trpo_jax.environments import TollGrid, make_environment
from trpo_jax.training import PRESETS
from trpo_jax.training.batching import BoundNetwork
from trpo_jax.training.components import make_components
from trpo_jax.training.seeds import run_keys

UPDATES = ("trpo", "cpo", "pcpo", "trpo_lagrangian", "trpo_pid", "crpo")


class Task(NamedTuple):
    """An environment with a limit on its cost.

    Attributes:
        limit: Of the cost of an episode.
        num_seeds: Seeds of each update.
        fields: Of the config, the same for all updates.
    """

    limit: float
    num_seeds: int
    fields: dict[str, Any]


def _of_preset(env: str, num_seeds: int) -> Task:
    fields = dict(PRESETS[env])
    del fields["update"]
    (limit,) = fields.pop("cost_limits")
    return Task(limit, num_seeds, fields)


_CRAX = {
    # A rollout is one whole episode of each environment: costs are those of one policy.
    "num_envs": 8,
    "rollout_length": 1000,
    "total_timesteps": 2_000_000,
    "initial_log_std": -0.5,
    "max_kl": 0.02,
    "normalize_observations": True,
}

TASKS = {
    "safe/toll_grid": _of_preset("safe/toll_grid", 16),
    "safe/point_hazards": _of_preset("safe/point_hazards", 8),
    "safe/hopper_velocity": _of_preset("safe/hopper_velocity", 8),
    "safe/halfcheetah_velocity": _of_preset("safe/halfcheetah_velocity", 8),
    # For an accelerator: two cores make 6,000 and 12,000 steps of them a second.
    "crax/safe_goal_point": Task(25.0, 8, _CRAX),
    "crax/safe_velocity_hopper": Task(25.0, 8, _CRAX),
}


def configure(env: str, update: str, **overrides: Any) -> TRPOConfig:
    """Return the config of a task with an update; plain TRPO has no limits."""
    task = TASKS[env]
    limits = {} if update == "trpo" else {"cost_limits": (task.limit,)}
    fields = {"num_seeds": task.num_seeds, **task.fields, **limits, **overrides}
    return TRPOConfig(env=env, update=update, **fields)


def train_and_record(
    config: TRPOConfig, record_fn: Callable[[TRPOConfig, TrainState], Any]
) -> tuple[trpo_jax.Metrics, Any]:
    """Return metrics and records after each update, leaves [seeds, updates, …]."""
    single = dataclasses.replace(config, num_seeds=1, devices=1)

    def one(key: jax.Array) -> Any:
        def update(state: TrainState, _: None) -> Any:
            state, metrics = trpo_jax.step(single, state)
            return state, (metrics, record_fn(single, state))

        state = trpo_jax.init(single, key)
        return jax.lax.scan(update, state, None, config.num_updates)[1]

    keys = run_keys(config).reshape(config.num_seeds)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(keys))


def action_probabilities(config: TRPOConfig, state: TrainState) -> jax.Array:
    """Return π(a | s) for each cell of a grid with one-hot observations, [S, A]."""
    components = make_components(config)
    (num_cells,) = components.environment.observation_shape
    cells, starts = jnp.eye(num_cells), jnp.ones(num_cells, bool)
    policy = BoundNetwork(components.policy, state.params)
    _, log_probs = policy.step((), cells, starts, lambda d: d.log_probs())
    return jnp.exp(log_probs)


def measure(
    config: TRPOConfig,
) -> tuple[trpo_jax.Metrics, NDArray, NDArray]:
    """Train; return metrics, and return and cost after each update, [seeds, updates].

    A rollout in which no episode ends tells nothing, NaN.
    """
    environment = make_environment(config.env)
    if isinstance(environment, TollGrid):
        metrics, policies = train_and_record(config, action_probabilities)
        returns, costs = evaluate(Process.of(environment), np.float64(policies))
        return metrics, returns, costs[..., 0]
    metrics, _ = train_and_record(config, lambda *_: ())
    # The episodes of a rollout are those of the policy before its update.
    returns = np.asarray(metrics.episode_return)[:, 1:]
    return metrics, returns, np.asarray(metrics.episode_cost)[:, 1:, 0]


def optima(env: str) -> dict[str, Any]:
    """Return the exact optima with and without the limit; none of a larger task."""
    environment = make_environment(env)
    if not isinstance(environment, TollGrid):
        return {}
    process = Process.of(environment)
    limited, free = optimum(process, [TASKS[env].limit]), optimum(process)
    return {
        "optimum": finite(limited.value),
        "optimum_without_limit": finite(free.value),
        "cost_without_limit": finite(free.costs[0]),
    }


def compare(env: str, update: str, **overrides: Any) -> dict[str, Any]:
    """Return the row of one update in one environment."""
    config = configure(env, update, **overrides)
    limit = TASKS[env].limit
    start = time.perf_counter()
    _, returns, costs = measure(config)
    last = max(1, config.num_updates // 10)
    known = ~np.isnan(costs)
    final = {
        "return": mean_of_known(returns[:, -last:], axis=1),
        "cost": mean_of_known(costs[:, -last:], axis=1),
    }
    described = [f"{name}={value}" for name, value in overrides.items()]
    row = {
        "name": ", ".join([env, update, *described]),
        "env": env,
        "update": update,
        "steps": config.total_timesteps,
        "num_seeds": config.num_seeds,
        "limit": limit,
        "fields": TASKS[env].fields | overrides,
        **{name: summarize(values) for name, values in final.items()},
        "share_above": finite((costs > limit)[known].mean()),
        "share_above_by_a_tenth": finite((costs > 1.1 * limit)[known].mean()),
        "late_share_above_by_a_tenth": finite(
            (costs > 1.1 * limit)[:, -last:][known[:, -last:]].mean()
        ),
        "seeds_within": finite((final["cost"] <= limit).mean()),
        "return_curve": [finite(v) for v in mean_of_known(returns)],
        "cost_curve": [finite(v) for v in mean_of_known(costs)],
        "seconds": time.perf_counter() - start,
    }
    return row | optima(env)


def mean_of_known(values: NDArray, axis: int = 0) -> NDArray:
    """Return the mean of what is not NaN, and NaN where nothing is."""
    known = ~np.isnan(values)
    total, count = np.nansum(values, axis=axis), known.sum(axis=axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def main(
    envs: tyro.conf.Positional[tuple[str, ...]] = (
        "safe/toll_grid",
        "safe/point_hazards",
    ),
    updates: tuple[str, ...] = UPDATES,
    num_seeds: int | None = None,
    num_envs: int | None = None,
    total_timesteps: int | None = None,
    cost_correction: float | None = None,
    output: pathlib.Path = RESULTS / "constraints.jsonl",
) -> None:
    """Measure, and add a row for each environment and update.

    Args:
        envs: Environments, of `TASKS`.
        updates: Policy updates, see `TRPOConfig.update`.
        num_seeds: Seeds of each; those of the task if None.
        num_envs: Environments, and with them the size of a batch; likewise.
        total_timesteps: Steps of training; likewise.
        cost_correction: See `TRPOConfig.cost_correction`, for CPO and PCPO.
        output: File that the rows are added to.
    """
    given = {
        "num_seeds": num_seeds,
        "num_envs": num_envs,
        "total_timesteps": total_timesteps,
        "cost_correction": cost_correction,
    }
    overrides = {name: value for name, value in given.items() if value is not None}
    for env in envs:
        for update in updates:
            row = compare(env, update, **overrides)
            append_row(output, row)
            brief = {k: v for k, v in row.items() if not k.endswith("curve")}
            print(brief, flush=True)


if __name__ == "__main__":
    tyro.cli(main)
