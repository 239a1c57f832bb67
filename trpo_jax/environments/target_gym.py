"""Adapter to TargetGym, whose environments have gymnax's form."""

import functools

import jax

from trpo_jax.environments.gymnax import GymnaxEnvironment
from trpo_jax.environments.suites import nearest, single_precision
from trpo_jax.errors import UsageError
from trpo_jax.extras import import_extra


@single_precision
def make_target_gym(name: str) -> GymnaxEnvironment:
    """Return an environment of TargetGym, in its test configuration.

    The same name gives the same object, so that nothing compiles twice. For parameters
    of your own write the pair env=(target_gym.Plane(), target_gym.PlaneParams(...)).

    Args:
        name: Its name in `target_gym.registry`, such as "plane" or "cstr".

    Raises:
        UsageError: If TargetGym is not installed or has no such environment (the
            message names the nearest).
    """
    # Now, also while a program is traced: environments hold arrays of their own.
    with jax.ensure_compile_time_eval():
        return _make(name)


@functools.cache
def _make(name: str) -> GymnaxEnvironment:
    registry = import_extra("target_gym.registry", extra="target-gym")
    if name not in registry.REGISTRY:
        near = nearest(name, registry.REGISTRY)
        raise UsageError(
            f"no environment {name!r} in target_gym. Did you mean {near}? For your own "
            "write env=(environment, params)."
        )
    specification = registry.get(name)
    return GymnaxEnvironment(specification.make_env(), specification.make_test_params())
