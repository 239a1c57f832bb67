"""Products with a policy's Jacobian, and what is stored for them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import fast_jit
from jax.flatten_util import ravel_pytree

import trpo_jax
from trpo_jax.trust_region import layers
from trpo_jax.trust_region.layers import linearize_policy

N = 6
RNG = np.random.default_rng(0)
STATES = RNG.normal(size=(N, 4))
IMAGES = RNG.normal(size=(N, 5, 5, 2))


def of_network(torso, head):
    network = trpo_jax.networks.Policy(torso, head)

    def init(states):
        return network.init(jax.random.key(0), states[:1])

    return init, network.apply


def of_matrices(policy_fn, *shapes):
    def init(states):
        rng = np.random.default_rng(2)
        return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]

    return init, policy_fn


def mlp(params, states):
    return jnp.tanh(states @ params[0]) @ params[1]


def attention(params, states):
    """Products of matrices of which both sides depend on the state, and no other."""
    tokens = jnp.tanh(states[:, :, None] * params[0])
    scores = tokens @ jnp.swapaxes(tokens @ params[1], 1, 2)
    return jax.nn.softmax(scores, axis=-1)[:, 0] @ params[2]


def across(params, states):
    """Units along the first axis, and as many of them as states."""
    return (params[1] @ jnp.tanh(params[0] @ states.T)).T


def together(params, states):
    """What it says of a state, and what it says of all of them together."""
    hidden = jnp.tanh(states @ params[0])
    return hidden @ params[1], jnp.mean(hidden, axis=0)


def jitted(params, states):
    return jax.jit(lambda x, w: x @ w)(jnp.tanh(states @ params[0]), params[1])


def looped(params, states):
    def step(hidden, _):
        return jnp.tanh(hidden @ params[0]), None

    return jax.lax.scan(step, states, length=2)[0] @ params[1]


def by_turns(params, states):
    """In another order within, and back again."""
    order = jnp.argsort(states[:, 0])
    hidden = jnp.tanh(states[order] @ params[0])
    return (hidden @ params[1])[jnp.argsort(order)]


def normalized(params, states):
    """What it says of a state depends on the others."""
    hidden = jnp.tanh(states @ params[0])
    return (hidden - hidden.mean(axis=0)) @ params[1]


def padded(params, states):
    more = jnp.concatenate([jnp.ones((1, states.shape[1])), states])
    return mlp(params, more)[1:]


def in_halves(params, states):
    return jnp.concatenate([mlp(params, states[:3]), mlp(params, states[3:])])


def rows_of_its_own(params, states):
    """A number for each state that it brings along."""
    return mlp(params, states) + jnp.arange(2.0 * N).reshape(N, 2)


def with_integers(params, states):
    hidden = jnp.tanh(states @ params[0])
    counts = (hidden > 0).astype(jnp.int32) @ jnp.ones((5, 2), jnp.int32)
    return hidden @ params[1] + counts


def mixed(params, states):
    hidden = jnp.tanh(states.astype(jnp.float32) @ params[0].astype(jnp.float32))
    return hidden.astype(jnp.bfloat16) @ params[1].astype(jnp.bfloat16)


@jax.custom_jvp
def product(x, weights):
    return x @ weights


@product.defjvp
def product_jvp(primals, tangents):
    (x, weights), (x_change, weights_change) = primals, tangents
    return x @ weights, x_change @ weights + x @ weights_change


def customized(params, states):
    """A product with a derivative of its own is left as it is."""
    return product(jnp.tanh(jnp.tanh(states @ params[0]) @ params[2]), params[1])


def squared(params, states):
    """A product of a layer's output with itself."""
    hidden = jnp.tanh(states @ params[0])
    return jnp.einsum("nh,nh->n", hidden, hidden)[:, None] * params[1]


# What makes parameters and the policy; states; for how many operands S is stored where
# storing costs nothing.
CASES = {
    "layers": (
        of_network(
            trpo_jax.networks.MLP((8, 7, 6)), trpo_jax.networks.CategoricalHead(3)
        ),
        STATES,
        3,
    ),
    "kinks": (
        of_network(
            trpo_jax.networks.MLP((8, 7), jax.nn.relu),
            trpo_jax.networks.GaussianHead(2),
        ),
        STATES,
        2,
    ),
    "several outputs": (
        of_network(
            trpo_jax.networks.MLP((8, 7)),
            trpo_jax.networks.MultiCategoricalHead((2, 3)),
        ),
        STATES,
        2,
    ),
    "images": (
        of_network(
            trpo_jax.networks.CNN((3, 4), hidden_sizes=(5,)),
            trpo_jax.networks.StateDependentGaussianHead(2),
        ),
        IMAGES,
        3,
    ),
    "attention": (of_matrices(attention, (1, 5), (5, 5), (4, 2)), STATES, 4),
    "units first": (of_matrices(across, (N, 4), (2, N)), STATES, 0),
    "all states together": (of_matrices(together, (4, 5), (5, 2)), STATES, 0),
    "a jitted layer": (of_matrices(jitted, (4, 5), (5, 2)), STATES, 1),
    "a loop": (of_matrices(looped, (4, 4), (4, 2)), STATES, 0),
    "with itself": (of_matrices(squared, (4, 5), (1, 2)), STATES, 2),
    "another order": (of_matrices(by_turns, (4, 5), (5, 2)), STATES, 0),
    "the others' mean": (of_matrices(normalized, (4, 5), (5, 2)), STATES, 0),
    "one row more": (of_matrices(padded, (4, 5), (5, 2)), STATES, 0),
    "two halves": (of_matrices(in_halves, (4, 5), (5, 2)), STATES, 0),
    "rows of its own": (of_matrices(rows_of_its_own, (4, 5), (5, 2)), STATES, 1),
    "one state": (of_matrices(mlp, (4, 5), (5, 2)), STATES[:1], 1),
    "no axis": (of_matrices(lambda p, s: mlp(p, s)[0], (4, 5), (5, 2)), STATES[:1], 0),
    "one made many": (
        of_matrices(lambda p, s: jnp.broadcast_to(mlp(p, s), (5, 2)), (4, 5), (5, 2)),
        STATES[:1],
        0,
    ),
    "integers": (of_matrices(with_integers, (4, 5), (5, 2)), STATES, 1),
    "custom": (of_matrices(customized, (4, 5), (5, 2), (5, 5)), STATES, 1),
    "no layer": (of_matrices(lambda p, s: jnp.sin(s * p[0]), (1, 4)), STATES, 0),
}


def stored(policy_fn, params, states, num_products):
    """For which operands that depend on the state, in their order, S is stored."""
    program = layers._without_dead_code(jax.make_jaxpr(policy_fn)(params, states))
    num_params = len(jax.tree.leaves(params))
    operands, _ = layers._plan(program, num_params, num_products)
    return [operand is not None for operand in operands]


@pytest.mark.parametrize("name", CASES)
def test_is_the_jacobian_whatever_is_stored(name, monkeypatch, float64):
    (init, policy_fn), states, num_stored = CASES[name]
    monkeypatch.setattr(layers, "_STORED_COST", 0)
    states = jnp.asarray(states)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), init(states))
    assert sum(stored(policy_fn, params, states, 1000)) == num_stored

    @fast_jit
    def both(params, vector):
        def forward_and_back(outputs, jacobian):
            change = jacobian(vector)
            weighted = jax.tree.map(jnp.cos, change)
            (back,) = jax.linear_transpose(jacobian, params)(weighted)
            return outputs, change, back

        plain = jax.linearize(lambda params: policy_fn(params, states), params)
        by_layers = linearize_policy(policy_fn, params, states, num_products=1000)
        return forward_and_back(*plain), forward_and_back(*by_layers)

    flat, unravel = ravel_pytree(params)
    vector = unravel(jnp.asarray(np.random.default_rng(1).normal(size=flat.size)))
    expected, actual = both(params, vector)
    chex.assert_trees_all_close(actual, expected, rtol=1e-11, atol=1e-12)
    assert np.linalg.norm(ravel_pytree(expected)[0]) > 0.1


def network_and_states(num_actions, units, num_states=256):
    (init, policy_fn) = of_network(
        trpo_jax.networks.MLP((units, units)),
        trpo_jax.networks.CategoricalHead(num_actions),
    )
    rng = np.random.default_rng(1)
    states = jnp.asarray(rng.normal(size=(num_states, 4)), jnp.float32)
    return policy_fn, jax.eval_shape(init, states), states


@pytest.mark.parametrize(
    ("num_actions", "units", "num_products", "is_stored"),
    [
        (2, 64, 10, True),
        (3, 64, 10, True),
        (6, 64, 10, False),  # too many numbers, that are used too little
        (6, 256, 10, True),
        (2, 64, 1, False),  # for one product there is nothing to gain
        (2, 8, 10, False),  # the products of matrices are small themselves
        (12, 1024, 10, False),  # as many passes backwards as products are saved
    ],
)
def test_stores_what_is_worth_it(num_actions, units, num_products, is_stored):
    problem = network_and_states(num_actions, units)
    # The observation and weights; the first layer's output and weights; the second's:
    # what comes after that has no more units than there are outputs.
    expected = [False, False, is_stored, False, False, False]
    assert stored(*problem, num_products) == expected


def test_a_product_takes_half_the_operations():
    policy_fn, params, states = network_and_states(2, 64)

    def operations(num_products):
        def once_each(params, vector, weights):
            _, jacobian = linearize_policy(
                policy_fn, params, states, num_products=num_products
            )
            pull_back = jax.linear_transpose(jacobian, params)
            return jacobian(vector), pull_back(weights)

        def sevenfold(params, vectors, weights):
            _, jacobian = linearize_policy(
                policy_fn, params, states, num_products=num_products
            )
            pull_back = jax.linear_transpose(jacobian, params)
            forth = [jacobian(vector) for vector in vectors]
            return forth, [pull_back(weight) for weight in weights]

        outputs = jax.eval_shape(policy_fn, params, states)
        once = jax.jit(once_each).lower(params, params, outputs)
        often = jax.jit(sevenfold).lower(params, [params] * 7, [outputs] * 7)
        one, seven = (x.cost_analysis()["flops"] for x in (once, often))
        return (seven - one) / 6

    first, hidden, last = (2 * len(states) * 64 * size for size in (4, 64, 2))
    plain, by_layers = operations(1), operations(10)
    assert plain == pytest.approx(2 * first + 4 * hidden + 4 * last, rel=0.06)
    assert by_layers == pytest.approx(2 * first + 2 * hidden + 6 * last, rel=0.06)


def test_what_comes_to_nothing_costs_nothing():
    """A network of actor and critic, of which the critic is not asked."""

    def both(params, states):
        hidden = jnp.tanh(states @ params[0])
        value = jnp.tanh(hidden @ params[2]) @ params[1]
        return jnp.tanh(hidden @ params[3]) @ params[1], value

    shapes = (4, 64), (64, 2), (64, 64), (64, 64)
    params = [jnp.zeros(shape) for shape in shapes]
    states = jnp.zeros((32, 4))
    actor = stored(lambda *args: both(*args)[0], params, states, 10)
    assert actor == [False, False, True, False, False, False]


def test_outputs_keep_their_types(monkeypatch):
    monkeypatch.setattr(layers, "_STORED_COST", 0)
    params = [jnp.ones((4, 5)), jnp.ones((5, 2))]
    states = jnp.asarray(STATES, jnp.float32)
    assert sum(stored(mixed, params, states, 1000)) == 1
    outputs, jacobian = linearize_policy(mixed, params, states, num_products=1000)
    assert outputs.dtype == jacobian(params).dtype == jnp.bfloat16


def test_products_have_derivatives_themselves(float64):
    """In the parameters, through what is stored as through the rest."""
    policy_fn, params, states = network_and_states(2, 40, num_states=5)
    rng = np.random.default_rng(3)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(scale=0.3, size=leaf.shape)), params
    )
    vector = jax.tree.map(jnp.cos, params)
    assert any(stored(policy_fn, params, states, 50))

    def curvature(scale, num_products):
        product = trpo_jax.trust_region.gauss_newton_vector_product(
            policy_fn,
            jax.tree.map(lambda leaf: scale * leaf, params),
            states.astype(jnp.float64),
            num_products=num_products,
        )(vector)
        return optax.tree.vdot(vector, product)

    slope = fast_jit(jax.grad(curvature), static_argnums=1)
    np.testing.assert_allclose(slope(1.0, 50), slope(1.0, 1), rtol=1e-9)


@pytest.mark.parametrize("num_products", [0, -1])
def test_a_number_of_products_that_makes_no_sense_is_refused(num_products):
    with pytest.raises(ValueError, match=f"num_products={num_products} is not posi"):
        trpo_jax.trust_region.gauss_newton_vector_product(
            mlp, [jnp.ones((4, 5)), jnp.ones((5, 2))], STATES, num_products=num_products
        )


def test_seeds_side_by_side(float64):
    policy_fn, _, states = network_and_states(2, 40, num_states=8)
    states = states.astype(jnp.float64)
    network = trpo_jax.networks.Policy(
        trpo_jax.networks.MLP((40, 40)), trpo_jax.networks.CategoricalHead(2)
    )
    keys = jax.random.split(jax.random.key(0), 3)
    params = jax.vmap(lambda key: network.init(key, states[:1]))(keys)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)

    @fast_jit
    def products(params):
        def one(params, num_products):
            operator = trpo_jax.trust_region.gauss_newton_vector_product(
                policy_fn, params, states, num_products=num_products
            )
            return operator(jax.tree.map(jnp.cos, params))

        first = jax.tree.map(lambda leaf: leaf[0], params)
        assert any(stored(policy_fn, first, states, 50))
        side_by_side = jax.vmap(one, in_axes=(0, None))
        return [side_by_side(params, count) for count in (1, 50)]

    plain, by_layers = products(params)
    chex.assert_trees_all_close(by_layers, plain, rtol=1e-10, atol=1e-14)
