import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax.trust_region import CGStatus, UpdateStatus

STATUSES = [*UpdateStatus, *CGStatus]


@pytest.mark.parametrize("status", STATUSES, ids=repr)
@pytest.mark.parametrize("make", [jnp.int32, np.int32, np.asarray, int])
def test_a_scalar_of_any_kind_names_its_status(status, make):
    assert type(status)(make(status)) is status


@pytest.mark.parametrize("value", [99, jnp.int32(99), jnp.float32(0.5), 0.5, "0", None])
def test_what_is_no_status_is_refused(value):
    with pytest.raises(ValueError, match="is not a valid UpdateStatus"):
        UpdateStatus(value)
