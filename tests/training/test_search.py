import dataclasses

import numpy as np
import pytest

from trpo_jax.training import TRPOConfig
from trpo_jax.training.search import (
    PROGRAM_FIELDS,
    TRACED_FIELDS,
    log_uniform,
    make_settings,
    parse_range,
    program_of,
    uniform,
)

CONFIG = TRPOConfig(num_envs=2, rollout_length=8, total_timesteps=64)


def values_of(settings, *names):
    return [tuple(getattr(one, name) for name in names) for one in settings]


def test_lists_make_a_grid_whose_last_field_varies_fastest():
    settings = make_settings(CONFIG, {"max_kl": [0.01, 0.02], "num_envs": [1, 2]})
    expected = [(0.01, 1), (0.01, 2), (0.02, 1), (0.02, 2)]
    assert values_of(settings, "max_kl", "num_envs") == expected
    assert settings[1] == dataclasses.replace(CONFIG, max_kl=0.01)
    arrays = {"max_kl": np.array([0.01, 0.02]), "num_envs": np.array([1, 2])}
    assert make_settings(CONFIG, arrays) == settings


def test_draws_are_inside_their_intervals_and_repeatable():
    fields = {
        "max_kl": log_uniform(1e-4, 1),
        "gae_lambda": uniform(0.9, 1),
        "hidden_sizes": [(4,), (8, 8)],
    }
    settings = make_settings(CONFIG, fields, num_settings=200)
    assert make_settings(CONFIG, fields, num_settings=200) == settings
    others = make_settings(CONFIG, fields, num_settings=200, search_seed=1)
    assert not {*others} & {*settings}
    # More settings begin with the same ones.
    assert make_settings(CONFIG, fields, num_settings=20) == settings[:20]
    radii, fractions, sizes = zip(*values_of(settings, *fields), strict=True)
    assert 1e-4 <= min(radii) < 2e-4
    assert 0.5 < max(radii) <= 1
    # Uniform in the logarithm: half of them below the middle.
    assert 70 < np.sum(np.array(radii) < 1e-2) < 130
    assert 70 < np.sum(np.array(fractions) < 0.95) < 130
    assert {*sizes} == {(4,), (8, 8)}
    assert all(radius == float(f"{radius:.6g}") for radius in radii)


def test_every_field_is_traced_or_of_the_program_or_common():
    common = {"env", "seed", "num_seeds", "devices"}
    names = {field.name for field in dataclasses.fields(TRPOConfig)}
    assert {*TRACED_FIELDS} | {*PROGRAM_FIELDS} | common == names
    assert len(TRACED_FIELDS) + len(PROGRAM_FIELDS) + len(common) == len(names)


def test_settings_that_differ_in_floats_alone_share_a_program():
    fields = {"max_kl": [0.01, 0.02], "cg_iterations": [5, 10]}
    settings = make_settings(dataclasses.replace(CONFIG, num_seeds=3), fields)
    programs = [program_of(setting) for setting in settings]
    assert programs[0] == programs[2] != programs[1] == programs[3]
    assert programs[0].num_seeds == programs[0].devices == 1


@pytest.mark.parametrize("made", [log_uniform(0.001, 1), uniform(-2, 1e7)])
def test_a_range_is_written_as_it_is_made(made):
    assert parse_range(str(made)) == made
    assert parse_range(" log_uniform( 1e-3,1 )") == log_uniform(0.001, 1)
    assert parse_range("0.01") is None


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({}, {}, r"no field to sweep over; .*share one program: max_kl, .*num_envs"),
        ({"max_kl": []}, {}, "max_kl has no values; write at least one"),
        ({"maxkl": [1]}, {}, r"not a field.*Did you mean max_kl\?.*Traced fields"),
        ({"devices": [1, 2]}, {}, "devices is common to all settings; write it in"),
        ({"seed": [1, 2]}, {}, "seed is common to all settings; write num_seeds=8"),
        ({"env": ["CartPole-v1"]}, {}, "env is common to all settings; write a sweep"),
        ({"num_seeds": [1, 2]}, {}, "num_seeds is common to all settings; write one"),
        (
            {"max_kl": [0.01, 0.0]},
            {},
            r"max_kl=0\.0 does not make a run: max_kl",
        ),
        ({"max_kl": [0.01, 0.01]}, {}, "two settings are the same.*each value once"),
        ({"num_envs": uniform(1, 9)}, {}, "each value of num_envs compiles a program"),
        (
            {"max_kl": uniform(0, 1)},
            {},
            r"num_settings is missing, but max_kl=uniform\(0\.0, 1\.0\).*num_settings=",
        ),
        ({"max_kl": [0.1]}, {"num_settings": 3}, "these fields are a grid; leave it"),
        (
            {"max_kl": uniform(0.1, 1)},
            {"num_settings": 0},
            "num_settings=0 is not positive",
        ),
        (
            {"critic_learning_rate": [0.01]},
            {},
            "critic_learning_rate=0.01 is for critic_fit='first_order'",
        ),
    ],
)
def test_what_cannot_be_swept_is_refused_with_advice(fields, options, message):
    with pytest.raises(ValueError, match=message):
        make_settings(CONFIG, fields, **options)


@pytest.mark.parametrize("values", [0.01, "relu", None])
def test_what_is_not_a_list_is_refused(values):
    with pytest.raises(TypeError, match=r"write a list of values, as max_kl=\[...\]"):
        make_settings(CONFIG, {"max_kl": values})


def test_sizes_that_are_not_in_a_list_are_refused():
    with pytest.raises(TypeError, match=r"write hidden_sizes=\[\(64, 64\), \(128,\)\]"):
        make_settings(CONFIG, {"hidden_sizes": (64, 64)})


@pytest.mark.parametrize(
    ("make", "ends", "message"),
    [
        (uniform, (1, 0), r"uniform\(1, 0\) is empty.*lower end first"),
        (uniform, (0, float("inf")), "not finite"),
        (log_uniform, (0, 1), r"0 has no logarithm; .*uniform"),
        (log_uniform, (2, 1), "lower end first"),
    ],
)
def test_ends_that_make_no_interval_are_refused(make, ends, message):
    with pytest.raises(ValueError, match=message):
        make(*ends)


def test_ends_that_are_not_numbers_are_refused(no_shape_checks):
    with pytest.raises(TypeError, match=r"uniform: the str '1' is not a number"):
        uniform("1", 2)
    with pytest.raises(ValueError, match=r"not numbers; write uniform\(0.001, 1\)"):
        parse_range("uniform(a, 2)")
