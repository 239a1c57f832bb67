"""Values are named in the user's terms."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from trpo_jax.errors import array_types, describe_type
from trpo_jax.trust_region import Categorical


class Pair(NamedTuple):
    left: jax.Array
    right: jax.Array | None


@struct.dataclass
class Place:
    position: jax.Array


def draw(key):
    return key


ARRAY = jnp.zeros((4, 2))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (ARRAY, "an array float32[4, 2]"),
        (np.zeros(3, bool), "an array bool[3]"),
        (np.float64(1), "an array float64[]"),
        (jax.ShapeDtypeStruct((), jnp.int32), "an array int32[]"),
        (jax.random.key(0), "an array key<fry>[]"),
        ((ARRAY, jnp.int32(0)), "a tuple (float32[4, 2], int32[])"),
        ((ARRAY,), "a tuple (float32[4, 2],)"),
        ([ARRAY], "a list [float32[4, 2]]"),
        ({"a": (ARRAY, None)}, "a dict {'a': (float32[4, 2], None)}"),
        (Pair(ARRAY, None), "a Pair(left=float32[4, 2], right=None)"),
        (Place(ARRAY), "a Place(position=float32[4, 2])"),
        (Categorical(ARRAY), "a Categorical(logits=float32[4, 2])"),
        (None, "None"),
        ("mlp", "the str 'mlp'"),
        (3, "the int 3"),
        (Place, "the class Place"),
        (draw, "the function draw"),
        (object(), "an object"),
        (TypeError("no"), "a TypeError"),
    ],
)
def test_a_value_is_named_in_its_users_terms(value, expected):
    assert describe_type(value) == expected


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad, jax.eval_shape])
def test_a_tracer_is_the_array_that_it_stands_for(transform):
    seen = []

    def function(x):
        seen.append(describe_type({"x": (x, 1)}))
        seen.append(describe_type(x))
        return x.sum()

    if transform is jax.eval_shape:
        transform(function, ARRAY)
    else:
        transform(function)(ARRAY)
    shape = "[2]" if transform is jax.vmap else "[4, 2]"
    inside = f"a dict {{'x': (float32{shape}, int)}}"
    assert seen == [inside, f"an array float32{shape}"]


def test_containers_without_arrays_are_described_too():
    assert array_types(()) == "()"
    assert array_types([{}, None]) == "[{}, None]"
