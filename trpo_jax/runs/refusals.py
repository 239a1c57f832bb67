"""Updates that were refused because they met NaN or infinity."""

import numpy as np

from trpo_jax.trust_region import UpdateStatus


class Refusals:
    """How long each seed has been without an update, because of NaN or infinity.

    Attributes:
        in_a_row: Refused updates up to now, int[num_seeds].
    """

    def __init__(self, num_seeds: int):
        """Count from nothing."""
        self.in_a_row = np.zeros(num_seeds, int)

    def count(self, metrics: list[dict[str, np.ndarray]]) -> None:
        """Count the updates of a chunk."""
        for one in metrics:
            refused = one["status"] == UpdateStatus.NON_FINITE
            self.in_a_row = np.where(refused, self.in_a_row + 1, 0)

    @property
    def in_every_seed(self) -> int:
        """The last updates that were refused in every seed: how many."""
        return int(self.in_a_row.min())

    def in_words(self, updates: int) -> str:
        """Say where they began, after so many updates in all."""
        seeds = np.flatnonzero(self.in_a_row)
        several = self.in_a_row.size > 1
        where = f" in seeds {', '.join(map(str, seeds))}" if several else ""
        return (
            f"updates meet NaN or infinity{where}, from update "
            f"{updates - self.in_a_row.max() + 1:,} on; look at the environment's "
            "observations and rewards, and at its action masks if it has any: each has "
            "to allow an action"
        )
