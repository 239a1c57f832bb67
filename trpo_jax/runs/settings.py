"""Settings of a recorded run: checkpoints, evaluation, logs."""

import dataclasses
import numbers

from trpo_jax.errors import UsageError, UsageTypeError
from trpo_jax.training.config_checks import plain
from trpo_jax.trust_region.checks import whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of what a run records, and how often. Validated when made."""

    checkpoint_minutes: float | None = 5.0
    """Minutes between two checkpoints; None to save by updates alone."""
    checkpoint_updates: int | None = None
    """Updates between two checkpoints; None to save by minutes alone."""
    keep_last: int = 3
    """Newest checkpoints to keep."""
    keep_best: int = 1
    """Older checkpoints to keep for their return: in their evaluation if the run
    evaluates in training, else in training itself. Of the states that are evaluated
    between two checkpoints, the best one is saved."""
    evaluation_episodes: int = 128
    """Episodes that evaluate the last policy when the run is done."""
    evaluation_updates: int | None = None
    """Updates between two evaluations in training, by greedy actions; None for none."""
    interim_episodes: int = 8
    """Episodes of each evaluation in training: few, since on a CPU they take time from
    the updates."""
    tensorboard: bool = False
    """Also write TensorBoard's event files."""
    wandb: str | None = None
    """Also log to this Weights & Biases project."""
    max_nonfinite_updates: int = 20
    """Stop after so many consecutive updates that met NaN or infinity."""

    def __post_init__(self) -> None:
        """Raise UsageError or UsageTypeError for values that could only fail later."""
        least = {
            "checkpoint_updates": 1,
            "keep_last": 1,
            "keep_best": 0,
            "evaluation_episodes": 1,
            "evaluation_updates": 1,
            "interim_episodes": 1,
            "max_nonfinite_updates": 1,
        }
        for name, fewest in least.items():
            value = getattr(self, name)
            if not (name in _MAY_BE_NONE and value is None):
                object.__setattr__(self, name, whole(name, value, least=fewest))
        usual = type(self).interim_episodes
        if self.evaluation_updates is None and self.interim_episodes != usual:
            raise UsageError(
                f"interim_episodes={self.interim_episodes} is for evaluations in "
                "training, and there are none; write evaluation_updates too, as 10."
            )
        minutes = self.checkpoint_minutes
        if minutes is not None and not (
            isinstance(minutes, numbers.Real) and 0 <= minutes < float("inf")
        ):
            raise UsageError(
                f"checkpoint_minutes={minutes!r}; write minutes, as 5, or None."
            )
        if minutes is not None:
            object.__setattr__(self, "checkpoint_minutes", float(minutes))
        object.__setattr__(self, "tensorboard", plain(self.tensorboard))
        if not isinstance(self.tensorboard, bool):
            raise UsageTypeError(f"tensorboard={self.tensorboard!r}; write True.")
        if self.wandb is not None and not (isinstance(self.wandb, str) and self.wandb):
            raise UsageTypeError(
                f"wandb={self.wandb!r} is not a project's name; write wandb='trpo_jax'."
            )

    def check_without_folder(self) -> None:
        """Raise UsageError if a setting asks for files, for a run without a folder."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in _WITHOUT_FILES and value != field.default:
                raise UsageError(
                    f"{field.name}={value!r} asks for files, but the run has no "
                    "folder; write --folder NAME on the command line, or "
                    "trpo_jax.run(config, folder, settings)."
                )


_MAY_BE_NONE = ("checkpoint_updates", "evaluation_updates")
_WITHOUT_FILES = (
    "evaluation_episodes",
    "evaluation_updates",
    "interim_episodes",
    "max_nonfinite_updates",
)
