"""Environments by the module and the name of the user's own."""

import pytest

import trpo_jax
from trpo_jax.__main__ import main
from trpo_jax.environments import make_environment

MODULE = """
import jax.numpy as jnp
from gymnax.environments.classic_control.cartpole import CartPole
from trpo_jax.environments import Discrete, TimeStep

class Line:
    observation_shape = (1,)
    action_space = Discrete(2)

    def __init__(self, length=3):
        self.length = length

    def reset(self, key):
        return jnp.int32(0), jnp.zeros(1)

    def step(self, key, state, action):
        end = state == self.length - 1
        place = jnp.where(end, 0, state + 1)
        observation = place[None].astype(float)
        return place, TimeStep(
            observation, jnp.float32(action), end, jnp.zeros((), bool), observation
        )

def of_length(length):
    return Line(length)

def short():
    return of_length(2)

a_line = Line(5)
a_name = "CartPole-v1"

class OnHost(Line):
    on_host = True
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_lines.py").write_text(MODULE)
    (tmp_path / "broken_lines.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(("name", "length"), [("Line", 3), ("short", 2), ("a_line", 5)])
def test_a_class_a_function_and_an_object_are_environments(module, name, length):
    environment = make_environment(f"own_lines:{name}")
    assert environment.length == length
    assert make_environment(f"own_lines:{name}") is environment


def test_a_class_of_gymnax_is_one(module):
    environment = make_environment("own_lines:CartPole")
    assert environment.observation_shape == (4,)


def test_a_run_is_resumed_and_acted_with_by_the_name(module, tmp_path):
    folder = tmp_path / "run"
    sizes = ["--num-envs", "2", "--rollout-length", "4", "--hidden-sizes", "4"]
    train = ["train", "--env", "own_lines:Line", "--folder", str(folder), *sizes]
    assert main([*train, "--total-timesteps", "8"]) == 0
    assert main(["resume", str(folder), "--total-timesteps", "16"]) == 0
    config, state = trpo_jax.load_state(folder)
    assert (config.env, int(state.updates)) == ("own_lines:Line", 2)
    trpo_jax.load_policy(folder)


@pytest.mark.parametrize(
    ("env", "advice"),
    [
        (
            "no_lines:Line",
            "no module no_lines. Run python -m trpo_jax in the folder that holds",
        ),
        ("own_lines:Lin", "did you mean 'Line'"),
        ("own_lines:of_length", "missing a required argument: 'length'"),
        (":Line", "write a module and a name, as 'carts:Cart'"),
        ("own_lines:", "write a module and a name"),
        ("own_lines:a_name", "is the string 'CartPole-v1'; write that as env"),
        ("own_lines:OnHost", "is stepped on the host; write its id"),
        ("NoSuch-v0", "those of your own are 'module:name'"),
        ("HalfCheetah-v5", "begin with the suite: .*'gymnasium/HalfCheetah-v5'"),
        ("mujoco_playground/Go1", r"no suite 'mujoco_playground'; .* brax, craftax, "),
        ("safe/qqqq", "It has 'halfcheetah_velocity', "),
    ],
)
def test_what_is_no_environment_is_refused(module, env, advice):
    with pytest.raises(ValueError, match=advice):
        make_environment(env)


def test_an_error_in_the_module_is_its_own(module):
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        make_environment("broken_lines:Line")
