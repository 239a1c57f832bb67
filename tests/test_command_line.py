import dataclasses

import jax
import numpy as np
import pytest
from rich.console import Console

import trpo_jax
from trpo_jax.__main__ import keep_compiled_programs, main, parse
from trpo_jax.runs import console, live

TINY = [
    "--env=CartPole-v1",
    "--num-envs=2",
    "--rollout-length=16",
    "--total-timesteps=96",
    "--hidden-sizes",
    "8",
    "--critic-epochs=1",
    "--critic-minibatches=1",
]


def test_options_start_from_the_preset_of_the_environment():
    assert parse([]) == trpo_jax.preset("CartPole-v1")
    assert parse(["--env=Acrobot-v1"]) == trpo_jax.preset("Acrobot-v1")
    assert parse(["--env", "brax/ant"]) == trpo_jax.TRPOConfig(env="brax/ant")


def test_options_override_fields_and_hyperparameters():
    config = parse([*TINY, "--max-kl=0.02", "--normalize-observations"])
    assert config.num_envs == 2
    assert config.hidden_sizes == (8,)
    assert config.hyperparameters.max_kl == 0.02
    assert config.normalize_observations


def test_every_field_is_an_option_with_its_documentation(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse(["--help"])
    assert exit_info.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    # Networks are Python objects; the other fields can be written as text.
    names = {field.name for field in dataclasses.fields(trpo_jax.TRPOConfig)}
    names = names - {"policy", "critic", "hyperparameters"}
    for name in names | set(trpo_jax.Hyperparameters._fields):
        assert f"--{name.replace('_', '-')}" in text
    assert "the radius of the trust region" in text
    assert "Environments stepped side by side" in text


def test_trains_and_ends_with_an_evaluation(capsys):
    assert main(TINY) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "TRPO on CartPole-v1: 96 steps" in lines[0]
    assert [line.split()[0] for line in lines[1:4]] == ["32", "64", "96"]
    assert all("return" in line and "KL" in line for line in lines[1:4])
    assert "evaluation over 128 episodes: return" in lines[4]


def test_live_run_equals_train():
    config = parse([*TINY, "--num-seeds=2"])
    *_, (state, metrics) = live.iterate(config)
    result = trpo_jax.train(config)
    np.testing.assert_array_equal(metrics.env_steps, result.metrics.env_steps[:, -1])
    np.testing.assert_allclose(
        metrics.update.kl, result.metrics.update.kl[:, -1], rtol=1e-3
    )
    np.testing.assert_allclose(
        state.params["params"]["torso"]["Dense_0"]["kernel"],
        result.state.params["params"]["torso"]["Dense_0"]["kernel"],
        atol=1e-4,
    )


def test_a_terminal_gets_a_bar(monkeypatch):
    terminal = Console(force_terminal=True, width=120, record=True)
    console.train_in_console(parse(TINY), terminal)
    text = terminal.export_text()
    assert "96/96" in text
    assert "steps/s" in text


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (["--env=CartPole"], "CartPole-v1"),
        (["--total-timesteps=100"], "write 96 or 128"),
        (["--max-kl=-1"], "positive number of nats"),
        (["--discount=1.5"], "[0, 1]"),
        (["--num-envs=0"], "at least 1"),
        (["--critic-optimizer=adamm"], "adam"),
        (["--kl-schedule=quadratic"], "constant, linear, cosine"),
        (["--num-env=3"], "--num-envs"),
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


@pytest.fixture(autouse=True)
def programs_of_these_tests_are_not_kept(request, monkeypatch):
    if "cache_settings" not in request.fixturenames:
        monkeypatch.setattr("trpo_jax.__main__.keep_compiled_programs", lambda: None)
