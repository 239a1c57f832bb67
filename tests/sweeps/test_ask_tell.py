import dataclasses
import math

import jax
import numpy as np
import pytest
from tiny import CONFIG

import trpo_jax
from trpo_jax.sweeps import ask_and_tell

optuna = pytest.importorskip("optuna")

SHORT = dataclasses.replace(CONFIG, total_timesteps=16 * 4, num_seeds=2)
FIELDS = {"max_kl": trpo_jax.log_uniform(0.001, 0.3), "damping": [0.1, 0.5]}
SIZES = {"num_batches": 2, "batch_size": 2, "num_episodes": 4}


def make_study(direction="maximize"):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.RandomSampler(seed=0)
    return optuna.create_study(direction=direction, sampler=sampler)


def test_a_study_is_told_the_returns_of_its_trials():
    study = make_study()
    ask_and_tell(SHORT, study, **SIZES, **FIELDS)
    assert len(study.trials) == 4
    for trial in study.trials:
        assert 0.001 <= trial.params["max_kl"] <= 0.3
        assert trial.params["damping"] in (0.1, 0.5)
        assert math.isfinite(trial.value)
    # What was told is the return of the setting, as a run of its own has it.
    setting = dataclasses.replace(SHORT, **study.best_params)
    state = trpo_jax.train(setting).state
    key = jax.random.fold_in(jax.random.key(0), 1)
    returns = trpo_jax.evaluate(setting, state, key, 4)
    np.testing.assert_allclose(study.best_value, returns.mean(), rtol=0.05)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_envs": [1, 2]}, "num_envs is not traced.*search of its own"),
        ({"max_kl": []}, "max_kl has no values"),
        ({}, "no field to sweep over"),
    ],
)
def test_what_cannot_be_searched_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ask_and_tell(SHORT, make_study(), **SIZES, **fields)


def test_a_study_that_minimises_is_refused():
    with pytest.raises(ValueError, match=r'create_study\(direction="maximize"\)'):
        ask_and_tell(SHORT, make_study("minimize"), **SIZES, **FIELDS)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="asked in one process, not in 2; start one"):
        ask_and_tell(CONFIG, None, num_batches=1, batch_size=1)
