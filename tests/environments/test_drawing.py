import base64
import json
import os
import re
import sys
import types
import zlib

import gymnax
import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from trpo_jax.environments import DRAWN_BY_GYMNAX, Drawable, make_environment
from trpo_jax.environments.drawing import draw_bodies, has_bodies, shown_steps


def durations(path):
    """Milliseconds of each frame of a GIF."""
    picture = Image.open(path)
    found = []
    for index in range(picture.n_frames):
        picture.seek(index)
        found.append(picture.info["duration"])
    return found


def draw(env_id, num_steps, path, **varying):
    """Draw a first state, held for some steps but for the fields that vary."""
    environment = make_environment(env_id)
    assert isinstance(environment, Drawable)
    state, _ = environment.reset(jax.random.key(0))
    states = jax.tree.map(
        lambda leaf: np.broadcast_to(leaf, (num_steps, *leaf.shape)), state
    )
    returns = np.arange(num_steps, dtype=np.float32)
    environment.draw(states.replace(**varying), returns, path)


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [(1, [0]), (3, [0, 1, 2]), (4, [1, 3]), (7, [0, 3, 6]), (9, [2, 5, 8])],
)
def test_every_nth_step_is_shown_and_the_last(num_steps, expected):
    assert shown_steps(num_steps, 3) == expected


def test_the_ids_that_can_be_drawn_are_gymnaxs():
    assert set(DRAWN_BY_GYMNAX) <= set(gymnax.registered_envs)


def test_gymnaxs_visualizer_draws_a_frame_for_each_step(tmp_path):
    path = tmp_path / "catch.gif"
    figures = plt.get_fignums()
    draw("Catch-bsuite", 5, path, ball_y=np.arange(5))
    assert durations(path) == [100, 100, 100, 100, 1500]
    assert plt.get_fignums() == figures
    first, last = (np.asarray(frame_of(path, index)) for index in (0, 4))
    below_caption = slice(30, None)
    assert (first[below_caption] != last[below_caption]).any()
    draw("Catch-bsuite", 1, path)
    assert Image.open(path).n_frames == 1


def frame_of(path, index):
    picture = Image.open(path)
    picture.seek(index)
    return picture.convert("L")


def test_long_episodes_of_classic_control_make_small_pictures(tmp_path):
    pytest.importorskip("pygame")
    path = tmp_path / "cartpole.gif"
    before = dict(os.environ)
    draw("CartPole-v1", 251, path, theta=np.linspace(-0.2, 0.2, 251))
    assert dict(os.environ) == before
    assert len(durations(path)) == 126
    assert path.stat().st_size < 1_000_000
    assert Image.open(path).size[0] == 400


def test_without_pygame_it_is_said_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(ValueError, match=r"trpo_jax\[pictures\]"):
        draw("CartPole-v1", 2, tmp_path / "cartpole.gif")


def test_what_has_no_picture_says_so():
    assert make_environment("DiscountingChain-bsuite").picture_suffix is None


def test_bodies_are_drawn_into_a_page(tmp_path):
    envs = pytest.importorskip("brax.envs")
    env = envs.get_environment("inverted_pendulum", backend="spring")
    num_steps, num_bodies = 2500, 2
    rotations = np.tile(np.array([1.0, 0, 0, 0]), (num_steps, num_bodies, 1))
    positions = np.zeros((num_steps, num_bodies, 3))
    positions[:, 0, 0] = np.arange(num_steps)
    poses = types.SimpleNamespace(pos=positions, rot=rotations)
    states = types.SimpleNamespace(
        pipeline_state=types.SimpleNamespace(x=poses),
    )
    assert has_bodies(env, states)
    draw_bodies(env, states, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    packed = re.search(r'var system = "([^"]+)"', page)[1]
    system = json.loads(zlib.decompress(base64.b64decode(packed)))
    shown = [pose["pos"][0][0] for pose in system["states"]["x"]]
    assert shown == list(range(0, num_steps, 3))[-len(shown) :]
    assert len(shown) == 834
    np.testing.assert_allclose(system["opt"]["timestep"], 3 * env.dt, rtol=1e-5)


def test_what_has_no_bodies_cannot_be_drawn():
    envs = pytest.importorskip("brax.envs")
    fast = envs.get_environment("fast")
    state = jax.eval_shape(fast.reset, jax.random.PRNGKey(0))
    assert not has_bodies(fast, state)
    with_ellipsoids = types.SimpleNamespace(
        mj_model=types.SimpleNamespace(geom_type=np.array([0, 4]))
    )
    assert not has_bodies(with_ellipsoids, types.SimpleNamespace(data=None))
