"""Needs a process of its own: the number of devices is fixed when JAX starts."""

import os
import subprocess
import sys

PROGRAM = """
import dataclasses

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import trpo_jax

config = trpo_jax.TRPOConfig(
    num_envs=4, rollout_length=16, total_timesteps=192, hidden_sizes=(8,)
)
first_order = dataclasses.replace(
    config, critic_fit="first_order", critic_epochs=1, critic_minibatches=1
)
axis_types = (jax.sharding.AxisType.Auto,)
mesh = jax.make_mesh((2,), ("devices",), axis_types=axis_types)
replicated = NamedSharding(mesh, PartitionSpec())
split = NamedSharding(mesh, PartitionSpec("devices"))

step = jax.jit(trpo_jax.step)


def check(config):
    one = trpo_jax.init(config, jax.random.key(0))
    two = jax.device_put(one, replicated)
    two = two._replace(rollout=jax.device_put(one.rollout, split))
    for _ in range(config.num_updates):
        one, expected = step(config, one)
        two, metrics = step(config, two)
        np.testing.assert_allclose(metrics.update.kl, expected.update.kl, rtol=1e-3)
        assert metrics.update.status == trpo_jax.UpdateStatus.ACCEPTED
    assert two.rollout.observation.sharding.is_equivalent_to(split, 2)

    trained = jax.tree.leaves((one.params, one.critic_params))
    sharded = jax.tree.leaves((two.params, two.critic_params))
    for expected, parameter in zip(trained, sharded, strict=True):
        np.testing.assert_allclose(parameter, expected, atol=1e-4)
        first, second = (np.asarray(one.data) for one in parameter.addressable_shards)
        np.testing.assert_array_equal(first, second)


check(config)
check(first_order)
print("replicas agree")
"""


def test_environments_split_over_two_devices_train_as_on_one():
    flags = "--xla_force_host_platform_device_count=2"
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert result.returncode == 0, result.stderr
    assert "replicas agree" in result.stdout
