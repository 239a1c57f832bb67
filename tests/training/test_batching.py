"""Networks with a memory and without, seen through one face, in a whole step."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit
from probes import CHAIN, TABULAR

from trpo_jax import (
    TRPOConfig,
    UpdateStatus,
    evaluate,
    init,
    step,
    train,
)
from trpo_jax.environments import MaskedObservation, make_environment
from trpo_jax.networks import RecurrentNetworkFns
from trpo_jax.training import generalized_advantages, normalize, rollout
from trpo_jax.training.batching import (
    BoundNetwork,
    FlatNetwork,
    batched,
    merge_steps,
    reset_nonfinite_memory,
    rows_per_micro_batch,
    split_steps,
)
from trpo_jax.training.components import make_components, make_networks
from trpo_jax.training.state import make_act_fn, make_value_fn, observe
from trpo_jax.training.values import values_and_next
from trpo_jax.trust_region import Categorical

B, T = 4, 9
CONFIG = TRPOConfig(
    env=(TABULAR, CHAIN),
    num_envs=B,
    rollout_length=T,
    total_timesteps=3 * B * T,
    hidden_sizes=(5,),
    memory_size=3,
    normalize_observations=True,
    normalize_returns=True,
)


@fast_jit
def two_steps(key):
    """Return the states after each of two steps, and more about the second."""

    def advance(state, _):
        after, metrics = step(CONFIG, state)
        return after, (after, metrics)

    # A loop, so that the step is compiled once.
    _, taken = jax.lax.scan(advance, init(CONFIG, key), length=2)
    (first, _), (second, metrics) = (
        jax.tree.map(lambda leaf, n=n: leaf[n], taken) for n in (0, 1)
    )
    # The same rollout as in the second step, to look at.
    components = make_components(CONFIG)
    _, rollout_key, _ = jax.random.split(first.key, 3)
    rollout_state, trajectory = rollout(
        make_act_fn(components, first),
        components.environment,
        first.rollout,
        rollout_key,
        num_steps=T,
    )
    judged = values_and_next(
        make_value_fn(components, first),
        first.critic_memory,
        trajectory,
        rollout_state.observation,
    )
    return first, second, metrics, trajectory, judged


@pytest.fixture(scope="module")
def run():
    """Two steps; the second goes on with what the first remembers."""
    return two_steps(jax.random.key(0))


def remembered(network, params, memory, state, trajectory):
    """Go through a rollout one environment and one step at a time, in a loop."""
    apply = fast_jit(network.apply)
    seen = np.asarray(observe(state, trajectory.observation))
    starts = np.asarray(trajectory.start)
    memories = np.zeros((T, B, 3))
    outputs = {}
    for b in range(B):
        now = np.asarray(memory)[b : b + 1]
        for t in range(T):
            here = (slice(t, t + 1), slice(b, b + 1))
            after, outputs[t, b] = apply(params, now, seen[here], starts[here])
            now = np.asarray(after)[:, 0]
            memories[t, b] = now[0]
    return memories, outputs


def test_the_policy_that_is_updated_is_the_one_that_acted(run):
    """The log-probabilities of whole sequences are those of the steps as taken."""
    first, _, _, trajectory, _ = run
    policy = make_components(CONFIG).policy
    rows = policy.rows(
        first.rollout.memory, observe(first, trajectory.observation), trajectory.start
    )
    _, distribution = policy.apply(first.params, rows)
    log_probs = distribution.log_prob(policy.to_rows(trajectory.action))
    np.testing.assert_allclose(
        policy.from_rows(log_probs, T), trajectory.log_prob, rtol=1e-5, atol=1e-6
    )
    assert trajectory.start.any()
    assert np.any(first.rollout.memory != 0)


def test_a_step_is_accepted_and_remembers(run):
    first, second, metrics, trajectory, _ = run
    assert metrics.update.status == UpdateStatus.ACCEPTED
    assert metrics.update.kl > 0
    policy, critic = make_networks(CONFIG, make_environment(CONFIG.env))
    memories, _ = remembered(
        policy, first.params, first.rollout.memory, first, trajectory
    )
    np.testing.assert_allclose(second.rollout.memory, memories[-1], atol=1e-5)
    memories, _ = remembered(
        critic, first.critic_params, first.critic_memory, first, trajectory
    )
    np.testing.assert_allclose(second.critic_memory, memories[-1], atol=1e-5)


def test_the_critic_is_fitted_to_whole_sequences(run):
    """Its loss is that of the values along each sequence, from its memory on."""
    first, second, metrics, trajectory, (values, next_values, _) = run
    advantages = generalized_advantages(
        trajectory.reward,
        values,
        next_values,
        trajectory.terminated,
        trajectory.truncated,
        discount=CONFIG.discount,
        gae_lambda=CONFIG.gae_lambda,
    )
    targets = normalize(second.return_statistics, advantages + values)
    critic = make_components(CONFIG).critic
    rows = critic.rows(
        first.critic_memory, observe(first, trajectory.observation), trajectory.start
    )
    old, new = (
        critic.from_rows(critic.apply(params, rows)[1], T)
        for params in (first.critic_params, second.critic_params)
    )
    error, change = np.mean((old - targets) ** 2), np.mean((new - old) ** 2)
    np.testing.assert_allclose(
        metrics.critic_loss, np.mean((new - targets) ** 2), rtol=1e-3
    )
    np.testing.assert_allclose(metrics.critic_kl, change / (2 * error), rtol=1e-3)
    assert metrics.critic_loss < error
    assert 0 < metrics.critic_kl <= CONFIG.critic_max_kl


def test_values_and_those_of_what_followed_know_the_episode(run):
    """V(s₀ … sₜ), and V(s₀ … sₜ, s′ₜ) wherever the episode did not terminate."""
    first, _, _, trajectory, (values, next_values, _) = run
    _, critic = make_networks(CONFIG, make_environment(CONFIG.env))
    memories, outputs = remembered(
        critic, first.critic_params, first.critic_memory, first, trajectory
    )
    apply = fast_jit(critic.apply)
    mean, std = map(float, (first.return_statistics.mean, first.return_statistics.std))
    led_to = np.asarray(observe(first, trajectory.final_observation))
    values, next_values = map(np.asarray, (values, next_values))
    terminated = np.asarray(trajectory.terminated)
    assert trajectory.truncated.any()
    for (t, b), value in outputs.items():
        expected = mean + std * np.asarray(value)[0, 0]
        np.testing.assert_allclose(values[t, b], expected, rtol=1e-4, atol=1e-5)
        if terminated[t, b]:
            continue
        _, value = apply(
            first.critic_params,
            np.float32(memories[t, b])[None],
            led_to[t : t + 1, b : b + 1],
            np.zeros((1, 1), bool),
        )
        expected = mean + std * np.asarray(value)[0, 0]
        np.testing.assert_allclose(next_values[t, b], expected, rtol=1e-4, atol=1e-5)


def test_some_sequences_at_a_time_are_all_of_them(run):
    first, _, _, trajectory, _ = run
    critic = BoundNetwork(make_components(CONFIG).critic, first.critic_params)

    def judge(micro_batch_size):
        return critic.unroll(
            first.critic_memory,
            observe(first, trajectory.observation),
            trajectory.start,
            micro_batch_size=micro_batch_size,
        )

    chex.assert_trees_all_close(judge(3 * T), judge(None), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("asked", "rows"), [(None, None), (30, 3), (3, 1), (400, 40)])
def test_rows_at_once_counts_steps(asked, rows):
    assert rows_per_micro_batch(jnp.zeros((4, 10)), 40, asked) == rows


def test_rows_of_steps_are_flat_and_come_back():
    network = batched(make_networks(TRPOConfig(), make_environment("CartPole-v1"))[0])
    assert isinstance(network, FlatNetwork)
    leaf = jnp.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(network.to_rows(leaf)[3], leaf[1, 1])
    np.testing.assert_array_equal(network.from_rows(network.to_rows(leaf), 2), leaf)


@pytest.mark.parametrize(("stride", "first"), [(1, 0), (2, 1), (3, 2), (4, 1), (7, 5)])
def test_a_subsample_takes_from_each_environment_and_at_every_step(stride, first):
    """Whatever pattern in time the environments have in common."""
    num_envs, num_steps = 6, 7
    network = batched(make_networks(TRPOConfig(), make_environment("CartPole-v1"))[0])
    rows = jnp.stack(jnp.divmod(jnp.arange(num_envs * num_steps), num_steps), -1)
    taken = np.asarray(network.subsample(rows, stride, num_steps))
    of_last = taken[taken[:, 0] == 5, 1]
    each = num_steps // stride
    np.testing.assert_array_equal(of_last, first + stride * np.arange(each))
    assert np.bincount(taken[:, 0]).tolist() == [each] * num_envs
    assert set(taken[:, 1]) >= {*range(min(num_envs, stride * each))}


def test_a_subsample_of_sequences_keeps_them_whole():
    network = make_components(CONFIG).policy
    rows = {"x": jnp.arange(8).reshape(4, 2)}
    some = network.subsample(rows, 2, 2)
    np.testing.assert_array_equal(some["x"], [[0, 1], [4, 5]])


def alternate(params, memory, observations, starts):
    """Action 1 on the first step of an episode, then 0, 1, … by turns."""

    def count(steps, start):

        steps = jnp.where(start, 0, steps) + 1
        return steps, (steps, jnp.stack([-params * steps % 2, steps % 2], axis=-1))

    _, (steps, logits) = jax.lax.scan(count, memory, starts.T)
    return steps.T, Categorical(100.0 * jnp.swapaxes(logits, 0, 1))


def test_evaluation_begins_each_episode_without_a_memory():
    """Action 1 goes right, 0 stays: by turns, from one of four places, for 5 steps."""
    policy = RecurrentNetworkFns(
        initial_memory=lambda num: jnp.full(num, 7.0),
        init=lambda key, memory, observations, starts: jnp.float32(0),
        apply=alternate,
    )
    config = TRPOConfig(
        env=(TABULAR, CHAIN),
        num_envs=2,
        rollout_length=4,
        total_timesteps=8,
        policy=policy,
        fisher_stride=1,
    )
    state = init(config, jax.random.key(0))
    assert state.rollout.memory.tolist() == [7.0, 7.0]
    returns = evaluate(config, state, jax.random.key(1), 64)
    tables = jax.device_get(CHAIN)
    possible = []
    for position in range(4):
        total = 0.0
        for time in range(5):
            here = (position, 1 - time % 2)
            total += tables.reward[here]
            position = tables.next_position[here]
            if tables.terminal[here]:
                break
        possible.append(total)
    distance = np.abs(np.asarray(returns)[:, None] - np.asarray(possible))
    assert distance.min(axis=1).max() < 1e-5
    assert set(distance.argmin(axis=1)) == {0, 1, 2, 3}


class MaskedChain:
    """CHAIN, where going right is forbidden from the second place on."""

    def __init__(self):
        self._inside = make_environment((TABULAR, CHAIN))
        self.action_space = self._inside.action_space
        self.observation_shape = self._inside.observation_shape

    def _masked(self, values):
        here = jnp.argmin(jnp.sum(jnp.abs(CHAIN.features - values), axis=-1))
        return MaskedObservation(values, jnp.array([True, False]).at[1].set(here < 1))

    def reset(self, key):
        state, observation = self._inside.reset(key)
        return state, self._masked(observation)

    def step(self, key, state, action):
        state, taken = self._inside.step(key, state, action)
        return state, taken._replace(
            observation=self._masked(taken.observation),
            final_observation=self._masked(taken.final_observation),
        )


MASKED = MaskedChain()


@pytest.mark.parametrize("memory_size", [0, 3])
def test_forbidden_actions_are_never_taken(memory_size):
    config = TRPOConfig(
        env=MASKED,
        num_envs=B,
        rollout_length=T,
        total_timesteps=2 * B * T,
        hidden_sizes=(5,),
        memory_size=memory_size,
        normalize_observations=True,
    )

    @fast_jit
    def play(key):
        state, metrics = step(config, init(config, key))
        components = make_components(config)
        _, trajectory = rollout(
            make_act_fn(components, state),
            components.environment,
            state.rollout,
            jax.random.key(1),
            num_steps=20,
        )
        return trajectory, metrics

    trajectory, metrics = play(jax.random.key(0))
    assert metrics.update.status == UpdateStatus.ACCEPTED
    mask = trajectory.observation.action_mask
    taken = np.take_along_axis(np.asarray(mask), trajectory.action[..., None], axis=-1)
    assert taken.all()
    assert not mask.all()
    assert (trajectory.action == 1).any()


def test_a_state_without_an_allowed_action_stops_no_run():
    """The update is rejected and says so; the next rollout goes on."""

    class Stuck(MaskedChain):
        def _masked(self, values):
            return MaskedObservation(values, jnp.zeros(2, bool))

    config = TRPOConfig(
        env=Stuck(),
        num_envs=2,
        rollout_length=4,
        total_timesteps=8,
        hidden_sizes=(2,),
        fisher_stride=1,
    )
    before = fast_jit(init)(config, jax.random.key(0))
    after, metrics = fast_jit(step)(config, before)
    assert metrics.update.status == UpdateStatus.NON_FINITE
    chex.assert_trees_all_equal(after.params, before.params)


def test_a_memory_with_a_nan_is_forgotten_and_the_others_kept():
    policy = make_components(CONFIG).policy
    memory = jnp.arange(12.0).reshape(B, 3).at[1, 2].set(jnp.nan)
    kept = reset_nonfinite_memory(policy, memory)
    np.testing.assert_array_equal(kept[1], 0)
    others = np.array([0, 2, 3])
    np.testing.assert_array_equal(kept[others], memory[others])
    assert reset_nonfinite_memory(policy, ()) == ()


def test_recurrent_seeds_train_side_by_side_as_alone():
    """Under vmap a condition becomes a choice between both of its sides."""
    config = dataclasses.replace(CONFIG, num_seeds=2, total_timesteps=2 * B * T)
    together = train(config, jax.random.key(3))
    _, state, *_ = two_steps(jax.random.split(jax.random.key(3), 2)[1])
    second = jax.tree.map(lambda leaf: leaf[1], together.state)
    chex.assert_trees_all_close(
        (second.params, second.critic_params),
        (state.params, state.critic_params),
        atol=1e-3,
    )


def test_steps_are_merged_by_environment_and_split_again():
    """Also entries of an observation without numbers."""
    steps = {"number": np.arange(6).reshape(3, 2), "none": np.zeros((3, 2, 0))}
    merged = merge_steps(steps)
    assert merged["number"].tolist() == [0, 2, 4, 1, 3, 5]
    assert merged["none"].shape == (6, 0)
    chex.assert_trees_all_equal(split_steps(merged, 3), steps)
