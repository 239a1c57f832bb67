"""trpo_jax on CartPole, measured like its peers; prints one JSON line.

python run_trpo_jax.py steps NUM_ENVS ROLLOUT_LENGTH   # our defaults, 64 × 64
python run_trpo_jax.py zoo                             # the zoo settings of sb3-contrib
python run_trpo_jax.py zoo NUM_ENVS ROLLOUT_LENGTH     # in rollouts of another size
python run_trpo_jax.py host NUM_ENVS ROLLOUT_LENGTH    # the same, Gymnasium's CartPole
python run_trpo_jax.py ours                            # our line search and critic
python run_trpo_jax.py compile                         # `step`, by jax.jit alone
python run_trpo_jax.py compile_short                   # the same, by the command line
python run_trpo_jax.py solve SEEDS                     # seconds to a return of 475
python run_trpo_jax.py ppo_steps ENV                   # our PPO, rejax's settings
python run_trpo_jax.py ppo_return ENV SEEDS STEPS      # its return, by seed
python run_trpo_jax.py ppo_return_without_truncation ENV SEEDS STEPS
python run_trpo_jax.py sweep SETTINGS SEEDS STEPS      # side by side, with records
python run_trpo_jax.py single RUNS STEPS               # one after the other
"""

import dataclasses
import functools
import json
import pathlib
import resource
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
import optax

import trpo_jax
from benchmarks.peers.ppo_settings import SETTINGS
from trpo_jax.environments import TimeStep, make_environment

ZOO = trpo_jax.TRPOConfig(
    num_envs=2,
    rollout_length=512,
    total_timesteps=100_352,
    cg_iterations=15,
    cg_tolerance=0.0,
    fisher_stride=1,
    backtrack_factor=0.8,
    line_search="backtracking",
    critic_fit="first_order",
    critic_epochs=20,
    critic_minibatches=2,
    damping=1e-3,
    gae_lambda=0.98,
)
# The policy update of the zoo, with our line search and our critic.
OURS = dataclasses.replace(
    ZOO,
    line_search="interpolation",
    critic_fit="trust_region",
    critic_epochs=None,
    critic_minibatches=None,
)


def make(num_envs: int, rollout_length: int) -> trpo_jax.TRPOConfig:
    batch = num_envs * rollout_length
    return trpo_jax.TRPOConfig(
        num_envs=num_envs,
        rollout_length=rollout_length,
        total_timesteps=batch * max(2, 80_000 // batch),
    )


def zoo(
    num_envs: int = ZOO.num_envs,
    rollout_length: int = ZOO.rollout_length,
    env: str = ZOO.env,
    updates: int = ZOO.num_updates,
) -> trpo_jax.TRPOConfig:
    """Return the zoo's settings for rollouts of another size; minibatches of 512."""
    batch = num_envs * rollout_length
    return dataclasses.replace(
        ZOO,
        env=env,
        num_envs=num_envs,
        rollout_length=rollout_length,
        total_timesteps=updates * batch,
        critic_minibatches=batch // 512,
    )


def ppo(env: str, timesteps: int | None = None) -> trpo_jax.TRPOConfig:
    """Return rejax's settings. What differs is said in benchmarks/README.md."""
    rejax = SETTINGS[env]

    def clipped_adam(largest: float):
        # Its max_grad_norm bounds each element of the gradient.
        return lambda rate: optax.chain(optax.clip(largest), optax.adam(rate))

    return trpo_jax.TRPOConfig(
        env=env,
        num_envs=rejax["num_envs"],
        rollout_length=rejax["num_steps"],
        total_timesteps=timesteps or rejax["total_timesteps"],
        activation={"swish": "silu"}.get(rejax["activation"], rejax["activation"]),
        initialization="lecun_normal",
        normalize_observations=rejax["normalize_observations"],
        discount=rejax["gamma"],
        gae_lambda=rejax["gae_lambda"],
        update="ppo",
        clip_ratio=rejax["clip_eps"],
        entropy_coefficient=rejax["ent_coef"],
        policy_epochs=rejax["num_epochs"],
        policy_minibatches=rejax["num_minibatches"],
        policy_learning_rate=rejax["learning_rate"],
        policy_optimizer=clipped_adam(rejax["max_grad_norm"]),
        critic_fit="first_order",
        critic_value_clipping=rejax["clip_eps"],
        critic_epochs=rejax["num_epochs"],
        critic_minibatches=rejax["num_minibatches"],
        critic_learning_rate=rejax["learning_rate"],
        # Its loss is vf_coef / 2 of ours, which makes no difference to Adam.
        critic_optimizer=clipped_adam(2 * rejax["max_grad_norm"] / rejax["vf_coef"]),
    )


def ppo_steps(env: str) -> dict:
    batch = ppo(env).batch_size
    return steps(ppo(env, 80_000 // batch * batch))


class WithoutTruncation:
    """An environment whose truncated episodes are terminated, as rejax takes them."""

    def __init__(self, env: str):
        self._environment = make_environment(env)
        self.action_space = self._environment.action_space
        self.observation_shape = self._environment.observation_shape
        self.reset = self._environment.reset

    def step(
        self, key: jax.Array, state: Any, action: jax.Array
    ) -> tuple[Any, TimeStep]:
        state, taken = self._environment.step(key, state, action)
        ended = taken.terminated | taken.truncated
        return state, taken._replace(
            terminated=ended, truncated=jax.numpy.zeros_like(ended)
        )


def ppo_return_without_truncation(env: str, num_seeds: int, timesteps: int) -> dict:
    """Return as `ppo_return`, with truncated episodes taken for terminated ones."""
    config = ppo(env, timesteps)
    return return_of(dataclasses.replace(config, env=WithoutTruncation(env)), num_seeds)


def ppo_return(env: str, num_seeds: int, timesteps: int) -> dict:
    """Train each seed, and evaluate it over 128 episodes with sampled actions."""
    return return_of(ppo(env, timesteps), num_seeds)


def return_of(config: trpo_jax.TRPOConfig, num_seeds: int) -> dict:
    """Return the median over seeds, and each seed's return over 128 episodes."""
    by_seed = []
    for seed in range(num_seeds):
        state = trpo_jax.train(config, jax.random.key(seed)).state
        returns = trpo_jax.evaluate(
            config, state, jax.random.key(1000 + seed), 128, actions="sample"
        )
        by_seed.append(float(returns.mean()))
    return {"return": float(np.median(by_seed)), "by_seed": by_seed}


def steps(config: trpo_jax.TRPOConfig) -> dict:
    @functools.partial(jax.jit, compiler_options=trpo_jax.compiler_options())
    def run(state):
        def body(state, _):
            return trpo_jax.step(config, state)[0], None

        return jax.lax.scan(body, state, None, config.num_updates)[0]

    state = jax.jit(trpo_jax.init)(config, jax.random.key(0))
    state = jax.block_until_ready(run(state))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        state = jax.block_until_ready(run(state))
        seconds.append(time.perf_counter() - start)
    return {"steps_per_second": config.total_timesteps / float(np.median(seconds))}


def compile_step(options: dict | None = None) -> dict:
    config = make(64, 128)
    # Import gymnax before the clock starts, as rejax has by then.
    trpo_jax.environments.make_environment(config.env)
    state = jax.eval_shape(trpo_jax.init, config, jax.random.key(0))
    start = time.perf_counter()
    jax.jit(trpo_jax.step).lower(config, state).compile(options)
    return {"seconds": time.perf_counter() - start}


def solve(num_seeds: int) -> dict:
    """Measure the seconds of updates until 128 sampled episodes average 475."""
    config = trpo_jax.preset("CartPole-v1")
    step = jax.jit(trpo_jax.step, compiler_options=trpo_jax.compiler_options())
    by_seed = []
    for seed in range(num_seeds):
        state = jax.jit(trpo_jax.init)(config, jax.random.key(seed))
        state, _ = jax.block_until_ready(step(config, state))
        spent, reached = [], None
        for update in range(2, config.num_updates + 1):
            start = time.perf_counter()
            state, _ = jax.block_until_ready(step(config, state))
            spent.append(time.perf_counter() - start)
            returns = trpo_jax.evaluate(
                config, state, jax.random.key(update), 128, actions="sample"
            )
            if float(returns.mean()) >= 475:
                reached = update
                break
        each = float(np.median(spent))
        by_seed.append({"updates": reached, "seconds_per_update": each})
    seconds = [
        float("inf")
        if row["updates"] is None
        else row["updates"] * row["seconds_per_update"]
        for row in by_seed
    ]
    batch = config.batch_size
    return {
        "seconds": float(np.median(seconds)),
        "by_seed": seconds,
        "steps": [row["updates"] and row["updates"] * batch for row in by_seed],
    }


def sweep(num_settings: int, num_seeds: int, timesteps: int) -> dict:
    """Train and evaluate all runs of a sweep, from imports to the written results."""
    config = trpo_jax.TRPOConfig(total_timesteps=timesteps)
    radii = np.geomspace(0.003, 0.1, num_settings)
    with tempfile.TemporaryDirectory() as work:
        folder = pathlib.Path(work) / "sweep"
        start = time.perf_counter()
        result = trpo_jax.sweep(
            config, folder, num_seeds=num_seeds, max_kl=radii, progress=False
        )
        seconds = time.perf_counter() - start
        events = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
        groups = [one for one in events if one["event"] == "group"]
    steps = num_settings * num_seeds * config.total_timesteps
    return {
        "seconds": seconds,
        "steps_per_second": steps / seconds,
        "peak_gib": peak_gib(),
        "groups": [{"runs": one["runs"], "seconds": one["seconds"]} for one in groups],
        "best": [float(result.best.max_kl), float(np.nanmax(result.returns.mean(1)))],
    }


def single(num_runs: int, timesteps: int) -> dict:
    """Train and evaluate runs one after the other, with one compiled program."""
    config = trpo_jax.TRPOConfig(total_timesteps=timesteps)
    by_run = []
    for seed in range(num_runs + 1):
        start = time.perf_counter()
        state = trpo_jax.train(config, jax.random.key(seed)).state
        jax.block_until_ready(trpo_jax.evaluate(config, state, jax.random.key(seed)))
        by_run.append(time.perf_counter() - start)
    first, *others = by_run
    return {
        "seconds": sum(by_run),
        "compile_seconds": first - float(np.median(others)),
        "by_run": others,
        "peak_gib": peak_gib(),
    }


def peak_gib() -> float:
    """Return the most memory that the process had, or its device."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    measures = {
        "steps": lambda *sizes: steps(make(*sizes)),
        "zoo": lambda *sizes: steps(zoo(*sizes)),
        "host": lambda *sizes: steps(zoo(*sizes, "gymnasium/CartPole-v1", 10)),
        "ours": lambda: steps(OURS),
        "compile": compile_step,
        "compile_short": lambda: compile_step(trpo_jax.compiler_options(100_000)),
        "solve": solve,
        "ppo_steps": ppo_steps,
        "ppo_return": ppo_return,
        "ppo_return_without_truncation": ppo_return_without_truncation,
        "sweep": sweep,
        "single": single,
    }
    arguments = (int(word) if word.isdigit() else word for word in sys.argv[2:])
    print(json.dumps(measures[sys.argv[1]](*arguments)))
