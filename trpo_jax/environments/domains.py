"""Domain randomisation: bodies whose physics differ from row to row of a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from trpo_jax.environments import suites
from trpo_jax.environments.brax import BraxEnvironment
from trpo_jax.environments.making import make_environment
from trpo_jax.environments.varied import VariedEnvironment
from trpo_jax.errors import UsageError, UsageTypeError, describe_type
from trpo_jax.extras import import_extra

# (model, keys uint32[V, 2]) ↦ (model, axes); randomised leaves have a leading axis [V].
RandomizationFn = Callable[[PyTree, jax.Array], tuple[PyTree, PyTree]]


@suites.single_precision
def randomize_domain(
    env: str | BraxEnvironment,
    randomization_fn: RandomizationFn | None = None,
    *,
    num_envs: int,
    seed: int = 0,
) -> VariedEnvironment:
    """Return an environment whose rows have bodies drawn at random.

    Each row of a batch keeps its body through all episodes of a run, as in brax's and
    Playground's own training.

    Args:
        env: An id, such as "playground/Go1JoystickFlatTerrain" or "brax/hopper", or a
            `BraxEnvironment`.
        randomization_fn: The function that brax and Playground take: (model, keys) ↦
            (model, axes), where the leaves that it randomises have a leading axis, one
            row for each key. None for the one that Playground has for the environment.
        num_envs: Number of rows, `TRPOConfig.num_envs`.
        seed: Seed of the draws.

    Raises:
        UsageTypeError: If `env` has no model to randomise, or the function returns
            something else.
        UsageError: If `num_envs` is not positive, Playground has no function for the
            environment, or the function randomises nothing.
    """
    if type(num_envs) is not int or num_envs < 1:
        raise UsageError(f"num_envs={num_envs!r}; write a whole number, 1 or more.")
    environment = make_environment(env)
    if not isinstance(environment, BraxEnvironment) or environment.model is None:
        raise UsageTypeError(
            f"env is {describe_type(environment)}, which has no model of a body to "
            "randomise; write an id of brax or Playground, such as 'brax/hopper', or "
            "trpo_jax.environments.BraxEnvironment(env, episode_length)."
        )
    if randomization_fn is None:
        randomization_fn = _of_playground(environment.name)
    with jax.ensure_compile_time_eval():
        keys = jax.random.split(jax.random.PRNGKey(seed), num_envs)
        returned = randomization_fn(environment.model, keys)
        structure: Any = jax.tree.structure(environment.model)
        is_pair = isinstance(returned, tuple) and len(returned) == 2
        if not is_pair or jax.tree.structure(returned[0]) != structure:
            raise UsageTypeError(
                f"randomization_fn returns {describe_type(returned)}; write a pair "
                "(model, axes), the model with the structure that it was given."
            )
        pairs = zip(
            jax.tree.leaves(environment.model),
            jax.tree.leaves(returned[0]),
            strict=True,
        )
        varied = {
            index: suites.narrowed(jnp.asarray(leaf))
            for index, (one, leaf) in enumerate(pairs)
            if jnp.ndim(leaf) > jnp.ndim(one)
        }
    if not varied:
        raise UsageError(
            "randomization_fn randomises nothing: no leaf of its model has a leading "
            f"axis [{num_envs}]; write one that maps jax.vmap over the keys, as brax's "
            "and Playground's do."
        )
    return VariedEnvironment(environment.with_leaves, varied)


def _of_playground(name: str) -> RandomizationFn:
    """Return the function that Playground has for one of its environments."""
    suite, _, of_suite = name.partition("/")
    if suite != "playground":
        raise UsageError(
            f"{name} has no randomization_fn of its own; write one, (model, keys) ↦ "
            "(model, axes), as brax's train takes it."
        )
    registry = import_extra("mujoco_playground", extra="playground").registry
    found = registry.get_domain_randomizer(of_suite)
    if found is None:
        raise UsageError(
            f"Playground randomises nothing in {of_suite}; write a randomization_fn, "
            "(model, keys) ↦ (model, axes), as brax's train takes it."
        )
    return found
