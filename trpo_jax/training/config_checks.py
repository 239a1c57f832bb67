"""Checks of a configuration, before anything compiles.

Each raises UsageError or UsageTypeError, with what to write instead.
"""

import math
import numbers
from typing import Any

import jax
import numpy as np
import optax

from trpo_jax.errors import UsageError, UsageTypeError, describe_type
from trpo_jax.networks import ACTIVATIONS, Network, StateDependentGaussianHead
from trpo_jax.training.schedules import SCHEDULES

_SIZES = ("hidden_sizes", "channels")
_OR_NONE = ("critic_epochs", "critic_minibatches", "fisher_stride", "micro_batch_size")
COUNTS = (
    "total_timesteps",
    "num_envs",
    "rollout_length",
    "seed",
    "num_seeds",
    "convolution_stride",
    "memory_size",
    "noise_period",
    "cg_iterations",
    "max_backtracks",
    "line_search_width",
    *_SIZES,
    *_OR_NONE,
)
"""Fields that are whole numbers, tuples of them, or None."""

MAX_ENV_STEPS = 2**31 - 1
"""The steps that an int32 counts."""


def plain(value: Any) -> Any:
    """Return whole numbers as Python's ints, and lists or arrays of them as tuples.

    So equal configs are the same program and the same file, whether a count came as
    `1e6`, from an array or from a JSON file.
    """
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        value = np.asarray(value).tolist()
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def check_static(config: Any) -> None:
    """Raise UsageTypeError for a field that is traced, by name."""
    for name, value in vars(config).items():
        if isinstance(value, jax.core.Tracer):
            raise UsageTypeError(
                f"{name} is {describe_type(value)} that jit, vmap or grad traces, and "
                "a config is static; write a number or, for max_kl and the other "
                "floats of a run, train(config, hyperparameters="
                f"config.hyperparameters._replace({name}=...))."
            )


def check_counts(config: Any) -> None:
    """Check whole numbers, and that they fit one another."""
    for name in COUNTS:
        if name in _SIZES or (name in _OR_NONE and getattr(config, name) is None):
            continue
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise UsageTypeError(
                f"{name}={value!r} is not an int; write a whole number."
            )
        least = {"seed": 0, "memory_size": 0}.get(name, 1)
        if value < least:
            sign = "positive" if least == 1 else "zero or more"
            raise UsageError(f"{name}={value} is not {sign}; write at least {least}.")
    if config.seed >= 2**32:
        raise UsageError(f"seed={config.seed} has more than 32 bits; write 0 to 2³²−1.")
    for name in _SIZES:
        sizes = getattr(config, name)
        if not isinstance(sizes, tuple) or not all(
            isinstance(n, int) and not isinstance(n, bool) for n in sizes
        ):
            raise UsageTypeError(f"{name}={sizes!r}; write whole numbers, as (64, 64).")
        if any(size < 1 for size in sizes):
            raise UsageError(f"{name}={sizes} has a layer without units.")
    batch, total = config.batch_size, config.total_timesteps
    if batch > MAX_ENV_STEPS:
        raise UsageError(
            f"num_envs × rollout_length = {config.num_envs} × {config.rollout_length} "
            f"transitions are too many for one update; write at most {MAX_ENV_STEPS} "
            "together."
        )
    most = MAX_ENV_STEPS // batch * batch
    if total > most:
        raise UsageError(
            f"total_timesteps={total} is above the {most} steps that a run can count "
            f"(whole rollouts of {batch}, below 2³¹); write at most {most}."
        )
    rows, minibatches = config.critic_rows, config.critic_minibatches
    if minibatches and rows % minibatches:
        divisors = [n for n in range(1, rows + 1) if rows % n == 0]
        nearest = sorted(divisors, key=lambda n: abs(n - minibatches))[:2]
        raise UsageError(
            f"critic_minibatches={minibatches} does not divide the {rows} transitions "
            "of a rollout (num_envs × rollout_length), or its sequences (num_envs) "
            f"where the critic has a memory; write {' or '.join(map(str, nearest))}."
        )
    stride = config.fisher_stride
    if config.policy_has_memory:
        if stride and stride > config.num_envs:
            raise UsageError(
                f"fisher_stride={stride} is above the {config.num_envs} sequences "
                "(num_envs) of a policy with a memory; write fewer, or None."
            )
    elif stride and (stride > batch or math.gcd(stride, config.num_envs) > 1):
        raise UsageError(
            f"fisher_stride={stride} with num_envs={config.num_envs} would sample only "
            f"some of the environments; write one of at most {batch} that shares no "
            f"divisor with {config.num_envs}, as "
            f"{largest_coprime(min(stride, batch), config.num_envs)}, or None."
        )


FLOATS = ("backtrack_factor", "cg_tolerance", "initial_log_std")
"""Fields that are floats, and part of the program."""

FLAGS = ("normalize_observations", "normalize_returns")
"""Fields that are true or false."""


def check_fractions(config: Any) -> None:
    """Check floats, flags and choices."""
    for name in FLOATS:
        value = getattr(config, name)
        if not isinstance(value, numbers.Real):
            raise UsageTypeError(f"{name}={value!r} is not a number; write a float.")
    if not math.isfinite(config.initial_log_std):
        raise UsageError(
            f"initial_log_std={config.initial_log_std} is not finite; write 0.0."
        )
    for name in FLAGS:
        value = getattr(config, name)
        if not isinstance(value, bool):
            raise UsageTypeError(f"{name}={value!r}; write True or False.")
    if not 0 < config.backtrack_factor < 1:
        raise UsageError(
            f"backtrack_factor={config.backtrack_factor} is not between 0 and 1; "
            "write 0.5."
        )
    if not 0 <= config.cg_tolerance < 1:
        raise UsageError(
            f"cg_tolerance={config.cg_tolerance} is not in [0, 1); write 1e-5."
        )
    choices = {
        "step_size_curvature": ("undamped", "damped"),
        "fisher_operator": ("gauss_newton", "kl_hessian"),
        "activation": tuple(ACTIVATIONS),
        "action_distribution": (
            "gaussian",
            "state_dependent_gaussian",
            "gsde",
            "tanh_gaussian",
        ),
    }
    for name, allowed in choices.items():
        value = getattr(config, name)
        if value not in allowed:
            raise UsageError(f"{name}={value!r}; write one of {', '.join(allowed)}.")
    low, high = StateDependentGaussianHead.log_std_bounds
    if (
        config.action_distribution == "state_dependent_gaussian"
        and not low < config.initial_log_std < high
    ):
        raise UsageError(
            f"initial_log_std={config.initial_log_std} is not between the bounds of "
            f"log σ(s), {low} and {high}; write 0.0."
        )


def check_functions(config: Any) -> None:
    """Check networks, schedules and the optimiser."""
    for name in ("policy", "critic"):
        network = getattr(config, name)
        if network is None:
            continue
        # A recurrent network has the members of a network, too; a class has those of
        # its instances.
        if not isinstance(network, Network) or isinstance(network, type):
            raise UsageTypeError(
                f"{name} is {describe_type(network)}; write a Flax module (an instance "
                "of Linen or NNX), trpo_jax.networks.NNXNetwork(factory), "
                "trpo_jax.networks.NetworkFns(init, apply), or with a memory "
                "trpo_jax.networks.RecurrentNetworkFns(initial_memory, init, apply)."
            )
    for name in ("max_kl_schedule", "critic_learning_rate_schedule"):
        schedule = getattr(config, name)
        if schedule not in list(SCHEDULES) and not _is_schedule(schedule):
            raise UsageError(
                f"{name}={schedule!r}; write one of {', '.join(SCHEDULES)}, or "
                "an Optax schedule, as optax.linear_schedule(1.0, 0.0, num_updates)."
            )
    try:
        optimizer = config.optimizer(1e-3)
    except (AttributeError, TypeError):
        optimizer = None
    if not isinstance(optimizer, optax.GradientTransformation):
        raise UsageError(
            f"critic_optimizer={config.critic_optimizer!r} is not in Optax; write one "
            "of its names, as 'adam' or 'rmsprop', or a function of the learning rate "
            "that returns an Optax optimiser."
        )


def _is_schedule(schedule: Any) -> bool:
    """Return whether `schedule` maps an update to one number."""
    if not callable(schedule):
        return False
    try:
        factor = jax.eval_shape(schedule, jax.ShapeDtypeStruct((), np.int32))
    except TypeError:  # it takes other arguments, or does not return numbers
        return False
    return getattr(factor, "shape", None) == ()


def largest_coprime(most: int, other: int) -> int:
    """Return the largest number up to `most` that is coprime with `other`."""
    return next(n for n in range(most, 0, -1) if math.gcd(n, other) == 1)
