"""Adapter to MuJoCo Playground, whose environments have brax's form."""

import subprocess

from trpo_jax.environments.brax import BraxEnvironment
from trpo_jax.environments.suites import check_known, made_once
from trpo_jax.errors import UsageError
from trpo_jax.extras import import_extra


@made_once
def make_playground(name: str, episode_length: int | None = None) -> BraxEnvironment:
    """Return an environment of MuJoCo Playground.

    The same arguments give the same object, so that nothing compiles twice. The physics
    is MJX in JAX: the state of Warp, Playground's default, has arrays that the whole
    batch shares. Actions are not repeated, whatever the default configuration says.

    Args:
        name: Its name in `mujoco_playground.registry`, such as "CartpoleBalance".
        episode_length: Steps after which an episode is cut; the environment's own
            default if None.

    Raises:
        UsageError: If Playground is not installed, has no such environment (the message
            names the nearest) or cannot download its robots.
    """
    registry = import_extra("mujoco_playground", extra="playground").registry
    advice = (
        "For your own write env=trpo_jax.environments.BraxEnvironment(env, "
        "episode_length)."
    )
    check_known(name, registry.ALL_ENVS, "playground", advice)
    config = registry.get_default_config(name)
    config.impl = "jax"
    try:
        env = registry.load(name, config)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(
            f"{name} downloads its robots with git when it is first made, and that "
            f"failed: {error}. Make it online once, or choose an environment of "
            "mujoco_playground.dm_control_suite, which needs no download."
        ) from error
    length = config.episode_length if episode_length is None else episode_length
    return BraxEnvironment(env, length, f"playground/{name}")
