"""Return of a policy with uniform actions, as a baseline for learning."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import trpo_jax
from trpo_jax.environments import ActionSpace, MaskedObservation


def random_return(config: trpo_jax.TRPOConfig, num_episodes: int) -> float:
    """Return the mean return of uniform actions in the environment of a run."""
    space = trpo_jax.environments.make_environment(config.env).action_space
    # `evaluate` needs a state. Its parameters are not used: the networks are minimal.
    small = trpo_jax.TRPOConfig(env=config.env, num_envs=1, hidden_sizes=(1,))
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    state = jax.jit(trpo_jax.init)(small, key)
    policy = trpo_jax.networks.NetworkFns(
        init=lambda key, observations: (),
        apply=lambda params, observations: uniform(space, observations),
    )
    acting = dataclasses.replace(small, policy=policy)
    returns = trpo_jax.evaluate(acting, state, key, num_episodes, actions="sample")
    return float(returns.mean())


def uniform(space: ActionSpace, observations: Any) -> Any:
    """Return the uniform distribution over the allowed actions, with batch [N].

    Args:
        space: The action space.
        observations: float[N, ...], or a `MaskedObservation` with batch [N].
    """
    batch = jax.tree.leaves(observations)[0].shape[0]
    if isinstance(space, trpo_jax.environments.Box):
        return Uniform(space, batch)
    one = isinstance(space, trpo_jax.environments.Discrete)
    sizes = np.atleast_1d(space.num_actions)
    logits = jnp.zeros((batch, sizes.sum()))
    if isinstance(observations, MaskedObservation):
        logits = jnp.where(observations.action_mask, logits, -1e9)
    parts = jnp.split(logits, np.cumsum(sizes)[:-1], axis=-1)
    factors = tuple(map(trpo_jax.trust_region.Categorical, parts))
    return factors[0] if one else trpo_jax.trust_region.MultiCategorical(factors)


class Uniform:
    """Uniform distribution between bounds; it can be sampled, and no more.

    Without bounds, actions are drawn from the standard normal distribution.
    """

    def __init__(self, space: trpo_jax.environments.Box, batch: int):
        self._space, self._batch = space, batch

    def sample(self, key: jax.Array) -> jax.Array:
        shape = (self._batch, self._space.size)
        low, high = self._space.low, self._space.high
        if low is None or high is None:
            return jax.random.normal(key, shape)
        return jax.random.uniform(
            key, shape, minval=jnp.array(low), maxval=jnp.array(high)
        )
