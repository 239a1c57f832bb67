"""Tasks with a cost, for constrained reinforcement learning."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Bool, Num

from trpo_jax.environments.costs import CostEnvironment
from trpo_jax.environments.gymnax import import_gymnax, make_gymnax
from trpo_jax.environments.protocol import Environment
from trpo_jax.environments.suites import check_known, made_once
from trpo_jax.environments.toll_grid import TollGrid
from trpo_jax.observations import Observation


class VelocityTask(NamedTuple):
    """A body of brax that is to run no faster than a limit.

    Attributes:
        env: Its id.
        speed_index: Where its observation has the forward speed of the torso.
        limit: Half of the mean speed of the policy that TRPO finds without a limit.
    """

    env: str
    speed_index: int
    limit: float

    def is_too_fast(
        self,
        observation: Observation,
        action: Num[Array, "..."],
        next_observation: Observation,
    ) -> Bool[Array, ""]:
        """Return whether the speed after a step is above the limit."""
        return next_observation[self.speed_index] > self.limit


# Half of the mean speed without a limit, which `benchmarks/speeds.py` measured.
# Safety-Gymnasium's are half of the largest, for other bodies: 0.74 for the hopper,
# 3.21 for the half-cheetah.
VELOCITY_TASKS = {
    "halfcheetah_velocity": VelocityTask("brax/halfcheetah", 8, 2.4),
    "hopper_velocity": VelocityTask("brax/hopper", 5, 0.6),
}


def _make_point_hazards() -> Environment:
    # Here, because its module imports gymnax.
    import_gymnax()
    from trpo_jax.environments.hazards import PointHazards

    return make_gymnax(PointHazards())


_TASKS: dict[str, Callable[[], Environment]] = {
    "toll_grid": TollGrid,
    "point_hazards": _make_point_hazards,
}


@made_once
def make_safe(name: str) -> Environment:
    """Return one of this package's tasks with a cost.

    The same name gives the same object, so that nothing compiles twice.

    Args:
        name: "toll_grid", "point_hazards", or a velocity task of brax,
            "halfcheetah_velocity" or "hopper_velocity": a step costs 1 if the torso
            moves forward faster than the limit after it.

    Raises:
        UsageError: If there is no such task (the message names the nearest), or brax is
            not installed.
    """
    advice = (
        "For a cost of your own write trpo_jax.environments.CostEnvironment(env, "
        "cost_fn)."
    )
    check_known(name, [*_TASKS, *VELOCITY_TASKS], "safe", advice)
    if name in _TASKS:
        return _TASKS[name]()
    task = VELOCITY_TASKS[name]
    return CostEnvironment(task.env, task.is_too_fast)
