"""A memory of the episode so far: one step at a time, whole, and in curvature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit
from jax.flatten_util import ravel_pytree

from trpo_jax.environments import MaskedObservation
from trpo_jax.networks import (
    MLP,
    CategoricalHead,
    GaussianHead,
    NetworkFns,
    Policy,
    RecurrentNetwork,
    RecurrentNetworkFns,
    RecurrentPolicy,
    RecurrentValue,
)
from trpo_jax.trust_region import (
    Batch,
    empirical_fisher_vector_product,
    fisher_vector_product,
    gauss_newton_vector_product,
    mean_kl,
)

B, T, FEATURES, UNITS = 2, 5, 3, 4
OBSERVATIONS = jax.random.normal(jax.random.key(0), (B, T, FEATURES))
STARTS = jnp.array([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0]], bool)
MEMORY = jax.random.normal(jax.random.key(1), (B, UNITS))

POLICY = RecurrentPolicy(MLP((3,)), CategoricalHead(2), UNITS)
VALUE = RecurrentValue(MLP((3,)), UNITS)
# Two complex units, so that `MEMORY` fits these as well.
LRU_POLICY = RecurrentPolicy(MLP((3,)), CategoricalHead(2), UNITS // 2, "lru")
LRU_VALUE = RecurrentValue(MLP((3,)), UNITS // 2, "lru")
either_policy = pytest.mark.parametrize("policy", [POLICY, LRU_POLICY])


def init(network):
    params = fast_jit(network.init)(jax.random.key(2), MEMORY, OBSERVATIONS, STARTS)
    # A last layer as small as the initial one would hide what it is given.
    return jax.tree.map(lambda leaf: leaf + 0.3, params)


@pytest.fixture(scope="module")
def params():
    return init(POLICY)


def gru(weights, memory, features):
    """Cho et al. 2014 in NumPy, with the reset after the product, as in PyTorch."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def dense(name, x):
        return x @ weights[name]["kernel"] + weights[name].get("bias", 0)

    reset = sigmoid(dense("ir", features) + dense("hr", memory))
    update = sigmoid(dense("iz", features) + dense("hz", memory))
    proposal = np.tanh(dense("in", features) + reset * dense("hn", memory))
    return (1 - update) * proposal + update * memory


def test_it_is_the_recurrence_written_out(params):
    memories, policy = POLICY.apply(params, MEMORY, OBSERVATIONS, STARTS)
    weights = jax.tree.map(np.asarray, params["params"])
    torso, head = weights["torso"]["Dense_0"], weights["head"]["Dense_0"]
    (scanned,) = (weights[name] for name in weights if name.startswith("_Memory"))
    cell = jax.tree.leaves(scanned, is_leaf=lambda node: "ir" in node)[0]
    memory = np.asarray(MEMORY)
    for t in range(T):
        memory = np.where(STARTS[:, t, None], 0, memory)
        features = np.tanh(OBSERVATIONS[:, t] @ torso["kernel"] + torso["bias"])
        memory = gru(cell, memory, features)
        logits = memory @ head["kernel"] + head["bias"]
        np.testing.assert_allclose(memories[:, t], memory, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(policy.logits[:, t], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", [POLICY, VALUE, LRU_POLICY, LRU_VALUE])
def test_whole_sequences_are_their_steps_one_by_one(network):
    params = init(network)
    apply = fast_jit(network.apply)
    memories, outputs = apply(params, MEMORY, OBSERVATIONS, STARTS)
    memory = MEMORY
    for t in range(T):
        now = slice(t, t + 1)
        step, output = apply(params, memory, OBSERVATIONS[:, now], STARTS[:, now])
        memory = step[:, 0]
        np.testing.assert_allclose(memories[:, t], memory, rtol=1e-5, atol=1e-6)
        jax.tree.map(
            lambda one, all_, now=now: np.testing.assert_allclose(
                one, all_[:, now], rtol=1e-5, atol=1e-6
            ),
            output,
            outputs,
        )


def test_a_pytree_is_taken_as_its_concatenation(params):
    observations = {"a": OBSERVATIONS[..., :1], "b": OBSERVATIONS[..., 1:]}
    _, expected = POLICY.apply(params, MEMORY, OBSERVATIONS, STARTS)
    _, policy = POLICY.apply(params, MEMORY, observations, STARTS)
    np.testing.assert_allclose(policy.logits, expected.logits, rtol=1e-6)


@either_policy
def test_an_episode_knows_nothing_of_the_one_before(policy):
    params = init(policy)
    other = MEMORY.at[0].add(1.0)
    observations = OBSERVATIONS.at[0, :3].add(1.0)
    _, before = policy.apply(params, MEMORY, OBSERVATIONS, STARTS)
    _, after = policy.apply(params, other, observations, STARTS)
    np.testing.assert_array_equal(before.logits[0, 3:], after.logits[0, 3:])
    assert np.all(before.logits[0, :3] != after.logits[0, :3])

    # Where no episode starts, everything before matters.
    _, later = policy.apply(params, MEMORY.at[1].add(1.0), OBSERVATIONS, STARTS)
    assert np.all(before.logits[1] != later.logits[1])


@either_policy
def test_the_initial_memory_is_what_a_start_meets(policy):
    params = init(policy)
    fresh = policy.initial_memory(B)
    assert fresh.shape == (B, UNITS)
    _, given = policy.apply(params, fresh, OBSERVATIONS, STARTS.at[:, 0].set(False))
    _, started = policy.apply(params, MEMORY, OBSERVATIONS, STARTS.at[:, 0].set(True))
    np.testing.assert_array_equal(given.logits, started.logits)


def test_masks_are_those_of_each_step(params):
    mask = jax.random.bernoulli(jax.random.key(3), 0.5, (B, T, 2)).at[..., 0].set(True)
    masked = MaskedObservation(OBSERVATIONS, mask)
    _, policy = POLICY.apply(params, MEMORY, masked, STARTS)
    assert np.all((jnp.exp(policy.log_probs()) > 0) == mask)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (CategoricalHead(2), "gru"),
        (GaussianHead(2), "gru"),
        (CategoricalHead(2), "lru"),
    ],
)
def test_fisher_products_go_through_the_recurrence(head, kind, float64):
    """Both operators, the dense Hessian, and E[score scoreᵀ] over whole sequences.

    log π of a sequence is the sum over its steps and every state is given, so that the
    mean over states of E[score scoreᵀ] is a sum over steps, with the scores reaching
    through time.
    """
    size, recurrent, count = {
        "gru": (3, ("'hn'",), 3 * 3 + 3),
        "lru": (2, ("nu", "theta", "log_gamma"), 3 * 2),
    }[kind]
    network = RecurrentPolicy(MLP((2,)), head, size, kind)
    memory = jnp.asarray(MEMORY[:, : network.initial_memory(1).size], jnp.float64)
    seen = (jnp.asarray(OBSERVATIONS, jnp.float64), STARTS)
    params = fast_jit(network.init)(jax.random.key(0), memory, *seen)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64) + 0.2, params)
    flat, unravel = ravel_pytree(params)

    def apply(flat, states):
        return network.apply(unravel(flat), *states)[1]

    def policy_fn(flat):
        return apply(flat, (memory, *seen))

    @fast_jit
    def curvatures(flat):
        old = policy_fn(flat)
        dense = jax.hessian(lambda new: mean_kl(old, policy_fn(new)))(flat)
        batch = Batch((memory, *seen), old.sample(jax.random.key(1)), None, None)
        basis = jnp.eye(flat.size)
        matrices = [
            jax.vmap(make(apply, flat, batch), out_axes=1)(basis)
            for make in (
                fisher_vector_product,
                gauss_newton_vector_product,
                empirical_fisher_vector_product,
            )
        ]
        return old, dense, batch.actions, matrices

    old, dense, actions, (*exact, empirical) = curvatures(flat)
    for matrix in exact:
        np.testing.assert_allclose(matrix, dense, rtol=1e-8, atol=1e-12)

    if isinstance(head, CategoricalHead):
        scores = fast_jit(jax.jacrev(lambda flat: policy_fn(flat).log_probs()))(flat)
        probabilities = np.exp(old.log_probs())
        expected = np.einsum("btk,btkp,btkq->pq", probabilities, scores, scores)
        np.testing.assert_allclose(dense, expected / (B * T), rtol=1e-8, atol=1e-12)
        taken = np.take_along_axis(scores, np.asarray(actions)[..., None, None], axis=2)
        expected = np.einsum("btkp,btkq->pq", taken, taken) / (B * T)
        np.testing.assert_allclose(empirical, expected, rtol=1e-8, atol=1e-12)
    # What reaches through time is there: the recurrent weights have curvature.
    marked = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.full_like(
            leaf, any(name in jax.tree_util.keystr(path) for name in recurrent)
        ),
        params,
    )
    through_time = ravel_pytree(marked)[0].astype(bool)
    assert through_time.sum() == count
    assert np.all(np.diag(dense)[through_time] > 0)


def test_an_unknown_memory_is_refused(no_shape_checks):
    network = RecurrentPolicy(MLP((3,)), CategoricalHead(2), UNITS, "lstm")
    with pytest.raises(ValueError, match="memory='lstm'; write 'gru' or 'lru'"):
        init(network)


def test_networks_are_told_apart():
    functions = RecurrentNetworkFns(POLICY.initial_memory, POLICY.init, POLICY.apply)
    for network in (POLICY, VALUE, LRU_POLICY, functions):
        assert isinstance(network, RecurrentNetwork)
        assert hash(network) == hash(network)
    for network in (Policy(MLP(), CategoricalHead(2)), NetworkFns(len, len)):
        assert not isinstance(network, RecurrentNetwork)
