import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from compiling import compilations, fast_jit
from probes import (
    CHAIN,
    NO_LIMIT,
    TABULAR,
    TWO_CHOICES,
    Tabular,
    by_state,
    make_tables,
)

from trpo_jax import (
    TRPOConfig,
    UpdateStatus,
    init,
    step,
)
from trpo_jax.environments import make_environment
from trpo_jax.networks import (
    CategoricalHead,
    GaussianHead,
    MultiCategoricalHead,
    NetworkFns,
)
from trpo_jax.training import critics, iteration, policy_update
from trpo_jax.training.components import make_components, make_networks
from trpo_jax.training.rollouts import rollout
from trpo_jax.training.state import make_act_fn
from trpo_jax.trust_region import Categorical, DiagonalGaussian, MultiCategorical

SMALL = {
    "num_envs": 4,
    "rollout_length": 8,
    "total_timesteps": 4 * 32,
    "hidden_sizes": (8,),
    "cg_iterations": 5,
    "discount": 0.9,
    "gae_lambda": 0.8,
}


FITS = {
    "trust_region": {},
    "first_order": {
        "critic_fit": "first_order",
        "critic_epochs": 2,
        "critic_minibatches": 2,
    },
}


def make_config(tables=CHAIN, **fields):
    normalized = {"normalize_observations": True, "normalize_returns": True}
    return TRPOConfig(env=(TABULAR, tables), **{**SMALL, **normalized, **fields})


def watched_step(config, state):
    """Return a step's results, and what its parts handed to one another."""
    seen = {}

    def watch(module, name, pick):
        part = getattr(module, name)

        def watched(*args, **kwargs):
            result = part(*args, **kwargs)
            seen[name] = pick(args, kwargs, result)
            return result

        patch.setattr(module, name, watched)

    with pytest.MonkeyPatch.context() as patch:
        watch(iteration, "rollout", lambda args, kwargs, result: result[1])
        watch(
            policy_update,
            "trust_region_update",
            lambda args, kwargs, result: (args[2], kwargs),
        )
        watch(critics, "fit_critic", lambda args, kwargs, result: (args[5], kwargs))
        watch(
            critics,
            "fit_critic_in_trust_region",
            lambda args, kwargs, result: (args[2].targets, kwargs),
        )
        state, metrics = iteration.step(config, state)
    return state, metrics, seen


FIT_FUNCTIONS = {
    "trust_region": "fit_critic_in_trust_region",
    "first_order": "fit_critic",
}


def fit_of(state):
    return "trust_region" if state.critic_optimizer_state == () else "first_order"


@fast_jit
def play(tables, state):
    """One step in an environment of any tables: one program for each fit."""
    fit = fit_of(state)
    state, metrics, seen = watched_step(make_config(tables, **FITS[fit]), state)
    batch, _ = seen["trust_region_update"]
    targets, _ = seen[FIT_FUNCTIONS[fit]]
    return state, metrics, (seen["rollout"], batch, targets)


@pytest.fixture(scope="module", params=FITS)
def start(request):
    return fast_jit(init)(make_config(**FITS[request.param]), jax.random.key(0))


@pytest.fixture(scope="module")
def steps(start):
    """Four steps: the state before, the state after, the metrics, what was seen."""
    before, taken = start, []
    for _ in range(4):
        after, metrics, seen = play(CHAIN, before)
        taken.append((before, after, metrics, seen))
        before = after
    return taken


def standardized(statistics, samples):
    """Samples by the statistics' moments, in NumPy."""
    std = np.sqrt(statistics.variance)
    std = np.where(statistics.num_samples > 0, np.maximum(std, 1e-4), 1)
    return (np.asarray(samples) - statistics.mean) / std


def flat(leaf):
    return np.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:])


def policy_of(state):
    policy, _ = make_networks(make_config(), make_environment((TABULAR, CHAIN)))
    return functools.partial(policy.apply, state.params)


def values_of(state, observations):
    """V in units of return, of observations as the environment gives them."""
    _, critic = make_networks(make_config(), make_environment((TABULAR, CHAIN)))
    scaled = standardized(state.observation_statistics, observations)
    values = critic.apply(state.critic_params, jnp.asarray(scaled, jnp.float32))
    moments = state.return_statistics
    return np.asarray(values) * moments.std + moments.mean


def test_the_first_probability_ratio_is_one(steps):
    for before, _, metrics, (_, batch, _) in steps:
        log_probs = policy_of(before)(batch.observations).log_prob(batch.actions)
        np.testing.assert_allclose(log_probs, batch.log_probs, atol=1e-6)
        # The mean of standardised advantages, if every ratio is one.
        np.testing.assert_allclose(metrics.update.surrogate_before, 0, atol=1e-6)


def test_the_ratio_is_one_by_frozen_statistics_only(steps):
    """The statistics after the step would make it another policy."""
    before, after, _, (trajectory, batch, _) = steps[0]
    refreshed = standardized(after.observation_statistics, flat(trajectory.observation))
    log_probs = policy_of(before)(jnp.asarray(refreshed)).log_prob(batch.actions)
    assert np.abs(log_probs - batch.log_probs).max() > 1e-4


def test_observations_are_normalized_by_what_was_seen_before(steps):
    for before, _, _, (trajectory, batch, _) in steps:
        expected = standardized(
            before.observation_statistics, flat(trajectory.observation)
        )
        np.testing.assert_allclose(batch.observations, expected, rtol=1e-4, atol=1e-5)


def test_statistics_absorb_every_rollout_once(steps):
    seen = np.concatenate(
        [flat(trajectory.observation) for *_, (trajectory, _, _) in steps]
    )
    statistics = steps[-1][1].observation_statistics
    assert statistics.num_samples == len(seen) == 4 * 32
    np.testing.assert_allclose(statistics.mean, seen.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics.std, seen.std(0), rtol=1e-4)


def advantages_by_hand(state, trajectory, *, discount=0.9, gae_lambda=0.8):
    """By the NumPy reference, for each environment alone."""
    values = values_of(state, flat(trajectory.observation))
    rows = (
        flat(trajectory.reward),
        values,
        values_of(state, flat(trajectory.final_observation)),
        flat(trajectory.terminated),
        flat(trajectory.truncated),
    )
    num_envs = trajectory.reward.shape[1]
    advantages = [
        reference.generalized_advantages(*of_environment, discount, gae_lambda)
        for of_environment in zip(
            *(leaf.reshape(num_envs, -1) for leaf in rows), strict=True
        )
    ]
    return np.reshape(advantages, -1), values


def test_advantages_bootstrap_from_the_final_observation(steps):
    for before, _, _, (trajectory, batch, _) in steps:
        advantages, _ = advantages_by_hand(before, trajectory)
        expected = (advantages - advantages.mean()) / advantages.std()
        np.testing.assert_allclose(batch.advantages, expected, rtol=1e-3, atol=1e-4)
    ends = np.array([[s[0].terminated.sum(), s[0].truncated.sum()] for *_, s in steps])
    assert np.all(ends.sum(0) > 0), "neither way of ending must be missing"


def test_critic_is_fitted_to_standardized_returns(steps):
    for before, after, _, (trajectory, _, targets) in steps:
        advantages, values = advantages_by_hand(before, trajectory)
        expected = standardized(after.return_statistics, advantages + values)
        np.testing.assert_allclose(targets, expected, rtol=1e-3, atol=1e-3)


def test_every_step_draws_anew(steps):
    keys = [jax.random.key_data(before.key).tolist() for before, *_ in steps]
    actions = [trajectory.action.tolist() for *_, (trajectory, _, _) in steps]
    assert len(np.unique(keys, axis=0)) == 4
    assert len(np.unique(np.reshape(actions, (4, -1)), axis=0)) == 4


def test_env_steps_are_exact(steps):
    counts = [metrics.env_steps for _, _, metrics, _ in steps]
    assert [int(count) for count in counts] == [32, 64, 96, 128]
    assert counts[0].dtype == np.int64


@pytest.mark.parametrize("made", [2**26, 2**31 - 3])
def test_env_steps_are_exact_beyond_32_bits(start, made):
    after, metrics, _ = play(CHAIN, start._replace(updates=jnp.int32(made)))
    assert after.updates == made + 1
    expected = (made + 1) * make_config().batch_size
    assert metrics.env_steps == expected > 2**31
    assert f"{metrics.env_steps:,}" == f"{expected:,}"


def test_env_steps_are_refused_where_they_are_traced(steps):
    metrics = steps[-1][2]
    with pytest.raises(ValueError, match=r"read it outside, or write metrics\.updates"):
        jax.jit(lambda metrics: metrics.env_steps)(metrics)
    assert jax.jit(lambda metrics: metrics)(metrics).env_steps == 128
    assert jax.jit(lambda metrics: metrics.updates)(metrics) == 4


def test_lengths_of_long_episodes_are_summed_beyond_an_int32(start):
    """Each is as long as an int32 counts, and they end in the same rollout."""
    config = make_config()
    longest = jnp.full(config.num_envs, 2**31 - 1, jnp.int32)
    ends = CHAIN.replace(terminal=jnp.ones_like(CHAIN.terminal))
    rollout = start.rollout._replace(episode_length=longest)
    _, metrics, _ = play(ends, start._replace(rollout=rollout))
    mean = (2**31 - 1 + config.rollout_length - 1) / config.rollout_length
    assert metrics.episode_count == config.batch_size
    assert metrics.episode_length == pytest.approx(mean, rel=1e-6)


def test_metrics_are_scalars_of_fixed_types(steps):
    integers = {"updates", "batch_size", "episode_count", "status", "evaluations"}
    integers |= {"cg_status", "cg_iterations"}
    for path, leaf in jax.tree.leaves_with_path(steps[0][2]):
        assert leaf.shape == (), path
        assert leaf.dtype == (jnp.int32 if path[-1].name in integers else jnp.float32)


def test_episode_metrics_are_means_over_ended_episodes(steps):
    for _, _, metrics, (trajectory, _, _) in steps:
        done = np.asarray(trajectory.done)
        returns = np.asarray(trajectory.episode_return)[done]
        lengths = np.asarray(trajectory.episode_length)[done]
        assert metrics.episode_count == done.sum() > 0
        np.testing.assert_allclose(metrics.episode_return, returns.mean(), rtol=1e-5)
        np.testing.assert_allclose(metrics.episode_length, lengths.mean(), rtol=1e-5)


def test_episode_metrics_are_nan_where_none_ended(start):
    endless = CHAIN.replace(
        terminal=jnp.zeros_like(CHAIN.terminal),
        max_steps_in_episode=jnp.int32(NO_LIMIT),
    )
    _, metrics, _ = play(endless, start)
    assert metrics.episode_count == 0
    assert np.isnan(metrics.episode_return)
    assert np.isnan(metrics.episode_length)
    assert metrics.update.status == UpdateStatus.ACCEPTED


def test_updates_are_accepted_within_the_trust_region(steps):
    for before, after, metrics, (_, batch, _) in steps:
        assert metrics.update.status == UpdateStatus.ACCEPTED
        old, new = (policy_of(state)(batch.observations) for state in (before, after))
        kl = np.mean(old.kl_divergence(new))
        np.testing.assert_allclose(metrics.update.kl, kl, rtol=1e-3)
        assert 0 < kl <= metrics.max_kl


def test_hyperparameters_are_the_states_and_do_not_compile_again(start):
    other = start.hyperparameters._replace(max_kl=jnp.float32(1e-3))
    play(CHAIN, start)
    with compilations() as compiled:
        _, metrics, _ = play(CHAIN, start._replace(hyperparameters=other))
    assert not compiled
    assert metrics.max_kl == np.float32(1e-3)
    assert metrics.update.kl <= 1e-3


def all_finite(*trees):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trees))


def differ(tree, other):
    return jax.tree.map(lambda a, b: np.any(a != b), tree, other)


def learnt(state):
    """Leaves that must never hold a NaN."""
    moments = (state.observation_statistics, state.return_statistics)
    return (state.params, state.critic_params, state.critic_optimizer_state, moments)


BAD = {
    "NaN reward": CHAIN.replace(reward=CHAIN.reward.at[2:, 0].set(jnp.nan)),
    "infinite reward": CHAIN.replace(reward=CHAIN.reward.at[:, 1].set(jnp.inf)),
    "negative infinite reward": CHAIN.replace(reward=CHAIN.reward.at[:].set(-jnp.inf)),
    "NaN observation": CHAIN.replace(features=CHAIN.features.at[1].set(jnp.nan)),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_numbers_leave_the_parameters_and_training_goes_on(steps, bad):
    _, before, *_ = steps[0]
    state = before
    for _ in range(3):
        state, metrics, _ = play(BAD[bad], state)
        assert metrics.update.status == UpdateStatus.NON_FINITE
        assert metrics.update.kl == 0
        jax.tree.map(np.testing.assert_array_equal, state.params, before.params)
        assert all_finite(learnt(state))
    # The step after may still see what the last left behind in the environments.
    for _ in range(2):
        state, metrics, _ = play(CHAIN, state)
    assert metrics.update.status == UpdateStatus.ACCEPTED
    assert all_finite(learnt(state), metrics)
    assert all(jax.tree.leaves(differ(state.critic_params, before.critic_params)))


def test_equal_advantages_leave_the_policy_bit_for_bit(start):
    equal = make_tables(by_state(1, 1, 1, 1), features=np.ones((4, 3)))
    after, metrics, _ = play(equal, moved_to(start, equal))
    assert metrics.update.status == UpdateStatus.ZERO_GRADIENT
    jax.tree.map(np.testing.assert_array_equal, after.params, start.params)


def moved_to(state, tables):
    """The state with its environments at the start of episodes in `tables`."""
    position = jnp.zeros_like(state.rollout.env_state.position)
    place = state.rollout.env_state.replace(position=position)
    observation = tables.features[position]
    rollout = state.rollout._replace(env_state=place, observation=observation)
    return state._replace(rollout=rollout)


def test_an_enormous_reward_does_not_stop_the_critic_for_good(steps):
    """Its square overflows, in the variance, the loss and the optimiser's moments."""
    _, before, *_ = steps[0]
    enormous = CHAIN.replace(reward=CHAIN.reward.at[1, 0].set(1e30))
    state, _, (trajectory, _, _) = play(enormous, before)
    assert trajectory.reward.max() == np.float32(1e30)
    assert all_finite(learnt(state))
    for _ in range(2):
        state, _, _ = play(CHAIN, state)
    assert all(jax.tree.leaves(differ(state.critic_params, before.critic_params)))


def test_zero_rewards_are_harmless(start):
    state = start
    for _ in range(3):
        state, metrics, _ = play(CHAIN.replace(reward=jnp.zeros((4, 2))), state)
    assert all_finite(learnt(state), metrics)
    assert metrics.episode_return == 0


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("network", "output_fn", "error", "advice"),
    [
        (
            "policy",
            lambda x: x,
            TypeError,
            "an array float32[4, 3]; wrap it, as trpo_jax.trust_region.Categorical(",
        ),
        (
            "policy",
            lambda x: DiagonalGaussian(x, jnp.zeros(3)),
            ValueError,
            "Write a policy whose distribution has those",
        ),
        (
            "policy",
            lambda x: MultiCategorical((Categorical(x),)),
            ValueError,
            "Write a policy whose distribution has those",
        ),
        (
            "policy",
            lambda x: Categorical(jnp.concatenate([x, x], axis=-1)),
            ValueError,
            "write trpo_jax.networks.CategoricalHead(2)",
        ),
        (
            "policy",
            lambda x: Categorical(x[0, :2]),
            ValueError,
            "of shape () for observations of shape (4,): write a policy that keeps",
        ),
        (
            "policy",
            lambda x: Categorical(x[:, :2].astype(int)),
            TypeError,
            "a Categorical of int32 numbers, which have no derivative; write floating",
        ),
        ("critic", lambda x: x[0, 0], ValueError, "Write value[..., 0]"),
        (
            "critic",
            lambda x: x[:, 0].astype(int),
            TypeError,
            "the critic returns int32 values; write a network that returns float32",
        ),
        ("critic", lambda x: x[:, :1], ValueError, "Write value[..., 0]"),
        ("critic", lambda x: x, ValueError, "Write value[..., 0]"),
    ],
)
def test_networks_that_do_not_fit_are_refused(network, output_fn, error, advice):
    own = NetworkFns(lambda key, x: (), lambda params, x: output_fn(x))
    config = make_config(**{network: own})
    with pytest.raises(error, match=re.escape(advice)):
        jax.eval_shape(init, config, jax.random.key(0))


def test_choices_of_other_numbers_are_refused():
    """They would be drawn, and taken by the environment as others."""
    environment = make_environment((TWO_CHOICES, CHAIN))
    head = MultiCategoricalHead(environment.action_space.num_actions)
    factors = [Categorical(jnp.zeros((4, k + 1))) for k in head.num_actions]
    own = NetworkFns(lambda *_: (), lambda *_: MultiCategorical(tuple(factors)))
    config = TRPOConfig(env=(TWO_CHOICES, CHAIN), policy=own, **SMALL)
    advice = f"write trpo_jax.networks.MultiCategoricalHead({head.num_actions})"
    with pytest.raises(ValueError, match=re.escape(advice)):
        jax.eval_shape(init, config, jax.random.key(0))


def first_step(config):
    @fast_jit
    def run(key):
        state = init(config, key)
        return state, *step(config, state)

    return run(jax.random.key(0))


def test_a_single_action_leaves_the_policy_bit_for_bit():
    one = Tabular(num_actions=1)
    tables = make_tables(np.arange(4.0)[:, None], num_starts=4)
    config = TRPOConfig(env=(one, tables), **SMALL)
    before, after, metrics = first_step(config)
    assert metrics.update.status == UpdateStatus.ZERO_GRADIENT
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    assert metrics.critic_loss > 0


def test_a_step_does_not_need_jit(start):
    def compare(a, b):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)

    jitted = play(CHAIN, start)[:2]
    config = make_config(**FITS[fit_of(start)])
    jax.tree.map(compare, jitted, step(config, start))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(
    ("env", "head"),
    [
        ((TABULAR, CHAIN), CategoricalHead),
        ("Pendulum-v1", GaussianHead),
        ((TWO_CHOICES, CHAIN), MultiCategoricalHead),
    ],
)
def test_the_state_keeps_its_structure_shapes_and_types(env, head, normalized, fit):
    config = TRPOConfig(
        env=env,
        **SMALL,
        **FITS[fit],
        normalize_observations=normalized,
        normalize_returns=normalized,
    )
    policy, _ = make_networks(config, make_environment(config.env))
    assert type(policy.head) is head
    before = jax.eval_shape(init, config, jax.random.key(0))
    after, _ = jax.eval_shape(step, config, before)
    assert jax.tree.structure(after) == jax.tree.structure(before)

    def describe(leaf):
        return leaf.shape, leaf.dtype, leaf.weak_type

    assert jax.tree.map(describe, after) == jax.tree.map(describe, before)
    assert (after.observation_statistics is None) is not normalized
    assert (after.return_statistics is None) is not normalized
    assert (after.critic_optimizer_state == ()) == (fit == "trust_region")


def test_continuous_actions_train():
    config = TRPOConfig(env="Pendulum-v1", **SMALL, initial_log_std=-1.0)
    before, after, metrics = first_step(config)
    np.testing.assert_array_equal(before.params["params"]["head"]["log_std"], -1)
    assert metrics.update.status == UpdateStatus.ACCEPTED
    # 0.5 log 2πe σ², which starts at 0.419 and moves with the standard deviation.
    log_std = after.params["params"]["head"]["log_std"]
    expected = 0.5 * np.log(2 * np.pi * np.e) + log_std
    np.testing.assert_allclose(metrics.update.entropy, expected[0], rtol=1e-5)
    assert log_std != -1


CRITIC_SETTINGS = {
    "trust_region": (
        {"critic_cg_iterations": 4, "critic_stride": 2},
        {
            "cg_iterations": 4,
            "cg_tolerance": 1e-4,
            "micro_batch_size": 5,
        },
    ),
    "first_order": (
        {
            "critic_epochs": 3,
            "critic_minibatches": 8,
            "critic_value_clipping": 0.2,
        },
        {"epochs": 3, "num_minibatches": 8, "value_clipping": 0.2},
    ),
}


@pytest.mark.parametrize("fit", FITS)
def test_every_setting_reaches_its_part(fit):
    of_fit, expected = CRITIC_SETTINGS[fit]
    config = make_config(
        critic_fit=fit,
        **of_fit,
        cg_iterations=3,
        cg_tolerance=1e-4,
        fisher_stride=3,
        max_backtracks=7,
        backtrack_factor=0.7,
        line_search_width=2,
        step_size_curvature="damped",
        micro_batch_size=5,
    )
    before = jax.eval_shape(init, config, jax.random.key(0))
    passed = {}

    def record(state):
        *_, seen = watched_step(config, state)
        passed["update"] = seen["trust_region_update"][1]
        passed["critic"] = seen[FIT_FUNCTIONS[fit]][1]

    jax.eval_shape(record, before)
    static = passed["critic"].keys() - {"max_kl", "damping", "fisher_batch"}
    assert {name: passed["critic"][name] for name in static} == expected
    update = passed["update"]
    for name in ("cg_iterations", "cg_tolerance", "max_backtracks"):
        assert update[name] == getattr(config, name)
    steps, num_envs = config.rollout_length, config.num_envs
    assert update["fisher_batch"].log_probs.shape == (num_envs * (steps // 3),)
    if fit == "trust_region":
        thinned = passed["critic"]["fisher_batch"].targets
        assert thinned.shape == (num_envs * (steps // 2),)
    assert (update["backtrack_factor"], update["line_search_width"]) == (0.7, 2)
    assert update["micro_batch_size"] == 5
    assert update["step_size_curvature_fn"].__name__ == "damped_curvature"


@pytest.mark.parametrize(
    ("num_seeds", "fit"),
    [(None, "trust_region"), (None, "first_order"), (3, "trust_region")],
)
def test_a_step_in_micro_batches_is_the_step(num_seeds, fit):
    """Also under vmap, where both branches for truncated episodes are computed."""
    keys, init_fn, step_fn = jax.random.key(0), init, step
    if num_seeds is not None:
        keys = jax.random.split(keys, num_seeds)
        init_fn, step_fn = (jax.vmap(fn, in_axes=(None, 0)) for fn in (init, step))
    few = FITS[fit] or {"critic_cg_iterations": 3}
    whole, in_parts = (
        # So few iterations that none is near the tolerance, where rounding decides.
        make_config(micro_batch_size=size, cg_iterations=3, cg_tolerance=0.0, **few)
        for size in (None, 7)
    )
    states, step_fn = fast_jit(init_fn)(whole, keys), fast_jit(step_fn)
    chex.assert_trees_all_close(
        *(
            jax.tree.map(_key_data, step_fn(config, states))
            for config in (whole, in_parts)
        ),
        rtol=1e-3,
        atol=1e-4,
    )


def _key_data(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def test_the_critics_optimizer_is_the_configs():
    config = make_config(
        critic_fit="first_order",
        critic_optimizer=lambda rate: optax.sgd(rate, momentum=0.9),
    )
    state = jax.eval_shape(init, config, jax.random.key(0))
    trace = optax.tree.get(state.critic_optimizer_state, "trace")
    assert jax.tree.structure(trace) == jax.tree.structure(state.critic_params)


def test_the_mean_return_is_a_number_wherever_it_is_read(steps):
    """From NumPy, JAX and traced arrays, and under `grad`."""
    metrics = steps[0][2]

    def mean(total):
        return metrics._replace(episode_return_sum=total).episode_return

    total, count = metrics.episode_return_sum, metrics.episode_count
    expected = float(total) / int(count)
    for read in (mean, jax.jit(mean)):
        np.testing.assert_allclose(read(total), expected, rtol=1e-6)
    np.testing.assert_allclose(mean(np.asarray(total)), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(mean)(total), 1 / int(count), rtol=1e-6)


# Reward scaling ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def scaled():
    """A program of a step with scaled rewards in any tables, and its first state."""
    config = make_config(scale_rewards=True, normalize_returns=False)
    steps = fast_jit(lambda tables, state: step(on(tables), state))

    def on(tables):
        return make_config(tables, scale_rewards=True, normalize_returns=False)

    return steps, fast_jit(init)(config, jax.random.key(0))


def test_the_unit_of_rewards_does_not_matter_where_they_are_scaled(scaled):
    """Advantages and returns are in scaled units, records in those of the reward."""
    steps, state = scaled
    larger = CHAIN.replace(reward=64 * CHAIN.reward)
    other = moved_to(state, larger)
    state = moved_to(state, CHAIN)
    for _ in range(3):
        state, metrics = steps(CHAIN, state)
        other, in_larger = steps(larger, other)
        np.testing.assert_allclose(
            in_larger.episode_return, 64 * metrics.episode_return, rtol=1e-5
        )
        np.testing.assert_allclose(
            in_larger.critic_loss, metrics.critic_loss, rtol=1e-3
        )
    assert metrics.episode_count > 0
    np.testing.assert_allclose(
        other.reward_statistics.std, 64 * state.reward_statistics.std, rtol=1e-5
    )
    assert state.reward_statistics.num_samples == 3 * make_config().batch_size
    chex.assert_trees_all_close(other.params, state.params, rtol=1e-3, atol=1e-5)


def test_the_first_rollout_is_scaled_by_its_own_statistics(scaled):
    """By the discounted returns of the environments that have played it."""
    steps, state = scaled
    config = make_config(scale_rewards=True, normalize_returns=False)
    components = make_components(config)

    @fast_jit
    def play_once(state):
        key = jax.random.split(state.key, 4)[1]
        act_fn = make_act_fn(components, state)
        return rollout(act_fn, components.environment, state.rollout, key, num_steps=8)[
            1
        ]

    trajectory = play_once(state)
    returns, following = [], np.zeros(4)
    for reward, done in zip(trajectory.reward, trajectory.done, strict=True):
        following = np.asarray(reward) + 0.9 * following
        returns.append(following)
        following = np.where(done, 0, following)
    after, _ = steps(CHAIN, state)
    np.testing.assert_allclose(after.reward_statistics.std, np.std(returns), rtol=1e-5)
    np.testing.assert_allclose(
        after.reward_statistics.mean, np.mean(returns), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(after.discounted_return, following, rtol=1e-5)


def test_a_bad_reward_spoils_no_scale(scaled):
    steps, state = scaled
    state, _ = steps(CHAIN, state)
    after, metrics = steps(
        CHAIN.replace(reward=CHAIN.reward.at[:, 1].set(jnp.nan)), state
    )
    assert metrics.update.status == UpdateStatus.NON_FINITE
    assert_equal = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    assert_equal(after.reward_statistics, state.reward_statistics)
    assert np.all(np.isfinite(after.discounted_return))
