"""The whole update against NumPy, its invariances, and everything that can go wrong."""

import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import policies
import pytest
import reference
from compiling import fast_jit
from jax.extend.core import jaxprs_in_params

from trpo_jax import UpdateStatus
from trpo_jax.trust_region import (
    Batch,
    Categorical,
    CGStatus,
    DiagonalGaussian,
    damped_curvature,
    fisher_vector_product,
    flat,
    gauss_newton_vector_product,
    mean_kl,
    surrogate,
    trust_region_update,
)

N = 12


@partial(fast_jit, static_argnames=("kind", "width"))
def compiled_update(kind, params, batch, max_kl, damping, width):
    return trust_region_update(
        policies.POLICIES[kind],
        params,
        batch,
        max_kl=max_kl,
        damping=damping,
        line_search_width=width,
    )


def update(kind, params, batch, max_kl=0.01, damping=0.1, width=1):
    """The update of a small nonlinear policy, compiled once for all tests."""
    return compiled_update(kind, params, batch, max_kl, damping, width)


def make_problem(kind, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    params = policies.make_params(kind, rng, dtype)
    return params, policies.make_batch(kind, rng, params, N, dtype)


def assert_bitwise_equal(new, old):
    chex.assert_trees_all_equal_shapes_and_dtypes(new, old)
    for mine, theirs in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
        assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes()


# Against the reference ---------------------------------------------------------------


@partial(fast_jit, static_argnames=("kind", "unusual"))
def linear_update(kind, unusual, params, batch, max_kl, damping):
    options = {}
    if unusual:
        options = UNUSUAL | {"step_size_curvature_fn": damped_curvature}
        options["fisher_batch"] = every(3, batch)
    return trust_region_update(
        policies.LINEAR[kind], params, batch, max_kl=max_kl, damping=damping, **options
    )


def every(stride, batch):
    return jax.tree.map(lambda leaf: leaf[::stride], batch)


UNUSUAL = {
    "cg_iterations": 2,
    "cg_tolerance": 1e-3,
    "max_backtracks": 3,
    "backtrack_factor": 0.8,
    "interpolate": False,
}
# Whether the settings are unusual, δ, λ, noise on log π_old, scale of the advantages.
CASES = {
    "default": (False, 0.01, 0.1, 0.0, 1.0),
    "hardly_damped": (False, 0.01, 1e-8, 0.0, 1.0),
    "large_radius": (False, 1.0, 0.1, 0.0, 1.0),
    "off_policy": (False, 0.01, 0.1, 0.7, 1.0),
    "tiny_advantages": (False, 0.01, 0.1, 0.0, 1e-3),
    "stops_early": (True, 0.01, 0.03, 0.0, 1.0),
    "rejected": (True, 300.0, 0.03, 0.0, 1.0),
}


@pytest.mark.parametrize("kind", ["softmax", "gaussian"])
@pytest.mark.parametrize("case", CASES)
def test_parameters_and_evidence_are_the_references(kind, case, float64):
    unusual, max_kl, damping, *noise_and_scale = CASES[case]
    policy, flat, unravel, batch = policies.linear_problem(kind, N, *noise_and_scale)
    options = {}
    if unusual:
        options = UNUSUAL | {"damped_step": True, "fisher_stride": 3}
    expected, evidence = reference.trust_region_update(
        policy, flat, *batch, max_kl=max_kl, damping=damping, **options
    )
    new, info = linear_update(kind, unusual, unravel(flat), batch, max_kl, damping)
    for name, leaf in unravel(expected).items():
        np.testing.assert_allclose(new[name], leaf, rtol=1e-8, atol=1e-10)
    for name, value in evidence.items():
        rtol = 0.009 if name == "kl_95" else 1e-8  # as `upper_quantile` states
        np.testing.assert_allclose(
            getattr(info, name), value, rtol=rtol, atol=1e-11, err_msg=name
        )
    accepted = evidence["accepted_fraction"] > 0
    assert (info.status == UpdateStatus.ACCEPTED) == accepted
    assert set(info._fields) == {*evidence, "status", "cg_status"}
    # Each case is what its name says.
    assert accepted == (case != "rejected")
    assert (info.cg_status == CGStatus.MAX_ITERATIONS) == unusual


# What an accepted update is ----------------------------------------------------------


@pytest.mark.parametrize("kind", policies.KINDS)
def test_evidence_describes_the_parameters_that_came_back(kind, float64):
    params, batch = make_problem(kind)
    new_params, info = update(kind, params, batch)
    assert info.status == UpdateStatus.ACCEPTED
    old, new = (
        policies.POLICIES[kind](p, batch.observations) for p in (params, new_params)
    )
    divergences = old.kl_divergence(new)
    ratios = jnp.exp(new.log_prob(batch.actions) - batch.log_probs)
    np.testing.assert_allclose(info.kl, jnp.mean(divergences), rtol=1e-9)
    np.testing.assert_allclose(info.kl_max, jnp.max(divergences), rtol=1e-9)
    value = jnp.mean(ratios * batch.advantages)
    np.testing.assert_allclose(info.surrogate_after, value, rtol=1e-9)
    np.testing.assert_allclose(info.entropy, jnp.mean(new.entropy()), rtol=1e-9)
    assert 0 < info.kl <= 0.01
    assert info.surrogate_after > info.surrogate_before
    # At θ_old every ratio is 1, so the surrogate is the mean advantage.
    mean_advantage = jnp.mean(batch.advantages)
    np.testing.assert_allclose(info.surrogate_before, mean_advantage, rtol=1e-12)


@pytest.mark.parametrize("kind", policies.KINDS)
def test_the_promises_come_true_in_the_small(kind, float64):
    """To first order in √δ: the KL is the model's, and so is the improvement."""
    params, batch = make_problem(kind, seed=1)
    _, info = update(kind, params, batch, 1e-8, 1e-3)
    assert info.status == UpdateStatus.ACCEPTED
    np.testing.assert_allclose(info.kl_predicted, info.accepted_fraction**2 * 1e-8)
    np.testing.assert_allclose(info.kl, info.kl_predicted, rtol=1e-2)
    improvement = info.surrogate_after - info.surrogate_before
    np.testing.assert_allclose(improvement, info.expected_improvement, rtol=1e-2)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_scaling_the_advantages_leaves_the_step_alone(kind):
    """By a power of two near a thousand: bit for bit."""
    params, batch = make_problem(kind, dtype=np.float32)
    new, _ = update(kind, params, batch)
    for scale in (2.0**-10, 2.0**10):
        scaled = batch._replace(advantages=scale * batch.advantages)
        assert_bitwise_equal(update(kind, params, scaled)[0], new)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_scaling_the_advantages_by_any_number(scale, float64):
    params, batch = make_problem("gaussian")
    new, _ = update("gaussian", params, batch)
    scaled = batch._replace(advantages=scale * batch.advantages)
    chex.assert_trees_all_close(
        update("gaussian", params, scaled)[0], new, rtol=1e-9, atol=1e-12
    )


@fast_jit
def means_after_update(transform, flat, natural):
    """Means of an updated policy whose network has the parameters `transform` · θ."""
    rng = np.random.default_rng(2)
    observations = jnp.asarray(rng.normal(size=(N, 2)))
    noise, advantages = rng.normal(size=(N, 2)), jnp.asarray(rng.normal(size=N))

    def policy_fn(theta, observations):
        weights = transform @ theta
        mean = jnp.tanh(observations @ weights[:4].reshape(2, 2)) * weights[4:6]
        return DiagonalGaussian(mean, weights[6:])

    def operator_fn(*problem):
        fisher = gauss_newton_vector_product(*problem)
        return lambda vector: jnp.where(natural, fisher(vector), vector)

    theta = jnp.linalg.solve(transform, flat)
    old = policy_fn(theta, observations)
    actions = old.mean + jnp.exp(old.log_std) * noise
    new, info = trust_region_update(
        policy_fn,
        theta,
        Batch(observations, actions, old.log_prob(actions), advantages),
        damping=0.0,
        cg_iterations=100,
        cg_tolerance=1e-12,
        operator_fn=operator_fn,
    )
    return policy_fn(new, observations).mean, info


def test_the_natural_step_does_not_depend_on_the_parametrisation(float64):
    rng = np.random.default_rng(3)
    flat = rng.normal(size=8)
    transforms = np.eye(8), np.eye(8) + 0.3 * rng.normal(size=(8, 8))

    def both(natural):
        for transform in transforms:
            means, info = means_after_update(transform, flat, natural)
            assert info.status == UpdateStatus.ACCEPTED
            assert info.cg_status == CGStatus.CONVERGED
            yield means

    np.testing.assert_allclose(*both(natural=True), rtol=1e-6)
    # The plain gradient's step does, so that the assertion above says something.
    assert not np.allclose(*both(natural=False), rtol=1e-2)


# Choices that change the cost only ---------------------------------------------------


def test_either_curvature_operator_serves(float64):
    params, batch = make_problem("multi_categorical")
    _, gauss_newton = update("multi_categorical", params, batch)
    _, info = fast_jit(
        lambda params, batch: trust_region_update(
            policies.multi_categorical,
            params,
            batch,
            operator_fn=fisher_vector_product,
        )
    )(params, batch)
    chex.assert_trees_all_close(info, gauss_newton, rtol=1e-8)


def test_the_line_searchs_width_changes_nothing_but_the_count(float64):
    params, batch = make_problem("categorical", seed=4)
    backtrack = fast_jit(
        partial(trust_region_update, policies.categorical, interpolate=False),
        static_argnames="line_search_width",
    )
    one, info = backtrack(params, batch, max_kl=3.0)
    assert info.evaluations > 1
    new, wide = backtrack(params, batch, max_kl=3.0, line_search_width=10)
    chex.assert_trees_all_close(new, one, rtol=1e-10)
    same = wide._replace(evaluations=info.evaluations)
    chex.assert_trees_all_close(same, info, rtol=1e-8)
    assert wide.evaluations == 10


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("damping", [1e-3, 0.1, 3.0])
@pytest.mark.parametrize("kind", policies.KINDS)
def test_an_update_lands_near_the_boundary(kind, damping, width, float64):
    """From either side: much damping makes the full step too short."""
    params, batch = make_problem(kind)
    _, info = update(kind, params, batch, 0.01, damping, width)
    assert 0.8 * 0.01 <= info.kl <= 0.01


def test_the_operator_sees_the_states_of_its_own_batch():
    params, batch = make_problem("categorical", dtype=np.float32)
    seen = []

    def spy(policy_fn, params, batch):
        seen.append(policy_fn(params, batch.observations).logits.shape)
        return gauss_newton_vector_product(policy_fn, params, batch)

    improve = partial(
        trust_region_update,
        policies.categorical,
        fisher_batch=every(5, batch),
        operator_fn=spy,
    )
    jax.eval_shape(improve, params, batch)
    assert seen == [(3, 3)]


def test_observations_may_be_a_pytree_and_unused_parameters_stay(float64):
    params, batch = make_problem("categorical")
    expected, _ = update("categorical", params, batch)
    parts = {"left": batch.observations[:, :1], "right": batch.observations[:, 1:]}

    def policy_fn(params, parts):
        joined = jnp.concatenate([parts["left"], parts["right"]], axis=1)
        return policies.categorical(params, joined)

    unused = jnp.array([np.pi, 1e-30])
    new, _ = fast_jit(partial(trust_region_update, policy_fn))(
        params | {"unused": unused}, batch._replace(observations=parts)
    )
    assert_bitwise_equal(new.pop("unused"), unused)
    chex.assert_trees_all_close(new, expected, rtol=1e-10)
    assert all(np.all(new[name] != params[name]) for name in params)


def matrix_products(jaxpr):
    for equation in jaxpr.eqns:
        sides = [variable.aval.ndim for variable in equation.invars]
        if equation.primitive.name == "dot_general" and max(sides) > 1:
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from matrix_products(inner)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_matrix_product_has_the_precision_asked_for(precision):
    params, batch = make_problem("categorical", dtype=np.float32)
    improve = partial(trust_region_update, policies.categorical, precision=precision)
    products = list(matrix_products(jax.make_jaxpr(improve)(params, batch).jaxpr))
    expected = {"float32": "HIGHEST", "bfloat16": "DEFAULT"}[precision]
    # Forward and backward, in the gradient, the operator and the line search.
    assert len(products) >= 12
    for product in products:
        names = [side.name for side in product.params["precision"]]
        assert names == [expected, expected]


@pytest.mark.parametrize("large", [1, 2**16])
def test_an_operator_sees_parameters_as_they_are(large, monkeypatch):
    monkeypatch.setattr(flat, "_LARGE", large)
    params, batch = make_problem("gaussian", dtype=np.float32)

    def operator_fn(policy_fn, seen, batch):
        chex.assert_trees_all_equal_shapes_and_dtypes(seen, params)

        def matvec(vector):
            chex.assert_trees_all_equal_shapes_and_dtypes(vector, params)
            return vector

        return matvec

    improve = partial(
        trust_region_update, policies.gaussian, params, operator_fn=operator_fn
    )
    jax.eval_shape(improve, batch)


@pytest.mark.parametrize("large", [1, 2**16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_parameters_keep_their_dtype(dtype, large, monkeypatch):
    monkeypatch.setattr(flat, "_LARGE", large)
    params, batch = make_problem("categorical", dtype=np.float32)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    for groups in (0, 3):
        improve = partial(
            trust_region_update, policies.categorical, preconditioner_groups=groups
        )
        new, _ = jax.eval_shape(improve, params, batch, damping=np.float32(0.1))
        chex.assert_trees_all_equal_shapes_and_dtypes(new, params)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_large_parameters_are_improved_as_one_vector_is(kind, monkeypatch):
    params, batch = make_problem(kind, dtype=np.float32)
    expected, expected_info = update(kind, params, batch)
    monkeypatch.setattr(flat, "_LARGE", 1)
    improve = fast_jit(partial(trust_region_update, policies.POLICIES[kind]))
    new, info = improve(params, batch)
    assert info.status == UpdateStatus.ACCEPTED
    chex.assert_trees_all_close(new, expected, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(info, expected_info, rtol=1e-3, atol=1e-5)
    for spoilt, status in (
        (spoil(batch, "observations", np.nan), UpdateStatus.NON_FINITE),
        (batch._replace(advantages=0 * batch.advantages), UpdateStatus.ZERO_GRADIENT),
    ):
        stayed, info = improve(params, spoilt)
        assert_bitwise_equal(stayed, params)
        assert info.status == status


@pytest.mark.parametrize("large", [1, 2**16])
def test_evidence_is_of_the_parameters_as_they_are_rounded(large, monkeypatch):
    """By a step so short that rounding to half precision undoes most of it."""
    monkeypatch.setattr(flat, "_LARGE", large)
    params, batch = make_problem("categorical", dtype=np.float32)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)

    @fast_jit
    def surrogate_at(params):
        log_probs = policies.categorical(params, batch.observations).log_prob(
            batch.actions
        )
        return surrogate(log_probs, batch.log_probs, batch.advantages)

    batch = batch._replace(
        log_probs=policies.categorical(params, batch.observations).log_prob(
            batch.actions
        )
    )
    improve = fast_jit(partial(trust_region_update, policies.categorical, max_kl=1e-6))
    new, info = improve(params, batch)
    assert info.status == UpdateStatus.ACCEPTED
    moved = surrogate_at(new) - surrogate_at(params)
    claimed = info.surrogate_after - info.surrogate_before
    np.testing.assert_allclose(claimed, moved, rtol=0.05)


def test_nothing_to_optimise_is_nothing_to_improve():
    _, batch = make_problem("categorical", dtype=np.float32)

    def fixed(params, observations):
        return Categorical(jnp.zeros((len(observations), 3)))

    _, info = fast_jit(partial(trust_region_update, fixed))({}, batch)
    assert info.status == UpdateStatus.ZERO_GRADIENT


# Failure -----------------------------------------------------------------------------


def spoil(batch, field, value):
    return batch._replace(**{field: getattr(batch, field).at[3].set(value)})


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", ["observations", "log_probs", "advantages"])
def test_a_batch_that_is_not_finite_is_no_update(kind, field, value):
    params, batch = make_problem(kind, dtype=np.float32)
    new, info = update(kind, params, spoil(batch, field, value))
    assert_bitwise_equal(new, params)
    assert info.status == UpdateStatus.NON_FINITE
    assert info.kl == info.kl_max == info.accepted_fraction == 0


def test_an_action_that_is_not_finite_is_no_update():
    params, batch = make_problem("gaussian", dtype=np.float32)
    new, info = update("gaussian", params, spoil(batch, "actions", np.nan))
    assert_bitwise_equal(new, params)
    assert info.status == UpdateStatus.NON_FINITE


@pytest.mark.parametrize("max_kl", [np.nan, np.inf])
def test_a_radius_that_is_not_finite_is_no_update(max_kl):
    """Only a traced one gets so far."""
    params, batch = make_problem("categorical", dtype=np.float32)
    new, info = update("categorical", params, batch, max_kl=jnp.float32(max_kl))
    assert_bitwise_equal(new, params)
    assert info.status == UpdateStatus.NON_FINITE


def test_the_evidence_of_a_rejected_update_is_of_the_old_parameters():
    params, batch = make_problem("categorical", dtype=np.float32)
    _, info = update("categorical", params, spoil(batch, "advantages", np.nan))
    for name in (
        "kl",
        "kl_max",
        "kl_predicted",
        "expected_improvement",
        "accepted_fraction",
    ):
        assert getattr(info, name) == 0, name
    old = policies.categorical(params, batch.observations)
    np.testing.assert_allclose(info.entropy, jnp.mean(old.entropy()), rtol=1e-6)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_zero_advantages_are_a_zero_gradient(kind):
    params, batch = make_problem(kind, dtype=np.float32)
    zeros = batch._replace(advantages=jnp.zeros(N))
    new, info = update(kind, params, zeros)
    assert_bitwise_equal(new, params)
    assert info.status == UpdateStatus.ZERO_GRADIENT
    chex.assert_tree_all_finite(info)
    assert info.kl == info.step_size == info.gradient_norm == 0


def batches_without_a_step(seed, count=40):
    """Advantages for which the surrogate of unchanged parameters may round up."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(count, 333)), jnp.float32)


def test_a_single_action_leaves_nothing_to_improve():
    params = jnp.array([[0.3], [-0.2]])
    observations = jnp.asarray(np.random.default_rng(5).normal(size=(333, 2)), "f4")

    @fast_jit
    @jax.vmap
    def improve(advantages):
        batch = Batch(observations, jnp.zeros(333, int), jnp.full(333, 0.1), advantages)
        return trust_region_update(
            lambda params, observations: Categorical(observations @ params),
            params,
            batch,
            line_search_width=10,
        )

    new, info = improve(batches_without_a_step(5))
    np.testing.assert_array_equal(new, np.broadcast_to(params, new.shape))
    np.testing.assert_array_equal(info.status, UpdateStatus.ZERO_GRADIENT)
    np.testing.assert_array_equal(info.kl, 0)


@fast_jit
@partial(jax.vmap, in_axes=(None, 0, None))
def update_with_multiple_of_identity(problem, advantages, multiple):
    params, batch = problem
    return trust_region_update(
        policies.categorical,
        params,
        batch._replace(advantages=advantages),
        damping=0.0,
        line_search_width=10,
        operator_fn=lambda *problem: partial(optax.tree.scale, multiple),
    )


@pytest.mark.parametrize(
    ("multiple", "status"),
    [
        (-1.0, UpdateStatus.NON_POSITIVE_CURVATURE),
        (0.0, UpdateStatus.NON_POSITIVE_CURVATURE),
        (np.nan, UpdateStatus.NON_FINITE),
    ],
)
def test_a_bad_operator_is_no_update_and_never_called_a_move(multiple, status):
    """With a zero step the surrogates differ by rounding alone, in either direction."""
    rng = np.random.default_rng(6)
    params = policies.make_params("categorical", rng, np.float32)
    batch = policies.make_batch("categorical", rng, params, 333, np.float32)
    new, info = update_with_multiple_of_identity(
        (params, batch), batches_without_a_step(6), multiple
    )
    for leaf, old in zip(jax.tree.leaves(new), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(leaf, np.broadcast_to(old, leaf.shape))
    np.testing.assert_array_equal(info.status, status)
    np.testing.assert_array_equal(info.kl, 0)
    np.testing.assert_array_equal(info.accepted_fraction, 0)


@pytest.mark.parametrize("max_kl", [1e-6, 1e-12, 1e-30])
def test_a_tiny_radius_is_a_tiny_step_or_none(max_kl, float64):
    params, batch = make_problem("gaussian")
    new, info = update("gaussian", params, batch, max_kl)
    old, moved = (policies.gaussian(p, batch.observations) for p in (params, new))
    assert mean_kl(old, moved) <= max_kl
    if info.accepted_fraction == 0:
        assert_bitwise_equal(new, params)
    assert (info.status == UpdateStatus.ACCEPTED) == (info.accepted_fraction > 0)
    assert (info.status == UpdateStatus.ACCEPTED) or max_kl < 1e-12


@fast_jit
def one_parameter_update(bend, max_kl):
    """One candidate at θ = 0 of N(μ(θ), 1), told that larger actions are better."""

    def policy_fn(theta, observations):
        mean = jnp.where(bend, theta + 10 * theta**3, jnp.sin(theta))
        return DiagonalGaussian(mean * jnp.ones_like(observations), jnp.zeros(1))

    theta, observations = jnp.float32(0), jnp.ones((2, 1))
    actions = jnp.array([[-1.0], [1.0]])
    log_probs = policy_fn(theta, observations).log_prob(actions)
    batch = Batch(observations, actions, log_probs, jnp.array([-1.0, 1.0]))
    return trust_region_update(policy_fn, theta, batch, max_kl=max_kl, max_backtracks=1)


def test_a_candidate_outside_the_trust_region_is_refused():
    """Its mean, θ + 10 θ³, bends away from the quadratic model of the KL."""
    theta, info = one_parameter_update(True, 0.5)
    assert theta == info.kl == info.accepted_fraction == 0
    assert info.status == UpdateStatus.KL_EXCEEDED
    assert info.step_size > 0


def test_a_candidate_that_makes_it_worse_is_refused():
    """At βx = 3π/2 the sine is at its lowest, and the KL is still small."""
    theta, info = one_parameter_update(False, (1.5 * np.pi) ** 2 / 2)
    assert theta == info.kl == info.accepted_fraction == 0
    assert info.status == UpdateStatus.NO_IMPROVEMENT
    assert info.surrogate_after == info.surrogate_before
    theta, info = one_parameter_update(False, (0.5 * np.pi) ** 2 / 2)
    assert info.status == UpdateStatus.ACCEPTED
    np.testing.assert_allclose(theta, 0.5 * np.pi, rtol=1e-3)


# Compilation -------------------------------------------------------------------------


def test_vmap_over_problems_and_radii_is_a_loop(float64):
    problems = []
    for scale in (1.0, 2.0, -1.0):
        _, flat, unravel, batch = policies.linear_problem("softmax", N, 0.1, scale)
        problems.append((unravel(scale * flat), batch))
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *problems)
    radii = np.array([0.001, 1.0, 10.0])

    def improve(params, batch, max_kl):
        return linear_update("softmax", False, params, batch, max_kl, 0.1)

    together = jax.vmap(improve)(*stacked, radii)
    for n, problem in enumerate(problems):
        single = jax.tree.map(lambda leaf, n=n: leaf[n], together)
        alone = improve(*problem, radii[n])
        chex.assert_trees_all_close(single, alone, rtol=1e-7, atol=1e-12)
    assert len(set(np.asarray(together[1].evaluations))) > 1


def test_eager_agrees_and_a_second_call_compiles_nothing(float64):
    def improve(params, batch):
        return trust_region_update(policies.linear_softmax, params, batch)

    chex.clear_trace_counter()
    compiled = fast_jit(chex.assert_max_traces(improve, n=1))
    for scale in (2.0, 1.0):
        _, flat, unravel, batch = policies.linear_problem("softmax", N, 0.0, scale)
        problem = jax.tree.map(jnp.asarray, (unravel(flat), batch))
        result = compiled(*problem)
    chex.assert_trees_all_close(result, improve(*problem), rtol=1e-8, atol=1e-12)


# Bad input ---------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["observations", "actions", "log_probs"])
def test_a_batch_of_unequal_lengths_is_shown(field, no_shape_checks):
    params, batch = make_problem("categorical", dtype=np.float32)
    short = batch._replace(**{field: getattr(batch, field)[:-1]})
    message = rf"{field}=\({N - 1},.*Write observations \[N, \.\.\.\], actions \[N\]"
    with pytest.raises(ValueError, match=message):
        trust_region_update(policies.categorical, params, short)


@pytest.mark.parametrize("field", ["log_probs", "advantages"])
def test_a_column_instead_of_a_vector_is_shown(field, no_shape_checks):
    params, batch = make_problem("categorical", dtype=np.float32)
    column = batch._replace(**{field: getattr(batch, field)[:, None]})
    with pytest.raises(ValueError, match=rf"{field}=\({N}, 1\).*with one N"):
        trust_region_update(policies.categorical, params, column)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_kl", 0.0),
        ("max_kl", -0.01),
        ("damping", -0.1),
        ("cg_iterations", -1),
        ("cg_tolerance", -1e-5),
        ("max_backtracks", 0),
        ("backtrack_factor", 1.0),
        ("backtrack_factor", -0.5),
        ("line_search_width", 0),
    ],
)
def test_a_number_out_of_range_is_named(option, value):
    params, batch = make_problem("categorical", dtype=np.float32)
    improve = partial(trust_region_update, policies.categorical, **{option: value})
    name = {"line_search_width": "width"}.get(option, option.removeprefix("cg_"))
    with pytest.raises(ValueError, match=rf"{name}={value} .*write"):
        jax.eval_shape(improve, params, batch)


def test_parameters_that_are_not_floating_are_named(no_shape_checks):
    params, batch = make_problem("categorical", dtype=np.float32)
    counted = params | {"updates": jnp.int32(3)}
    with pytest.raises(TypeError, match=r"params\['updates'\] is int32.*Close over"):
        trust_region_update(policies.categorical, counted, batch)


@pytest.mark.parametrize(
    ("returned", "advice"),
    [
        (
            lambda x: x,
            r"an array float32\[12, 3\]; wrap it, as .*Categorical\(logits\)",
        ),
        (
            lambda x: (x, x),
            r"a tuple \(float32\[12, 3\], .*; return .*Categorical\(logits",
        ),
        (lambda x: None, r"returned None; return trpo_jax\.trust_region\.Categorical"),
    ],
)
def test_a_policy_that_returns_no_distribution_is_told_what_to_return(
    returned, advice, no_shape_checks
):
    """In arrays and shapes, not in the tracers that they are at the time."""
    params, batch = make_problem("categorical", dtype=np.float32)

    def policy_fn(params, observations):
        return returned(policies.mlp(params, observations))

    with pytest.raises(TypeError, match=advice):
        trust_region_update(policy_fn, params, batch)


def test_a_log_prob_for_each_dimension_is_told_to_be_summed(no_shape_checks):
    class Unsummed(DiagonalGaussian):
        def log_prob(self, actions):
            return -((actions - self.mean) ** 2)

    params, batch = make_problem("gaussian", dtype=np.float32)

    def policy_fn(params, observations):
        return Unsummed(*policies.gaussian(params, observations))

    with pytest.raises(ValueError, match="sum the log-probabilities of several"):
        trust_region_update(policy_fn, params, batch)


def test_one_distribution_for_all_observations_is_refused(no_shape_checks):
    params, batch = make_problem("categorical", dtype=np.float32)

    def first_only(params, observations):
        return policies.categorical(params, observations[:1])

    def unbatched(params, observations):
        return policies.categorical(params, observations[0])

    for policy_fn, shape in ((first_only, "(1,)"), (unbatched, "()")):
        message = f"of shape {shape} for observations of shape ({len(batch.actions)},)"
        with pytest.raises(ValueError, match=re.escape(message)):
            trust_region_update(policy_fn, params, batch)


def test_numbers_are_named_as_they_were_given(no_shape_checks):
    params, batch = make_problem("categorical", dtype=np.float32)
    with pytest.raises(TypeError, match=r"cg_iterations is the float 2\.5"):
        trust_region_update(policies.categorical, params, batch, cg_iterations=2.5)


def test_actions_that_would_broadcast_are_refused(no_shape_checks):
    """A vector of actions against means [N, 1] would make N × N differences."""
    params, batch = make_problem("gaussian", dtype=np.float32)

    def policy_fn(params, observations):
        mean, log_std = policies.gaussian(params, observations)
        return DiagonalGaussian(mean[:, :1], log_std[:1])

    flat = batch._replace(actions=batch.actions[:, 0])
    with pytest.raises(ValueError, match="actions"):
        jax.eval_shape(partial(trust_region_update, policy_fn), params, flat)


def test_rows_may_be_whole_sequences(float64):
    """The same transitions, folded to [N/5, 5], make the same update."""
    rng = np.random.default_rng(11)
    params = policies.make_params("gaussian", rng)
    flat = policies.make_batch("gaussian", rng, params, 20)
    folded = jax.tree.map(lambda leaf: leaf.reshape(4, 5, *leaf.shape[1:]), flat)
    improve = fast_jit(partial(trust_region_update, policies.gaussian))
    expected, evidence = improve(params, flat)
    for size in (None, 3):
        by_rows = fast_jit(
            partial(trust_region_update, policies.gaussian, micro_batch_size=size)
        )
        actual, info = by_rows(params, folded)
        assert info.status == UpdateStatus.ACCEPTED
        chex.assert_trees_all_close(actual, expected, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(info.kl, evidence.kl, rtol=1e-8)
        np.testing.assert_allclose(info.kl_max, evidence.kl_max, rtol=1e-8)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_entropy_bonus_alone_raises_the_entropy(kind):
    """Without advantages the objective is c·H, and its gradient c·∇H."""
    params, batch = make_problem(kind, dtype=np.float32)
    policy_fn = policies.POLICIES[kind]
    batch = batch._replace(advantages=jnp.zeros_like(batch.advantages))
    improve = fast_jit(partial(trust_region_update, policy_fn, entropy_coefficient=0.5))
    new, info = improve(params, batch)

    @fast_jit
    @jax.value_and_grad
    def mean_entropy(params):
        return jnp.mean(policy_fn(params, batch.observations).entropy())

    before, slope = mean_entropy(params)
    assert info.status == UpdateStatus.ACCEPTED
    np.testing.assert_allclose(info.surrogate_before, 0.5 * before, rtol=1e-5)
    np.testing.assert_allclose(
        info.gradient_norm, 0.5 * optax.tree.norm(slope), rtol=1e-4
    )
    np.testing.assert_allclose(info.surrogate_after, 0.5 * info.entropy, rtol=1e-5)
    np.testing.assert_allclose(info.entropy, mean_entropy(new)[0], rtol=1e-5)
    assert info.entropy > before


def test_entropy_bonus_is_added_to_the_surrogate():
    params, batch = make_problem("categorical", dtype=np.float32)
    improve = fast_jit(
        lambda c: trust_region_update(
            policies.categorical, params, batch, entropy_coefficient=c
        )[1]
    )

    def objective(params):
        policy = policies.categorical(params, batch.observations)
        log_probs = policy.log_prob(batch.actions)
        value = surrogate(log_probs, batch.log_probs, batch.advantages)
        return value + 0.3 * jnp.mean(policy.entropy())

    value, slope = jax.value_and_grad(objective)(params)
    info = improve(0.3)
    np.testing.assert_allclose(info.surrogate_before, value, rtol=1e-5)
    np.testing.assert_allclose(info.gradient_norm, optax.tree.norm(slope), rtol=1e-4)
    assert info.gradient_norm != improve(0.0).gradient_norm


@pytest.mark.parametrize(("kind", "size"), [("gaussian", 2), ("gsde", 4)])
def test_a_shared_scale_as_long_as_the_batch_is_no_row(kind, size):
    """As many rows as the leading axis of log σ has: it must not be cut with them."""
    rng = np.random.default_rng(12)
    params = policies.make_params(kind, rng, np.float32)
    batch = policies.make_batch(kind, rng, params, size, np.float32)
    assert len(params["log_std"]) == size
    whole, in_parts = (
        fast_jit(
            partial(trust_region_update, policies.POLICIES[kind], micro_batch_size=rows)
        )(params, batch)
        for rows in (None, 1)
    )
    assert whole[1].status == UpdateStatus.ACCEPTED
    chex.assert_trees_all_close(in_parts[0], whole[0], rtol=2e-3, atol=1e-5)
    for field in ("kl", "kl_max", "surrogate_after", "accepted_fraction"):
        actual, expected = (getattr(info, field) for _, info in (in_parts, whole))
        np.testing.assert_allclose(actual, expected, rtol=2e-3)


def test_a_number_of_jax_is_checked_where_all_else_is_traced():
    params, batch = make_problem("categorical", dtype=np.float32)

    def improve(max_kl):
        update = partial(trust_region_update, policies.categorical, max_kl=max_kl)
        return jax.eval_shape(update, params, batch)

    improve(jnp.float32(0.01))
    with pytest.raises(ValueError, match=r"max_kl=-1\.0 is out of range"):
        improve(jnp.float32(-1))
