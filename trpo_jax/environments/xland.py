"""Adapter to XLand-MiniGrid: grid worlds, and benchmarks of rules and goals."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from trpo_jax.environments import suites
from trpo_jax.environments.protocol import Discrete, TimeStep
from trpo_jax.environments.restart import restarting
from trpo_jax.environments.varied import VariedEnvironment, make_with_params
from trpo_jax.errors import UsageError
from trpo_jax.extras import import_extra
from trpo_jax.observations import Observation


class XLandEnvironment:
    """An environment of XLand-MiniGrid that resets itself.

    The view of the grid, ids of tiles and colours, becomes one-hot, bool[H, W, 25]: 13
    tiles, 12 colours. Images of bytes stay as they are, and so do other entries of an
    observation.

    An episode that ends with discount 0 terminated: the goal is reached. One that ends
    with discount 1 was truncated, after `max_steps`. All is computed in 32 bits, also
    under `jax_enable_x64`.
    """

    @suites.single_precision
    def __init__(
        self,
        env: Any,
        env_params: Any = None,
        benchmark: Any = None,
        name: str | None = None,
    ):
        """Wrap `env`, which must not reset itself.

        Args:
            env: The environment, alone or in wrappers that change its observations;
                not in a `GymAutoResetWrapper` or a `DmEnvAutoResetWrapper`.
            env_params: Its parameters; its default ones if None.
            benchmark: An `xminigrid.benchmarks.Benchmark`; each episode has one of its
                rulesets, drawn uniformly. If None, the ruleset of `env_params`.
            name: Its name in messages; its class if None.

        Raises:
            UsageError: If `env` resets itself.
        """
        _check_resets(env)
        constants = import_extra("xminigrid.core.constants", extra="xland")
        self._num_ids = (constants.NUM_TILES, constants.NUM_COLORS)
        self._env = env
        if env_params is None:
            env_params = suites.default_params_of(env)
        self._params = env_params = suites.narrowed_params(env_params)
        self._digest = suites.digest(env_params, suites.default_params_of(env))
        self._benchmark = benchmark
        self.name = name or type(env).__name__
        self.action_space = Discrete(int(env.num_actions(env_params)))
        state, observation = jax.eval_shape(self.reset, jax.random.key(0))
        self._state_type = state
        self.observation_shape: PyTree = suites.shape_of(observation)
        self.num_costs = 0
        self._restart = restarting(self._start)

    def __repr__(self) -> str:
        return f"XLandEnvironment({self.name}{self._digest})"

    def reset(self, key: Key[Array, ""]) -> tuple[PyTree, Observation]:
        """Start an episode; consumes `key`. Returns (state, observation)."""
        return self._start(key, self._params)

    @suites.single_precision
    def step(
        self, key: Key[Array, ""], state: PyTree, action: Int[Array, ""]
    ) -> tuple[PyTree, TimeStep]:
        """Act once, starting the next episode if this one ends; consumes `key`."""
        # The ruleset of the episode is in its state.
        taken = self._env.step(self._params, state, suites.narrowed(action))
        taken = suites.strong_as(taken, self._state_type)
        ended = taken.last()
        terminated = ended & (taken.discount == 0)
        final_observation = self._observe(taken.observation)
        state, observation = self._restart(
            ended, key, (taken, final_observation), self._params
        )
        return state, TimeStep(
            observation=observation,
            reward=jnp.asarray(taken.reward, jnp.float32),
            terminated=terminated,
            truncated=ended & ~terminated,
            final_observation=final_observation,
        )

    @suites.single_precision
    def _start(self, key: Key[Array, ""], params: Any) -> tuple[PyTree, Observation]:
        if self._benchmark is not None:
            key, ruleset_key = jax.random.split(key)
            ruleset = self._benchmark.sample_ruleset(ruleset_key)
            params = params.replace(ruleset=ruleset)
        first = self._env.reset(params, key)
        return jax.tree.map(suites.strong, first), self._observe(first.observation)

    def _observe(self, observation: Any) -> Observation:
        if isinstance(observation, dict):
            image = self._observe(observation["img"])
            return suites.observed(observation) | {"img": image}
        if observation.shape[-1] == len(self._num_ids):
            return suites.one_hot_layers(observation, self._num_ids)
        return suites.observed(observation)


def make_xland(
    env: str | tuple[Any, Any] | Any, benchmark: str | None = None
) -> XLandEnvironment | VariedEnvironment:
    """Return an environment of XLand-MiniGrid by its id, from a pair, or an object.

    The same arguments give the same object, so that nothing compiles twice.

    Args:
        env: Its id in XLand-MiniGrid, such as "MiniGrid-Empty-5x5" or, with a
            benchmark, "XLand-MiniGrid-R1-9x9"; the two values that `xminigrid.make`
            returns; or the first of them, for its default parameters. Parameters with a
            leading axis [num_envs], all or some, such as rulesets, make a
            `VariedEnvironment`.
        benchmark: With an id, the name of the rulesets that episodes are drawn from,
            such as "trivial-21k"; XLand-MiniGrid downloads them once.

    Raises:
        UsageError: If XLand-MiniGrid is not installed, has no such environment or
            benchmark (the message names the nearest) or cannot download it, or if the
            environment has no goal without a benchmark, or takes none; or parameters do
            not fit, see `make_with_params`.
    """
    if isinstance(env, str):
        return _make_by_id(env, benchmark)
    return _wrap(suites.ById(env if isinstance(env, tuple) else (env,)))


@suites.made_once
def _make_by_id(name: str, benchmark: str | None) -> XLandEnvironment:
    xminigrid = import_extra("xminigrid", extra="xland")
    known = xminigrid.registered_environments()
    suites.check_known(name, known, "xland", "For your own write env=(env, params).")
    env, env_params = xminigrid.make(name)
    full_name = f"xland/{name}"
    takes_rulesets = hasattr(env_params, "ruleset")
    if benchmark is None and takes_rulesets:
        raise UsageError(
            f"{full_name} has no goal without a ruleset. Draw one for each episode by "
            f"'{full_name}/trivial-21k', or write env=(env, params.replace(ruleset="
            "ruleset)), where env and params are the two values of xminigrid.make."
        )
    if benchmark is None:
        return XLandEnvironment(env, env_params, name=full_name)
    if not takes_rulesets:
        raise UsageError(
            f"{full_name} has a goal of its own and takes no rulesets. Write "
            f"{full_name!r}, or an environment whose name begins with XLand."
        )
    advice = (
        "For your own write env=trpo_jax.environments.XLandEnvironment(env, params, "
        "benchmark)."
    )
    known = xminigrid.registered_benchmarks()
    suites.check_known(benchmark, known, "xland", advice, kind="benchmark")
    try:
        rulesets = xminigrid.load_benchmark(benchmark)
    except OSError as error:
        suites.refuse_download(f"The benchmark {benchmark}", error)
    return XLandEnvironment(env, env_params, rulesets, f"{full_name}/{benchmark}")


@suites.made_once
def _wrap(objects: suites.ById) -> XLandEnvironment | VariedEnvironment:
    return make_with_params(XLandEnvironment, *objects)


def _check_resets(env: Any) -> None:
    while env is not None:
        if type(env).__name__.endswith("AutoResetWrapper"):
            raise UsageError(
                f"env is in a {type(env).__name__}, which replaces the last "
                "observation of an episode; leave it out: the adapter starts the next "
                "episode."
            )
        env = getattr(env, "_env", None)
