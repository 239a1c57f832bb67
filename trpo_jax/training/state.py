"""State of the training loop, and the policy and value functions bound to it."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from trpo_jax.errors import UsageError, UsageTypeError, array_types, differences
from trpo_jax.observations import Observation, values_of, with_values
from trpo_jax.training.batching import BatchedNetwork, BoundNetwork, init_params
from trpo_jax.training.compilation import jit_with_options
from trpo_jax.training.component_checks import check_critic, check_policy
from trpo_jax.training.components import Components, make_components
from trpo_jax.training.config import TRPOConfig, check_config
from trpo_jax.training.config_checks import MAX_COUNT
from trpo_jax.training.costs import CostState, init_costs
from trpo_jax.training.hyperparameters import Hyperparameters
from trpo_jax.training.keys import KeyLike, as_key
from trpo_jax.training.optimizers import make_optimizer
from trpo_jax.training.origin import Origin
from trpo_jax.training.placement import check_placed, place
from trpo_jax.training.policy_update import init_update
from trpo_jax.training.rollouts import ActFn, RolloutState, init_rollout
from trpo_jax.training.statistics import (
    RunningStatistics,
    denormalize,
    init_statistics,
    normalize,
)
from trpo_jax.training.values import ValueFn
from trpo_jax.trust_region import Distribution

PRECISION = "float32"
"""Precision of all matrix products, on devices that have several.

With one precision for acting and another for the update, the first probability ratio
would not be 1; and conjugate gradient loses conjugacy below float32.
"""

# Standard deviations beyond which a normalised observation is clipped, as in the
# reference implementations that Engstrom et al. 2020 (arXiv 2005.12729) examine.
_OBSERVATION_CLIP = 10.0


class TrainState(NamedTuple):
    """Everything that one step passes to the next.

    Attributes:
        params: Parameters of the policy, a pytree.
        update_state: What the policy update passes on, such as its optimiser's state,
            or the `Factors` of adaptive floats, a pytree; () for those that keep
            nothing.
        critic_params: Parameters of the critic, a pytree.
        critic_optimizer_state: State of the optimiser of a first-order fit, a pytree;
            () in a trust region.
        critic_memory: The critic's memory of the episodes so far, [num_envs, …],
            computed with the parameters of the time; () if it has none. The policy's
            memory is in `rollout`.
        observation_statistics: Running moments of the values of observations, a
            `RunningStatistics` in place of each leaf; None for a leaf that is not
            normalised.
        return_statistics: Running moments of returns, None if not normalised.
        reward_statistics: Running moments of discounted returns, None if rewards are
            not scaled.
        discounted_return: Discounted sum of rewards of the episodes so far,
            float[num_envs]; None likewise.
        costs: What updates that keep limits on costs pass on; None for the others.
        rollout: States of the environments, leaves [num_envs, …].
        hyperparameters: The traced floats, scalars.
        updates: Policy updates made, int32 scalar.
        key: Randomness for what follows, a typed key, scalar.
        origin: The config fields that the state was made from, without leaves.
    """

    params: PyTree
    update_state: PyTree
    critic_params: PyTree
    critic_optimizer_state: PyTree
    critic_memory: PyTree
    observation_statistics: PyTree
    return_statistics: RunningStatistics | None
    reward_statistics: RunningStatistics | None
    discounted_return: Float[Array, "*seeds B"] | None
    costs: CostState | None
    rollout: RolloutState
    hyperparameters: Hyperparameters
    updates: Int[Array, ""]
    key: Key[Array, ""]
    origin: Origin

    def with_hyperparameters_of(self, config: TRPOConfig) -> "TrainState":
        """Return this state with the floats of another config, to go on with it."""
        shape = self.updates.shape  # with an axis of seeds, if there are several
        return self._replace(
            hyperparameters=jax.tree.map(
                lambda value: jnp.full(shape, value, jnp.float32),
                config.hyperparameters,
            ),
            origin=self.origin.with_floats_of(Origin.of(config)),
        )

    def with_networks_of(self, trained: "TrainState") -> "TrainState":
        """Return this state with policy, critic and normalisers of a trained one.

        A warm start is `init(config, key).with_networks_of(trained)`. Environments,
        hyperparameters, key and number of updates remain those of this state, so that
        schedules start anew; so do optimisers, multipliers and critics of costs.

        Raises:
            UsageTypeError: If `trained` is not a `TrainState`.
            UsageError: If its seeds, observations, networks or normalisers are not
                those of this state; the message names both.
        """
        check_state(trained)
        different = trained.origin.network_differences(self.origin) or differences(
            learnt_types(trained), learnt_types(self)
        )
        if different:
            raise UsageError(
                "the networks of the trained state do not fit this one. What differs "
                f"(trained, this): {'; '.join(different)}. Make this one by init, with "
                "a config that has the values of the trained one."
            )
        return self._replace(**{name: getattr(trained, name) for name in LEARNT})


LEARNT = (
    "params",
    "critic_params",
    "observation_statistics",
    "return_statistics",
    "reward_statistics",
)
"""Fields of a `TrainState` that a warm start takes from another."""


def learnt_types(state: TrainState) -> dict[str, PyTree]:
    """Return the types of what a warm start takes, and of one observation."""
    learnt = {name: getattr(state, name) for name in LEARNT}
    return jax.tree.map(in_32_bits, {"observation": observation_type(state), **learnt})


def in_32_bits(leaf: Any) -> jax.ShapeDtypeStruct:
    """Return the type of an array, without the difference that `jax_enable_x64` makes.

    That of bytes and floats stays: bytes are scaled by the default networks.
    """
    dtype = np.dtype(leaf.dtype)
    if dtype.itemsize == 8 and dtype.kind in "fiu":
        dtype = np.dtype(f"{dtype.kind}4")
    return jax.ShapeDtypeStruct(leaf.shape, dtype)


def observation_type(state: TrainState) -> PyTree:
    """Return shape and dtype of the observation of one environment."""
    axes = len(state.updates.shape) + 1  # of seeds, if there are several
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[axes:], leaf.dtype),
        state.rollout.observation,
    )


def init(config: TRPOConfig, key: KeyLike) -> TrainState:
    """Return the initial state; consumes `key`.

    Args:
        config: Configuration of the run.
        key: `jax.random.key(0)`. Under `vmap` over keys: one run each.

    Returns:
        Fresh parameters and normalisers, and environments at the start of an episode.

    Raises:
        UsageTypeError: If `config` is not a `TRPOConfig`, `key` is not a key, the
            policy does not return a distribution, or a parameter is not floating.
        UsageError: If the environment is unknown or not supported, or the networks do
            not fit it.
    """
    check_config(config)
    return _init_program(config)(as_key(key))


def _init_program(config: TRPOConfig) -> jax.stages.Wrapped:
    """Return key ↦ the initial state, of which `train` and `step` share one trace."""
    return jit_with_options(_init, config, env_steps=0, inline=True)


def _init(config: TRPOConfig, key: Key[Array, ""]) -> TrainState:
    environment, policy, critic = make_components(config)
    rollout_key, policy_key, critic_key, key = jax.random.split(key, 4)
    rollout_state = init_rollout(
        environment,
        rollout_key,
        num_envs=config.num_envs,
        memory=policy.initial_memory(config.num_envs),
        staggered=config.staggered_starts,
    )
    hyperparameters = config.hyperparameters.as_float32()
    # Not normalised: the statistics are empty, and only shapes matter.
    params = init_params(policy, policy_key, rollout_state.observation)
    critic_params = init_params(critic, critic_key, rollout_state.observation)
    critic_memory = critic.initial_memory(config.num_envs)
    check_policy(policy, params, environment, rollout_state)
    check_critic(critic, critic_params, critic_memory, rollout_state)
    observation_statistics = _init_observation_statistics(
        config, rollout_state.observation
    )
    state = TrainState(
        params=params,
        update_state=init_update(config, params),
        critic_params=critic_params,
        critic_optimizer_state=_init_optimizer(config, critic_params),
        critic_memory=critic_memory,
        observation_statistics=observation_statistics,
        return_statistics=init_statistics(()) if config.normalize_returns else None,
        reward_statistics=init_statistics(()) if config.scale_rewards else None,
        discounted_return=jnp.zeros(config.num_envs) if config.scale_rewards else None,
        costs=_init_costs(config, critic, critic_key, rollout_state.observation),
        rollout=rollout_state,
        hyperparameters=hyperparameters,
        updates=jnp.int32(0),
        key=key,
        origin=Origin.of(config),
    )
    return place(config, state)


def _init_costs(
    config: TRPOConfig,
    critic: BatchedNetwork,
    key: Key[Array, ""],
    observations: Observation,
) -> CostState | None:
    """Return the state of the costs that have limits; None if none has."""
    if config.cost_limits is None:
        return None
    return init_costs(
        critic,
        jax.random.fold_in(key, 1),
        observations,
        num_costs=len(config.cost_limits),
        init_optimizer_fn=functools.partial(_init_optimizer, config),
        return_statistics=init_statistics(()) if config.normalize_returns else None,
    )


def _init_observation_statistics(
    config: TRPOConfig, observations: Observation
) -> PyTree:
    """Return statistics of no samples for each floating leaf, None for the others."""

    def init_leaf(leaf: Array) -> RunningStatistics | None:
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        normalized = config.normalize_observations and floating
        return init_statistics(leaf.shape[1:]) if normalized else None

    values = values_of(observations)
    statistics = jax.tree.map(init_leaf, values)
    if config.normalize_observations and not jax.tree.leaves(statistics):
        one = jax.tree.map(lambda leaf: leaf[0], values)
        raise UsageError(
            "normalize_observations=True is for floats, but the environment observes "
            f"{array_types(one)}; write False, or convert them in the environment."
        )
    return statistics


def _init_optimizer(config: TRPOConfig, critic_params: PyTree) -> PyTree:
    """Return the state of a first-order fit; a trust region has none."""
    if config.critic_fit == "trust_region":
        return ()
    if not jax.tree.leaves(critic_params):
        raise UsageError(
            "critic_fit='first_order' has nothing to fit: the critic has no "
            "parameters. Write critic_fit='trust_region', or another critic."
        )
    optimizer = make_optimizer(
        config.critic_optimizer, max_gradient_norm=config.critic_max_gradient_norm
    )
    return optimizer(jnp.float32(config.critic_learning_rate)).init(critic_params)


def check_state(state: TrainState) -> None:
    """Raise UsageTypeError unless `state` is a `TrainState`."""
    if not isinstance(state, TrainState):
        raise UsageTypeError(
            f"state is of type {type(state).__name__}; write the TrainState that init "
            "and step return, or result.state for the result of train."
        )


def check_made_from(config: TRPOConfig, state: TrainState) -> None:
    """Raise UsageError if a state was made from another config; name what differs."""
    check_state(state)
    if axes := jnp.shape(state.updates):
        raise UsageError(
            f"the state has the leading axes {axes}; write "
            "jax.vmap(step, (None, 0))(config, state), or index one of its seeds."
        )
    here = Origin.of(config)
    different = state.origin.differences(here) or _differing_shapes(config, state)
    if different:
        with_floats = state.origin.with_floats_of(here)
        only_floats = with_floats == here != state.origin
        raise UsageError(
            "the state was made from another config. What differs (state, config): "
            + "; ".join(different)
            + ". Write the config that it was made from"
            + (", or state.with_hyperparameters_of(config)." * only_floats or ".")
        )
    check_placed(config, state.key)
    updates = state.updates
    if not isinstance(updates, jax.core.Tracer) and np.asarray(updates) >= MAX_COUNT:
        raise UsageError(
            f"the state has made {updates} updates, the most that are counted: start a "
            "new run by init(config, key).with_networks_of(state)."
        )


def _differing_shapes(config: TRPOConfig, state: TrainState) -> list[str]:
    """Name arrays that do not fit environment, optimiser or networks of the config."""
    wanted = jax.eval_shape(_init_program(config), state.key)
    # They may have been replaced by Python numbers, whole ones among them.
    floats = state.hyperparameters.as_float32()
    state = state._replace(hyperparameters=floats)
    found, wanted = jax.tree.map(_in_single_precision, (state, wanted))
    return differences(found, wanted) or [
        # The same arrays in other containers, as of another optimiser.
        f"{name}: {array_types(here)} and {array_types(there)}"
        for name, here, there in zip(TrainState._fields, found, wanted, strict=True)
        if array_types(here) != array_types(there)
    ]


def _in_single_precision(leaf: Any) -> jax.ShapeDtypeStruct:
    """Return shape and dtype, floats of any precision as float32."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    floating = jnp.issubdtype(dtype, jnp.floating)
    return jax.ShapeDtypeStruct(np.shape(leaf), jnp.float32 if floating else dtype)


def observe(state: TrainState, observations: Observation) -> Observation:
    """Return observations as the networks see them, normalised or not."""

    def see(leaf: Array, statistics: RunningStatistics | None) -> Array:
        if statistics is None:
            return leaf
        return normalize(statistics, leaf, clip=_OBSERVATION_CLIP)

    values = values_of(observations)
    seen = jax.tree.map(see, values, state.observation_statistics)
    return with_values(observations, seen)


def make_act_fn(components: Components, state: TrainState) -> ActFn:
    """Return the policy of `state` as `rollout` takes it: it samples actions.

    Observations are as the environments give them: normalised here if need be.
    """
    policy = BoundNetwork(components.policy, state.params)

    def act(
        key: Key[Array, ""], memory: PyTree, observations: Observation, starts: Array
    ) -> tuple[PyTree, Array, Array]:
        def draw(distribution: Distribution) -> tuple[Array, Array]:
            action = distribution.sample(key)
            return action, distribution.log_prob(action)

        seen = observe(state, observations)
        memory, (action, log_prob) = policy.step(memory, seen, starts, draw)
        return memory, action, log_prob

    return act


def make_value_fn(
    components: Components, state: TrainState, *, micro_batch_size: int | None = None
) -> ValueFn:
    """Return the critic of `state` as `values_and_next` takes it, in units of return.

    Observations are as the environments give them: normalised here if need be.
    """
    critic = BoundNetwork(components.critic, state.critic_params)

    def evaluate(
        memory: PyTree, observations: Observation, starts: Array
    ) -> tuple[PyTree, Float[Array, "T B"]]:
        seen = observe(state, observations)
        memories, values = critic.unroll(
            memory, seen, starts, micro_batch_size=micro_batch_size
        )
        if state.return_statistics is not None:
            values = denormalize(state.return_statistics, values)
        return memories, values

    return evaluate
