"""The rules of damping and radius, case by case."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax.trust_region import (
    UpdateInfo,
    UpdateStatus,
    adapt_damping,
    adapt_radius,
)

REJECTED = [UpdateStatus.KL_EXCEEDED, UpdateStatus.NO_IMPROVEMENT]
WITHOUT_A_STEP = [
    UpdateStatus.NON_FINITE,
    UpdateStatus.ZERO_GRADIENT,
    UpdateStatus.NON_POSITIVE_CURVATURE,
]


def evidence(kl=1.0, gain=1.0, error=0.1, status=UpdateStatus.ACCEPTED):
    """Return that of a step with a predicted KL and gain of 1, from L = 5."""
    nothing = UpdateInfo(*(jnp.zeros(()) for _ in UpdateInfo._fields))
    info = nothing._replace(
        status=jnp.int32(status), surrogate_before=5.0, surrogate_after=5.0
    )
    if status != UpdateStatus.ACCEPTED:
        return info
    return info._replace(
        kl=kl,
        kl_predicted=1.0,
        surrogate_after=5.0 + gain,
        surrogate_standard_error=error,
        expected_improvement=1.0,
    )


DAMPING = [
    *((evidence(kl=kl), 1 / 1.5) for kl in (0.1, 1.0, 1.2)),
    *((evidence(kl=kl), 1.0) for kl in (1.3, 1.5)),
    *((evidence(kl=kl), 1.5) for kl in (1.6, 10.0)),
    *((evidence(status=status), 1.5) for status in REJECTED),
    *((evidence(status=status), 1.0) for status in WITHOUT_A_STEP),
    (evidence(kl=np.nan), 1.0),
]
RADIUS = [
    *((evidence(kl=kl), 1.5) for kl in (0.8, 1.0, 1.2)),
    *((evidence(kl=kl), 1.0) for kl in (0.7, 1.3)),
    (evidence(gain=0.8), 1.5),
    (evidence(gain=0.7), 1.0),
    (evidence(gain=0.7, error=0.8), 1 / 1.5),
    (evidence(gain=1.0, error=1.1), 1 / 1.5),
    *((evidence(status=status), 1 / 1.5) for status in REJECTED),
    *((evidence(status=status), 1.0) for status in WITHOUT_A_STEP),
    (evidence(gain=np.nan), 1.0),
]


@pytest.mark.parametrize(
    ("adapt_fn", "cases"), [(adapt_damping, DAMPING), (adapt_radius, RADIUS)]
)
def test_every_case_has_its_factor(adapt_fn, cases):
    infos = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(c[0] for c in cases))
    expected = [factor for _, factor in cases]
    values = jax.vmap(lambda info: adapt_fn(0.2, info, low=0.01, high=1.0))(infos)
    np.testing.assert_allclose(values / 0.2, expected, rtol=1e-6)
    # Limits hold in either direction, also for a value outside of them.
    narrow = jax.vmap(lambda info: adapt_fn(0.2, info, low=0.19, high=0.21))(infos)
    np.testing.assert_allclose(narrow, np.clip(0.2 * np.array(expected), 0.19, 0.21))
