"""Environment steps per second of training, and the time of its parts.

    python -m benchmarks.throughput

The whole is `step` at the defaults: rollout, policy update, critic fit. The parts are
separate programs on the same data, timed in turns with the whole. The difference
between the whole and their sum is "rest" (standardisation, normalisers, metrics).
"""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import tyro

import trpo_jax
from benchmarks.harness import (
    RESULTS,
    Program,
    compile_program,
    take_turns,
    write_rows,
)
from benchmarks.problems import (
    Problem,
    candidate_program,
    every,
    gradient_program,
    solve_program,
    update_program,
)
from trpo_jax.training.components import make_networks
from trpo_jax.training.critic import Regression, fit_critic_in_trust_region
from trpo_jax.training.defaults import resolve_sizes


@dataclasses.dataclass(frozen=True)
class Case:
    env: str
    num_envs: int
    rollout_length: int
    hidden_sizes: tuple[int, ...] = (64, 64)
    num_seeds: int = 1

    @property
    def config(self) -> trpo_jax.TRPOConfig:
        return trpo_jax.TRPOConfig(
            env=self.env,
            num_envs=self.num_envs,
            rollout_length=self.rollout_length,
            total_timesteps=self.num_envs * self.rollout_length,
            hidden_sizes=self.hidden_sizes,
            num_seeds=self.num_seeds,
        )


CASES = (
    *(Case("CartPole-v1", num_envs, 128) for num_envs in (8, 64, 1024)),
    Case("CartPole-v1", 64, 128, hidden_sizes=(256, 256)),
    Case("CartPole-v1", 8, 128, num_seeds=16),
    Case("Acrobot-v1", 64, 128),
    Case("Pendulum-v1", 64, 128),
    Case("Pendulum-v1", 1024, 128),
)
ACCELERATOR_CASES = (
    *(Case("CartPole-v1", 2**k, 128) for k in (10, 12, 14)),
    Case("CartPole-v1", 2**16, 32),
    Case("CartPole-v1", 2**12, 128, hidden_sizes=(1024, 1024)),
    Case("Pendulum-v1", 2**12, 128),
    Case("CartPole-v1", 8, 128, num_seeds=1024),
)


def whole(config: trpo_jax.TRPOConfig) -> tuple[Program, Any]:
    """Compile `step` for a state one update into training; return both."""
    init, step = trpo_jax.init, trpo_jax.step
    key = jax.random.key(0)
    if config.num_seeds > 1:
        init, step = (jax.vmap(fn, in_axes=(None, 0)) for fn in (init, step))
        key = jax.random.split(key, config.num_seeds)
    state = jax.jit(init)(config, key)
    program = compile_program(step, config, state)
    state, _ = program.run()
    return program, state


def parts(config: trpo_jax.TRPOConfig, state: Any) -> dict[str, Program]:
    """Compile the parts of a step as separate programs, on the data of one rollout."""
    environment = trpo_jax.environments.make_environment(config.env)
    policy, critic = make_networks(config, environment)
    sizes = resolve_sizes(config)

    def act(state: Any, key: jax.Array) -> Any:
        def draw(key: jax.Array, memory: Any, seen: jax.Array, starts: Any) -> Any:
            distribution = policy.apply(state.params, seen)
            action = distribution.sample(key)
            return memory, action, distribution.log_prob(action)

        return trpo_jax.training.rollout(
            draw,
            environment,
            state.rollout,
            key,
            num_steps=config.rollout_length,
        )

    def judge(state: Any, trajectory: trpo_jax.training.Trajectory) -> jax.Array:
        shape = trajectory.reward.shape
        values = critic.apply(
            state.critic_params, flatten(trajectory.observation)
        ).reshape(shape)
        return trpo_jax.training.generalized_advantages(
            trajectory.reward,
            values,
            values,
            trajectory.terminated,
            trajectory.truncated,
            discount=0.99,
            gae_lambda=0.95,
        )

    def fit(state: Any, observations: jax.Array, targets: jax.Array) -> Any:
        return fit_critic_in_trust_region(
            critic.apply,
            state.critic_params,
            Regression(observations, targets),
            fisher_batch=every(Regression(observations, targets), sizes.critic_stride),
            micro_batch_size=sizes.micro_batch_size,
        )

    rollout = compile_program(act, state, jax.random.key(1))
    _, trajectory = rollout.run()
    advantages = compile_program(judge, state, trajectory)
    targets = flatten(advantages.run())
    batch = trpo_jax.trust_region.Batch(
        flatten(trajectory.observation),
        flatten(trajectory.action),
        flatten(trajectory.log_prob),
        trpo_jax.training.standardize(targets),
    )
    problem = Problem(policy, state.params, batch)
    rows, stride = sizes.micro_batch_size, sizes.fisher_stride
    return {
        "rollout": rollout,
        "values and advantages": advantages,
        "gradient": gradient_program(problem, rows),
        "conjugate gradient": solve_program(
            problem,
            "gauss_newton",
            config.cg_iterations,
            stride=stride,
            tolerance=config.cg_tolerance,
        ),
        "line search, one candidate": candidate_program(problem, rows),
        "policy update, whole": update_program(problem, micro_batch_size=rows),
        "critic": compile_program(fit, state, batch.observations, targets),
    }


def flatten(leaf: jax.Array) -> jax.Array:
    return leaf.reshape(-1, *leaf.shape[2:])


def measure(case: Case, seconds: float) -> dict:
    config = case.config
    program, state = whole(config)
    programs = {"step": program}
    if config.num_seeds == 1:
        programs |= parts(config, state)
    timings = take_turns(programs, seconds=seconds)
    step = timings["step"]
    shares = {
        name: timing.median / step.median
        for name, timing in timings.items()
        if name != "step"
    }
    if shares:
        update = shares.pop("policy update, whole")
        named = ("gradient", "conjugate gradient", "line search, one candidate")
        shares["update, rest"] = update - sum(shares[name] for name in named)
        shares["rest"] = 1 - sum(shares.values())
    return {
        "case": dataclasses.asdict(case),
        "steps_per_second": config.num_seeds * config.batch_size / step.median,
        "trace_seconds": program.trace_seconds,
        "compile_seconds": program.compile_seconds,
        "temporary_bytes": program.temporary_bytes,
        "seconds": timings,
        "shares": shares,
    }


def main(
    seconds: float = 4.0, output: pathlib.Path = RESULTS / "throughput.jsonl"
) -> None:
    """Measure each case for `seconds`."""
    on_cpu = jax.default_backend() == "cpu"
    cases: tuple[Case, ...] = CASES if on_cpu else ACCELERATOR_CASES

    def rows() -> Iterator[dict]:
        for case in cases:
            yield measure(case, seconds)

    write_rows(output, rows())


if __name__ == "__main__":
    tyro.cli(main)
