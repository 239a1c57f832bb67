import dataclasses
import errno
import functools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    CONFIG,
    FIRST_ORDER,
    SETTINGS,
    Killed,
    Line,
    Recorder,
    events,
    init,
    kill_after,
    lines,
    resume,
    run,
    run_until_killed,
)

import trpo_jax
from benchmarks.kills import config_of, differences, disturb, settings_of
from trpo_jax.environments import Discrete, TimeStep
from trpo_jax.pictures.curves import read_run
from trpo_jax.runs import checkpoints, records
from trpo_jax.runs.config_file import config_to_dict
from trpo_jax.runs.folder import RunFolder
from trpo_jax.training.seeds import run_keys, state_type


def test_the_folder_tells_what_was_run(finished):
    folder, result = finished
    config = RunFolder(folder).read_config()
    assert config == CONFIG == result.config
    assert json.loads((folder / "settings.json").read_text()) == dataclasses.asdict(
        SETTINGS
    )
    (started,) = events(folder, "started")
    assert started["jax"] == jax.__version__
    assert started["trpo_jax"] == trpo_jax.version.__version__
    assert started["device"] == jax.devices()[0].device_kind
    assert events(folder, "finished")[0]["updates"] == 40


def test_there_is_a_line_for_each_update(finished):
    folder, _ = finished
    rows = lines(folder / "metrics.jsonl")
    assert [row["update"] for row in rows] == list(range(1, 41))
    assert [row["env_steps"] for row in rows] == list(range(16, 656, 16))
    timing = lines(folder / "timing.jsonl")
    assert timing[-1]["env_steps"] == 640
    assert all(row["steps_per_second"] > 0 for row in timing)


def test_it_trains_as_train_does(finished):
    folder, result = finished
    trained = trpo_jax.train(CONFIG)
    rows = lines(folder / "metrics.jsonl")
    metrics = trained.metrics._asdict() | trained.metrics.update._asdict()
    del metrics["update"], metrics["updates"], metrics["batch_size"]
    del metrics["episode_return_sum"], metrics["episode_length_sum"]
    del metrics["episode_cost_sum"], metrics["constraints"]  # there are none
    metrics["env_steps"] = trained.metrics.env_steps
    metrics["episode_return"] = trained.metrics.episode_return
    metrics["episode_length"] = trained.metrics.episode_length
    ratios = {"kl_ratio", "improvement_ratio", "signal_to_noise"}
    assert rows[0].keys() == metrics.keys() | {"update", *ratios}
    # To rounding, which grows from update to update.
    for name in ("episode_count", "status", "entropy", "kl", "max_kl"):
        expected = np.asarray(metrics[name][:5], float)
        got = np.array([row[name] for row in rows[:5]], float)
        np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-6, err_msg=name)
    assert result.state.updates == 40


def test_the_evaluation_is_that_of_the_last_state(finished):
    folder, result = finished
    key = jax.random.fold_in(jax.random.key(CONFIG.seed), 1)
    returns = trpo_jax.evaluate(CONFIG, result.state, key, 2)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation == result.evaluation
    assert evaluation["return_mean"] == pytest.approx(float(returns.mean()))
    assert evaluation["num_episodes"] == 2


def test_checkpoints_are_kept_as_asked(finished):
    folder, _ = finished
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    # The last three, and the best of those before.
    assert kept[-3:] == ["00000020", "00000030", "00000040"]
    assert len(kept) == 4


def test_many_seeds_come_with_mean_and_spread(tmp_path):
    config = dataclasses.replace(CONFIG, num_seeds=2)
    result = run(tmp_path / "run", config)
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    row = next(row for row in rows if None not in row["episode_return_by_seed"])
    by_seed = np.array(row["episode_return_by_seed"])
    assert len(by_seed) == 2
    assert row["episode_return"] == pytest.approx(by_seed.mean())
    assert row["episode_return_std"] == pytest.approx(by_seed.std(ddof=1))
    assert rows[-1]["env_steps"] == 640
    assert row["kl_std"] > 0
    assert len(result.evaluation["return_by_seed"]) == 2


def test_a_run_beyond_32_bits_counts_every_step(tmp_path, capsys):
    made, batch = 2**30, 1024
    config = dataclasses.replace(
        CONFIG, num_envs=32, rollout_length=32, total_timesteps=batch * (made + 3)
    )
    assert config.total_timesteps > 2**40
    folder = RunFolder(tmp_path / "run")
    with folder.lock(make=True):
        folder.create(config, SETTINGS)
    state = init(config, run_keys(config))._replace(updates=jnp.int32(made))
    manifest = checkpoints.Manifest(
        made, None, config_to_dict(config), checkpoints.jax_settings()
    )
    checkpoints.save(folder.checkpoints, state, manifest)
    recorder = Recorder()
    result = trpo_jax.resume(folder.path, loggers=[recorder])
    assert result.state.updates == made + 3
    expected = [batch * (made + n) for n in (1, 2, 3)]
    assert [row["env_steps"] for row in lines(folder.metrics)] == expected
    assert lines(folder.timing)[-1]["env_steps"] == expected[-1]
    assert [env_steps for env_steps, _ in recorder.rows] == expected
    assert f"\n{expected[-1]:,} steps  " in capsys.readouterr().out
    np.testing.assert_array_equal(read_run(folder.path).steps, expected)


def test_looking_at_a_run_executes_no_code_of_its_folder(finished, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("pickle")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    trpo_jax.load_state(finished[0])
    trpo_jax.load_policy(finished[0], checkpoint="best")
    resume(finished[0])


@pytest.mark.timeout(600)
def test_a_run_killed_at_random_moments_ends_in_the_same_bits(tmp_path):
    report = disturb(config_of(1000, 1), settings_of(10), kills=6, work=tmp_path)
    assert report.differences == []
    assert report.kills == 6
    assert report.kills_while_saving > 0
    assert report.resumed_after[-1] > 0


EVALUATING = dataclasses.replace(
    SETTINGS, evaluation_updates=5, interim_episodes=3, keep_last=9
)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    run(folder, settings=EVALUATING)
    return folder


def test_evaluations_in_training_are_those_of_the_checkpoints(evaluated, finished):
    rows = {row["update"]: row for row in lines(evaluated / "metrics.jsonl")}
    found = {n: row.pop("evaluation_return", None) for n, row in rows.items()}
    assert [n for n in found if found[n] is not None] == [*range(5, 41, 5)]
    assert len(set(found.values())) > 4
    # They change nothing of the training.
    assert [*rows.values()] == lines(finished[0] / "metrics.jsonl")
    for path in checkpoints.complete(evaluated / "checkpoints"):
        like = functools.partial(state_type, CONFIG)
        stored = checkpoints.read(path, like, config_to_dict(CONFIG))
        state, manifest = stored.as_state(like), stored.manifest
        key = jax.random.fold_in(jax.random.key(CONFIG.seed), 2)
        key = jax.random.fold_in(key, manifest.updates)
        returns = trpo_jax.evaluate(CONFIG, state, key, 3)
        assert manifest.score == np.asarray(returns, np.float64).mean()
        assert found[manifest.updates] == float(str(np.float32(manifest.score)))


def test_the_best_checkpoint_is_that_with_the_best_evaluation(evaluated):
    rows = {row["update"]: row for row in lines(evaluated / "metrics.jsonl")}
    returns = {n: rows[n]["evaluation_return"] for n in range(5, 41, 5)}
    best = trpo_jax.load_state(evaluated, checkpoint="best")[1]
    assert returns[int(best.updates)] == max(returns.values())


@pytest.mark.parametrize("updates", [7, 35])
def test_evaluations_of_a_resumed_run_are_the_same(
    evaluated, tmp_path, monkeypatch, updates
):
    folder = tmp_path / "run"
    run_until_killed(folder, updates, monkeypatch, settings=EVALUATING)
    resume(folder)
    assert differences(evaluated, folder) == []


@pytest.mark.parametrize("updates", [3, 15, 30])
def test_a_resumed_run_ends_in_the_same_bits(finished, tmp_path, monkeypatch, updates):
    folder = tmp_path / "run"
    run_until_killed(folder, updates, monkeypatch)
    # As when the process is gone while it writes a line.
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"update": 99, "env')
    resume(folder)
    assert differences(finished[0], folder) == []
    assert events(folder, "resumed")[0]["updates"] == updates // 10 * 10


CONSTANT = dataclasses.replace(CONFIG, max_kl_schedule="constant")
HALF = dataclasses.replace(CONSTANT, total_timesteps=320)


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """A run of forty updates, and one of half the length."""
    folder = tmp_path_factory.mktemp("halves")
    run(folder / "whole", CONSTANT, EVALUATING)
    run(folder / "half", HALF, EVALUATING)
    return folder


def test_a_run_that_goes_on_longer_ends_as_one_of_that_length(halves, tmp_path):
    folder = shutil.copytree(halves / "half", tmp_path / "run")
    assert differences(halves / "whole", folder) != []
    result = resume(folder, total_timesteps=625)  # rounded up
    assert result.config == CONSTANT
    assert differences(halves / "whole", folder) == []
    asked = [events(folder, kind)[0] for kind in ("started", "resumed")]
    assert [event["total_timesteps"] for event in asked] == [320, 640]


@pytest.mark.slow
def test_fifty_thousand_steps_and_fifty_more_are_a_hundred_thousand(tmp_path):
    config = trpo_jax.preset(
        "CartPole-v1", total_timesteps=100_000, max_kl_schedule="constant"
    )
    run(tmp_path / "whole", config)
    half = dataclasses.replace(config, total_timesteps=50_000)
    run(tmp_path / "half", half)
    result = resume(tmp_path / "half", total_timesteps=100_000)
    assert result.config == config
    assert differences(tmp_path / "whole", tmp_path / "half") == []


def test_a_longer_run_that_is_killed_needs_the_number_only_once(
    halves, tmp_path, monkeypatch
):
    folder = shutil.copytree(halves / "half", tmp_path / "run")
    with monkeypatch.context() as patch:
        kill_after(35, patch)
        with pytest.raises(Killed):
            resume(folder, total_timesteps=640)
    assert not (folder / "evaluation.json").exists()
    resume(folder)
    assert differences(halves / "whole", folder) == []


def test_a_schedule_extends_over_the_new_length(tmp_path):
    run(tmp_path / "run", dataclasses.replace(CONFIG, total_timesteps=320))
    resume(tmp_path / "run", total_timesteps=640)
    radii = [row["max_kl"] for row in lines(tmp_path / "run" / "metrics.jsonl")]
    first, second = 1 - np.arange(20) / 20, 1 - np.arange(20, 40) / 40
    np.testing.assert_allclose(radii, 0.01 * np.append(first, second), rtol=1e-5)


def test_a_length_is_not_changed_where_no_checkpoint_is_whole(halves, tmp_path):
    folder = shutil.copytree(halves / "half", tmp_path / "run")
    for manifest in folder.glob("checkpoints/*/manifest.json"):
        manifest.write_text("{}")
    before = {path: path.read_bytes() for path in folder.glob("*.json*")}
    with pytest.raises(ValueError, match="no checkpoint in"):
        resume(folder, total_timesteps=640)
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [
        (
            320,
            ValueError,
            "=320 is not more than the 320 steps .* write more, or leave",
        ),
        (100, ValueError, "=100 is not more than the 320 steps"),
        (0, ValueError, "total_timesteps=0 is not positive"),
        (320.5, TypeError, "total_timesteps is the float 320.5"),
    ],
)
def test_a_length_that_is_done_is_refused(
    steps, error, message, halves, tmp_path, no_shape_checks
):
    folder = shutil.copytree(halves / "half", tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.glob("*.json*")}
    with pytest.raises(error, match=message):
        resume(folder, total_timesteps=steps)
    assert before == {path: path.read_bytes() for path in before}
    assert resume(folder).state.updates == 20  # as advised


def test_the_way_to_a_longer_run_is_told(halves, tmp_path):
    """To whom starts it again, and to whom passes a longer config."""
    folder = shutil.copytree(halves / "half", tmp_path / "run")
    with pytest.raises(ValueError, match="holds this run already") as error:
        run(folder, CONSTANT)
    assert f"resume {folder} --total-timesteps 640`" in str(error.value)
    with pytest.raises(
        ValueError, match=r"=640, but the run in .* 320; to train"
    ) as error:
        resume(folder, CONSTANT)
    assert f"resume {folder} --total-timesteps 640" in str(error.value)
    assert trpo_jax.load_state(folder, CONSTANT)[0] == HALF
    assert resume(folder, total_timesteps=640).state.updates == 40
    # The config that it was started with is still one of this run.
    assert resume(folder, HALF).config == CONSTANT


def test_the_optimizers_state_of_a_resumed_run_is_kept(tmp_path, monkeypatch):
    through = run(tmp_path / "through", FIRST_ORDER)
    run_until_killed(tmp_path / "run", 15, monkeypatch, FIRST_ORDER)
    resumed = resume(tmp_path / "run")
    assert differences(tmp_path / "through", tmp_path / "run") == []
    moments, expected = (
        jax.tree.leaves(result.state.critic_optimizer_state)
        for result in (resumed, through)
    )
    assert len(moments) == 3  # Adam's two, and its count
    for one, other in zip(moments, expected, strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.all(one != 0)


def test_a_run_that_is_done_is_returned(finished, capsys):
    folder, result = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("checkpoints/*")}
    again = trpo_jax.resume(folder)
    assert "all 40 updates are done" in "".join(capsys.readouterr())
    assert again.evaluation == result.evaluation
    assert again.state.updates == 40
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_damaged_checkpoint_is_named_and_an_older_one_used(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    (folder / "evaluation.json").unlink()
    newest = folder / "checkpoints" / "00000040"
    damaged = next((newest / "arrays" / "ocdbt.process_0" / "d").iterdir())
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    resume(folder)
    (warning,) = events(folder, "warning")
    assert damaged.name in warning["message"]
    assert events(folder, "resumed")[-1]["updates"] == 30
    assert differences(finished[0], folder) == []


def test_if_no_checkpoint_is_whole_nothing_is_touched(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    for manifest in folder.glob("checkpoints/*/manifest.json"):
        manifest.write_text("{}")
    before = {path: path.read_bytes() for path in folder.glob("*.json*")}
    with pytest.raises(ValueError, match="no checkpoint in"):
        resume(folder)
    assert before == {path: path.read_bytes() for path in before}


def test_what_came_from_python_is_asked_for_again(tmp_path, monkeypatch):
    policy = trpo_jax.networks.Policy(
        trpo_jax.networks.MLP((4,)), trpo_jax.networks.CategoricalHead(2)
    )
    config = dataclasses.replace(CONFIG, max_kl_schedule=one, policy=policy)
    folder = tmp_path / "run"
    run_until_killed(folder, 12, monkeypatch, config)
    with pytest.raises(
        ValueError, match=r"policy \(.*max_kl_schedule \(.*pass the config"
    ):
        resume(folder)
    other = dataclasses.replace(config, max_kl_schedule="constant")
    with pytest.raises(ValueError, match="max_kl_schedule"):
        resume(folder, other)
    assert resume(folder, config).state.updates == 40


def one(update):
    return 1.0


def test_what_makes_no_run_makes_no_folder(tmp_path, monkeypatch):
    squashed = dataclasses.replace(CONFIG, action_distribution="tanh_gaussian")
    with pytest.raises(ValueError, match="is for continuous actions"):
        run(tmp_path / "run", squashed)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    settings = dataclasses.replace(SETTINGS, tensorboard=True)
    with pytest.raises(ValueError, match="pip install"):
        run(tmp_path / "run", settings=settings)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_stops_the_run_and_loses_nothing(finished, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    # Room for a first checkpoint, with what must be free beside it, and for no second.
    mount = ["mount", "-t", "tmpfs", "-o", "size=1100k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        folder = disk / "run"
        with pytest.raises(trpo_jax.RunError, match=r"No space left.*to go on"):
            run(folder)
        whole = lines_but_last(folder / "metrics.jsonl")
        assert [row["update"] for row in whole] == list(range(1, len(whole) + 1))
        grow = ["mount", "-o", "remount,size=16m", str(disk)]
        subprocess.run(grow, check=True, capture_output=True)
        resume(folder)
        assert differences(finished[0], folder) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def lines_but_last(path):
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def test_metrics_that_cannot_be_written_stop_the_run(finished, tmp_path, monkeypatch):
    write = records.Records.write

    def fail(self, rows, speed):
        if rows[-1]["update"] > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, rows, speed)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(records.Records, "write", fail)
        with pytest.raises(trpo_jax.RunError, match=r"No space.*update 20; to go on"):
            run(folder)
    resume(folder)
    assert differences(finished[0], folder) == []


class Poisoned:
    """Rewards are NaN after so many steps."""

    observation_shape = (2,)
    action_space = Discrete(2)

    def reset(self, key):
        return jnp.int32(0), jnp.zeros(2)

    def step(self, key, state, action):
        state = state + 1
        reward = jnp.where(state > 8 * 12, jnp.nan, action.astype(jnp.float32))
        observation = jnp.array([jnp.sin(state), jnp.cos(state)], jnp.float32)
        ended = state % 4 == 0
        flag = jnp.zeros((), bool)
        return state, TimeStep(observation, reward, ended, flag, observation)


POISONED = dataclasses.replace(CONFIG, env=Poisoned())


@pytest.mark.parametrize("max_nonfinite_updates", [7, 28])
def test_an_environment_that_turns_to_nan_stops_the_run(
    tmp_path, max_nonfinite_updates
):
    """With updates to spare, or in the last chunk of 40."""
    settings = dataclasses.replace(
        SETTINGS, checkpoint_updates=5, max_nonfinite_updates=max_nonfinite_updates
    )
    folder = tmp_path / "run"
    with pytest.raises(trpo_jax.RunError) as error:
        run(folder, POISONED, settings)
    assert "from update 13 on" in str(error.value)
    assert "saved up to update 10; to go on: trpo_jax.resume(" in str(error.value)
    assert "from update 13 on" in events(folder, "stopped")[0]["reason"]
    assert not (folder / "evaluation.json").exists()
    rows = lines(folder / "metrics.jsonl")
    assert rows[11]["status"] == trpo_jax.UpdateStatus.ACCEPTED
    statuses = {row["status"] for row in rows[12:]}
    assert statuses == {trpo_jax.UpdateStatus.NON_FINITE}


def test_a_run_that_ends_in_nan_says_so(tmp_path):
    settings = dataclasses.replace(SETTINGS, max_nonfinite_updates=100)
    run(tmp_path / "run", POISONED, settings)
    first, total = events(tmp_path / "run", "warning")
    assert first["message"].startswith("update 13 is rejected because of NaN")
    assert total["message"].startswith("28 updates were rejected because of NaN")
    assert "the first of them 13; check the environment's" in total["message"]


def test_a_signal_saves_and_leaves(finished, tmp_path):
    class Signalling(Recorder):
        def log(self, env_steps, metrics):
            super().log(env_steps, metrics)
            if len(self.rows) == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    config = dataclasses.replace(CONFIG, total_timesteps=16 * 1_000_000)
    before = signal.getsignal(signal.SIGTERM)
    folder = tmp_path / "run"
    with pytest.raises(trpo_jax.Interrupted) as error:
        run(folder, config, loggers=[Signalling()])
    assert error.value.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    (event,) = events(folder, "interrupted")
    assert 0 < event["updates"] < 40_000
    assert len(lines(folder / "metrics.jsonl")) == event["updates"]
    assert f"saved up to update {event['updates']:,}" in str(error.value)


def test_a_signal_after_the_last_update_comes_before_the_evaluation(tmp_path):
    class Late(Recorder):
        def log(self, env_steps, metrics):
            super().log(env_steps, metrics)
            if len(self.rows) == 40:
                os.kill(os.getpid(), signal.SIGTERM)

    folder = tmp_path / "run"
    with pytest.raises(trpo_jax.Interrupted, match="saved up to update 40"):
        run(folder, loggers=[Late()])
    assert not (folder / "evaluation.json").exists()
    assert resume(folder).evaluation


# Without a folder


def test_without_a_folder_a_run_is_the_same_and_nothing_is_written(
    finished, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    recorder = Recorder()
    settings = trpo_jax.RunSettings(evaluation_episodes=2)
    result = trpo_jax.run(CONFIG, settings=settings, loggers=[recorder])
    _, expected = finished
    assert list(tmp_path.iterdir()) == []
    assert result.folder is None
    assert result.evaluation == expected.evaluation
    for one, other in zip(
        jax.tree.leaves(result.state.params),
        jax.tree.leaves(expected.state.params),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    assert [steps for steps, _ in recorder.rows] == list(range(16, 656, 16))
    assert recorder.left
    out = capsys.readouterr().out
    assert "640 steps" in out
    assert "evaluation over 2 episodes: return" in out


def test_settings_about_files_are_refused_without_a_folder_and_taken_with_one(tmp_path):
    config = dataclasses.replace(CONFIG, total_timesteps=16)
    with pytest.raises(ValueError, match=r"updates=10 .*run\(config, folder"):
        run(None, config, SETTINGS)
    assert run(tmp_path / "run", config, SETTINGS).folder == tmp_path / "run"


def test_without_a_folder_nan_stops_a_run_too():
    settings = trpo_jax.RunSettings(max_nonfinite_updates=7)
    with pytest.raises(trpo_jax.RunError, match="from update 13 on") as error:
        run(None, POISONED, settings)
    assert "resume" not in str(error.value)


def test_without_a_folder_a_run_that_ends_in_nan_says_so(capsys):
    trpo_jax.run(POISONED, settings=trpo_jax.RunSettings(max_nonfinite_updates=100))
    assert "warning: 28 updates were rejected because of NaN" in capsys.readouterr().out


def test_without_a_folder_a_signal_does_what_it_always_does():
    class Interrupting(Recorder):
        def log(self, env_steps, metrics):
            super().log(env_steps, metrics)
            if len(self.rows) == 1:
                signal.raise_signal(signal.SIGINT)

    # The processes of a parallel test run ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    config = dataclasses.replace(CONFIG, total_timesteps=16 * 40_000)
    try:
        # From another thread, a signal comes to the main one.
        with pytest.raises(KeyboardInterrupt) as error:
            trpo_jax.run(config, loggers=[Interrupting()], progress=False)
        assert not isinstance(error.value, trpo_jax.Interrupted)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


# Under other settings of JAX


def test_a_run_where_no_episode_ends_is_no_alarm_to_debug_nans():
    config = dataclasses.replace(CONFIG, total_timesteps=16)
    settings = trpo_jax.RunSettings(evaluation_episodes=2)
    with jax.debug_nans(True):
        assert run(None, config, settings).state.updates == 1


def test_a_run_without_jit(no_shape_checks, monkeypatch):
    """The updates do nothing: real ones are slow without jit."""
    config = dataclasses.replace(CONFIG, env=Line(Discrete(2)), total_timesteps=32)
    settings = trpo_jax.RunSettings(evaluation_episodes=2)

    def step(config, state):
        metrics = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return state._replace(updates=state.updates + 1), metrics

    shapes = jax.eval_shape(trpo_jax.step, config, state_type(config))[1]
    monkeypatch.setattr("trpo_jax.runs.chunks.step", step)
    with jax.disable_jit():
        result = run(None, config, settings)
    assert result.state.updates == 2
    assert result.evaluation["return_mean"] == 1.0


def test_a_run_is_no_part_of_another_program():
    """`train` is, as the error says."""

    def traced(fn):
        return jax.eval_shape(lambda x: (fn(CONFIG), x)[1], 1.0)

    with pytest.raises(ValueError, match=r"write trpo_jax\.train"):
        traced(lambda config: run(None, config))
    traced(trpo_jax.train)
