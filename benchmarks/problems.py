"""Policies and batches for the measurements of curvature and scaling."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import trpo_jax
from benchmarks.harness import Program, compile_program
from trpo_jax.trust_region.flat import flatten

FEATURES = 4
DRAWN_AT_ONCE = 2**15  # bounds the memory for activations of the largest problem


class Problem(NamedTuple):
    """A policy with parameters, and an on-policy batch with random advantages.

    The programs below take the parameters θ in the layout that the update uses.
    """

    policy: Any
    params: Any
    batch: trpo_jax.trust_region.Batch

    @property
    def theta(self) -> Any:
        return flatten(self.params)[0]

    def distribution(self, theta: Any, observations: jax.Array) -> Any:
        return self.policy.apply(flatten(self.params)[1](theta), observations)

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


def draw(
    policy: Any, num_rows: int, key: jax.Array
) -> tuple[Any, trpo_jax.trust_region.Batch]:
    """Draw parameters, and a batch that is on-policy for them."""
    keys = jax.random.split(key, 4)
    observations = jax.random.normal(keys[0], (num_rows, FEATURES))
    params = policy.init(keys[1], observations[:1])
    _, distribution = trpo_jax.trust_region.micro_batched(
        lambda rows: ((), policy.apply(params, rows)),
        observations,
        num_rows=num_rows,
        size=DRAWN_AT_ONCE,
    )
    actions = distribution.sample(keys[2])
    log_probs = distribution.log_prob(actions)
    advantages = jax.random.normal(keys[3], (num_rows,))
    return params, trpo_jax.trust_region.Batch(
        observations, actions, log_probs, advantages
    )


def make_problem(kind: str, num_rows: int, hidden_sizes: tuple[int, ...]) -> Problem:
    policy = make_policy(kind, hidden_sizes)
    drawn = jax.jit(functools.partial(draw, policy, num_rows))
    return Problem(policy, *drawn(jax.random.key(0)))


def surrogate_of(
    problem: Problem, theta: Any, batch: trpo_jax.trust_region.Batch
) -> jax.Array:
    log_probs = problem.distribution(theta, batch.observations).log_prob(batch.actions)
    return trpo_jax.trust_region.surrogate(log_probs, batch.log_probs, batch.advantages)


def gradient_program(problem: Problem, micro_batch_size: int | None = None) -> Program:
    """Compile value and gradient of the surrogate over the whole batch."""

    def differentiate(
        theta: Any, batch: trpo_jax.trust_region.Batch
    ) -> tuple[Any, tuple]:
        fn = functools.partial(surrogate_of, problem)
        return jax.value_and_grad(fn)(theta, batch), ()

    def run(theta: Any, batch: trpo_jax.trust_region.Batch) -> Any:
        return trpo_jax.trust_region.micro_batched(
            functools.partial(differentiate, theta),
            batch,
            num_rows=problem.num_rows,
            size=micro_batch_size,
        )[0]

    return compile_program(run, problem.theta, problem.batch)


def hessian_operator(
    policy_fn: Callable, params: Any, states: jax.Array, *, num_products: int
) -> Callable:
    """Return `jvp` over `grad` of the mean KL, linearised once."""
    old = jax.lax.stop_gradient(policy_fn(params, states))
    return trpo_jax.trust_region.fisher_vector_product(
        lambda theta: trpo_jax.trust_region.mean_kl(old, policy_fn(theta, states)),
        params,
    )


OPERATORS: dict[str, Callable] = {
    "gauss_newton": trpo_jax.trust_region.gauss_newton_vector_product,
    "hessian": hessian_operator,
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

    def solve(theta: Any, gradient: Any, states: jax.Array) -> Any:
        matvec = OPERATORS[operator](
            problem.distribution, theta, states, num_products=10
        )
        return trpo_jax.trust_region.conjugate_gradient(
            lambda v: optax.tree.add_scale(matvec(v), 0.1, v),
            gradient,
            max_iterations=iterations,
            tolerance=tolerance,
        ).x

    _, gradient = gradient_program(problem).run()
    states = problem.batch.observations[::stride]
    return compile_program(solve, problem.theta, gradient, states)


def candidate_program(problem: Problem, micro_batch_size: int | None = None) -> Program:
    """Compile surrogate and KL of one candidate over the whole batch."""
    old = jax.jit(problem.policy.apply)(problem.params, problem.batch.observations)

    def compare(theta: Any, rows: tuple) -> tuple[tuple, jax.Array]:
        batch, old = rows
        new = problem.distribution(theta, batch.observations)
        value = trpo_jax.trust_region.surrogate(
            new.log_prob(batch.actions), batch.log_probs, batch.advantages
        )
        kl = old.kl_divergence(new)
        return (value, kl.mean()), kl

    def is_row(leaf: jax.Array) -> bool:
        return leaf.shape[:1] == (problem.num_rows,)

    def run(theta: Any, rows: tuple) -> Any:
        return trpo_jax.trust_region.micro_batched(
            functools.partial(compare, theta),
            rows,
            num_rows=problem.num_rows,
            size=micro_batch_size,
            is_row=jax.tree.map(is_row, rows),
        )

    return compile_program(run, problem.theta, (problem.batch, old))


def update_program(problem: Problem, **settings: Any) -> Program:
    """Compile a whole policy update, with the defaults of a run of this size."""
    config = problem.config
    defaults = {
        "fisher_stride": config.curvature_stride,
        "micro_batch_size": config.steps_at_once,
    }
    update = functools.partial(
        trpo_jax.trust_region.trust_region_update,
        problem.policy.apply,
        **(defaults | settings),
    )
    return compile_program(update, problem.params, problem.batch)


def num_parameters(problem: Problem) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(problem.params))
