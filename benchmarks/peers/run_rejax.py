"""rejax's PPO on CartPole; prints one JSON line.

python run_rejax.py steps NUM_ENVS NUM_STEPS   # 4 epochs of 4 minibatches, 64 × 64
python run_rejax.py compile                    # tracing and compiling `train`
python run_rejax.py solve SEEDS                # seconds to a return of 475
python run_rejax.py ppo_steps ENV              # steps per second, its own settings
python run_rejax.py ppo_return ENV SEEDS STEPS # at the end of training, by seed
python run_rejax.py sweep SETTINGS SEEDS STEPS # vmapped over learning rate and seed
python run_rejax.py export NUM_ENVS NUM_STEPS PLATFORM FILE  # an update, to be compiled
"""

import json
import pathlib
import resource
import sys
import time

import jax
import numpy as np
from rejax import PPO
from rejax.evaluate import evaluate

from benchmarks.peers.ppo_settings import SETTINGS

OWN = SETTINGS["CartPole-v1"]


def make(env: str = "CartPole-v1", activation: str = "tanh", **settings) -> PPO:
    algorithm = PPO.create(env=env, agent_kwargs={"activation": activation}, **settings)
    return algorithm.replace(eval_callback=lambda *_: (), skip_initial_evaluation=True)


def make_own(env: str, timesteps: int | None = None) -> PPO:
    """Return PPO with its own settings, trained without evaluations."""
    settings = SETTINGS[env] | ({"total_timesteps": timesteps} if timesteps else {})
    return make(env, **settings, eval_freq=settings["total_timesteps"])


def make_of_size(num_envs: int, num_steps: int, updates: int) -> PPO:
    timesteps = num_envs * num_steps * updates
    return make(
        num_envs=num_envs,
        num_steps=num_steps,
        num_epochs=4,
        num_minibatches=4,
        learning_rate=3e-4,
        total_timesteps=timesteps,
        eval_freq=timesteps,
    )


def steps(num_envs: int, num_steps: int) -> dict:
    updates = max(2, 80_000 // (num_envs * num_steps))
    return time_updates(make_of_size(num_envs, num_steps, updates), updates)


def ppo_steps(env: str) -> dict:
    algorithm = make_own(env)
    return time_updates(algorithm, 80_000 // algorithm.iteration_size)


def time_updates(algorithm: PPO, updates: int) -> dict:
    @jax.jit
    def run(state):
        def body(state, _):
            return algorithm.train_iteration(state), None

        return jax.lax.scan(body, state, None, updates)[0]

    state = jax.jit(algorithm.init_state)(jax.random.key(0))
    state = jax.block_until_ready(run(state))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        state = jax.block_until_ready(run(state))
        seconds.append(time.perf_counter() - start)
    num_steps = algorithm.iteration_size * updates
    return {"steps_per_second": num_steps / float(np.median(seconds))}


def ppo_return(env: str, num_seeds: int, timesteps: int) -> dict:
    """Train each seed, and evaluate it over 128 episodes with sampled actions."""
    algorithm = make_own(env, timesteps)
    train = jax.jit(algorithm.train)

    @jax.jit
    def score(state, key):
        act = algorithm.make_act(state)
        env, params = algorithm.env, algorithm.env_params
        return evaluate(act, key, env, params, 128)[1].mean()

    by_seed = []
    for seed in range(num_seeds):
        state, _ = train(jax.random.key(seed))
        by_seed.append(float(score(state, jax.random.key(1000 + seed))))
    return {"return": float(np.median(by_seed)), "by_seed": by_seed}


# trpo_jax.compiler_options for a short run.
SHORT = {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": False}


def compile_train(options: dict | None = None) -> dict:
    algorithm = make_of_size(64, 128, updates=4)
    key = jax.random.key(0)
    jax.eval_shape(algorithm.init_state, key)  # ours is traced by now, too
    start = time.perf_counter()
    jax.jit(algorithm.train).lower(key).compile(options)
    return {"seconds": time.perf_counter() - start}


def export(num_envs: int, num_steps: int, platform: str, file: str) -> dict:
    """Write one update for a platform as jax.export does; its leaves are arguments."""
    algorithm = make_of_size(num_envs, num_steps, updates=1)
    # A raw key, since the file format has no typed ones.
    state = jax.eval_shape(algorithm.init_state, jax.random.PRNGKey(0))
    leaves, structure = jax.tree.flatten(state)

    @jax.jit
    def update(leaves):
        return jax.tree.leaves(algorithm.train_iteration(structure.unflatten(leaves)))

    exported = jax.export.export(update, platforms=[platform])(leaves)
    pathlib.Path(file).write_bytes(exported.serialize())
    return {"bytes": len(exported.mlir_module_serialized)}


def solve(num_seeds: int) -> dict:
    """Measure the seconds of updates until 128 sampled episodes average 475."""
    algorithm = make_own("CartPole-v1")
    step = jax.jit(algorithm.train_iteration)
    env, env_params = algorithm.env, algorithm.env_params

    @jax.jit
    def score(state, key):
        act = algorithm.make_act(state)
        return evaluate(act, key, env, env_params, 128)[1].mean()

    batch = OWN["num_envs"] * OWN["num_steps"]
    by_seed = []
    for seed in range(num_seeds):
        state = jax.jit(algorithm.init_state)(jax.random.key(seed))
        state = jax.block_until_ready(step(state))
        spent, reached = [], None
        for update in range(2, OWN["total_timesteps"] // batch + 1):
            start = time.perf_counter()
            state = jax.block_until_ready(step(state))
            spent.append(time.perf_counter() - start)
            if float(score(state, jax.random.key(update))) >= 475:
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
    return {
        "seconds": float(np.median(seconds)),
        "by_seed": seconds,
        "steps": [row["updates"] and row["updates"] * batch for row in by_seed],
    }


def sweep(num_settings: int, num_seeds: int, timesteps: int) -> dict:
    """Train all runs of a sweep as one program, from tracing to the last state."""
    batch = 8 * 128
    algorithm = make(
        num_envs=8,
        num_steps=128,
        num_epochs=4,
        num_minibatches=4,
        total_timesteps=timesteps,
        eval_freq=-(-timesteps // batch) * batch,
    )

    def train(learning_rate, key):
        return algorithm.replace(learning_rate=learning_rate).train(key)[0]

    rates = np.geomspace(1e-4, 3e-3, num_settings).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), num_seeds)
    over_seeds = jax.vmap(train, (None, 0))
    start = time.perf_counter()
    program = jax.jit(jax.vmap(over_seeds, (0, None))).lower(rates, keys).compile()
    compiled = time.perf_counter()
    jax.block_until_ready(program(rates, keys))
    seconds = time.perf_counter() - start
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    if peak is None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": seconds,
        "compile_seconds": compiled - start,
        "steps_per_second": num_settings * num_seeds * timesteps / seconds,
        "peak_gib": peak / 2**30,
    }


if __name__ == "__main__":
    measures = {
        "steps": steps,
        "compile": compile_train,
        "compile_short": lambda: compile_train(SHORT),
        "solve": solve,
        "ppo_steps": ppo_steps,
        "ppo_return": ppo_return,
        "sweep": sweep,
        "export": export,
    }
    arguments = (int(word) if word.isdigit() else word for word in sys.argv[2:])
    print(json.dumps(measures[sys.argv[1]](*arguments)))
