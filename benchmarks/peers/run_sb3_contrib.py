"""sb3-contrib's TRPO on CartPole at its zoo settings; prints one JSON line.

    python run_sb3_contrib.py steps                      # environment steps per second
    python run_sb3_contrib.py steps NUM_ENVS NUM_STEPS   # in rollouts of another size
    python run_sb3_contrib.py train                      # 100,352 steps, ten episodes

It uses one torch thread: with more, these small networks run slower.
"""

import json
import sys
import time

import torch

torch.set_num_threads(1)

from sb3_contrib import TRPO  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.evaluation import evaluate_policy  # noqa: E402

# rl-baselines3-zoo, hyperparams/trpo.yml, CartPole-v1.
ZOO = {
    "n_steps": 512,
    "batch_size": 512,
    "cg_damping": 1e-3,
    "gae_lambda": 0.98,
    "gamma": 0.99,
    "learning_rate": 1e-3,
    "n_critic_updates": 20,
}
NUM_ENVS = 2
TRAIN_STEPS = 100_352


def make(seed: int, num_envs: int = NUM_ENVS, **options: int) -> TRPO:
    env = make_vec_env("CartPole-v1", n_envs=num_envs, seed=seed)
    return TRPO("MlpPolicy", env, seed=seed, device="cpu", **(ZOO | options))


def steps(num_envs: int = NUM_ENVS, num_steps: int = ZOO["n_steps"]) -> dict:
    model = make(seed=0, num_envs=num_envs, n_steps=num_steps)
    rollout = num_envs * num_steps
    model.learn(2 * rollout)  # warm-up
    before = model.num_timesteps
    start = time.perf_counter()
    model.learn(10 * rollout, reset_num_timesteps=False)
    seconds = time.perf_counter() - start
    return {"steps_per_second": (model.num_timesteps - before) / seconds}


def train() -> dict:
    model = make(seed=0)
    model.learn(TRAIN_STEPS)
    env = make_vec_env("CartPole-v1", n_envs=NUM_ENVS, seed=1)
    mean, _ = evaluate_policy(model, env, n_eval_episodes=10)
    return {"return": float(mean), "steps": model.num_timesteps}


if __name__ == "__main__":
    measure = {"steps": steps, "train": train}[sys.argv[1]]
    print(json.dumps(measure(*map(int, sys.argv[2:]))))
