"""Training throughput on this machine."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from trpo_jax.errors import UsageError
from trpo_jax.runs.chunks import compile_programs, run_chunks
from trpo_jax.runs.folder import system_info
from trpo_jax.training.config import TRPOConfig, check_config
from trpo_jax.training.seeds import run_keys


def measure_throughput(config: TRPOConfig, *, seconds: float = 5.0) -> dict[str, Any]:
    """Train for some seconds, and return the throughput.

    Args:
        config: The run.
        seconds: Duration; at least two chunks of updates are made.

    Returns:
        `compile_seconds`; the median `steps_per_second` of the chunks after the first
        quarter, environment steps of all seeds together, and the quartiles as
        `steps_per_second_spread`; `seconds_per_update`; versions and device.

    Raises:
        UsageError: If `seconds` is less than 0.1.
    """
    check_config(config)
    if not seconds >= 0.1:
        raise UsageError(f"seconds={seconds} is too short to measure; write 5.")
    # Without schedules: what is measured must not depend on how long it is measured.
    config = dataclasses.replace(
        config,
        max_kl_schedule="constant",
        entropy_coefficient_schedule="constant",
        policy_learning_rate_schedule="constant",
        critic_learning_rate_schedule="constant",
    )
    start = time.perf_counter()
    programs = compile_programs(config)
    compiled = time.perf_counter() - start
    state = jax.block_until_ready(programs.init(run_keys(config)))
    end = time.perf_counter() + seconds
    chunks = run_chunks(
        programs,
        state,
        first=0,
        last=2**31 - 1,
        stop_fn=lambda: time.perf_counter() > end,
    )
    per_update = [chunk.seconds / len(chunk.metrics.updates) for chunk in chunks]
    # The first chunks are short, and no chunk is in flight before the first.
    settled = np.array(per_update[len(per_update) // 4 :])
    steps = config.num_seeds * config.batch_size
    low, middle, high = np.quantile(steps / settled, [0.25, 0.5, 0.75])
    return {
        "env": str(config.env),
        "num_envs": config.num_envs,
        "rollout_length": config.rollout_length,
        "num_seeds": config.num_seeds,
        "compile_seconds": round(compiled, 2),
        "steps_per_second": round(middle, 1),
        "steps_per_second_spread": [round(low, 1), round(high, 1)],
        "seconds_per_update": round(float(steps / middle), 6),
        **system_info(),
    }
