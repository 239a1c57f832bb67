"""Grid with a toll on the short way, small enough to be solved exactly."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from trpo_jax.environments.protocol import Discrete, TimeStep

# S start, G goal, $ toll, # wall.
_MAP = (
    ".......",
    ".#####.",
    ".#####.",
    "S$$$$$G",
)
_MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left
_SLIP = 0.1
_END = 0.05
_GOAL_REWARD = 10.0


class TollGrid:
    """Reach a goal by a short way with a toll, or by a free one of twice the length.

    The goal gives a reward of 10; a step from a toll cell costs 1. One move in ten goes
    in a random direction, and a step that does not reach the goal ends the episode with
    probability 0.05: time has a price, and the sums of rewards and costs of an episode
    are finite without a discount. All is in three arrays, from which a linear program
    finds the best policy for a limit on the cost. It chooses between the ways at
    random.

    Attributes:
        transition: Probability of going on in the third cell, float64[S, A, S]. No
            episode goes on from the goal; what is missing to 1 elsewhere is the
            probability that the episode ends.
        reward: Expected reward of an action in a cell, float64[S, A].
        cost: Its cost, float64[S, A].
        start: The cell where episodes start.
    """

    action_space = Discrete(len(_MOVES))
    num_costs = 1
    name = "safe/toll_grid"

    def __init__(self) -> None:
        # Only cells that can be entered have a number.
        cells = [
            (row, column)
            for row, line in enumerate(_MAP)
            for column, mark in enumerate(line)
            if mark != "#"
        ]
        number = {cell: index for index, cell in enumerate(cells)}
        marks = [_MAP[row][column] for row, column in cells]
        self.start, self._goal = marks.index("S"), marks.index("G")
        size, actions = len(cells), len(_MOVES)
        self.observation_shape = (size,)

        moved = np.zeros((size, actions, size))
        for (row, column), here in number.items():
            for action, (down, right) in enumerate(_MOVES):
                there = number.get((row + down, column + right), here)
                moved[here, action, there] = 1
        moved = (1 - _SLIP) * moved + _SLIP * moved.mean(axis=1, keepdims=True)
        moved[self._goal] = 0
        self.reward = _GOAL_REWARD * moved[:, :, self._goal]
        going_on = np.where(np.arange(size) == self._goal, 1, 1 - _END)
        self.transition = moved * going_on
        is_toll = np.array([mark == "$" for mark in marks])
        self.cost = np.repeat(is_toll[:, None].astype(float), actions, axis=1)
        self._cumulative = np.float32(self.transition.cumsum(axis=-1))

    def __repr__(self) -> str:
        return "TollGrid()"

    def reset(self, key: Key[Array, ""]) -> tuple[Int[Array, ""], Float[Array, " S"]]:
        """Start an episode; `key` is not used. Returns (cell, its one-hot vector)."""
        cell = jnp.int32(self.start)
        return cell, self._observe(cell)

    def step(
        self, key: Key[Array, ""], state: Int[Array, ""], action: Int[Array, ""]
    ) -> tuple[Int[Array, ""], TimeStep]:
        """Act once, starting the next episode if this one ends; consumes `key`."""
        chance = jax.random.uniform(key, dtype=jnp.float32)
        below = jnp.asarray(self._cumulative)[state, action] <= chance
        # One more than the last cell if the episode ends: observed as zeros.
        reached = jnp.sum(below, dtype=jnp.int32)
        terminated = (reached == self._goal) | (reached == below.size)
        following = jnp.where(terminated, jnp.int32(self.start), reached)
        return following, TimeStep(
            observation=self._observe(following),
            reward=jnp.float32(_GOAL_REWARD) * (reached == self._goal),
            terminated=terminated,
            truncated=jnp.array(False),
            final_observation=self._observe(reached),
            cost=jnp.asarray(self.cost, jnp.float32)[state, action],
        )

    def _observe(self, cell: Int[Array, ""]) -> Float[Array, " S"]:
        return jax.nn.one_hot(cell, self.observation_shape[0], dtype=jnp.float32)
