import dataclasses

import numpy as np
import pytest
from tiny import CONFIG, init, lines

import trpo_jax
from trpo_jax.sweeps.best_setting import read_best, write_best
from trpo_jax.sweeps.cell_groups import METRICS
from trpo_jax.training.seeds import run_keys


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_a_setting_becomes_the_folder_of_a_run(num_seeds, tmp_path):
    config = dataclasses.replace(CONFIG, num_seeds=num_seeds)
    state = init(config, run_keys(config))
    shape = (num_seeds, config.num_updates)
    metrics = {name: np.ones(shape, like.dtype) for name, like in METRICS.items()}
    metrics["episode_return_sum"] *= 12
    metrics["episode_cost_sum"] = np.full((*shape, 2), [3.0, 6.0])
    metrics["episode_count"] *= 3
    folder = tmp_path / "best"
    assert read_best(folder, config, print) is None
    write_best(folder, config, state, metrics, num_episodes=4)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert trpo_jax.load_state(folder)[0] == config
    assert read_best(folder, config, print).updates.shape == state.updates.shape
    rows = lines(folder / "metrics.jsonl")
    assert [row["update"] for row in rows] == list(range(1, 41))
    assert rows[-1]["env_steps"] == 640
    assert rows[0]["episode_return"] == 4
    assert (rows[0]["episode_cost_0"], rows[0]["episode_cost_1"]) == (1, 2)
    assert ("kl_std" in rows[0]) == (num_seeds > 1)
    assert len(trpo_jax.plot_runs(folder)) == 2
