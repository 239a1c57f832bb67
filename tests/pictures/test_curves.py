import json

import numpy as np
import pytest
from recorded import line, write_run

from trpo_jax.pictures.curves import (
    metric_curve,
    read_run,
    return_curve,
    trailing_mean,
)

# t₀.₉₇₅ of 1, 2 and 3 degrees of freedom, from a printed table.
T = {1: 12.706, 2: 4.303, 3: 3.182}


@pytest.mark.parametrize("window", [1, 3, 50])
def test_a_trailing_mean_is_a_loop_that_passes_over_nan(window):
    values = np.random.default_rng(0).normal(size=(2, 20))
    values[0, [0, 1, 5, 6, 7, 12]] = np.nan
    expected = np.full_like(values, np.nan)
    for seed, update in np.ndindex(values.shape):
        latest = values[seed, max(0, update - window + 1) : update + 1]
        if np.isfinite(latest).any():
            expected[seed, update] = np.nanmean(latest)
    np.testing.assert_allclose(trailing_mean(values, window), expected, atol=1e-12)


def test_curves_of_seeds_have_their_mean_and_interval(tmp_path):
    lines = [line(1, (None, None, None)), line(2, (1, 2, 3)), line(3, (5.0, None, 9))]
    run = read_run(write_run(tmp_path / "run", lines, num_seeds=3))
    steps, mean, half_width = return_curve(run)
    np.testing.assert_array_equal(steps, [1000, 2000, 3000])
    np.testing.assert_allclose(mean, [np.nan, 2, 7])
    expected = [np.nan, T[2] / np.sqrt(3), T[1] * np.sqrt(8) / np.sqrt(2)]
    np.testing.assert_allclose(half_width, expected, rtol=1e-3)
    _, mean, half_width = metric_curve(run, "entropy")
    np.testing.assert_allclose(mean, 0.6)
    np.testing.assert_allclose(half_width, T[2] * 0.1 / np.sqrt(3), rtol=1e-3)


def test_a_single_seed_has_no_interval(tmp_path):
    run = read_run(write_run(tmp_path / "run", [line(1), line(2, (None,)), line(3)]))
    for curve in (return_curve(run), metric_curve(run, "kl")):
        assert np.isnan(curve.half_width).all()
    np.testing.assert_allclose(return_curve(run).mean, [20, np.nan, 20])


def test_each_seed_is_smoothed_by_itself(tmp_path):
    """So a seed in which no episode ended keeps what it had."""
    lines = [line(1, (0, 10)), *(line(update, (0, None)) for update in range(2, 51))]
    run = read_run(write_run(tmp_path / "run", lines, num_seeds=2))
    assert run.window == 2
    np.testing.assert_allclose(return_curve(run).mean[:3], [5, 5, 0])


def test_a_torn_last_line_does_not_count(tmp_path):
    whole = json.dumps(line(3))
    for number, torn in enumerate(('{"update": 3, "env_', whole, whole + "\n")):
        run = read_run(write_run(tmp_path / str(number), [line(1), line(2)], torn=torn))
        assert len(run.updates) == (3 if torn.endswith("\n") else 2)


def test_of_an_update_that_is_there_twice_the_last_counts(tmp_path):
    lines = [line(1, (1.0,)), line(2, (2.0,)), line(3, (3.0,)), line(2, (7.0,))]
    run = read_run(write_run(tmp_path / "run", lines))
    np.testing.assert_allclose(return_curve(run).mean, [1, 7, 3])
