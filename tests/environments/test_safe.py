"""This package's tasks with a cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit

from trpo_jax.environments import make_environment
from trpo_jax.environments.contract import check_environment, num_costs
from trpo_jax.environments.hazards import PointHazards, PointState
from trpo_jax.environments.safe import VELOCITY_TASKS, VelocityTask

KEYS = jax.random.split(jax.random.key(0), 512)
GRID = make_environment("safe/toll_grid")
ROBOT = make_environment("safe/point_hazards")
UP, RIGHT, DOWN, LEFT = range(4)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("environment", [GRID, ROBOT], ids=str)
def test_the_contract_is_kept(environment, bits):
    with jax.enable_x64(bits == 64):
        check_environment(environment)
        state, _ = jax.eval_shape(environment.reset, jax.random.key(0))
        action = np.zeros(2, np.float32) if environment is ROBOT else np.int32(0)
        following, step = jax.eval_shape(
            environment.step, jax.random.key(0), state, action
        )
    assert num_costs(environment) == 1
    for number in (step.reward, step.cost):
        assert (number.shape, number.dtype) == ((), jnp.float32)
    assert following == state


def test_an_id_is_one_object():
    assert make_environment("safe/toll_grid") is GRID
    assert make_environment("safe/point_hazards") is ROBOT


def test_an_unknown_task_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"'hopper_velocity'.*CostEnvironment"):
        make_environment("safe/hoper_velocity")


def test_the_speed_after_a_step_is_compared_with_the_limit():
    task = VelocityTask("brax/hopper", 1, 0.5)
    for speed, expected in ((0.4, False), (0.6, True)):
        seen = np.float32([9.0, speed])
        assert (
            task.is_too_fast(*map(jnp.asarray, (-seen, np.zeros(1), seen))) == expected
        )


@pytest.mark.parametrize("name", VELOCITY_TASKS)
def test_a_body_of_brax_observes_its_speed(name):
    pytest.importorskip("brax.envs")
    environment = make_environment(f"safe/{name}")
    assert num_costs(environment) == 1
    env_id, index, limit = VELOCITY_TASKS[name]
    state, _ = fast_jit(environment.reset)(jax.random.key(0))
    before = state.env_state.env_state.pipeline_state.x.pos[0, 0]
    action = jnp.full(environment.action_space.size, 0.3)
    state, step = fast_jit(environment.step)(jax.random.key(1), state, action)
    after = state.env_state.env_state.pipeline_state.x.pos[0, 0]
    speed = (after - before) / make_environment(env_id)._env.dt
    # At the end of the step, not in its mean.
    np.testing.assert_allclose(step.final_observation[index], speed, atol=0.3)
    assert step.cost == (step.final_observation[index] > limit)


# The grid, whose arrays are the map's -------------------------------------------------


def test_rows_of_the_grid_are_probabilities():
    goal = GRID.observation_shape[0] - 1
    total = GRID.transition.sum(axis=-1)
    assert GRID.transition.min() >= 0
    assert (total[goal] == 0).all()
    assert (total[:goal] >= 0.95 - 1e-12).all()
    assert (total <= 1 + 1e-12).all()
    assert set(GRID.cost[:, 0]) == {0, 1}
    assert GRID.cost.sum() == 5 * 4


def test_moves_follow_the_map():
    start, goal = GRID.start, GRID.observation_shape[0] - 1
    moved = GRID.transition[start]
    # Along the bottom, cells have consecutive numbers.
    np.testing.assert_allclose(moved[RIGHT, start + 1], 0.95 * (0.9 + 0.1 / 4))
    np.testing.assert_allclose(moved[LEFT, start], 0.95 * (0.9 + 0.1 * 2 / 4))
    # Only from its two neighbours is the goal reached.
    assert np.count_nonzero(GRID.reward.max(axis=1)) == 2
    np.testing.assert_allclose(GRID.reward[goal - 1, RIGHT], 10 * (0.9 + 0.1 / 4))


@pytest.mark.parametrize("place", ["start", "beside the goal"])
def test_steps_have_the_frequencies_of_the_arrays(place):
    cell = GRID.start if place == "start" else GRID.observation_shape[0] - 2
    state = jnp.full(len(KEYS), cell, jnp.int32)
    step_fn = jax.vmap(GRID.step, (0, 0, None))
    _, step = fast_jit(step_fn)(KEYS, state, jnp.int32(RIGHT))
    expected = GRID.transition[cell, RIGHT]
    tolerance = 4 * np.sqrt(0.25 / len(KEYS))
    found = step.final_observation.mean(axis=0)
    np.testing.assert_allclose(found, expected, atol=tolerance)
    np.testing.assert_allclose(
        step.reward.mean(), GRID.reward[cell, RIGHT], atol=10 * tolerance
    )
    np.testing.assert_array_equal(step.cost, GRID.cost[cell, RIGHT])
    # An episode ends at the goal, or by chance and then without a last cell.
    ended = (step.reward > 0) | (step.final_observation.sum(axis=1) == 0)
    np.testing.assert_array_equal(step.terminated, ended)
    assert (np.argmax(step.observation[ended], axis=1) == GRID.start).all()


# The robot ----------------------------------------------------------------------------


@fast_jit
def move(state, action):
    env = PointHazards(num_hazards=2)
    return env.step_env(jax.random.key(0), state, action, env.default_params)


def robot(position, goal, hazards=((9.0, 9.0), (9.0, 9.0)), velocity=(0.0, 0.0)):
    arrays = (np.float32(array) for array in (position, velocity, goal, hazards))
    return PointState(np.int32(0), *arrays)


def test_the_reward_is_the_way_made():
    observation, state, reward, _, info = move(robot([0, 0], [1, 0]), np.ones(2))
    np.testing.assert_allclose(state.velocity, 0.2, rtol=1e-6)
    np.testing.assert_allclose(state.position, 0.02, rtol=1e-6)
    np.testing.assert_allclose(reward, 1 - np.hypot(0.98, 0.02), rtol=1e-4)
    np.testing.assert_allclose(observation[:4], [0.2, 0.2, 0.98, -0.02], rtol=1e-5)
    assert info["cost"] == 0


def test_an_action_is_clipped_and_speed_is_bounded():
    _, state, *_ = move(robot([0, 0], [1, 0], velocity=[1, 0]), np.array([9.0, 0]))
    np.testing.assert_allclose(state.velocity, [1, 0], atol=1e-6)


def test_a_goal_that_is_reached_is_placed_anew_outside_of_hazards():
    _, state, reward, terminated, _ = move(robot([0, 0], [0.29, 0]), np.zeros(2))
    assert reward == 1
    assert not terminated
    assert np.hypot(*(state.goal - np.array([0.29, 0]))) > 0.01


def test_a_step_into_a_hazard_costs_one():
    for distance, cost in ((0.19, 1), (0.21, 0)):
        near = robot([0, 0], [1, 1], [[distance, 0], [9, 9]])
        assert move(near, np.zeros(2))[-1]["cost"] == cost


def test_hazards_are_seen_by_direction_and_closeness():
    seen, *_ = move(robot([0, 0], [1, 1], [[0.5, 0], [0, -1.0]]), np.zeros(2))
    expected = np.zeros(16)
    expected[0], expected[12] = 1 - 0.5 / 1.5, 1 - 1 / 1.5
    np.testing.assert_allclose(seen[4:], expected, atol=1e-5)
    # Between two directions, half in each.
    angle = 2.5 * 2 * np.pi / 16
    between = [[0.75 * np.cos(angle), 0.75 * np.sin(angle)], [9, 9]]
    seen, *_ = move(robot([0, 0], [1, 1], between), np.zeros(2))
    np.testing.assert_allclose(seen[6:8], 0.25, rtol=1e-4)
    assert np.count_nonzero(np.round(seen[4:], 5)) == 2


def test_episodes_start_outside_of_hazards_each_with_its_own():
    state, _ = fast_jit(jax.vmap(ROBOT.reset))(KEYS)
    for place in (state.position, state.goal):
        gaps = np.linalg.norm(state.hazards - place[:, None], axis=-1).min(axis=1)
        assert (gaps > 0.5).mean() > 0.97
    assert len(np.unique(state.hazards, axis=0)) == len(KEYS)
    assert np.abs(state.hazards).max() <= 1.5


def test_the_robots_episodes_are_cut():
    state, _ = ROBOT.reset(KEYS[0])
    state = state._replace(time=jnp.int32(99))
    _, step = fast_jit(ROBOT.step)(KEYS[1], state, jnp.zeros(2))
    assert step.truncated
    assert not step.terminated
