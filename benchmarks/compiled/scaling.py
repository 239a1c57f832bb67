"""Growth with the devices, from rows: fixed work for each, and what exchanges cost."""

from typing import Any

from benchmarks.compiled.targets import TARGETS


def row_of(
    rows: list[dict[str, Any]], program: tuple[str, int, int], target: str
) -> dict[str, Any] | None:
    """Return the row of a program of fixed size, (name, num_envs, rollout_length)."""
    name, num_envs, length = program
    wanted = {
        "program": name,
        "num_envs": num_envs,
        "rollout_length": length,
        "target": target,
        "per_device": False,
    }
    return next((row for row in rows if wanted.items() <= row.items()), None)


def grown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of fixed work for each device, by kind, work and devices."""
    order = list(TARGETS)
    return sorted(
        (row for row in rows if row["per_device"]),
        key=lambda row: (
            TARGETS[row["target"]].kind,
            row["num_envs"] // row["devices"],
            order.index(row["target"]),
        ),
    )


def size_at_share(
    rows: list[dict[str, Any]], target: str, share: float
) -> float | None:
    """Return the environments of a device at which exchanges take a share of the time.

    From two sizes of a device: the rest of the modelled time is a line through them,
    and the time of the exchanges that of the larger.

    Returns:
        None without exchanges, or with one size; 0 if they take less at any size.
    """
    here = [row for row in rows if row["per_device"] and row["target"] == target]
    here.sort(key=lambda row: row["num_envs"])
    if len(here) < 2:
        return None
    spent = [row["modelled_seconds"]["communication"] for row in here]
    rest = [
        row["modelled_step_seconds"] - c for row, c in zip(here, spent, strict=True)
    ]
    if not spent[-1]:
        return None
    sizes = [row["num_envs"] / row["devices"] for row in here]
    slope = (rest[-1] - rest[0]) / (sizes[-1] - sizes[0])
    wanted = spent[-1] * (1 - share) / share
    return max(0.0, sizes[0] + (wanted - rest[0]) / slope)
