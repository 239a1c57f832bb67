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

    The game is the same. On a CPU a step takes a seventh of the time: each bullet is
    compared with each fish and each submarine, and a buffer is compacted after each
    change. With 20 steps between two enemies each stays for 60, and in the fastest game
    one comes in every step and stays for 30. A submarine has one bullet on the board at
    a time, and of the player's bullets and the divers there are at most four.
    """
    from gymnax.environments.minatar import seaquest, seaquest_helpers

    def smaller(method: Any) -> Any:
        def traced(*args: Any, **kwargs: Any) -> Any:
            with (
                mock.patch.object(seaquest, "MAX_ENTITIES", 32),
                mock.patch.object(seaquest_helpers, "MAX_ENTITIES", 32),
            ):
                return method(*args, **kwargs)

        return traced

    env = seaquest.MinSeaquest()
    for name in ("reset_env", "step_env", "get_obs"):
        setattr(env, name, smaller(getattr(env, name)))
    return env
