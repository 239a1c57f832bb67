"""Needs a process of its own: the number of devices is fixed when JAX starts."""

import os
import pathlib
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).with_name("on_eight_devices.py")


@pytest.mark.parametrize("some", ["exchange", "other"])
def test_eight_devices_share_the_work_and_agree(some):
    chosen = "not exchange" if some == "other" else some
    flags = "--xla_force_host_platform_device_count=8"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-k", chosen, str(TESTS)],
        env={
            **os.environ,
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert result.returncode == 0, result.stdout[-5000:]
