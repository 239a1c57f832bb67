import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit
from probes import CHAIN, NO_LIMIT, TABULAR

from trpo_jax.environments import make_environment
from trpo_jax.training import init_rollout, rollout
from trpo_jax.training.rollouts import as_taken
from trpo_jax.trust_region import Categorical

NUM_ENVS, NUM_STEPS = 3, 7


def act(key, memory, observations, starts):
    """Prefers action 1, differently in each state; counts the episode's steps."""
    logits = jnp.stack([0 * observations[:, 0], observations[:, 1]], axis=-1)
    policy = Categorical(logits)
    action = policy.sample(key)
    memory = jnp.where(starts, 0, memory) + 1
    return memory, action, policy.log_prob(action)


@pytest.fixture(scope="module")
def played():
    """Two rollouts, the second going on from the first, joined in time."""
    environment = make_environment((TABULAR, CHAIN))

    @fast_jit
    def play(state, key):
        return rollout(act, environment, state, key, num_steps=NUM_STEPS)

    start = init_rollout(
        environment,
        jax.random.key(0),
        num_envs=NUM_ENVS,
        memory=jnp.zeros(NUM_ENVS, jnp.int32),
    )
    middle, first = play(start, jax.random.key(1))
    end, second = play(middle, jax.random.key(2))
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)
    return start, joined, end


def replay(positions, trajectory):
    """Walk through the tables by hand, with the actions and resets that were made."""
    tables = jax.device_get(CHAIN)
    time, total = np.zeros(NUM_ENVS, int), np.zeros(NUM_ENVS)
    for t, actions in enumerate(np.asarray(trajectory.action)):
        here = (positions, actions)
        time, total = time + 1, total + tables.reward[here]
        terminated = tables.terminal[here]
        following = tables.next_position[here]
        yield {
            "observation": tables.features[positions],
            "reward": tables.reward[here],
            "terminated": terminated,
            "truncated": (time == tables.max_steps_in_episode) & ~terminated,
            "final_observation": tables.features[following],
            "episode_return": total,
            "episode_length": time,
        }
        done = np.asarray(trajectory.done[t])
        if t + 1 < len(trajectory.action):
            distance = trajectory.observation[t + 1][:, None] - tables.features
            reset = np.argmin(np.abs(distance).sum(-1), axis=1)
            following = np.where(done, reset, following)
        positions, time, total = following, time * ~done, total * ~done


def test_rollout_is_the_environment_stepped_by_hand(played):
    start, trajectory, _ = played
    steps = list(replay(np.asarray(start.env_state.position), trajectory))
    for name in steps[0]:
        expected = np.stack([step[name] for step in steps])
        actual = getattr(trajectory, name)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, err_msg=name)


def test_episodes_end_both_ways_and_run_on_across_rollouts(played):
    """Else the test above would cover less than it names."""
    _, trajectory, _ = played
    assert trajectory.terminated.any()
    assert trajectory.truncated.any()
    assert not (trajectory.terminated & trajectory.truncated).any()
    assert (trajectory.episode_length[NUM_STEPS] > 1).any()


def test_state_is_where_the_trajectory_ended(played):
    _, trajectory, end = played
    done = trajectory.done[-1]
    expected = np.where(done, 0, trajectory.episode_return[-1])
    np.testing.assert_allclose(end.episode_return, expected)
    np.testing.assert_array_equal(
        end.episode_length, np.where(done, 0, trajectory.episode_length[-1])
    )
    np.testing.assert_array_equal(
        end.observation, CHAIN.features[end.env_state.position]
    )


def test_the_length_of_an_endless_episode_stays_where_an_int32_ends():
    endless = CHAIN.replace(
        terminal=jnp.zeros_like(CHAIN.terminal),
        max_steps_in_episode=jnp.int32(NO_LIMIT),
    )
    environment = make_environment((TABULAR, endless))
    memory = jnp.zeros(NUM_ENVS, jnp.int32)
    state = init_rollout(
        environment, jax.random.key(0), num_envs=NUM_ENVS, memory=memory
    )
    most = 2**31 - 1
    state = state._replace(episode_length=jnp.full(NUM_ENVS, most - 2, jnp.int32))
    end, trajectory = rollout(act, environment, state, jax.random.key(1), num_steps=4)
    lengths = trajectory.episode_length[:, 0].tolist()
    assert lengths == [most - 1, most, most, most]
    assert not trajectory.start.any()
    np.testing.assert_array_equal(end.episode_length, most)


def test_log_probs_are_the_policys_at_the_observations(played):
    _, trajectory, _ = played
    preference = trajectory.observation[..., 1]
    sign = np.where(trajectory.action == 1, 1, -1)
    expected = -np.log1p(np.exp(-sign * preference))
    np.testing.assert_allclose(trajectory.log_prob, expected, rtol=1e-5, atol=1e-6)


def test_environments_have_their_own_randomness():
    environment = make_environment((TABULAR, CHAIN))
    state = init_rollout(environment, jax.random.key(0), num_envs=32)
    assert set(state.env_state.position.tolist()) == {0, 1, 2, 3}
    assert state.observation.shape == (32, 3)
    assert not state.episode_length.any()
    assert not state.episode_return.any()


def test_actions_follow_the_policys_probabilities(played):
    """Over states the policy prefers action 1; it is taken as often as that."""
    _, trajectory, _ = played
    probability = 1 / (1 + np.exp(-trajectory.observation[..., 1]))
    spread = np.sqrt(np.sum(probability * (1 - probability)))
    excess = np.sum(trajectory.action) - np.sum(probability)
    assert abs(excess) < 3 * spread
    assert set(np.unique(trajectory.action)) == {0, 1}


def test_memory_lasts_as_long_as_an_episode(played):
    """It counted the steps, across rollouts, and began anew where an episode began."""
    _, trajectory, end = played
    np.testing.assert_array_equal(end.memory, trajectory.episode_length[-1])
    np.testing.assert_array_equal(trajectory.start, trajectory.episode_length == 1)
    assert trajectory.start.any()


def test_a_period_of_noise_draws_with_the_same_key():
    environment = make_environment((TABULAR, CHAIN))
    state = init_rollout(environment, jax.random.key(0), num_envs=2)

    def draw(key, memory, observations, starts):
        noise = jax.random.uniform(key, (2,))
        return memory, jnp.zeros(2, jnp.int32), noise

    _, trajectory = rollout(
        draw, environment, state, jax.random.key(1), num_steps=8, noise_period=3
    )
    noise = np.asarray(trajectory.log_prob)
    same = np.all(noise[1:] == noise[:-1], axis=1)
    assert same.tolist() == [True, True, False, True, True, False, True]


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize(
    ("kind", "width"), [("float", 32), ("bfloat", 16), ("int", 32)]
)
def test_environments_take_actions_of_32_bits(kind, width, x64):
    with jax.enable_x64(x64):
        width = 64 if x64 and width == 32 else width
        taken = as_taken(jnp.ones(3, f"{kind}{width}"))
    assert taken.dtype == (jnp.int32 if kind == "int" else jnp.float32)


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("actions", "log_probs"), [((4,), ()), ((), (4,)), ((3,), (4,))]
)
def test_actions_that_are_not_one_for_each_environment_are_refused(actions, log_probs):
    environment = make_environment((TABULAR, CHAIN))
    state = init_rollout(environment, jax.random.key(0), num_envs=4)

    def act(key, memory, observations, starts):
        return memory, jnp.zeros(actions, int), jnp.zeros(log_probs)

    with pytest.raises(ValueError, match=r"one of each for each of the 4 environments"):
        rollout(act, environment, state, jax.random.key(0), num_steps=2)
