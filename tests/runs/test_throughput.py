import jax
import pytest
from tiny import CONFIG

import trpo_jax
from trpo_jax import measure_throughput


def test_throughput_is_in_steps_of_all_seeds():
    row = measure_throughput(CONFIG, seconds=0.2)
    low, high = row["steps_per_second_spread"]
    assert 0 < low <= row["steps_per_second"] <= high
    # One update of one seed is 16 steps; both are medians of the same chunks.
    assert row["steps_per_second"] * row["seconds_per_update"] == pytest.approx(
        16, rel=0.05
    )
    assert row["device"] == jax.devices()[0].device_kind
    assert row["trpo_jax"] == trpo_jax.version.__version__


@pytest.mark.usefixtures("no_shape_checks")
def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match=r"seconds=0\.01 is too short.*write 5"):
        measure_throughput(CONFIG, seconds=0.01)
    with pytest.raises(TypeError, match="config is of type str"):
        measure_throughput("CartPole-v1")
