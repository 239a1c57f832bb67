"""Environments from ids, pairs and objects."""

import difflib
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import jax

from trpo_jax.environments.brax import make_brax
from trpo_jax.environments.contract import check_environment
from trpo_jax.environments.craftax import make_craftax
from trpo_jax.environments.crax import make_crax
from trpo_jax.environments.gymnasium import is_on_host, make_gymnasium
from trpo_jax.environments.gymnax import import_gymnax, make_gymnax
from trpo_jax.environments.jumanji import make_jumanji
from trpo_jax.environments.navix import make_navix
from trpo_jax.environments.playground import make_playground
from trpo_jax.environments.protocol import Environment
from trpo_jax.environments.target_gym import make_target_gym
from trpo_jax.environments.xland import make_xland
from trpo_jax.errors import UsageError, UsageTypeError, describe_type
from trpo_jax.tracing import cached

SUITES: dict[str, Callable[[str], Environment]] = {
    "brax": lambda name: make_brax(*name.split("/", 1)),  # type: ignore[arg-type]
    "craftax": make_craftax,
    "crax": lambda name: make_crax(*name.split("/", 1)),  # type: ignore[arg-type]
    "gymnasium": make_gymnasium,
    "gymnax": make_gymnax,
    "jumanji": make_jumanji,
    "navix": make_navix,
    "playground": make_playground,
    "target_gym": make_target_gym,
    "xland": lambda name: make_xland(*name.split("/", 1)),
}
"""Suite ↦ function that makes an environment from the rest of the id."""

# Package ↦ function that makes an environment from one of its objects, or a pair.
_PACKAGES: dict[str, Callable[[Any], Environment]] = {
    "craftax": make_craftax,
    "navix": make_navix,
    "xminigrid": make_xland,
}


def make_environment(env: Any) -> Environment:
    """Return the environment that `env` names or is.

    Args:
        env: An id; an (environment, params) pair of gymnax, Craftax or XLand-MiniGrid,
            or the environment alone for its default parameters; an environment of
            Jumanji or Navix; or any `Environment`. Parameters with a leading axis
            [num_envs] make a different environment in each row of the batch. An id is
            one of gymnax, such as "CartPole-v1", unless it begins with a suite:

            - "brax/halfcheetah", or with a backend "brax/halfcheetah/generalized";
            - "craftax/Craftax-Symbolic-v1";
            - "crax/safe_goal_point", or with a level "crax/safe_goal_point/2";
            - "gymnasium/CartPole-v1", which is stepped on the host;
            - "jumanji/Snake-v1";
            - "navix/Navix-Empty-5x5-v0";
            - "playground/CartpoleBalance";
            - "safe/toll_grid", "safe/point_hazards", or a limit on the speed of a body
              of brax, "safe/hopper_velocity" or "safe/halfcheetah_velocity";
            - "target_gym/plane";
            - "xland/MiniGrid-Empty-5x5", or with rulesets
              "xland/XLand-MiniGrid-R1-9x9/trivial-21k";
            - "module:name" of your own: an environment, or a class or a function that
              makes one without arguments.

    Returns:
        The environment; the same object for the same `env`.

    Raises:
        UsageError: If no environment has that id, its suite is not installed, its
            spaces are not supported, or it does not return what `Environment` says.
        UsageTypeError: If `env` is something else.
    """
    if isinstance(env, str):
        suite, slash, name = env.partition("/")
        if ":" in suite:
            return make_environment(_import(env))
        if slash and suite in SUITES:
            return SUITES[suite](name)
        if slash and env not in import_gymnax().registered_envs:
            raise UsageError(
                f"no suite {suite!r}; an id begins with one of {', '.join(SUITES)}, or "
                "is an id of gymnax without a prefix, such as 'CartPole-v1'."
            )
        return make_gymnax(env)
    is_pair = isinstance(env, tuple) and len(env) == 2 and hasattr(env[0], "step")
    for base in type(env[0] if is_pair else env).__mro__:
        package = base.__module__.partition(".")[0]
        if package in _PACKAGES and not isinstance(env, Environment):
            return _PACKAGES[package](env)
    if is_pair:
        return make_gymnax(env)
    if not isinstance(env, type):
        if isinstance(env, Environment):
            check_environment(env)
            return env
        if hasattr(env, "step") and hasattr(env, "default_params"):
            return make_gymnax(env)
        if hasattr(env, "step") and hasattr(env, "action_spec"):
            return make_jumanji(env)
        if hasattr(env, "step") and hasattr(env, "observation_space"):
            raise UsageTypeError(
                f"env is {describe_type(env)}, which has Gymnasium's form, and a batch "
                "needs several of them; write its id, as 'gymnasium/CartPole-v1', or "
                "trpo_jax.environments.GymnasiumEnvironment(function that makes it)."
            )
        if hasattr(env, "step") and hasattr(env, "action_size"):
            raise UsageTypeError(
                f"env is {describe_type(env)}, which has brax's form; write "
                "env=trpo_jax.environments.BraxEnvironment(env, episode_length=1000), "
                "without the wrappers of training: env.unwrapped has none."
            )
    if getattr(type(env), "__hash__", None) is None and hasattr(env, "reset"):
        raise UsageTypeError(
            f"env is a {type(env).__name__}, which is not hashable, as environments "
            "have to be; write @dataclass(eq=False), or a __hash__ method."
        )
    instance = f", as an instance {env.__name__}()" if isinstance(env, type) else ""
    raise UsageTypeError(
        f"env is {describe_type(env)}; write an id such as 'CartPole-v1', a gymnax "
        "pair (environment, params), or an object with reset, step, action_space and "
        f"observation_shape{instance} (trpo_jax.environments.Environment)."
    )


@cached
def _import(env: str) -> Any:
    """Return the object that "module:name" stands for, called if it can be."""
    module_name, _, name = env.partition(":")
    if not (module_name and name) or module_name.startswith("."):
        raise UsageError(f"env={env!r}; write a module and a name, as 'carts:Cart'.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UsageError(
            f"env={env!r}: there is no module {error.name}. Run python -m trpo_jax "
            "in the folder that holds it, or install it."
        ) from error
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, vars(module), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "write a name that it has."
        raise UsageError(f"env={env!r}: {module_name} has no {name!r}; {hint}")
    found = getattr(module, name)
    if isinstance(found, type) or inspect.isroutine(found):
        try:
            inspect.signature(found).bind()
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"env={env!r} cannot be made without arguments ({error}); write the "
                "name of a function that makes it without any."
            ) from error
        # Evaluated at once, even under a trace: environments may hold arrays.
        with jax.ensure_compile_time_eval():
            found = found()
    if isinstance(found, str):
        raise UsageError(f"env={env!r} is the string {found!r}; write that as env.")
    if is_on_host(found):
        raise UsageError(
            f"env={env!r} is stepped on the host; write its id, as "
            "'gymnasium/module:Name-v0', or pass it as an object."
        )
    return found
