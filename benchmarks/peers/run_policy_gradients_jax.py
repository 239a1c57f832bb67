"""PolicyGradientsJax's TRPO on CartPole; prints one JSON line.

    python run_policy_gradients_jax.py steps CHECKOUT

Its `main` reports nothing while it trains. The speed is computed from the difference
between a short and a longer run, which excludes compilation.
"""

import contextlib
import io
import json
import sys
import time

NUM_ENVS, UNROLL = 2, 512


def seconds_of(trpo, updates: int) -> float:
    trpo.Config.total_timesteps = NUM_ENVS * UNROLL * updates
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        trpo.main(None)
    return time.perf_counter() - start


def steps(checkout: str) -> dict:
    sys.path.insert(0, checkout)
    import trpo

    settings = {
        "env_id": "CartPole-v1",
        "num_envs": NUM_ENVS,
        "unroll_length": UNROLL,
        "eval_env": False,
        "normalize_observations": False,
        "normalize_rewards": False,
        "num_minibatches": 2,
        "update_epochs": 20,
        "gae_lambda": 0.98,
        "cg_damping": 1e-3,
        "cg_max_iterations": 15,
        "policy_hidden_layer_sizes": (64, 64),
        "value_hidden_layer_sizes": (64, 64),
        "write_logs_to_file": False,
    }
    for name, value in settings.items():
        setattr(trpo.Config, name, value)
    short, long = 8, 40
    seconds = seconds_of(trpo, long) - seconds_of(trpo, short)
    return {"steps_per_second": NUM_ENVS * UNROLL * (long - short) / seconds}


if __name__ == "__main__":
    print(json.dumps({"steps": steps}[sys.argv[1]](*sys.argv[2:])))
