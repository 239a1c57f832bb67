import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit

from trpo_jax.environments.restart import restarting

KEY = jax.random.key(0)


def start(key):
    """A state with a key and an array of no entries, as some suites have."""
    place = jax.random.normal(key, (2,))
    return {"place": place, "time": jnp.int32(0), "key": key, "empty": jnp.ones((0, 3))}


GOING_ON = start(jax.random.key(1)) | {"time": jnp.int32(5)}


def going_on(*batch):
    return jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (*batch, *leaf.shape)), GOING_ON
    )


def same(left, right):
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert one.shape == other.shape
        assert (one == other).all()


def test_an_episode_that_has_ended_starts_anew_and_another_goes_on():
    restart = restarting(start)
    same(restart(jnp.bool_(True), KEY, GOING_ON), start(KEY))
    same(restart(jnp.bool_(False), KEY, GOING_ON), GOING_ON)


@pytest.mark.parametrize("batch", [(4,), (2, 3), (2, 3, 2)])
def test_however_often_it_is_mapped(batch):
    restart, by_hand = restarting(start), _by_hand
    for _ in batch:
        restart, by_hand = jax.vmap(restart), jax.vmap(by_hand)
    keys = jax.random.split(KEY, batch)
    ended = jax.random.bernoulli(KEY, 0.5, batch)
    assert ended.any()
    assert not ended.all()
    for flags in (ended, jnp.zeros_like(ended), jnp.ones_like(ended)):
        arguments = flags, keys, going_on(*batch)
        same(fast_jit(restart)(*arguments), by_hand(*arguments))


def _by_hand(ended, key, running):
    return jax.tree.map(
        lambda new, old: jnp.where(ended, new, old), start(key), running
    )


@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_a_batch_that_its_parts_do_not_divide(share):
    size = 37
    keys = jax.random.split(KEY, size)
    ended = jax.random.bernoulli(KEY, share, (size,)).at[-1].set(True)
    arguments = ended, keys, going_on(size)
    restarted = fast_jit(jax.vmap(restarting(start)))(*arguments)
    same(restarted, jax.vmap(_by_hand)(*arguments))


@pytest.mark.parametrize("mapped", [True, False])
def test_a_start_may_depend_on_parameters(mapped):
    restart = restarting(lambda key, shift: jax.random.normal(key) + shift)
    keys, ended = jax.random.split(KEY, 3), jnp.array([True, False, True])
    shifts = jnp.arange(3.0) if mapped else 2  # a Python number may be one
    axes = (0, 0, 0, 0 if mapped else None)
    started = fast_jit(jax.vmap(restart, axes))(ended, keys, jnp.zeros(3), shifts)
    expected = jnp.where(ended, jax.vmap(jax.random.normal)(keys) + shifts, 0)
    np.testing.assert_allclose(started, expected, rtol=1e-6)


def test_what_is_the_same_for_a_whole_batch_need_not_be_mapped():
    keys = jax.random.split(KEY, 3)
    started = jax.vmap(restarting(start), in_axes=(None, 0, None))(
        jnp.bool_(True), keys, GOING_ON
    )
    same(started, jax.vmap(start)(keys))


def test_nothing_starts_unless_an_episode_of_the_batch_has_ended():
    starts = []

    def counted(key):
        jax.debug.callback(lambda _: starts.append(1), jax.random.key_data(key))
        return start(key)

    restart = fast_jit(jax.vmap(jax.vmap(restarting(counted))))
    keys = jax.random.split(KEY, (2, 2))
    nobody = jnp.zeros((2, 2), bool)
    for ended in (nobody, nobody.at[1, 0].set(True)):
        starts.clear()
        restart(ended, keys, going_on(2, 2))
        jax.effects_barrier()
        assert len(starts) == ended.sum()


def test_inside_a_scan_over_time():
    restart = restarting(start)

    @fast_jit
    @jax.vmap
    def play(key, limit):
        def act(state, key):
            state = state | {"time": state["time"] + 1}
            ended = state["time"] >= limit
            following = restart(ended, key, state)
            return following, (ended, following["place"])

        return jax.lax.scan(act, start(key), jax.random.split(key, 6))[1]

    ended, place = play(jax.random.split(KEY, 2), jnp.array([2, 3]))
    np.testing.assert_array_equal(np.nonzero(ended[0])[0], [1, 3, 5])
    np.testing.assert_array_equal(np.nonzero(ended[1])[0], [2, 5])
    assert len(np.unique(place[0], axis=0)) == 4
