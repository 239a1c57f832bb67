import dataclasses
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs.tiny import CONFIG, run

import trpo_jax
from trpo_jax.environments import Box, Discrete, MaskedObservation, TimeStep
from trpo_jax.runs import checkpoints
from trpo_jax.runs.acting import act, initial_memory
from trpo_jax.runs.policy import LoadedPolicy, export_policy, load_policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy") / "run"
    run(folder)
    return folder


def test_a_loaded_policy_acts_as_the_state_does(folder):
    config, state = trpo_jax.load_state(folder)
    policy = load_policy(folder)
    # Far from standard: the normaliser must be inside.
    observations = 3 * jax.random.normal(jax.random.key(0), (32, 4)) + 2
    key = jax.random.key(1)
    _, expected = act(config, state, key, (), observations, jnp.zeros(32, bool))
    actions = jax.vmap(policy, (0, None))(observations, key)
    np.testing.assert_array_equal(actions, expected)
    assert len(set(actions.tolist())) == 2
    assert policy(np.zeros(4), key).shape == ()


def test_actions_are_drawn_if_asked(folder):
    policy = load_policy(folder, actions="sample")
    usual = trpo_jax.load_state(folder)[1].observation_statistics.mean
    keys = jax.random.split(jax.random.key(0), 64)
    actions = jax.jit(jax.vmap(policy, (None, 0)))(usual, keys)
    assert set(actions.tolist()) == {0, 1}


def test_best_and_last_are_two_checkpoints(folder):
    best = trpo_jax.load_state(folder, checkpoint="best")[1]
    last = trpo_jax.load_state(folder)[1]
    assert last.updates == 40
    manifests = map(checkpoints.verify, (folder / "checkpoints").iterdir())
    scores = {manifest.updates: manifest.score for manifest in manifests}
    assert len(set(scores.values())) == 4
    assert best.updates == max(scores, key=scores.get)


def test_if_the_best_checkpoint_is_damaged_the_second_best_is_taken(folder, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    *_, second, best = checkpoints.by_score(copy / "checkpoints")
    weights = next((best / "arrays").rglob("d/*"))
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.warns(UserWarning, match=rf"is damaged.*{second.name} used"):
        state = trpo_jax.load_state(copy, checkpoint="best")[1]
    assert state.updates == int(second.name)


def test_a_damaged_checkpoint_is_named_and_an_older_one_taken(folder, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    (copy / "checkpoints" / "00000040" / "manifest.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"manifest\.json is damaged.*00000030 used"):
        assert trpo_jax.load_state(copy)[1].updates == 30
    assert (copy / "checkpoints" / "00000040").exists()
    for manifest in copy.glob("checkpoints/*/manifest.json"):
        manifest.write_text("{}")
    with pytest.raises(ValueError, match="is whole"):
        load_policy(copy)


@pytest.mark.parametrize("shape", [(5,), (4, 1), (8, 4), ()])
def test_an_observation_of_another_shape_is_refused(folder, shape):
    policy = load_policy(folder)
    with pytest.raises(ValueError, match=r"jax\.vmap\(policy\)"):
        policy(np.zeros(shape), jax.random.key(0))


def test_a_key_of_the_old_kind_is_refused(folder, no_shape_checks):
    with pytest.raises(TypeError, match="typed key"):
        load_policy(folder)(np.zeros(4), jax.random.PRNGKey(0))


def test_each_seed_has_its_policy(tmp_path):
    config = dataclasses.replace(CONFIG, num_seeds=2, total_timesteps=16 * 4)
    result = run(tmp_path / "run", config)
    observations = jax.random.normal(jax.random.key(0), (64, 4))
    for index in range(2):
        state = jax.tree.map(lambda leaf, index=index: leaf[index], result.state)
        policy = load_policy(tmp_path / "run", seed_index=index)
        expected = LoadedPolicy(config, state, "mode")
        key = jax.random.key(0)
        np.testing.assert_array_equal(
            jax.vmap(policy, (0, None))(observations, key),
            jax.vmap(expected, (0, None))(observations, key),
        )
    with pytest.raises(ValueError, match="write 0 to 1"):
        load_policy(tmp_path / "run", seed_index=2)


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ({"actions": "best"}, "write 'mode' or 'sample'"),
        ({"checkpoint": "first"}, "write 'last' or 'best'"),
        ({"seed_index": 1}, "the run has 1 seed"),
    ],
)
def test_what_cannot_be_loaded_is_refused(folder, arguments, advice, no_shape_checks):
    with pytest.raises(ValueError, match=advice):
        load_policy(folder, **arguments)


def test_a_run_without_a_checkpoint_is_named(folder, tmp_path):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ValueError, match="no checkpoint yet"):
        load_policy(tmp_path)


class Line:
    """Observations of three numbers, some of which forbid an action."""

    def __init__(self, action_space, masked=False):
        self.action_space = action_space
        self.observation_shape = (3,)
        self._masked = masked

    def _observe(self, state):
        values = jnp.array([1.0, 2.0, 3.0]) * state
        if self._masked:
            return MaskedObservation(values, jnp.array([False, True, False]))
        return values

    def reset(self, key):
        return jnp.float32(1), self._observe(jnp.float32(1))

    def step(self, key, state, action):
        observation, flag = self._observe(state), jnp.zeros((), bool)
        return state, TimeStep(observation, jnp.float32(0), flag, ~flag, observation)


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
    config = trpo_jax.TRPOConfig(
        env=environment,
        num_envs=2,
        rollout_length=2,
        total_timesteps=4,
        hidden_sizes=(4,),
        **fields,
    )
    return config, LoadedPolicy(
        config, trpo_jax.init(config, jax.random.key(0)), actions
    )


def draw(policy, observation, num_actions=64):
    keys = jax.random.split(jax.random.key(3), num_actions)
    return np.asarray(jax.vmap(policy, (None, 0))(observation, keys))


def test_actions_are_within_the_environments_bounds():
    actions = draw(make("clipped")[1], jnp.ones(3))
    assert set(np.unique(actions[:, 0])) == {np.float32(-0.1), np.float32(0.1)}
    actions = draw(make("squashed")[1], jnp.ones(3))
    assert (actions > [1, -3]).all()
    assert (actions < [2, 5]).all()
    assert np.ptp(actions[:, 1]) > 3


def test_masks_are_obeyed():
    observation = MaskedObservation(jnp.ones(3), jnp.array([False, True, False]))
    assert set(draw(make("masked")[1], observation)) == {1}


def test_a_memory_is_handed_on():
    config, policy = make("memory", "mode")
    key, observation = jax.random.key(0), jnp.ones(3)
    with pytest.raises(TypeError, match=r"policy\.step"):
        policy(observation, key)
    first, action = policy.step(policy.initial_memory, observation, key)
    second, other = policy.step(first, observation, key)
    assert not np.allclose(action, other)
    again, repeated = policy.step(second, observation, key, start=True)
    np.testing.assert_allclose(action, repeated, rtol=1e-6)
    assert jax.tree.structure(again) == jax.tree.structure(initial_memory(config, 1))


# Exported


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


def test_an_exported_policy_runs_where_this_package_cannot_be_imported(
    folder, tmp_path
):
    policy = load_policy(folder, actions="sample")
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
    export_policy(make("masked")[1], tmp_path / "policy")
    masks = np.array([[True, False, False], [False, False, True]])
    observations = (np.ones((2, 3), np.float32), masks)
    actions = load(tmp_path / "policy").call(observations, np.uint32(0))
    assert actions.tolist() == [0, 2]


def test_a_memory_is_exported_as_a_list(tmp_path):
    _, policy = make("memory", "mode")
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
