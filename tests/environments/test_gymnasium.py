"""Environments on the host: equal to Gymnasium played alone, kept in order, refused."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit
from tiny import SETTINGS

import trpo_jax
from trpo_jax.environments import (
    Box,
    Discrete,
    GymnasiumEnvironment,
    MultiDiscrete,
    make_environment,
    squash_actions,
)
from trpo_jax.training import init_rollout

gymnasium = pytest.importorskip("gymnasium")
spaces = gymnasium.spaces

KEY = jax.random.key(0)
CONFIG = trpo_jax.TRPOConfig(
    env="gymnasium/CartPole-v1",
    num_envs=2,
    rollout_length=8,
    total_timesteps=64,
    hidden_sizes=(4,),
)


class Made(gymnasium.Env):
    """Has the spaces it is given, and remembers its actions."""

    def __init__(self, observations=None, actions=None, taken=None):
        self.observation_space = observations or spaces.Box(-1, 1, (2,))
        self.action_space = actions or spaces.Discrete(2)
        self.observation_space.seed(0)
        self.taken = taken

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        if self.taken is not None:
            self.taken.append(action)
        return self.observation_space.sample(), 0.0, False, False, {}


def seeds_of(keys):
    """The seeds of `reset` and `step`, as the adapter draws them."""
    return [int(jax.random.bits(key, (), jnp.uint32) >> 1) for key in keys]


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_a_batch_is_each_environment_of_gymnasium_played_alone(name):
    environment = GymnasiumEnvironment(name, max_episode_steps=12)
    num_envs, num_steps = 3, 40
    reset_keys = jax.random.split(KEY, num_envs)
    keys = jax.random.split(jax.random.key(1), (num_steps, num_envs))
    actions = np.random.default_rng(0).normal(size=(num_steps, num_envs, 1))
    if isinstance(environment.action_space, Discrete):
        actions = (actions[..., 0] > 0).astype(np.int32)
    actions = actions.astype(np.float32 if actions.ndim == 3 else np.int32)

    @fast_jit
    def play(actions):
        state, first = jax.vmap(environment.reset)(reset_keys)
        step = jax.vmap(environment.step)
        _, taken = jax.lax.scan(
            lambda state, inputs: step(inputs[0], state, inputs[1]),
            state,
            (keys, actions),
        )
        return first, taken

    first, taken = play(actions)
    ends = 0
    for row in range(num_envs):
        twin = gymnasium.make(name, max_episode_steps=12)
        observation, _ = twin.reset(seed=seeds_of(reset_keys)[row])
        np.testing.assert_array_equal(first[row], observation)
        for t, seed in enumerate(seeds_of(keys[:, row])):
            final, reward, terminated, truncated, _ = twin.step(actions[t, row])
            following = final
            if terminated or truncated:
                following, _ = twin.reset(seed=seed)
                ends += 1
            expected = (
                following,
                np.float32(reward),
                terminated,
                truncated and not terminated,
                final,
            )
            assert taken.cost is None
            for found, wanted in zip(taken[:-1], expected, strict=True):
                np.testing.assert_array_equal(found[t, row], wanted)
    assert ends >= num_envs


class Counter(gymnasium.Env):
    """Observes its clock, in entries; episodes have 2 to 4 steps, by their seed."""

    def __init__(self):
        self.action_space = spaces.Discrete(2)
        self.observation_space = spaces.Dict(
            clock=spaces.Box(0, 9, (1,)),
            more=spaces.Tuple(
                (spaces.Discrete(10), spaces.Box(0, 255, (2,), np.uint8))
            ),
        )

    def _observe(self):
        time = self.time
        more = np.int64(time), np.full(2, 20 * time, np.uint8)
        return {"clock": np.full(1, time, np.float32), "more": more}

    def reset(self, *, seed=None, options=None):
        self.time, self.limit = 0, 2 + seed % 3
        return self._observe(), {}

    def step(self, action):
        self.time += 1
        return self._observe(), 0.0, False, self.time == self.limit, {}


def test_entries_are_reset_and_kept_row_by_row():
    environment = GymnasiumEnvironment(Counter)
    keys = jax.random.split(KEY, 4)
    state, _ = jax.vmap(environment.reset)(keys)
    step, actions = fast_jit(jax.vmap(environment.step)), jnp.zeros(4, jnp.int32)
    limits, times = np.array(seeds_of(keys)) % 3 + 2, np.zeros(4, int)
    assert len(set(limits)) > 1

    def check(observation, times):
        clock, (digit, image) = observation["clock"], observation["more"]
        np.testing.assert_array_equal(clock[:, 0], times)
        np.testing.assert_array_equal(digit, times)
        np.testing.assert_array_equal(image, 20 * np.stack([times, times], axis=1))

    for _ in range(6):  # the keys, and so the limits, of new episodes are the same
        state, taken = step(keys, state, actions)
        times += 1
        check(taken.final_observation, times)
        np.testing.assert_array_equal(taken.truncated, times == limits)
        times[times == limits] = 0
        check(taken.observation, times)


def test_a_run_repeats_and_so_does_its_evaluation():
    results = [trpo_jax.train(CONFIG) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, *(one.metrics for one in results))
    returns = [trpo_jax.evaluate(CONFIG, one.state, KEY, 3) for one in results]
    np.testing.assert_array_equal(*returns)
    assert (returns[0] >= 8).all()
    other = trpo_jax.train(CONFIG, jax.random.key(1))
    assert not np.array_equal(other.metrics.critic_loss, results[0].metrics.critic_loss)


def test_a_run_goes_on_beside_its_evaluations():
    often = dataclasses.replace(SETTINGS, checkpoint_updates=None, evaluation_updates=1)
    seldom = dataclasses.replace(often, evaluation_updates=None)
    beside, alone = (
        trpo_jax.run(CONFIG, settings=settings, progress=False)
        for settings in (often, seldom)
    )
    jax.tree.map(np.testing.assert_array_equal, beside.state.params, alone.state.params)
    assert beside.evaluation == alone.evaluation


@pytest.mark.parametrize(
    ("space", "expected", "sample", "taken"),
    [
        (spaces.Discrete(3, start=5), Discrete(3), [2], 7),
        (
            spaces.MultiDiscrete([2, 3], start=[1, 0]),
            MultiDiscrete((2, 3)),
            [[1, 2]],
            [2, 2],
        ),
        (spaces.MultiBinary(2), MultiDiscrete((2, 2)), [[1, 0]], [1, 0]),
        (
            spaces.Box(np.array([[-1.0, 0.0]]), np.array([[1.0, 2.0]]), dtype=float),
            Box(2, (-1.0, 0.0), (1.0, 2.0)),
            [[-3.0, 1.5]],
            [[-1.0, 1.5]],
        ),
        (spaces.Box(-np.inf, np.inf, (1,)), Box(1), [[7.0]], [7.0]),
    ],
)
def test_actions_become_those_of_the_space(space, expected, sample, taken):
    actions = []
    environment = GymnasiumEnvironment(Made, actions=space, taken=actions)
    assert environment.action_space == expected
    state, _ = jax.vmap(environment.reset)(KEY[None])
    dtype = jnp.float32 if isinstance(expected, Box) else jnp.int32
    arguments = (KEY[None], state, jnp.array(sample, dtype))
    jax.block_until_ready(jax.vmap(environment.step)(*arguments))
    assert space.contains(actions[0])
    np.testing.assert_array_equal(actions[0], taken)


@pytest.mark.parametrize(
    ("space", "shape", "dtype"),
    [
        (spaces.Box(-1, 1, (2, 3), np.float64), (2, 3), "float32"),
        (spaces.Box(0, 255, (2, 2, 1), np.uint8), (2, 2, 1), "uint8"),
        (spaces.Box(0, 9, (2,), np.int64), (2,), "float32"),
        (spaces.Discrete(4, start=2), (4,), "float32"),
        (spaces.MultiDiscrete([2, 3]), (2,), "float32"),
        (spaces.MultiBinary(3), (3,), "float32"),
        (
            spaces.Dict(place=spaces.Box(-1, 1, (2,)), kind=spaces.Discrete(3)),
            {"kind": (), "place": (2,)},
            {"kind": "int32", "place": "float32"},
        ),
        (
            spaces.Tuple([spaces.Discrete(3), spaces.Box(0, 255, (2,), np.uint8)]),
            ((), (2,)),
            ("int32", "uint8"),
        ),
    ],
)
def test_observations_have_the_types_of_the_device(space, shape, dtype):
    environment = GymnasiumEnvironment(Made, observations=space)
    assert environment.observation_shape == shape
    # Made anew, the environment draws the same.
    _, observation = environment.reset(KEY)
    sample, _ = Made(space).reset()
    if isinstance(space, spaces.Discrete):
        sample = np.arange(2, 6) == sample
    assert jax.tree.map(lambda leaf: str(leaf.dtype), observation) == dtype
    jax.tree.map(np.testing.assert_allclose, observation, sample)


@pytest.mark.parametrize("name", ["FrozenLake-v1", "Pendulum-v1", "Blackjack-v1"])
def test_a_policy_plays_in_an_environment_of_gymnasiums(name):
    """Converted one by one as the adapter converts batches."""
    environment = GymnasiumEnvironment(name)
    _, first = jax.vmap(environment.reset)(KEY[None])
    env = gymnasium.make(name)
    observation, _ = env.reset(seed=seeds_of(KEY[None])[0])
    seen = environment.observe(observation)
    jax.tree.map(
        lambda one, all_: np.testing.assert_array_equal(one, all_[0]), seen, first
    )
    for action in (0, 3) if name == "FrozenLake-v1" else ([0.0], [7.0]):
        if name == "Blackjack-v1":
            action = int(action[0] > 0)
        taken = environment.act(jnp.array(action))
        assert env.action_space.contains(taken)
        env.step(taken)


def test_it_trains_on_entries():
    space = spaces.Dict(place=spaces.Box(-1, 1, (2,)), kind=spaces.Discrete(3))
    env = GymnasiumEnvironment(Made, observations=space)
    config = dataclasses.replace(
        CONFIG, env=env, policy_observation="place", normalize_observations=True
    )
    assert np.isfinite(trpo_jax.train(config).metrics.critic_loss).all()


def test_a_state_is_good_for_one_step():
    step = fast_jit(functools.partial(trpo_jax.step, CONFIG))
    state = trpo_jax.init(CONFIG, KEY)
    jax.block_until_ready(step(state))
    with pytest.raises(Exception, match=r"made 8 steps.*Go on from the state"):
        jax.block_until_ready(step(state))
    again = trpo_jax.init(CONFIG, KEY).with_networks_of(state)  # as advised
    jax.block_until_ready(step(again))


def test_some_rows_of_a_batch_cannot_be_stepped():
    environment = make_environment("gymnasium/CartPole-v1")
    state = init_rollout(environment, KEY, num_envs=3).env_state
    some = jax.tree.map(lambda leaf: leaf[1:], state)
    step = jax.vmap(environment.step)
    with pytest.raises(Exception, match=r"state of all 3"):
        jax.block_until_ready(
            step(jax.random.split(KEY, 2), some, jnp.zeros(2, jnp.int32))
        )


def test_the_batches_used_last_are_kept():
    environment = GymnasiumEnvironment(Made)

    def reset(num_envs):
        state, _ = jax.vmap(environment.reset)(jax.random.split(KEY, num_envs))
        return jax.block_until_ready(state)

    def step(state):
        num_envs = len(state.row)
        keys, actions = jax.random.split(KEY, num_envs), jnp.zeros(num_envs, jnp.int32)
        state, _ = jax.vmap(environment.step)(keys, state, actions)
        return jax.block_until_ready(state)

    first, second = reset(1), reset(2)
    for _ in range(6):
        reset(1)
        first = step(first)
    with pytest.raises(Exception, match=r"are gone: .* 4 other batches"):
        step(second)
    assert int(first.steps[0]) == 6


def test_several_seeds_are_refused_and_trained_one_after_another():
    with pytest.raises(ValueError, match="num_seeds=2, but") as raised:
        dataclasses.replace(CONFIG, num_seeds=2)
    advised = re.search(r"another: (\[.*\])\.", str(raised.value))[1]
    names = {"trpo_jax": trpo_jax, "dataclasses": dataclasses, "config": CONFIG}
    assert len(eval(advised, names)) == 2


def test_a_second_vmap_is_refused():
    keys = jax.random.split(KEY, 2)
    for fn in (trpo_jax.init, trpo_jax.train):
        with pytest.raises(ValueError, match=r"Instead of vmap over seeds"):
            jax.vmap(fn, (None, 0))(CONFIG, keys)

    def train(max_kl):
        floats = CONFIG.hyperparameters._replace(max_kl=max_kl)
        return trpo_jax.train(CONFIG, hyperparameters=floats).metrics

    with pytest.raises(ValueError, match=r"a loop of train\(config, key\)"):
        jax.vmap(train)(jnp.array([0.01, 0.02]))


def test_a_sweep_is_refused():
    with pytest.raises(ValueError, match=r"side by side.*a loop of trpo_jax\.run"):
        trpo_jax.sweep(CONFIG, max_kl=[0.01, 0.02], progress=False)
    with pytest.raises(ValueError, match="num_seeds=2, but"):
        trpo_jax.sweep(CONFIG, num_seeds=2, max_kl=[0.01, 0.02], progress=False)


def test_several_devices_are_refused():
    with pytest.raises(ValueError, match=r"devices=2, but .* devices=1, or None"):
        dataclasses.replace(CONFIG, devices=2)
    assert dataclasses.replace(CONFIG, devices=1).devices == 1


def test_a_run_is_not_resumed_but_starts_another(tmp_path):
    folder = tmp_path / "run"
    trpo_jax.run(CONFIG, folder, SETTINGS, progress=False)
    with pytest.raises(ValueError, match=r"no checkpoint holds their state") as raised:
        trpo_jax.resume(folder)
    command = f"train --config {folder}/config.json --folder {folder}-2 --warm-start "
    assert str(raised.value).endswith(command + str(folder))
    with pytest.raises(ValueError, match=r"holds this run already.*--warm-start"):
        trpo_jax.run(CONFIG, folder, SETTINGS, progress=False)
    result = trpo_jax.run(
        CONFIG, f"{folder}-2", SETTINGS, warm_start=folder, progress=False
    )
    assert result.evaluation["num_episodes"] == 2
    policy = trpo_jax.load_policy(folder)
    assert policy(np.zeros(4), KEY) in (0, 1)


def test_a_run_of_an_object_is_not_resumed_either(tmp_path):
    env = GymnasiumEnvironment("CartPole-v1")
    config = dataclasses.replace(CONFIG, env=env)
    folder = tmp_path / "run"
    trpo_jax.run(config, folder, SETTINGS, progress=False)
    advice = f"trpo_jax.run(config, '{folder}-2', warm_start='{folder}')"
    with pytest.raises(ValueError, match=re.escape(advice)):
        trpo_jax.resume(folder, config)
    eval(advice.replace("-2'", "-2', progress=False"), {**globals(), "config": config})


def test_it_cannot_be_drawn(tmp_path):
    state = trpo_jax.init(CONFIG, KEY)
    with pytest.raises(ValueError, match=r"cannot be drawn.*render_mode"):
        trpo_jax.pictures.render_episode(CONFIG, state, tmp_path / "a", key=KEY)


def test_squashed_actions_remain_on_the_host():
    assert squash_actions(GymnasiumEnvironment("Pendulum-v1")).on_host


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(3),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Dict(graph=spaces.Graph(spaces.Discrete(2), None)),
    ],
)
def test_observations_of_another_kind_are_refused(space):
    with pytest.raises(ValueError, match=r"Made has the observation space .*a Box"):
        GymnasiumEnvironment(Made, observations=space)


class Shown(gymnasium.Env):
    """Shows the given observations one after another; remembers `options`."""

    action_space = spaces.Discrete(2)

    def __init__(self, space, observations, options=None):
        self.observation_space, self._observations = space, iter(observations)
        self._options = options

    def reset(self, *, seed=None, options=None):
        if self._options is not None:
            self._options.append(options)
        return next(self._observations), {}

    def step(self, action):
        return next(self._observations), 0.0, True, False, {}


WIDE = spaces.Dict(n=spaces.Box(0, 2**40, (1,), np.int64))


@pytest.mark.parametrize(
    ("space", "first", "later", "advice"),
    [
        (
            WIDE,
            {"n": np.array([1])},
            {"n": np.array([2**31])},
            "such as 2147483648; co",
        ),
        (spaces.Discrete(3), 0, 3, r"observes 3, which is not in .*Discrete\(3\)"),
    ],
)
def test_values_that_would_be_lost_are_refused(space, first, later, advice):
    environment = GymnasiumEnvironment(Shown, space=space, observations=[first, later])
    state, _ = jax.vmap(environment.reset)(KEY[None])
    with pytest.raises(Exception, match=advice):
        jax.block_until_ready(
            jax.vmap(environment.step)(KEY[None], state, jnp.zeros(1, jnp.int32))
        )
    with pytest.raises(ValueError, match=advice):
        GymnasiumEnvironment(Shown, space=space, observations=[later])


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((2, 2)), "left", None, {}])
def test_observations_that_are_not_of_their_space_are_refused(wrong):
    space = spaces.Box(-1, 1, (2,))
    with pytest.raises(
        ValueError, match=r"Shown observes .*space is Box.*; change one"
    ):
        GymnasiumEnvironment(Shown, space=space, observations=[wrong])


def test_a_reset_of_the_old_kind_is_refused(monkeypatch):
    monkeypatch.setattr(Shown, "reset", lambda self, **_: np.zeros(2))
    with pytest.raises(TypeError, match=r"array float64\[2\]; write \(observation, in"):
        GymnasiumEnvironment(Shown, space=spaces.Box(-1, 1, (2,)), observations=[])


def test_a_reset_with_other_arguments_is_refused(monkeypatch):
    monkeypatch.setattr(Shown, "reset", lambda self: (np.zeros(2), {}))
    with pytest.raises(
        TypeError, match=r"Write def reset\(self, \*, seed=None, options"
    ):
        GymnasiumEnvironment(Shown, space=spaces.Box(-1, 1, (2,)), observations=[])


def test_an_environment_may_reset_itself():
    class Again(Shown):
        def step(self, action):
            return self.reset()[0], 0.0, True, False, {}

    environment = GymnasiumEnvironment(
        Again, space=spaces.Discrete(2), observations=[1, 0, 1]
    )
    state, _ = jax.vmap(environment.reset)(KEY[None])
    _, taken = jax.vmap(environment.step)(KEY[None], state, jnp.zeros(1, jnp.int32))
    assert taken.final_observation.tolist() == [[1.0, 0.0]]
    assert taken.observation.tolist() == [[0.0, 1.0]]


def test_every_reset_has_the_options_of_the_first():
    given = []
    environment = GymnasiumEnvironment(
        Shown, space=spaces.Discrete(2), observations=[0, 1, 0], options=given
    )
    state, _ = jax.vmap(environment.reset)(KEY[None])
    jax.block_until_ready(
        jax.vmap(environment.step)(KEY[None], state, jnp.zeros(1, jnp.int32))
    )
    assert given == [None] * 3


@pytest.mark.parametrize(
    "space", [spaces.Box(0, 9, (2,), np.int64), spaces.Dict(a=spaces.Discrete(2))]
)
def test_actions_of_another_kind_are_refused(space):
    with pytest.raises(ValueError, match=r"Made has the action space .*a Discrete"):
        GymnasiumEnvironment(Made, actions=space)


def test_a_function_must_make_a_new_environment_each_time():
    one = gymnasium.make("CartPole-v1")
    with pytest.raises(ValueError, match=r"the same environment twice, .* such as"):
        GymnasiumEnvironment(lambda: one)
    GymnasiumEnvironment(lambda: gymnasium.make("CartPole-v1"))


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("env", "arguments", "advice"),
    [
        (gymnasium.make("CartPole-v1"), {}, "a batch needs several; write its id, or"),
        (lambda: 3, {}, "returns the int 3; write a function that returns a new"),
        ("CartPole-v1", {"pole": 2}, r"cannot be made with \{'pole': 2\}: .*'pole'"),
        (lambda: 3, {"pole": 2}, r"cannot be made with \{'pole': 2\}"),
    ],
)
def test_what_makes_no_environment_is_refused(env, arguments, advice):
    with pytest.raises((ValueError, TypeError), match=advice):
        GymnasiumEnvironment(env, **arguments)


def test_an_environment_that_is_already_made_is_refused_with_both_forms():
    with pytest.raises(TypeError, match=r"'gymnasium/CartPole-v1', or trpo_jax\.env"):
        trpo_jax.TRPOConfig(env=gymnasium.make("CartPole-v1"))


def test_the_arguments_are_part_of_the_description():
    environment = GymnasiumEnvironment("Pendulum-v1", max_episode_steps=9)
    described = "GymnasiumEnvironment(gymnasium/Pendulum-v1, max_episode_steps=9)"
    assert repr(environment) == described


def test_a_module_that_registers_an_environment_is_imported():
    assert make_environment("gymnasium/json:CartPole-v1").observation_shape == (4,)
    with pytest.raises(ValueError, match=r"no_such_module:A-v0 cannot be made"):
        make_environment("gymnasium/no_such_module:A-v0")


def test_what_an_environment_needs_is_named(monkeypatch):
    def make(problem):
        def fail(name):
            raise problem

        monkeypatch.setattr(gymnasium, "make", fail)
        return GymnasiumEnvironment("Ant-v5")

    missing = gymnasium.error.DependencyNotInstalled
    with pytest.raises(ValueError, match=r'pip install "trpo_jax\[gymnasium\]"'):
        make(missing("MuJoCo is not installed, run `pip install …`"))
    with pytest.raises(ValueError, match=r"cannot be made: no box2d\. Install what"):
        make(missing("no box2d."))


def test_double_precision_changes_nothing(float64):
    environment = GymnasiumEnvironment("Pendulum-v1")
    config = dataclasses.replace(CONFIG, env=environment)
    assert np.isfinite(trpo_jax.train(config).metrics.critic_loss).all()
    state, observation = environment.reset(KEY)
    assert (state.steps.dtype, observation.dtype) == (jnp.int32, jnp.float32)
