"""Small policies with a nonlinear network, and batches for them, made by NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import reference
from compiling import fast_jit

from trpo_jax.trust_region import (
    Batch,
    Categorical,
    DiagonalGaussian,
    GSDEGaussian,
    MultiCategorical,
    TanhGaussian,
    mask_logits,
)

FEATURES, HIDDEN = 3, 4
OUTPUTS = {
    "categorical": 3,
    "multi_categorical": 5,
    "gaussian": 2,
    "masked": 3,
    "state_dependent": 4,
    "tanh": 2,
    "gsde": 2,
}
LOG_STDS = {"gaussian": (2,), "tanh": (2,), "gsde": (HIDDEN, 2)}
KINDS = ("categorical", "multi_categorical", "gaussian")
"""One of each family."""
ALL_KINDS = tuple(OUTPUTS)


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


def masked(params, observations):
    """The second of three actions is always allowed, the others by turns."""
    positive = observations[..., :3] > 0
    mask = positive | (jnp.arange(3) == 1)
    return Categorical(mask_logits(mlp(params, observations), mask))


def state_dependent(params, observations):
    mean, z = jnp.split(mlp(params, observations), 2, axis=-1)
    return DiagonalGaussian(mean, jnp.tanh(z))


def tanh(params, observations):
    return TanhGaussian(mlp(params, observations), params["log_std"])


def gsde(params, observations):
    hidden = jnp.tanh(observations @ params["hidden"] + params["bias"])
    return GSDEGaussian(hidden @ params["output"], hidden, params["log_std"])


POLICIES = {
    "categorical": categorical,
    "multi_categorical": multi_categorical,
    "gaussian": gaussian,
    "masked": masked,
    "state_dependent": state_dependent,
    "tanh": tanh,
    "gsde": gsde,
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
    if kind in LOG_STDS:
        params["log_std"] = rng.normal(scale=0.3, size=LOG_STDS[kind])
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)


def make_actions(kind, rng, size, dtype=np.float64):
    if kind == "categorical":
        return jnp.asarray(rng.integers(0, 3, size))
    if kind == "masked":
        return jnp.ones(size, int)  # which is always allowed
    if kind == "multi_categorical":
        return jnp.asarray(rng.integers(0, [2, 3], (size, 2)))
    return jnp.asarray(rng.normal(scale=2, size=(size, 2)), dtype)


def states(observations):
    """Return a batch of observations alone, of which operators of the KL are made."""
    return Batch(observations, None, None, None)


def make_batch(kind, rng, params, size, dtype=np.float64):
    """On-policy as far as the log-probabilities go, with random advantages."""
    observations = jnp.asarray(rng.normal(size=(size, FEATURES)), dtype)
    actions = make_actions(kind, rng, size, dtype)
    log_probs = log_prob(kind, params, observations, actions)
    advantages = jnp.asarray(rng.normal(size=size), dtype)
    return Batch(observations, actions, log_probs, advantages)


# Policies of the reference -----------------------------------------------------------


def linear_softmax(params, observations):
    return Categorical(observations @ params["weights"].T)


def linear_gaussian(params, observations):
    mean = observations @ params["weights"].T
    return DiagonalGaussian(mean, params["log_std"])


LINEAR = {"softmax": linear_softmax, "gaussian": linear_gaussian}


def linear_problem(kind, size, off_policy=0.0, advantage_scale=1.0):
    """A policy of the reference, its parameters, the way to ours, and a batch."""
    rng = np.random.default_rng(1)
    observations = rng.normal(size=(size, 2))
    if kind == "softmax":
        policy, flat = reference.LinearSoftmax(3), rng.normal(size=6)
        actions = rng.integers(0, 3, size)
    else:
        policy, flat = reference.LinearGaussian(2), rng.normal(scale=0.5, size=6)
        actions = rng.normal(size=(size, 2))

    def unravel(flat):
        if kind == "softmax":
            return {"weights": flat.reshape(3, 2)}
        return {"weights": flat[:4].reshape(2, 2), "log_std": flat[4:]}

    pairs = zip(observations, actions, strict=True)
    log_probs = np.array([policy.log_prob(flat, s, a) for s, a in pairs])
    log_probs += off_policy * rng.normal(size=size)
    advantages = advantage_scale * rng.normal(size=size)
    return policy, flat, unravel, Batch(observations, actions, log_probs, advantages)
