"""Results of a sweep, made without training."""

import numpy as np
from tiny import CONFIG

from trpo_jax.sweeps.cell_groups import METRICS
from trpo_jax.sweeps.result import SweepResult
from trpo_jax.training import make_settings

FIELDS = {"max_kl": [0.001, 0.1], "hidden_sizes": [(4,), (8, 8)]}
RETURNS = np.array([[1.0, 3.0], [10.0, 14.0], [np.nan, 50.0], [5.0, 5.0]])


def make_result(
    fields=FIELDS,
    returns=RETURNS,
    rungs=(0, 0, 0, 0),
    updates=40,
    config=CONFIG,
    costs=None,
):
    """Return a result of 40 updates, of which each setting has made some."""
    settings = make_settings(config, fields)
    shape = (*returns.shape, 40)
    made = np.broadcast_to(updates, len(settings))
    is_made = np.arange(40) < made[:, None, None]
    metrics = {
        name: np.where(is_made, np.ones(shape, absent.dtype), absent)
        for name, absent in METRICS.items()
    }
    cost_sums = metrics.pop("episode_cost_sum")
    if costs is not None:
        metrics["episode_cost_sum"] = cost_sums[..., None] * costs[:, :, None]
    metrics["episode_return_sum"] *= returns[..., None].astype(np.float32)
    return SweepResult(
        settings=tuple(settings),
        swept=tuple(fields),
        returns=returns,
        costs=costs,
        unended=np.zeros(returns.shape, int),
        updates=made.astype(int),
        rungs=np.array(rungs),
        metrics=metrics,
        best_state=None,
        folder=None,
    )
