import contextlib
import dataclasses
import json
import os
import re
import shutil
import threading

import pytest
from tiny import CONFIG, SETTINGS, events, lines, resume, run

import trpo_jax
from trpo_jax.runs.folder import RunFolder, system_info, write_json


def test_a_folder_of_another_run_is_refused(finished, tmp_path):
    other = dataclasses.replace(CONFIG, num_envs=4, total_timesteps=1280)
    with pytest.raises(ValueError, match=r"num_envs: 2 and 4.*name another folder"):
        run(finished[0], other)
    RunFolder(tmp_path / "run").check_new(other)


def test_a_folder_of_the_same_run_is_resumed_as_advised(finished):
    with pytest.raises(ValueError, match="holds this run already") as error:
        run(finished[0])
    assert f"trpo_jax resume {finished[0]}`" in str(error.value)
    assert resume(finished[0]).state.updates == 40


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


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        ({"keep": 3}, r"settings\.json has unknown settings: keep; delete"),
        ({"keep_last": 0}, r"settings\.json: keep_last=0 is not positive; write at"),
        ({"keep_last": "3"}, r"settings\.json: keep_last is the str '3'; write a"),
    ],
)
@pytest.mark.usefixtures("no_shape_checks")
def test_settings_that_are_not_ours_are_named(finished, tmp_path, content, advice):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    path = folder / "settings.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | content))
    with pytest.raises(ValueError, match=advice):
        resume(folder)
    path.write_text(json.dumps(stored | {"keep_last": 1}))  # as advised
    assert resume(folder).state.updates == 40


def test_a_run_killed_while_its_folder_was_made_can_be_started(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".lock", "settings.partial", "config.partial"):
        (folder / name).write_text("")
    settings = dataclasses.asdict(SETTINGS)
    (folder / "settings.json").write_text(json.dumps(settings))
    run(folder, dataclasses.replace(CONFIG, total_timesteps=16))
    assert len(lines(folder / "metrics.jsonl")) == 1


def test_a_new_run_can_be_started_where_none_is_as_advised(tmp_path):
    """Whether the folder exists or not."""
    (tmp_path / "empty").mkdir()
    short = dataclasses.replace(CONFIG, total_timesteps=16)
    for folder in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(ValueError, match="name the folder of a run") as error:
            resume(folder)
        assert f"trpo_jax.run(config, {str(folder)!r})" in str(error.value)
        assert run(folder, short).folder == folder


def test_no_run_is_advised_where_none_can_be_started(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(ValueError, match=r"name the folder of a run\.$"):
            resume(path)


@pytest.mark.parametrize("python", [False, True])
def test_another_config_is_refused_with_advice_that_helps(tmp_path, python):
    config = CONFIG
    if python:
        config = dataclasses.replace(config, max_kl_schedule=one)
    folder = RunFolder(tmp_path)
    folder.create(config, SETTINGS)
    other = dataclasses.replace(config, max_kl=0.5)
    advice = "pass the config" if python else "leave out the argument config"
    with pytest.raises(ValueError, match=rf"max_kl: 0\.01 and 0\.5; {advice}"):
        folder.read_config(other)
    assert folder.read_config(config if python else None) == config


def one(update):
    return 1.0


@pytest.mark.usefixtures("no_shape_checks")
def test_an_id_in_place_of_the_config_is_refused(finished):
    with pytest.raises(TypeError, match=r"trpo_jax\.preset\('CartPole-v1'\)"):
        resume(finished[0], "CartPole-v1")


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
    """Permissions do not stop root."""
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
        pytest.raises(ValueError, match=r"another process .* or stop"),
    ):
        resume(finished[0])


def test_events_may_come_from_any_thread(tmp_path):
    folder = RunFolder(tmp_path)
    threads = [
        threading.Thread(target=folder.log_event, args=("warning",), kwargs={"i": i})
        for i in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {row["i"] for row in events(tmp_path, "warning")} == set(range(20))


def test_a_file_is_whole_at_any_instant(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, object())
    assert json.loads(path.read_text()) == {"a": 1}


def test_versions_and_device_are_named():
    found = system_info()
    assert found["trpo_jax"] == trpo_jax.version.__version__
    assert re.match(r"\d+\.\d+", found["jax"])
    assert found["num_devices"] >= 1
