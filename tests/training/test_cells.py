import dataclasses

import jax
import numpy as np
import pytest
from compiling import fast_jit
from tiny import CONFIG

from trpo_jax.training import make_cells, make_settings, program_of, train_cells
from trpo_jax.training.seeds import run_keys

SHORT = dataclasses.replace(CONFIG, total_timesteps=16 * 4)


def settings_of(num_seeds):
    config = dataclasses.replace(SHORT, num_seeds=num_seeds)
    return make_settings(config, {"max_kl": [0.01, 0.1]})


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_cells_have_the_keys_and_floats_of_single_runs(num_seeds):
    settings = settings_of(num_seeds)
    cells = make_cells(settings)
    assert cells.keys.shape == (2 * num_seeds,)
    for index, setting in enumerate(settings):
        at = np.arange(index * num_seeds, (index + 1) * num_seeds)
        keys = cells.take(at).keys
        expected = run_keys(setting).reshape(num_seeds)
        assert (keys == expected).all()
    np.testing.assert_array_equal(
        cells.hyperparameters.max_kl, np.repeat(np.float32([0.01, 0.1]), num_seeds)
    )
    assert cells.hyperparameters.max_kl.dtype == np.float32


def test_cells_are_trained_as_single_runs_to_rounding():
    """One program under `jit`; another product of matrices adds in another order."""
    settings = settings_of(2)
    cells, program = make_cells(settings), program_of(settings[0])
    state, metrics = fast_jit(train_cells)(program, cells)
    assert metrics.update.kl.shape == (4, 4)
    train = fast_jit(train_cells)
    for index in (1, 2):
        alone_state, alone = train(program, cells.take(np.array([index])))
        for one, other in zip(
            jax.tree.leaves((metrics.update.kl, metrics.critic_loss, state.params)),
            jax.tree.leaves((alone.update.kl, alone.critic_loss, alone_state.params)),
            strict=True,
        ):
            np.testing.assert_allclose(one[index], other[0], rtol=1e-3, atol=1e-5)
