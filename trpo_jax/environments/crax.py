"""Adapter to CRAX, whose environments have brax's form and a cost."""

from trpo_jax.environments.brax import BraxEnvironment
from trpo_jax.environments.suites import check_known, made_once
from trpo_jax.errors import UsageError
from trpo_jax.extras import import_extra

_LEVELS = ("1", "2", "3")


@made_once
def make_crax(
    name: str, level: str = "1", episode_length: int = 1000
) -> BraxEnvironment:
    """Return an environment of CRAX, with its default physics.

    The same arguments give the same object, so that nothing compiles twice.

    Args:
        name: Its name in CRAX, such as "safe_goal_point" or "safe_velocity_hopper".
        level: Its difficulty: "1", "2" or "3". Those that have no levels are the same
            in all of them.
        episode_length: Steps after which an episode is cut.

    Raises:
        UsageError: If CRAX is not installed, or has no such environment (the message
            names the nearest) or level.
    """
    envs = import_extra("crax.envs", extra="crax")
    advice = "Register your own by crax.envs.register_environment(name, class)."
    check_known(name, envs._envs, "crax", advice)  # the only list that CRAX has
    if level not in _LEVELS:
        raise UsageError(
            f"no level {level!r} in CRAX. Write one of {', '.join(_LEVELS)}, as "
            f"'crax/{name}/2'."
        )
    env = envs.get_environment(name, level=int(level))
    return BraxEnvironment(env, episode_length, f"crax/{name}/{level}")
