import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    CONFIG,
    SETTINGS,
    Line,
    events,
    init,
    lines,
    make_state,
    resume,
    run,
    run_until_killed,
)

import trpo_jax
from benchmarks.kills import differences
from trpo_jax.environments import Box, Discrete, MultiDiscrete
from trpo_jax.networks import MLP, CategoricalHead, Policy
from trpo_jax.runs import checkpoints
from trpo_jax.runs.chunks import Chunk
from trpo_jax.runs.folder import RunFolder
from trpo_jax.runs.saver import Saver
from trpo_jax.runs.warm_start import as_learnt, find_start, read_learnt
from trpo_jax.training.seeds import run_keys
from trpo_jax.training.state import LEARNT

TWO = Line(Discrete(2))

# Rollouts long enough for episodes to end in the first one.
WARM = dataclasses.replace(
    CONFIG, num_envs=8, rollout_length=128, total_timesteps=2048, seed=1
)


@pytest.fixture(scope="module")
def warm(finished, tmp_path_factory):
    """The folder of a run that starts with what another has learnt."""
    folder = tmp_path_factory.mktemp("warm") / "run"
    run(folder, WARM, warm_start=finished[0])
    return folder


def test_the_first_rollout_is_one_of_the_trained_policy(finished, warm):
    _, result = finished
    start = init(WARM, run_keys(WARM))
    own = {name: getattr(start, name) for name in ("rollout", "key", "updates")}
    trained = result.state._replace(
        **own, hyperparameters=start.hyperparameters, origin=start.origin
    )
    _, metrics = jax.jit(trpo_jax.step)(WARM, trained)
    row = lines(warm / "metrics.jsonl")[0]
    assert row["episode_count"] == metrics.episode_count > 5
    np.testing.assert_allclose(row["episode_return"], metrics.episode_return, 1e-6)
    np.testing.assert_allclose(row["entropy"], metrics.update.entropy, 1e-4)
    np.testing.assert_allclose(
        row["explained_variance"], metrics.explained_variance, 1e-3
    )
    # The mean of ratio · advantage is that of the standardised advantages, 0, if every
    # ratio is 1.
    np.testing.assert_allclose(row["surrogate_before"], 0, atol=1e-6)
    _, fresh = jax.jit(trpo_jax.step)(WARM, start)
    assert not np.allclose(metrics.update.entropy, fresh.update.entropy, 1e-3)


def test_a_warm_run_is_resumed_without_the_folder_that_it_started_from(
    finished, warm, tmp_path, monkeypatch
):
    source = shutil.copytree(finished[0], tmp_path / "source")
    folder = tmp_path / "run"
    settings = dataclasses.replace(SETTINGS, checkpoint_updates=2)
    run_until_killed(folder, 1, monkeypatch, WARM, settings, warm_start=source)
    assert checkpoints.complete(folder / "checkpoints") == []
    shutil.rmtree(source)
    resume(folder)
    assert differences(warm, folder) == []
    (event, again) = events(folder, "warm_start")
    assert event["checkpoint"] == str(source / "checkpoints" / "00000040")
    assert again["checkpoint"] == str(folder / "warm_start")
    assert checkpoints.verify(folder / "warm_start").updates == 40


def test_a_warm_run_needs_no_folder_of_its_own(finished):
    settings = trpo_jax.RunSettings(evaluation_episodes=2)
    result = run(None, WARM, settings, warm_start=finished[0])
    assert result.state.updates == 2


def saved(folder, config, state):
    """Make the folder of a run that has saved a state."""
    folder.mkdir(exist_ok=True)
    RunFolder(folder).create(config, SETTINGS)
    saver = Saver(folder / "checkpoints", config, SETTINGS)
    saver.save(Chunk(1, None, state, 1.0))
    saver.wait()
    saver.close()
    return folder


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_one_seed_starts_all_and_several_start_as_many(tmp_path, num_seeds):
    several = {"normalize_returns": True, "num_seeds": 3}
    config, fresh = make_state(TWO, **several)
    source, trained = make_state(TWO, **several | {"num_seeds": num_seeds})
    trained = jax.tree.map(lambda leaf: leaf + 1, trained._replace(key=jnp.uint32(0)))
    folder = saved(tmp_path, source, trained)
    learnt = as_learnt(read_learnt(find_start(folder, config), config), config)
    for name in LEARNT:
        for leaf, own, there in zip(
            *(jax.tree.leaves(tree) for tree in (learnt[name], getattr(fresh, name))),
            jax.tree.leaves(getattr(trained, name)),
            strict=True,
        ):
            assert (leaf.shape, leaf.dtype) == (own.shape, own.dtype)
            np.testing.assert_array_equal(leaf, jnp.broadcast_to(there, own.shape))


def own_policy(width):
    return Policy(MLP((width,)), CategoricalHead(2))


REFUSED = [
    (
        {"env": TWO},
        {"env": Line(Discrete(3))},
        r"action_space: Discrete\(num_actions=2\) and Discrete\(num_actions=3\)",
    ),
    (
        {"env": Line(MultiDiscrete((2, 2)))},
        {"env": Line(Discrete(4))},
        r"action_space: MultiDiscrete\(.*\) and Discrete\(num_actions=4\)",
    ),
    (
        {"env": Line(Box(1))},
        {"env": TWO},
        r"action_space: Box\(.*\) and Discrete\(num_actions=2\)",
    ),
    ({"env": TWO}, {"env": "CartPole-v1"}, r"observation: .*\[3\] and float32\[4\]"),
    (
        {"env": Line(Discrete(2), dtype=jnp.uint8)},
        {"env": TWO},
        r"observation: uint8\[3\] and float32\[3\]",
    ),
    (
        {"env": TWO},
        {"env": TWO, "hidden_sizes": (5, 6)},
        r"hidden_sizes: \[4\] and \[5, 6\]",
    ),
    (
        {"env": TWO},
        {"env": TWO, "activation": "relu"},
        "activation: tanh and relu",
    ),
    (
        {"env": TWO, "normalize_observations": True},
        {"env": TWO},
        "normalize_observations: True and False",
    ),
    ({"env": TWO, "num_seeds": 3}, {"env": TWO, "num_seeds": 2}, "num_seeds: 3 and 2"),
    (
        {"env": TWO, "policy": own_policy(5)},
        {"env": TWO, "policy": own_policy(6)},
        r"params\..*bias: float32\[5\] and float32\[6\]",
    ),
]


@pytest.mark.parametrize(("there", "here", "message"), REFUSED)
def test_what_does_not_fit_is_refused_by_both(there, here, message, tmp_path):
    start = saved(tmp_path / "source", *make_state(**there))
    fields = {"num_envs": 2, "rollout_length": 2, "total_timesteps": 4}
    config = trpo_jax.TRPOConfig(**fields, **{"hidden_sizes": (4,)} | here)
    with pytest.raises(ValueError, match=message) as error:
        run(tmp_path / "run", config, warm_start=start)
    assert str(start / "checkpoints" / "00000001") in str(error.value)
    assert not (tmp_path / "run").exists()
    # As advised: with the values of the other run, but for those that may differ.
    followed = trpo_jax.TRPOConfig(
        **fields, max_kl=0.5, **{"hidden_sizes": (4,)} | there
    )
    find_start(start, followed)


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [case for case in REFUSED if case[0].keys() == case[1].keys() == {"env"}],
)
def test_a_state_refuses_the_same(there, here, message):
    (_, trained), (_, state) = make_state(**there), make_state(**here)
    with pytest.raises(ValueError, match=message):
        state.with_networks_of(trained)


def test_a_folder_without_a_checkpoint_starts_nothing(tmp_path):
    with pytest.raises(ValueError, match="does not exist; name the folder of a run"):
        run(tmp_path / "run", WARM, warm_start=tmp_path / "nowhere")
    (tmp_path / "source").mkdir()
    RunFolder(tmp_path / "source").create(CONFIG, SETTINGS)
    with pytest.raises(ValueError, match=r"has no checkpoint yet.*resume that run"):
        run(tmp_path / "run", WARM, warm_start=tmp_path / "source")
    assert not (tmp_path / "run").exists()


def test_of_damaged_checkpoints_an_older_one_starts_a_run(finished, tmp_path):
    source = shutil.copytree(finished[0], tmp_path / "source")
    (source / "checkpoints" / "00000040" / "manifest.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"is damaged.*00000030 is used"):
        assert find_start(source, WARM).name == "00000030"
    assert (source / "checkpoints" / "00000040").exists()


def test_a_run_killed_while_its_start_was_copied_can_be_started(tmp_path):
    start = saved(tmp_path / "source", *make_state(TWO)) / "checkpoints" / "00000001"
    folder = RunFolder(tmp_path / "run")
    (folder.path / ".warm_start.partial" / "arrays").mkdir(parents=True)
    folder.create(CONFIG, SETTINGS, start)
    assert checkpoints.verify(folder.warm_start).updates == 1
    assert not (folder.path / ".warm_start.partial").exists()
