"""Values of a rollout, with a critic that counts its inputs."""

import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax.training import Trajectory
from trpo_jax.training.values import values_and_next

T, B = 3, 2
ASKED = (jnp.arange(6.0).reshape(T, B), jnp.array([100.0, 200.0]))


def value_fn(memory, observations, starts):
    """Ten times the observation, plus the steps that the memory has counted."""
    counts = []
    for start in starts:
        memory = jnp.where(start, 0, memory) + 1
        counts.append(memory)
    steps = jnp.stack(counts)
    return steps, 10 * observations + steps


def make_trajectory(terminated, truncated):
    observation, _ = ASKED
    zeros = jnp.zeros((T, B))
    return Trajectory(
        observation,
        zeros,
        zeros,
        zeros,
        jnp.asarray(terminated),
        jnp.asarray(truncated),
        final_observation=observation + 50,
        episode_return=zeros,
        episode_length=jnp.full((T, B), 2),
    )


NEVER = np.zeros((T, B), bool)
ONCE = NEVER.copy()
ONCE[1, 0] = True


@pytest.mark.parametrize("truncated", [NEVER, ONCE])
def test_what_an_action_led_to_is_the_next_state_unless_truncated(truncated):
    observation, after = ASKED
    memory = jnp.array([4.0, 7.0])
    values, following, left = values_and_next(
        value_fn, memory, make_trajectory(NEVER, truncated), after
    )
    np.testing.assert_array_equal(values[0], 10 * observation[0] + memory + 1)
    np.testing.assert_array_equal(following[-1], 10 * after + memory + 4)
    np.testing.assert_array_equal(left, memory + 3)
    np.testing.assert_array_equal(following[0], values[1])
    expected = values[2].at[0].set(10 * (observation[1, 0] + 50) + memory[0] + 3)
    wanted = expected if truncated.any() else values[2]
    np.testing.assert_array_equal(following[1], wanted)


def test_the_memory_is_reset_after_an_episode_that_ends_with_the_rollout():
    terminated = NEVER.copy()
    terminated[-1, 1] = True
    memory = jnp.array([4.0, 7.0])
    _, following, _ = values_and_next(
        value_fn, memory, make_trajectory(terminated, NEVER), ASKED[1]
    )
    np.testing.assert_array_equal(following[-1], [1000 + 4 + 4, 2000 + 1])
