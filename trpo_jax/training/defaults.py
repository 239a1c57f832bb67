"""Defaults that depend on the batch and the device, for fields that are None."""

from typing import NamedTuple

import jax

from trpo_jax.training.config import TRPOConfig

# The paper takes a tenth of the states (appendix C). On CartPole, Acrobot and Pendulum,
# over 16 seeds, two hundred of a thousand states ended as well as all of them.
_MAX_STRIDE = 10
_MIN_FISHER_STATES = 200

# The fastest of 1,024 … 16,384 with 64 × 64 units: the gradient of 131,072 rows takes
# half as long as all at once, because a micro-batch fits into the cache.
_CPU_MICRO_BATCH = 8192

# On CartPole and Acrobot ten epochs learn faster than four from 1,024 transitions, and
# no faster from 8,192.
_CRITIC_EPOCHS = (4, 10)
_CRITIC_ROWS = 20_480
_MINIBATCHES = {"policy": 4, "critic": 8}


class Sizes(NamedTuple):
    """Six fields of a config, by their own names, with None resolved.

    Only `micro_batch_size` may stay None, on an accelerator, where it means all rows.
    """

    fisher_stride: int
    critic_stride: int
    micro_batch_size: int | None
    critic_epochs: int
    critic_minibatches: int
    policy_minibatches: int


def resolve_sizes(config: TRPOConfig) -> Sizes:
    """Return the sizes in the config, or defaults that fit its batch and the device."""
    micro_batch_size = config.micro_batch_size
    epochs = config.critic_epochs
    most = max(1, min(_MAX_STRIDE, config.batch_size // _MIN_FISHER_STATES))
    stride = min(most, config.rollout_length)
    if micro_batch_size is None and jax.default_backend() == "cpu":
        micro_batch_size = _CPU_MICRO_BATCH
    if epochs is None:
        fewest, most = _CRITIC_EPOCHS
        epochs = min(max(_CRITIC_ROWS // config.batch_size, fewest), most)
    return Sizes(
        config.fisher_stride or (1 if config.policy_has_memory else stride),
        config.critic_stride or (1 if config.critic_has_memory else stride),
        micro_batch_size,
        epochs,
        config.critic_minibatches or _divisor(config.critic_rows, "critic"),
        config.policy_minibatches or _divisor(config.policy_rows, "policy"),
    )


def _divisor(rows: int, network: str) -> int:
    """Return the usual number of minibatches, or the next below that divides."""
    return next(n for n in range(_MINIBATCHES[network], 0, -1) if rows % n == 0)
