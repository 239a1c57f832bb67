"""Checks of a program on several devices: exchanges and memory, from its row."""

from typing import Any

# Parameters of an agent that one exchange may carry, policy and critic together: XLA
# may join the gradients of both with a few numbers.
MOST_PARAMETERS = 2
# Temporaries of each of eight devices, relative to those of one.
MOST_TEMPORARIES = 1 / 6


def exchanges(row: dict[str, Any]) -> int:
    """Return the collectives of one run of the program."""
    return sum(c["times"] for c in row["collectives"] if c["counts"])


def largest(row: dict[str, Any]) -> int:
    """Return the bytes of the largest collective, 0 if there is none."""
    return max((c["nbytes"] for c in row["collectives"]), default=0)


def faults(row: dict[str, Any], alone: dict[str, Any] | None = None) -> list[str]:
    """Name what is wrong with a program on several devices.

    Args:
        row: Its row.
        alone: The row of the same batch on one device, if its temporaries are compared.
    """
    found = []
    allowed = MOST_PARAMETERS * row["parameter_bytes"]
    for collective in row["collectives"]:
        what = f"{collective['kind']} of {collective['shapes']}"
        if row["num_agents"] > 1:
            found.append(f"{what} between agents")
        elif collective["kind"] != "all-reduce":
            found.append(what)
        elif collective["nbytes"] > allowed:
            found.append(f"{what}, more than {allowed:,} bytes")
        if "rollout" in collective["loop"]:
            found.append(f"{what} in the rollout")
    if alone:
        share = row["temporary_bytes"] / max(alone["temporary_bytes"], 1)
        if share > MOST_TEMPORARIES:
            found.append(f"{share:.2f} of one device's temporaries")
    return found
