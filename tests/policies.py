"""Small policies with a nonlinear network, and batches for them, made by NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from compiling import fast_jit

from trpo_jax import Batch, Categorical, DiagonalGaussian, MultiCategorical

FEATURES, HIDDEN = 3, 4
OUTPUTS = {"categorical": 3, "multi_categorical": 5, "gaussian": 2}
KINDS = tuple(OUTPUTS)


def mlp(params, observations):
    hidden = jnp.tanh(observations @ params["hidden"] + params["bias"])
    return hidden @ params["output"]


def categorical(params, observations):
    return Categorical(mlp(params, observations))


def multi_categorical(params, observations):
    """Two choices in the first dimension, three in the second."""
    logits = mlp(params, observations)
    return MultiCategorical(
        (Categorical(logits[..., :2]), Categorical(logits[..., 2:]))
    )


def gaussian(params, observations):
    return DiagonalGaussian(mlp(params, observations), params["log_std"])


POLICIES = {
    "categorical": categorical,
    "multi_categorical": multi_categorical,
    "gaussian": gaussian,
}


@partial(fast_jit, static_argnames="kind")
def log_prob(kind, params, observations, actions):
    return POLICIES[kind](params, observations).log_prob(actions)


def make_params(kind, rng, dtype=np.float64):
    params = {
        "hidden": rng.normal(size=(FEATURES, HIDDEN)),
        "bias": rng.normal(size=HIDDEN),
        "output": rng.normal(size=(HIDDEN, OUTPUTS[kind])),
    }
    if kind == "gaussian":
        params["log_std"] = rng.normal(scale=0.3, size=OUTPUTS[kind])
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)


def make_actions(kind, rng, size, dtype=np.float64):
    if kind == "categorical":
        return jnp.asarray(rng.integers(0, 3, size))
    if kind == "multi_categorical":
        return jnp.asarray(rng.integers(0, [2, 3], (size, 2)))
    return jnp.asarray(rng.normal(scale=2, size=(size, 2)), dtype)


def make_batch(kind, rng, params, size, dtype=np.float64):
    """On-policy as far as the log-probabilities go, with random advantages."""
    observations = jnp.asarray(rng.normal(size=(size, FEATURES)), dtype)
    actions = make_actions(kind, rng, size, dtype)
    log_probs = log_prob(kind, params, observations, actions)
    advantages = jnp.asarray(rng.normal(size=size), dtype)
    return Batch(observations, actions, log_probs, advantages)
