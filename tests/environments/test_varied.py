"""A different environment in each row of a batch."""

import dataclasses
import re

import gymnax
import gymnax.wrappers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit
from probes import CHAIN, TABULAR
from tiny import Line

import trpo_jax
from trpo_jax.environments import (
    Box,
    Discrete,
    VariedEnvironment,
    make_environment,
)
from trpo_jax.environments.varied import reset_batch

KEYS = jax.random.split(jax.random.key(0), 3)
SMALL = {
    "num_envs": 3,
    "rollout_length": 8,
    "total_timesteps": 48,
    "hidden_sizes": (4,),
}


def pendulum(**params):
    env, default = gymnax.make("Pendulum-v1")
    return env, dataclasses.replace(default, **params)


def play(environment, keys):
    """Four steps with the same actions in each row."""

    def act(state, index):
        actions = jnp.full((len(keys), 1), 0.5 * index)
        return jax.vmap(environment.step)(keys, state, actions)

    state, _ = reset_batch(environment, keys)
    return jax.lax.scan(act, state, jnp.arange(4))[1]


def of_row(steps, row):
    return jax.tree.map(lambda leaf: leaf[:, row], steps)


def assert_close(left, right):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), left, right)


@pytest.mark.parametrize("name", ["g", "max_torque"])
def test_each_row_is_the_environment_with_its_parameters(name):
    values = [2.0, 10.0, 30.0]
    varied = make_environment(pendulum(**{name: jnp.array(values)}))
    assert make_environment(varied) is varied
    got = fast_jit(play, static_argnums=0)(varied, KEYS)
    for row, value in enumerate(values):
        alone = make_environment(pendulum(**{name: value}))
        expected = fast_jit(play, static_argnums=0)(alone, KEYS)
        assert_close(of_row(got, row), of_row(expected, row))


def test_bounds_that_differ_are_left_to_the_environments():
    bounded = make_environment(pendulum(g=jnp.ones(3))).action_space
    assert bounded == Box(1, (-2.0,), (2.0,))
    torques = make_environment(pendulum(max_torque=jnp.ones(3)))
    assert torques.action_space == Box(1)


def test_rows_keep_their_parameters_through_episodes():
    """The reward of row i is i, in training and in more episodes than rows."""
    reward = jnp.arange(3.0)[:, None, None] * jnp.ones((3, *CHAIN.reward.shape))
    tables = dataclasses.replace(CHAIN, reward=reward)
    config = trpo_jax.TRPOConfig(env=(TABULAR, tables), **SMALL)
    result = trpo_jax.train(config)
    rows = result.state.rollout.env_state.params
    np.testing.assert_array_equal(jax.tree.leaves(rows)[0], reward)
    returns = trpo_jax.evaluate(config, result.state, jax.random.key(1), 5)
    assert returns[0] == returns[3] == 0
    assert returns[1] >= 1
    assert returns[2] >= 2
    assert returns[4] >= 1
    # Fewer are spread over the rows, not taken from the first ones.
    returns = trpo_jax.evaluate(config, result.state, jax.random.key(1), 2)
    assert returns[0] == 0
    assert returns[1] >= 1
    many = VariedEnvironment(Heavy, jnp.arange(64.0))
    state, _ = reset_batch(many, jax.random.split(jax.random.key(0), 8))
    np.testing.assert_array_equal(state.params, 8 * jnp.arange(8))


def test_actions_may_be_squashed():
    config = trpo_jax.TRPOConfig(
        env=pendulum(g=jnp.array([5.0, 10.0, 15.0])),
        action_distribution="tanh_gaussian",
        **SMALL,
    )
    state = jax.eval_shape(trpo_jax.init, config, jax.random.key(0))
    (g,) = jax.tree.leaves(state.rollout.env_state.params)
    assert g.shape == (3,)


class Heavy(Line):
    """Pays its weight."""

    picture_suffix = ".txt"

    def __init__(self, weight):
        super().__init__(Discrete(2))
        self._weight = weight

    def step(self, key, state, action):
        state, step = super().step(key, state, action)
        return state, step._replace(reward=self._weight)

    def draw(self, states, returns, path):
        path.write_text(f"weight {self._weight}, {len(states)} steps")


def test_a_family_of_ones_own_is_varied():
    environment = VariedEnvironment(Heavy, jnp.array([1.0, 2.0, 4.0]))
    assert re.fullmatch(
        r"VariedEnvironment\(Heavy × 3, parameters [0-9a-f]{8}\)", repr(environment)
    )
    config = trpo_jax.TRPOConfig(env=environment, **SMALL)
    metrics = trpo_jax.train(config).metrics
    np.testing.assert_allclose(metrics.episode_return, 7 / 3, rtol=1e-6)


def test_the_environment_of_the_row_draws(tmp_path):
    environment = VariedEnvironment(Heavy, jnp.array([1.0, 2.0]))
    assert environment.picture_suffix == ".txt"
    state, _ = reset_batch(environment, jax.random.split(jax.random.key(0)))
    steps = jax.tree.map(lambda leaf: np.asarray(leaf)[[1, 1, 1]], state)
    environment.draw(steps, np.zeros(3, np.float32), tmp_path / "heavy.txt")
    assert (tmp_path / "heavy.txt").read_text() == "weight 2.0, 3 steps"


def test_a_run_is_told_from_one_with_other_parameters(tmp_path):
    """Those of rows, those that all rows share, and those of a single environment."""
    rows = jnp.ones(3)
    pairs = [
        (pendulum(g=rows), pendulum(g=2 * rows)),
        (pendulum(g=rows), pendulum(g=rows, m=2.0)),
        (pendulum(g=1.0), pendulum(g=2.0)),
    ]
    for first, second in pairs:
        names = [repr(make_environment(one)) for one in (first, second)]
        assert names[0] != names[1]
    config, other = (trpo_jax.TRPOConfig(env=env, **SMALL) for env in pairs[0])
    trpo_jax.run(config, tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match=r"env: .*parameters [0-9a-f]{8}"):
        trpo_jax.resume(tmp_path / "run", other, progress=False)


def test_the_same_numbers_are_the_same_environment():
    names = {
        repr(make_environment(pendulum(g=g)))
        for g in (5, 5.0, np.float64(5), jnp.float32(5), np.int32(5))
    }
    assert len(names) == 1
    for default in (pendulum(), pendulum(g=jnp.float32(10))):
        assert repr(make_environment(default)) == "GymnaxEnvironment(Pendulum-v1)"
    rows = [pendulum(**{name: jnp.ones(3)}) for name in ("g", "m")]
    assert len({repr(make_environment(one)) for one in rows}) == 2


@pytest.mark.parametrize("num_envs", [2, 6])
def test_parameters_for_another_number_of_environments_are_refused(num_envs):
    env = pendulum(g=jnp.ones(3))
    fields = SMALL | {"num_envs": num_envs}
    with pytest.raises(ValueError, match=r"for 3 env.*num_envs=3, or .* of \d\."):
        trpo_jax.TRPOConfig(env=env, **fields)
    trpo_jax.TRPOConfig(env=env, **SMALL)


@pytest.mark.parametrize(
    "params",
    [{"a": jnp.ones(3), "b": jnp.ones((2, 1))}, {"a": 1.0}, {"a": jnp.ones(0)}, {}],
)
def test_parameters_need_the_same_number_of_rows(params):
    with pytest.raises(ValueError, match="same number of rows"):
        VariedEnvironment(lambda params: Heavy(params["a"]), params)


def test_an_environment_on_the_host_is_refused():
    with pytest.raises(ValueError, match=r"stepped on the host.*another suite"):
        VariedEnvironment(
            lambda _: make_environment("gymnasium/CartPole-v1"), jnp.arange(2.0)
        )


def test_one_that_makes_no_environment_is_refused():
    advice = "return an Environment, such as .*GymnaxEnvironment"
    with pytest.raises(TypeError, match=advice):
        VariedEnvironment(lambda params: params, {"a": jnp.ones(3)})


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"g": jnp.ones((3, 2))}, r"params\.g has the shape \(3, 2\) and by .* \(\)"),
        ({"g": jnp.ones(0)}, r"params\.g has the shape \(0,\).* \[num_envs\]"),
        ({"g": "ten"}, r"params\.g is the str 'ten'; write env\.default_params"),
        ({"g": [5.0, 10.0]}, r"params\.g is not a number or an array; .* arrays"),
        ({"g": None}, r"params\.g is not a number or an array"),
        ({"g": jnp.ones(3), "m": jnp.ones(2)}, r"\.g.*\.m.* same number of rows"),
    ],
)
def test_parameters_of_other_shapes_are_refused(change, advice):
    with pytest.raises((ValueError, TypeError), match=advice):
        trpo_jax.TRPOConfig(env=pendulum(**change), **SMALL)


@pytest.mark.parametrize(
    "params", [{"g": 10.0}, gymnax.make("CartPole-v1")[1], type(pendulum()[1])]
)
def test_parameters_of_another_environment_are_refused(params):
    with pytest.raises(TypeError, match=r"takes .*pendulum\.EnvParams: write env\."):
        make_environment((pendulum()[0], params))


@pytest.mark.parametrize(
    "wrapper",
    [gymnax.wrappers.LogWrapper, gymnax.wrappers.FlattenObservationWrapper],
)
def test_wrappers_of_gymnax_are_taken(wrapper):
    env, params = pendulum(g=jnp.array([5.0, 10.0, 15.0]))
    varied = make_environment((wrapper(env), params))
    alone = make_environment((wrapper(env), pendulum(g=15.0)[1]))
    got, expected = (
        fast_jit(play, static_argnums=0)(one, KEYS) for one in (varied, alone)
    )
    assert_close(of_row(got, 2), of_row(expected, 2))
