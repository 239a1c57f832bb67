"""Accelerators that are compiled for without owning one.

XLA needs only a description of the device: for a GPU its data sheet (`h100.txtpb`), for
a TPU the shape of the slice.
"""

import dataclasses
import importlib.util
import os
import pathlib
from typing import Any, Literal

PPO = "PPO, 4 epochs of 4 minibatches"
"""Name of the program with `update="ppo"` and a critic fitted in the same way."""

REJAX = "rejax's PPO, 4 epochs of 4 minibatches"
"""Name of the program of a peer, which is compiled for one device."""

_DATA_SHEET = pathlib.Path(__file__).parent / "h100.txtpb"


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
        name: Its name in rows and on the command line.
        kind: "h100", or "v5e".
        shape: Devices along each axis of the network that connects them.
    """

    name: str
    kind: Literal["h100", "v5e"]
    shape: tuple[int, ...]

    @property
    def devices(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


TARGETS = {
    target.name: target
    for target in (
        Target("h100-1", "h100", (1,)),
        Target("h100-8", "h100", (8,)),
        Target("v5e-1", "v5e", (1, 1)),
        Target("v5e-4", "v5e", (2, 2)),
        Target("v5e-16", "v5e", (4, 4)),
        Target("v5e-64", "v5e", (8, 8)),
        Target("v5e-256", "v5e", (16, 16)),
    )
}

# The compiler of each kind is a plugin of JAX, in an extra of this package.
_COMPILERS = {"h100": ("jax_cuda13_plugin", "cuda"), "v5e": ("libtpu", "tpu")}


def has_compiler(target: Target) -> bool:
    """Return whether this environment can compile for a target."""
    return importlib.util.find_spec(_COMPILERS[target.kind][0]) is not None


def choose(names: tuple[str, ...]) -> list[Target]:
    """Return the targets of the names; without names all that can be compiled for.

    Raises:
        ValueError: If a name is unknown, or this environment cannot compile for it.
    """
    if unknown := [name for name in names if name not in TARGETS]:
        raise ValueError(
            f"no target {unknown[0]!r}; write one of {', '.join(TARGETS)}."
        )
    chosen = [TARGETS[name] for name in names] or [
        target for target in TARGETS.values() if has_compiler(target)
    ]
    missing = [target for target in chosen if not has_compiler(target)]
    if chosen and not missing:
        return chosen
    what = missing[0].name if missing else "any target"
    extras = [missing[0].kind] if missing else list(_COMPILERS)
    ways = " or ".join(
        f"`python -m venv .venv/{extra}` and `.venv/{extra}/bin/pip install -e "
        f"'.[benchmarks,{extra}]'`"
        for extra in (_COMPILERS[kind][1] for kind in extras)
    )
    raise ValueError(
        f"this environment has no compiler for {what}; it needs the accelerator's "
        f"wheels, and no accelerator. Write {ways} in the checkout, then run this "
        "command with the python of that environment."
    )


def prepare() -> None:
    """Let JAX trace on the CPU, and its plugins compile without a driver.

    To be called before JAX looks for devices.
    """
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    # No chip is taken, so that several processes may compile at once.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    import jax

    jax.config.update("jax_platforms", "cpu")


def devices_of(target: Target) -> Any:
    """Return descriptions of the devices, for a mesh."""
    from jax.experimental import topologies

    if target.kind == "h100":
        topology = topologies.get_topology_desc(
            target.kind,
            platform="cuda",
            target_config=_DATA_SHEET.read_text(),
            topology=f"1x1x{target.devices}",
        )
    else:
        # One host has 2 × 2 chips, and a slice of one chip is a part of a host.
        bounds = {"chips_per_host_bounds": [1, 1, 1]} if target.devices == 1 else {}
        topology = topologies.get_topology_desc(
            f"{target.kind}:{'x'.join(map(str, target.shape))}", "tpu", **bounds
        )
    return topology.devices
