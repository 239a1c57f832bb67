import importlib.util

import gymnax
import pytest

from trpo_jax import TRPOConfig, preset
from trpo_jax.training import PRESETS

SUITES = ("brax/", "craftax/", "navix/", "playground/", "safe/", "xland/")
SHIPPED = tuple(gymnax.registered_envs)


def needs(package):
    missing = not importlib.util.find_spec(package)
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


# Limits, and entries of an observation, are checked against the environment, which is
# made for that.
MARKS = {
    "safe/halfcheetah_velocity": needs("brax"),
    "safe/hopper_velocity": needs("brax"),
    "playground/Go1JoystickFlatTerrain": (needs("mujoco_playground"), pytest.mark.slow),
}
BUILT = [pytest.param(env, marks=MARKS.get(env, ())) for env in PRESETS]


@pytest.mark.parametrize("env", BUILT)
def test_every_preset_is_a_valid_run_of_a_known_environment(env):
    config = preset(env)
    assert config.env == env
    assert env in gymnax.registered_envs or env.startswith(SUITES)


@pytest.mark.parametrize("env", BUILT)
def test_a_preset_says_only_what_it_sets(env):
    """Fields are those of the table, the others the defaults."""
    config = preset(env)
    defaults = TRPOConfig(env=env)
    for name in TRPOConfig.__dataclass_fields__:
        if name != "env":
            expected = PRESETS[env].get(name, getattr(defaults, name))
            assert getattr(config, name) == expected


def test_every_environment_of_gymnax_has_a_preset():
    # Before any test registers one of its own.
    assert len(SHIPPED) == 26
    assert set(SHIPPED) <= set(PRESETS)


def test_overrides_are_fields():
    config = preset("CartPole-v1", num_seeds=3, max_kl=0.5, seed=9)
    assert (config.num_seeds, config.seed) == (3, 9)
    base = preset("CartPole-v1")
    assert config.hyperparameters == base.hyperparameters._replace(max_kl=0.5)
    assert config.num_envs == base.num_envs


@pytest.mark.parametrize("update", ["ppo", "ppo_penalty", "projection", "npg", "tnpg"])
@pytest.mark.parametrize("env", BUILT)
def test_a_preset_of_another_update_is_without_the_fields_it_ignores(env, update):
    config, tuned = preset(env, update=update), preset(env)
    assert config.update == update
    for name in TRPOConfig.__dataclass_fields__.keys() - {"update"}:
        kept = getattr(tuned, name)
        default = getattr(TRPOConfig(env=env), name)
        assert getattr(config, name) in (kept, default)
    assert config.total_timesteps == tuned.total_timesteps
    assert config.gae_lambda == tuned.gae_lambda


def test_an_override_that_the_update_ignores_is_refused():
    with pytest.raises(ValueError, match="fisher_stride=2 is for update='trpo' or"):
        preset("CartPole-v1", update="ppo", fisher_stride=2)
    with pytest.raises(ValueError, match="update='PPO'; write one of"):
        preset("CartPole-v1", update="PPO")


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'CartPole-v1'") as raised:
        preset("CartPole-v0")
    assert "write TRPOConfig(env='CartPole-v0')" in str(raised.value)


def test_a_name_like_no_other_lists_the_presets():
    with pytest.raises(ValueError, match="There are presets for CartPole-v1"):
        preset("?")


def test_an_override_that_is_no_field_is_refused():
    with pytest.raises(TypeError, match="num_environments"):
        preset("CartPole-v1", num_environments=4)


def test_overrides_are_validated():
    with pytest.raises(ValueError, match="num_envs=0"):
        preset("CartPole-v1", num_envs=0)


def test_an_environment_in_place_of_its_id_is_refused(no_shape_checks):
    made = gymnax.make("CartPole-v1")
    with pytest.raises(TypeError, match=r"write preset\(ID, env=\.\.\.\)"):
        preset(made)
    config = preset("CartPole-v1", env=made)
    assert config.env is TRPOConfig(env=made).env
    assert config.max_kl == PRESETS["CartPole-v1"]["max_kl"]
