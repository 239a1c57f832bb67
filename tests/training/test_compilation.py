"""The options that programs are compiled with, and where they cannot be."""

import gc
import weakref

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import checking_leaks
from probes import CHAIN, TABULAR

from trpo_jax import TRPOConfig, compiler_options, evaluate, init, step, train
from trpo_jax.environments import Box, make_environment, squash_actions
from trpo_jax.environments.contract import check_environment
from trpo_jax.networks import NetworkFns
from trpo_jax.training.compilation import jit_with_options
from trpo_jax.trust_region import Categorical


def scale(config, x, power):
    factor = config() if callable(config) else config
    return factor * x**power


def test_xla_knows_every_option():
    for env_steps in (None, 0, 10**9):
        options = compiler_options(env_steps)
        assert jax.jit(jnp.sin, compiler_options=options)(0.0) == 0.0


def test_a_short_run_has_a_program_that_is_quick_to_compile():
    assert compiler_options(1000)["xla_cpu_use_fusion_emitters"] is False
    assert "xla_cpu_use_fusion_emitters" not in compiler_options(10**9)
    assert compiler_options(10**9) == compiler_options()


def test_what_runs_once_is_compiled_without_optimisations():
    assert compiler_options(0)["xla_backend_optimization_level"] == 0
    assert compiler_options(1)["xla_backend_optimization_level"] == 1


def test_an_accelerator_has_the_defaults(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler_options() == compiler_options(1000) == {}


def test_the_same_function_and_options_are_the_same_program():
    first = jit_with_options(scale, 3, env_steps=1, static_argnums=(1,))
    assert jit_with_options(scale, 3, env_steps=2, static_argnums=(1,)) is first
    assert jit_with_options(scale, 3, env_steps=10**9, static_argnums=(1,)) != first
    assert jit_with_options(scale, 4, env_steps=1, static_argnums=(1,)) != first
    assert first(2.0, 2) == 12.0


TRANSFORMS = {
    "jit": jax.jit,
    "vmap": lambda f: lambda x: jax.vmap(f)(x[None])[0],
    "grad": jax.value_and_grad,
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),)),
    "linearize": lambda f: lambda x: jax.linearize(f, x)[0],
}
EVERY_TRANSFORM = pytest.mark.parametrize(
    "transform", TRANSFORMS.values(), ids=TRANSFORMS
)


@EVERY_TRANSFORM
def test_it_can_be_part_of_another_program(transform):
    """With traced arguments, with none, or with a config that holds tracers."""

    def outer(x):
        by_argument = jit_with_options(scale, 3, env_steps=1, static_argnums=(1,))
        by_config = jit_with_options(scale, lambda: x, env_steps=1)
        return by_argument(x, 1) + by_config(1.0, 1) + 0 * by_argument(2.0, 1)

    values = jax.tree.leaves(transform(outer)(jnp.float32(2.0)))
    assert values == [8.0, 4.0][: len(values)]


def tabular_run(x):
    """A run whose reward is multiplied by x, in the environment's parameters."""
    tables = CHAIN.replace(reward=x * CHAIN.reward)
    return tiny_run(env=(TABULAR, tables))


def own_run(x):
    """The same, in an attribute of an environment's object."""

    class Multiplied(type(TABULAR)):
        def step_env(self, *arguments):
            observation, state, reward, *rest = super().step_env(*arguments)
            return observation, state, x * reward, *rest

    return tiny_run(env=(Multiplied(), CHAIN))


def tiny_run(**fields):
    return TRPOConfig(
        **fields,
        num_envs=2,
        rollout_length=8,
        total_timesteps=16,
        hidden_sizes=(),
    )


def scheduled_run(x):
    schedule = optax.linear_schedule(x, 0.0, 2)
    return tiny_run(env=(TABULAR, CHAIN), max_kl_schedule=schedule)


def last_return(config):
    """Advantages are standardised: the policy does not depend on a reward's scale."""
    metrics = train(config, jax.random.key(0)).metrics
    return metrics.episode_return[-1]


@pytest.fixture(scope="module")
def alone():
    return last_return(tabular_run(1.0))


@pytest.mark.parametrize(
    ("name", "run"),
    [("grad", tabular_run), ("grad", own_run), ("jvp", own_run), ("vmap", tabular_run)],
)
def test_a_number_in_the_environment_can_be_transformed(name, run, alone):
    transform = TRANSFORMS[name]
    values = jax.tree.leaves(transform(lambda x: last_return(run(x)))(jnp.float32(2)))
    expected = [2 * alone, alone][: len(values)]
    np.testing.assert_allclose(values, expected, rtol=1e-4)


def test_a_number_in_a_schedule_can_be_transformed():
    def radius(x):
        return train(scheduled_run(x), jax.random.key(0)).metrics.max_kl[0]

    np.testing.assert_allclose(jax.grad(radius)(2.0), 0.01, rtol=1e-5)


def tabular(x):
    return make_environment((TABULAR, CHAIN.replace(reward=x * CHAIN.reward)))


def squashed(x):
    env, params = gymnax.make("Pendulum-v1")
    return squash_actions(Reweighted(env, params, x))


class Reweighted:
    """An environment of nobody's suite, with a number in an attribute."""

    observation_shape = (3,)
    action_space = Box(1, (-2.0,), (2.0,))

    def __init__(self, env, params, weight):
        self._inside = make_environment((env, params))
        self._weight = weight

    def reset(self, key):
        return self._inside.reset(key)

    def step(self, key, state, action):
        state, taken = self._inside.step(key, state, action)
        return state, taken._replace(reward=self._weight * taken.reward)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        *((name, make) for name in TRANSFORMS for make in (tabular, squashed)),
        ("vmap", tabular_run),
        ("linearize", own_run),
    ],
)
def test_no_cache_keeps_tracers(name, make):
    made = []

    def function(x):
        config = make(x)
        environment = getattr(config, "env", config)
        made.append(weakref.ref(environment))
        check_environment(environment)
        if environment is not config:
            last_return(config)
        return x

    with checking_leaks():
        TRANSFORMS[name](function)(jnp.float32(2.0))
        gc.collect()  # which, in this block, goes through nothing from before it
    assert [reference() for reference in made] == [None]


def with_policy(x):
    policy = NetworkFns(
        lambda key, observations: jnp.zeros((3, 2)),
        lambda params, observations: Categorical(x * (observations @ params)),
    )
    return tiny_run(env=(TABULAR, CHAIN), policy=policy)


def with_optimizer(x):
    return tiny_run(
        env=(TABULAR, CHAIN),
        critic_fit="first_order",
        critic_optimizer=lambda rate: optax.sgd(x * rate),
    )


@pytest.mark.parametrize("make", [with_policy, with_optimizer, scheduled_run])
def test_no_cache_keeps_a_config_that_holds_tracers(make):
    made = []

    def function(x):
        config = make(x)
        made.append(weakref.ref(config))
        key = jax.random.key(0)
        jax.eval_shape(lambda: evaluate(config, init(config, key), key, 2))
        jax.eval_shape(lambda: train(config, key)[:2])
        return x

    with checking_leaks():
        jax.grad(function)(jnp.float32(2.0))
        gc.collect()
    assert [reference() for reference in made] == [None]


@pytest.mark.parametrize(
    ("make", "part"), [(with_policy, "params"), (with_optimizer, "critic_params")]
)
def test_a_number_in_a_policy_or_an_optimizer_can_be_differentiated(make, part):
    def distance(x):
        config = make(x)
        start = init(config, jax.random.key(0))
        after, _ = step(config, start)
        change = optax.tree.sub(getattr(after, part), getattr(start, part))
        return optax.tree.norm(change)

    program = jax.jit(jax.value_and_grad(distance))
    behind, here, ahead = (program(x) for x in (1.9, 2.0, 2.1))
    np.testing.assert_allclose(here[1], (ahead[0] - behind[0]) / 0.2, rtol=0.02)
    assert here[1] != 0


@pytest.mark.parametrize(
    "transform",
    [
        jax.checkpoint,
        lambda f: lambda x: jax.lax.map(f, x[None])[0],
        lambda f: lambda x: jax.lax.cond(x > 0, f, jnp.zeros_like, x),
    ],
    ids=["remat", "scan", "cond"],
)
def test_a_number_in_the_environment_under_control_flow(transform, alone):
    value, slope = jax.value_and_grad(transform(lambda x: last_return(tabular_run(x))))(
        jnp.float32(2.0)
    )
    np.testing.assert_allclose((value, slope), (2 * alone, alone), rtol=1e-4)
