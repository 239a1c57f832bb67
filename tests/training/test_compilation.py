"""The options that programs are compiled with, and where they cannot be."""

import jax
import jax.numpy as jnp
import pytest

from trpo_jax import compiler_options
from trpo_jax.training.compilation import jit_with_options


def double(x, power):
    return 2 * x**power


def test_xla_knows_every_option():
    for env_steps in (None, 0, 10**9):
        options = compiler_options(env_steps)
        assert jax.jit(jnp.sin, compiler_options=options)(0.0) == 0.0


def test_a_short_run_has_a_program_that_is_quick_to_compile():
    assert compiler_options(1000)["xla_cpu_use_fusion_emitters"] is False
    assert "xla_cpu_use_fusion_emitters" not in compiler_options(10**9)
    assert compiler_options(10**9) == compiler_options()


def test_what_runs_once_is_compiled_without_optimisations():
    assert compiler_options(0)["xla_backend_optimization_level"] == 0
    assert compiler_options(1)["xla_backend_optimization_level"] == 1


def test_an_accelerator_has_the_defaults(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler_options() == compiler_options(1000) == {}


def test_the_same_function_and_options_are_the_same_program():
    first = jit_with_options(double, 2.0, env_steps=1, static_argnums=(1,))
    assert jit_with_options(double, 2.0, env_steps=2, static_argnums=(1,)) is first
    assert jit_with_options(double, 2.0, env_steps=10**9, static_argnums=(1,)) != first


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad])
def test_it_can_be_part_of_another_program(transform):
    def outer(x):
        return jit_with_options(double, x, env_steps=1, static_argnums=(1,))(x, 3)

    x = jnp.array([1.0, 2.0]) if transform is jax.vmap else jnp.float32(2.0)
    expected = {jax.jit: 16.0, jax.vmap: [2.0, 16.0], jax.grad: 24.0}[transform]
    assert transform(outer)(x).tolist() == expected


def test_it_can_be_part_of_another_program_with_nothing_traced_in_its_inputs():
    @jax.jit
    def outer():
        return jit_with_options(double, 2.0, env_steps=1, static_argnums=(1,))(2.0, 3)

    assert outer() == 16.0
