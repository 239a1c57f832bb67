"""Pictures: curves and diagnostics of runs, sweeps, and rendered episodes."""

from trpo_jax.pictures.plots import plot_runs
from trpo_jax.pictures.render import RenderedEpisode, render_episode
from trpo_jax.pictures.sweep_plots import plot_sweep

__all__ = ["RenderedEpisode", "plot_runs", "plot_sweep", "render_episode"]
