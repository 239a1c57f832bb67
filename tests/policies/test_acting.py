import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Line, make_state

from trpo_jax.environments import Box, Discrete, MaskedObservation
from trpo_jax.policies.acting import (
    act,
    check_trained,
    initial_memory,
    start_episodes,
    state_of_seed,
    step_episodes,
)


def test_memory_is_reset_where_an_episode_starts():
    config, state = make_state(Line(Box(1)), memory_size=4)
    memory = initial_memory(config, 3)
    assert jax.tree.leaves(memory)[0].shape == (3, 4)
    seen, key = jnp.ones((3, 3)), jax.random.key(0)
    starts = jnp.array([True, True, False])
    full = jax.tree.map(jnp.ones_like, memory)
    after, actions = act(config, state, key, full, seen, starts)
    empty, expected = act(config, state, key, memory, seen, starts)
    np.testing.assert_allclose(actions[:2], expected[:2], rtol=1e-6)
    assert not np.allclose(actions[2], expected[2])
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, empty)


def test_masks_are_obeyed_mode_or_sample():
    config, state = make_state(Line(Discrete(3), masked=True))
    masks = jnp.eye(3, dtype=bool)
    seen = MaskedObservation(jnp.ones((3, 3)), masks)
    for actions in ("mode", "sample"):
        _, taken = act(
            config, state, jax.random.key(0), (), seen, jnp.ones(3, bool), actions
        )
        np.testing.assert_array_equal(taken, [0, 1, 2])


def test_an_episode_counts_once():
    """Each of one step, and its environment goes on."""
    config, state = make_state(Line(Discrete(2)))
    episodes = start_episodes(config, jax.random.key(0), 3)
    assert not episodes.ended.any()
    for steps in (1, 2):
        episodes = step_episodes(config, state, jax.random.key(1), episodes, "mode")
        assert episodes.steps == steps
        assert episodes.ended.all()
        np.testing.assert_array_equal(episodes.returns, 1)


def test_a_seed_is_taken_by_its_index():
    config, states = make_state(Line(Discrete(2)), num_seeds=2)
    one = state_of_seed(config, states, 1)
    np.testing.assert_array_equal(
        jax.tree.leaves(one.params)[0], jax.tree.leaves(states.params)[0][1]
    )
    for index in (-1, 2):
        with pytest.raises(ValueError, match="write 0 to 1"):
            state_of_seed(config, states, index)
    with pytest.raises(ValueError, match="index other axes first"):
        state_of_seed(config, one, 1)


def test_masks_are_a_part_of_the_observations():
    plain, _ = make_state(Line(Discrete(3)))
    _, state = make_state(Line(Discrete(3), masked=True))
    advice = r"observation.action_mask: \(3,\) and None; observation: None and \(3,\)"
    with pytest.raises(ValueError, match=advice):
        check_trained(plain, state)


@pytest.mark.usefixtures("no_shape_checks")
def test_a_result_in_place_of_its_state_is_refused():
    config, state = make_state(Line(Discrete(2)))
    with pytest.raises(TypeError, match="state is of type tuple"):
        check_trained(config, (state, None))
