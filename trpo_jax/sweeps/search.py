"""Search of a sweep: all that its results depend on, as arguments and as a file."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trpo_jax.errors import UsageError
from trpo_jax.runs import checkpoints
from trpo_jax.runs.config_file import as_plain, config_from_dict, config_to_dict
from trpo_jax.sweeps.folder import SweepFolder, python_objects
from trpo_jax.sweeps.rungs import check_halving, rung_ends
from trpo_jax.training.config import TRPOConfig
from trpo_jax.training.search import (
    Range,
    as_list,
    make_settings,
    parse_range,
    program_of,
)
from trpo_jax.training.seeds import state_type
from trpo_jax.version import __version__


class Search(NamedTuple):
    """The arguments of `sweep` that decide its results.

    Attributes:
        config: The config, with all seeds.
        fields: Lists of values, or a `Range`, by the name of a field.
        num_settings: Settings of a random search.
        search_seed: Seed of its draws.
        halving: Fractions of the updates after which the best settings are kept.
        eta: The inverse of the share that is kept.
        num_episodes: Episodes of each evaluation.
    """

    config: TRPOConfig
    fields: Mapping[str, Any]
    num_settings: int | None
    search_seed: int
    halving: Sequence[float]
    eta: float | int
    num_episodes: int

    @property
    def num_rungs(self) -> int:
        """Rungs of successive halving; 1 without it."""
        return len(self.halving) + 1

    def settings(self) -> list[TRPOConfig]:
        """Return the config of each setting.

        Raises:
            UsageError: If the search does not make settings, or they do not make runs.
            UsageTypeError: If a value is of the wrong type.
        """
        check_halving(self.halving, self.eta)
        settings = make_settings(
            self.config,
            self.fields,
            num_settings=self.num_settings,
            search_seed=self.search_seed,
        )
        for setting in settings:
            rung_ends(setting.num_updates, self.halving)
        for program in {program_of(setting): None for setting in settings}:
            state_type(program)
        return settings

    def describe(self) -> dict[str, Any]:
        """Return all of it, fit for JSON, with the versions that it needs."""
        fields = {
            name: str(values)
            if isinstance(values, Range)
            else [as_plain(value) for value in values]
            for name, values in self.fields.items()
        }
        return {
            **self._asdict(),
            "config": config_to_dict(self.config),
            "fields": fields,
            "halving": list(self.halving),
            "eta": float(self.eta),
            "trpo_jax": __version__,
            **checkpoints.jax_settings(),
        }


def read_search(files: SweepFolder) -> Search:
    """Return what the sweep in a folder searches.

    Raises:
        UsageError: If there is no sweep, or its values are Python objects.
    """
    description = files.read_description()
    if objects := python_objects(description):
        raise UsageError(
            f"{files.path} holds a sweep with Python objects, which a file does not "
            f"hold ({', '.join(objects)}); call trpo_jax.sweep again with the same "
            "arguments, which goes on with it."
        )
    fields = {
        name: parse_range(values) if isinstance(values, str) else as_list(values)
        for name, values in description["fields"].items()
    }
    given = {name: description[name] for name in Search._fields}
    given |= {"config": config_from_dict(description["config"]), "fields": fields}
    return Search(**given)
