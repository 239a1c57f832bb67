"""Point robot among hazards, an environment of gymnax."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from gymnax.environments import environment, spaces
from jaxtyping import Array, Bool, Float, Int, Key

_ARENA = 1.5  # half the side of the square in which things are placed
_RANGE = 1.5  # of the lidar
_SECONDS = 0.1  # of a step
_THRUST, _DRAG = 2.0, 2.0  # speed at full thrust in one direction: 1
_BINS = 16
_CANDIDATES = 8


class PointState(NamedTuple):
    """State of an episode.

    Attributes:
        time: Steps taken, int32 scalar.
        position: Of the robot, float32[2].
        velocity: Of the robot, float32[2].
        goal: Where to go, float32[2].
        hazards: Centres of the hazards, float32[H, 2].
    """

    time: Int[Array, ""]
    position: Float[Array, "2"]
    velocity: Float[Array, "2"]
    goal: Float[Array, "2"]
    hazards: Float[Array, "H 2"]


class PointParams(NamedTuple):
    """Parameters, which may differ between the rows of a batch.

    Attributes:
        max_steps_in_episode: The step after which an episode is cut.
        hazard_radius: Distance to a hazard below which a step costs 1.
        goal_radius: Distance to the goal at which it is reached.
        goal_reward: Reward for that.
    """

    max_steps_in_episode: int = 100
    hazard_radius: float = 0.2
    goal_radius: float = 0.3
    goal_reward: float = 1.0


class PointHazards(environment.Environment[PointState, PointParams]):
    """Reach goal after goal with a point mass, and stay out of the hazards.

    As in Safety-Gymnasium's PointGoal, the reward is the way made towards the goal, and
    1 for reaching it; a step that ends in a hazard costs 1 (`info["cost"]`). The next
    goal is then placed, and hazards are placed anew in each episode. They do not stop
    the robot. An action is its acceleration in two directions, in [−1, 1].

    The robot observes its velocity, the way to the goal, and how close hazards are in
    each of 16 directions: 1 at their centre, 0 from a distance of 1.5 on.
    """

    def __init__(self, num_hazards: int = 8):
        super().__init__()
        self._num_hazards = num_hazards

    @property
    def name(self) -> str:
        """Name in messages."""
        return "safe/point_hazards"

    @property
    def default_params(self) -> PointParams:
        """The parameters of the id."""
        return PointParams()

    def reset_env(
        self, key: Key[Array, ""], params: PointParams
    ) -> tuple[Float[Array, " F"], PointState]:
        """Place hazards, then robot and goal outside of them; consumes `key`."""
        hazard_key, robot_key, goal_key = jax.random.split(key, 3)
        hazards = _anywhere(hazard_key, self._num_hazards)
        state = PointState(
            time=jnp.int32(0),
            position=_outside(robot_key, hazards, params),
            velocity=jnp.zeros(2, jnp.float32),
            goal=_outside(goal_key, hazards, params),
            hazards=hazards,
        )
        return _observe(state), state

    def step_env(
        self,
        key: Key[Array, ""],
        state: PointState,
        action: Float[Array, "2"],
        params: PointParams,
    ) -> tuple[Float[Array, " F"], PointState, Float[Array, ""], Bool[Array, ""], dict]:
        """Move once; consumes `key`, for the next goal if this one is reached."""
        thrust = _THRUST * jnp.clip(action, -1, 1)
        velocity = state.velocity + _SECONDS * (thrust - _DRAG * state.velocity)
        position = state.position + _SECONDS * velocity
        before = _distance(state.goal, state.position)
        after = _distance(state.goal, position)
        reached = after < params.goal_radius
        goal = jnp.where(reached, _outside(key, state.hazards, params), state.goal)
        state = PointState(state.time + 1, position, velocity, goal, state.hazards)
        inside = jnp.any(_distance(state.hazards, position) < params.hazard_radius)
        reward = before - after + params.goal_reward * reached
        info = {"cost": inside.astype(jnp.float32)}
        return _observe(state), state, reward, jnp.array(False), info

    def action_space(self, params: PointParams | None = None) -> spaces.Box:
        """Accelerations in two directions."""
        return spaces.Box(-1.0, 1.0, (2,))

    def observation_space(self, params: PointParams | None = None) -> spaces.Box:
        """Velocity, way to the goal, closeness of hazards by direction."""
        return spaces.Box(-jnp.inf, jnp.inf, (4 + _BINS,))


def _observe(state: PointState) -> Float[Array, " F"]:
    way = state.hazards - state.position
    closeness = jnp.maximum(0, 1 - _distance(way, 0) / _RANGE)
    # Direction in units of a bin's width. A hazard between the centres of two bins is
    # in both, by its share, so that the observation is continuous.
    direction = jnp.arctan2(way[:, 1], way[:, 0]) * (_BINS / (2 * jnp.pi))
    apart = jnp.abs(direction[:, None] - jnp.arange(_BINS)) % _BINS
    share = jnp.maximum(0, 1 - jnp.minimum(apart, _BINS - apart))
    lidar = jnp.max(closeness[:, None] * share, axis=0, initial=0)
    return jnp.concatenate([state.velocity, state.goal - state.position, lidar])


def _outside(
    key: Key[Array, ""], hazards: Float[Array, "H 2"], params: PointParams
) -> Float[Array, "2"]:
    """Return a place from which a goal does not reach into a hazard, as a rule.

    Of eight places the first such one; the first if there is none, once in hundreds.
    """
    places = _anywhere(key, _CANDIDATES)
    gaps = _distance(places[:, None], hazards)
    is_free = jnp.all(gaps > params.hazard_radius + params.goal_radius, axis=1)
    return places[jnp.argmax(is_free)]


def _anywhere(key: Key[Array, ""], count: int) -> Float[Array, "count 2"]:
    return jax.random.uniform(
        key, (count, 2), jnp.float32, minval=-_ARENA, maxval=_ARENA
    )


def _distance(one: Any, other: Any) -> Float[Array, "..."]:
    return jnp.sqrt(jnp.sum((one - other) ** 2, axis=-1))
