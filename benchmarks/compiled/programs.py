"""The programs that are compiled: a step of one agent, of a sweep, PPO and rejax's."""

import dataclasses
import functools
import pathlib
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import trpo_jax
from benchmarks.compiled.targets import PPO, REJAX, Target, devices_of
from benchmarks.peers.__main__ import ENVIRONMENTS, HERE, python_of
from trpo_jax.environments import MaskedObservation, TimeStep, make_environment
from trpo_jax.training.placement import place
from trpo_jax.training.seeds import over_seeds, state_type


@dataclasses.dataclass(frozen=True)
class Case:
    """One program.

    Attributes:
        name: The policy, or the program if it is another.
        num_envs: Environments of one agent, over all devices.
        rollout_length: Steps of a rollout.
        num_agents: Agents side by side; 1 for one.
        fields: Fields of the config, as pairs.
        per_device: Whether `num_envs` is of one device, so that the work grows with
            the devices.
    """

    name: str
    num_envs: int
    rollout_length: int
    num_agents: int = 1
    fields: tuple[tuple[str, Any], ...] = ()
    per_device: bool = False

    def envs_on(self, target: Target) -> int:
        return self.num_envs * (target.devices if self.per_device else 1)

    def _mesh(self, target: Target) -> Mesh:
        shape = (target.devices, 1) if self.num_agents > 1 else (1, target.devices)
        devices = np.asarray(devices_of(target)).reshape(shape)
        return Mesh(devices, ("agents", "environments"))

    def config(self, target: Target) -> trpo_jax.TRPOConfig:
        fields = dict(self.fields)
        if fields.get("env") == "masked":
            fields["env"] = Masked()
        num_envs = self.envs_on(target)
        batch = num_envs * self.rollout_length
        return trpo_jax.TRPOConfig(
            num_envs=num_envs,
            rollout_length=self.rollout_length,
            total_timesteps=batch,
            num_seeds=self.num_agents,
            devices=self._mesh(target),
            normalize_observations=True,
            normalize_returns=True,
            # The default of an accelerator, where None would be that of this CPU.
            micro_batch_size=batch,
            **fields,
        )


class Masked:
    """CartPole with a mask that allows every action."""

    def __init__(self) -> None:
        self._inner = make_environment("CartPole-v1")
        self.observation_shape = self._inner.observation_shape
        self.action_space = self._inner.action_space

    def reset(self, key: jax.Array) -> tuple[Any, MaskedObservation]:
        state, observation = self._inner.reset(key)
        return state, self._mask(observation)

    def step(
        self, key: jax.Array, state: Any, action: jax.Array
    ) -> tuple[Any, TimeStep]:
        state, result = self._inner.step(key, state, action)
        return state, result._replace(
            observation=self._mask(result.observation),
            final_observation=self._mask(result.final_observation),
        )

    def _mask(self, observation: jax.Array) -> MaskedObservation:
        return MaskedObservation(observation, jnp.ones(2, bool))


_PLAIN = (("env", "CartPole-v1"),)
POLICIES: dict[str, tuple[tuple[str, Any], ...]] = {
    "feed-forward": _PLAIN,
    "masked": (("env", "masked"),),
    "GRU": (
        ("env", "MemoryChain-bsuite"),
        ("hidden_sizes", (64,)),
        ("memory_size", 64),
    ),
    "gSDE": (("env", "Pendulum-v1"), ("action_distribution", "gsde")),
    "convolutional": (
        ("env", "Asterix-MinAtar"),
        ("activation", "relu"),
        ("channels", (8,)),
        ("hidden_sizes", (64,)),
    ),
}
_SMALL, _LARGE = (1024, 32), (4096, 128)
# The work of rejax's PPO, for the policy and for the critic.
_PPO = (
    *_PLAIN,
    ("update", "ppo"),
    ("policy_epochs", 4),
    ("policy_minibatches", 4),
    ("critic_fit", "first_order"),
    ("critic_epochs", 4),
    ("critic_minibatches", 4),
)
# The other updates at their defaults, beside "feed-forward", which is TRPO.
_RELATIVES = [
    Case(f'update="{name}"', *_SMALL, fields=(*_PLAIN, ("update", name)))
    for name in ("tnpg", "npg", "ppo", "ppo_penalty", "projection")
]
_SWEEP = Case("sweep, feed-forward", 8, 128, num_agents=1024, fields=_PLAIN)


def plan(targets: Iterable[Target]) -> list[tuple[Case, Target]]:
    """Return the programs of each target, the most important first.

    Those of all policies at one size come first, on one and on the most devices; then
    PPO and rejax's, and the other updates on one; then one policy at each size and
    number of devices, and the sweep; then fixed work for each device; then the rest.
    """
    by_policy = [Case(name, *_SMALL, fields=f) for name, f in POLICIES.items()]
    large = [Case(name, *_LARGE, fields=f) for name, f in POLICIES.items()]
    growing = [
        Case("feed-forward", num_envs, 32, fields=_PLAIN, per_device=True)
        for num_envs in (1024, 16_384)
    ]
    one = [Case(REJAX, *size) for size in (_SMALL, _LARGE)]
    ppo = [Case(PPO, *size, fields=_PPO) for size in (_SMALL, _LARGE)]
    targets = list(targets)
    ends = [t for t in targets if t.devices in (1, 8, 256)]
    between = [t for t in targets if t not in ends]
    alone = [t for t in targets if t.devices == 1]
    whole = [t for t in targets if t.name != "v5e-64"]
    stages = [
        (by_policy, ends),
        (ppo, ends),
        (one, alone),
        (_RELATIVES, [t for t in alone if t.kind == "h100"]),
        ([large[0], _SWEEP], whole),
        (growing, targets),
        (large[1:], ends),
        (by_policy, [t for t in between if t in whole]),
    ]
    pairs = [
        (case, target) for cases, where in stages for case in cases for target in where
    ]
    return list(dict.fromkeys(pairs))


class Lowered(NamedTuple):
    """A program to be compiled, and the bytes of the parameters that it trains.

    Attributes:
        lower: Returns the lowered program.
        parameter_bytes: Of policy and critic together, of one agent.
    """

    lower: Callable[[], jax.stages.Lowered]
    parameter_bytes: int


def lowered(case: Case, target: Target) -> Lowered:
    """Return the program of a case for a target."""
    if case.name == REJAX:
        return _rejax(case, target)
    return _ours(case, target)


def _ours(case: Case, target: Target) -> Lowered:
    config = case.config(target)
    state = state_type(config)

    def update(state: Any) -> tuple[Any, Any]:
        step = functools.partial(trpo_jax.step, config)
        state, metrics = over_seeds(config, step)(state)
        return place(config, state, num_seeds=config.num_seeds), metrics

    parameters = jax.tree.leaves((state.params, state.critic_params))
    nbytes = sum(leaf.size * leaf.dtype.itemsize for leaf in parameters)
    program = jax.jit(update, donate_argnums=0)
    return Lowered(lambda: program.lower(state), nbytes // case.num_agents)


def _rejax(case: Case, target: Target) -> Lowered:
    """Return rejax's program, exported by a Python that has rejax."""
    python = python_of("rejax PPO", ENVIRONMENTS)
    platform = "cuda" if target.kind == "h100" else "tpu"
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "program"
        sizes = map(str, (case.num_envs, case.rollout_length))
        subprocess.run(
            [python, HERE / "run_rejax.py", "export", *sizes, platform, path],
            check=True,
        )
        exported = jax.export.deserialize(bytearray(path.read_bytes()))
    mesh = Mesh(devices_of(target), ("devices",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    program = jax.jit(exported.call, in_shardings=everywhere, out_shardings=everywhere)
    arguments = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in exported.in_avals]
    return Lowered(lambda: program.lower(arguments), 0)
