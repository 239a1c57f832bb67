"""Environments of the benchmarks that have no id of their own."""

from typing import Any
from unittest import mock

from trpo_jax.extras import import_extra

DOOR_KEY_FIRST_PERSON = "benchmarks.environments:door_key_first_person"
SEAQUEST = "benchmarks.environments:seaquest"

# Id ↦ the environment whose preset it is trained with.
PRESET_OF = {
    DOOR_KEY_FIRST_PERSON: "navix/Navix-DoorKey-5x5-v0",
    SEAQUEST: "Seaquest-MinAtar",
}


def door_key_first_person() -> Any:
    """Return Navix's DoorKey as MiniGrid shows it: the 7 × 7 cells before the agent.

    It does not see the key that it carries, nor what it has turned away from.
    """
    navix = import_extra("navix", extra="navix")
    return navix.make(
        "Navix-DoorKey-5x5-v0",
        observation_fn=navix.observations.symbolic_first_person,
    )


def seaquest() -> Any:
    """Return gymnax's Seaquest with buffers of 32 entities instead of 100.

    The game is the same, in a seventh of the time on a CPU, where the cost is comparing
    every bullet with every enemy and compacting the buffers. 32 is enough: with 20
    steps between enemies each stays for 60; at the fastest, one comes every step and
    stays for 30. A submarine has one bullet at a time, and the player's bullets and the
    divers never exceed four. `state_space` still says 100.
    """
    from gymnax.environments.minatar import seaquest as game
    from gymnax.environments.minatar import seaquest_helpers as helpers

    def with_small_buffers(method: Any) -> Any:
        # gymnax reads the size from a module's constant while it is traced.
        def patched(*args: Any, **kwargs: Any) -> Any:
            with (
                mock.patch.object(game, "MAX_ENTITIES", 32),
                mock.patch.object(helpers, "MAX_ENTITIES", 32),
            ):
                return method(*args, **kwargs)

        return patched

    env = game.MinSeaquest()
    for name in ("reset_env", "step_env", "get_obs"):
        setattr(env, name, with_small_buffers(getattr(env, name)))
    return env
