"""The smallest runs and states, shared so that they are compiled once."""

import dataclasses
import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
from compiling import fast_jit

import trpo_jax
from trpo_jax.environments import MaskedObservation, TimeStep
from trpo_jax.runs import records
from trpo_jax.training.seeds import init_seeds, run_keys

CONFIG = trpo_jax.TRPOConfig(
    env="CartPole-v1",
    num_envs=2,
    rollout_length=8,
    total_timesteps=16 * 40,
    hidden_sizes=(4,),
    normalize_observations=True,
    normalize_returns=True,
    max_kl_schedule="linear",
)
FIRST_ORDER = dataclasses.replace(
    CONFIG, critic_fit="first_order", critic_epochs=1, critic_minibatches=1
)
"""Fills the one part of the state that is empty in a trust region."""
SETTINGS = trpo_jax.RunSettings(checkpoint_updates=10, evaluation_episodes=2)

init = fast_jit(init_seeds)


def make_state(env, **fields):
    """Return a config of four steps, and the first state of all its seeds."""
    fields = {"hidden_sizes": (4,)} | fields
    config = trpo_jax.TRPOConfig(
        env=env, num_envs=2, rollout_length=2, total_timesteps=4, **fields
    )
    return config, init(config, run_keys(config))


def run(folder, config=CONFIG, settings=SETTINGS, **options):
    return trpo_jax.run(config, folder, settings, progress=False, **options)


def resume(folder, config=None, **options):
    return trpo_jax.resume(folder, config, progress=False, **options)


class Killed(BaseException):
    """Ends a run as if its process were gone."""


def kill_after(updates, patch):
    """Kill runs when so many updates are recorded."""
    write = records.Records.write

    def write_until(self, rows, speed):
        if rows[-1]["update"] > updates:
            raise Killed
        write(self, rows, speed)

    patch.setattr(records.Records, "write", write_until)


def run_until_killed(
    folder, updates, monkeypatch, config=CONFIG, settings=SETTINGS, **options
):
    """Run until so many updates are recorded, and no further."""
    with monkeypatch.context() as patch:
        kill_after(updates, patch)
        try:
            run(folder, config, settings, **options)
        except Killed:
            return
    raise AssertionError("the run ended before it was killed")


def lines(path):
    """Return the rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path, rows, torn=""):
    """Write a file of JSON lines, the last one perhaps without its end."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)


def events(folder, kind):
    """Return the events of one kind in a run's folder."""
    return [one for one in lines(folder / "events.jsonl") if one["event"] == kind]


def sample(policy, observation, num_actions=64):
    """Return actions of a policy for one observation, each with its own key."""
    keys = jax.random.split(jax.random.key(3), num_actions)
    return np.asarray(jax.vmap(policy, (None, 0))(observation, keys))


class Line:
    """Observations of three numbers, perhaps with a mask; episodes of one step."""

    _dtype = jnp.float32

    def __init__(self, action_space, masked=False, dtype=jnp.float32):
        self.action_space = action_space
        self._dtype = dtype
        self.observation_shape = (3,)
        self._masked = masked

    def _observe(self, state):
        values = (jnp.array([1.0, 2.0, 3.0]) * state).astype(self._dtype)
        if self._masked:
            return MaskedObservation(values, jnp.array([False, True, False]))
        return values

    def reset(self, key):
        return jnp.float32(1), self._observe(jnp.float32(1))

    def step(self, key, state, action):
        observation, flag = self._observe(state), jnp.zeros((), bool)
        return state, TimeStep(observation, jnp.float32(1), flag, ~flag, observation)


class Recorder:
    """A logger that keeps what it is given."""

    def __init__(self):
        self.rows = []
        self.left = False

    def log(self, env_steps, metrics):
        self.rows.append((env_steps, dict(metrics)))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.left = True


class Failing:
    """A logger that raises at the third update."""

    def log(self, env_steps, metrics):
        if env_steps > 32:
            raise ConnectionError("no route to the server")


class Blocking:
    """A logger that takes no update until it is released."""

    def __init__(self):
        self.release = threading.Event()

    def log(self, env_steps, metrics):
        self.release.wait(60)
