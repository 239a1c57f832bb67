"""Pictures: learning curves and diagnostics of runs, and rendered episodes."""

from trpo_jax.pictures.plots import plot_runs
from trpo_jax.pictures.render import RenderedEpisode, render_episode

__all__ = ["RenderedEpisode", "plot_runs", "render_episode"]
