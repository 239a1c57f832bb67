"""Environments of one's own: what is wrong with one is said, with what to write."""

import re

import gymnax.environments.spaces
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trpo_jax
from trpo_jax.environments import (
    Box,
    Discrete,
    MaskedObservation,
    MultiDiscrete,
    TimeStep,
    make_environment,
)


class Corridor:
    """Two steps to the right end the episode; every part can be replaced."""

    observation_shape = (2,)
    action_space = Discrete(2)

    def __init__(self, **parts):
        for name, part in parts.items():
            setattr(self, name, part)

    def observe(self, place):
        return jnp.stack([place, -place]).astype(float)

    def reset(self, key):
        place = jnp.int32(0)
        return place, self.observe(place)

    def step(self, key, place, action):
        place = place + jnp.int32(jnp.sum(action) > 0)
        ended = place >= 2
        last = self.observe(place)
        place = jnp.where(ended, 0, place)
        return place, TimeStep(
            observation=self.observe(place),
            reward=self.reward(ended),
            terminated=ended,
            truncated=jnp.bool_(False),
            final_observation=last,
        )

    def reward(self, ended):
        return ended.astype(float)


@pytest.mark.parametrize(
    "moved",
    [jnp.int8(1), (jnp.int32(1), jnp.zeros(2)), None],
    ids=["int8", "pair", "none"],
)
def test_a_random_time_is_a_state(moved):
    message = "Corridor.at_random_time returns .*, but the state of reset is int32"
    with pytest.raises(ValueError, match=message):
        make_environment(Corridor(at_random_time=lambda key, state: moved))
    make_environment(Corridor(at_random_time=lambda key, state: state + 1))


NAN = float("nan")
INF = float("inf")


@pytest.mark.parametrize(
    "space",
    [
        Discrete(2),
        Discrete(np.int64(2)),
        MultiDiscrete((2, 3)),
        Box(2),
        Box(np.prod((2, 1)), (-1, -1), (1, 1)),
        Box(2, (-1, -INF), (1, INF)),
        Box(2, np.zeros(2), np.ones(2)),
    ],
)
def test_one_as_it_should_be_is_taken(space):
    environment = Corridor(action_space=space)
    assert make_environment(environment) is environment


def test_one_with_masks_is_taken():
    def observe(place):
        return MaskedObservation(jnp.zeros(2), jnp.ones(2, bool))

    make_environment(Corridor(observe=observe))


def test_one_with_structured_observations_is_taken():
    def observe(place):
        return {"place": place, "image": jnp.zeros((2, 2), jnp.uint8)}

    shape = {"image": (2, 2), "place": ()}
    make_environment(Corridor(observe=observe, observation_shape=shape))


def masked(size, dtype=bool):
    return lambda place: MaskedObservation(jnp.zeros(2), jnp.ones(size, dtype))


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"action_space": 3}, r"action_space is 3 .*write .*Discrete\(num_actions\)"),
        ({"action_space": Discrete(0)}, "a positive number of each"),
        ({"action_space": MultiDiscrete(())}, "a positive number of each"),
        ({"action_space": gymnax.environments.spaces.Discrete(3)}, "of gymnax"),
        ({"action_space": Box(2, None, (1, 1))}, r"one side only.*math\.inf"),
        ({"action_space": Box(2, (0, 0), None)}, r"one side only.*math\.inf"),
        ({"action_space": Box(2, (0, 0), (1,))}, "are not 2 plain numbers each"),
        ({"action_space": Box(2, (0,), (1,))}, "are not 2 plain numbers each"),
        ({"action_space": Box(2, (0, 0), (1, "a"))}, "are not 2 plain numbers each"),
        ({"action_space": Box(2, -1.0, 1.0)}, "are not 2 plain numbers each"),
        ({"action_space": Box(2, (0, 1), (1, 1))}, "the low one below the high one"),
        ({"action_space": Box(1, (2,), (1,))}, "the low one below the high one"),
        ({"action_space": Box(1, (NAN,), (1,))}, "the low one below the high one"),
        ({"action_space": Box(1, (-1,), (NAN,))}, "the low one below the high one"),
        ({"action_space": Box(2), "observe": masked(2)}, r"masks actions, .*Box"),
        ({"observe": masked(3)}, r"action_mask bool\[3\].*write bool\[2\]"),
        ({"observe": masked(2, int)}, r"action_mask int32\[2\].*write bool\[2\]"),
        (
            {"observe": lambda place: {"a": place}},
            r"observes \{'a': int32\[\]\}.*write observation_shape = \{'a': \(\)\},",
        ),
        (
            {"observe": lambda place: {}},
            r"observes \{\}, .* no numbers; write an array",
        ),
        (
            {"observe": lambda place: jnp.zeros(0), "observation_shape": (0,)},
            r"observes float32\[0\], .* no numbers; write an array",
        ),
        (
            {"reset": lambda key: (jnp.int32(0), {"name": "left"})},
            r"Corridor\.reset returns something that is not an array .*\['name'\]",
        ),
        (
            {"step": lambda key, state, action: (state, np.array(["left"]))},
            r"Corridor\.step returns something that is not an array of numbers; leave",
        ),
        ({"observation_shape": (3,)}, r"float32\[2\].*is \(3,\); write .* = \(2,\)"),
        ({"observation_shape": {"a": (2,)}}, r"is a dict .*such as \(2,\)"),
        (
            {"reward": lambda ended: jnp.ones(2)},
            r"reward float32\[2\].*floating scalar",
        ),
        (
            {"reward": lambda ended: ended},
            r"reward bool\[\]; it must be a real floating",
        ),
        (
            {
                "step": lambda key, state, action: (
                    jnp.float32(0),
                    TimeStep(*[state] * 5),
                )
            },
            r"state float32\[\], but that of reset is int32\[\]",
        ),
        (
            {"step": lambda key, state, action: (state, (state,))},
            "write a pair .state, ",
        ),
        ({"reset": lambda key: jnp.zeros(2)}, r"write a pair \(state, observation\)"),
    ],
)
def test_what_is_wrong_is_said(parts, message):
    with pytest.raises((ValueError, TypeError), match=message):
        trpo_jax.TRPOConfig(env=Corridor(**parts))


def test_a_step_of_another_final_observation_is_refused():
    class Odd(Corridor):
        def step(self, key, place, action):
            place, step = super().step(key, place, action)
            mask = jnp.ones(2, bool)
            return place, step._replace(
                final_observation=MaskedObservation(step.final_observation, mask)
            )

    with pytest.raises(
        ValueError, match=r"final_observation MaskedObservation.*the same"
    ):
        make_environment(Odd())


def test_advice_on_bounds_works():
    with pytest.raises(ValueError, match="the low one below") as raised:
        make_environment(Corridor(action_space=Box(2, (1, 1), (0, 0))))
    advised = re.search(r"such as (trpo_jax\..*?\)\))", str(raised.value))[1]
    space = eval(advised)
    assert make_environment(Corridor(action_space=space)).action_space == space


def test_an_observation_of_a_reset_must_be_that_of_a_step():
    class Whole(Corridor):
        def reset(self, key):
            place, observation = super().reset(key)
            return place, observation.astype(jnp.int32)

    with pytest.raises(ValueError, match=r"float32\[2\].*of reset is int32\[2\]"):
        make_environment(Whole())


class Drifting(Corridor):
    """Its state takes the type of an array made without a dtype."""

    def reset(self, key):
        return jnp.float32(0), self.observe(jnp.float32(0))

    def step(self, key, place, action):
        _, step = super().step(key, jnp.int32(place), action)
        place = place + jnp.ones(1)[0]
        return place, step


def test_double_precision_is_checked_anew():
    environment = Drifting()
    assert make_environment(environment) is environment
    with (
        jax.enable_x64(True),
        pytest.raises(ValueError, match=r"float64\[\].*dtype=jnp\.float32, or switch"),
    ):
        make_environment(environment)
    assert make_environment(environment) is environment


def test_it_trains():
    config = trpo_jax.TRPOConfig(
        env=Corridor(),
        num_envs=4,
        rollout_length=16,
        total_timesteps=128,
        hidden_sizes=(8,),
    )
    returns = trpo_jax.train(config).metrics.episode_return
    assert np.isfinite(returns).all()


def test_a_pair_in_the_wrong_order_is_named():
    class Swapped(Corridor):
        def reset(self, key):
            place, observation = super().reset(key)
            return observation, place

    with pytest.raises(ValueError, match=r"write \(state, observation\) in this"):
        make_environment(Swapped())
