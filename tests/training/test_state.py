"""A state and the config that it is stepped with are of one run."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import fast_jit
from probes import CHAIN, NUM_STATES, TABULAR, Tabular, make_tables

from trpo_jax import Hyperparameters, TRPOConfig, UpdateStatus, init, step, train
from trpo_jax.networks import MLP, Value
from trpo_jax.training.components import make_components
from trpo_jax.training.schedules import make_schedule
from trpo_jax.training.state import LEARNT, make_act_fn

CONFIG = TRPOConfig(
    env=(TABULAR, CHAIN),
    num_envs=4,
    rollout_length=6,
    total_timesteps=48,
    hidden_sizes=(4,),
)


@pytest.fixture(scope="module")
def start():
    return fast_jit(init)(CONFIG, jax.random.key(0))


def test_hyperparameters_may_be_replaced_by_whole_numbers(start, no_shape_checks):
    hyperparameters = CONFIG.hyperparameters._replace(discount=1)
    state = start._replace(hyperparameters=hyperparameters)
    following, _ = fast_jit(step)(CONFIG, state)
    assert following.updates == 1


def flat_adabelief(learning_rate):
    """Has the arrays of Adam, under another name."""
    return optax.flatten(optax.adabelief(learning_rate))


@pytest.mark.parametrize(
    ("fields", "difference"),
    [
        ({"num_envs": 8}, "num_envs: 4 and 8"),
        ({"max_kl": 0.5}, "max_kl: 0.01 and 0.5"),
        ({"discount": 0.5, "damping": 0.2}, "damping: 0.1 and 0.2; discount: 0.99 and"),
        ({"hidden_sizes": (4, 4)}, "hidden_sizes: (4,) and (4, 4)"),
        ({"activation": "relu"}, "activation: 'tanh' and 'relu'"),
        ({"memory_size": 3}, "memory_size: 0 and 3"),
        ({"memory_size": 3, "memory": "lru"}, "memory: 'gru' and 'lru'"),
        ({"normalize_observations": True}, "normalize_observations: False and True"),
        ({"normalize_returns": True}, "normalize_returns: False and True"),
        ({"critic_fit": "first_order"}, "critic_fit: 'trust_region' and 'first_order'"),
        ({"critic_max_kl": 0.5}, "critic_max_kl: 0.2 and 0.5"),
        ({"critic": Value(MLP((3,)))}, "kernel: float32[3, 4] and float32[3, 3]"),
        (
            {"env": "CartPole-v1"},
            "observation: float32[4, 3] and float32[4, 4]",
        ),
    ],
)
@pytest.mark.parametrize("jit", [False, True])
def test_a_state_of_another_config_is_refused_and_what_differs_is_named(
    start, fields, difference, jit
):
    config = dataclasses.replace(CONFIG, **fields)
    with pytest.raises(ValueError, match=re.escape(difference)) as raised:
        (jax.jit(step) if jit else step)(config, start)
    only_floats = fields.keys() <= set(Hyperparameters._fields)
    assert ("with_hyperparameters_of" in str(raised.value)) == only_floats


@pytest.mark.parametrize(
    ("optimizer", "difference"),
    [
        ("rmsprop", "critic_optimizer_state.0.count: int32[]"),
        (optax.sgd, "critic_optimizer_state.0.count: int32[]"),
        (flat_adabelief, "critic_optimizer_state: ("),
    ],
)
@pytest.mark.parametrize("jit", [False, True])
def test_a_state_of_another_optimizer_is_refused(optimizer, difference, jit):
    config = dataclasses.replace(CONFIG, critic_fit="first_order")
    state = fast_jit(init)(config, jax.random.key(0))
    other = dataclasses.replace(config, critic_optimizer=optimizer)
    with pytest.raises(ValueError, match=re.escape(difference)):
        (jax.jit(step) if jit else step)(other, state)


def test_fields_that_no_state_depends_on_may_change(start):
    config = dataclasses.replace(
        CONFIG,
        rollout_length=4,
        cg_iterations=3,
        seed=7,
        num_seeds=2,
        critic_cg_iterations=3,
        critic_stride=3,
    )
    jax.eval_shape(step, config, start)


def test_other_floats_are_taken_over_as_the_advice_says(start):
    config = dataclasses.replace(CONFIG, max_kl=0.02)
    with pytest.raises(ValueError, match=r"state\.with_hyperparameters_of"):
        step(config, start)
    _, metrics = fast_jit(step)(config, start.with_hyperparameters_of(config))
    assert metrics.max_kl == np.float32(0.02)


def test_the_state_of_a_whole_run_goes_on_with_its_own_config():
    """`train` shares a program between configs of other floats; the state is theirs."""
    config = dataclasses.replace(CONFIG, max_kl=0.02)
    state = train(config).state
    _, metrics = fast_jit(step)(config, state)
    assert metrics.max_kl == np.float32(0.02)
    with pytest.raises(ValueError, match=r"max_kl: 0.02 and 0.01"):
        step(CONFIG, state)


def test_hyperparameters_replaced_in_a_state_are_what_counts(start):
    """A sweep replaces them by traced ones, which no config knows."""

    def max_kl(value):
        floats = start.hyperparameters._replace(max_kl=value)
        return step(CONFIG, start._replace(hyperparameters=floats))[1].max_kl

    values = jnp.array([0.1, 0.2])
    np.testing.assert_array_equal(fast_jit(jax.vmap(max_kl))(values), values)


WITH_NORMALISERS = dataclasses.replace(
    CONFIG, normalize_observations=True, normalize_returns=True
)
WIDER = make_tables(np.zeros((NUM_STATES, 3)), features=CHAIN.features)


@pytest.fixture(scope="module")
def trained():
    return train(WITH_NORMALISERS).state


def test_a_warm_start_has_the_networks_of_one_state_and_the_rest_of_another(trained):
    config = dataclasses.replace(WITH_NORMALISERS, num_envs=3, max_kl=0.02)
    start = fast_jit(init)(config, jax.random.key(1))
    state = fast_jit(lambda start: start.with_networks_of(trained))(start)
    assert state.origin == start.origin
    for name in state._fields:
        source = trained if name in LEARNT else start
        pairs = zip(
            jax.tree.leaves(getattr(state, name)),
            jax.tree.leaves(getattr(source, name)),
            strict=True,
        )
        assert all(jnp.all(one == other) for one, other in pairs), name


def test_the_first_ratio_of_a_warm_start_is_one(trained):
    start = fast_jit(init)(WITH_NORMALISERS, jax.random.key(1))

    @fast_jit
    def act(state):
        act_fn = make_act_fn(make_components(WITH_NORMALISERS), state)
        seen = (start.rollout.observation, jnp.ones(4, bool))
        return act_fn(jax.random.key(2), (), *seen)[1:]

    actions, log_probs = act(start.with_networks_of(trained))
    expected, old_log_probs = act(trained)
    np.testing.assert_array_equal(actions, expected)
    np.testing.assert_array_equal(jnp.exp(log_probs - old_log_probs), 1)
    assert not jnp.any(act(start)[1] == old_log_probs)


@pytest.mark.parametrize(
    ("fields", "difference"),
    [
        ({"hidden_sizes": (5,)}, "hidden_sizes: (4,) and (5,)"),
        ({"normalize_returns": False}, "normalize_returns: True and False"),
        ({"critic": Value(MLP((3,)))}, "kernel: float32[3, 4] and float32[3, 3]"),
        ({"env": (Tabular(3), WIDER)}, "action_space: Discrete(num_actions=2) and"),
        ({"env": "CartPole-v1"}, "observation: float32[3] and float32[4]"),
    ],
)
def test_networks_that_do_not_fit_are_refused_by_both(trained, fields, difference):
    config = dataclasses.replace(WITH_NORMALISERS, **fields)
    state = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    with pytest.raises(ValueError, match=re.escape(difference)):
        jax.eval_shape(lambda state: state.with_networks_of(trained), state)


@pytest.mark.usefixtures("no_shape_checks")
def test_only_a_state_has_networks_to_start_with(trained):
    with pytest.raises(TypeError, match=r"result\.state for the result of train"):
        trained.with_networks_of(trained.params)


def test_counted_updates_end_where_an_int32_does_and_never_wrap(start):
    last = 2**31 - 1
    state = start._replace(updates=jnp.int32(last - 1))
    after, metrics = fast_jit(step)(CONFIG, state)
    assert after.updates == metrics.updates == last
    assert metrics.env_steps == last * CONFIG.batch_size
    after, metrics = fast_jit(step)(CONFIG, after)
    assert after.updates == metrics.updates == last
    with pytest.raises(ValueError, match=r"2147483647 updates, .* start a new run"):
        step(CONFIG, after)


@pytest.mark.parametrize(
    "schedule", ["linear", "cosine", optax.linear_schedule(1, 0, 2)]
)
def test_a_schedule_holds_its_last_value_after_the_last_update(schedule):
    config = dataclasses.replace(
        CONFIG,
        max_kl_schedule=schedule,
        critic_fit="first_order",
        critic_learning_rate_schedule=schedule,
    )
    assert config.num_updates == 2
    for name in ("max_kl_schedule", "critic_learning_rate_schedule"):
        factor_fn = make_schedule(getattr(config, name), config.num_updates)
        assert factor_fn(0) == 1
        last = factor_fn(1)
        assert 0 < last < 1
        assert factor_fn(2) == factor_fn(10**6) == last


def test_replaced_floats_hide_no_other_difference(start):
    """Four environments must not be counted as eight."""
    config = dataclasses.replace(CONFIG, num_envs=8, max_kl=0.5)
    with pytest.raises(
        ValueError, match=r"num_envs: 4 and 8; max_kl: .* made from$|\.$"
    ):
        step(config, start)
    with pytest.raises(ValueError, match="num_envs: 4 and 8"):
        step(config, start.with_hyperparameters_of(config))


def test_the_winner_of_a_sweep_goes_on_with_its_own_floats():
    floats = CONFIG.hyperparameters._replace(max_kl=0.05)
    state = train(CONFIG, hyperparameters=floats).state
    jax.eval_shape(step, dataclasses.replace(CONFIG, max_kl=0.05), state)
    with pytest.raises(ValueError, match=r"max_kl: 0.05 and 0.01"):
        step(CONFIG, state)


def test_a_state_of_another_environment_of_the_same_shapes_is_refused():
    made = dataclasses.replace(CONFIG, env="MemoryChain-bsuite")
    state = fast_jit(init)(made, jax.random.key(0))
    other = dataclasses.replace(made, env="UmbrellaChain-bsuite")
    with pytest.raises(ValueError, match="made from another config"):
        step(other, state)


def test_floats_are_advised_on_only_where_they_are_what_differs():
    made = dataclasses.replace(CONFIG, critic_fit="first_order")
    state = jax.eval_shape(init, made, jax.random.key(0))
    other = dataclasses.replace(made, critic_optimizer="sgd")
    with pytest.raises(ValueError, match="critic_optimizer_state") as error:
        jax.eval_shape(step, other, state)
    assert "with_hyperparameters_of" not in str(error.value)
    jax.eval_shape(step, made, state)  # as advised


def test_the_state_of_several_seeds_is_mapped_as_advised():
    config = dataclasses.replace(CONFIG, num_seeds=2)
    state = train(config).state
    with pytest.raises(ValueError, match=r"axes \(2,\); write (jax\.vmap.*?), or") as e:
        step(config, state)
    advised = re.search("write (.*), or", str(e.value))[1]
    jax.eval_shape(step, config, jax.tree.map(lambda leaf: leaf[1], state))
    # With other floats, which are replaced in every seed.
    config = dataclasses.replace(config, max_kl=0.5)
    state = state.with_hyperparameters_of(config)
    names = {"jax": jax, "step": step, "config": config}
    _, metrics = fast_jit(lambda state: eval(advised, names | {"state": state}))(state)
    assert metrics.env_steps.tolist() == [72, 72]
    np.testing.assert_array_equal(metrics.max_kl, np.float32([0.5, 0.5]))


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"hidden_sizes": (5,)}, "params"),
        ({"hidden_sizes": (5,)}, "critic_params"),
        ({"normalize_observations": True}, "observation_statistics"),
    ],
)
@pytest.mark.parametrize("jit", [False, True])
def test_parts_of_another_configs_state_are_refused(start, fields, name, jit):
    """`_replace` leaves the record of the state's config as it was."""
    other = jax.eval_shape(init, dataclasses.replace(CONFIG, **fields), start.key)
    part = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), getattr(other, name)
    )
    with pytest.raises(ValueError, match=rf"differs \(state, config\):.* {name}\b"):
        (jax.jit(step) if jit else step)(CONFIG, start._replace(**{name: part}))


def test_updates_after_the_last_still_move_the_policy():
    config = dataclasses.replace(CONFIG, max_kl_schedule="linear")
    program, state = fast_jit(step), train(config).state
    after, metrics = program(config, state)
    assert state.updates == config.num_updates == after.updates - 1
    assert metrics.update.status == UpdateStatus.ACCEPTED
    assert metrics.update.accepted_fraction > 0


def test_the_parameters_of_a_run_start_another_as_advised(start):
    """After the last update that can be counted; the new run counts from zero."""
    other = fast_jit(init)(CONFIG, jax.random.key(1))._replace(params=start.params)
    _, metrics = fast_jit(step)(CONFIG, other)
    assert metrics.env_steps == CONFIG.batch_size
