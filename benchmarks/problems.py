"""Policies and batches for the measurements of curvature and scaling."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

import trpo_jax
from benchmarks.harness import Program, compile_program
from trpo_jax import trust_region
from trpo_jax.training.defaults import resolve_sizes
from trpo_jax.trust_region.flat import flatten

FEATURES = 4
DRAWN_AT_ONCE = 2**15  # bounds the memory for activations of the largest problem


class Problem(NamedTuple):
    """A policy with parameters, and an on-policy batch with random advantages.

    The programs below take the parameters θ in the layout that the update uses.
    """

    policy: Any
    params: Any
    batch: trust_region.Batch

    @property
    def theta(self) -> Any:
        return flatten(self.params)[0]

    def of_update(self, micro_batch_size: int | None = None) -> trust_region.Problem:
        """Return the problem as an update has it."""
        params_of = flatten(self.params)[1]
        return trust_region.Problem(
            self.policy.apply, surrogate_of, self.batch, params_of, micro_batch_size
        )

    @property
    def num_rows(self) -> int:
        return self.batch.log_probs.shape[0]

    @property
    def config(self) -> trpo_jax.TRPOConfig:
        """Return the default config of a run with rollouts of this size."""
        num_envs = max(1, self.num_rows // 128)
        return trpo_jax.TRPOConfig(
            num_envs=num_envs,
            rollout_length=self.num_rows // num_envs,
            total_timesteps=self.num_rows,
        )


def make_policy(kind: str, hidden_sizes: tuple[int, ...]) -> Any:
    """Make a "categorical" policy of two actions, or a "gaussian" one of two."""
    heads = {
        "categorical": trpo_jax.networks.CategoricalHead,
        "gaussian": trpo_jax.networks.GaussianHead,
    }
    return trpo_jax.networks.Policy(trpo_jax.networks.MLP(hidden_sizes), heads[kind](2))


def draw(policy: Any, num_rows: int, key: jax.Array) -> tuple[Any, trust_region.Batch]:
    """Draw parameters, and a batch that is on-policy for them."""
    keys = jax.random.split(key, 4)
    observations = jax.random.normal(keys[0], (num_rows, FEATURES))
    params = policy.init(keys[1], observations[:1])

    def act(key: jax.Array, observations: jax.Array) -> tuple[jax.Array, jax.Array]:
        distribution = policy.apply(params, observations)
        actions = distribution.sample(key)
        return actions, distribution.log_prob(actions)

    rows = trust_region.split_rows(observations, DRAWN_AT_ONCE)
    _, acted = trust_region.mean_over_rows(lambda rows: ((), act(keys[2], rows)), rows)
    actions, log_probs = acted.join()
    advantages = jax.random.normal(keys[3], (num_rows,))
    return params, trust_region.Batch(observations, actions, log_probs, advantages)


def make_problem(kind: str, num_rows: int, hidden_sizes: tuple[int, ...]) -> Problem:
    policy = make_policy(kind, hidden_sizes)
    drawn = jax.jit(functools.partial(draw, policy, num_rows))
    return Problem(policy, *drawn(jax.random.key(0)))


def surrogate_of(policy: Any, batch: trust_region.Batch) -> jax.Array:
    log_probs = policy.log_prob(batch.actions)
    return trust_region.surrogate(log_probs, batch.log_probs, batch.advantages)


def gradient_program(problem: Problem, micro_batch_size: int | None = None) -> Program:
    """Compile value and gradient of the surrogate over the whole batch."""

    def run(theta: Any, batch: trust_region.Batch) -> Any:
        of_update = problem.of_update(micro_batch_size)._replace(batch=batch)
        old, gradient = of_update.value_and_gradient(theta)
        return old.value, gradient

    return compile_program(run, problem.theta, problem.batch)


OPERATORS: dict[str, Callable] = {
    "gauss_newton": trust_region.gauss_newton_vector_product,
    "hessian": trust_region.fisher_vector_product,
}


def solve_program(
    problem: Problem,
    operator: str,
    iterations: int,
    *,
    stride: int = 1,
    tolerance: float = 0.0,
) -> Program:
    """Compile conjugate gradient up to a number of iterations or a tolerance."""

    def solve(theta: Any, gradient: Any, batch: trust_region.Batch) -> Any:
        of_update = problem.of_update()._replace(
            batch=batch, fisher_batch=every(batch, stride)
        )
        fisher = of_update.fisher(theta, operator_fn=OPERATORS[operator])
        return trust_region.conjugate_gradient(
            trust_region.damped(fisher, 0.1),
            gradient,
            max_iterations=iterations,
            tolerance=tolerance,
        ).x

    _, gradient = gradient_program(problem).run()
    return compile_program(solve, problem.theta, gradient, problem.batch)


def candidate_program(problem: Problem, micro_batch_size: int | None = None) -> Program:
    """Compile surrogate and KL of one candidate over the whole batch."""

    def run(theta: Any, old: Any, batch: trust_region.Batch) -> Any:
        of_update = problem.of_update(micro_batch_size)._replace(batch=batch)
        return of_update.candidate(theta, old)

    of_update = problem.of_update(micro_batch_size)
    old, _ = jax.jit(of_update.value_and_gradient)(problem.theta)
    return compile_program(run, problem.theta, old, problem.batch)


def update_program(problem: Problem, **settings: Any) -> Program:
    """Compile a whole policy update, with the defaults of a run of this size."""
    sizes = resolve_sizes(problem.config)
    defaults = {
        "fisher_batch": every(problem.batch, sizes.fisher_stride),
        "micro_batch_size": sizes.micro_batch_size,
    }
    update = functools.partial(
        trust_region.trust_region_update,
        problem.policy.apply,
        **(defaults | settings),
    )
    return compile_program(update, problem.params, problem.batch)


def every(batch: Any, stride: int) -> Any:
    """Return every `stride`-th row."""
    return jax.tree.map(lambda leaf: leaf[::stride], batch)


def num_parameters(problem: Problem) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(problem.params))
