"""Modules of Flax's NNX as networks: trained parameters, and those of each seed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit
from flax import nnx
from probes import CHAIN, TABULAR

from trpo_jax import (
    TRPOConfig,
    UpdateStatus,
    evaluate,
    export_policy,
    init,
    step,
)
from trpo_jax.environments import make_environment
from trpo_jax.networks import (
    Network,
    NNXNetwork,
    RecurrentNetwork,
    as_network,
    init_network,
)
from trpo_jax.policies import LoadedPolicy
from trpo_jax.trust_region import Categorical

OBSERVATIONS = jnp.asarray(CHAIN.features)
KEY = jax.random.key(0)


class Actor(nnx.Module):
    """With a list of layers, a constant and random streams of its own."""

    def __init__(self, rngs):
        self.layers = nnx.List(
            [nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)]
        )
        self.scale = nnx.Variable(jnp.float32(0.5))
        self.rngs = rngs

    def __call__(self, observations):
        x = observations
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return Categorical(self.scale[...] * x)


class Critic(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, observations):
        return self.linear(observations)[:, 0]


class Remembering(Critic):
    """Its memory is the sum of the episode's first observations."""

    def initial_memory(self, num_sequences):
        return jnp.zeros(num_sequences)

    def __call__(self, memory, observations, starts):
        kept = jnp.where(starts[:, 0], 0, memory)
        memories = kept[:, None] + jnp.cumsum(observations[..., 0], axis=1)
        return memories, self.linear(observations)[..., 0] + memories


class Normalized(Critic):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, observations):
        return super().__call__(self.norm(observations))


class Dropped(Critic):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, observations):
        return super().__call__(self.dropout(observations))


class Counting(Critic):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.calls = nnx.Variable(jnp.int32(0))

    def __call__(self, observations):
        self.calls[...] += 1
        return super().__call__(observations)


def actor(seed=0):
    return Actor(nnx.Rngs(seed))


def config(**fields):
    return TRPOConfig(
        env=make_environment((TABULAR, CHAIN)),
        num_envs=2,
        rollout_length=4,
        total_timesteps=8,
        **fields,
    )


@pytest.mark.parametrize("source", [actor(), Actor])
def test_it_is_the_module(source):
    network = NNXNetwork(source)
    assert isinstance(network, Network)
    assert not isinstance(network, RecurrentNetwork)
    params = network.init(jax.random.key(0), OBSERVATIONS)
    assert {path: leaf.shape for path, leaf in params.items()} == {
        "layers.0.bias": (4,),
        "layers.0.kernel": (3, 4),
        "layers.1.bias": (2,),
        "layers.1.kernel": (4, 2),
    }
    module = source if isinstance(source, Actor) else source(nnx.Rngs(KEY))
    expected = module(OBSERVATIONS).logits
    for apply in (network.apply, fast_jit(network.apply)):
        np.testing.assert_allclose(
            apply(params, OBSERVATIONS).logits, expected, rtol=1e-6
        )


def test_a_module_starts_every_seed_and_a_factory_each_of_its_own():
    keys = jax.random.split(KEY, 3)
    for source, number in ((actor(), 1), (Actor, 3)):
        network = NNXNetwork(source)
        params = jax.vmap(lambda key, n=network: n.init(key, OBSERVATIONS))(keys)
        kernels = params["layers.0.kernel"]
        assert kernels.shape == (3, 3, 4)
        assert len(np.unique(kernels, axis=0)) == number


def test_a_module_is_taken_as_it_is_and_left_so():
    module = actor()
    network = NNXNetwork(module)
    before = network.init(KEY, OBSERVATIONS)
    module.layers[0].kernel[...] = jnp.zeros((3, 4))
    after = NNXNetwork(module).init(KEY, OBSERVATIONS)
    kernels = [params["layers.0.kernel"] for params in (before, after)]
    np.testing.assert_array_equal(
        kernels[0], network.init(KEY, OBSERVATIONS)["layers.0.kernel"]
    )
    assert np.all(kernels[0] != 0)
    assert np.all(kernels[1] == 0)


def test_the_same_module_is_the_same_program():
    module = actor()
    assert config(policy=module) == config(policy=module)
    assert hash(config(policy=module)) == hash(config(policy=module))
    assert config(policy=module) != config(policy=actor())
    assert NNXNetwork(Actor) == NNXNetwork(Actor)
    assert NNXNetwork(Actor) != NNXNetwork(Critic)
    assert NNXNetwork(Actor) != NNXNetwork(module)
    assert repr(NNXNetwork(Actor)) == "NNXNetwork(Actor)"


def test_it_trains_and_only_its_parameters_change():
    run = config(policy=actor(), critic=NNXNetwork(Critic))

    @fast_jit
    def train(key):
        state = init(run, key)
        return state, *step(run, state)

    before, after, metrics = train(KEY)
    assert metrics.update.status == UpdateStatus.ACCEPTED
    for name, params in before._asdict().items():
        if name in ("params", "critic_params"):
            changed = jax.tree.map(
                lambda one, other: (one != other).any(), params, getattr(after, name)
            )
            assert all(jax.tree.leaves(changed))


def test_one_with_a_memory():
    network = as_network(Remembering(nnx.Rngs(0)))
    assert isinstance(network, RecurrentNetwork)
    observations = jnp.ones((2, 3, 3))
    starts = jnp.zeros((2, 3), bool).at[1, 0].set(True)
    inputs = (network.initial_memory(2) + 5, observations, starts)
    params = init_network(network, KEY, *inputs)
    memories, values = network.apply(params, *inputs)
    np.testing.assert_array_equal(memories, [[6, 7, 8], [1, 2, 3]])
    assert values.shape == (2, 3)
    init(config(critic=Remembering(nnx.Rngs(0))), KEY)


@pytest.mark.parametrize(
    ("make", "changed"),
    [
        (Normalized, "changes BatchStat norm.mean, BatchStat norm.var"),
        (Dropped, "changes RngCount dropout.rngs.count"),
        (Counting, "changes Variable calls"),
    ],
)
def test_what_changes_when_it_is_applied_is_refused(make, changed):
    for source in (make(nnx.Rngs(0)), NNXNetwork(make)):
        with pytest.raises(ValueError, match=changed) as raised:
            init(config(critic=source), KEY)
        assert "module.eval()" in str(raised.value)


@pytest.mark.parametrize("make", [Normalized, Dropped])
def test_advice_on_what_changes_works(make):
    def switched_off(rngs):
        module = make(rngs)
        module.eval()
        return module

    for source in (switched_off(nnx.Rngs(0)), NNXNetwork(switched_off)):
        init(config(critic=source), KEY)


class Integer(Critic):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.offset = nnx.Param(jnp.int32(1))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, r"the int 3 is neither an NNX module.*NNXNetwork\(lambda rngs"),
        (lambda rngs: OBSERVATIONS, "neither an NNX module nor makes one"),
        (Integer, r"parameter offset of Integer is an array int32\[\]; make it an nnx"),
    ],
)
def test_other_things_are_refused(source, message):
    with pytest.raises(TypeError, match=message):
        NNXNetwork(source)


@pytest.mark.usefixtures("no_shape_checks")
def test_a_class_is_not_a_network():
    with pytest.raises(TypeError, match=r"policy is the class Actor; .*an instance"):
        config(policy=Actor)


def test_other_networks_are_left_as_they_are():
    assert as_network(None) is None
    network = NNXNetwork(Actor)
    assert as_network(network) is network


def test_its_policy_is_evaluated_and_exported(tmp_path):
    config = TRPOConfig(
        env=(TABULAR, CHAIN),
        num_envs=2,
        policy=Actor(nnx.Rngs(0)),
        critic=Critic(nnx.Rngs(1)),
    )
    state = fast_jit(init)(config, KEY)
    assert evaluate(config, state, KEY, 2).shape == (2,)
    policy = LoadedPolicy(config, state, "mode")
    export_policy(policy, tmp_path / "policy", platforms=("cpu",))
    exported = jax.export.deserialize(bytearray((tmp_path / "policy").read_bytes()))
    actions = exported.call(OBSERVATIONS, np.uint32(0))
    expected = jax.vmap(policy, (0, None))(OBSERVATIONS, KEY)
    np.testing.assert_array_equal(actions, expected)
