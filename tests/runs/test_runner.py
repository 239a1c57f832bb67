import contextlib
import dataclasses
import errno
import json
import os
import pickle
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from runs.tiny import CONFIG, SETTINGS, resume, run

import trpo_jax
from benchmarks.kills import config_of, differences, disturb, settings_of
from trpo_jax.environments import Discrete, TimeStep
from trpo_jax.runs import checkpoints, records
from trpo_jax.runs.console import ConsoleWatcher
from trpo_jax.runs.folder import RunFolder
from trpo_jax.runs.refusals import Refusals
from trpo_jax.runs.runner import train_in_passing
from trpo_jax.runs.saver import Saver


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def events(folder, kind):
    found = lines(folder / "events.jsonl")
    return [one for one in found if one["event"] == kind]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nobody disturbed, and what it returned."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, run(folder)


def killed_after(folder, updates, monkeypatch, config=CONFIG, settings=SETTINGS):
    """Run until so many updates are recorded; then as if the process were gone."""
    write = records.Records.write

    def write_until(self, rows, seconds):
        if rows[-1]["update"] > updates:
            raise Killed
        write(self, rows, seconds)

    with monkeypatch.context() as patch:
        patch.setattr(records.Records, "write", write_until)
        with pytest.raises(Killed):
            run(folder, config, settings)


class Killed(BaseException):
    pass


# What a folder holds


def test_the_folder_tells_what_was_run(finished):
    folder, result = finished
    config = trpo_jax.runs.config_file.read_config(folder / "config.json")
    assert config == CONFIG == result.config
    assert json.loads((folder / "settings.json").read_text()) == dataclasses.asdict(
        SETTINGS
    )
    (started,) = events(folder, "started")
    assert started["jax"] == jax.__version__
    assert started["trpo_jax"] == trpo_jax.version.__version__
    assert started["device"] == jax.devices()[0].device_kind
    assert len(events(folder, "finished")) == 1


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
    del metrics["update"]
    assert rows[0].keys() == metrics.keys() | {"update"}
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
    config = dataclasses.replace(CONFIG, num_seeds=3, total_timesteps=16 * 8)
    result = run(tmp_path / "run", config)
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    row = next(row for row in rows if None not in row["episode_return_by_seed"])
    by_seed = np.array(row["episode_return_by_seed"])
    assert len(by_seed) == 3
    assert row["episode_return"] == pytest.approx(by_seed.mean())
    assert row["episode_return_std"] == pytest.approx(by_seed.std(ddof=1))
    assert rows[-1]["env_steps"] == 128
    assert row["kl_std"] > 0
    assert len(result.evaluation["return_by_seed"]) == 3


def test_a_checkpoint_is_due_after_so_many_minutes(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("trpo_jax.runs.saver.time.monotonic", lambda: now[0])
    settings = trpo_jax.RunSettings(checkpoint_updates=None, checkpoint_minutes=2.0)
    saver = Saver(tmp_path, CONFIG, settings)
    due = []
    for seconds in (0, 119, 121, 122, 240, 242):
        now[0] = seconds
        due.append(saver.due(updates=1))
    assert due == [False, False, True, False, False, True]
    saver.close()


def test_a_run_goes_on_while_a_checkpoint_is_saved(tmp_path, monkeypatch):
    """The first save lasts until there are rows of updates that came after it."""
    folder, save = tmp_path / "run", checkpoints.save

    def slow(path, state, manifest):
        seconds = time.monotonic() + 30
        while manifest.updates == 5 and len(lines(folder / "metrics.jsonl")) <= 5:
            assert time.monotonic() < seconds
            time.sleep(0.01)
        save(path, state, manifest)

    monkeypatch.setattr(checkpoints, "save", slow)
    run(folder, settings=dataclasses.replace(SETTINGS, checkpoint_updates=5))
    assert len(lines(folder / "metrics.jsonl")) == 40


def test_looking_at_a_run_executes_no_code_of_its_folder(finished, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("pickle")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    trpo_jax.load_state(finished[0])
    trpo_jax.load_policy(finished[0], checkpoint="best")
    resume(finished[0])


# Resuming


@pytest.mark.timeout(600)
def test_a_run_killed_at_random_moments_ends_in_the_same_bits(tmp_path):
    report = disturb(config_of(1000, 1), settings_of(10), kills=20, work=tmp_path)
    assert report.differences == []
    assert report.kills == 20
    assert report.kills_while_saving > 0
    assert report.resumed_after[-1] > 0


@pytest.mark.parametrize("updates", [3, 15, 30])
def test_a_resumed_run_ends_in_the_same_bits(finished, tmp_path, monkeypatch, updates):
    folder = tmp_path / "run"
    killed_after(folder, updates, monkeypatch)
    # As when the process is gone while it writes a line.
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"update": 99, "env')
    resume(folder)
    assert differences(finished[0], folder) == []
    assert events(folder, "resumed")[0]["updates"] == updates // 10 * 10


def test_a_run_that_is_done_is_returned(finished, capsys):
    folder, result = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("checkpoints/*")}
    again = trpo_jax.resume(folder)
    assert "all 40 updates have been made" in "".join(capsys.readouterr())
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
    with pytest.raises(ValueError, match="is whole"):
        resume(folder)
    assert before == {path: path.read_bytes() for path in before}


def test_what_came_from_python_is_asked_for_again(tmp_path, monkeypatch):
    policy = trpo_jax.networks.Policy(
        trpo_jax.networks.MLP((4,)), trpo_jax.networks.CategoricalHead(2)
    )
    config = dataclasses.replace(CONFIG, max_kl_schedule=one, policy=policy)
    folder = tmp_path / "run"
    killed_after(folder, 12, monkeypatch, config)
    with pytest.raises(
        ValueError, match=r"policy, max_kl_schedule of .*Pass the config"
    ):
        resume(folder)
    other = dataclasses.replace(config, max_kl_schedule="constant")
    with pytest.raises(ValueError, match="max_kl_schedule"):
        resume(folder, other)
    assert resume(folder, config).state.updates == 40


def one(update):
    return 1.0


# What can go wrong before a run


def test_a_folder_of_another_run_is_refused(finished):
    other = dataclasses.replace(CONFIG, num_envs=4, total_timesteps=1280)
    with pytest.raises(ValueError, match="num_envs: 2 and 4"):
        run(finished[0], other)
    with pytest.raises(ValueError, match=r"trpo_jax\.resume"):
        run(finished[0])


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="not empty"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_settings_of_something_else_are_not_overwritten(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text('{"mine": 1}')
    with pytest.raises(ValueError, match="not empty"):
        run(tmp_path)
    assert path.read_text() == '{"mine": 1}'


def test_settings_that_are_not_ours_are_named(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    (folder / "settings.json").write_text('{"keep": 3}')
    with pytest.raises(ValueError, match=r"settings\.json.*keep"):
        resume(folder)


def test_what_makes_no_run_makes_no_folder(tmp_path, monkeypatch):
    squashed = dataclasses.replace(CONFIG, action_distribution="tanh_gaussian")
    with pytest.raises(ValueError, match="is for continuous actions"):
        run(tmp_path / "run", squashed)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    settings = dataclasses.replace(SETTINGS, tensorboard=True)
    with pytest.raises(ValueError, match="pip install"):
        run(tmp_path / "run", settings=settings)
    assert not (tmp_path / "run").exists()


def test_a_run_killed_while_its_folder_was_made_can_be_started(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".lock", "settings.partial", "config.partial"):
        (folder / name).write_text("")
    settings = dataclasses.asdict(SETTINGS)
    (folder / "settings.json").write_text(json.dumps(settings))
    run(folder, dataclasses.replace(CONFIG, total_timesteps=16))
    assert len(lines(folder / "metrics.jsonl")) == 1


def test_a_folder_without_a_run_is_not_resumed(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        resume(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        run(tmp_path / "file" / "run")
    tmp_path.chmod(0o555)
    with unprivileged(), pytest.raises(ValueError, match="Permission denied"):
        run(tmp_path / "run")
    tmp_path.chmod(0o755)


@contextlib.contextmanager
def unprivileged():
    """Permissions say nothing to root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_where_another_process_runs_is_refused(finished):
    with (
        RunFolder(finished[0]).lock(),
        pytest.raises(ValueError, match="another process"),
    ):
        resume(finished[0])


def test_what_is_no_logger_is_refused_before_there_is_a_folder(
    tmp_path, no_shape_checks
):
    with pytest.raises(TypeError, match="log\\(env_steps, metrics\\)"):
        run(tmp_path / "run", loggers=[print])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"keep_last": 0}, "at least 1"),
        ({"checkpoint_updates": 0}, "at least 1"),
        ({"checkpoint_minutes": -1.0}, "write minutes"),
        ({"max_nonfinite_updates": 1.5}, "not an int"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, advice, no_shape_checks):
    with pytest.raises((ValueError, TypeError), match=advice):
        trpo_jax.RunSettings(**settings)


# What can go wrong on the way


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
    write = records.LineFile.write

    def fail(self, rows):
        if self.path.name == "metrics.jsonl" and rows[-1]["update"] > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, rows)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(records.LineFile, "write", fail)
        with pytest.raises(trpo_jax.RunError, match=r"No space.*update 20; to go on"):
            run(folder)
    resume(folder)
    assert differences(finished[0], folder) == []


class Recorder:
    def __init__(self):
        self.rows = []
        self.left = False

    def log(self, env_steps, metrics):
        self.rows.append((env_steps, dict(metrics)))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.left = True


class Failing:
    def log(self, env_steps, metrics):
        if env_steps > 32:
            raise ConnectionError("no route to the server")


class Blocking:
    def __init__(self):
        self.release = threading.Event()

    def log(self, env_steps, metrics):
        self.release.wait(60)


def test_loggers_are_told_of_every_update_and_left(tmp_path, finished):
    recorder = Recorder()
    run(tmp_path / "run", loggers=[recorder])
    assert [steps for steps, _ in recorder.rows] == list(range(16, 656, 16))
    rows = lines(finished[0] / "metrics.jsonl")
    assert recorder.rows[7][1]["kl"] == rows[7]["kl"]
    assert recorder.left


def test_a_logger_that_raises_is_given_up_and_the_run_goes_on(tmp_path, finished):
    recorder = Recorder()
    run(tmp_path / "run", loggers=[Failing(), recorder])
    (warning,) = events(tmp_path / "run", "warning")
    assert "Failing" in warning["message"]
    assert "no route to the server" in warning["message"]
    assert len(recorder.rows) == 40
    assert differences(finished[0], tmp_path / "run") == []


class Slow(Recorder):
    def log(self, env_steps, metrics):
        time.sleep(0.02)
        super().log(env_steps, metrics)


def test_a_slow_logger_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "PATIENCE_SECONDS", 0.2)
    slow = Slow()
    run(tmp_path / "run", loggers=[slow])
    assert len(slow.rows) == 40
    assert not (tmp_path / "run").joinpath("events.jsonl").read_text().count("warning")


def test_a_writer_that_cannot_start_is_left_out(tmp_path, finished, monkeypatch):
    def fail(*args, **options):
        raise ConnectionError("no route to the server")

    monkeypatch.setattr("trpo_jax.runs.runner.TensorBoardLogger", fail)
    settings = dataclasses.replace(SETTINGS, tensorboard=True)
    run(tmp_path / "run", settings=settings)
    (warning,) = events(tmp_path / "run", "warning")
    assert "no route to the server" in warning["message"]


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path, finished):
    program = (
        "import sys\n"
        "from trpo_jax.runs.console import ConsoleWatcher\n"
        "from runs.tiny import CONFIG\n"
        "with ConsoleWatcher(CONFIG) as watcher:\n"
        "    for _ in range(3): watcher.say('x' * 100_000)\n"
        "print('went on', file=sys.stderr)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    process.stdout.close()
    assert process.stderr.read() == "went on\n"
    assert process.wait(60) == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_terminal_that_goes_away_does_not_end_the_run():
    """Nor does the bar's own thread outlive it."""
    master, slave = pty.openpty()
    try:
        console = Console(file=os.fdopen(slave, "w"), force_terminal=True)
        with ConsoleWatcher(CONFIG, console) as watcher:
            watcher.say("there")
            os.close(master)
            watcher.say("gone" * 100_000)
        assert watcher._gone
        assert watcher._progress.live._refresh_thread is None
    finally:
        with contextlib.suppress(OSError):
            console.file.close()


def test_a_logger_that_blocks_does_not_hold_up_the_run(tmp_path, finished, monkeypatch):
    monkeypatch.setattr(records, "CAPACITY", 8)
    monkeypatch.setattr(records, "PATIENCE_SECONDS", 0.2)
    blocking = Blocking()
    run(tmp_path / "run", loggers=[blocking])
    blocking.release.set()
    warnings = [one["message"] for one in events(tmp_path / "run", "warning")]
    assert any("behind" in message for message in warnings)
    assert any("took nothing" in message for message in warnings)
    assert differences(finished[0], tmp_path / "run") == []


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
    """Be it with updates to spare, or in the last chunk of 40."""
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


def test_without_a_folder_nan_stops_a_run_too():
    with pytest.raises(trpo_jax.RunError, match="from update 13 on"):
        train_in_passing(POISONED, progress=False)


def test_without_a_folder_a_run_that_ends_in_nan_says_so(capsys):
    config = dataclasses.replace(POISONED, total_timesteps=16 * 20)
    train_in_passing(config)
    assert "warning: updates meet NaN" in capsys.readouterr().out


def test_a_run_that_ends_in_nan_says_so(tmp_path):
    settings = dataclasses.replace(SETTINGS, max_nonfinite_updates=100)
    run(tmp_path / "run", POISONED, settings)
    (warning,) = events(tmp_path / "run", "warning")
    assert "from update 13 on" in warning["message"]


def test_a_seed_that_is_lost_is_named():
    def metrics(*statuses):
        return [{"status": np.array(status)} for status in statuses]

    refusals = Refusals(3)
    refusals.count(metrics([0, 2, 2], [2, 0, 2], [2, 0, 2]))
    assert refusals.in_a_row.tolist() == [2, 0, 3]
    assert refusals.in_every_seed == 0
    assert "in seeds 0, 2, from update 8 on" in refusals.in_words(10)


# Signals


def test_a_signal_saves_and_leaves(finished, tmp_path):
    class Signalling(Recorder):
        def log(self, env_steps, metrics):
            super().log(env_steps, metrics)
            if len(self.rows) == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    config = dataclasses.replace(CONFIG, total_timesteps=16 * 40_000)
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


def test_a_second_signal_leaves_at_once():
    program = (
        "import time\n"
        "from trpo_jax.runs.signals import interruptible\n"
        "with interruptible(lambda text: print(text, flush=True)) as interruption:\n"
        "    print('ready', flush=True)\n"
        "    while not interruption.asked(): time.sleep(0.01)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert "SIGINT" in process.stdout.readline()
    time.sleep(0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == -signal.SIGINT
