import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from probes import CHAIN, TABULAR, Toll

from trpo_jax import TRPOConfig, train
from trpo_jax.environments import CostEnvironment
from trpo_jax.training.config_checks import CONSTRAINED, UPDATES, UPDATES_OF_FIELDS

pytestmark = pytest.mark.usefixtures("no_shape_checks")

SMALL = {"num_envs": 4, "rollout_length": 6, "total_timesteps": 48}
FIRST_ORDER = {"critic_fit": "first_order"}
PPO = {"update": "ppo"}


def mesh_with(*axes):
    return jax.make_mesh((1,) * len(axes), axes)


@pytest.mark.parametrize(
    ("field", "value", "error", "advice"),
    [
        ("total_timesteps", 2**36, ValueError, "write at most 51539607528, or a la"),
        ("total_timesteps", "1M", TypeError, "write a whole number"),
        ("num_envs", 2**31, ValueError, "too many for one update"),
        ("num_seeds", 1.5, TypeError, "write a whole number"),
        ("num_envs", True, TypeError, "write a whole number"),
        ("seed", 0.5, TypeError, "write a whole number"),
        ("hidden_sizes", 64, TypeError, "write whole numbers, as (64, 64)"),
        (
            "hidden_sizes",
            (8.5,),
            TypeError,
            "hidden_sizes[0] is the float 8.5",
        ),
        (
            "hidden_sizes",
            (8, 0),
            ValueError,
            "hidden_sizes[1]=0 is not positive",
        ),
        ("channels", (0,), ValueError, "channels[0]=0 is not positive"),
        ("memory_size", -1, ValueError, "write at least 0"),
        ("preconditioner_groups", 25, ValueError, "above the 24 transitions"),
        ("memory_size", 8.5, TypeError, "write a whole number"),
        ("action_distribution", "laplace", ValueError, "write one of gaussian, state_"),
        *(
            (stride, value, ValueError, advice)
            for stride in ("fisher_stride", "critic_stride")
            for value, advice in (
                (7, "above the 6 steps of each environment"),
                (24, "write at most 6, or None"),
            )
        ),
        ("backtrack_factor", 0.0, ValueError, "write 0.5"),
        ("backtrack_factor", 1.0, ValueError, "write 0.5"),
        ("cg_tolerance", -1e-5, ValueError, "write 1e-5"),
        ("cg_tolerance", float("nan"), ValueError, "write 1e-5"),
        ("backtrack_factor", "0.5", TypeError, "write a float"),
        ("initial_log_std", float("inf"), ValueError, "write 0.0"),
        ("normalize_observations", 1, TypeError, "write True or False"),
        ("normalize_returns", "yes", TypeError, "write True or False"),
        ("step_size_curvature", "short", ValueError, "write one of undamped, damped"),
        ("activation", "sigmoidal", ValueError, "write one of elu, gelu, relu"),
        ("policy", lambda observations: observations, TypeError, "write a Flax module"),
        ("critic", "mlp", TypeError, "write a Flax module"),
        ("max_kl_schedule", "exponential", ValueError, "write one of constant, linear"),
        ("max_kl_schedule", 0.5, ValueError, "an Optax schedule"),
        ("max_kl_schedule", None, ValueError, "an Optax schedule"),
        ("critic_fit", "adam", ValueError, "write one of trust_region, first_order"),
        ("critic_fit", None, ValueError, "write one of trust_region, first_order"),
        ("env", 7, TypeError, "write an id such as 'CartPole-v1'"),
    ],
)
def test_a_bad_field_is_refused_with_advice(field, value, error, advice):
    with pytest.raises(error, match=re.escape(advice)):
        TRPOConfig(**{**SMALL, field: value})


@pytest.mark.parametrize(
    ("field", "value", "advice"),
    [
        ("critic_minibatches", 5, "does not divide the 24 transitions"),
        ("critic_learning_rate_schedule", [1.0], "an Optax schedule"),
        ("critic_optimizer", "adamant", "as 'adam' or 'rmsprop'"),
        ("critic_optimizer", "huber_loss", "as 'adam' or 'rmsprop'"),
        ("critic_optimizer", 1e-3, "as 'adam' or 'rmsprop'"),
    ],
)
def test_a_bad_field_of_a_first_order_fit_is_refused(field, value, advice):
    with pytest.raises(ValueError, match=re.escape(advice)):
        TRPOConfig(**SMALL, **FIRST_ORDER, **{field: value})


OF_ONE_FIT = {
    "trust_region": {
        "critic_max_kl": 0.5,
        "critic_damping": 0.5,
        "critic_cg_iterations": 3,
        "critic_stride": 3,
    },
    "first_order": {
        "critic_epochs": 3,
        "critic_minibatches": 3,
        "critic_optimizer": optax.sgd,
        "critic_learning_rate": 0.1,
        "critic_learning_rate_schedule": "linear",
        "critic_max_gradient_norm": 0.5,
        "critic_value_clipping": 0.2,
    },
}
"""By fit, the fields that only it reads, with values other than the defaults."""


@pytest.mark.parametrize(
    ("fit", "name"), [(fit, name) for fit in OF_ONE_FIT for name in OF_ONE_FIT[fit]]
)
def test_a_field_that_the_fit_would_ignore_is_refused(fit, name):
    (other,) = OF_ONE_FIT.keys() - {fit}
    value = OF_ONE_FIT[fit][name]
    default = getattr(TRPOConfig(), name)
    advice = (
        f"for critic_fit={fit!r}; write that as well, or leave {name} at {default!r}"
    )
    with pytest.raises(ValueError, match=re.escape(advice)):
        TRPOConfig(**SMALL, critic_fit=other, **{name: value})
    TRPOConfig(**SMALL, critic_fit=fit, **{name: value})
    TRPOConfig(**SMALL, critic_fit=other, **{name: default})


def test_every_field_of_the_critics_fit_is_of_one_fit():
    fields = {field.name for field in dataclasses.fields(TRPOConfig)}
    of_one_fit = {name for fields in OF_ONE_FIT.values() for name in fields}
    assert {name for name in fields if name.startswith("critic_")} == of_one_fit | {
        "critic_fit",
        "critic_observation",
    }
    for fit, values in OF_ONE_FIT.items():
        TRPOConfig(**SMALL, critic_fit=fit, **values)


def test_a_config_that_was_told_its_fit_goes_over_to_the_other():
    config = TRPOConfig(**SMALL, **FIRST_ORDER, critic_epochs=3)
    with pytest.raises(ValueError, match="critic_epochs=3 is for critic_fit='first_or"):
        dataclasses.replace(config, critic_fit="trust_region")
    other = dataclasses.replace(config, critic_fit="trust_region", critic_epochs=None)
    assert other == TRPOConfig(**SMALL)


LIMITED = SMALL | {"env": Toll(), "cost_limits": (1.0, 2.0)}
"""Fields that an update with limits needs."""

OF_UPDATES = {
    "line_search": ("backtracking", ("trpo", *CONSTRAINED)),
    "max_backtracks": (3, ("trpo", *CONSTRAINED)),
    "backtrack_factor": (0.7, ("trpo", *CONSTRAINED)),
    "line_search_width": (2, ("trpo", *CONSTRAINED)),
    "step_size_curvature": (
        "damped",
        ("trpo", "tnpg", "trpo_lagrangian", "trpo_pid", "crpo"),
    ),
    "damping_schedule": ("adaptive", ("trpo", "tnpg", "npg")),
    "cost_correction": (0.0, ("cpo", "pcpo")),
    "cost_discount": (1, CONSTRAINED),
    "cost_gae_lambda": (0.5, CONSTRAINED),
    "multiplier_learning_rate": (0.3, ("trpo_lagrangian", "trpo_pid")),
    "multiplier_proportional_gain": (0.3, ("trpo_pid",)),
    "multiplier_derivative_gain": (0.3, ("trpo_pid",)),
    **{
        name: (value, ("trpo", "tnpg", "npg", *CONSTRAINED))
        for name, value in {
            "damping": 0.5,
            "fisher_operator": "kl_hessian",
            "cg_iterations": 3,
            "preconditioner_groups": 2,
            "fisher_stride": 2,
        }.items()
    },
    "natural_step_size": (0.5, ("npg",)),
    **{
        name: (value, ("ppo", "ppo_penalty", "projection"))
        for name, value in {
            "policy_epochs": 3,
            "policy_minibatches": 3,
            "policy_optimizer": "sgd",
            "policy_learning_rate": 0.1,
            "policy_learning_rate_schedule": "linear",
            "policy_max_gradient_norm": 0.5,
        }.items()
    },
    "clip_ratio": (0.1, ("ppo",)),
    "kl_coefficient": (3.0, ("ppo_penalty",)),
}
"""By field, a value other than the default, and the updates that read it."""


def test_every_field_of_some_updates_is_listed_with_them():
    # Read by a fit, too; needs another one.
    others = {"cg_tolerance", "preconditioner", "cost_limits"}
    assert OF_UPDATES.keys() == UPDATES_OF_FIELDS.keys() - others
    for name, (_, readers) in OF_UPDATES.items():
        assert UPDATES_OF_FIELDS[name] == readers


@pytest.mark.parametrize("name", OF_UPDATES)
def test_a_field_that_the_update_would_ignore_is_refused(name):
    value, readers = OF_UPDATES[name]
    for update in UPDATES:
        keeps = update in CONSTRAINED
        base = LIMITED if keeps else SMALL
        if update in readers:
            TRPOConfig(**base, update=update, **{name: value})
            continue
        named = [one for one in readers if (one in CONSTRAINED) == keeps]
        advice = f"is for update={' or '.join(map(repr, named or readers))}; "
        advice += "write that as well, or leave" if named or not keeps else "leave"
        with pytest.raises(ValueError, match=re.escape(advice)):
            TRPOConfig(**base, update=update, **{name: value})
        default = getattr(TRPOConfig(), name)
        TRPOConfig(**base, update=update, **{name: default})


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (
            {"cost_limits": None},
            TypeError,
            r"cost_limits=None; write the limit",
        ),
        ({"cost_limits": ()}, TypeError, r"cost_limits=\(\); write the limit of each"),
        (
            {"cost_limits": (1.0,)},
            ValueError,
            "1 of the 2 limits .* write one",
        ),
        ({"cost_limits": (1, 2, 3)}, ValueError, "3 of the 2 limits"),
        ({"cost_limits": (-1.0, 2.0)}, ValueError, "-1 is not 0 or more and finite"),
        ({"cost_limits": (np.inf, 2.0)}, ValueError, "inf is not 0 or more"),
        ({"cost_limits": (np.nan, 2.0)}, ValueError, "nan is not 0 or more"),
        ({"cost_limits": ("a", 2.0)}, TypeError, "'a' is not a number"),
        ({"cost_discount": "1"}, TypeError, "'1' is not a number; write a float, or N"),
        ({"cost_discount": 1.5}, ValueError, "1.5 is not in .* or None for that of"),
        ({"cost_gae_lambda": np.nan}, ValueError, "nan is not in .*; write 0.95, or"),
        (
            {"env": "CartPole-v1"},
            ValueError,
            "has no costs; write update='trpo' and cost_limits=None, or",
        ),
        ({"cost_limits": (1e39, 2.0)}, ValueError, "and 9+[0-9]* is not .* in float32"),
        ({"cost_limits": (10**400, 2)}, ValueError, "is not .* in float32"),
        (
            {"max_kl_schedule": "adaptive"},
            ValueError,
            "update='cpo'; write max_kl_schedule='constant'.$",
        ),
        (
            {"step_size_curvature": "damped"},
            ValueError,
            r"is for update='trpo_lagrangian' .*; write that as well, or leave",
        ),
        ({"update": "trpo"}, ValueError, r"is for update='cpo' or 'pcpo' .*; write"),
        ({"update": "ppo"}, ValueError, r"is for update='cpo' or 'pcpo' .*; write"),
    ],
)
@pytest.mark.usefixtures("no_shape_checks")
def test_limits_that_do_not_fit_are_refused(fields, error, message):
    with pytest.raises(error, match=message):
        TRPOConfig(**LIMITED | {"update": "cpo"} | fields)


@pytest.mark.usefixtures("no_shape_checks")
def test_more_limits_than_the_quadratic_program_takes_are_refused():
    env = CostEnvironment("CartPole-v1", lambda s, a, after: jnp.ones(9))
    with pytest.raises(ValueError, match=r"at most 8 limits; .*trpo_pid"):
        TRPOConfig(**SMALL | {"env": env}, update="cpo", cost_limits=(1.0,) * 9)
    TRPOConfig(**SMALL | {"env": env}, update="trpo_pid", cost_limits=(1.0,) * 9)


@pytest.mark.usefixtures("no_shape_checks")
def test_limits_in_any_form_are_floats():
    for limits in ((1, 2), [1, 2], np.array([1.0, 2.0]), jnp.array([1, 2])):
        config = TRPOConfig(**LIMITED | {"update": "cpo", "cost_limits": limits})
        assert config.cost_limits == (1.0, 2.0)
        assert all(type(limit) is float for limit in config.cost_limits)
    one = CostEnvironment("CartPole-v1", lambda state, action, after: action)
    config = TRPOConfig(**SMALL | {"env": one}, update="crpo", cost_limits=3)
    assert config.cost_limits == (3.0,)


def test_a_field_that_update_and_fit_read_is_refused_where_neither_does():
    TRPOConfig(**SMALL, update="ppo", cg_tolerance=1e-3)
    TRPOConfig(**SMALL, **FIRST_ORDER, cg_tolerance=1e-3)
    advice = "update='trpo' or 'tnpg' or 'npg' or critic_fit='trust_region'; write"
    with pytest.raises(ValueError, match=f"cg_tolerance=0.001 is for {advice}"):
        TRPOConfig(**SMALL, **FIRST_ORDER, update="ppo", cg_tolerance=1e-3)


def stay(policy_fn, params, batch, key, hyperparameters):
    return params


def test_an_update_of_ones_own_may_read_every_float():
    config = TRPOConfig(
        **SMALL,
        update=stay,
        damping=0.5,
        clip_ratio=0.1,
        policy_learning_rate=0.1,
        policy_learning_rate_schedule="linear",
    )
    assert config.update is stay
    with pytest.raises(ValueError, match="cg_iterations=3 is for update='trpo' or"):
        TRPOConfig(**SMALL, update=stay, cg_iterations=3)


@pytest.mark.parametrize("update", [lambda params, batch: params, lambda: None])
def test_an_update_that_takes_other_arguments_is_refused(update):
    advice = r"a function \(policy_fn, params, batch, key, hyperparameters\) ↦ params"
    with pytest.raises(TypeError, match=f"update is the .*; write {advice}"):
        TRPOConfig(**SMALL, update=update)
    TRPOConfig(**SMALL, update=stay)


@pytest.mark.parametrize("update", ["PPO", "trpl", None, ["ppo"], 3])
def test_an_unknown_update_is_refused_with_those_there_are(update):
    with pytest.raises(ValueError, match="write one of trpo, tnpg, npg, ") as raised:
        TRPOConfig(**SMALL, update=update)
    assert all(f"{name}, " in str(raised.value) for name in UPDATES)


@pytest.mark.parametrize("value", [0, -4])
@pytest.mark.parametrize(
    "field",
    [
        "total_timesteps",
        "num_envs",
        "rollout_length",
        "num_seeds",
        "cg_iterations",
        "fisher_stride",
        "critic_cg_iterations",
        "critic_stride",
        "max_backtracks",
        "line_search_width",
        "convolution_stride",
        "noise_period",
        "critic_epochs",
        "critic_minibatches",
        "micro_batch_size",
    ],
)
def test_a_count_below_one_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}={value} .*write at least [01]"):
        TRPOConfig(**{**SMALL, field: value})


def test_numbers_are_whole_whatever_type_they_have(no_shape_checks):
    config = TRPOConfig(
        num_envs=np.int64(4),
        rollout_length=6.0,
        total_timesteps=np.float32(1e6),
        hidden_sizes=[np.int32(8), 16],
        memory_size=0.0,
        seed=np.uint8(3),
    )
    assert config == TRPOConfig(
        num_envs=4,
        rollout_length=6,
        total_timesteps=1_000_000,
        hidden_sizes=(8, 16),
        seed=3,
    )
    counts = (config.num_envs, config.rollout_length, config.total_timesteps)
    assert {type(value) for value in (*counts, *config.hidden_sizes)} == {int}


@pytest.mark.parametrize(
    ("fields", "advice", "values"),
    [
        ({"total_timesteps": 2**36}, "write at most 51539607528", [51539607528]),
        ({"num_envs": 2**31}, "write at most 2147483647 together", [2147483647 // 6]),
        ({"critic_minibatches": 5, **FIRST_ORDER}, "write 4 or 6", [4, 6]),
        ({"critic_minibatches": 100, **FIRST_ORDER}, "write 24 or 12", [24, 12]),
        ({"fisher_stride": 7}, "write at most 6, or None", [6, 4, None]),
        ({"critic_stride": 1000}, "write at most 6, or None", [6, None]),
        (
            {"critic_stride": 5, "memory_size": 3},
            "critic_stride=5 is above the 4 sequences",
            [4, 2, None],
        ),
        ({"devices": 3}, "num_envs=4; write num_envs=3 or 6, or devices=2", [2, 1]),
        ({"devices": 8}, "write num_envs=8, or devices=4", [4, None]),
        ({"devices": 16, "num_seeds": 2}, "num_envs=8, or devices=8", [8, 4]),
        ({"devices": True}, "write a number of devices, a jax.sharding.Mesh", [1]),
        ({"devices": "all"}, "or None for all", [None]),
        ({"devices": 0}, "write at least 1", [1]),
        (
            {"devices": mesh_with("data", "model")},
            "write one with 'environments', as jax.make_mesh((1,), ('environments',))",
            [mesh_with("environments"), mesh_with("environments", "agents")],
        ),
        ({"cg_iterations": 0}, "write at least 1", [1]),
        ({"memory_size": -1}, "write at least 0", [0]),
        ({"memory": "lstm"}, "write one of gru, lru", ["gru"]),
        ({"memory": "lru"}, "write memory_size=64, or memory='gru'", ["gru"]),
        ({"memory_size": 0, "memory": "lru"}, "write memory_size=64, or", [64]),
        ({"backtrack_factor": 1.0}, "write 0.5", [0.5]),
        ({"cg_tolerance": 2.0}, "write 1e-5", [1e-5]),
        ({"initial_log_std": float("inf")}, "write 0.0", [0.0]),
        ({"max_kl": -1.0}, "a finite number above 0", [0.01]),
        ({"max_kl": 1e-46}, "above 0 (on the device it is 0.0)", [1e-30]),
        ({"max_kl": 1e39}, "above 0 (on the device it is inf)", [1e3]),
        ({"damping": 10**400}, "0 or more (on the device it is inf)", [0, 10**3]),
        ({"discount": 2.0}, "write one in [0, 1]", [0, 1, 0.99]),
        ({"damping": -1.0}, "0 or more", [0, 0.1]),
        ({"max_kl_schedule": "exp"}, "constant, linear, cosine", ["linear", "cosine"]),
        ({"max_kl_schedule": "exp"}, "cosine, adaptive, or", ["adaptive"]),
        (
            {"max_kl_schedule": "adaptive", "update": "npg"},
            "is for update='trpo' or 'tnpg'",
            ["constant"],
        ),
        (
            {"update": "ppo", "max_kl_schedule": "adaptive"},
            "or one of these updates",
            ["trpo", "tnpg"],
        ),
        ({"damping_schedule": "linear"}, "constant, adaptive", ["adaptive"]),
        (
            {"damping_schedule": "adaptive", "damping": 0.0},
            "write damping=0.1",
            ["constant"],
        ),
        ({"damping": 0, "damping_schedule": "adaptive"}, "write damping=0.1", [0.1]),
        (
            {"preconditioner": "kronecker"},
            "write preconditioner_groups=32, or preconditioner='score'",
            ["score"],
        ),
        (
            {"preconditioner_groups": 0, "preconditioner": "diagonal"},
            "write preconditioner_groups=32",
            [8],
        ),
        ({"critic_max_kl": 0.0}, "a finite number above 0", [0.2]),
        ({"critic_damping": -1.0}, "0 or more", [0, 0.1]),
        ({"clip_ratio": 0.0, **PPO}, "a finite number above 0", [0.2]),
        ({"policy_minibatches": 5, **PPO}, "write 4 or 6", [4, 6]),
        (
            {"policy_max_gradient_norm": -0.5, **PPO},
            "write 0.5, or 0 for none",
            [0.5, 0],
        ),
        (
            {"critic_max_gradient_norm": float("inf"), **FIRST_ORDER},
            "write 0.5, or 0 for none",
            [0.5, 0],
        ),
        (
            {"critic_value_clipping": -1.0, **FIRST_ORDER},
            "write 0.2, or 0 for none",
            [0.2, 0],
        ),
        ({"natural_step_size": 0.0, "update": "npg"}, "a finite number above 0", [1]),
        (
            {"policy_optimizer": "adamm", **PPO},
            "as 'adam' or 'rmsprop'",
            ["adam", "rmsprop"],
        ),
        (
            {"initialization": "he"},
            "write one of orthogonal, xavier_uniform, lecun_normal",
            ["xavier_uniform", "lecun_normal"],
        ),
        (
            {"critic_optimizer": "x", **FIRST_ORDER},
            "as 'adam' or 'rmsprop'",
            ["adam", "rmsprop"],
        ),
        (
            {"critic_fit": "adam"},
            "write one of trust_region, first_order",
            ["trust_region", "first_order"],
        ),
    ],
)
def test_advice_that_is_followed_is_accepted(fields, advice, values, no_shape_checks):
    name = next(iter(fields))
    with pytest.raises((ValueError, TypeError), match=re.escape(advice)):
        TRPOConfig(**{**SMALL, **fields})
    for value in values:
        TRPOConfig(**{**SMALL, **fields, name: value})


def test_a_run_may_have_more_steps_than_32_bits_count(no_shape_checks):
    config = TRPOConfig(num_envs=100, rollout_length=100, total_timesteps=1e10 + 1)
    assert config.num_updates == 10**6 + 1
    assert config.total_timesteps == config.all_env_steps == 10**10 + 10**4
    # Advised on where there are too many updates.
    TRPOConfig(**{**SMALL, "total_timesteps": 2**36, "num_envs": 8})


@pytest.mark.parametrize("array", [np.array, jnp.array])
def test_arrays_without_an_axis_are_numbers(array, no_shape_checks):
    config = TRPOConfig(
        num_envs=array(4),
        rollout_length=array(6.0),
        hidden_sizes=array([8, 16]),
        backtrack_factor=array(0.5),
        max_kl=array(0.25),
        normalize_observations=array(True),
        micro_batch_size=array(2),
    )
    expected = TRPOConfig(
        num_envs=4,
        rollout_length=6,
        hidden_sizes=(8, 16),
        max_kl=0.25,
        normalize_observations=True,
        micro_batch_size=2,
    )
    assert config == expected
    assert repr(config) == repr(expected)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad])
@pytest.mark.parametrize("name", ["max_kl", "num_envs", "backtrack_factor", "env"])
def test_a_traced_field_is_named_without_jaxs_insides(name, transform, no_shape_checks):
    def make(x):
        TRPOConfig(**{**SMALL, name: x})
        return jnp.sum(x)

    x = jnp.ones(2) if transform is jax.vmap else 1.0
    with pytest.raises(TypeError, match=rf"{name} is an array float32\[\] .*static"):
        transform(make)(x)


def test_traced_floats_are_passed_as_advised(no_shape_checks):
    config = TRPOConfig(env=(TABULAR, CHAIN), **SMALL)

    def swept(max_kl):
        floats = config.hyperparameters._replace(max_kl=max_kl)
        return train(config, hyperparameters=floats).metrics.max_kl

    types = jax.eval_shape(jax.vmap(swept), jnp.array([0.01, 0.02]))
    assert types.shape == (2, 2)
    with pytest.raises(TypeError, match=r"max_kl is an array float32\[2\]; write"):
        jax.jit(swept)(jnp.array([0.01, 0.02]))


@pytest.mark.parametrize(
    "schedule",
    [
        lambda: 1.0,
        lambda update: "linear",
        lambda update: jnp.ones(2),
        lambda update: None,
        print,
    ],
)
@pytest.mark.parametrize(
    "name",
    [
        "max_kl_schedule",
        "entropy_coefficient_schedule",
        "critic_learning_rate_schedule",
    ],
)
def test_a_schedule_of_ones_own_is_called_before_the_run(
    name, schedule, no_shape_checks
):
    fields = {**SMALL, "critic_fit": "first_order"}
    with pytest.raises(ValueError, match="or an Optax schedule"):
        TRPOConfig(**{**fields, name: schedule})
    for followed in (optax.linear_schedule(1.0, 0.0, 2), lambda update: 0.5):
        TRPOConfig(**{**fields, name: followed})
