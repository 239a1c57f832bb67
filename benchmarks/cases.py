"""Seeds, episodes and actions of each row of the learning table.

By default a row has sixteen seeds side by side, each evaluated over 128 episodes with
greedy actions.
"""

from typing import NamedTuple

from benchmarks.environments import DOOR_KEY_FIRST_PERSON, SEAQUEST
from trpo_jax.policies import Actions


class Case(NamedTuple):
    """Row of the learning table.

    Attributes:
        num_seeds: Independent runs.
        seeds_at_once: Seeds trained side by side; None: all.
        num_episodes: Evaluation episodes of each seed.
        actions: Greedy actions in evaluation, or sampled ones.
        override: Fields that differ from the preset, as `name=value`.
    """

    num_seeds: int = 16
    seeds_at_once: int | None = None
    num_episodes: int = 128
    actions: Actions = "mode"
    override: tuple[str, ...] = ()


# The policy has to find out during the episode which of several tasks it is in. Greedy
# actions do not explore, so actions are sampled. The second row has no memory.
_MEMORY = (
    Case(actions="sample", seeds_at_once=1),
    Case(actions="sample", override=("memory_size=0",)),
)

# As much as two cores train in an hour.
_MINATAR = (Case(num_seeds=4, seeds_at_once=1),)

_CASES: dict[str, tuple[Case, ...]] = {
    DOOR_KEY_FIRST_PERSON: (
        Case(actions="sample", num_seeds=8, override=("memory_size=32",)),
        Case(
            actions="sample",
            num_seeds=8,
            override=("memory_size=32", "memory=lru"),
        ),
        Case(actions="sample", num_seeds=8),
    ),
    "Asterix-MinAtar": _MINATAR,
    "Breakout-MinAtar": _MINATAR,
    "Freeway-MinAtar": _MINATAR,
    "Seaquest-MinAtar": _MINATAR,
    SEAQUEST: _MINATAR,
    "SpaceInvaders-MinAtar": _MINATAR,
    "MNISTBandit-bsuite": (Case(num_seeds=8, seeds_at_once=1),),
    "Pong-misc": (Case(seeds_at_once=1),),
    "BernoulliBandit-misc": _MEMORY,
    "MemoryChain-bsuite": _MEMORY,
    "MetaMaze-misc": _MEMORY,
    "PointRobot-misc": _MEMORY,
    # The return has a standard deviation of 3; the best policy gains 1 on average.
    "UmbrellaChain-bsuite": (Case(num_episodes=262_144),),
    # The return has a standard deviation of 27; the best mean is 7.
    "GaussianBandit-misc": (Case(num_episodes=4096),),
    # The published results use state-dependent exploration (gSDE).
    "Pendulum-v1": (
        Case(),
        Case(
            override=(
                "action_distribution=gsde",
                "noise_period=4",
                "initial_log_std=1.2",
            )
        ),
    ),
    "MountainCarContinuous-v0": (Case(), Case(override=("action_distribution=gsde",))),
}


def cases_of(env: str) -> tuple[Case, ...]:
    """Return the rows of an environment; the first is that of its preset."""
    return _CASES.get(env, (Case(),))
