"""The networks of a run, and whether they fit its environment."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from trpo_jax.environments import Box, Discrete, Environment, MultiDiscrete
from trpo_jax.networks import (
    ACTIVATIONS,
    CategoricalPolicy,
    GaussianPolicy,
    MultiCategoricalPolicy,
    Network,
    Value,
)
from trpo_jax.training.config import TRPOConfig
from trpo_jax.trust_region import Distribution


def make_networks(
    config: TRPOConfig, environment: Environment
) -> tuple[Network, Network]:
    """Return policy and critic: the config's own, or MLPs that fit the spaces."""
    activation = ACTIVATIONS[config.activation]
    sizes = config.hidden_sizes
    policy = config.policy
    if policy is None:
        space = environment.action_space
        match space:
            case Discrete(num_actions):
                policy = CategoricalPolicy(num_actions, sizes, activation)
            case MultiDiscrete(num_actions):
                policy = MultiCategoricalPolicy(num_actions, sizes, activation)
            case Box(size):
                log_std = config.initial_log_std
                policy = GaussianPolicy(size, sizes, activation, log_std)
    return policy, config.critic or Value(sizes, activation)


def check_policy(
    policy: Network,
    params: PyTree,
    environment: Environment,
    observations: Float[Array, "B ..."],
) -> None:
    """Raise unless the policy's actions are what the environment takes."""

    def sample(params: PyTree) -> Array:
        distribution = policy.apply(params, observations)
        if not isinstance(distribution, Distribution):
            raise TypeError(
                f"the policy returned {type(distribution).__name__}, which is not a "
                "distribution; return trpo_jax.Categorical(logits), "
                "trpo_jax.DiagonalGaussian(mean, log_std) or one like them."
            )
        return distribution.sample(jax.random.key(0))

    actions = jax.eval_shape(sample, params)
    space = environment.action_space
    kind = "real floating" if isinstance(space, Box) else "integral"
    match space:
        case Box(size):
            event_shape: tuple[int, ...] = (size,)
        case MultiDiscrete(num_actions):
            event_shape = (len(num_actions),)
        case _:
            event_shape = ()
    if actions.shape[1:] != event_shape or not jnp.isdtype(actions.dtype, kind):
        raise ValueError(
            f"the policy draws actions {actions.dtype}{list(actions.shape[1:])}, but "
            f"the environment takes {space}: {kind} {list(event_shape)}. Write a "
            "policy whose distribution has those."
        )
