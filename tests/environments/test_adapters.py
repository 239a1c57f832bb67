"""One contract, kept by the adapter to every suite.

A suite that is not installed is left out; what compiles for long is `slow`.
"""

import dataclasses
import functools
import importlib
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import compilations, fast_jit
from flax import struct

from trpo_jax import TRPOConfig, train
from trpo_jax.environments import (
    Box,
    BraxEnvironment,
    Discrete,
    GymnasiumEnvironment,
    JumanjiEnvironment,
    MaskedObservation,
    MultiDiscrete,
    XLandEnvironment,
    make_brax,
    make_crax,
    make_environment,
    make_playground,
)
from trpo_jax.environments.contract import num_costs
from trpo_jax.environments.jumanji import _observe
from trpo_jax.environments.suites import one_hot_layers
from trpo_jax.environments.varied import reset_batch
from trpo_jax.errors import UsageError

LIMIT = 4
STEPS = 2 * LIMIT + 1
BATCH = 3
KEY = jax.random.key(0)


class Raw(NamedTuple):
    """Result of one step as the suite itself returns it."""

    observation: Any
    reward: Any
    terminated: Any
    truncated: Any
    cost: Any = None


@dataclasses.dataclass(frozen=True, eq=False)  # its own key: fields may be dicts
class Case:
    """One environment, whose episodes are cut after `LIMIT` steps.

    Attributes:
        environment: Behind the adapter.
        step: (key, the adapter's state, an action within bounds) ↦ `Raw`.
        ends: How its episodes end, in alphabetical order.
        random_starts: Whether no two episodes start alike.
        mask_size: Entries of an observation's mask, None if it has none.
        dtype: Of an observation, of each of its entries if it has some.
    """

    environment: Any
    step: Callable[..., Raw]
    ends: tuple[str, ...]
    random_starts: bool = True
    mask_size: int | None = None
    dtype: Any = jnp.float32


def gymnax_case(pair, ends):
    env, params = pair

    def step(key, state, action):
        observation, state, reward, terminated, _ = env.step_env(
            key, state, action, params
        )
        return Raw(observation, reward, terminated, env.is_truncated(state, params))

    return Case(make_environment(pair), step, ends)


def pendulum_case():
    env, params = gymnax.make("Pendulum-v1")
    params = params.replace(max_steps_in_episode=LIMIT)
    return gymnax_case((env, params), ("truncated",))


def in_brax_form(environment, env, ends, **options):
    def step(key, state, action):
        # A copy: some environments write into the state that they are given.
        raw = env.step(jax.tree.map(jnp.asarray, state.env_state), action)
        ends = (raw.done > 0, state.length + 1 >= LIMIT)
        return Raw(raw.obs, raw.reward, *ends, getattr(raw, "info", {}).get("cost"))

    return Case(environment, step, ends, **options)


def brax_case(name, backend, ends, **options):
    envs = pytest.importorskip("brax.envs")
    env = envs.get_environment(name, backend=backend)
    environment = make_brax(name, backend, episode_length=LIMIT)
    return in_brax_form(environment, env, ends, **options)


def crax_case(name, **options):
    envs = pytest.importorskip("crax.envs")
    env = envs.get_environment(
        name, level=1 if envs.supports_difficulty(name) else None
    )
    environment = make_crax(name, episode_length=LIMIT)
    return in_brax_form(environment, env, ("truncated",), **options)


@struct.dataclass
class BallState:
    obs: jax.Array
    reward: jax.Array
    done: jax.Array
    info: dict


class Ball:
    """Has brax's form, and its habits: old keys, a dictionary written in place.

    Its cost counts steps.
    """

    action_size = 2

    def reset(self, rng):
        assert rng.dtype == jnp.uint32
        place = jax.random.uniform(rng, (2,), minval=-0.2, maxval=0.2)
        return BallState(place, 0.0, jnp.zeros(()), {"steps": 0, "cost": 0})

    def step(self, state, action):
        place = state.obs + 0.3 * action
        steps = state.info["steps"] + 1
        state.info.update(steps=steps, cost=steps)
        far = jnp.abs(place).max() > 0.5
        return state.replace(obs=place, reward=place.sum(), done=jnp.float32(far))


class SeenBall(Ball):
    """Observes entries of two types, as robots do: what they sense, and more."""

    def observed(self, state):
        entries = {"state": state.obs, "privileged": {"steps": state.info["steps"]}}
        return state.replace(obs=entries)

    def reset(self, rng):
        return self.observed(super().reset(rng))

    def step(self, state, action):
        alone = state.replace(obs=state.obs["state"])
        return self.observed(super().step(alone, action))


def ball_case(ball, **options):
    environment = BraxEnvironment(ball, LIMIT)
    return in_brax_form(environment, ball, ("terminated", "truncated"), **options)


def jumanji_case(make, observe, ends, **options):
    """`make` gets Jumanji; `observe` gets a raw observation without its mask."""
    jumanji = pytest.importorskip("jumanji")
    env = make(jumanji)
    environment = JumanjiEnvironment(env)

    def step(key, state, action):
        if isinstance(environment.action_space, Discrete) and env.action_spec.shape:
            sizes = env.action_spec.num_values
            action = jnp.array([action // sizes[1], action % sizes[1]])
        _, taken = env.step(state, action)
        observation = observe(taken.observation)
        if mask_size is not None:
            mask = taken.observation.action_mask.ravel()
            observation = MaskedObservation(observation, mask)
        terminated = taken.last() & (taken.discount == 0)
        return Raw(observation, taken.reward, terminated, taken.last())

    first = jax.eval_shape(env.reset, KEY)[1].observation
    mask_size = first.action_mask.size if hasattr(first, "action_mask") else None
    return Case(environment, step, ends, mask_size=mask_size, **options)


def snake_case():
    """One choice, with a mask; terminates at the time limit."""
    return jumanji_case(
        lambda jumanji: jumanji.make("Snake-v1", time_limit=LIMIT, num_rows=3),
        lambda raw: jnp.append(raw.grid, raw.step_count),
        ("terminated",),
    )


def mines_case():
    """Two choices, with one mask for both together; random play blows up early."""
    return jumanji_case(
        lambda jumanji: jumanji.environments.Minesweeper(
            jumanji.environments.logic.minesweeper.generator.UniformSamplingGenerator(
                num_rows=2, num_cols=3, num_mines=2
            )
        ),
        lambda raw: jnp.concatenate(
            [raw.board.ravel(), raw.num_mines[None], raw.step_count[None]]
        ),
        ("terminated",),
        random_starts=False,  # the mines are hidden
    )


def foraging_case():
    """A choice for each agent, with a mask for each; truncates at the time limit."""

    def make(jumanji):
        env = jumanji.make("LevelBasedForaging-v0", time_limit=LIMIT)
        wrappers = importlib.import_module("jumanji.wrappers")
        return wrappers.MultiToSingleWrapper(env)

    return jumanji_case(
        make,
        lambda raw: jnp.append(raw.agents_view, raw.step_count),
        ("truncated",),
    )


def cube_case():
    """Three choices without a mask."""
    return jumanji_case(
        lambda jumanji: jumanji.make("RubiksCube-v0", time_limit=LIMIT),
        lambda raw: jnp.append(raw.cube, raw.step_count),
        ("terminated",),
    )


def playground_case(name, **options):
    registry = pytest.importorskip("mujoco_playground").registry
    config = registry.get_default_config(name)
    config.impl = "jax"
    try:
        environment = make_playground(name, episode_length=LIMIT)
    except UsageError as error:
        if "downloads its robots" not in str(error):
            raise
        pytest.skip(str(error))
    env = registry.load(name, config)
    return in_brax_form(environment, env, ("truncated",), **options)


def target_gym_case(name):
    registry = pytest.importorskip("target_gym.registry")
    specification = registry.get(name)
    env = specification.make_env()
    params = specification.make_test_params(max_steps_in_episode=LIMIT)
    return gymnax_case((env, params), ("truncated",))


def craftax_case(name):
    craftax_env = pytest.importorskip("craftax.craftax_env")
    env = craftax_env.make_craftax_env_from_name(name, auto_reset=False)
    params = env.default_params.replace(max_timesteps=LIMIT)

    def step(key, state, action):
        step_key, _ = jax.random.split(key)
        observation, state, reward, ended, _ = env.step_env(
            step_key, state, action, params
        )
        at_limit = state.timestep >= LIMIT
        return Raw(observation, reward, ended & ~at_limit, ended & at_limit)

    return Case(make_environment((env, params)), step, ("truncated",))


def one_hot(layers, sizes):
    hot = [jax.nn.one_hot(layers[..., i], size) for i, size in enumerate(sizes)]
    return jnp.concatenate(hot, axis=-1).astype(bool)


def navix_case(name, **options):
    navix = pytest.importorskip("navix")
    env = navix.make(name, max_steps=LIMIT)

    def step(key, state, action):
        taken = env.step(state, action)
        observation = one_hot(taken.observation, (11, 6, 4))
        return Raw(
            observation, taken.reward, taken.step_type == 2, taken.step_type == 1
        )

    environment = make_environment(env)
    return Case(environment, step, ("truncated",), dtype=bool, **options)


def xland_case(make_env, **options):
    """`make_env` gets XLand-MiniGrid, and returns (environment, params, benchmark)."""
    env, params, *benchmark = make_env(pytest.importorskip("xminigrid"))
    params = params.replace(max_steps=LIMIT)

    def step(key, state, action):
        taken = env.step(params, state, action)
        observation = one_hot(taken.observation, (13, 12))
        terminated = taken.last() & (taken.discount == 0)
        return Raw(observation, taken.reward, terminated, taken.last())

    environment = XLandEnvironment(env, params, *benchmark)
    return Case(environment, step, dtype=bool, **options)


def rulesets():
    """Two goals: to hold a red ball, or one of another colour."""
    pytest.importorskip("xminigrid")
    benchmarks = importlib.import_module("xminigrid.benchmarks")
    goals = importlib.import_module("xminigrid.core.goals")
    rules = importlib.import_module("xminigrid.core.rules")
    balls = [jnp.array([3, colour], jnp.uint8) for colour in (1, 2)]
    goal = jnp.stack([goals.AgentHoldGoal(ball).encode() for ball in balls])
    rule = jnp.stack([rules.EmptyRule().encode()[None]] * 2)
    tiles = jnp.stack([jnp.stack(balls), jnp.stack(balls)])
    return benchmarks.Benchmark(goal, rule, tiles, jnp.zeros(2, jnp.int32))


class Seen(NamedTuple):
    """State of `SeesItsObservation`: that of the environment, and its observation."""

    state: Any
    observation: Any


class SeesItsObservation:
    """Keeps the observation beside a state that is on the host."""

    def __init__(self, environment):
        self._environment = environment
        self.action_space = environment.action_space
        self.observation_shape = environment.observation_shape

    def reset(self, key):
        state, observation = self._environment.reset(key)
        return Seen(state, observation), observation

    def step(self, key, state, action):
        following, taken = self._environment.step(key, state.state, action)
        return Seen(following, taken.observation), taken


def gymnasium_case():
    """Observes all of its state, from which the expected step is computed in JAX."""
    gymnasium = pytest.importorskip("gymnasium")

    class HostBall(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-9, 9, (3,), np.float64)
        action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            place = self.np_random.uniform(-0.2, 0.2, 2)
            self.state = np.append(place, 0)
            return self.state, {}

        def step(self, action):
            assert self.action_space.contains(action)
            self.state = self.state + np.append(0.3 * action, 1)
            *place, length = self.state
            far = bool(np.abs(place).max() > 0.5)
            return self.state, sum(place), far, bool(length >= LIMIT), {}

    def step(key, state, action):
        following = state.observation + jnp.append(0.3 * action, 1)
        *place, length = following
        far = jnp.abs(jnp.stack(place)).max() > 0.5
        return Raw(following, sum(place), far, length >= LIMIT)

    environment = SeesItsObservation(GymnasiumEnvironment(HostBall))
    return Case(environment, step, ("terminated", "truncated"))


CASES = {
    "gymnax": pendulum_case,
    "gymnasium": gymnasium_case,
    "brax's form": lambda: ball_case(Ball()),
    "brax's form, entries": lambda: ball_case(
        SeenBall(), dtype={"state": jnp.float32, "privileged": {"steps": jnp.int32}}
    ),
    "brax fast": lambda: brax_case(
        "fast", "spring", ("truncated",), random_starts=False
    ),
    "brax inverted_pendulum": lambda: brax_case(
        "inverted_pendulum", "spring", ("truncated",)
    ),
    "brax hopper": lambda: brax_case("hopper", "generalized", ("truncated",)),
    "brax walker2d": lambda: brax_case("walker2d", "positional", ("truncated",)),
    "brax reacher": lambda: brax_case("reacher", "mjx", ("truncated",)),
    # In a fluid, of which brax computes the forces elsewhere.
    "brax swimmer": lambda: brax_case("swimmer", "generalized", ("truncated",)),
    "crax safe_goal_point": lambda: crax_case("safe_goal_point"),
    "crax safe_velocity_swimmer": lambda: crax_case("safe_velocity_swimmer"),
    "craftax classic": lambda: craftax_case("Craftax-Classic-Symbolic-v1"),
    "craftax": lambda: craftax_case("Craftax-Symbolic-v1"),
    "jumanji, one choice": snake_case,
    "jumanji, joint choices": mines_case,
    "jumanji, masks apart": foraging_case,
    "jumanji, no mask": cube_case,
    "navix": lambda: navix_case("Navix-Empty-5x5-v0", random_starts=False),
    "navix, random starts": lambda: navix_case("Navix-Empty-Random-5x5-v0"),
    "playground": lambda: playground_case("CartpoleBalance"),
    "playground, entries": lambda: playground_case(
        "Go1JoystickFlatTerrain",
        dtype={"state": jnp.float32, "privileged_state": jnp.float32},
    ),
    "target_gym": lambda: target_gym_case("cstr"),
    "xland": lambda: xland_case(
        lambda xminigrid: xminigrid.make("MiniGrid-Empty-5x5"),
        ends=("truncated",),
        random_starts=False,
    ),
    "xland, rulesets": lambda: xland_case(
        lambda xminigrid: (*xminigrid.make("XLand-MiniGrid-R4-13x13"), rulesets()),
        ends=("truncated",),
    ),
}
SLOW = {name for name in CASES if name.startswith("brax ")} - {"brax fast"}
SLOW |= {name for name in CASES if name.startswith("crax ")}
SLOW |= {"craftax", "craftax classic", "playground", "playground, entries"}
EVERY_SUITE = pytest.mark.parametrize(
    "case",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in CASES
    ],
    indirect=True,
)


@functools.cache
def made(name):
    return CASES[name]()


@pytest.fixture
def case(request):
    return made(request.param)


def sample_action(environment, key, observation):
    """One action within the bounds, allowed by the mask if there is one."""
    match environment.action_space:
        case Box(size, low, high):
            low, high = jnp.array(low), jnp.array(high)
            return jax.random.uniform(key, (size,), minval=low, maxval=high)
        case Discrete(num_actions):
            return sample_choices(key, [num_actions], observation)[0]
        case MultiDiscrete(num_actions):
            return jnp.stack(sample_choices(key, num_actions, observation))


def sample_choices(key, sizes, observation):
    masks = jnp.ones(sum(sizes), bool)
    if isinstance(observation, MaskedObservation):
        masks = observation.action_mask
    choices = []
    for size, start in zip(sizes, np.cumsum([0, *sizes]), strict=False):
        key, choice_key = jax.random.split(key)
        logits = jnp.where(masks[start : start + size], 0, -jnp.inf)
        choices.append(jax.random.categorical(choice_key, logits).astype(jnp.int32))
    return choices


@functools.cache
def played(case):
    """Random actions in a batch: (first observations, time steps, `Raw`s), [T, B]."""

    def act(carry, key):
        state, observation = carry
        keys = jax.random.split(key)
        action = sample_action(case.environment, keys[0], observation)
        raw = case.step(keys[1], state, action)
        state, taken = case.environment.step(keys[1], state, action)
        return (state, taken.observation), (taken, raw)

    @fast_jit
    @functools.partial(jax.vmap, out_axes=(0, 1, 1))
    def play(key):
        first = case.environment.reset(key)
        keys = jax.random.split(key, STEPS)
        return first[1], *jax.lax.scan(act, first, keys)[1]

    return play(jax.random.split(KEY, BATCH))


def close(left, right):
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), left, right)


def values(observation):
    """The leaves of an observation, without its mask."""
    masked = isinstance(observation, MaskedObservation)
    return jax.tree.leaves(observation.values if masked else observation)


def describe(leaf):
    return leaf.shape, leaf.dtype, leaf.weak_type


@EVERY_SUITE
def test_types_are_the_protocols_and_stay_so(case):
    environment = case.environment
    state, observation = jax.eval_shape(environment.reset, KEY)
    sample = functools.partial(sample_action, environment)
    action = jax.eval_shape(sample, KEY, observation)
    following, taken = jax.eval_shape(environment.step, KEY, state, action)
    assert [*map(describe, jax.tree.leaves(following))] == [
        *map(describe, jax.tree.leaves(state))
    ]
    expected = jax.tree.map(
        lambda dtype, shape: (shape, dtype, False),
        case.dtype,
        environment.observation_shape,
    )
    if case.mask_size is not None:
        expected = MaskedObservation(expected, ((case.mask_size,), bool, False))
    for given in (observation, taken.observation, taken.final_observation):
        assert jax.tree.map(describe, given) == expected
    for number in (taken.reward, *jax.tree.leaves(taken.cost)):
        assert describe(number) == ((), jnp.float32, False)
    assert num_costs(environment) == len(jax.tree.leaves(taken.cost))
    assert describe(taken.terminated) == describe(taken.truncated) == ((), bool, False)


@EVERY_SUITE
def test_a_step_is_the_suites_own(case):
    """The last observation of an episode too, which no reset has replaced."""
    _, taken, raw = played(case)
    close(taken.final_observation, raw.observation)
    close(taken.reward, raw.reward)
    # Of the step, and of no reset; None where the suite has none.
    close(taken.cost, raw.cost)
    assert all(np.isfinite(leaf).all() for leaf in values(taken.final_observation))


@EVERY_SUITE
def test_termination_and_truncation_are_told_apart(case):
    _, taken, raw = played(case)
    np.testing.assert_array_equal(taken.terminated, raw.terminated)
    np.testing.assert_array_equal(taken.truncated, raw.truncated & ~raw.terminated)
    ends = ("terminated", "truncated")
    assert case.ends == tuple(end for end in ends if getattr(taken, end).any())


@EVERY_SUITE
def test_no_episode_outlasts_its_limit(case):
    _, taken, _ = played(case)
    length = np.zeros(BATCH, int)
    for terminated, truncated in zip(taken.terminated, taken.truncated, strict=True):
        length += 1
        assert (length <= LIMIT).all()
        np.testing.assert_array_equal((length == LIMIT) & ~terminated, truncated)
        length[terminated | truncated] = 0


@EVERY_SUITE
def test_every_episode_starts_anew(case):
    first, taken, _ = played(case)
    done = taken.terminated | taken.truncated
    going_on = jax.tree.map(
        lambda leaf: leaf[~done], (taken.observation, taken.final_observation)
    )
    close(*going_on)
    pairs = zip(values(first), values(taken.observation), strict=True)
    starts = [np.concatenate([leaf, later[done]]) for leaf, later in pairs]
    starts = np.column_stack([leaf.reshape(len(leaf), -1) for leaf in starts])
    different = np.unique(np.round(starts.astype(float), 6), axis=0)
    assert len(different) == (len(starts) if case.random_starts else 1)


@EVERY_SUITE
def test_actions_are_clipped(case):
    if not isinstance(case.environment.action_space, Box):
        pytest.skip("its actions are choices")
    _, low, high = case.environment.action_space

    @fast_jit
    def step(action):
        state, _ = case.environment.reset(KEY)
        return case.environment.step(KEY, state, action)[1]

    for inside, outside in ((low, -9.0), (high, 9.0)):
        at_bound, beyond = step(jnp.array(inside)), step(jnp.full(len(low), outside))
        jax.tree.map(np.testing.assert_array_equal, at_bound, beyond)


@EVERY_SUITE
def test_a_second_call_does_not_compile_again(case):
    step = fast_jit(case.environment.step)
    state, observation = fast_jit(case.environment.reset)(KEY)
    action = sample_action(case.environment, KEY, observation)
    state, _ = step(KEY, state, action)
    with compilations() as seconds:
        step(KEY, state, action)
    assert seconds == []


def test_the_clip_of_brax_fluids_takes_what_they_pass():
    fluid = pytest.importorskip("brax.fluid")
    BraxEnvironment(Ball(), LIMIT)
    BraxEnvironment(Ball(), LIMIT)  # mended once
    assert fluid.jp.clip(jnp.array([-1.0, 2.0]), a_min=0.5).tolist() == [0.5, 2.0]
    assert fluid.jp.clip(jnp.array([-1.0, 2.0]), 0, max=1).tolist() == [0.0, 1.0]
    assert fluid.jp.sum is jnp.sum


def test_what_is_wrong_in_making_an_environment_is_said_as_it_is(monkeypatch):
    envs = pytest.importorskip("brax.envs")

    def broken(**_):
        raise ValueError("its file is missing")

    monkeypatch.setitem(envs._envs, "broken", broken)
    with pytest.raises(ValueError, match=r"^its file is missing$"):
        make_environment("brax/broken")


def test_a_state_is_not_written_into():
    environment = BraxEnvironment(Ball(), LIMIT)
    state, _ = environment.reset(KEY)
    environment.step(KEY, state, jnp.zeros(2))
    assert state.env_state.info["steps"] == 0


class AutoResetWrapper:
    """Has brax's name and form."""

    def __init__(self, env):
        self.env = env

    def __getattr__(self, name):
        return getattr(self.env, name)

    @property
    def unwrapped(self):
        return getattr(self.env, "unwrapped", self.env)


class HarmlessWrapper(AutoResetWrapper):
    """A wrapper of one's own, of rewards for example."""


def test_wrappers_that_hide_how_an_episode_ended_are_refused():
    for wrapped in (
        AutoResetWrapper(Ball()),
        HarmlessWrapper(AutoResetWrapper(Ball())),
    ):
        advice = r"env is wrapped in AutoResetWrapper, .*; write env\.unwrapped"
        with pytest.raises(ValueError, match=advice):
            BraxEnvironment(wrapped, LIMIT)
        BraxEnvironment(wrapped.unwrapped, LIMIT)
        BraxEnvironment(HarmlessWrapper(wrapped.unwrapped), LIMIT)
    with pytest.raises(TypeError, match=r"wrappers of training: env\.unwrapped"):
        make_environment(AutoResetWrapper(Ball()))


def test_wrappers_of_brax_are_refused_and_the_advice_works():
    envs = pytest.importorskip("brax.envs")
    env = envs.create("fast", episode_length=5)
    with pytest.raises(ValueError, match="env is wrapped in AutoResetWrapper"):
        BraxEnvironment(env, LIMIT)
    for alone in (env.unwrapped, envs.get_environment("fast")):
        assert BraxEnvironment(alone, LIMIT).name == "Fast"


def test_physics_that_a_batch_shares_is_refused():
    """As that of an object of Playground with its default configuration."""
    model = types.SimpleNamespace(impl=types.SimpleNamespace(name="WARP"))
    env = types.SimpleNamespace(mjx_model=model)
    with pytest.raises(ValueError, match=r"config_overrides=\{'impl': 'jax'\}"):
        BraxEnvironment(env, LIMIT)
    registry = pytest.importorskip("mujoco_playground").registry
    advised = registry.load("CartpoleBalance", config_overrides={"impl": "jax"})
    BraxEnvironment(advised, LIMIT)


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("length", "error", "message"),
    [
        (0, ValueError, "episode_length=0 is not positive; write 1000"),
        (-1, ValueError, "episode_length=-1 is not positive"),
        (None, TypeError, "episode_length is None; write a whole number"),
        ("20", TypeError, "episode_length is the str '20'; write a whole number"),
    ],
)
def test_an_episode_has_a_whole_number_of_steps(length, error, message):
    with pytest.raises(error, match=message):
        BraxEnvironment(Ball(), length)


def test_termination_wins_at_the_time_limit():
    class Falling(Ball):
        def step(self, state, action):
            return super().step(state, action).replace(done=jnp.ones(()))

    environment = BraxEnvironment(Falling(), episode_length=1)
    state, _ = environment.reset(KEY)
    _, taken = environment.step(KEY, state, jnp.zeros(2))
    assert taken.terminated
    assert not taken.truncated


class Robot(Ball):
    """Observes what the robots of MuJoCo Playground do, some of which have cameras."""

    def _with_observation(self, state, place):
        camera = jnp.full((2, 2, 3), 7, jnp.uint8)
        entries = {
            "pixels/view_0": camera,
            "privileged_state": place,
            "state": place[:1],
        }
        return state.replace(obs=entries, info=state.info | {"place": place})

    def reset(self, rng):
        state = super().reset(rng)
        return self._with_observation(state, state.obs)

    def step(self, state, action):
        state = super().step(state.replace(obs=state.info["place"]), action)
        return self._with_observation(state, state.obs)


def test_the_entries_of_an_observation_are_kept():
    environment = BraxEnvironment(Robot(), LIMIT)
    shape = {"pixels/view_0": (2, 2, 3), "privileged_state": (2,), "state": (1,)}
    assert environment.observation_shape == shape
    (state, observation), ball = environment.reset(KEY), BraxEnvironment(Ball(), LIMIT)
    ball_state, place = ball.reset(KEY)
    close(observation["privileged_state"], place)
    assert observation["pixels/view_0"].dtype == jnp.uint8
    _, taken = environment.step(KEY, state, jnp.ones(2))
    _, expected = ball.step(KEY, ball_state, jnp.ones(2))
    close(taken.final_observation["privileged_state"], expected.final_observation)
    config = TRPOConfig(
        env=environment,
        policy_observation="state",
        critic_observation="privileged_state",
        normalize_observations=True,
        num_envs=2,
        rollout_length=4,
        total_timesteps=16,
        hidden_sizes=(4,),
    )
    assert np.isfinite(train(config).metrics.critic_loss).all()


def test_playground_passes_its_observations_on(monkeypatch):
    """With a stand-in for the package, which need not be installed."""
    registry = types.SimpleNamespace(
        ALL_ENVS=("RobotWithCamera",),
        get_default_config=lambda name: types.SimpleNamespace(episode_length=LIMIT),
        load=lambda name, config: Robot(),
    )
    package = types.SimpleNamespace(registry=registry)
    monkeypatch.setitem(sys.modules, "mujoco_playground", package)
    environment = make_playground("RobotWithCamera")
    assert set(environment.observation_shape) == {
        "pixels/view_0",
        "privileged_state",
        "state",
    }
    # The limit is that of the environment's own configuration.
    state, _ = environment.reset(KEY)
    ends = []
    for _ in range(LIMIT):
        state, taken = environment.step(KEY, state, jnp.zeros(2))
        ends.append(bool(taken.truncated))
    assert ends == [False] * (LIMIT - 1) + [True]
    with pytest.raises(ValueError, match=r"no 'hidden'; .*'privileged_state', 'state'"):
        TRPOConfig(env="playground/RobotWithCamera", critic_observation="hidden")


# For each suite: what it imports, its extra, and an environment of its own.
SUITES = {
    "brax": ("brax.envs", "brax", "halfcheetah"),
    "craftax": ("craftax.craftax_env", "craftax", "Craftax-Symbolic-v1"),
    "crax": ("crax.envs", "crax", "safe_goal_point"),
    "gymnasium": ("gymnasium", "gymnasium", "CartPole-v1"),
    "jumanji": ("jumanji", "jumanji", "Snake-v1"),
    "navix": ("navix", "navix", "Navix-Empty-5x5-v0"),
    "playground": ("mujoco_playground", "playground", "CartpoleBalance"),
    "target_gym": ("target_gym.registry", "target-gym", "cstr"),
    "xland": ("xminigrid", "xland", "MiniGrid-Empty-5x5"),
}


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_that_is_not_installed_is_said_to_be(suite, monkeypatch):
    module, extra, _ = SUITES[suite]
    monkeypatch.setitem(sys.modules, module, None)
    advice = rf'pip install "trpo_jax\[{extra}\]"'
    with pytest.raises(ValueError, match=f"{module} cannot be imported .*{advice}"):
        make_environment(f"{suite}/not-made-before")


@pytest.mark.parametrize("suite", SUITES)
def test_an_unknown_name_gets_the_nearest(suite):
    module, _, name = SUITES[suite]
    pytest.importorskip(module)
    with pytest.raises(ValueError, match=f"no environment .* in {suite}.*'{name}'"):
        make_environment(f"{suite}/{name.lower()}s")


@pytest.mark.parametrize("suite", ["gymnax", *SUITES])
def test_an_id_is_one_object(suite):
    module, _, name = SUITES.get(suite, ("gymnax", None, "CartPole-v1"))
    pytest.importorskip(module)
    name = {"brax": "fast", "crax": "fast"}.get(suite, name)  # cheap to make
    assert make_environment(f"{suite}/{name}") is make_environment(f"{suite}/{name}")


def test_a_backend_is_the_third_part_of_a_brax_id():
    pytest.importorskip("brax.envs")
    default = make_environment("brax/fast")
    assert make_environment("brax/fast/spring") is default is make_brax("fast")
    assert make_environment("brax/fast/generalized").name == "brax/fast/generalized"
    with pytest.raises(ValueError, match=r"no backend 'mujoco' in brax.*generalized"):
        make_environment("brax/fast/mujoco")
    with pytest.raises(ValueError, match=r"spring cannot .*'brax/swimmer/generalized'"):
        make_environment("brax/swimmer")


def test_a_level_is_the_third_part_of_a_crax_id():
    pytest.importorskip("crax.envs")
    default = make_environment("crax/safe_reacher")
    assert default.name == "crax/safe_reacher/1"
    assert make_environment("crax/safe_reacher/3").name == "crax/safe_reacher/3"
    with pytest.raises(ValueError, match=r"no level '4' in CRAX.*safe_reacher/2'"):
        make_environment("crax/safe_reacher/4")
    with pytest.raises(ValueError, match=r"no levels .*Hopper\(level=2\), 1000\)"):
        make_environment("crax/safe_velocity_hopper/2")


@pytest.mark.slow
def test_a_class_of_crax_takes_the_level_that_its_registry_does_not():
    envs = pytest.importorskip("crax.envs")
    env = BraxEnvironment(envs.SafeVelocityHopper(level=2), 1000)
    assert num_costs(env) == 1
    np.testing.assert_allclose(env._env._velocity_threshold, 0.75 * 0.7402)


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("failure", ["git", "clone"])
def test_robots_that_cannot_be_downloaded_are_said_to_be_the_reason(
    failure, monkeypatch
):
    registry = pytest.importorskip("mujoco_playground").registry
    errors = {
        "git": FileNotFoundError("no git"),
        "clone": subprocess.CalledProcessError(128, ["git", "clone"]),
    }

    def load(*_):
        raise errors[failure]

    monkeypatch.setattr(registry, "load", load)
    with pytest.raises(ValueError, match=r"downloads its robots with git.*needs no"):
        make_environment("playground/Go1JoystickFlatTerrain")


def test_levels_that_cannot_be_downloaded_are_said_to_be_the_reason(monkeypatch):
    jumanji = pytest.importorskip("jumanji")

    def make(name):
        raise FileNotFoundError("no network")

    monkeypatch.setattr(jumanji, "make", make)
    with pytest.raises(ValueError, match=r"downloads its data .* no network"):
        make_environment("jumanji/Sokoban-v0")


def test_rewards_for_each_agent_are_refused_with_a_wrapper():
    pytest.importorskip("jumanji")
    with pytest.raises(ValueError, match=r"each of 2 agents.*MultiToSingleWrapper"):
        make_environment("jumanji/LevelBasedForaging-v0")


def test_actions_of_another_kind_are_refused_with_the_right_ones():
    pytest.importorskip("jumanji")
    with pytest.raises(ValueError, match=r"int16.* with a mask \[2, 21\].*a Discrete"):
        make_environment("jumanji/MultiCVRP-v0")


@pytest.mark.parametrize(
    ("mask", "expected"), [([0, 1, 0], [0, 1, 0]), ([0, 0, 0], [1, 1, 1])]
)
def test_where_jumanji_allows_nothing_everything_is_allowed(mask, expected):
    """Its snake, boxed in, has one more step: any action ends the episode."""

    class Seen(NamedTuple):
        grid: Any
        action_mask: Any

    observation = _observe(Seen(jnp.zeros((2, 2)), jnp.array(mask, bool)))
    np.testing.assert_array_equal(observation.values, np.zeros((2, 2)))
    np.testing.assert_array_equal(observation.action_mask, np.array(expected, bool))


def test_an_array_alone_keeps_its_shape():
    pytest.importorskip("jumanji")
    assert make_environment("jumanji/Game2048-v1").observation_shape == (4, 4)


def test_without_a_suite_an_id_is_gymnaxs():
    assert make_environment("gymnax/CartPole-v1") is make_environment("CartPole-v1")
    with pytest.raises(ValueError, match=r"in gymnax.*begin with the suite"):
        make_environment("halfcheetah")


def walk(environment, actions):
    """Results of the actions, from a reset."""
    _, taken = jax.lax.scan(
        lambda state, action: environment.step(KEY, state, action),
        environment.reset(KEY)[0],
        jnp.array(actions, jnp.int32),
    )
    return taken


@pytest.mark.parametrize(
    ("env", "module", "forward", "turn"),
    [
        ("navix/Navix-Empty-5x5-v0", "navix", 2, 1),
        ("xland/MiniGrid-Empty-5x5", "xminigrid", 0, 1),
    ],
)
def test_a_goal_terminates_and_pays(env, module, forward, turn):
    pytest.importorskip(module)
    environment = make_environment(env)
    actions = [forward, forward, turn, forward, forward]
    taken = fast_jit(lambda: walk(environment, actions))()
    assert taken.terminated.tolist() == [False] * 4 + [True]
    assert not taken.truncated.any()
    assert taken.reward[-1] > 0.9
    _, start = environment.reset(KEY)
    np.testing.assert_array_equal(taken.observation[-1], start)
    assert (taken.final_observation[-1] != start).any()


@pytest.mark.slow
def test_a_death_in_craftax_terminates_also_at_the_time_limit():
    classic = "Craftax-Classic-Symbolic-v1"
    case = craftax_case(classic)
    state, _ = case.environment.reset(KEY)
    state = state.replace(player_health=jnp.int32(-9), timestep=jnp.int32(LIMIT - 1))
    _, taken = fast_jit(case.environment.step)(KEY, state, jnp.int32(0))
    assert taken.terminated
    assert not taken.truncated


@pytest.mark.slow
def test_rows_of_craftax_have_parameters_of_their_own():
    case = craftax_case("Craftax-Classic-Symbolic-v1")
    env, params = case.environment._env, case.environment._params
    limits = jnp.array([1, 2, 3])
    varied = make_environment((env, params.replace(max_timesteps=limits)))
    keys = jax.random.split(KEY, 3)
    state, _ = reset_batch(varied, keys)
    step = fast_jit(jax.vmap(varied.step))
    ends = []
    for _ in range(3):
        state, taken = step(keys, state, jnp.zeros(3, jnp.int32))
        ends.append(taken.truncated)
    np.testing.assert_array_equal(ends, [[1, 0, 0], [1, 1, 0], [1, 0, 1]])


def test_layers_of_ids_become_one_hot_side_by_side():
    layers = jnp.array([[[0, 1], [2, 255]]], jnp.uint8)
    expected = [[[1, 0, 0, 0, 1], [0, 0, 1, 0, 0]]]
    hot = one_hot_layers(layers, (3, 2))
    assert hot.dtype == bool
    np.testing.assert_array_equal(hot, np.array(expected, bool))


def test_images_of_the_grid_worlds_stay_bytes():
    navix = pytest.importorskip("navix")
    env = navix.make("Navix-Empty-5x5-v0", observation_fn=navix.observations.rgb)
    _, image = jax.eval_shape(make_environment(env).reset, KEY)
    assert image.dtype == jnp.uint8
    assert make_environment(env) is make_environment(env)


def test_the_entries_of_xlands_wrappers_are_kept():
    xminigrid = pytest.importorskip("xminigrid")
    wrappers = importlib.import_module("xminigrid.wrappers")
    env, params = xminigrid.make("MiniGrid-Empty-5x5")
    for wrapper in ("DirectionObservationWrapper", "RulesAndGoalsObservationWrapper"):
        env = getattr(wrappers, wrapper)(env)
    environment = make_environment((env, params))
    shapes = {
        "img": (7, 7, 25),
        "direction": (4,),
        "goal_encoding": (5,),
        "rule_encoding": (1, 7),
    }
    assert environment.observation_shape == shapes
    with pytest.raises(ValueError, match=r"GymAutoResetWrapper.*leave it out"):
        make_environment((wrappers.GymAutoResetWrapper(env), params))


def test_the_rulesets_of_xland():
    xminigrid = pytest.importorskip("xminigrid")
    env, params = xminigrid.make("XLand-MiniGrid-R1-9x9")
    environment = XLandEnvironment(env, params, rulesets())
    state, _ = fast_jit(jax.vmap(environment.reset))(jax.random.split(KEY, 16))
    goals = {tuple(goal) for goal in np.asarray(state.state.goal_encoding).tolist()}
    assert goals == {tuple(goal) for goal in np.asarray(rulesets().goals).tolist()}

    each = jax.vmap(rulesets().get_ruleset)(jnp.arange(2))
    varied = (env, params.replace(ruleset=each))
    start, _ = reset_batch(make_environment(varied), jax.random.split(KEY, 4))
    seen = np.asarray(start.env_state.state.goal_encoding)
    np.testing.assert_array_equal(seen, np.asarray(each.goal)[[0, 1, 0, 1]])
    config = TRPOConfig(
        env=varied, num_envs=2, rollout_length=4, total_timesteps=8, hidden_sizes=(4,)
    )
    assert np.isfinite(train(config).metrics.critic_loss).all()
    with pytest.raises(ValueError, match=r"no goal .*'xland/.*R1-9x9/trivial-21k'"):
        make_environment("xland/XLand-MiniGrid-R1-9x9")
    with pytest.raises(ValueError, match=r"no rulesets. Write 'xland/MiniGrid-Empty"):
        make_environment("xland/MiniGrid-Empty-5x5/trivial-21k")
    with pytest.raises(ValueError, match=r"no benchmark 'trivial'.*'trivial-21k'"):
        make_environment("xland/XLand-MiniGrid-R1-9x9/trivial")


def test_rulesets_that_cannot_be_downloaded_are_said_to_be_the_reason(monkeypatch):
    xminigrid = pytest.importorskip("xminigrid")

    def load(name):
        raise OSError("no network")

    monkeypatch.setattr(xminigrid, "load_benchmark", load)
    with pytest.raises(ValueError, match=r"small-1m downloads its data .*no network"):
        make_environment("xland/XLand-MiniGrid-R1-9x9/small-1m")
