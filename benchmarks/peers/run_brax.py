"""brax's PPO on one body; prints one JSON line per evaluation.

python run_brax.py '{"env": …, "backend": …, "train_arguments": {…}}'
"""

import functools
import json
import sys
from typing import Any

from brax import envs
from brax.training.agents.ppo.networks import make_ppo_networks
from brax.training.agents.ppo.train import train


def make(env: str, backend: str) -> dict[str, Any]:
    """Return the arguments of `train` for an environment of brax or Playground."""
    suite, name = env.split("/")
    if suite == "brax":
        return {"environment": envs.get_environment(name, backend=backend)}
    from mujoco_playground import registry, wrapper

    config = registry.get_default_config(name)
    config.impl = "jax"
    return {
        "environment": registry.load(name, config),
        "wrap_env_fn": wrapper.wrap_for_brax_training,
    }


def main(env: str, backend: str, train_arguments: dict) -> None:
    def tell(steps: int, metrics: dict) -> None:
        mean_return = float(metrics["eval/episode_reward"])
        print(json.dumps({"steps": int(steps), "return": mean_return}), flush=True)

    if networks := train_arguments.pop("network_factory", None):
        train_arguments["network_factory"] = functools.partial(
            make_ppo_networks, **networks
        )
    train(progress_fn=tell, **make(env, backend), **train_arguments)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
