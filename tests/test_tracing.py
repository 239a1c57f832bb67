"""A transformation under way is detected, and its tracers are found."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from trpo_jax.tracing import holds_tracers, is_tracing

CONCRETE = jnp.ones(2)
TRANSFORMS = {
    "jit": jax.jit,
    "vmap": lambda f: lambda x: jax.vmap(f)(x[None])[0],
    "grad": jax.grad,
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (x,)),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(f)),
    "eval_shape": lambda f: functools.partial(jax.eval_shape, f),
}
EVERY_TRANSFORM = pytest.mark.parametrize(
    "transform", TRANSFORMS.values(), ids=TRANSFORMS
)


def inside(transform, observe):
    """Return what `observe` returns inside of a transformation of one number."""
    seen = []

    def function(x):
        seen.append(observe(x))
        return x

    transform(function)(jnp.float32(2.0))
    return seen[0]


@EVERY_TRANSFORM
def test_a_transformation_is_seen_without_its_arguments(transform):
    assert not is_tracing()
    assert inside(transform, lambda _: is_tracing())
    assert not is_tracing()


class Holder:
    def __init__(self, number):
        self.number = number


class Slotted:
    __slots__ = ("number",)

    def __init__(self, number):
        self.number = number


def in_a_class(x):
    class Local:
        def step(self):
            return x

    class Derived(Local):
        pass

    return Derived()


def after_itself(x):
    holder = Holder(x)
    holder.itself = holder
    return {"a": [(1, holder)]}


PLACES = {
    "itself": lambda x: x,
    "attribute": Holder,
    "slot": Slotted,
    "method": lambda x: Holder(x).__init__,
    "closure": lambda x: lambda: x,
    "default": lambda x: lambda y=x: y,
    "partial": lambda x: functools.partial(max, x),
    "method of a local class": in_a_class,
    "containers, in a circle": after_itself,
    "jitted": lambda x: jax.jit(lambda: x),
    "schedule": lambda x: optax.linear_schedule(x, 0.0, 10),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@EVERY_TRANSFORM
def test_a_tracer_is_found_wherever_it_sits(transform, place):
    assert inside(transform, lambda x: holds_tracers(place(x)))
    assert not inside(transform, lambda _: holds_tracers(place(1.0)))
    assert not inside(transform, lambda _: holds_tracers(place(CONCRETE)))
