"""How the rows of the learning table are measured.

Where nothing is said, by sixteen seeds side by side, over 128 episodes each, with the
most probable actions.
"""

from typing import NamedTuple

from trpo_jax.runs.acting import Actions


class Case(NamedTuple):
    """One row.

    Attributes:
        num_seeds: Independent runs.
        seeds_at_once: So many side by side, the others after them; None: all.
        num_episodes: Episodes that each is evaluated over.
        actions: The most probable ones when evaluated, or such as the policy draws.
        override: Fields that are not the preset's, as `name=value`.
    """

    num_seeds: int = 16
    seeds_at_once: int | None = None
    num_episodes: int = 128
    actions: Actions = "mode"
    override: tuple[str, ...] = ()


# Such a policy has to find out in the episode which of several tasks it is in, and its
# most probable action explores nothing. Beside it stands the policy without a memory.
_MEMORY = (
    Case(actions="sample", seeds_at_once=1),
    Case(actions="sample", override=("memory_size=0",)),
)

# What two cores can do in an hour.
_MINATAR = (Case(num_seeds=4, seeds_at_once=1),)

_CASES: dict[str, tuple[Case, ...]] = {
    "Asterix-MinAtar": _MINATAR,
    "Breakout-MinAtar": _MINATAR,
    "Freeway-MinAtar": _MINATAR,
    "Seaquest-MinAtar": (
        Case(num_seeds=8, seeds_at_once=1, override=("total_timesteps=1_024_000",)),
    ),
    "SpaceInvaders-MinAtar": _MINATAR,
    "MNISTBandit-bsuite": (Case(num_seeds=8, seeds_at_once=1),),
    "Pong-misc": (Case(seeds_at_once=1),),
    "BernoulliBandit-misc": _MEMORY,
    "MemoryChain-bsuite": _MEMORY,
    "MetaMaze-misc": _MEMORY,
    "PointRobot-misc": _MEMORY,
    # Coins on the way have a standard deviation of 3, the umbrella is worth 1.
    "UmbrellaChain-bsuite": (Case(num_episodes=262_144),),
    # Returns have a standard deviation of 27 where the best mean is 7.
    "GaussianBandit-misc": (Case(num_episodes=4096),),
    # The published results rest on noise that depends on the state.
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
    """The rows of an environment; the first is that of its preset."""
    return _CASES.get(env, (Case(),))
