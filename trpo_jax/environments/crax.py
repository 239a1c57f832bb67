"""Adapter to CRAX, whose environments have brax's form and a cost."""

from trpo_jax.environments.brax import BraxEnvironment
from trpo_jax.environments.suites import check_known, made_once
from trpo_jax.errors import UsageError
from trpo_jax.extras import import_extra

_LEVELS = ("1", "2", "3")


@made_once
def make_crax(
    name: str, level: str | None = None, episode_length: int = 1000
) -> BraxEnvironment:
    """Return an environment of CRAX, with its default physics.

    The same arguments give the same object, so that nothing compiles twice.

    Args:
        name: Its name in CRAX, such as "safe_goal_point" or "safe_velocity_hopper".
        level: Its difficulty, "1", "2" or "3"; the first one if None.
        episode_length: Steps after which an episode is cut.

    Raises:
        UsageError: If CRAX is not installed, or has no such environment (the message
            names the nearest) or level.
    """
    envs = import_extra("crax.envs", extra="crax")
    advice = "Register your own by crax.envs.register_environment(name, class)."
    check_known(name, envs._envs, "crax", advice)  # the only list that CRAX has
    # Where CRAX knows no levels it ignores them, with a line on the terminal. The
    # classes of its velocity tasks have some all the same.
    has_levels = envs.supports_difficulty(name)
    if level is not None and not has_levels:
        raise UsageError(
            f"crax/{name} has no levels in CRAX's registry. Write 'crax/{name}', or "
            "make it with options of its class, as env=trpo_jax.environments."
            "BraxEnvironment(crax.envs.SafeVelocityHopper(level=2), 1000)."
        )
    if level not in (None, *_LEVELS):
        raise UsageError(
            f"no level {level!r} in CRAX. Write one of {', '.join(_LEVELS)}, as "
            f"'crax/{name}/2'."
        )
    chosen = int(level or 1) if has_levels else None
    title = f"crax/{name}" + (f"/{chosen}" if chosen else "")
    return BraxEnvironment(
        envs.get_environment(name, level=chosen), episode_length, title
    )
