"""Return of a policy with uniform actions, as a baseline for learning."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import trpo_jax
from trpo_jax.environments import ActionSpace, MaskedObservation


def random_return(config: trpo_jax.TRPOConfig, num_episodes: int) -> float:
    """Return the mean return of uniform actions in the environment of a run."""
    space = trpo_jax.environments.make_environment(config.env).action_space
    policy = trpo_jax.networks.NetworkFns(
        init=lambda key, observations: (),
        apply=lambda params, observations: uniform(space, observations),
    )
    # `evaluate` needs a state, of which it reads the policy alone.
    config = trpo_jax.TRPOConfig(
        env=config.env, num_envs=1, hidden_sizes=(1,), policy=policy, seed=config.seed
    )
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    state = jax.jit(trpo_jax.init)(config, key)
    returns = trpo_jax.evaluate(config, state, key, num_episodes, actions="sample")
    return float(returns.mean())


def uniform(space: ActionSpace, observations: Any) -> Any:
    """Return the uniform distribution over the allowed actions, with batch [N].

    Args:
        space: The action space.
        observations: float[N, ...], or a `MaskedObservation` with batch [N].
    """
    batch = jax.tree.leaves(observations)[0].shape[0]
    if isinstance(space, trpo_jax.environments.Box):
        if space.low is None or space.high is None:  # then standard normal
            zeros = jnp.zeros((batch, space.size))
            return trpo_jax.trust_region.DiagonalGaussian(zeros, zeros)
        bounds = jnp.array(space.low), jnp.array(space.high)
        return Uniform(*(jnp.tile(bound, (batch, 1)) for bound in bounds))
    one = isinstance(space, trpo_jax.environments.Discrete)
    sizes = np.atleast_1d(space.num_actions)
    logits = jnp.zeros((batch, sizes.sum()))
    if isinstance(observations, MaskedObservation):
        logits = jnp.where(observations.action_mask, logits, -1e9)
    parts = jnp.split(logits, np.cumsum(sizes)[:-1], axis=-1)
    factors = tuple(map(trpo_jax.trust_region.Categorical, parts))
    return factors[0] if one else trpo_jax.trust_region.MultiCategorical(factors)


class Uniform(NamedTuple):
    """Uniform distribution between bounds, arrays [N, D]."""

    low: jax.Array
    high: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        return jax.random.uniform(
            key, self.low.shape, minval=self.low, maxval=self.high
        )

    def mode(self) -> jax.Array:
        return (self.low + self.high) / 2

    def log_prob(self, actions: jax.Array) -> jax.Array:
        return -self.entropy()

    def entropy(self) -> jax.Array:
        return jnp.log(self.high - self.low).sum(axis=-1)

    def kl_divergence(self, other: "Uniform") -> jax.Array:
        return jnp.zeros(len(self.low))
