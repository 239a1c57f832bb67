"""Exact returns and optima of small Markov decision processes, in NumPy and SciPy.

All in terms of the occupancy measure x(s, a), the expected number of times that an
episode takes action a in state s: returns and costs of an episode are linear in it, and
so is what a transition asks of it, for each state s'

    Σₐ x(s', a) = μ(s') + Σₛₐ x(s, a) P(s' | s, a)

Source: Altman 1999, Constrained Markov Decision Processes, chapters 8 and 9.
"""

from typing import NamedTuple

import numpy as np
import scipy.optimize
from numpy.typing import ArrayLike, NDArray

from trpo_jax.environments import TollGrid


class Process(NamedTuple):
    """A Markov decision process whose episodes surely end.

    Attributes:
        transition: P(s' | s, a), float[S, A, S]; what is missing to 1 ends the episode.
        reward: Expected reward r(s, a), float[S, A].
        costs: Each of K costs, float[K, S, A].
        start: Probability that an episode starts in a state, μ, float[S].
    """

    transition: NDArray
    reward: NDArray
    costs: NDArray
    start: NDArray

    @classmethod
    def of(cls, grid: TollGrid) -> "Process":
        """Return the process of a `TollGrid`."""
        start = np.eye(len(grid.reward))[grid.start]
        return cls(grid.transition, grid.reward, grid.cost[None], start)


class Optimum(NamedTuple):
    """The best policy within limits, exactly.

    Attributes:
        policy: π(a | s), float[S, A]; uniform where no episode comes.
        value: Its expected return.
        costs: Its expected cost of an episode, float[K].
        prices: By how much the return would rise with each limit, float[K].
    """

    policy: NDArray
    value: float
    costs: NDArray
    prices: NDArray


def occupancy(process: Process, policy: NDArray) -> NDArray:
    """Return x(s, a) of a policy π(a | s), float[..., S, A], by a linear solve."""
    moved = np.einsum("...sa,sat->...st", policy, process.transition)
    system = np.eye(len(process.start)) - np.swapaxes(moved, -1, -2)
    start = np.broadcast_to(process.start[:, None], (*system.shape[:-1], 1))
    return np.linalg.solve(system, start) * policy


def evaluate(process: Process, policy: NDArray) -> tuple[NDArray, NDArray]:
    """Return the expected return [...] and costs [..., K] of a policy [..., S, A]."""
    visits = occupancy(process, policy)
    value = np.einsum("...sa,sa->...", visits, process.reward)
    return value, np.einsum("...sa,ksa->...k", visits, process.costs)


def optimum(process: Process, limits: ArrayLike | None = None) -> Optimum:
    """Return the best policy whose expected costs are within limits [K], or of all.

    max Σ x r  subject to the flow above, Σ x cₖ ≤ dₖ for each k, and x ≥ 0.

    Raises:
        ValueError: If no policy is within the limits.
    """
    num_states, num_actions = process.reward.shape
    leaving = np.repeat(np.eye(num_states), num_actions, axis=1)
    entering = process.transition.reshape(-1, num_states).T
    bounded = {}
    if limits is not None:
        bounded["A_ub"] = process.costs.reshape(len(process.costs), -1)
        bounded["b_ub"] = np.asarray(limits, float)
    solved = scipy.optimize.linprog(
        -process.reward.ravel(),
        A_eq=leaving - entering,
        b_eq=process.start,
        **bounded,
    )
    if not solved.success:
        raise ValueError(f"no policy is within the limits {limits}: {solved.message}")
    visits = solved.x.reshape(num_states, num_actions)
    total = visits.sum(axis=1, keepdims=True)
    uniform = np.full_like(visits, 1 / num_actions)
    policy = np.divide(visits, total, out=uniform, where=total > 1e-12)
    return Optimum(
        policy=policy,
        value=float((visits * process.reward).sum()),
        costs=np.einsum("sa,ksa->k", visits, process.costs),
        prices=-solved.ineqlin.marginals,
    )
