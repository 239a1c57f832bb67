"""What is to be recorded of a run."""

import dataclasses

from trpo_jax.errors import UsageError, UsageTypeError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What is to be recorded of a run, and how often. Validated when made."""

    checkpoint_minutes: float | None = 5.0
    """Minutes between two checkpoints; None for none but by updates."""
    checkpoint_updates: int | None = None
    """Updates between two checkpoints; None for none but by minutes."""
    keep_last: int = 3
    """The newest checkpoints that are kept."""
    keep_best: int = 1
    """Older checkpoints that are kept for their return in training."""
    evaluation_episodes: int = 128
    """Episodes that the last policy plays when the run is done."""
    tensorboard: bool = False
    """Also write TensorBoard's event files."""
    wandb: str | None = None
    """Also write to this Weights & Biases project."""
    max_nonfinite_updates: int = 20
    """Stop after so many updates in a row that saw NaN or infinity."""

    def __post_init__(self) -> None:
        """Raise ValueError or TypeError for what could only fail later."""
        least = {
            "checkpoint_updates": 1,
            "keep_last": 1,
            "keep_best": 0,
            "evaluation_episodes": 1,
            "max_nonfinite_updates": 1,
        }
        for name, fewest in least.items():
            value = getattr(self, name)
            if name == "checkpoint_updates" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise UsageTypeError(f"{name}={value!r} is not an int; write {fewest}.")
            if value < fewest:
                raise UsageError(f"{name}={value}; write at least {fewest}.")
        minutes = self.checkpoint_minutes
        if minutes is not None and not 0 <= minutes < float("inf"):
            raise UsageError(
                f"checkpoint_minutes={minutes}; write minutes, as 5, or None."
            )
