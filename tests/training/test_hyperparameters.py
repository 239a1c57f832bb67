import re

import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax import (
    TRPOConfig,
)

pytestmark = pytest.mark.usefixtures("no_shape_checks")

SMALL = {"num_envs": 4, "rollout_length": 6, "total_timesteps": 48}


@pytest.mark.parametrize(
    ("field", "value", "error", "advice"),
    [
        ("max_kl", 0.0, ValueError, "a finite number above 0"),
        ("max_kl", -0.01, ValueError, "a finite number above 0"),
        ("max_kl", float("nan"), ValueError, "a finite number above 0"),
        ("max_kl", "0.01", TypeError, "max_kl is the str '0.01'; write one number"),
        ("damping", -1e-9, ValueError, "0 or more"),
        ("discount", 1.01, ValueError, "write one in [0, 1]"),
        ("discount", -0.1, ValueError, "write one in [0, 1]"),
        ("gae_lambda", 1.01, ValueError, "write one in [0, 1]"),
        ("gae_lambda", -0.1, ValueError, "write one in [0, 1]"),
        ("critic_learning_rate", -1e-3, ValueError, "0 or more"),
        ("max_kl", float("inf"), ValueError, "a finite number above 0"),
        ("damping", float("inf"), ValueError, "0 or more"),
        ("critic_learning_rate", float("inf"), ValueError, "0 or more"),
        ("critic_max_kl", 0.0, ValueError, "a finite number above 0"),
        ("critic_max_kl", -1.0, ValueError, "a finite number above 0"),
        ("critic_max_kl", float("inf"), ValueError, "a finite number above 0"),
        ("critic_max_kl", np.ones(2), TypeError, "vmap train(config, hyper"),
        ("critic_damping", -1e-9, ValueError, "0 or more"),
        ("critic_damping", float("nan"), ValueError, "0 or more"),
        ("critic_damping", np.ones(2), TypeError, "vmap train(config, hyper"),
        ("critic_learning_rate", np.ones(2), TypeError, "vmap train(config, hyper"),
        ("max_kl", True, TypeError, "max_kl is the bool True; write one number"),
        ("max_kl", np.array([0.01, 0.02]), TypeError, "vmap train(config, hyper"),
        ("max_kl", jnp.array([0.01, 0.02]), TypeError, "vmap train(config, hyper"),
    ],
)
def test_a_bad_hyperparameter_is_refused_with_advice(
    field, value, error, advice, no_shape_checks
):
    with pytest.raises(error, match=re.escape(advice)):
        TRPOConfig(**SMALL, **{field: value})


@pytest.mark.parametrize(
    "floats",
    [
        {"discount": 1.0, "gae_lambda": 0.0, "damping": 0.0},
        {"discount": 0.0, "gae_lambda": 1.0, "critic_damping": 0.0},
        {"critic_max_kl": 1e6, "critic_damping": 1},
        {"max_kl": np.float32(0.02), "damping": 1},
    ],
)
def test_the_ends_of_the_ranges_are_allowed(floats, no_shape_checks):
    config = TRPOConfig(**SMALL, **floats)
    assert config.hyperparameters == config.hyperparameters._replace(**floats)


def test_a_first_order_fit_may_stand_still():
    config = TRPOConfig(**SMALL, critic_fit="first_order", critic_learning_rate=0.0)
    assert config.hyperparameters.critic_learning_rate == 0
