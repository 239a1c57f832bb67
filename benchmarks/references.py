"""Published returns and targets for each environment.

Returns are undiscounted means over episodes. The published budgets differ from ours;
each row of results states its own.
"""

from typing import NamedTuple


class Reference(NamedTuple):
    """Returns to compare with; None where there are none.

    Attributes:
        target: Return that a preset should reach.
        published: Published return: TRPO's if there is one, else the best.
        source: Publication and algorithm.
    """

    target: float | None = None
    published: float | None = None
    source: str | None = None


def _zoo(steps: str) -> str:
    return f"sb3-contrib TRPO, rl-baselines3-zoo, {steps} steps, one run"


_GYMNAX_PPO = "PPO, gymnax-blines, 10M steps"
_GYMNAX = "a checkpoint in gymnax's README"
_GYMNAX_ES = f"{_GYMNAX}, evolution strategies"

# A treasure of 1, minus 0.01 for the moves.
_DEEP_SEA_BEST = 0.99

REFERENCES: dict[str, Reference] = {
    "CartPole-v1": Reference(500, 500, _zoo("100k")),
    "Acrobot-v1": Reference(-83, -83.1, _zoo("100k")),
    "Pendulum-v1": Reference(-175, -174.6, _zoo("100k")),
    "MountainCar-v0": Reference(-110, -107.3, _zoo("100k")),
    "MountainCarContinuous-v0": Reference(92, 92.5, _zoo("50k")),
    "Breakout-MinAtar": Reference(28, 28, _GYMNAX_PPO),
    "Asterix-MinAtar": Reference(15, 15, _GYMNAX_PPO),
    "Freeway-MinAtar": Reference(58, 58, _GYMNAX_PPO),
    "SpaceInvaders-MinAtar": Reference(131, 131, _GYMNAX_PPO),
    "Catch-bsuite": Reference(1, 1, _GYMNAX),
    "DeepSea-bsuite": Reference(0.9 * _DEEP_SEA_BEST, 0, _GYMNAX),
    "MemoryChain-bsuite": Reference(None, 0.1, _GYMNAX),
    "UmbrellaChain-bsuite": Reference(1, 1, _GYMNAX),
    "DiscountingChain-bsuite": Reference(1.1, 1.1, _GYMNAX),
    "FourRooms-misc": Reference(1, 1, _GYMNAX_ES),
    "MetaMaze-misc": Reference(None, 32, _GYMNAX_ES),
    "PointRobot-misc": Reference(None, 10, _GYMNAX_ES),
    "BernoulliBandit-misc": Reference(80, 90, _GYMNAX_ES),
    "GaussianBandit-misc": Reference(None, 0, _GYMNAX_ES),
}
