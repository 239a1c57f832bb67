"""Tightness of both lower bounds on improvement, on tabular MDPs solved exactly.

    python -m benchmarks.bounds

Advantages, returns and the discounted distribution over states are exact, so that each
update is trust region policy optimisation without sampling error, and the bounds
are those of the theorems and not estimates.
"""

import functools
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Bool, Float, Int

from benchmarks.harness import RESULTS, write_rows
from trpo_jax.trust_region import (
    Batch,
    Categorical,
    UpdateStatus,
    improvement_bound,
    mean_kl_improvement_bound,
    trust_region_update,
)

STATES, ACTIONS = 4, 3
DISCOUNTS = (0.5, 0.9, 0.99)
RADII = tuple(10.0**exponent for exponent in range(-8, 0))


class TabularMDP(NamedTuple):
    """P(s′|s, a) [S, A, S], r(s, a) [S, A], the distribution of s₀ [S], and γ."""

    transitions: Float[Array, "*N S A S"]
    rewards: Float[Array, "*N S A"]
    start: Float[Array, "*N S"]
    discount: Float[Array, "*N"]


class Solved(NamedTuple):
    """J(π), A(s, a) [S, A], and d(s) = (1 − γ) Σ_t γᵗ P(s_t = s) [S]."""

    expected_return: Float[Array, ""]
    advantages: Float[Array, "S A"]
    states: Float[Array, " S"]


class Change(NamedTuple):
    """An update beside its bounds.

    Attributes:
        improvement: J(π) − J(π_old).
        largest_kl: `improvement_bound`.
        mean_kl: `mean_kl_improvement_bound`.
        kl: The mean KL over discounted states, nats.
        accepted: Whether the policy moved.
    """

    improvement: Float[Array, "..."]
    largest_kl: Float[Array, "..."]
    mean_kl: Float[Array, "..."]
    kl: Float[Array, "..."]
    accepted: Bool[Array, "..."]


class Weighted(NamedTuple):
    """A categorical distribution whose divergence counts `weight` times.

    With weights N · d(s), a mean over N rows is an expectation over states s ~ d.
    """

    logits: Float[Array, "*N K"]
    weight: Float[Array, "*N"]

    def sample(self, key: Array) -> Int[Array, "*N"]:
        return Categorical(self.logits).sample(key)

    def mode(self) -> Int[Array, "*N"]:
        return Categorical(self.logits).mode()

    def log_prob(self, actions: Int[Array, "*N"]) -> Float[Array, "*N"]:
        return Categorical(self.logits).log_prob(actions)

    def entropy(self) -> Float[Array, "*N"]:
        return self.weight * Categorical(self.logits).entropy()

    def kl_divergence(self, other: "Weighted") -> Float[Array, "*N"]:
        kl = Categorical(self.logits).kl_divergence(Categorical(other.logits))
        return self.weight * kl


def random_mdps(
    rng: np.random.Generator, discounts: Float[np.ndarray, " N"]
) -> TabularMDP:
    """Return an MDP for each of N discounts."""
    shape = (len(discounts), STATES, ACTIONS)
    return TabularMDP(
        jnp.asarray(rng.dirichlet(np.full(STATES, 0.3), size=shape)),
        jnp.asarray(rng.normal(size=shape)),
        jnp.asarray(rng.dirichlet(np.ones(STATES), size=len(discounts))),
        jnp.asarray(discounts),
    )


def solve(mdp: TabularMDP, policy: Float[Array, "S A"]) -> Solved:
    """Evaluate a policy by linear systems."""
    chain = jnp.einsum("sa,sat->st", policy, mdp.transitions)
    system = jnp.eye(STATES) - mdp.discount * chain
    values = jnp.linalg.solve(system, jnp.sum(policy * mdp.rewards, axis=1))
    following = mdp.discount * mdp.transitions @ values
    return Solved(
        mdp.start @ values,
        mdp.rewards + following - values[:, None],
        (1 - mdp.discount) * jnp.linalg.solve(system.T, mdp.start),
    )


def improve(
    mdp: TabularMDP, max_kl: Float[Array, ""], logits: Float[Array, "S A"]
) -> tuple[Float[Array, "S A"], Change]:
    """Update a softmax policy, and compare its improvement with the bounds."""
    old = Categorical(logits)
    policy = jnp.exp(old.log_probs())
    before = solve(mdp, policy)
    # One row for each pair of state and action, whose weight is in its advantage.
    state, action = (index.reshape(-1) for index in np.indices((STATES, ACTIONS)))
    taken = before.states[:, None] * policy
    weight = STATES * before.states
    batch = Batch(
        (jnp.asarray(state), weight[state]),
        jnp.asarray(action),
        old.log_probs()[state, action],
        STATES * ACTIONS * (taken * before.advantages)[state, action],
    )
    new_logits, info = trust_region_update(
        lambda logits, rows: Weighted(logits[rows[0]], rows[1]),
        logits,
        batch,
        max_kl=max_kl,
        damping=1e-6,
        cg_iterations=STATES * ACTIONS,
    )
    new = Categorical(new_logits)
    probabilities = jnp.exp(new.log_probs())
    of_state = jnp.sum(probabilities * before.advantages, axis=1)
    expected_advantage, kl = before.states @ of_state, old.kl_divergence(new)
    change = Change(
        solve(mdp, probabilities).expected_return - before.expected_return,
        improvement_bound(
            expected_advantage,
            jnp.max(kl),
            jnp.max(jnp.abs(before.advantages)),
            discount=mdp.discount,
        ),
        mean_kl_improvement_bound(
            expected_advantage,
            before.states @ kl,
            jnp.max(jnp.abs(of_state)),
            discount=mdp.discount,
        ),
        before.states @ kl,
        info.status == UpdateStatus.ACCEPTED,
    )
    return new_logits, change


@functools.partial(jax.vmap, in_axes=(0, 0, 0, None))
def improve_often(
    mdp: TabularMDP,
    max_kl: Float[Array, ""],
    logits: Float[Array, "S A"],
    num_updates: int,
) -> Change:
    """Update one policy several times, in each of N MDPs; fields [N, updates]."""

    def body(logits: Array, _: None) -> tuple[Array, Change]:
        return improve(mdp, max_kl, logits)

    return jax.lax.scan(body, logits, length=num_updates)[1]


def violated(
    improvement: Float[np.ndarray, "..."],
    bound: Float[np.ndarray, "..."],
    discount: Float[np.ndarray, "..."] | float,
) -> Bool[np.ndarray, "..."]:
    """Return whether a bound is above the improvement by more than rounding."""
    rounding = 1e-12 * (1 + np.abs(improvement)) / (1 - discount)
    return improvement < bound - rounding


def measure(discount: float, num_mdps: int, num_updates: int) -> dict:
    """Return the tightness of both bounds at each radius."""
    rng = np.random.default_rng(0)
    mdps = random_mdps(rng, np.full(num_mdps, discount))
    logits = jnp.asarray(rng.normal(size=(num_mdps, STATES, ACTIONS)))
    program = jax.jit(improve_often, static_argnums=3)
    row: dict = {"discount": discount, "radii": RADII, "updates": 0, "violations": 0}
    names = ("largest_kl", "mean_kl")
    for kind in ("penalty_over_improvement", "share_positive"):
        row[kind] = {name: [] for name in names}
    for radius in RADII:
        radii = jnp.full(num_mdps, radius)
        change = Change(*map(np.asarray, program(mdps, radii, logits, num_updates)))
        moved = change.accepted
        improvement = change.improvement[moved]
        row["updates"] += int(moved.sum())
        for name in names:
            bound = getattr(change, name)[moved]
            row["violations"] += int(np.sum(violated(improvement, bound, discount)))
            looseness = np.median((improvement - bound) / improvement)
            row["penalty_over_improvement"][name].append(float(looseness))
            row["share_positive"][name].append(float(np.mean(bound > 0)))
    return row


def main(
    num_mdps: int = 500,
    num_updates: int = 5,
    output: pathlib.Path = RESULTS / "bounds.jsonl",
) -> None:
    """Measure each discount at each radius, in double precision.

    Args:
        num_mdps: Random MDPs for each.
        num_updates: Consecutive updates in each MDP.
        output: File for the rows.
    """

    def rows() -> Iterator[dict]:
        for discount in DISCOUNTS:
            yield measure(discount, num_mdps, num_updates)

    with jax.enable_x64(True):
        write_rows(output, rows())


if __name__ == "__main__":
    tyro.cli(main)
