import dataclasses
import json
import shlex
import shutil

import jax
import numpy as np
import pytest
from tiny import CONFIG, resume, run

import trpo_jax.__main__
from trpo_jax import evaluate, load_policy, load_state
from trpo_jax.policies import LoadedPolicy
from trpo_jax.runs import checkpoints


@pytest.fixture
def folder(finished):
    return finished[0]


def test_the_config_and_the_last_state_are_loaded(folder):
    config, state = load_state(folder)
    assert config == CONFIG
    assert state.updates == 40


def test_parameters_are_plain_pytrees_of_arrays(folder):
    state = load_state(folder)[1]
    for params in (state.params, state.critic_params):
        plain = json.loads(json.dumps(jax.tree.map(np.shape, params)))
        assert plain == jax.tree.map(lambda leaf: [*leaf.shape], params)


def test_best_and_last_are_two_checkpoints(folder):
    best = load_state(folder, checkpoint="best")[1]
    last = load_state(folder)[1]
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
    with pytest.warns(UserWarning, match=rf"is damaged.*{second.name} is used"):
        state = load_state(copy, checkpoint="best")[1]
    assert state.updates == int(second.name)


def test_a_damaged_checkpoint_is_named_and_an_older_one_taken(folder, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    (copy / "checkpoints" / "00000040" / "manifest.json").write_text("{}")
    with pytest.warns(
        UserWarning, match=r"manifest\.json is damaged.*00000030 is used"
    ):
        assert load_state(copy)[1].updates == 30
    assert (copy / "checkpoints" / "00000040").exists()
    for manifest in copy.glob("checkpoints/*/manifest.json"):
        manifest.write_text("{}")
    with pytest.raises(ValueError, match="no checkpoint in"):
        load_policy(copy)


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


def test_a_run_without_a_checkpoint_can_be_resumed_as_advised(tmp_path, monkeypatch):
    monkeypatch.setattr(trpo_jax.__main__, "keep_compiled_programs", lambda: None)
    config = dataclasses.replace(CONFIG, total_timesteps=16)
    run(tmp_path / "a run", config)
    shutil.rmtree(tmp_path / "a run" / "checkpoints")
    with pytest.raises(ValueError, match="no checkpoint yet") as error:
        load_policy(tmp_path / "a run")
    command = str(error.value).split("go on with the run: ")[1]
    assert command.startswith("python -m trpo_jax ")
    assert trpo_jax.__main__.main(shlex.split(command)[3:]) == 0
    load_policy(tmp_path / "a run")


def test_where_no_episode_ended_the_last_checkpoint_is_advised(tmp_path):
    """In one update of eight steps, none does; the run is finished."""
    run(tmp_path / "run", dataclasses.replace(CONFIG, total_timesteps=16))
    with pytest.raises(ValueError, match=r"checkpoint='last', .* --checkpoint last\.$"):
        load_policy(tmp_path / "run", checkpoint="best")
    assert load_state(tmp_path / "run", checkpoint="last")[1].updates == 1


@pytest.mark.parametrize("damage", [True, False])
def test_the_advice_holds_where_the_manifests_are_damaged(folder, tmp_path, damage):
    """Their scores cannot be read; what is damaged is then named."""
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    for manifest in copy.glob("checkpoints/*/manifest.json"):
        if damage:
            manifest.write_text("{}")
        else:
            manifest.unlink()
    with pytest.raises(ValueError, match="write checkpoint='last'"):
        load_state(copy, checkpoint="best")
    with pytest.raises(ValueError, match=r"manifest\.json is (damaged|missing)"):
        load_state(copy, checkpoint="last")


SETTINGS_OF_JAX = {
    "jax_enable_x64": (False, jax.enable_x64, True),
    "jax_default_prng_impl": ("threefry2x32", jax.default_prng_impl, "rbg"),
    "jax_threefry_partitionable": (True, jax.threefry_partitionable, False),
}
"""Setting ↦ its value in the run, a context manager for others, another value."""


@pytest.mark.parametrize("name", SETTINGS_OF_JAX)
def test_under_other_settings_of_jax_a_policy_acts_but_a_run_does_not_go_on(
    folder, name
):
    stored, setting, other = SETTINGS_OF_JAX[name]
    observations = jax.random.normal(jax.random.key(0), (32, 4))
    key = jax.random.key(1)
    expected = jax.vmap(load_policy(folder), (0, None))(observations, key)
    with setting(other):
        actions = jax.vmap(load_policy(folder), (0, None))(observations, key)
        np.testing.assert_array_equal(actions, expected)
        state = load_state(folder)[1]
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(state.params)}
        assert dtypes == {np.dtype("float32")}
        returns = evaluate(CONFIG, state, jax.random.key(1), 2)
        assert (returns > 7).all()
        with pytest.raises(ValueError, match=f"{name}={stored!r}") as error:
            resume(folder)
        text = str(int(stored)) if isinstance(stored, bool) else stored
        assert f"jax.config.update({name!r}, {stored!r})" in str(error.value)
        assert f"{name.upper()}={text} in the environment" in str(error.value)
        with setting(stored):  # as advised
            assert resume(folder).state.updates == 40


def test_a_run_of_another_kind_of_key_goes_on_and_is_loaded(tmp_path):
    config = dataclasses.replace(CONFIG, total_timesteps=32)
    with jax.default_prng_impl("rbg"):
        state = run(tmp_path / "run", config).state
        assert resume(tmp_path / "run").state.updates == 2
    loaded = load_state(tmp_path / "run")[1]
    assert str(jax.random.key_impl(loaded.key)) == "rbg"
    np.testing.assert_array_equal(
        jax.random.key_data(loaded.key), jax.random.key_data(state.key)
    )


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("call", [load_state, load_policy, resume])
@pytest.mark.parametrize("value", [None, 3, CONFIG])
def test_what_is_no_folder_is_refused(call, value):
    with pytest.raises(TypeError, match=r"folder is of type \w+; write the path"):
        call(value)


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("zero", [0.0, np.int64(0), np.array(0)])
def test_a_seeds_index_may_have_any_type(folder, zero):
    load_policy(str(folder), seed_index=zero)
