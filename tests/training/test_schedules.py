import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from compiling import fast_jit

from trpo_jax import TRPOConfig, init, step
from trpo_jax.training.schedules import make_schedule

pytestmark = pytest.mark.usefixtures("no_shape_checks")

SMALL = {"num_envs": 4, "rollout_length": 6, "total_timesteps": 48}


@pytest.mark.parametrize(
    "name", ["max_kl", "entropy_coefficient", "critic_learning_rate"]
)
@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", (1 + np.cos(np.pi * np.arange(4) / 4)) / 2),
        (optax.exponential_decay(1.0, 1, 0.5), [1, 0.5, 0.25, 0.125]),
    ],
)
def test_a_schedule_is_a_factor_of_the_update(name, schedule, factors):
    config = TRPOConfig(
        **{**SMALL, "total_timesteps": 4 * 24},
        critic_fit="first_order",
        **{f"{name}_schedule": schedule},
    )
    factor_fn = make_schedule(getattr(config, f"{name}_schedule"), config.num_updates)
    made = [factor_fn(update) for update in range(4)]
    np.testing.assert_allclose(made, factors, rtol=1e-5)


def test_an_update_takes_the_scheduled_entropy_coefficient():
    """Half of 0.5 is 0.25, bit for bit, and 0.5 is not."""
    config = dataclasses.replace(
        tiny.CONFIG,
        max_kl_schedule="constant",
        entropy_coefficient_schedule=lambda updates: jnp.where(updates == 0, 0.5, 1),
    )
    start = init(config, jax.random.key(0))
    run = fast_jit(functools.partial(step, config))

    def trained(coefficient, updates):
        hyperparameters = start.hyperparameters._replace(
            entropy_coefficient=jnp.float32(coefficient)
        )
        state, _ = run(
            start._replace(hyperparameters=hyperparameters, updates=jnp.int32(updates))
        )
        return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(state.params)])

    halved = trained(0.5, updates=0)
    np.testing.assert_array_equal(halved, trained(0.25, updates=1))
    assert not np.array_equal(halved, trained(0.5, updates=1))
