"""Timing of what is saved; test_sweeps trains groups."""

import time

from trpo_jax.sweeps.group_training import _Timer


def test_progress_is_saved_once_in_so_many_minutes():
    timer = _Timer(0.0, active=True)
    assert timer(1)
    assert not _Timer(0.0, active=False)(1)
    assert not _Timer(time.monotonic() + 60, active=True)(1)
