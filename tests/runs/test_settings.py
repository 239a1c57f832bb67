import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax import RunSettings

# Each with settings that follow the advice.
REFUSED = [
    ({"keep_last": 0}, "at least 1", {"keep_last": 1}),
    ({"keep_best": -1}, "at least 0", {"keep_best": 0}),
    ({"checkpoint_updates": 0}, "at least 1", {"checkpoint_updates": 1}),
    ({"evaluation_updates": 0}, "at least 1", {"evaluation_updates": None}),
    ({"interim_episodes": 0}, "at least 1", {"interim_episodes": 8}),
    (
        {"interim_episodes": 20},
        "write evaluation_updates too, as 10",
        {"interim_episodes": 20, "evaluation_updates": 10},
    ),
    ({"evaluation_episodes": True}, "a whole number", {"evaluation_episodes": 1}),
    ({"checkpoint_minutes": -1.0}, "write minutes, as 5", {"checkpoint_minutes": 5}),
    ({"checkpoint_minutes": "5"}, "or None", {"checkpoint_minutes": None}),
    (
        {"max_nonfinite_updates": 1.5},
        "the float 1.5; write a whole number",
        {"max_nonfinite_updates": 1},
    ),
    ({"tensorboard": "logs"}, "write True", {"tensorboard": True}),
    ({"wandb": True}, "write wandb='trpo_jax'", {"wandb": "trpo_jax"}),
]


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(("settings", "advice", "followed"), REFUSED)
def test_settings_that_make_no_sense_are_refused(settings, advice, followed):
    with pytest.raises((ValueError, TypeError), match=advice):
        RunSettings(**settings)
    RunSettings(**followed)


@pytest.mark.parametrize(
    "settings",
    [
        {"checkpoint_minutes": 1.0},
        {"checkpoint_updates": 10},
        {"keep_last": 1},
        {"keep_best": 2},
        {"tensorboard": True},
        {"wandb": "mine"},
    ],
)
def test_settings_about_files_need_a_folder(settings):
    with pytest.raises(ValueError, match="has no folder; write --folder"):
        RunSettings(**settings).check_without_folder()


def test_the_other_settings_need_none():
    RunSettings(
        evaluation_episodes=3,
        evaluation_updates=2,
        interim_episodes=1,
        max_nonfinite_updates=4,
    ).check_without_folder()
    names = {field.name for field in dataclasses.fields(RunSettings)}
    assert len(names) == 10


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("ten", [1e1, np.int64(10), np.array(10), jnp.int32(10)])
def test_numbers_may_have_any_type(ten):
    settings = RunSettings(
        checkpoint_updates=ten,
        max_nonfinite_updates=ten,
        checkpoint_minutes=np.float32(2.5),
        tensorboard=np.True_,
    )
    assert settings == RunSettings(
        checkpoint_updates=10,
        max_nonfinite_updates=10,
        checkpoint_minutes=2.5,
        tensorboard=True,
    )
    json.dumps(dataclasses.asdict(settings))  # as a run writes them
