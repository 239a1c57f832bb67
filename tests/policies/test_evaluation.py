import dataclasses
import threading

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import compilations, fast_jit
from probes import CHAIN, NUM_STATES, TABULAR, Tabular, by_state, make_tables
from tiny import Line, make_state

from trpo_jax import TRPOConfig, evaluate, init
from trpo_jax.environments import Box, GymnaxEnvironment
from trpo_jax.networks import NetworkFns
from trpo_jax.policies.evaluation import (
    compiling_evaluation,
    format_evaluation,
    summarize_returns,
)
from trpo_jax.trust_region import Categorical

# Logits 0 and w·o₀: action 1 is the more probable where the product is positive.
POLICY = NetworkFns(
    lambda key, observations: jnp.float32(1),
    lambda w, observations: Categorical(
        jnp.stack([0 * observations[:, 0], w * observations[:, 0]], axis=-1)
    ),
)
CRITIC = NetworkFns(
    lambda key, observations: jnp.float32(0),
    lambda w, observations: w * observations[:, 0],
)
POSITIVE = np.ones((NUM_STATES, 3))
RIGHT_OR_WRONG = make_tables(np.tile([0, 1], (NUM_STATES, 1)), features=POSITIVE)
"""One step; action 1 is worth 1."""


def make(tables, **fields):
    """Return a config and a state with the policy above, or as `fields` say."""
    fields = {"policy": POLICY, "critic": CRITIC} | fields
    return make_state((TABULAR, tables), **fields)


def test_returns_are_of_whole_episodes():
    """To the right from each start, cut after three steps, and counted once."""
    tables = CHAIN.replace(
        features=jnp.asarray(POSITIVE, jnp.float32), max_steps_in_episode=jnp.int32(3)
    )
    returns = evaluate(*make(tables), jax.random.key(1), 64)
    rewards = np.asarray(CHAIN.reward)[:, 1]
    expected = np.array([rewards[start : start + 3].sum() for start in range(4)])
    assert returns.shape == (64,)
    nearest = np.abs(returns[:, None] - expected).argmin(axis=1)
    np.testing.assert_allclose(returns, expected[nearest], rtol=1e-5)
    assert set(nearest.tolist()) == {0, 1, 2, 3}


class AsTrained(GymnaxEnvironment):
    """An environment of gymnax that is stepped in evaluations as it is in training."""

    def __init__(self, *pair):
        super().__init__(*pair)
        del self.step_without_reset


def test_episodes_without_resets_are_those_with_them():
    env, params = gymnax.make("CartPole-v1")
    params = params.replace(max_steps_in_episode=20)
    returns = []
    for environment in (GymnaxEnvironment(env, params), AsTrained(env, params)):
        config = dataclasses.replace(make(CHAIN)[0], env=environment)
        state = init(config, jax.random.key(0))
        returns.append(evaluate(config, state, jax.random.key(1), 8))
    np.testing.assert_array_equal(*returns)
    assert len(np.unique(returns)) > 1


def test_it_can_be_compiled_ahead():
    config, state = make(CHAIN)
    key = jax.random.key(1)
    with compiling_evaluation(config, num_episodes=7):
        pass
    with compilations() as seconds:
        returns = evaluate(config, state, key, 7)
    assert seconds == []
    assert returns.shape == (7,)


def test_a_long_run_compiles_nothing_ahead():
    config, _ = make(CHAIN)
    config = dataclasses.replace(config, total_timesteps=4 * 10**6)
    with compilations() as seconds, compiling_evaluation(config, num_episodes=9):
        pass
    assert seconds == []


def test_nobody_waits_for_what_is_compiled_after_an_interruption(monkeypatch):
    config, _ = make(CHAIN)
    release = threading.Event()
    slow = lambda *_: release.wait(60)  # noqa: E731
    monkeypatch.setattr(jax.stages.Lowered, "compile", slow)
    with pytest.raises(KeyboardInterrupt), compiling_evaluation(config, num_episodes=8):
        raise KeyboardInterrupt
    assert not release.is_set()
    release.set()


def test_what_fails_ahead_fails_in_its_own_place(monkeypatch):
    config, state = make(CHAIN)

    def fail(*_):
        raise RuntimeError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(jax.stages.Lowered, "compile", fail)
        with compiling_evaluation(config, num_episodes=6):
            pass
    assert evaluate(config, state, jax.random.key(1), 6).shape == (6,)


def test_actions_are_the_most_probable_or_drawn():
    config, state = make(RIGHT_OR_WRONG)
    key, num_episodes = jax.random.key(1), 2_000
    by_mode = evaluate(config, state, key, num_episodes)
    np.testing.assert_array_equal(by_mode, 1)
    drawn = evaluate(config, state, key, num_episodes, actions="sample")
    probability = 1 / (1 + np.exp(-1))
    error = 4 * np.sqrt(probability * (1 - probability) / num_episodes)
    np.testing.assert_allclose(drawn.mean(), probability, atol=error)


def test_the_return_of_an_episode_without_end_is_nan():
    """From the first state the task goes on for ever, from the second it ends."""
    tables = make_tables(
        by_state(1, 5), terminal=by_state(False, True), num_starts=2, features=POSITIVE
    )
    config, state = make(tables)
    returns = evaluate(config, state, jax.random.key(1), 32, max_steps=20)
    assert set(returns[~np.isnan(returns)].tolist()) == {5.0}
    assert 0 < np.isnan(returns).sum() < 32


def test_an_episode_of_just_max_steps_counts():
    tables = make_tables(by_state(1), terminal=False, max_steps_in_episode=6)
    config, state = make(tables)
    key = jax.random.key(1)
    np.testing.assert_array_equal(evaluate(config, state, key, 3, max_steps=6), 6)
    assert np.isnan(evaluate(config, state, key, 3, max_steps=5)).all()


def test_each_seed_plays_by_its_own_parameters():
    config, state = make(RIGHT_OR_WRONG, num_seeds=2)
    states = state._replace(params=jnp.array([1.0, -1.0]))
    returns = evaluate(config, states, jax.random.key(1), 5)
    np.testing.assert_array_equal(returns, [[1] * 5, [0] * 5])


def test_observations_are_normalized_as_in_training():
    config, state = make(RIGHT_OR_WRONG, normalize_observations=True)
    statistics = state.observation_statistics
    returns = [
        evaluate(
            config, state._replace(observation_statistics=seen), jax.random.key(1), 2
        )
        for seen in (statistics, statistics._replace(mean=jnp.full(3, 2.0)))
    ]
    np.testing.assert_array_equal(returns, [[1, 1], [0, 0]])


def test_evaluate_under_vmap_and_jit_is_a_loop():
    config, state = make(CHAIN)
    keys = jax.random.split(jax.random.key(1), 3)
    first = keys[0]

    def play(key):
        return evaluate(config, state, key, 4, actions="sample")

    together = fast_jit(jax.vmap(play))(keys)
    np.testing.assert_allclose(together, [play(key) for key in keys], rtol=1e-6)
    with compilations() as compiled:
        play(first)
    assert not compiled


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_a_state_of_another_number_of_seeds_is_refused(num_seeds):
    _, state = make(RIGHT_OR_WRONG)
    states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    config, _ = make(RIGHT_OR_WRONG, num_seeds=num_seeds)
    with pytest.raises(ValueError, match="pass the config that the state was trained"):
        evaluate(config, states, jax.random.key(1), 5)


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ({"num_episodes": 0}, "num_episodes=0 is not positive; write at least 1"),
        ({"max_steps": -1}, "max_steps=-1 is not positive; write at least 1"),
        ({"actions": "best"}, "actions='best'; write 'mode' or 'sample'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_compiles(arguments, advice):
    config = TRPOConfig(env=(TABULAR, CHAIN))
    key = jax.random.key(0)
    with compilations() as compiled, pytest.raises(ValueError, match=advice):
        evaluate(config, None, key, **arguments)
    assert not compiled


def test_the_state_of_another_environment_is_refused_by_both_shapes():
    config, state = make_state("CartPole-v1", num_seeds=2)
    other = dataclasses.replace(config, env=(TABULAR, CHAIN))
    advice = r"has \S*Tabular.*, with actions .* observation: \(4,\) and \(3,\)"
    with pytest.raises(ValueError, match=advice):
        evaluate(other, state, jax.random.key(1), 2)
    # As advised, with the config that it was trained with.
    assert evaluate(config, state, jax.random.key(1), 2, max_steps=1).shape == (2, 2)


def test_the_state_of_another_action_space_is_refused_by_both_shapes():
    _, state = make_state((TABULAR, CHAIN))
    wider = make_tables(np.zeros((NUM_STATES, 3)), features=CHAIN.features)
    config, _ = make_state((Tabular(3), wider))
    advice = r"Discrete\(num_actions=3\).*bias: \(2,\) and \(3,\).*Pass the config"
    with pytest.raises(ValueError, match=advice):
        evaluate(config, state, jax.random.key(1), 2)


def test_a_state_of_other_network_sizes_is_refused():
    config, _ = make_state((TABULAR, CHAIN))
    _, state = make_state((TABULAR, CHAIN), hidden_sizes=(5,))
    with pytest.raises(ValueError, match=r"\(5,\) and \(4,\)"):
        evaluate(config, state, jax.random.key(1), 2)


def test_another_number_of_environments_is_no_matter():
    """Evaluation has its own environments."""
    config, state = make_state((TABULAR, CHAIN))
    config = dataclasses.replace(config, num_envs=4, total_timesteps=8)
    assert evaluate(config, state, jax.random.key(1), 2).shape == (2,)


def test_an_episode_without_end_is_no_alarm_to_debug_nans():
    config, state = make(make_tables(by_state(1), terminal=False))
    with jax.debug_nans(True):
        returns = evaluate(config, state, jax.random.key(1), 2, max_steps=2)
    assert np.isnan(returns).all()


def test_nan_of_the_environment_is_an_alarm_to_debug_nans():
    config, state = make(make_tables(by_state(np.nan)))
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        evaluate(config, state, jax.random.key(1), 2)


def test_a_float32_state_plays_under_x64():
    """Also with a memory, which x64 makes float64."""
    config, state = make_state(Line(Box(1)), memory_size=4, normalize_observations=True)
    with jax.enable_x64(True):
        returns = evaluate(config, state, jax.random.key(1), 3, actions="sample")
    np.testing.assert_array_equal(returns, 1)


def test_a_summary_counts_the_episodes_that_ended():
    config, _ = make(CHAIN, num_seeds=2)
    returns = jnp.array([[1.0, 3.0, jnp.nan], [jnp.nan] * 3])
    summary = summarize_returns(config, returns)
    assert summary == {
        "return_mean": 2.0,
        "return_std": 1.0,
        "return_by_seed": [2.0, None],
        "num_episodes": 3,
        "num_unended": 4,
    }
    assert format_evaluation(summary).split("\n") == [
        "evaluation over 3 episodes: return 2.0, standard deviation 1.0",
        "by seed: 2.0, –",
        "left out: 4 without an end, or with a NaN in their rewards",
    ]
    summary = summarize_returns(config, jnp.full((2, 3), jnp.nan))
    none = "evaluation: no episode ended with a return that is finite"
    assert format_evaluation(summary) == none


def test_a_cost_that_is_nan_is_counted_and_not_a_mean_of_none():
    config, _ = make(CHAIN)
    costs = jnp.array([[1.0, jnp.nan], [3.0, jnp.nan]])
    summary = summarize_returns(config, jnp.ones(2), costs)
    assert (summary["cost_mean"], summary["num_unknown_costs"]) == ([2.0, None], 2)
    text = format_evaluation(summary)
    assert "cost 2.00, –\nof unknown cost: 2 with a NaN in their costs" in text
    assert "left out" not in text


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("three", [3.0, np.int64(3), np.array(3), jnp.int32(3)])
def test_counts_may_have_any_type(three):
    config, state = make(RIGHT_OR_WRONG)
    returns = evaluate(config, state, jax.random.key(1), three, max_steps=three)
    np.testing.assert_array_equal(returns, [1, 1, 1])


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("name", ["num_episodes", "max_steps"])
@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ("3", "is the str '3'; write a whole number"),
        (None, "is None; write a whole number"),
        (2.5, "is the float 2.5; write a whole number"),
        (2**31, "is too large; write at most 2147483647"),
    ],
)
def test_what_is_no_count_is_named(name, value, advice):
    config = TRPOConfig(env=(TABULAR, CHAIN))
    with pytest.raises((ValueError, TypeError), match=f"{name}.*{advice}"):
        evaluate(config, None, jax.random.key(0), **{name: value})


def test_the_most_steps_are_counted_without_wrapping():
    config, state = make(RIGHT_OR_WRONG)
    returns = evaluate(config, state, jax.random.key(1), 3, max_steps=2**31 - 1)
    np.testing.assert_array_equal(returns, [1, 1, 1])


def test_a_return_is_differentiated_forwards_in_a_number_of_the_environment():
    config, state = make(RIGHT_OR_WRONG)

    def play(worth):
        tables = RIGHT_OR_WRONG.replace(reward=worth * RIGHT_OR_WRONG.reward)
        weighed = dataclasses.replace(config, env=(TABULAR, tables))
        return evaluate(weighed, state, jax.random.key(1), 2)

    value, slope = jax.jvp(play, (3.0,), (1.0,))
    np.testing.assert_array_equal([value, slope], [[3, 3], [1, 1]])
    mapped = jax.vmap(play)(jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(mapped, [[1, 1], [2, 2]])
