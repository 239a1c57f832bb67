"""Observations that are pytrees, all the way through training and use."""

import dataclasses
import functools
import json
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from compiling import fast_jit

import trpo_jax
from trpo_jax import networks
from trpo_jax.environments import Box, Discrete, MaskedObservation, TimeStep
from trpo_jax.environments.making import SUITES
from trpo_jax.observations import entries_of, part_of
from trpo_jax.pictures import render_episode
from trpo_jax.policies.policy import LoadedPolicy, export_policy
from trpo_jax.runs.config_file import config_from_dict, config_to_dict
from trpo_jax.training import init_rollout, rollout
from trpo_jax.training.components import make_networks
from trpo_jax.training.seeds import state_type
from trpo_jax.trust_region import Categorical


class Pair(NamedTuple):
    left: Any
    right: Any


@flax.struct.dataclass
class Record:
    left: Any
    right: Any


@pytest.mark.parametrize(
    "tree", [{"left": 1, "right": (2, 3)}, Pair(1, (2, 3)), Record(1, (2, 3))]
)
def test_entries_have_the_names_of_their_container(tree):
    assert entries_of(tree) == {"left": 1, "right": (2, 3)}
    assert part_of(tree, None) is tree
    assert part_of(tree, "right") == (2, 3)
    assert part_of(tree, ("left",)) == {"left": 1}


def test_the_entries_of_a_tuple_are_numbered_and_an_array_has_none():
    assert entries_of((5, 6)) == {"0": 5, "1": 6}
    assert entries_of(np.ones(2)) == {}


def test_a_mask_stays_with_the_part():
    masked = MaskedObservation(Pair(1, 2), "mask")
    assert part_of(masked, "left") == MaskedObservation(1, "mask")


class Rooms:
    """Says in which of two rooms the reward is, in the entry `goal` alone.

    Entries have the kinds that there are: floats, bytes, an integer, and a name with a
    slash, as MuJoCo Playground has.
    """

    action_space = Discrete(2)
    observation_shape = {  # noqa: RUF012
        "count": (),
        "goal": (1,),
        "pixels/0": (4, 4, 1),
        "place": (2,),
    }
    picture_suffix = ".txt"

    def __init__(self, wrap=lambda observation: observation):
        self._wrap = wrap
        self.observation_shape = wrap(self.observation_shape)

    def observe(self, state):
        goal, count = state
        return self._wrap(
            {
                "count": count,
                "goal": goal[None],
                "pixels/0": jnp.full((4, 4, 1), 17 * count, jnp.uint8),
                "place": 3 + jnp.stack([goal, jnp.float32(count)]),
            }
        )

    def reset(self, key):
        goal = jax.random.bernoulli(key).astype(jnp.float32)
        state = (goal, jnp.int32(0))
        return state, self.observe(state)

    def step(self, key, state, action):
        goal, count = state
        last = self.observe((goal, count + 1))
        ended = count >= 2
        state = jax.tree.map(
            lambda new, old: jnp.where(ended, new, old),
            self.reset(key)[0],
            (goal, count + 1),
        )
        reward = jnp.where(action == goal, 1.0, 0.0)
        return state, TimeStep(
            self.observe(state), reward, ended, jnp.array(False), last
        )

    def draw(self, states, returns, path):
        path.write_text(f"{len(returns)} steps, goal {states[0][0]}")


SMALL = {
    "num_envs": 2,
    "rollout_length": 6,
    "total_timesteps": 24,
    "hidden_sizes": (4,),
}
SEEN = ("pixels/0", "place")
CONFIG = trpo_jax.TRPOConfig(
    env=Rooms(),
    policy_observation=SEEN,
    channels=(2,),
    normalize_observations=True,
    **SMALL,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "rooms"
    settings = trpo_jax.RunSettings(checkpoint_updates=1, evaluation_episodes=2)
    result = trpo_jax.run(CONFIG, folder, settings, progress=False)
    assert np.isfinite(result.evaluation["return_mean"])
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return trpo_jax.load_state(folder, CONFIG)


def test_only_floats_are_normalized(loaded):
    _, state = loaded
    statistics = state.observation_statistics
    assert statistics["count"] is statistics["pixels/0"] is None
    assert statistics["place"].num_samples == 24
    assert statistics["place"].mean[0] > 3
    assert statistics["goal"].mean.shape == (1,)


def test_bytes_and_integers_stay_as_they_are(loaded):
    _, state = loaded
    assert jax.tree.map(lambda leaf: str(leaf.dtype), state.rollout.observation) == {
        "count": "int32",
        "goal": "float32",
        "pixels/0": "uint8",
        "place": "float32",
    }


def test_policy_and_critic_see_what_they_are_to_see(loaded):
    _, state = loaded

    def inputs(params):
        return params["params"]["torso"]["MLP_0"]["Dense_0"]["kernel"].shape[0]

    assert inputs(state.params) == 2 * 2 * 2 + 2
    assert inputs(state.critic_params) == 2 * 2 * 2 + 1 + 1 + 2


def test_a_policy_is_loaded_and_takes_what_it_sees(folder):
    policy = trpo_jax.load_policy(folder, CONFIG, actions="sample")
    key = jax.random.key(0)
    observation = policy.config.env.observe((jnp.float32(1), jnp.int32(2)))
    seen = {name: np.asarray(observation[name]) for name in SEEN}
    assert policy(observation, key) == policy(seen, key)
    batch = jax.tree.map(lambda leaf: np.stack([leaf] * 3), seen)
    with pytest.raises(ValueError, match=r"'place': \(3, 2\)\}.*for a batch") as error:
        policy(batch, key)
    call = str(error.value).split("write ")[1].rstrip(".")
    names = {"jax": jax, "policy": policy, "observations": batch, "key": key}
    assert eval(call, names).shape == (3,)
    with pytest.raises(ValueError, match=r"one observation \{.*'place': \(2,\)"):
        policy(seen | {"place": np.zeros(3)}, key)


@pytest.mark.usefixtures("no_shape_checks")
def test_an_entry_that_the_policy_needs_is_asked_for(folder):
    policy = trpo_jax.load_policy(folder, CONFIG)
    for wrong in ({"place": np.zeros(2)}, np.zeros(2), None):
        with pytest.raises(TypeError, match=r"write a pytree \{'pixels/0': uint8\[4"):
            policy(wrong, jax.random.key(0))


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("filled", [np.full, jnp.full])
def test_numbers_that_bytes_do_not_hold_are_refused(folder, filled):
    policy, key = trpo_jax.load_policy(folder, CONFIG), jax.random.key(0)
    seen = {"place": np.ones(2), "pixels/0": np.full((4, 4, 1), 3, np.uint8)}
    for number in (0.5, 256, -1, np.nan):
        pixels = filled((4, 4, 1), number)
        with pytest.raises(
            TypeError, match=rf"number {number}.* trained on uint8; pass"
        ):
            policy(seen | {"pixels/0": pixels}, key)
    for number in (3, 3.0):  # the same number in another type
        pixels = filled((4, 4, 1), number)
        assert policy(seen | {"pixels/0": pixels}, key) == policy(seen, key)


def test_wide_integers_keep_their_value_as_floats(folder):
    policy, key = trpo_jax.load_policy(folder, CONFIG), jax.random.key(0)
    pixels = np.zeros((4, 4, 1), np.uint8)
    for place in ([2**40, -(2**40)], [-(2**40), 2**40]):
        wide, exact = np.array(place), np.array(place, np.float32)
        results = [policy({"place": x, "pixels/0": pixels}, key) for x in (wide, exact)]
        assert results[0] == results[1]


def test_traced_observations_are_checked_by_dtype(folder):
    policy, key = trpo_jax.load_policy(folder, CONFIG), jax.random.key(0)

    def play(pixels):
        nested = [[[pixels[i, j, 0]] for j in range(4)] for i in range(4)]
        same = [
            policy({"place": [1.0, 1], "pixels/0": x}, key) for x in (pixels, nested)
        ]
        return jnp.stack(same)

    pixels = jnp.full((4, 4, 1), 3)
    expected = policy({"place": np.ones(2), "pixels/0": np.asarray(pixels)}, key)
    assert jax.jit(play)(pixels).tolist() == [expected] * 2
    with pytest.raises(TypeError, match=r"numbers float32 .* trained on uint8; pass"):
        jax.eval_shape(play, jnp.float32(pixels))


def test_an_exported_policy_takes_what_it_sees(folder, tmp_path):
    policy = trpo_jax.load_policy(folder, CONFIG, actions="sample")
    export_policy(policy, tmp_path / "policy", platforms=("cpu",))
    exported = jax.export.deserialize(bytearray((tmp_path / "policy").read_bytes()))
    seen = {
        "pixels/0": np.ones((5, 4, 4, 1), np.uint8),
        "place": np.ones((5, 2), np.float32),
    }
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), jnp.arange(5))
    expected = jax.vmap(policy)(seen, keys)
    np.testing.assert_array_equal(exported.call(seen, np.uint32(5)), expected)


def test_an_episode_is_drawn(loaded, tmp_path):
    config, state = loaded
    episode = render_episode(
        config, state, tmp_path / "one", key=jax.random.key(0), max_steps=5
    )
    assert episode.path.read_text() in ("3 steps, goal 0.0", "3 steps, goal 1.0")


def test_a_run_goes_on_bit_for_bit(folder, tmp_path, monkeypatch):
    settings = trpo_jax.RunSettings(checkpoint_updates=1, evaluation_episodes=2)
    killed = tmp_path / "killed"
    tiny.run_until_killed(killed, 1, monkeypatch, CONFIG, settings)
    resumed = tiny.resume(killed, CONFIG)
    _, whole = trpo_jax.load_state(folder, CONFIG)
    jax.tree.map(np.testing.assert_array_equal, resumed.state.params, whole.params)


def masked_pair(observation):
    pair = Pair(observation["place"], (observation["count"],))
    if isinstance(pair.left, tuple):  # shapes
        return pair
    return MaskedObservation(pair, jnp.array([False, True]))


def test_a_named_tuple_with_masks_is_exported_as_tuples(tmp_path):
    config, state = tiny.make_state(Rooms(masked_pair))
    policy = LoadedPolicy(config, state, "mode")
    observation = MaskedObservation(Pair([1.0, 2.0], (3,)), [False, True])
    assert policy(observation, jax.random.key(0)) == 1
    export_policy(policy, tmp_path / "policy", platforms=("cpu",))
    exported = jax.export.deserialize(bytearray((tmp_path / "policy").read_bytes()))
    values = (np.ones((2, 2), np.float32), (np.ones(2, np.int32),))
    masks = np.array([[True, False], [False, True]])
    actions = exported.call((values, masks), np.uint32(0))
    assert actions.tolist() == [0, 1]


def test_a_mask_stays_with_what_a_policy_sees():
    fields = {"policy_observation": "left", "normalize_observations": True}
    policy = LoadedPolicy(*tiny.make_state(Rooms(masked_pair), **fields), "mode")
    key, masks = jax.random.key(0), np.array([[True, False], [False, True]])
    for action, mask in enumerate(masks):
        assert policy(MaskedObservation({"left": np.ones(2)}, mask), key) == action
        whole = Pair(np.ones(2), (np.int32(1),))
        assert policy(MaskedObservation(whole, mask), key) == action


@pytest.mark.parametrize("memory_size", [0, 3])
@pytest.mark.parametrize("critic_fit", ["trust_region", "first_order"])
def test_parts_go_through_every_kind_of_step(memory_size, critic_fit):
    one = config(
        policy_observation="goal",
        critic_observation=("count", "place"),
        memory_size=memory_size,
        critic_fit=critic_fit,
        normalize_observations=True,
    )
    state = state_type(one)
    following, _ = jax.eval_shape(functools.partial(trpo_jax.step, one), state)
    assert jax.tree.structure(following) == jax.tree.structure(state)


def test_flat_entries_train_as_their_concatenation():
    """Sorted by name, as JAX sorts a dict."""

    def flat(observation):
        parts = [observation["goal"], observation["place"]]
        if isinstance(parts[0], tuple):
            return (3,)
        return jnp.concatenate(parts)

    def both(observation):
        return {name: observation[name] for name in ("place", "goal")}

    def train(wrap):
        config = trpo_jax.TRPOConfig(
            env=Rooms(wrap), normalize_observations=True, **SMALL
        )
        return trpo_jax.train(config)

    ours, theirs = train(both), train(flat)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        (ours.metrics, ours.state.params),
        (theirs.metrics, theirs.state.params),
    )


def test_an_array_trains_as_a_dict_of_one_entry_bit_for_bit():
    def train(wrap):
        config = trpo_jax.TRPOConfig(
            env=Rooms(wrap), normalize_observations=True, **SMALL
        )
        return trpo_jax.train(config)

    array, entry = train(lambda o: o["place"]), train(lambda o: {"place": o["place"]})
    jax.tree.map(
        np.testing.assert_array_equal,
        (array.metrics, array.state.params, array.state.critic_params),
        (entry.metrics, entry.state.params, entry.state.critic_params),
    )


def test_an_entry_that_no_default_network_takes_is_named_before_training():
    def wrap(observation):
        pixels = observation["pixels/0"]
        clip = (1, *pixels) if isinstance(pixels, tuple) else pixels[None]
        return {"clip": clip, "image": pixels}

    config = trpo_jax.TRPOConfig(env=Rooms(wrap), channels=(4,), **SMALL)
    with pytest.raises(ValueError, match=r"'clip', uint8\[1, 4, 4, 1\], is not an im"):
        trpo_jax.train(config)


def test_a_network_of_ones_own_gets_the_pytree():
    def init(key, observations):
        return {"gain": jnp.zeros((2, 2))}

    def apply(params, observations):
        assert isinstance(observations, Pair)
        assert observations.right.dtype == jnp.uint8
        return Categorical(observations.left @ params["gain"])

    def value(params, place):
        return place @ params["gain"][:, 0]

    def wrap(observation):
        return Pair(observation["place"], observation["pixels/0"])

    config = trpo_jax.TRPOConfig(
        env=Rooms(wrap),
        policy=networks.NetworkFns(init, apply),
        critic=networks.NetworkFns(init, value),
        critic_observation="left",
        **SMALL,
    )
    result = trpo_jax.train(config)
    assert np.isfinite(result.metrics.critic_loss).all()


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float32])
def test_a_rollout_of_bytes_takes_a_quarter_of_the_memory(dtype):
    """Of floats: in the compiled program, for the trajectory and all in between."""
    size, num_envs, num_steps = 32 * 32, 4, 16

    class Screen:
        action_space = Discrete(2)
        observation_shape = (32, 32)

        def reset(self, key):
            return jnp.int32(0), jnp.zeros((32, 32), dtype)

        def step(self, key, state, action):
            seen = jnp.full((32, 32), state + action, dtype)
            flag = jnp.array(False)
            return state + 1, TimeStep(seen, jnp.float32(0), flag, flag, seen)

    def act(key, memory, observations, starts):
        sums = jnp.sum(observations, (1, 2), dtype=jnp.float32)
        policy = Categorical(jnp.stack([sums, -sums], -1))
        action = policy.sample(key)
        return memory, action, policy.log_prob(action)

    def play(key):
        start = init_rollout(Screen(), key, num_envs=num_envs)
        return rollout(act, Screen(), start, key, num_steps=num_steps)

    memory = fast_jit(play).lower(jax.random.key(0)).compile().memory_analysis()
    # Observations and final observations of all steps, and the observation to act on.
    pixels = (2 * num_steps + 1) * num_envs * size
    width = jnp.dtype(dtype).itemsize
    assert pixels * width <= memory.output_size_in_bytes < 1.05 * pixels * width + 8000
    assert memory.temp_size_in_bytes < 4 * num_envs * size * 4


def config(**fields):
    return trpo_jax.TRPOConfig(**{"env": Rooms(), **SMALL, **fields})


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("name", ["policy_observation", "critic_observation"])
@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("camera", r"no 'camera'; write one of 'count', 'goal', 'pixels/0', 'place'"),
        (("goal", "camera"), r"no 'camera'; write one of 'count'"),
        ((), "write the name of an entry"),
        (3, "write the name of an entry"),
        ((3,), "write the name of an entry"),
    ],
)
def test_an_entry_that_does_not_exist_is_refused_by_the_config(name, part, message):
    with pytest.raises((ValueError, TypeError), match=f"{name}=.*{message}"):
        config(**{name: part})


def test_nothing_to_normalize_is_refused():
    env = Rooms(lambda observation: observation["pixels/0"])
    with pytest.raises(ValueError, match=r"observes uint8\[4, 4, 1\]; write False"):
        state_type(config(env=env, normalize_observations=True))
    state_type(config(env=env))


@pytest.mark.parametrize("env", ["CartPole-v1", tiny.Line(Box(1), masked=False)])
def test_an_array_has_no_entries(env):
    with pytest.raises(ValueError, match=r"observes float32\[.\], which has no ent"):
        config(env=env, critic_observation="goal")


@pytest.mark.usefixtures("no_shape_checks")
def test_a_list_of_names_is_a_tuple():
    listed = dataclasses.replace(CONFIG, policy_observation=["pixels/0", "place"])
    assert listed == CONFIG


def test_names_are_read_back_from_a_file(monkeypatch):
    values = config_to_dict(CONFIG)
    monkeypatch.setitem(SUITES, "gymnax", lambda name: CONFIG.env)
    values = json.loads(json.dumps(values | {"env": "gymnax/rooms"}))
    assert values["policy_observation"] == ["pixels/0", "place"]
    assert config_from_dict(values).policy_observation == CONFIG.policy_observation


def test_a_state_of_another_part_is_refused():
    one, other = config(policy_observation="goal"), config(policy_observation="count")
    state = state_type(one)
    with pytest.raises(ValueError, match="policy_observation: 'goal' and 'count'"):
        jax.eval_shape(trpo_jax.step, other, state)


def test_one_of_two_networks_may_see_no_image():
    one = config(
        channels=(2,), policy_observation="pixels/0", critic_observation="place"
    )
    policy, critic = make_networks(one, one.env)
    assert isinstance(policy.torso, networks.CNN)
    assert isinstance(critic.torso, networks.MLP)
    neither = config(
        channels=(2,), policy_observation="place", critic_observation="place"
    )
    with pytest.raises(ValueError, match="is not an image"):
        jax.eval_shape(trpo_jax.init, neither, jax.random.key(0))
