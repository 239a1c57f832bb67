import numpy as np

from trpo_jax.runs.intervals import mean_interval

# t₀.₉₇₅ of 1, 2 and 3 degrees of freedom, from a printed table.
T = {1: 12.706, 2: 4.303, 3: 3.182}


def test_the_interval_of_a_mean_is_students():
    by_seed = np.array(
        [
            [1.0, 1.0, np.nan, np.nan],
            [2.0, np.nan, 5.0, np.nan],
            [3.0, 4.0] + [np.nan] * 2,
        ]
    )
    mean, half_width = mean_interval(by_seed)
    np.testing.assert_allclose(mean, [2, 2.5, 5, np.nan])
    expected = [T[2] / np.sqrt(3), T[1] * np.sqrt(4.5) / np.sqrt(2), np.nan, np.nan]
    np.testing.assert_allclose(half_width, expected, rtol=1e-3)
