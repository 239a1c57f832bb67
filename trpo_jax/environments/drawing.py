"""Pictures of episodes, drawn by the renderers that come with the suites.

They need no screen. States are NumPy arrays, leaves [T, …].
"""

import copy
import operator
import os
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from jaxtyping import Float, PyTree

from trpo_jax.extras import import_extra

# Gymnax draws these through gymnasium.
_CLASSIC_CONTROL = (
    "Acrobot-v1",
    "CartPole-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Pendulum-v1",
)

DRAWN_BY_GYMNAX = (
    *_CLASSIC_CONTROL,
    "Asterix-MinAtar",
    "Breakout-MinAtar",
    "Catch-bsuite",
    "FourRooms-misc",
    "Freeway-MinAtar",
    "MetaMaze-misc",
    "PointRobot-misc",
    "Pong-misc",
    "Seaquest-MinAtar",
    "SpaceInvaders-MinAtar",
)
"""Ids of gymnax's environments that can be drawn."""

# A frame takes 10 to 50 ms to draw, and 1 to 4 kB in the file.
_MOST_FRAMES = 250
_MILLISECONDS = {True: 50, False: 100}  # per frame, classic control or not, as gymnax
_LAST_FRAME_MILLISECONDS = 1500
_WIDTH, _HEIGHT, _CAPTION_HEIGHT, _DPI = 400, 320, 24, 80
# In each frame, with a palette of its own: a colour may first appear late.
_NUM_COLORS = 32

# The viewer does not interpolate, and a state takes only 100 to 400 bytes.
_MOST_POSES = 1000
_ELLIPSOID = 4  # MuJoCo's geom type; the only one that brax's viewer cannot draw

# Keep pygame from opening a screen or a sound device, and from printing.
_NO_DEVICES = {
    "SDL_VIDEODRIVER": "dummy",
    "SDL_AUDIODRIVER": "dummy",
    "PYGAME_HIDE_SUPPORT_PROMPT": "1",
}


def shown_steps(num_steps: int, at_most: int) -> list[int]:
    """Return the steps to show: every n-th up to the last, n as small as fits."""
    every = -(-num_steps // at_most)
    return list(range((num_steps - 1) % every, num_steps, every))


def draw_gymnax(
    env: Any,
    env_params: Any,
    states: PyTree,
    returns: Float[np.ndarray, " T"],
    path: Path,
) -> None:
    """Draw an episode of gymnax into a GIF of at most 250 frames.

    A longer episode is shown at every n-th step, at the same frame rate. The caption
    has the step and the return after it.

    Args:
        env: An environment of `DRAWN_BY_GYMNAX`.
        env_params: Its parameters.
        states: Its states, leaves [T, …].
        returns: The return after each step, float32[T].
        path: The file to write.

    Raises:
        UsageError: If pygame, which draws classic control, is not installed.
    """
    from PIL import Image, ImageDraw, ImageFont

    steps = shown_steps(len(returns), _MOST_FRAMES)
    shown = [jax.tree.map(operator.itemgetter(step), states) for step in steps]
    is_classic = env.name in _CLASSIC_CONTROL
    drawn = (_classic_control if is_classic else _by_visualizer)(env, env_params, shown)
    font = ImageFont.load_default(size=13)
    frames = []
    for step, pixels in zip(steps, drawn, strict=True):
        picture = Image.fromarray(pixels)
        picture.thumbnail((_WIDTH, _HEIGHT))
        size = (_WIDTH, _CAPTION_HEIGHT + picture.height)
        frame = Image.new("RGB", size, "white")
        frame.paste(picture, ((_WIDTH - picture.width) // 2, _CAPTION_HEIGHT))
        caption = f"{env.name}   step {step + 1:,}   return {returns[step]:,.1f}"
        ImageDraw.Draw(frame).text((6, 4), caption, fill="black", font=font)
        frames.append(frame.quantize(_NUM_COLORS, dither=Image.Dither.NONE))
    durations = [_MILLISECONDS[is_classic]] * (len(frames) - 1)
    frames[0].save(
        path,
        save_all=True,
        append_images=frames[1:],
        duration=[*durations, _LAST_FRAME_MILLISECONDS],
        loop=0,
    )


def has_bodies(env: Any, state: PyTree) -> bool:
    """Return whether `draw_bodies` can draw an environment in brax's form.

    Args:
        env: An environment of brax or MuJoCo Playground.
        state: One of its states, or its `jax.ShapeDtypeStruct`s.
    """
    model = getattr(env, "sys", getattr(env, "mj_model", None))
    is_posed = hasattr(state, "pipeline_state") or hasattr(state, "data")
    return model is not None and is_posed and _ELLIPSOID not in set(model.geom_type)


def draw_bodies(env: Any, states: PyTree, path: Path) -> None:
    """Write a page that plays an episode in brax's three-dimensional viewer.

    The page holds at most 1,000 states, and loads the viewer from the internet when it
    is opened.

    Args:
        env: An environment of brax or MuJoCo Playground.
        states: Its states, leaves [T, …].
        path: The file to write.

    Raises:
        UsageError: If brax is not installed.
    """
    html = import_extra("brax.io.html", extra="brax")
    if hasattr(env, "sys"):
        system, poses = env.sys, states.pipeline_state.x
        positions, rotations = poses.pos, poses.rot
    else:
        # A copy: the loader writes into it. Body 0 is the world, which brax leaves out.
        mjcf = import_extra("brax.io.mjcf", extra="brax")
        system = mjcf.load_model(copy.deepcopy(env.mj_model))
        positions, rotations = states.data.xpos[:, 1:], states.data.xquat[:, 1:]
    steps = shown_steps(len(positions), _MOST_POSES)
    every = steps[1] - steps[0] if len(steps) > 1 else 1
    system = system.tree_replace({"opt.timestep": env.dt * every})
    # The viewer reads only the poses of a state.
    transform = import_extra("brax.base", extra="brax").Transform
    trajectory = [
        types.SimpleNamespace(x=transform(positions[step], rotations[step]))
        for step in steps
    ]
    path.write_text(html.render(system, trajectory, colab=False), "utf-8")


def _classic_control(
    env: Any, env_params: Any, states: list[PyTree]
) -> Iterator[np.ndarray]:
    """Yield pictures uint8[H, W, 3], as `gymnax.visualize.vis_gym` makes them.

    One gymnasium environment draws all of them: `vis_gym` makes one for each, which
    takes ten times as long.
    """
    with mock.patch.dict(os.environ, _NO_DEVICES):
        import_extra("pygame", extra="pictures")
        import gymnasium
        from gymnax.visualize import vis_gym

        twin: Any = gymnasium.make(env.name, render_mode="rgb_array").unwrapped
        try:
            vis_gym.set_gym_params(twin, env.name, env_params)
            for state in states:
                twin.state = vis_gym.get_gym_state(state, env.name)
                if hasattr(state, "last_u"):  # the pendulum's torque, an arrow
                    twin.last_u = np.asarray(state.last_u, np.float64)
                yield twin.render()
        finally:
            twin.close()


def _by_visualizer(
    env: Any, env_params: Any, states: list[PyTree]
) -> Iterator[np.ndarray]:
    """Yield pictures uint8[H, W, 3], as `gymnax.visualize.Visualizer` makes them."""
    import matplotlib.pyplot as plt
    from gymnax.visualize import Visualizer
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with plt.ioff():
        visualizer = Visualizer(env, env_params, states)
        figure = visualizer.fig
        try:
            figure.set_dpi(_DPI)
            figure.set_size_inches(_WIDTH / _DPI, _HEIGHT / _DPI)
            visualizer.init()
            figure.subplots_adjust(0.01, 0.01, 0.99, 0.99)
            canvas = FigureCanvasAgg(figure)
            for index in range(len(states)):
                visualizer.update(index)
                visualizer.ax.set_title("")  # gymnax's counts frames, not steps
                canvas.draw()
                yield np.array(canvas.buffer_rgba())[..., :3]
        finally:
            plt.close(figure)
