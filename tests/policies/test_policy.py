import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, Line, make_state, sample
from tiny import init as init_states

from trpo_jax.environments import Box, Discrete, MaskedObservation
from trpo_jax.policies import act
from trpo_jax.policies.policy import LoadedPolicy, export_policy
from trpo_jax.training.seeds import run_keys

KINDS = {
    "masked": (Line(Discrete(3), masked=True), {}),
    "clipped": (Line(Box(2, (-0.1, -0.1), (0.1, 0.2))), {"initial_log_std": 3.0}),
    "squashed": (
        Line(Box(2, (1.0, -3.0), (2.0, 5.0))),
        {"action_distribution": "tanh_gaussian"},
    ),
    "memory": (Line(Box(1)), {"memory_size": 4, "normalize_observations": True}),
}


def make(kind, actions="sample"):
    environment, fields = KINDS[kind]
    return LoadedPolicy(*make_state(environment, **fields), actions)


def cart_pole(actions="mode"):
    return LoadedPolicy(CONFIG, init_states(CONFIG, run_keys(CONFIG)), actions)


def test_a_policy_acts_as_its_state_does():
    state = init_states(CONFIG, run_keys(CONFIG))
    # Far from standard: the normaliser must be inside.
    seen = state.observation_statistics._replace(mean=jnp.full(4, 2.0))
    state = state._replace(observation_statistics=seen)
    observations = 3 * jax.random.normal(jax.random.key(0), (32, 4)) + 2
    key = jax.random.key(1)
    _, expected = act(CONFIG, state, key, (), observations, jnp.zeros(32, bool))
    policy = LoadedPolicy(CONFIG, state, "mode")
    actions = jax.vmap(policy, (0, None))(observations, key)
    np.testing.assert_array_equal(actions, expected)
    assert len(set(actions.tolist())) == 2
    assert policy(np.zeros(4), key).shape == ()


def test_actions_are_sampled_if_asked():
    assert set(sample(jax.jit(cart_pole("sample")), jnp.zeros(4)).tolist()) == {0, 1}


@pytest.mark.usefixtures("no_shape_checks")
def test_a_list_of_numbers_is_an_observation():
    policy, key = cart_pole(), jax.random.key(0)
    assert policy([1.0, 2.0, 3.0, 4.0], key) == policy(np.arange(1.0, 5.0), key)


@pytest.mark.parametrize("shape", [(5,), (4, 1), (8, 4), ()])
def test_an_observation_of_another_shape_is_refused(shape):
    advice = r"jax\.random\.split\(key, 8\)" if shape == (8, 4) else r"one action\.$"
    with pytest.raises(ValueError, match=advice):
        cart_pole()(np.zeros(shape), jax.random.key(0))


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("observation", "found"),
    [
        ({"position": 1.0}, "a dict {'position': float}"),
        ("left", "the str 'left'"),
        (None, "None"),
        ([[1.0], [2.0, 3.0]], "a list"),
    ],
)
def test_what_is_no_observation_is_named(observation, found):
    with pytest.raises(TypeError, match=rf"observation is {found}.*array float32\[4\]"):
        cart_pole()(observation, jax.random.key(0))


def test_a_folder_in_place_of_its_policy_is_not_exported(tmp_path, no_shape_checks):
    with pytest.raises(TypeError, match=r"type str; write trpo_jax\.load_policy"):
        export_policy("runs/first", tmp_path / "policy")
    assert not (tmp_path / "policy").exists()


@pytest.mark.parametrize("masked", [False, True])
def test_the_advice_about_a_batch_can_be_followed(masked):
    policy, key = (make("masked") if masked else cart_pole()), jax.random.key(0)
    observations = jnp.zeros((8, 3 if masked else 4))
    if masked:
        observations = MaskedObservation(observations, jnp.ones((8, 3), bool))
    with pytest.raises(ValueError, match="for a batch write") as error:
        policy(observations, key)
    call = str(error.value).split("write ")[1].rstrip(".")
    names = {"jax": jax, "policy": policy, "observations": observations, "key": key}
    assert eval(call, names).shape == (8,)


def test_a_mask_is_asked_for_where_there_is_one():
    with pytest.raises(ValueError, match=r"write MaskedObservation\(values, mask\)"):
        make("masked")(jnp.ones(3), jax.random.key(0))
    with pytest.raises(ValueError, match="no action masks; write values alone"):
        cart_pole()(
            MaskedObservation(jnp.ones(4), jnp.ones(2, bool)), jax.random.key(0)
        )


def test_a_key_of_the_old_kind_is_the_same_key():
    policy = cart_pole("sample")
    for seed in range(4):
        old, new = jax.random.PRNGKey(seed), jax.random.key(seed)
        assert policy(np.zeros(4), old) == policy(np.zeros(4), new)


def test_the_state_of_another_environment_is_refused():
    _, state = make_state(KINDS["clipped"][0])
    with pytest.raises(
        ValueError, match=r"has CartPole-v1.* observation: \(3,\) and \(4,\)"
    ):
        LoadedPolicy(CONFIG, state, "mode")


def test_the_state_of_several_seeds_is_refused():
    config, states = make_state(KINDS["memory"][0], num_seeds=2)
    with pytest.raises(ValueError, match="index other axes first"):
        LoadedPolicy(config, states, "mode")
    LoadedPolicy(config, jax.tree.map(lambda leaf: leaf[1], states), "mode")


def test_actions_are_within_the_environments_bounds():
    actions = sample(make("clipped"), jnp.ones(3))
    assert set(np.unique(actions[:, 0])) == {np.float32(-0.1), np.float32(0.1)}
    actions = sample(make("squashed"), jnp.ones(3))
    assert (actions > [1, -3]).all()
    assert (actions < [2, 5]).all()
    assert np.ptp(actions[:, 1]) > 3


def test_masks_are_obeyed():
    observation = MaskedObservation(jnp.ones(3), jnp.array([False, True, False]))
    assert set(sample(make("masked"), observation)) == {1}


def test_a_memory_is_handed_on():
    policy = make("memory", "mode")
    key, observation = jax.random.key(0), jnp.ones(3)
    with pytest.raises(TypeError, match=r"policy\.step"):
        policy(observation, key)
    first, action = policy.step(policy.initial_memory, observation, key)
    second, other = policy.step(first, observation, key)
    assert not np.allclose(action, other)
    again, repeated = policy.step(second, observation, key, start=True)
    np.testing.assert_allclose(action, repeated, rtol=1e-6)
    assert jax.tree.structure(again) == jax.tree.structure(policy.initial_memory)


CALL = """
import sys
for name in ("trpo_jax", "flax", "gymnax"):
    sys.modules[name] = None  # an import of it fails
try:
    import trpo_jax
except ImportError:
    pass
else:
    raise SystemExit("it could be imported")
import jax, jax.export
import numpy as np
exported = jax.export.deserialize(bytearray(open("policy.jaxexport", "rb").read()))
inputs = np.load("inputs.npz")
np.save("actions.npy", exported.call(inputs["observations"], inputs["seed"]))
"""


def test_an_exported_policy_runs_where_this_package_cannot_be_imported(tmp_path):
    policy = cart_pole("sample")
    export_policy(policy, tmp_path / "policy.jaxexport")
    observations = np.random.default_rng(0).normal(1, 2, (33, 4)).astype(np.float32)
    np.savez(tmp_path / "inputs.npz", observations=observations, seed=np.uint32(5))
    subprocess.run([sys.executable, "-c", CALL], cwd=tmp_path, check=True, timeout=120)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), jnp.arange(33))
    expected = jax.vmap(policy)(observations, keys)
    np.testing.assert_array_equal(np.load(tmp_path / "actions.npy"), expected)


def load(path):
    return jax.export.deserialize(bytearray(path.read_bytes()))


def test_masks_are_exported_as_a_pair(tmp_path):
    export_policy(make("masked"), tmp_path / "policy")
    masks = np.array([[True, False, False], [False, False, True]])
    observations = (np.ones((2, 3), np.float32), masks)
    actions = load(tmp_path / "policy").call(observations, np.uint32(0))
    assert actions.tolist() == [0, 2]


def test_a_memory_is_exported_as_a_list(tmp_path):
    policy = make("memory", "mode")
    export_policy(policy, tmp_path / "policy")
    exported = load(tmp_path / "policy")
    memory = [np.full((3, 4), 7, np.float32)]
    observations = np.ones((3, 3), np.float32)
    starts, seed = np.array([True, True, False]), np.uint32(0)
    memory, actions = exported.call(memory, observations, starts, seed)
    _, expected = policy.step(policy.initial_memory, observations[0], jax.random.key(0))
    np.testing.assert_allclose(actions[0], expected, rtol=1e-5)
    np.testing.assert_array_equal(actions[0], actions[1])
    assert not np.allclose(actions[0], actions[2])
    assert memory[0].shape == (3, 4)


def test_a_policy_acts_and_is_exported_without_jit(tmp_path, no_shape_checks):
    policy = cart_pole()
    expected = policy(np.zeros(4), jax.random.key(0))
    with jax.disable_jit():
        assert policy(np.zeros(4), jax.random.key(0)) == expected
        export_policy(policy, tmp_path / "policy", platforms=("cpu",))
    exported = jax.export.deserialize(bytearray((tmp_path / "policy").read_bytes()))
    assert exported.call(jnp.zeros((1, 4)), np.uint32(0)) == expected
