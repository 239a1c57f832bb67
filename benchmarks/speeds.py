"""Forward speed of bodies of brax trained without a limit on it.

    python -m benchmarks.speeds halfcheetah_velocity hopper_velocity

Half of its mean is the limit of the velocity tasks (`trpo_jax/environments/safe.py`).
The policy is that of the last update of the body's preset, acting as in training.
"""

from typing import Any

import jax
import numpy as np
import tyro

import trpo_jax
from benchmarks.harness import RESULTS, append_row
from benchmarks.statistics import finite
from trpo_jax.environments import CostEnvironment
from trpo_jax.environments.safe import VELOCITY_TASKS
from trpo_jax.training import rollout
from trpo_jax.training.components import make_components
from trpo_jax.training.state import make_act_fn


def measure(name: str, num_steps: int, **overrides: Any) -> dict[str, Any]:
    """Train on the body of a task, and return the row of its speed."""
    task = VELOCITY_TASKS[name]
    # The speed as a cost, which changes nothing, and which a rollout records.
    env = CostEnvironment(task.env, lambda s, a, s_next: s_next[task.speed_index])
    config = trpo_jax.preset(task.env, env=env, **overrides)
    state = trpo_jax.train(config).state
    components = make_components(config)

    @jax.jit
    def play(key: jax.Array) -> Any:
        return rollout(
            make_act_fn(components, state),
            components.environment,
            state.rollout,
            key,
            num_steps=num_steps,
        )[1]

    taken = play(jax.random.key(config.seed + 1))
    speeds = np.asarray(taken.cost)
    lengths = np.asarray(taken.episode_length)[np.asarray(taken.done)]
    return {
        "name": name,
        "env": task.env,
        "steps": config.total_timesteps,
        "mean_speed": finite(speeds.mean()),
        "speed_quantiles": [finite(v) for v in np.quantile(speeds, [0.05, 0.5, 0.95])],
        "share_above_half": finite((speeds > speeds.mean() / 2).mean()),
        "mean_episode_length": finite(lengths.mean()) if lengths.size else None,
    }


def main(
    names: tyro.conf.Positional[tuple[str, ...]] = tuple(VELOCITY_TASKS),
    num_steps: int = 1000,
    total_timesteps: int | None = None,
) -> None:
    """Measure, and add a row for each task.

    Args:
        names: Velocity tasks, without "safe/".
        num_steps: Steps of each environment over which the speed is averaged.
        total_timesteps: Steps of training; those of the preset if None.
    """
    overrides = {} if total_timesteps is None else {"total_timesteps": total_timesteps}
    for name in names:
        row = measure(name, num_steps, **overrides)
        print(append_row(RESULTS / "speeds.jsonl", row), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
