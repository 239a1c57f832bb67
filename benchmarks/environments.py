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
    """Return gymnax's Seaquest with buffers of 32 entities, for which it has 100.

    The game is the same, and a step takes a seventh of the time on a CPU, where each of
    the buffers is compared with each of the others. At most one enemy comes in a step
    and it leaves after at most 30, a submarine has one bullet on the board at a time,
    and of the player's bullets and the divers there are at most four.
    """
    from gymnax.environments.minatar import seaquest, seaquest_helpers

    def smaller(method: Any) -> Any:
        def traced(*args: Any) -> Any:
            with (
                mock.patch.object(seaquest, "MAX_ENTITIES", 32),
                mock.patch.object(seaquest_helpers, "MAX_ENTITIES", 32),
            ):
                return method(*args)

        return traced

    env = seaquest.MinSeaquest()
    env.reset_env, env.step_env = smaller(env.reset_env), smaller(env.step_env)
    return env
