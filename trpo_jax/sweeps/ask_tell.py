"""A search by Optuna: batches of trials, each trained as one program."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from trpo_jax.environments import make_environment
from trpo_jax.environments.contract import num_costs
from trpo_jax.errors import UsageError
from trpo_jax.extras import import_extra
from trpo_jax.runs.chunks import run_chunks
from trpo_jax.sweeps.cell_groups import Group, cut, mean_or_nan
from trpo_jax.sweeps.cell_programs import (
    CellPrograms,
    devices_of,
    fit_cells,
    memory_budget,
)
from trpo_jax.training.cells import Cells, make_cells
from trpo_jax.training.config import TRPOConfig, check_config
from trpo_jax.training.search import (
    TRACED_FIELDS,
    Range,
    as_list,
    make_settings,
    program_of,
)
from trpo_jax.trust_region.checks import whole


def ask_and_tell(
    config: TRPOConfig,
    study: Any,
    *,
    num_batches: int,
    batch_size: int,
    num_episodes: int = 128,
    memory_gib: float | int | None = None,
    **fields: Any,
) -> None:
    """Search with an Optuna study, whose trials are trained in batches, side by side.

    The study is asked for a batch of trials, they are trained as one program, and it is
    told the mean return of each over its seeds and evaluation episodes; a trial without
    a finite return has failed. In an environment with costs, the trial's user attribute
    "costs" has the mean of each, for the `constraints_func` of a sampler. The study
    stores all results and the state of the search, so that it can be resumed:
    `optuna.create_study(direction="maximize", storage=...)`.

    Args:
        config: The config whose fields are searched, with `num_seeds` runs of a trial.
        study: An Optuna study that maximises.
        num_batches: Batches to train.
        batch_size: Trials of a batch.
        num_episodes: Episodes that evaluate each policy, with greedy actions.
        memory_gib: As in `sweep`.
        **fields: By the name of a traced field, `log_uniform(low, high)`,
            `uniform(low, high)`, or a list of values.

    Raises:
        UsageError: If there are several processes, Optuna is not installed, the study
            does not maximise, or a field is not traced or cannot be searched.
        UsageTypeError: If an argument is of the wrong type.
    """
    check_config(config)
    fields = _checked(config, fields)
    optuna = import_extra("optuna", extra="optuna")
    if study.direction != optuna.study.StudyDirection.MAXIMIZE:
        raise UsageError(
            "the study minimises, and a return is to be maximised; write "
            'optuna.create_study(direction="maximize").'
        )
    num_batches = whole("num_batches", num_batches)
    batch_size = whole("batch_size", batch_size)
    program = program_of(config)
    devices = devices_of(config.devices)
    programs = fit_cells(
        program,
        batch_size * config.num_seeds,
        whole("num_episodes", num_episodes),
        devices,
        memory_budget(devices, memory_gib),
    )
    for _ in range(num_batches):
        trials = [study.ask() for _ in range(batch_size)]
        settings = [
            dataclasses.replace(
                config, **{name: _suggest(t, name, v) for name, v in fields.items()}
            )
            for t in trials
        ]
        returns, costs = _train(programs, program, make_cells(settings))
        by_trial = (batch_size, config.num_seeds)
        values = returns.reshape(by_trial).mean(axis=1)
        costs = costs.reshape(*by_trial, costs.shape[1]).mean(axis=1)
        for trial, value, cost in zip(trials, values, costs.tolist(), strict=True):
            if cost:
                trial.set_user_attr("costs", cost)
            if math.isfinite(value):
                study.tell(trial, float(value))
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _checked(config: TRPOConfig, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields to search, their values as lists or ranges."""
    if jax.process_count() > 1:
        raise UsageError(
            f"a study is asked in one process, not in {jax.process_count()}; start "
            "one, which uses all devices of its host."
        )
    fields = {name: as_list(values) for name, values in fields.items()}
    others = [name for name in fields if name not in TRACED_FIELDS]
    if others:
        raise UsageError(
            f"{', '.join(others)} is not traced, and a batch is one program; write a "
            f"search of its own for each value, over {', '.join(TRACED_FIELDS)}."
        )
    # Only to check the fields, as `sweep` does.
    make_settings(
        config,
        fields,
        num_settings=1 if any(isinstance(v, Range) for v in fields.values()) else None,
    )
    return fields


def _suggest(trial: Any, name: str, values: Any) -> Any:
    if isinstance(values, Range):
        return trial.suggest_float(
            name, values.low, values.high, log=values.logarithmic
        )
    return trial.suggest_categorical(name, values)


def _train(
    programs: CellPrograms, program: TRPOConfig, cells: Cells
) -> tuple[Float[np.ndarray, " cells"], Float[np.ndarray, "cells K"]]:
    """Train cells, as many at once as fit, and return their mean returns and costs."""
    returns = np.zeros(len(cells.keys))
    costs = np.zeros((len(returns), num_costs(make_environment(program.env))))
    every = np.arange(len(returns))
    group = Group(0, 0, 0, every, programs.num_cells, 0, program.num_updates)
    for one in cut(group):
        placed = programs.place(cells.take(one.padded))
        state = programs.training.init(placed)
        # Only the last chunk brings the state.
        *_, last = run_chunks(programs.training, state, first=0, last=one.last)
        assert last.state is not None
        sums, ended, cost_sums = programs.evaluate(last.state, placed.evaluation_keys)
        returns[one.cells] = mean_or_nan(sums, ended)[: len(one.cells)]
        costs[one.cells] = mean_or_nan(cost_sums, ended)[: len(one.cells)]
    return returns, costs
