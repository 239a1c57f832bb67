import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import jax
import pytest
from rich.console import Console
from tiny import Line

import trpo_jax
from trpo_jax import runs, sweeps
from trpo_jax.__main__ import COMMANDS, keep_compiled_programs, main, parse
from trpo_jax.environments import Discrete, making
from trpo_jax.runs import chunks
from trpo_jax.runs.console import Watcher
from trpo_jax.training import PRESETS
from trpo_jax.training.config_checks import CONSTRAINED, UPDATES
from trpo_jax.training.schedules import SCHEDULES
from trpo_jax.training.seeds import run_keys

TINY = [
    "--env=CartPole-v1",
    "--num-envs=2",
    "--rollout-length=16",
    "--total-timesteps=96",
    "--hidden-sizes",
    "8",
]


def config_of(args):
    return trpo_jax.TRPOConfig(**vars(parse(args).keywords["run"]))


def test_options_start_from_the_preset_of_the_environment():
    assert config_of([]) == trpo_jax.preset("CartPole-v1")
    assert config_of(["--env=Acrobot-v1"]) == trpo_jax.preset("Acrobot-v1")
    assert config_of(["train", "--env=Acrobot-v1"]) == trpo_jax.preset("Acrobot-v1")
    expected = trpo_jax.TRPOConfig(env="jumanji/Snake-v1")
    assert config_of(["--env", "jumanji/Snake-v1"]) == expected


def test_options_override_fields():
    config = config_of([*TINY, "--max-kl=0.02", "--normalize-observations"])
    assert config.num_envs == 2
    assert config.hidden_sizes == (8,)
    assert config.max_kl == 0.02
    assert config.normalize_observations


@pytest.mark.parametrize("update", UPDATES)
def test_every_update_can_be_asked_for(update):
    args, fields = ["--env", "safe/toll_grid", "--update", update], {}
    if update in CONSTRAINED:
        args, fields = [*args, "--cost-limits", "2.5"], {"cost_limits": (2.5,)}
    expected = trpo_jax.preset("safe/toll_grid", update=update, **fields)
    assert config_of(args) == expected


@pytest.mark.parametrize("env", ["Acrobot-v1", "MountainCar-v0", "CartPole-v1"])
def test_another_update_or_fit_is_without_the_fields_that_it_ignores(env, tmp_path):
    """Of the preset; those of a file are the user's."""
    config = config_of([f"--env={env}", "--update=ppo", "--clip-ratio=0.1"])
    assert config == trpo_jax.preset(env, update="ppo", clip_ratio=0.1)
    config = config_of([f"--env={env}", "--update", "npg", "--critic-fit=trust_region"])
    assert config == trpo_jax.preset(env, update="npg", critic_fit="trust_region")
    path = tmp_path / "mine.toml"
    path.write_text(f'env = "{env}"\nupdate = "ppo"\npolicy_epochs = 3\n')
    config = config_of([f"--config={path}"])
    assert config == trpo_jax.preset(env, update="ppo", policy_epochs=3)
    path.write_text(f'env = "{env}"\ndamping = 0.5\n')
    with pytest.raises(ValueError, match=r"damping=0\.5 is for update='trpo' or"):
        config_of([f"--config={path}", "--update=ppo"])


def test_whole_numbers_may_be_written_as_in_python():
    config = config_of([*TINY, "--total-timesteps=1e4", "--fisher-stride=1e0"])
    assert (config.total_timesteps, config.fisher_stride) == (10_016, 1)
    assert config_of([*TINY, "--fisher-stride=None"]).fisher_stride is None
    assert config_of([f"--seed={2**32 - 1}"]).seed == 2**32 - 1


@pytest.mark.parametrize(
    ("words", "sizes"),
    [(["64,32"], (64, 32)), (["64", "32"], (64, 32)), (["8"], (8,)), ([], ())],
)
def test_sizes_may_have_commas_between_them(words, sizes):
    assert config_of(["--hidden-sizes", *words]).hidden_sizes == sizes


class Halves(Line):
    observation_shape = {"left": (3,), "right": (3,)}  # noqa: RUF012

    def __init__(self):
        self.action_space, self._masked = Discrete(2), False

    def _observe(self, state):
        values = super()._observe(state)
        return {"left": values, "right": -values}


@pytest.mark.parametrize(
    ("words", "part"),
    [(["left"], "left"), (["left", "right"], ("left", "right")), (["None"], None)],
)
def test_entries_of_an_observation_are_named(words, part, monkeypatch):
    halves = Halves()
    monkeypatch.setitem(making.SUITES, "playground", lambda name: halves)
    options = ["--env=playground/halves", "--critic-observation", *words]
    assert config_of(options).critic_observation == part


def test_schedules_of_the_command_line_are_all_that_there_are():
    for name in SCHEDULES:
        config = config_of([f"--max-kl-schedule={name}"])
        assert config == trpo_jax.preset("CartPole-v1", max_kl_schedule=name)


def test_a_file_comes_before_the_preset_and_options_before_the_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('env = "Acrobot-v1"\nnum_envs = 4\nmax_kl = 0.5\n')
    config = config_of(["--config", str(path), "--max-kl=0.25"])
    expected = trpo_jax.preset("Acrobot-v1", num_envs=4, max_kl=0.25)
    assert config == expected
    path.write_text('env = "Acrobot-v1"\nmax_kl = 0.5\n')
    assert config_of(["--config", str(path)]) == trpo_jax.preset(
        "Acrobot-v1", max_kl=0.5
    )


def test_the_config_of_a_run_makes_it_again(tmp_path, capsys):
    assert main(["presets", "Acrobot-v1"]) == 0
    path = tmp_path / "config.json"
    path.write_text(capsys.readouterr().out)
    assert config_of(["--config", str(path)]) == trpo_jax.preset("Acrobot-v1")


def test_every_field_is_an_option_with_its_documentation(capsys):
    text = help_of(["train", "--help"], capsys)
    # Networks are Python objects; the other fields can be written as text.
    names = {field.name for field in dataclasses.fields(trpo_jax.TRPOConfig)}
    names |= {field.name for field in dataclasses.fields(trpo_jax.RunSettings)}
    names = names - {"policy", "critic"}
    for name in names:
        assert f"--{name.replace('_', '-')}" in text
    assert "the radius of the trust region" in text
    assert "Environments stepped in parallel" in text
    assert "Minutes between two checkpoints" in text


PYTHON = ("pytree", "`jit`", "`Environment`", "{None}", "STR", "Optax schedule")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_about_the_command_line(command, capsys):
    text = help_of([command, "--help"], capsys)
    assert [word for word in PYTHON if word in text] == []
    assert "(default: )" not in text


def test_help_tells_every_command(capsys):
    text = help_of(["--help"], capsys)
    for command, kind in COMMANDS.items():
        assert command in text
        assert kind.__doc__.split(".")[0].split("\n")[0] in text


def test_tells_its_version(capsys):
    assert main(["train", "--version"]) == 0
    assert capsys.readouterr().out == f"trpo_jax {trpo_jax.version.__version__}\n"


def help_of(args, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse(args)
    assert exit_info.value.code == 0
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize("wrong", [["--num-envs", "x"], ["--num-env", "4"]])
def test_a_wrong_option_leads_to_the_help_of_its_command_alone(wrong, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse(["train", *wrong])
    assert exit_info.value.code == 2
    text = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "trpo_jax train --help" in text
    assert "--num-envs INT" in text
    assert "benchmark" not in text


def test_fields_that_do_not_fit_are_refused_without_a_parsers_name_for_them(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse(["train", "--num-envs", "0"])
    assert exit_info.value.code == 2
    text = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "Error parsing run: num_envs=0 is not positive" in text


def test_trains_and_ends_with_an_evaluation(capsys):
    assert main(TINY) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "TRPO on CartPole-v1: 96 steps" in lines[0]
    assert [line.split()[0] for line in lines[1:4]] == ["32", "64", "96"]
    assert all("return" in line and "KL" in line for line in lines[1:4])
    assert "evaluation over 128 episodes: return" in lines[4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command_line") / "run"
    trpo_jax.run(config_of(TINY), folder, progress=False)
    return folder


def test_a_run_is_recorded_resumed_evaluated_drawn_and_exported(tmp_path, capsys):
    folder = tmp_path / "run"

    def call(*args):
        status = main(args)
        return status, capsys.readouterr().out

    args = [*TINY, "--folder", str(folder), "--checkpoint-updates=2"]
    assert call("train", *args)[0] == 0
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "00000002",
        "00000003",
    ]
    status, text = call("resume", str(folder))
    assert (status, text.count("evaluation over 128 episodes")) == (0, 1)
    status, text = call("evaluate", str(folder), "--num-episodes=3")
    assert (status, text.count("evaluation over 3 episodes")) == (0, 1)
    status, text = call("export", str(folder))
    assert (status, text.strip()) == (0, str(folder / "policy.jaxexport"))
    assert (folder / "policy.jaxexport").stat().st_size > 1000
    status, text = call("plot", str(folder))
    assert status == 0
    for path in text.split():
        assert pathlib.Path(path).read_bytes().startswith(b"\x89PNG")
    status, text = call("render", str(folder))
    assert status == 0
    picture = folder / "pictures" / "episode.gif"
    assert picture.read_bytes().startswith(b"GIF8")
    assert str(picture) in text


@pytest.mark.parametrize(
    ("env", "drawn"), [("CartPole-v1", True), ("DeepSea-bsuite", False)]
)
def test_render_is_advised_where_there_is_something_to_draw(
    env, drawn, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(runs, "run", lambda *args, **options: None)
    assert main(["--env", env, "--folder", str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    assert "trpo_jax plot" in text
    assert ("trpo_jax render" in text) == drawn


def test_presets_are_listed(capsys):
    assert main(["presets"]) == 0
    text = capsys.readouterr().out
    assert all(env in text for env in PRESETS)
    config = trpo_jax.preset("Pendulum-v1")
    steps = f"{config.total_timesteps:,} steps, {config.num_envs} × "
    assert re.search(rf"Pendulum-v1 +{steps}{config.rollout_length} per update", text)


def test_a_reader_of_the_output_may_go_away():
    process = subprocess.Popen(
        [sys.executable, "-m", "trpo_jax", "presets"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0


def test_speed_is_measured(capsys):
    assert main(["benchmark", *TINY, "--seconds=0.2"]) == 0
    row = json.loads(capsys.readouterr().out)
    low, high = row["steps_per_second_spread"]
    assert 0 < low <= row["steps_per_second"] <= high
    assert row["compile_seconds"] > 0
    assert row["device"] == jax.devices()[0].device_kind


def test_a_terminal_gets_a_bar():
    terminal = Console(force_terminal=True, width=200, record=True)
    config = config_of(TINY)
    programs = chunks.compile_programs(config)
    with Watcher(config, terminal) as watcher:
        state = programs.init(run_keys(config))
        for chunk in chunks.run_chunks(programs, state, first=0, last=3):
            watcher.watch(chunk)
        watcher.notify("a line above")
    text = terminal.export_text()
    assert "96/96" in text
    for shown in ("steps/s", "KL", "CG", "fraction", "entropy", "explained"):
        assert shown in text
    assert "a line above" in text


def test_a_run_that_must_stop_ends_with_status_one(folder, monkeypatch, capsys):
    def fail(*args, **options):
        raise trpo_jax.RunError("the disk is full. The run is saved up to update 2")

    monkeypatch.setattr("trpo_jax.runs.resume", fail)
    assert main(["resume", str(folder)]) == 1
    assert "saved up to update 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (trpo_jax.Interrupted("saved", signal.SIGTERM), 128 + signal.SIGTERM),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_interrupted_run_ends_with_the_signals_status(
    raised, status, folder, monkeypatch, capsys
):
    def interrupt(*args, **options):
        raise raised

    monkeypatch.setattr("trpo_jax.runs.resume", interrupt)
    assert main(["resume", str(folder)]) == status
    assert capsys.readouterr().err


@pytest.mark.parametrize("kind", [ValueError, TypeError, RuntimeError, KeyError])
def test_a_bug_keeps_its_traceback(kind, folder, monkeypatch):
    def fail(*args, **options):
        raise kind("a bug")

    monkeypatch.setattr("trpo_jax.runs.resume", fail)
    with pytest.raises(kind, match="a bug"):
        main(["resume", str(folder)])


@pytest.mark.parametrize("kind", [trpo_jax.UsageError, trpo_jax.UsageTypeError])
def test_advice_is_printed_wherever_it_is_raised(kind, folder, monkeypatch, capsys):
    def fail(*args, **options):
        error = kind("write 3")
        raise error from ValueError("deeper")

    monkeypatch.setattr("trpo_jax.runs.resume", fail)
    assert main(["resume", str(folder)]) == 2
    assert capsys.readouterr().err == "error: write 3\n"


@pytest.mark.parametrize(
    ("message", "advised"),
    [("RESOURCE_EXHAUSTED: Out of memory", True), ("INTERNAL: a bug", False)],
)
def test_too_little_memory_is_told_from_a_bug(
    message, advised, folder, monkeypatch, capsys
):
    def fail(*args, **options):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr("trpo_jax.runs.resume", fail)
    if advised:
        assert main(["resume", str(folder)]) == 1
        assert "reduce --num-envs" in capsys.readouterr().err
    else:
        with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
            main(["resume", str(folder)])


@pytest.mark.parametrize("command", ["evaluate", "render"])
def test_a_seed_of_64_bits_or_more_is_refused(command, folder, capsys):
    assert main([command, str(folder), f"--seed={2**64}"]) == 2
    assert f"seed={2**64} is too large; write at most" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "name"), [("render", "episode"), ("export", "policy.jaxexport")]
)
def test_a_folder_is_not_overwritten(command, name, folder, tmp_path, capsys):
    assert main([command, str(folder), f"--output={tmp_path}"]) == 2
    assert f"write a file in it: {tmp_path / name}." in capsys.readouterr().err


@pytest.mark.parametrize("args", [["--env=CartPole"], ["presets", "CartPole"]])
def test_advice_is_not_about_python(args, capsys):
    assert main(args) == 2
    text = capsys.readouterr().err
    assert "CartPole-v1" in text
    assert not any(word in text for word in ("gymnax.register", "env=(", "TRPOConfig"))


def test_a_refused_run_is_not_announced(folder, capsys):
    assert main([*TINY, "--folder", str(folder)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "holds this run already" in err


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copied")


def test_a_run_goes_on_for_longer_and_starts_another(copied, capsys):
    assert main(["resume", str(copied), "--total-timesteps=96"]) == 2
    assert "is not more than the 96 steps" in capsys.readouterr().err
    assert main(["resume", str(copied), "--total-timesteps=1e2"]) == 0
    assert "resuming after update 3 of 4" in capsys.readouterr().out
    start = ["--warm-start", str(copied)]
    assert main([*TINY, *start, "--evaluation-updates=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"starting with what {copied}/checkpoints/00000004 has learnt" in lines
    shown = [" evaluation " in line for line in lines if " steps  " in line]
    assert shown == [False, True, True]
    assert main([*TINY, *start, "--hidden-sizes", "9"]) == 2
    assert "hidden_sizes: [8] and [9]" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["resume", "evaluate", "render", "export"])
def test_damaged_checkpoints_are_advised_on(command, copied, capsys):
    for path in (copied / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    assert main([command, str(copied)]) == 2
    assert "no checkpoint" in capsys.readouterr().err


def test_checkpoints_of_another_config_are_advised_on(copied, capsys):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"max_kl": 0.5}))
    assert main(["evaluate", str(copied)]) == 2
    assert "max_kl" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["resume", "plot"])
@pytest.mark.parametrize("content", [b"\xff", b"{", b"[]"])
def test_a_damaged_config_is_advised_on(command, content, copied, capsys):
    (copied / "config.json").write_bytes(content)
    assert main([command, str(copied)]) == 2
    assert "config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "advice"),
    [
        (["resume", "nowhere"], "nowhere does not exist"),
        (["evaluate", "nowhere"], "nowhere does not exist"),
        (["plot", "nowhere"], "nowhere"),
        (["render", "nowhere"], "nowhere does not exist"),
        (["export", "nowhere"], "nowhere does not exist"),
        (["presets", "CartPole"], "CartPole-v1"),
        (["train", "--config=absent.json"], "absent.json cannot be read"),
        ([*TINY, "--tensorboard"], "write --folder"),
        (["train", "Pong-misc"], "write train --env Pong-misc"),
        (["benchmark", "Pong-misc"], "write benchmark --env Pong-misc"),
        (["Pong-misc"], "write train --env Pong-misc"),
        (["trian"], "did you mean 'train'?"),
        (["mine"], "one of the commands train, sweep"),
        (["train", "mine.toml"], "write train --config mine.toml"),
    ],
)
def test_what_is_not_there_ends_with_status_two_and_advice(
    args, advice, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    assert advice in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        ('{"env": ["CartPole-v1"]}', "mine.json: env is"),
        ('{"env": {"python": "mine"}}', "mine.json: env is"),
        ('{"hyperparameters": 3}', "mine.json: no such field: hyperparameters"),
        ('{"num_env": 3}', "mine.json: no such field: num_env"),
    ],
)
def test_a_bad_file_is_named(content, advice, tmp_path, capsys):
    path = tmp_path / "mine.json"
    path.write_text(content)
    assert main(["train", "--config", str(path)]) == 2
    assert advice in " ".join(capsys.readouterr().err.split())


def test_a_place_that_cannot_be_written_ends_with_status_one(folder, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert main(["export", str(folder), "--output", str(tmp_path / "file/p")]) == 1
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (["--env=CartPole"], "CartPole-v1"),
        (["--rollout-length=0"], "at least 1"),
        (["--rollout-length=1.5"], "'1.5' is not a whole number; write one, as 64"),
        (["--hidden-sizes=64,x"], "'x' is not a whole number"),
        (["--max-kl=-1"], "write a finite number above 0"),
        (["--discount=1.5"], "[0, 1]"),
        (["--num-envs=0"], "at least 1"),
        (["--critic-fit=first_order", "--critic-optimizer=adamm"], "adam"),
        (["--critic-epochs=3"], "is for critic_fit='first_order'; write that as well"),
        (
            ["--clip-ratio=0.3"],
            "clip_ratio=0.3 is for update='ppo'; write that as well",
        ),
        (["--update=PPO"], "'npg', 'ppo', 'ppo_penalty', 'projection'"),
        (["--max-kl-schedule=quadratic"], "'constant', 'linear', 'cosine'"),
        (["--policy-observation=seen"], "which has no entries; write None"),
        (["--num-env=3"], "--num-envs"),
        (["--env"], "--env"),
        (["--config"], "--config"),
    ],
)
def test_bad_options_end_with_status_two_and_advice(options, advice, capsys):
    try:
        status = main([*TINY, *options])
    except SystemExit as error:
        status = error.code
    assert status == 2
    text = capsys.readouterr().err.replace("│", " ")
    assert advice in " ".join(text.split())


@pytest.fixture
def cache_settings():
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {name: jax.config.values[name] for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_compiled_programs_are_kept_in_the_users_cache(
    cache_settings, monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    keep_compiled_programs()
    assert jax.config.values["jax_compilation_cache_dir"] == f"{tmp_path}/trpo_jax"
    assert jax.config.values["jax_persistent_cache_min_compile_time_secs"] == 0


def test_a_cache_that_jax_was_told_of_stays(cache_settings, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    keep_compiled_programs()
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path)


@pytest.mark.parametrize(
    ("args", "status", "told"),
    [
        (["train", "--folder", "run", *TINY], 0, "evaluation over"),
        (["train", "--num-envs", "0"], 2, "num_envs=0 is not positive"),
        (["resume", "nowhere"], 2, "error: nowhere does not exist"),
    ],
)
def test_as_a_process(args, status, told, tmp_path):
    finished = subprocess.run(
        [sys.executable, "-m", "trpo_jax", *args],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(sys.path), "XDG_CACHE_HOME": str(tmp_path)},
    )
    assert finished.returncode == status, finished.stderr
    assert told in finished.stdout + finished.stderr
    assert (tmp_path / "run" / "evaluation.json").exists() == (status == 0)


@pytest.fixture(autouse=True)
def programs_of_these_tests_are_not_kept(request, monkeypatch):
    if "cache_settings" not in request.fixturenames:
        monkeypatch.setattr("trpo_jax.__main__.keep_compiled_programs", lambda: None)


# --- sweeps


class AskedError(Exception):
    """Carries the arguments that a stand-in was called with."""


@pytest.fixture
def asked(monkeypatch):
    """Return config, folder and options that a command line asks of `sweep`."""

    def sweep(config, folder, **options):
        raise AskedError(config, folder, options)

    monkeypatch.setattr(sweeps, "sweep", sweep)

    def ask(*args):
        with pytest.raises(AskedError) as error:
            parse(["sweep", *args])()
        return error.value.args

    return ask


def test_several_values_are_swept_and_one_is_set(asked):
    config, folder, options = asked(
        *("--env", "Acrobot-v1", "--folder", "f", "--num-seeds", "3"),
        *("--max-kl", "0.01", "0.02", "--hidden-sizes", "8,8", "16", "none"),
        *("--damping", "log_uniform(1e-3, 1)", "--num-settings", "5"),
        *("--num-envs", "4", "--normalize-observations", "true", "--cg-iterations=1e1"),
        *("--fisher-stride", "None", "3", "--activation", "relu"),
        *("--policy-observation", "None", "position", "position,speed"),
    )
    expected = trpo_jax.preset(
        "Acrobot-v1",
        num_envs=4,
        normalize_observations=True,
        activation="relu",
        cg_iterations=10,
    )
    assert config == expected
    assert folder == pathlib.Path("f")
    swept = {
        "max_kl": [0.01, 0.02],
        "hidden_sizes": [(8, 8), (16,), ()],
        "damping": trpo_jax.log_uniform(1e-3, 1),
        "fisher_stride": [None, 3],
        "policy_observation": [None, "position", ("position", "speed")],
    }
    assert {name: options[name] for name in swept} == swept
    assert (options["num_seeds"], options["num_settings"]) == (3, 5)


def test_a_sweep_starts_from_a_file(asked, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('env = "Acrobot-v1"\nnum_envs = 4\n')
    config, _, options = asked(
        "--config", str(path), "--max-kl", "0.1", "0.2", "--halving", "0.5", "--seed=7"
    )
    assert config == trpo_jax.preset("Acrobot-v1", num_envs=4, seed=7)
    assert options["halving"] == (0.5,)


def test_a_sweep_of_another_update_is_without_the_fields_that_it_ignores(asked):
    fixed = ("--env=Acrobot-v1", "--update", "ppo")
    config, _, options = asked(*fixed, "--clip-ratio", "0.1", "0.2")
    assert config == trpo_jax.preset("Acrobot-v1", update="ppo")
    assert options["clip_ratio"] == [0.1, 0.2]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no option has several values; write some to sweep over, as --max-kl"),
        (["--max-kl", "0.1"], "no option has several values"),
        (["CartPole-v1"], "write sweep --env CartPole-v1"),
        (["--max-kl", "0.1", "x"], "--max-kl x: write 0.01"),
        (["--normalize-returns", "yes"], "--normalize-returns yes: write true or"),
        (["--hidden-sizes", "8x8", "4"], "--hidden-sizes 8x8: write 64,64"),
        (
            ["--damping", "0.1", "uniform(0, 1)"],
            "--damping has an interval beside other values; write the interval alone",
        ),
        (["--max-kl", "0.1", "0.1"], "two settings are the same"),
        (["--env", "Nothing-v0", "--max-kl", "1", "2"], "Nothing-v0"),
    ],
)
def test_sweeps_that_cannot_work_are_refused_with_advice(args, message, capsys):
    assert main(["sweep", *args]) == 2
    assert message in capsys.readouterr().err


def test_a_sweep_is_recorded_resumed_and_drawn(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("trpo_jax.__main__.keep_compiled_programs", lambda: None)
    folder = str(tmp_path / "sweep")
    options = ["--num-seeds", "2", "--num-episodes", "2", "--folder", folder]
    assert main(["sweep", *TINY, *options, "--max-kl", "0.01", "0.1"]) == 0
    first = capsys.readouterr().out
    assert "2 settings × 2 seeds = 4 runs; 1 program(s) to compile" in first
    assert f"python -m trpo_jax plot {folder}" in first
    assert main(["resume", folder]) == 0
    table = [line for line in first.splitlines() if line.startswith("|")]
    again = capsys.readouterr().out.splitlines()
    assert len(table) == 4
    assert [line for line in again if line.startswith("|")] == table
    assert main(["plot", folder]) == 0
    assert "best-settings.png" in capsys.readouterr().out
    assert main(["evaluate", folder]) == 2
    assert f"name {folder}/best" in capsys.readouterr().err
    longer = ["--total-timesteps", "192"]
    assert main(["resume", folder, *longer]) == 2
    advice = capsys.readouterr().err.split("write resume ")[1].split(" for its")[0]
    assert advice.split() == [f"{folder}/best", *longer]
    assert main(["resume", *advice.split()]) == 0
    assert main(["plot", folder, f"{folder}/best"]) == 2
    assert "which has pictures of its own" in capsys.readouterr().err
