import os
import subprocess
import sys
import urllib.error

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit
from gymnax.environments import spaces
from gymnax.environments.classic_control.cartpole import EnvParams
from probes import CHAIN, TABULAR, TWO_CHOICES, Tabular

from trpo_jax import TRPOConfig, train
from trpo_jax.environments import (
    Box,
    CostEnvironment,
    Discrete,
    Environment,
    MultiDiscrete,
    TimeStep,
    VariedEnvironment,
    make_environment,
    make_gymnax,
    squash_actions,
)
from trpo_jax.environments.protocol import step_without_reset

# The one that is left out downloads its data.
IDS = [env for env in gymnax.registered_envs if env != "MNISTBandit-bsuite"]
KEY = jax.random.key(0)


def example_action(environment):
    match environment.action_space:
        case Box(size):
            return jnp.zeros(size)
        case MultiDiscrete(num_actions):
            return jnp.zeros(len(num_actions), jnp.int32)
        case Discrete(_):
            return jnp.int32(0)


def describe(leaf):
    return leaf.shape, leaf.dtype, leaf.weak_type


def test_ids_are_all_of_gymnax():
    assert len(IDS) == 25


@pytest.mark.parametrize("env_id", IDS)
def test_every_environment_keeps_the_protocols_types(env_id):
    environment = make_environment(env_id)
    state, observation = jax.eval_shape(environment.reset, KEY)
    following, taken = jax.eval_shape(
        environment.step, KEY, state, example_action(environment)
    )
    assert jax.tree.map(describe, following) == jax.tree.map(describe, state)
    strong = (environment.observation_shape, jnp.float32, False)
    assert describe(observation) == strong
    assert describe(taken.observation) == strong
    assert describe(taken.final_observation) == strong
    assert describe(taken.reward) == ((), jnp.float32, False)
    assert describe(taken.terminated) == describe(taken.truncated) == ((), bool, False)


def types(environment, action_dtype=None):
    """Types of the state and the observation, before and after one step."""
    action = example_action(environment)
    started = jax.eval_shape(environment.reset, KEY)
    action = action.astype(action_dtype or action.dtype)
    stepped = jax.eval_shape(environment.step, KEY, started[0], action)
    return jax.tree.map(describe, (started, stepped))


def wide(action):
    return jnp.int64 if jnp.issubdtype(action.dtype, jnp.integer) else jnp.float64


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")
@pytest.mark.parametrize("env_id", IDS)
def test_double_precision_changes_no_types(env_id):
    """Neither of an environment made before it is switched on, nor of one made in it,
    whose parameters and attributes have 64 bits."""
    environment = make_environment(env_id)
    expected = types(environment)
    with jax.enable_x64(True):
        action = wide(example_action(environment))
        assert types(environment, action) == expected
        env, params = gymnax.make(env_id)
        params = jax.tree.map(jnp.asarray, params)
        assert types(make_environment((env, params)), action) == expected


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "Catch-bsuite"])
def test_double_precision_changes_no_bits(env_id):
    environment = make_environment(env_id)

    def play(key):
        def act(state, key):
            return environment.step(key, state, example_action(environment))

        keys = jax.random.split(key, 4)
        return jax.lax.scan(act, environment.reset(key)[0], keys)

    single = fast_jit(play)(KEY)
    with jax.enable_x64(True):
        double = fast_jit(play)(KEY)
    assert jax.tree.map(describe, double) == jax.tree.map(describe, single)
    jax.tree.map(np.testing.assert_array_equal, double, single)


def test_training_in_double_precision():
    config = TRPOConfig(
        env="Pendulum-v1",
        num_envs=2,
        rollout_length=4,
        total_timesteps=16,
        hidden_sizes=(4,),
    )
    with jax.enable_x64(True):
        result = train(config)
    assert np.isfinite(result.metrics.critic_loss).all()


def test_a_key_of_another_implementation_serves():
    environment = make_environment("CartPole-v1")
    key = jax.random.key(0, impl="rbg")
    state, _ = environment.reset(key)
    _, taken = environment.step(key, state, jnp.int32(0))
    assert np.isfinite(taken.observation).all()


@pytest.mark.parametrize("env_id", IDS)
def test_every_environment_steps_in_a_batch(env_id):
    environment = make_environment(env_id)

    @fast_jit
    @jax.vmap
    def play(key):
        state, observation = environment.reset(key)
        return observation, environment.step(key, state, example_action(environment))

    observation, (_, taken) = play(jax.random.split(KEY, 2))
    assert observation.shape == (2, *environment.observation_shape)
    assert np.isfinite(observation).all()
    assert np.isfinite(taken.final_observation).all()
    assert np.isfinite(taken.reward).all()
    done = taken.terminated | taken.truncated
    for before, after, ended in zip(
        taken.final_observation, taken.observation, done, strict=True
    ):
        assert ended or np.allclose(before, after, atol=1e-6)


@pytest.mark.parametrize("env_id", ["FourRooms-misc", "UmbrellaChain-bsuite"])
def test_integers_are_cast_and_otherwise_as_gymnax_gives_them(env_id):
    environment = make_environment(env_id)
    env, params = gymnax.make(env_id)
    raw_observation, raw_state = env.reset(KEY, params)
    raw = env.step(KEY, raw_state, 1, params)
    assert jnp.issubdtype(raw_observation.dtype, jnp.integer) or jnp.issubdtype(
        raw[2].dtype, jnp.integer
    )
    state, observation = environment.reset(KEY)
    _, taken = environment.step(KEY, state, jnp.int32(1))
    np.testing.assert_array_equal(observation, raw_observation)
    expected = (raw[0], raw[2], raw[3], raw[4], raw[5]["final_observation"])
    jax.tree.map(np.testing.assert_array_equal, taken, TimeStep(*expected))


def test_a_discrete_observation_is_one_hot():
    environment = make_environment("FrozenLake-misc")
    assert environment.observation_shape == (16,)
    state, observation = environment.reset(KEY)
    np.testing.assert_array_equal(observation, np.eye(16)[0])
    _, taken = environment.step(KEY, state, jnp.int32(1))
    assert sorted(taken.final_observation.tolist()) == [0] * 15 + [1]


def test_actions_are_clipped_before_the_reward_sees_them():
    """This environment's reward takes 0.1 a² of the action as it comes."""
    environment = make_environment("MountainCarContinuous-v0")
    state, _ = environment.reset(KEY)
    actions = {"inside": 0.5, "bound": 1.0, "outside": 7.0}
    rewards = {
        name: environment.step(KEY, state, jnp.array([action]))[1].reward
        for name, action in actions.items()
    }
    np.testing.assert_allclose(rewards["inside"], -0.1 * 0.5**2, rtol=1e-5)
    np.testing.assert_allclose(rewards["bound"], -0.1, rtol=1e-5)
    assert rewards["outside"] == rewards["bound"]


class Reached(Tabular):
    """Its action is a matrix with bounds of its own for each entry, and its reward."""

    LOW, HIGH = jnp.array([[-1.0], [0.0]]), jnp.array([[1.0], [5.0]])

    def step_env(self, key, state, action, params):
        assert action.shape == (2, 1)
        reward = 10 * action[0, 0] + action[1, 0]
        observation, following, _, *rest = super().step_env(key, state, 0, params)
        return observation, following, reward, *rest

    def action_space(self, params):
        return spaces.Box(self.LOW, self.HIGH, (2, 1))


def test_a_box_of_any_shape_takes_flat_actions():
    environment = make_environment((Reached(), CHAIN))
    assert environment.action_space == Box(2, (-1.0, 0.0), (1.0, 5.0))
    state, _ = environment.reset(KEY)
    _, taken = environment.step(KEY, state, jnp.array([-3.0, 7.0]))
    assert taken.reward == -10 + 5


def test_a_tuple_of_choices_is_one_action():
    environment = make_environment((TWO_CHOICES, CHAIN))
    assert environment.action_space == MultiDiscrete((2, 3))
    state, _ = environment.reset(KEY)
    for first in (0, 1):
        _, taken = environment.step(KEY, state, jnp.array([first, 2]))
        assert taken.reward == CHAIN.reward[state.position, first]


def test_termination_wins_where_both_flags_are_set():
    env, params = gymnax.make("DeepSea-bsuite")
    environment = make_environment((env, params))
    _, raw_state = env.reset(KEY, params)
    state, _ = environment.reset(KEY)
    for step in range(8):
        _, raw_state, _, *raw_flags, _ = env.step(KEY, raw_state, 0, params)
        state, taken = environment.step(KEY, state, jnp.int32(0))
        assert [bool(flag) for flag in raw_flags] == [step == 7, step == 7]
        assert taken.terminated == (step == 7)
        assert not taken.truncated


def test_an_episode_is_cut_exactly_at_its_limit():
    env, params = gymnax.make("Pendulum-v1")
    environment = make_environment((env, params.replace(max_steps_in_episode=3)))
    state, _ = environment.reset(KEY)
    cuts = []
    for key in jax.random.split(KEY, 7):
        state, taken = environment.step(key, state, jnp.zeros(1))
        cuts.append(bool(taken.truncated))
        assert not taken.terminated
    assert cuts == [False, False, True, False, False, True, False]


def test_final_observation_is_the_last_and_observation_the_first():
    """The task ends in the last state; the next episode starts in the first."""
    environment = make_environment((TABULAR, CHAIN.replace(num_starts=jnp.int32(1))))
    state, _ = environment.reset(KEY)
    last = state.replace(position=jnp.int32(3))
    state, taken = environment.step(KEY, last, jnp.int32(1))
    assert taken.terminated
    np.testing.assert_array_equal(taken.final_observation, CHAIN.features[3])
    np.testing.assert_array_equal(taken.observation, CHAIN.features[0])
    assert (state.position, state.time) == (0, 0)


def test_every_episode_starts_anew():
    env, params = gymnax.make("CartPole-v1")
    environment = make_environment((env, params.replace(max_steps_in_episode=1)))
    state, first = environment.reset(KEY)
    starts = [first.tolist()]
    for key in jax.random.split(KEY, 4):
        state, taken = environment.step(key, state, jnp.int32(0))
        assert taken.truncated
        starts.append(taken.observation.tolist())
    assert len(np.unique(np.round(starts, 6), axis=0)) == 5


def test_a_registered_environment_is_known_by_its_id():
    gymnax.register("Tabular-registered", Tabular)
    environment = make_environment("Tabular-registered")
    assert environment.action_space == Discrete(2)
    assert environment.observation_shape == (4,)


def test_an_environment_made_while_tracing_serves_afterwards():
    """This one holds an array of its own, made when it is constructed."""
    gymnax.register("DeepSea-traced", lambda: gymnax.make("DeepSea-bsuite")[0])

    @fast_jit
    def start(key):
        return make_environment("DeepSea-traced").reset(key)

    traced = start(KEY)
    environment = make_environment("DeepSea-traced")
    jax.tree.map(np.testing.assert_array_equal, traced, environment.reset(KEY))


def test_spaces_with_arrays_are_read_while_a_program_is_traced():
    class Counted(type(gymnax.make("FrozenLake-misc")[0])):
        def observation_space(self, params):
            return gymnax.environments.spaces.Discrete(jnp.int32(15) + 1)

    pair = Counted(), gymnax.make("FrozenLake-misc")[1]
    state_of = fast_jit(lambda key: make_environment(pair).reset(key)[1])
    np.testing.assert_array_equal(state_of(KEY), np.eye(16)[0])


def test_the_same_argument_is_the_same_object():
    assert make_environment("CartPole-v1") is make_environment("CartPole-v1")
    first = make_environment((TABULAR, CHAIN))
    assert make_environment((TABULAR, CHAIN)) is first
    assert make_environment(first) is first
    other = make_environment((TABULAR, CHAIN.replace(num_starts=1)))
    assert other is not first
    assert other != first
    assert len({hash(first), hash(other)}) == 2


def test_an_environment_alone_has_its_default_parameters():
    env, params = gymnax.make("CartPole-v1")
    environment = make_environment(env)
    assert make_environment(env) is environment
    assert make_environment((env, None)) is environment
    assert environment.name == "CartPole-v1"
    state, _ = environment.reset(KEY)
    with_params = make_environment((env, params)).step(KEY, state, jnp.int32(1))
    alone = environment.step(KEY, state, jnp.int32(1))
    jax.tree.map(np.testing.assert_array_equal, alone, with_params)


def test_a_parameter_beyond_32_bits_is_refused():
    env, params = gymnax.make("CartPole-v1")
    with jax.enable_x64(True):
        by_jax = jnp.int64(2**40)
    for number in (2**40, np.int64(2**40), np.array([500, 2**40]), by_jax):
        with pytest.raises(ValueError, match=r"in_episode is 1099.*2147483647"):
            make_environment((env, params.replace(max_steps_in_episode=number)))
    fits = params.replace(max_steps_in_episode=np.int64(1))
    state, _ = make_environment((env, fits)).reset(KEY)
    _, taken = make_environment((env, fits)).step(KEY, state, jnp.int32(1))
    assert taken.truncated


@pytest.mark.usefixtures("no_shape_checks")
def test_a_class_is_refused_with_its_instance():
    with pytest.raises(TypeError, match=r"env is the class Tabular; .* Tabular\(\)"):
        make_environment(Tabular)


@pytest.mark.parametrize("transform", [jax.jit, jax.grad])
def test_an_action_may_have_a_bound_that_is_traced(transform):
    """Pendulum's torque is clipped to one of its parameters."""
    env, params = gymnax.make("Pendulum-v1")

    def reward(max_torque):
        environment = make_environment((env, params.replace(max_torque=max_torque)))
        assert environment.action_space == Box(1)
        state, _ = environment.reset(KEY)
        return environment.step(KEY, state, jnp.array([9.0]))[1].reward

    # The reward has −0.001 torque².
    value = transform(reward)(1.5)
    if transform is jax.grad:
        np.testing.assert_allclose(value, -0.001 * 2 * 1.5, rtol=1e-4)
    else:
        state, _ = make_environment((env, params)).reset(KEY)
        unclipped = env.step(KEY, state, jnp.array([1.5]), params)[2]
        np.testing.assert_allclose(value, unclipped, rtol=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-1.0, 1.0, Box(2, (-1.0, -1.0), (1.0, 1.0))),
        (0.0, np.inf, Box(2, (0.0, 0.0), (np.inf, np.inf))),
        (-np.inf, np.inf, Box(2)),
        (np.finfo(np.float32).min, np.finfo(np.float32).max, Box(2)),
        ([0.0, -np.inf], 1.0, Box(2, (0.0, -np.inf), (1.0, 1.0))),
    ],
)
def test_what_does_not_bind_is_infinite(low, high, expected):
    low, high = jnp.asarray(low), jnp.asarray(high)

    class Bounded(Tabular):
        def step_env(self, key, state, action, params):
            return super().step_env(key, state, 0, params)

        def action_space(self, params):
            return spaces.Box(low, high, (2,))

    assert make_environment((Bounded(), CHAIN)).action_space == expected


def test_the_name_is_the_environments_own():
    assert repr(make_environment("CartPole-v1")) == "GymnaxEnvironment(CartPole-v1)"
    assert make_environment((TABULAR, CHAIN)).name == "Tabular"


class Counter:
    """An environment of nobody's suite."""

    action_space = Discrete(2)
    observation_shape = ()

    def reset(self, key):
        return jnp.int32(0), jnp.float32(0)

    def step(self, key, state, action):
        now = jnp.float32(state + 1)
        no = jnp.bool_(False)
        return state + 1, TimeStep(now, now, no, no, now)


def test_any_object_with_the_members_is_an_environment():
    counter = Counter()
    assert isinstance(counter, Environment)
    assert make_environment(counter) is counter


class Unsupported(Tabular):
    def __init__(self, **replaced):
        super().__init__()
        self._replaced = replaced

    def action_space(self, params):
        return self._replaced.get("action", super().action_space(params))

    def observation_space(self, params):
        return self._replaced.get("observation", super().observation_space(params))


class Sighted(Tabular):
    """Observes bytes, an index, and the tables' features."""

    def __init__(self, alone=False):
        super().__init__()
        self._alone = alone

    def _seen(self, features, state):
        image = jnp.full((2, 2), state.position, jnp.uint8)
        whole = {"image": image, "index": state.position, "features": features}
        return image if self._alone else whole

    def reset_env(self, key, params):
        features, state = super().reset_env(key, params)
        return self._seen(features, state), state

    def step_env(self, key, state, action, params):
        features, state, *rest = super().step_env(key, state, action, params)
        return self._seen(features, state), state, *rest

    def observation_space(self, params):
        image = spaces.Box(0, 255, (2, 2), jnp.uint8)
        index = spaces.Discrete(len(params.features))
        features = super().observation_space(params)
        whole = {"image": image, "index": index, "features": features}
        return image if self._alone else spaces.Dict(whole)


def test_a_dict_space_keeps_bytes_and_integers():
    environment = make_environment((Sighted(), CHAIN))
    shape = {"image": (2, 2), "index": (), "features": (3,)}
    assert environment.observation_shape == shape
    dtypes = {"image": "uint8", "index": "int32", "features": "float32"}
    state, observation = environment.reset(KEY)
    _, taken = environment.step(KEY, state, jnp.int32(1))
    for given in (observation, taken.observation, taken.final_observation):
        assert jax.tree.map(lambda leaf: str(leaf.dtype), given) == dtypes
    assert make_environment((Sighted(), CHAIN)) is not environment


def test_bytes_stay_bytes():
    _, observation = make_environment((Sighted(alone=True), CHAIN)).reset(KEY)
    assert observation.dtype == jnp.uint8


@pytest.mark.parametrize(
    ("role", "space"),
    [
        ("action", spaces.Dict({"arm": spaces.Discrete(2)})),
        ("action", spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 1, (1,))))),
        ("observation", spaces.Space()),
    ],
)
def test_an_unsupported_space_is_named(role, space):
    with pytest.raises(ValueError, match=f"Unsupported has the {role} space") as raised:
        make_environment((Unsupported(**{role: space}), CHAIN))
    assert repr(space) in str(raised.value)
    assert "Wrap the environment" in str(raised.value)


class OldStep(Tabular):
    """Gymnax 0.x: one flag for both ends."""

    def step(self, key, state, action, params):
        observation, state, reward, done, _, info = super().step(
            key, state, action, params
        )
        return observation, state, reward, done, info


class WithoutFinalObservation(Tabular):
    def step(self, key, state, action, params):
        return *super().step(key, state, action, params)[:-1], {}


@pytest.mark.parametrize("env", [OldStep(), WithoutFinalObservation()])
def test_another_form_of_step_is_refused_with_the_right_one(env):
    match = 'reward, terminated, truncated, info\\) with info\\["final_observation"\\]'
    with pytest.raises(ValueError, match=match):
        make_environment((env, CHAIN))


@pytest.mark.parametrize(
    ("written", "nearest"),
    [
        ("CartPole", "'CartPole-v1'"),
        ("cartpole-v1", "'CartPole-v1'"),
        ("MountainCarContinuous", "'MountainCarContinuous-v0'"),
        ("Breakout", "'Breakout-MinAtar'"),
        ("??", "Acrobot-v1"),
    ],
)
def test_an_unknown_id_names_the_nearest(written, nearest):
    with pytest.raises(ValueError, match=f"no environment '.*' in gymnax.*{nearest}"):
        make_environment(written)


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    "env",
    [7, None, (1, 2, 3), {"id": "CartPole-v1"}, Tabular, (CHAIN, TABULAR)],
)
def test_a_value_of_another_type_is_refused(env):
    with pytest.raises(TypeError, match="write an id such as 'CartPole-v1'"):
        make_environment(env)


def test_data_that_cannot_be_downloaded_is_said_to_be_the_reason(monkeypatch):
    def make(env_id):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(gymnax, "make", make)
    with pytest.raises(ValueError, match=r"downloads its data .* no network"):
        make_environment("MNISTBandit-bsuite")


def test_plotting_libraries_are_loaded_when_a_picture_is_drawn():
    """In a process of its own: here they may have been imported already."""
    program = """
import sys
import trpo_jax
trpo_jax.environments.make_environment("Pong-misc")
heavy = {"matplotlib.pyplot", "seaborn", "pandas", "scipy.stats"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
import gymnax, jax
env, params = gymnax.make("Pong-misc")
_, state = env.reset(jax.random.key(0), params)
assert env.render(state, params) is not None
import matplotlib.pyplot as plt
import seaborn as sns
assert plt.figure and sns.color_palette and "pandas" in sys.modules
"""
    environment = os.environ | {"MPLBACKEND": "agg"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_a_failing_import_leaves_the_plotting_libraries_as_they_were():
    program = """
import sys
import trpo_jax
sys.modules["gymnax"] = None  # makes its import fail
try:
    trpo_jax.environments.make_environment("CartPole-v1")
except ImportError:
    pass
else:
    raise AssertionError("gymnax was imported")
assert "seaborn" not in sys.modules
import matplotlib.pyplot as plt
assert plt.figure
"""
    environment = os.environ | {"MPLBACKEND": "agg"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def play(environment, step_fn, num_steps):
    """Return the steps of one episode with random actions, leaves [T, …]."""
    reset_key, *keys = jax.random.split(KEY, num_steps + 1)
    state, _ = environment.reset(reset_key)
    step_fn, steps = fast_jit(step_fn), []
    for key in keys:
        state, taken = step_fn(key, state, example_action(environment))
        steps.append(taken)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *steps)


def limited(env_id, limit):
    env, params = gymnax.make(env_id)
    return env, params.replace(max_steps_in_episode=limit)


@pytest.mark.parametrize(
    "environment",
    [
        make_environment(limited("CartPole-v1", 3)),
        make_environment("CartPole-v1"),
        squash_actions(make_environment(limited("Pendulum-v1", 3))),
        CostEnvironment(limited("CartPole-v1", 3), lambda s, a, t: t[0]),
        VariedEnvironment(
            lambda length: make_gymnax(
                (limited("CartPole-v1", 3)[0], EnvParams(length=length))
            ),
            jnp.array([0.5, 0.4]),
        ),
    ],
    ids=repr,
)
def test_a_step_without_reset_differs_only_after_the_end(environment):
    num_steps = 11
    plain = play(environment, environment.step, num_steps)
    kept = play(environment, environment.step_without_reset, num_steps)
    ended = plain.terminated | plain.truncated
    assert ended.any()
    last = ended.argmax()
    until = jax.tree.map(lambda leaf: leaf[: last + 1], (plain, kept))
    seen = [taken._replace(observation=None) for taken in until]
    jax.tree.map(np.testing.assert_array_equal, *seen)
    assert not (plain.observation == kept.observation)[last].all()
    np.testing.assert_array_equal(kept.observation, kept.final_observation)


def test_a_step_of_its_own_is_not_taken_apart():
    class Doubled(type(gymnax.make("CartPole-v1")[0])):
        def step(self, key, state, action, params=None):
            *before, info = super().step(key, state, action, params)
            before[2] = 2 * before[2]
            return *before, info

    environment = make_environment(Doubled())
    assert step_without_reset(environment) == environment.step
