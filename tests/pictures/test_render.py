from typing import NamedTuple

import gymnax
import gymnax.wrappers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import compilations
from PIL import Image
from probes import CHAIN, TABULAR
from tiny import make_state

from trpo_jax import TRPOConfig, evaluate
from trpo_jax.environments import Box, Discrete, Drawable, SquashedActions, TimeStep
from trpo_jax.pictures.render import render_episode


class Rung(NamedTuple):
    """Current place in an episode, and the place where it ends."""

    place: jax.Array
    height: jax.Array


THREE = Discrete(3)


class Ladder:
    """One up with every step; the reward is what the action is. Draws into a list."""

    picture_suffix = ".txt"

    def __init__(self, action_space=THREE):
        self.action_space = action_space
        self.observation_shape = (2,)
        self.drawn = []

    def reset(self, key):
        state = Rung(jnp.int32(0), jax.random.randint(key, (), 4, 9, jnp.int32))
        return state, self._observe(state)

    def step(self, key, state, action):
        state = state._replace(place=state.place + 1)
        ended = state.place == state.height
        final_observation = self._observe(state)
        following = jax.tree.map(
            lambda new, old: jnp.where(ended, new, old), self.reset(key)[0], state
        )
        return following, TimeStep(
            observation=self._observe(following),
            reward=jnp.float32(jnp.sum(action)),
            terminated=ended,
            truncated=jnp.bool_(False),
            final_observation=final_observation,
        )

    def draw(self, states, returns, path):
        self.drawn.append((states, returns))
        path.write_text("a ladder")

    def _observe(self, state):
        return jnp.stack([state.place, state.height]).astype(jnp.float32)


@pytest.mark.parametrize(
    ("space", "fields"),
    [
        (THREE, {"memory_size": 3, "normalize_observations": True}),
        (
            Box(1, (-1.0,), (1.0,)),
            {"action_distribution": "tanh_gaussian", "num_seeds": 2},
        ),
    ],
)
def test_the_episode_is_the_one_that_evaluation_plays(tmp_path, space, fields):
    ladder = Ladder(space)
    config, state = make_state(ladder, **fields)
    key, index = jax.random.key(1), config.num_seeds - 1
    path = tmp_path / "new" / "ladder"
    result = render_episode(
        config,
        state,
        path,
        key=key,
        actions="sample",
        seed_index=index,
    )
    assert result.path == tmp_path / "new" / "ladder.txt"
    assert result.path.read_text() == "a ladder"
    expected = evaluate(config, state, key, 1, actions="sample").ravel()[index]
    np.testing.assert_allclose(result.episode_return, expected, rtol=1e-6)
    ((states, returns),) = ladder.drawn
    # One state for each step, and none of the next episode.
    assert result.ended
    np.testing.assert_array_equal(states.place, np.arange(result.length))
    np.testing.assert_array_equal(states.height, result.length)
    assert returns.shape == (result.length,)
    assert returns[-1] == np.float32(result.episode_return)


def test_a_longer_episode_is_cut_and_compiled_once(tmp_path):
    ladder = Ladder()
    config, state = make_state(ladder)
    for repeat in range(2):
        with compilations() as compiled:
            result = render_episode(
                config, state, tmp_path / "a.txt", key=jax.random.key(1), max_steps=3
            )
        assert bool(compiled) == (repeat == 0)
        assert (result.length, result.ended) == (3, False)
    np.testing.assert_array_equal(ladder.drawn[0][0].place, [0, 1, 2])


def wrapped_catch():
    env, params = gymnax.make("Catch-bsuite")
    return gymnax.wrappers.LogWrapper(env), params


@pytest.mark.parametrize("make", [lambda: "Catch-bsuite", wrapped_catch])
def test_catch_becomes_a_gif(tmp_path, make):
    config, state = make_state(make())
    result = render_episode(config, state, tmp_path / "c.gif", key=jax.random.key(1))
    assert Image.open(result.path).n_frames == result.length == 9
    assert result.episode_return in (-1, 1)


def test_squashing_is_as_drawable_as_what_it_squashes():
    space = Box(1, (-1.0,), (1.0,))
    assert isinstance(Ladder(space), Drawable)
    assert SquashedActions(Ladder(space)).picture_suffix == ".txt"
    plain = Ladder(space)
    plain.picture_suffix = None
    assert SquashedActions(plain).picture_suffix is None


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("env", "arguments", "advice"),
    [
        ((TABULAR, CHAIN), {}, r"Tabular.* cannot be drawn\. These can: .*CartPole-v1"),
        (Ladder(), {"path": "a.gif"}, r"drawn as \.txt, not \.gif; write a\.txt"),
        (Ladder(), {"max_steps": 0}, "max_steps=0 is not positive; write at least 1"),
        (Ladder(), {"actions": "best"}, "actions='best'; write 'mode' or 'sample'"),
        (Ladder(), {"seed_index": 1}, "the run has 1 seed"),
        (Ladder(), {"seed_index": -1}, "write 0 to 0"),
        (Ladder(), {"seed_index": "0"}, "seed_index is the str '0'; write a whole"),
        (Ladder(), {"max_steps": None}, "max_steps is None; write a whole number"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_it_is_played(env, arguments, advice):
    config = TRPOConfig(env=env)
    with pytest.raises((ValueError, TypeError), match=advice):
        render_episode(
            config, None, **{"path": "a.txt"} | arguments, key=jax.random.key(0)
        )


def test_a_state_of_another_number_of_seeds_is_refused(tmp_path):
    config, state = make_state(Ladder())
    states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    with pytest.raises(ValueError, match="pass the config that the state was trained"):
        render_episode(config, states, tmp_path / "a", key=jax.random.key(0))


def test_the_state_of_another_environment_is_refused_by_both_shapes(tmp_path):
    config, _ = make_state(Ladder())
    _, state = make_state((TABULAR, CHAIN))
    with pytest.raises(ValueError, match=r"observation: \(3,\) and \(2,\)"):
        render_episode(config, state, tmp_path / "a", key=jax.random.key(0))


def test_the_advised_file_is_in_the_same_folder(tmp_path):
    config, state = make_state(Ladder())
    key = jax.random.key(1)
    with pytest.raises(ValueError, match=r"write .*\.txt") as error:
        render_episode(config, state, tmp_path / "a.png", key=key)
    advised = str(error.value).split("write ")[1].rstrip(".")
    result = render_episode(config, state, advised, key=key, max_steps=3)
    assert result.path == tmp_path / "a.txt"
    assert result.path.exists()
