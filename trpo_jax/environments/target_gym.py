"""The adapter to TargetGym, whose environments have gymnax's form."""

import functools

import jax

from trpo_jax.environments.gymnax import GymnaxEnvironment
from trpo_jax.environments.suites import nearest
from trpo_jax.errors import UsageError
from trpo_jax.extras import import_extra


def make_target_gym(name: str) -> GymnaxEnvironment:
    """Return an environment of TargetGym, in the configuration that it is scored in.

    The same name gives the same object, so that nothing compiles twice. Parameters of
    your own come in as the pair env=(target_gym.Plane(), target_gym.PlaneParams(...)).

    Args:
        name: Its name in `target_gym.registry`, such as "plane" or "cstr".

    Raises:
        ValueError: If TargetGym is not installed or has no such environment (the
            message names the nearest).
    """
    # Now, also where a program is being traced: environments hold arrays of their own.
    with jax.ensure_compile_time_eval():
        return _make(name)


@functools.cache
def _make(name: str) -> GymnaxEnvironment:
    registry = import_extra("target_gym.registry", extra="target-gym")
    if name not in registry.REGISTRY:
        near = nearest(name, registry.REGISTRY)
        raise UsageError(
            f"no environment {name!r} in target_gym. Did you mean {near}? Your own "
            "comes in as env=(environment, params)."
        )
    specification = registry.get(name)
    return GymnaxEnvironment(specification.make_env(), specification.make_test_params())
