"""Small environments, each of which isolates one thing that can go wrong.

A `Tabular` environment is a Markov decision process written out as tables, and the
tables are its gymnax parameters. They are traced, so that one compiled program serves
every process of the same size.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from trpo_jax.environments import Discrete, TimeStep

NUM_STATES = 4
NO_LIMIT = 1_000_000


@struct.dataclass
class Place:
    """Current state of an episode, and its number of steps."""

    position: int
    time: int


@struct.dataclass
class Tables:
    """A Markov decision process.

    Attributes:
        next_position: Where an action leads, int32[S, A].
        reward: What it yields, float32[S, A].
        terminal: Whether it ends the task, bool[S, A].
        features: The observation of each state, float32[S, F].
        num_starts: An episode starts in one of the first so many states.
        max_steps_in_episode: The step after which it is cut.
    """

    next_position: jax.Array
    reward: jax.Array
    terminal: jax.Array
    features: jax.Array
    num_starts: int
    max_steps_in_episode: int


class Tabular(environment.Environment[Place, Tables]):
    """Walks through its parameters' tables."""

    def __init__(self, num_actions: int = 2):
        super().__init__()
        self._num_actions = num_actions

    @property
    def default_params(self) -> Tables:
        return make_tables(np.zeros((NUM_STATES, self._num_actions)))

    def reset_env(self, key, params):
        position = jax.random.randint(key, (), 0, params.num_starts)
        return params.features[position], Place(position=position, time=0)

    def step_env(self, key, state, action, params):
        here = (state.position, action)
        position = params.next_position[here]
        following = Place(position=position, time=state.time + 1)
        observation = params.features[position]
        return observation, following, params.reward[here], params.terminal[here], {}

    def action_space(self, params):
        return spaces.Discrete(self._num_actions)

    def observation_space(self, params):
        return spaces.Box(-jnp.inf, jnp.inf, params.features.shape[1:])


class TwoChoices(Tabular):
    """An action is two choices, of two and of three; only the first one counts."""

    def step_env(self, key, state, action, params):
        first, _ = action
        return super().step_env(key, state, first, params)

    def action_space(self, params):
        return spaces.Tuple((spaces.Discrete(2), spaces.Discrete(3)))


# One object each, so that equal configurations are equal.
TABULAR = Tabular()
TWO_CHOICES = TwoChoices()


def make_tables(
    reward,
    *,
    next_position=0,
    terminal=True,
    features=None,
    num_starts=1,
    max_steps_in_episode=NO_LIMIT,
) -> Tables:
    """Return tables from what broadcasts against `reward` [S, A].

    Without more, every action ends the task, and observations are one-hot.
    """
    reward = jnp.asarray(reward, jnp.float32)
    features = np.eye(NUM_STATES) if features is None else features
    return Tables(
        next_position=jnp.broadcast_to(jnp.int32(next_position), reward.shape),
        reward=reward,
        terminal=jnp.broadcast_to(jnp.asarray(terminal, bool), reward.shape),
        features=jnp.asarray(features, jnp.float32),
        num_starts=jnp.int32(num_starts),
        max_steps_in_episode=jnp.int32(max_steps_in_episode),
    )


def by_state(*values) -> np.ndarray:
    """Return a table [S, A] that is the same for both actions, zero where not given."""
    column = np.zeros((NUM_STATES, 1))
    column[: len(values), 0] = values
    return np.broadcast_to(column, (NUM_STATES, 2))


_RANDOM = np.random.default_rng(0)

CHAIN = make_tables(
    _RANDOM.normal(size=(NUM_STATES, 2)),
    next_position=[[0, 1], [1, 2], [2, 3], [3, 3]],
    terminal=[[False, False], [False, False], [False, False], [False, True]],
    features=3 + 2 * _RANDOM.normal(size=(NUM_STATES, 3)),
    num_starts=NUM_STATES,
    max_steps_in_episode=5,
)
"""Action 1 goes right and, from the last state, ends the task; action 0 stays."""


class Toll:
    """Episodes of four steps; action 1 earns 1 and costs 1, and 2 of another cost.

    The return is the first cost, so that a limit on it is the best return.
    """

    action_space = Discrete(2)
    observation_shape = (1,)

    def reset(self, key):
        return jnp.int32(0), jnp.ones(1)

    def step(self, key, state, action):
        taken = action.astype(jnp.float32)
        ended = state == 3
        return (state + 1) % 4, TimeStep(
            jnp.ones(1),
            taken,
            ended,
            jnp.zeros((), bool),
            jnp.ones(1),
            jnp.stack([taken, 2 * taken]),
        )
