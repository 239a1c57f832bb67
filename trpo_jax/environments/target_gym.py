"""Adapter to TargetGym, whose environments have gymnax's form."""

from trpo_jax.environments.gymnax import GymnaxEnvironment
from trpo_jax.environments.suites import check_known, made_once
from trpo_jax.extras import import_extra


@made_once
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
    registry = import_extra("target_gym.registry", extra="target-gym")
    advice = "For your own write env=(environment, params)."
    check_known(name, registry.REGISTRY, "target_gym", advice)
    specification = registry.get(name)
    return GymnaxEnvironment(specification.make_env(), specification.make_test_params())
