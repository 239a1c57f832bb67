import dataclasses
import json

import optax
import pytest

import trpo_jax
from trpo_jax.errors import differing
from trpo_jax.runs.config_file import (
    config_from_dict,
    config_to_dict,
    read_config_values,
)


def read_config(path):
    return config_from_dict(read_config_values(path))


MANY = trpo_jax.TRPOConfig(
    env="Pendulum-v1",
    num_envs=4,
    rollout_length=8,
    total_timesteps=320,
    hidden_sizes=(8, 4),
    action_distribution="gsde",
    max_kl_schedule="cosine",
    max_kl=0.03,
    damping=0.0,
)


@pytest.mark.parametrize("config", [trpo_jax.TRPOConfig(), MANY])
def test_a_config_comes_back_from_its_file(config, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_to_dict(config)))
    assert read_config(path) == config


def test_toml_may_name_a_few_fields_and_floats_beside_them(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('env = "Acrobot-v1"\nmax_kl = 0.02\nhidden_sizes = [16]\n')
    config = read_config(path)
    assert config.env == "Acrobot-v1"
    assert config.hidden_sizes == (16,)
    assert config.max_kl == 0.02


def schedule(update):
    return 1.0


def test_python_objects_are_described_and_asked_for():
    critic = trpo_jax.networks.Value(trpo_jax.networks.MLP((4,)))
    config = dataclasses.replace(
        MANY,
        critic=critic,
        max_kl_schedule=schedule,
        critic_fit="first_order",
        critic_optimizer=optax.sgd,
        env=trpo_jax.environments.make_environment("CartPole-v1"),
    )
    values = json.loads(json.dumps(config_to_dict(config)))
    assert "hidden_sizes = (4,)" in values["critic"]["python"]
    assert values["max_kl_schedule"]["python"].endswith("test_config_file.schedule")
    assert values["env"]["python"] == "GymnaxEnvironment(CartPole-v1)"
    with pytest.raises(
        ValueError, match=r"env \(.*critic \(.*schedule \(.*critic_optimizer \(.*config"
    ):
        config_from_dict(values)


def test_differences_are_named_with_both_values():
    other = dataclasses.replace(MANY, num_envs=8, max_kl=0.01)
    assert differing(config_to_dict(MANY), config_to_dict(MANY)) == []
    assert differing(config_to_dict(MANY), config_to_dict(other)) == [
        "num_envs: 4 and 8",
        "max_kl: 0.03 and 0.01",
    ]


@pytest.mark.parametrize(
    ("name", "text", "advice"),
    [
        ("config.yaml", "", r"neither \.json nor \.toml; name such a file"),
        ("config.json", "{", r"config\.json is not json"),
        ("config.toml", "env = ", r"config\.toml is not toml"),
        ("config.json", "[]", r'write \{"env": "CartPole-v1"\}'),
        (
            "config.json",
            '{"num_env": 3}',
            r"no such field: num_env \(did you mean num_envs",
        ),
        ("config.json", '{"NUM_ENV": 3}', r"no such field: NUM_ENV \(.*num_envs"),
        ("config.json", '{"qqq": 3}', r"no such field: qqq\. .* RunSettings"),
        ("config.json", '{"num_envs": 0}', "at least 1"),
    ],
)
def test_files_that_make_no_run_are_refused(name, text, advice, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=advice):
        read_config(tmp_path / name)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.json cannot be read"):
        read_config(tmp_path / "absent.json")


def test_the_advised_file_is_a_config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"env": "CartPole-v1"}')
    assert read_config(path) == trpo_jax.TRPOConfig()
