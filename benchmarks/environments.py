"""Environments of the benchmarks that have no id of their own."""

from typing import Any

from trpo_jax.extras import import_extra

DOOR_KEY_FIRST_PERSON = "benchmarks.environments:door_key_first_person"

# Id ↦ the environment whose preset it is trained with.
PRESET_OF = {DOOR_KEY_FIRST_PERSON: "navix/Navix-DoorKey-5x5-v0"}


def door_key_first_person() -> Any:
    """Return Navix's DoorKey as MiniGrid shows it: the 7 × 7 cells before the agent.

    It does not see the key that it carries, nor what it has turned away from.
    """
    navix = import_extra("navix", extra="navix")
    return navix.make(
        "Navix-DoorKey-5x5-v0",
        observation_fn=navix.observations.symbolic_first_person,
    )
