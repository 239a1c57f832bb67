"""Whatever the batch: the old parameters bit for bit, or every condition satisfied.

The conditions are recomputed by NumPy, in double precision, from the parameters that
came back. Each example of Hypothesis is a batch of many problems for one compiled
function.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import policies
import pytest
import reference
from compiling import fast_jit
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from trpo_jax import UpdateStatus
from trpo_jax.trust_region import (
    Batch,
    gauss_newton_vector_product,
    trust_region_update,
)

LANES = 32
# Policy, transitions in a batch, precision.
VARIANTS = [
    ("categorical", 8, "float32"),
    ("gaussian", 8, "float32"),
    ("multi_categorical", 5, "float64"),
    ("gaussian", 3, "float64"),
]


def _update(kind, params, batch, knobs):
    def one(params, batch, knobs):
        def operator_fn(*problem):
            product = gauss_newton_vector_product(*problem)
            return lambda vector: optax.tree.scale(knobs["curvature"], product(vector))

        return trust_region_update(
            policies.POLICIES[kind],
            params,
            batch,
            max_kl=knobs["max_kl"],
            damping=knobs["damping"],
            max_backtracks=4,
            operator_fn=operator_fn,
        )

    return jax.vmap(one)(params, batch, knobs)


update = fast_jit(_update, static_argnames="kind")


# Random problems ---------------------------------------------------------------------


settings_of_problems = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "advantage_exponent": st.floats(-30, 30),
        "noise_exponent": st.floats(-4, 1.5),
        "max_kl_exponent": st.floats(-7, 1),
        "damping_exponent": st.floats(-8, 3),
        "spoilt": st.sampled_from([0.0, 0.1, 0.5]),
        "strange": st.booleans(),
    }
)


def random_problems(kind, size, settings):
    """Parameters, batches and knobs with a leading axis of lanes, in NumPy."""
    rng = np.random.default_rng(settings["seed"])

    def powers(exponent, *shape):
        return 10.0 ** (exponent + rng.uniform(-1, 1, (LANES, *shape)))

    def normal(*shape):
        return rng.normal(size=(LANES, *shape))

    outputs = policies.OUTPUTS[kind]
    params = {
        "hidden": normal(policies.FEATURES, policies.HIDDEN),
        "bias": normal(policies.HIDDEN),
        "output": normal(policies.HIDDEN, outputs) * powers(-0.5, 1, 1),
    }
    # A negative zero is not, bit for bit, what adding a step of zero makes of it.
    params["bias"][:, 0] = -0.0
    if kind == "gaussian":
        params["log_std"] = normal(outputs)
        actions = normal(size, outputs) * powers(0, 1, 1)
    elif kind == "categorical":
        actions = rng.integers(0, outputs, (LANES, size))
    else:
        actions = rng.integers(0, [2, 3], (LANES, size, 2))
    observations = normal(size, policies.FEATURES) * powers(-0.5, 1, 1)
    advantages = normal(size) * powers(settings["advantage_exponent"], 1)
    advantages[rng.random(LANES) < 0.05] = 0
    log_probs = log_prob(kind, params, observations, actions)
    log_probs += normal(size) * powers(settings["noise_exponent"], 1)
    fields = [observations, advantages, log_probs]
    for lane in np.flatnonzero(rng.random(LANES) < settings["spoilt"]):
        field = fields[rng.integers(len(fields))][lane]
        field.flat[rng.integers(field.size)] = rng.choice([np.nan, np.inf, -np.inf])
    knobs = {
        "max_kl": powers(settings["max_kl_exponent"]),
        "damping": powers(settings["damping_exponent"]) * (rng.random(LANES) < 0.8),
        "curvature": np.ones(LANES),
    }
    if settings["strange"]:
        knobs["curvature"] = rng.choice([1, -1, 0, np.nan, 1e-4, 1e4], LANES)
        knobs["max_kl"] *= rng.choice([1, 1, 1, 1, 0, -1, np.nan], LANES)
    return params, Batch(observations, actions, log_probs, advantages), knobs


def cast(tree, dtype):
    def cast_leaf(leaf):
        return leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf

    with np.errstate(over="ignore"):
        return jax.tree.map(cast_leaf, tree)


# The conditions, by NumPy ------------------------------------------------------------


def forward(kind, params, observations):
    """Arguments of the reference's distributions: one tuple for each factor."""
    outputs = np.tanh(observations @ params["hidden"] + params["bias"][:, None])
    outputs = outputs @ params["output"]
    if kind == "gaussian":
        return [(outputs, params["log_std"][:, None])]
    if kind == "categorical":
        return [(outputs,)]
    return [(outputs[..., :2],), (outputs[..., 2:],)]


def log_prob(kind, params, observations, actions):
    factors = forward(kind, params, observations)
    if kind == "gaussian":
        return reference.gaussian_log_prob(*factors[0], actions)
    columns = [actions] if kind == "categorical" else np.moveaxis(actions, -1, 0)
    pairs = zip(factors, columns, strict=True)
    return sum(reference.categorical_log_prob(*f, column) for f, column in pairs)


def mean_kl(kind, old_params, new_params, observations):
    kl = {"gaussian": reference.gaussian_kl}.get(kind, reference.categorical_kl)
    old, new = (forward(kind, p, observations) for p in (old_params, new_params))
    return np.mean(sum(kl(*o, *n) for o, n in zip(old, new, strict=True)), axis=-1)


def rounding(kind, params, observations, eps):
    """A bound on what rounding may do to a network's output, in its own scale."""
    inside = np.abs(observations) @ np.abs(params["hidden"])
    inside = np.max(inside + np.abs(params["bias"])[:, None], axis=(1, 2))
    outside = np.max(np.sum(np.abs(params["output"]), axis=1), axis=1)
    scale = np.exp(-params["log_std"]).max(axis=1) if kind == "gaussian" else 1.0
    return 16 * eps * (1 + inside) * (1 + outside) * scale


def assert_every_condition(kind, old, new, batch, max_kl, eps):
    assert all(np.all(np.isfinite(leaf)) for leaf in new.values())
    both = old, new
    blur = np.maximum(*(rounding(kind, p, batch.observations, eps) for p in both))
    logs = [log_prob(kind, p, batch.observations, batch.actions) for p in both]
    size_of_logs = 1 + sum(map(np.abs, (*logs, batch.log_probs)))

    kl = mean_kl(kind, old, new, batch.observations)
    allowed = max_kl * (1 + 1e3 * eps) + 16 * eps * size_of_logs.max(axis=1)
    assert np.all(np.sqrt(np.maximum(kl, 0)) <= np.sqrt(allowed) + blur)

    before, after = (np.exp(log - batch.log_probs) * batch.advantages for log in logs)
    relative = 4 * blur[:, None] * np.sqrt(size_of_logs) + 16 * eps * size_of_logs
    slack = np.mean((np.abs(before) + np.abs(after)) * relative, axis=1)
    assert np.all(np.mean(after, axis=1) >= np.mean(before, axis=1) - slack)


def check(kind, size, dtype, settings):
    """Run one batch of problems, assert the contract, and return its statuses."""
    old, batch, knobs = cast(random_problems(kind, size, settings), dtype)
    with jax.enable_x64(dtype == "float64"):
        problems = jax.tree.map(jnp.asarray, (old, batch, knobs))
        new, info = jax.tree.map(np.asarray, update(kind, *problems))
    accepted = info.status == UpdateStatus.ACCEPTED
    np.testing.assert_array_equal(info.accepted_fraction > 0, accepted)
    np.testing.assert_array_equal(info.step_size[accepted] > 0, True)
    for name in old:
        assert new[name].dtype == dtype
        same = new[name].view(np.uint8) == old[name].view(np.uint8)
        assert np.all(same.reshape(LANES, -1).all(axis=1) | accepted)
    for evidence in (info.kl, info.kl_max, info.kl_predicted, info.accepted_fraction):
        assert np.all(evidence[~accepted] == 0)

    old, new, batch, knobs = (
        cast(jax.tree.map(lambda leaf: leaf[accepted], tree), "float64")
        for tree in (old, new, batch, knobs)
    )
    for field in (batch.observations, batch.log_probs, batch.advantages):
        assert np.all(np.isfinite(field))
    eps = np.finfo(dtype).eps
    assert_every_condition(kind, old, new, batch, knobs["max_kl"], eps)
    return info.status


# Reproducible, and without shrinking: what fails is a lane of one seed's batch.
exhaustive = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize(("kind", "size", "dtype"), VARIANTS)
@settings(exhaustive, max_examples=90)
@given(problems=settings_of_problems)
def test_old_parameters_or_every_condition(kind, size, dtype, problems):
    check(kind, size, dtype, problems)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kind", "size", "dtype"), VARIANTS)
@settings(exhaustive, max_examples=2_000)
@given(problems=settings_of_problems)
def test_soak(kind, size, dtype, problems):
    check(kind, size, dtype, problems)


@pytest.mark.parametrize(("kind", "size", "dtype"), VARIANTS)
def test_the_problems_reach_every_outcome(kind, size, dtype):
    rng = np.random.default_rng(0)
    statuses = [
        check(
            kind,
            size,
            dtype,
            {
                "seed": seed,
                "advantage_exponent": 0.0,
                "noise_exponent": -2.0,
                "max_kl_exponent": rng.choice([-2.0, 1.0]),
                "damping_exponent": -2.0,
                "spoilt": 0.1,
                "strange": seed % 2 == 0,
            },
        )
        for seed in range(12)
    ]
    of_limits = {UpdateStatus.COST_EXCEEDED}
    assert set(np.concatenate(statuses)) == {*map(int, UpdateStatus)} - of_limits
    assert 0.3 < np.mean(np.concatenate(statuses) == UpdateStatus.ACCEPTED) < 0.9
