import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import CHAIN, TABULAR

from trpo_jax import TRPOConfig, train
from trpo_jax.environments import Box, make_environment, squash_actions


class Recorder:
    """Rewards with the sum of the action it was given."""

    observation_shape = (2,)

    def __init__(self, low, high):
        self.action_space = Box(2, low, high)
        self._inside = make_environment("Pendulum-v1")

    def reset(self, key):
        return self._inside.reset(key)

    def step(self, key, state, action):
        state, taken = self._inside.step(key, state, action[:1])
        return state, taken._replace(reward=action, observation=taken.observation)


def test_actions_fill_the_bounds_and_no_more():
    environment = squash_actions(Recorder((-2.0, 0.0), (2.0, 10.0)))
    assert environment.action_space == Box(2)
    state, _ = environment.reset(jax.random.key(0))
    for raw, expected in (
        ([0.0, 0.0], [0, 5]),
        ([1e3, -1e3], [2, 0]),
        ([0.5, 0.5], [2 * np.tanh(0.5), 5 + 5 * np.tanh(0.5)]),
    ):
        _, taken = environment.step(jax.random.key(1), state, jnp.array(raw))
        np.testing.assert_allclose(taken.reward, expected, rtol=1e-5, atol=1e-6)


def test_one_environment_is_squashed_into_one_object():
    environment = make_environment("Pendulum-v1")
    assert squash_actions(environment) is squash_actions(environment)
    assert "Pendulum" in repr(squash_actions(environment))


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        (make_environment((TABULAR, CHAIN)), "is for continuous actions"),
        (Recorder(None, (1.0, 1.0)), "has no bounds"),
        (Recorder((-1.0, -np.inf), (1.0, np.inf)), "has no bounds for some"),
    ],
)
def test_actions_without_bounds_are_refused(environment, reason):
    with pytest.raises(ValueError, match=reason):
        squash_actions(environment)


def test_infinite_bounds_are_refused_when_a_run_starts():
    config = TRPOConfig(
        env=BoxedIn((-1.0, -np.inf), (1.0, np.inf)),
        action_distribution="tanh_gaussian",
        num_envs=2,
        rollout_length=4,
        total_timesteps=8,
    )
    with pytest.raises(ValueError, match=r"no bounds for some.*'gaussian'"):
        train(config)


class BoxedIn(Recorder):
    """Pendulum's observation, and a reward that is a number."""

    observation_shape = (3,)

    def step(self, key, state, action):
        state, taken = super().step(key, state, action)
        return state, taken._replace(reward=action.sum())
