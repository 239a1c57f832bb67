"""brax's PPO on a locomotion task; prints one JSON line per evaluation.

python run_brax.py '{"env": …, "backend": …, "train_arguments": {…}}'
"""

import json
import sys

from brax import envs
from brax.training.agents.ppo.train import train


def main(env: str, backend: str, train_arguments: dict) -> None:
    def tell(steps: int, metrics: dict) -> None:
        mean_return = float(metrics["eval/episode_reward"])
        print(json.dumps({"steps": int(steps), "return": mean_return}), flush=True)

    environment = envs.get_environment(env, backend=backend)
    train(environment=environment, progress_fn=tell, **train_arguments)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
