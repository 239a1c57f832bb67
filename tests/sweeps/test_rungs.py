import numpy as np
import pytest

from trpo_jax.sweeps.rungs import (
    best_first,
    check_halving,
    excess_over_limits,
    rung_ends,
    survivors,
)


def test_rungs_end_after_their_fractions():
    assert rung_ends(100, ()) == [100]
    assert rung_ends(100, (0.25, 0.5)) == [25, 50, 100]
    assert rung_ends(10, (1 / 3,)) == [3, 10]


@pytest.mark.parametrize(("updates", "halving"), [(4, (0.01,)), (4, (0.5, 0.51))])
def test_a_rung_without_an_update_is_refused(updates, halving):
    with pytest.raises(ValueError, match="leaves a rung without an update, of 4"):
        rung_ends(updates, halving)


@pytest.mark.parametrize(
    ("halving", "eta", "message"),
    [
        ((0.5, 0.25), 2, r"does not increase; write \(0.25, 0.5\)"),
        ((0.5, 1.0), 2, "1.0 is not a fraction of the updates"),
        ((0.5,), 1, "eta=1; write a number above 1"),
    ],
)
def test_fractions_that_make_no_rungs_are_refused(halving, eta, message):
    with pytest.raises(ValueError, match=message):
        check_halving(halving, eta)


def test_one_fraction_alone_is_refused(no_shape_checks):
    with pytest.raises(TypeError, match=r"halving is the float 0\.5; write fractions"):
        check_halving(0.5, 2.0)


def test_the_best_half_goes_on_rounded_up():
    returns = np.array([[1.0, 1], [5, 5], [3, 3], [np.nan, 9], [4, 4]])
    everyone = np.ones(5, bool)
    kept = survivors(returns, everyone, 2.0)
    assert kept.tolist() == [False, True, True, False, True]
    assert survivors(returns, kept, 2.0).tolist() == [False, True, False, False, True]
    assert survivors(returns, everyone, 100.0).sum() == 1


def test_the_order_is_by_rung_then_mean_and_what_is_not_known_last():
    returns = np.array([[9.0, 9], [1, 1], [2, 2], [np.nan, 9]])
    assert best_first(returns, np.array([0, 1, 1, 1])).tolist() == [2, 1, 3, 0]


def test_settings_above_their_limits_come_after_all_that_keep_them():
    returns = np.array([[9.0], [1], [2], [np.nan], [8]])
    excess = np.array([0.2, 0, 0, 0, 0.1])
    rungs = np.zeros(5, int)
    assert best_first(returns, rungs, excess).tolist() == [2, 1, 4, 0, 3]
    kept = survivors(returns, np.ones(5, bool), 2.0, excess)
    assert kept.tolist() == [False, True, True, False, True]


def test_excess_is_relative_to_the_limits():
    """Summed over costs; absolute for a limit of 0, and of the mean over seeds."""
    costs = np.array([[[3.0, 1], [1, 3]], [[9, 9], [9, 9]], [[np.nan, 0], [1, 0]]])
    limits = [(1.0, 0.0), None, (1.0, 1.0)]
    np.testing.assert_array_equal(excess_over_limits(costs, limits), [1 + 2, 0, np.nan])
