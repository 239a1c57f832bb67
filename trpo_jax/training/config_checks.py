"""Checks of a configuration, before anything compiles.

Each raises UsageError or UsageTypeError, with what to write instead.
"""

import dataclasses
import inspect
import math
import numbers
import typing
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from trpo_jax.environments import make_environment
from trpo_jax.environments.contract import num_costs, observation_type
from trpo_jax.environments.gymnasium import is_on_host
from trpo_jax.environments.protocol import at_random_time
from trpo_jax.errors import UsageError, UsageTypeError, array_types, describe_type
from trpo_jax.networks import Network, StateDependentGaussianHead
from trpo_jax.observations import Part, entries_of, values_of
from trpo_jax.training.hyperparameters import Hyperparameters
from trpo_jax.training.optimizers import make_optimizer
from trpo_jax.training.schedules import SCHEDULES
from trpo_jax.trust_region.checks import whole
from trpo_jax.trust_region.quadratic_program import MOST_COSTS

WHOLE = (int, int | None, tuple[int, ...])
"""Types of the fields that are whole numbers, tuples of them, or None."""

OPTIONAL_FLOAT = float | None
"""Type of a float that another field stands in for where it is None."""

FLOATS = tuple[float, ...] | None
"""Type of a field with several floats."""

PLAIN = (*WHOLE, int | Mesh | None, float, OPTIONAL_FLOAT, FLOATS, bool, Part)
"""Types of the fields that may be given as arrays or lists."""

MAX_COUNT = 2**31 - 1
"""Largest int32, which counts updates, and the transitions of one."""


def plain(value: Any) -> Any:
    """Return whole numbers as Python's ints, and lists or arrays of them as tuples.

    Equal configs then share a program and a file, whether a count was written as `1e6`
    or came from an array or a JSON file.
    """
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        value = np.asarray(value).tolist()
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def check_static(config: Any) -> None:
    """Raise UsageTypeError for a field that is traced, by name."""
    for name, value in vars(config).items():
        if isinstance(value, jax.core.Tracer):
            raise UsageTypeError(
                f"{name} is {describe_type(value)} that jit, vmap or grad traces, and "
                "a config is static; write a number or, for max_kl and the other "
                "floats of a run, train(config, hyperparameters="
                f"config.hyperparameters._replace({name}=...))."
            )


def check_types(config: Any) -> None:
    """Check each field against the type that it is declared with."""
    for field in dataclasses.fields(config):
        name, kind, value = field.name, field.type, getattr(config, field.name)
        if typing.get_origin(kind) is typing.Literal:
            allowed = typing.get_args(kind)
            if value not in allowed:
                raise UsageError(
                    f"{name}={value!r}; write one of {', '.join(allowed)}."
                )
        elif kind is bool and not isinstance(value, bool):
            raise UsageTypeError(f"{name}={value!r}; write True or False.")
        elif kind is float and name not in Hyperparameters._fields:
            if not isinstance(value, numbers.Real):
                raise UsageTypeError(
                    f"{name}={value!r} is not a number; write a float."
                )
        elif kind == OPTIONAL_FLOAT and value is not None:
            if not isinstance(value, numbers.Real):
                raise UsageTypeError(
                    f"{name}={value!r} is not a number; write a float, or None."
                )
        elif kind == tuple[int, ...]:
            if not isinstance(value, tuple):
                raise UsageTypeError(
                    f"{name}={value!r}; write whole numbers, as (64, 64)."
                )
            for layer, size in enumerate(value):
                whole(f"{name}[{layer}]", size, most=math.inf)
        elif kind is int or (kind in WHOLE and value is not None):
            may_be_zero = ("seed", "memory_size", "preconditioner_groups")
            least = 0 if name in may_be_zero else 1
            whole(name, value, least=least, most=math.inf)


def check_counts(config: Any) -> None:
    """Check that whole numbers can be counted, and fit one another."""
    if config.seed >= 2**32:
        raise UsageError(f"seed={config.seed} has more than 32 bits; write 0 to 2³²−1.")
    batch, total = config.batch_size, config.total_timesteps
    if batch > MAX_COUNT:
        raise UsageError(
            f"num_envs × rollout_length = {config.num_envs} × {config.rollout_length} "
            f"transitions are too many for one update; write at most {MAX_COUNT} "
            "together."
        )
    if total > MAX_COUNT * batch:
        raise UsageError(
            f"total_timesteps={total} is above {MAX_COUNT} updates of num_envs × "
            f"rollout_length = {batch} transitions, the most that are counted; write "
            f"at most {MAX_COUNT * batch}, or a larger num_envs or rollout_length."
        )
    for network, rows in (
        ("policy", config.policy_rows),
        ("critic", config.critic_rows),
    ):
        minibatches = getattr(config, f"{network}_minibatches")
        if not minibatches or rows % minibatches == 0:
            continue
        divisors = [n for n in range(1, rows + 1) if rows % n == 0]
        nearest = sorted(divisors, key=lambda n: abs(n - minibatches))[:2]
        raise UsageError(
            f"{network}_minibatches={minibatches} does not divide the {rows} "
            "transitions of a rollout (num_envs × rollout_length), or its sequences "
            f"(num_envs) where the {network} has a memory; write "
            f"{' or '.join(map(str, nearest))}."
        )
    stride = config.fisher_stride or 1
    rows = config.num_envs * max(1, config.rollout_length // stride)
    if config.policy_has_memory:
        rows = -(-config.num_envs // stride)
    if config.preconditioner_groups > rows:
        raise UsageError(
            f"preconditioner_groups={config.preconditioner_groups} is above the {rows} "
            "transitions (sequences, with a memory) of the Fisher information; write "
            "fewer."
        )
    for name, has_memory in (
        ("fisher_stride", config.policy_has_memory),
        ("critic_stride", config.critic_has_memory),
    ):
        stride = getattr(config, name) or 1
        if has_memory and stride > config.num_envs:
            raise UsageError(
                f"{name}={stride} is above the {config.num_envs} sequences (num_envs) "
                f"of a network with a memory; write at most {config.num_envs}, or None."
            )
        if not has_memory and stride > config.rollout_length:
            raise UsageError(
                f"{name}={stride} is above the {config.rollout_length} steps of each "
                f"environment in a rollout (rollout_length); write at most "
                f"{config.rollout_length}, or None."
            )


AGENTS, ENVIRONMENTS = "agents", "environments"
"""Axes of a mesh of devices: independent runs, and the environments of each."""


def mesh_shape(config: Any, num_devices: int) -> tuple[int, int]:
    """Return how many devices split the agents, and the environments of each agent.

    Agents are split first: they exchange nothing. Without `config.devices`, some of the
    devices may be left over.
    """
    if is_on_host(config.env) and config.devices is None:
        return 1, 1
    if isinstance(config.devices, Mesh):
        sizes = dict(config.devices.shape)
        return sizes.get(AGENTS, 1), sizes.get(ENVIRONMENTS, 1)
    if config.devices is not None:
        num_devices = config.devices
    agents = math.gcd(config.num_seeds, num_devices)
    return agents, math.gcd(config.num_envs, num_devices // agents)


def check_devices(config: Any) -> None:
    """Check that devices divide agents and environments.

    How many there are is checked by `make_mesh`: `jax.distributed.initialize` must come
    before the first question to JAX about its devices.
    """
    devices = config.devices
    if devices is None:
        return
    if isinstance(devices, Mesh):
        unknown = set(devices.axis_names) - {AGENTS, ENVIRONMENTS}
        if unknown or not devices.axis_names:
            raise UsageError(
                f"devices is a mesh with the axes {devices.axis_names}; write one with "
                f"'{ENVIRONMENTS}', as jax.make_mesh(({devices.size},), "
                f"('{ENVIRONMENTS}',)), with '{AGENTS}', or with both."
            )
    elif isinstance(devices, bool) or not isinstance(devices, int):
        raise UsageTypeError(
            f"devices is {describe_type(devices)}; write a number of devices, a "
            "jax.sharding.Mesh, or None for all."
        )
    else:
        whole("devices", devices)
    num_devices = devices.size if isinstance(devices, Mesh) else devices
    agents, _ = mesh_shape(config, num_devices)
    for name, size in (("num_seeds", agents), ("num_envs", num_devices // agents)):
        count = getattr(config, name)
        if count % size:
            below = count // size * size
            nearest = " or ".join(str(n) for n in (below, below + size) if n)
            most = min(num_devices, config.num_seeds * config.num_envs)
            fitting = (
                number
                for number in range(most, 0, -1)
                if config.num_envs % (number // math.gcd(config.num_seeds, number)) == 0
            )
            raise UsageError(
                f"devices={devices!r}: {size} of them do not divide {name}={count}; "
                f"write {name}={nearest}, or devices={next(fitting)}."
            )


def check_host(config: Any) -> None:
    """Check that environments on the host are not to be copied, or split."""
    if not is_on_host(config.env):
        return
    if config.num_seeds > 1:
        raise UsageError(
            f"num_seeds={config.num_seeds}, but the environments of {config.env} are "
            "stepped one after another on the host, and cannot be copied for several "
            "runs side by side; write num_seeds=1, and train with one seed after "
            "another: [trpo_jax.train(dataclasses.replace(config, seed=seed)) for seed "
            f"in range({config.num_seeds})]."
        )
    num_devices = getattr(config.devices, "size", config.devices) or 1
    if num_devices > 1:
        raise UsageError(
            f"devices={config.devices!r}, but the environments of {config.env} are on "
            "the host, which steps all of them in one call, and cannot be split over "
            "devices; write devices=1, or None."
        )


def check_variants(config: Any) -> None:
    """Check that there are as many environments as parameters of a varied one."""
    variants = getattr(config.env, "num_variants", config.num_envs)
    if variants != config.num_envs:
        raise UsageError(
            f"{config.env} has parameters for {variants} environments, but num_envs="
            f"{config.num_envs}; write num_envs={variants}, or parameters with a "
            f"leading axis of {config.num_envs}."
        )


def check_staggered(config: Any) -> None:
    """Check that first episodes can start late; of an id, `init` checks the rest."""
    if not config.staggered_starts:
        return
    if config.update in CONSTRAINED:
        raise UsageError(
            f"staggered_starts=True and update={config.update!r}: first episodes would "
            "be shorter, and their costs count as those of whole ones; write "
            "staggered_starts=False."
        )
    if not isinstance(config.env, str):
        at_random_time(config.env)


def check_parts(config: Any) -> None:
    """Check that observations have the entries that policy and critic are to see."""
    for name in ("policy_observation", "critic_observation"):
        part = getattr(config, name)
        if part is None:
            continue
        parts = (part,) if isinstance(part, str) else part
        if (
            not isinstance(parts, tuple)
            or not parts
            or not all(isinstance(one, str) for one in parts)
        ):
            raise UsageTypeError(
                f"{name}={part!r}; write the name of an entry of the observation, a "
                "tuple of names, or None for all."
            )
        observed = values_of(observation_type(make_environment(config.env)))
        entries = entries_of(observed)
        if not entries:
            raise UsageError(
                f"{name}={part!r}, but {config.env} observes {array_types(observed)}, "
                "which has no entries; write None."
            )
        unknown = [one for one in parts if one not in entries]
        if unknown:
            raise UsageError(
                f"{name}={part!r}, but {config.env} observes no {unknown[0]!r}; write "
                f"one of {', '.join(map(repr, entries))}, a tuple of them, or None."
            )


def check_costs(config: Any) -> None:
    """Check that there is a limit for each cost where the update keeps limits."""
    if config.update not in CONSTRAINED:
        return
    limits = config.cost_limits
    advice = "write the limit of each cost of an episode, as cost_limits=(25.0,)"
    if not isinstance(limits, tuple) or not limits:
        raise UsageTypeError(
            f"update={config.update!r} keeps limits, and cost_limits={limits!r}; "
            f"{advice}."
        )
    for limit in limits:
        if isinstance(limit, bool) or not isinstance(limit, int | float):
            raise UsageTypeError(
                f"cost_limits={limits!r}, and {limit!r} is not a number; {advice}."
            )
        if not 0 <= limit <= float(np.finfo(np.float32).max):
            raise UsageError(
                f"cost_limits={limits!r}, and {limit} is not 0 or more and finite "
                f"in float32; {advice}."
            )
    costs = num_costs(make_environment(config.env))
    if not costs:
        raise UsageError(
            f"cost_limits={limits!r}, but {config.env} has no costs; write "
            "update='trpo' and cost_limits=None, or give it some: "
            f"env=trpo_jax.environments.CostEnvironment({config.env!r}, cost_fn)."
        )
    if len(limits) != costs:
        raise UsageError(
            f"cost_limits={limits!r} has {len(limits)} of the {costs} limits for the "
            f"costs of {config.env}; write one for each."
        )
    if config.update in ("cpo", "pcpo") and costs > MOST_COSTS:
        raise UsageError(
            f"{config.env} has {costs} costs, and update={config.update!r} keeps at "
            f"most {MOST_COSTS} limits; sum some into one, or write update='trpo_pid'."
        )


def check_adaptive(config: Any) -> None:
    """Check that options of the solve are set only where they have an effect."""
    if config.max_kl_schedule == "adaptive" and config.update not in ("trpo", "tnpg"):
        others = "" if config.update in CONSTRAINED else ", or one of these updates"
        raise UsageError(
            f"max_kl_schedule='adaptive' is for update='trpo' or 'tnpg', whose step "
            f"size predicts the KL, and update={config.update!r}; write "
            f"max_kl_schedule='constant'{others}."
        )
    if config.damping_schedule == "adaptive" and config.damping == 0:
        raise UsageError(
            "damping_schedule='adaptive' is a factor of damping=0.0; write "
            "damping=0.1, or damping_schedule='constant'."
        )
    if config.preconditioner != "score" and not config.preconditioner_groups:
        raise UsageError(
            f"preconditioner={config.preconditioner!r} is made of the gradients of "
            "groups, and preconditioner_groups=0; write preconditioner_groups=32, or "
            "preconditioner='score'."
        )


def check_memory(config: Any) -> None:
    """Check that no kind of memory is set where there is none."""
    if config.memory != "gru" and not config.memory_size:
        raise UsageError(
            f"memory={config.memory!r} has no units, memory_size=0; write "
            "memory_size=64, or memory='gru'."
        )


FIELDS_OF_FITS = {
    "trust_region": (
        "cg_tolerance",
        "critic_max_kl",
        "critic_damping",
        "critic_cg_iterations",
        "critic_stride",
    ),
    "first_order": (
        "critic_epochs",
        "critic_minibatches",
        "critic_optimizer",
        "critic_learning_rate",
        "critic_learning_rate_schedule",
        "critic_max_gradient_norm",
        "critic_value_clipping",
    ),
}
"""Fields of a config that one `critic_fit` reads, and the other does not."""

_NATURAL = ("trpo", "tnpg", "npg")

FIRST_ORDER = ("ppo", "ppo_penalty", "projection")
"""Updates by epochs of an optimiser."""

CONSTRAINED = ("cpo", "pcpo", "trpo_lagrangian", "trpo_pid", "crpo")
"""Updates that keep limits on costs."""

PENALIZED = ("trpo_lagrangian", "trpo_pid", "crpo")
"""Those that do by the advantages that they give to TRPO."""

UPDATES = (*_NATURAL, *FIRST_ORDER, *CONSTRAINED)
"""Names of the policy updates."""

UPDATES_WITH_RADIUS = ("trpo", "tnpg", "ppo_penalty", "projection", *CONSTRAINED)
"""Updates that `max_kl` bounds, or is the target of."""

UPDATES_OF_FIELDS = {
    **dict.fromkeys(
        (
            "line_search",
            "max_backtracks",
            "backtrack_factor",
            "line_search_width",
        ),
        ("trpo", *CONSTRAINED),
    ),
    "step_size_curvature": ("trpo", "tnpg", *PENALIZED),
    "damping_schedule": _NATURAL,
    **dict.fromkeys(
        (
            "damping",
            "fisher_operator",
            "cg_iterations",
            "cg_tolerance",
            "preconditioner_groups",
            "preconditioner",
            "fisher_stride",
        ),
        (*_NATURAL, *CONSTRAINED),
    ),
    "cost_limits": CONSTRAINED,
    "cost_correction": ("cpo", "pcpo"),
    **dict.fromkeys(("cost_discount", "cost_gae_lambda"), CONSTRAINED),
    "multiplier_learning_rate": ("trpo_lagrangian", "trpo_pid"),
    "multiplier_proportional_gain": ("trpo_pid",),
    "multiplier_derivative_gain": ("trpo_pid",),
    "natural_step_size": ("npg",),
    **dict.fromkeys(
        (
            "policy_epochs",
            "policy_minibatches",
            "policy_optimizer",
            "policy_learning_rate",
            "policy_learning_rate_schedule",
            "policy_max_gradient_norm",
        ),
        FIRST_ORDER,
    ),
    "clip_ratio": ("ppo",),
    "kl_coefficient": ("ppo_penalty",),
}
"""The updates that read a field, for fields that some do not read."""


# An update of one's own is given all floats of a run, with their schedules in force.
_OF_ONES_OWN = (*Hyperparameters._fields, "policy_learning_rate_schedule")


def ignored_fields(update: Any, critic_fit: Any) -> list[str]:
    """Return the fields that neither policy update nor critic's fit read."""
    read = [
        name
        for name, updates in UPDATES_OF_FIELDS.items()
        if update in updates or (callable(update) and name in _OF_ONES_OWN)
    ]
    for fit, names in FIELDS_OF_FITS.items():
        read += names if fit == critic_fit else ()
    of_some = (
        *UPDATES_OF_FIELDS,
        *(n for names in FIELDS_OF_FITS.values() for n in names),
    )
    return [name for name in dict.fromkeys(of_some) if name not in read]


def check_update(config: Any) -> None:
    """Check that the policy update is known, or takes what it is given."""
    update = config.update
    wanted = "a function (policy_fn, params, batch, key, hyperparameters) ↦ params"
    if not callable(update):
        if update not in UPDATES:
            raise UsageError(
                f"update={update!r}; write one of {', '.join(UPDATES)}, or {wanted}."
            )
        return
    try:
        inspect.signature(update).bind(*["an argument"] * 5)
    except (TypeError, ValueError):  # the latter: no signature, as of a builtin
        raise UsageTypeError(
            f"update is {describe_type(update)}, which does not take these arguments; "
            f"write {wanted}."
        ) from None


def check_ignored(config: Any) -> None:
    """Check that policy update and critic's fit read all fields that are set."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in ignored_fields(config.update, config.critic_fit):
        value = getattr(config, name)
        if value == defaults[name]:
            continue
        readers = [
            f"critic_fit={fit!r}"
            for fit, names in FIELDS_OF_FITS.items()
            if name in names
        ]
        updates = UPDATES_OF_FIELDS.get(name, ())
        # Those that keep limits also need cost_limits: suggest only the same kind.
        keeps = config.update in CONSTRAINED
        named = [one for one in updates if (one in CONSTRAINED) == keeps]
        if updates:
            among = map(repr, named or updates)
            readers.insert(0, f"update={' or '.join(among)}")
        write = "write that as well, or " if named or not (updates and keeps) else ""
        raise UsageError(
            f"{name}={value!r} is for {' or '.join(readers)}; {write}leave {name} at "
            f"{defaults[name]!r}."
        )


def check_fractions(config: Any) -> None:
    """Check the ranges of floats that are part of the program."""
    factor, tolerance = config.backtrack_factor, config.cg_tolerance
    log_std = config.initial_log_std
    low, high = StateDependentGaussianHead.log_std_bounds
    if config.action_distribution != "state_dependent_gaussian":
        low, high = -math.inf, math.inf
    for name, in_range, advice in (
        ("backtrack_factor", 0 < factor < 1, "between 0 and 1; write 0.5"),
        ("cg_tolerance", 0 <= tolerance < 1, "in [0, 1); write 1e-5"),
        (
            "cost_correction",
            0 <= config.cost_correction <= 1,
            "in [0, 1]; write 0.2, or 0 for none",
        ),
        *(
            (
                name,
                getattr(config, name) is None or 0 <= getattr(config, name) <= 1,
                f"in [0, 1]; write {advice}, or None for that of the reward",
            )
            for name, advice in (("cost_discount", 0.99), ("cost_gae_lambda", 0.95))
        ),
        (
            "initial_log_std",
            low < log_std < high,
            f"between the bounds of log σ, {low} and {high}; write 0.0",
        ),
        *(
            (
                name,
                0 <= getattr(config, name) < math.inf,
                f"at least 0 and finite; write {advice}",
            )
            for name, advice in (
                ("policy_max_gradient_norm", "0.5, or 0 for none"),
                ("critic_max_gradient_norm", "0.5, or 0 for none"),
                ("critic_value_clipping", "0.2, or 0 for none"),
            )
        ),
    ):
        if not in_range:
            raise UsageError(f"{name}={getattr(config, name)} is not {advice}.")


def check_functions(config: Any) -> None:
    """Check networks, schedules and the optimiser."""
    for name in ("policy", "critic"):
        network = getattr(config, name)
        # A recurrent network has the members of a network, too; a class has those of
        # its instances.
        if network is not None and (
            not isinstance(network, Network) or isinstance(network, type)
        ):
            raise UsageTypeError(
                f"{name} is {describe_type(network)}; write a Flax module (an instance "
                "of Linen or NNX), trpo_jax.networks.NNXNetwork(factory), "
                "trpo_jax.networks.NetworkFns(init, apply), or with a memory "
                "trpo_jax.networks.RecurrentNetworkFns(initial_memory, init, apply)."
            )
    for name in (
        "max_kl_schedule",
        "entropy_coefficient_schedule",
        "policy_learning_rate_schedule",
        "critic_learning_rate_schedule",
    ):
        schedule = getattr(config, name)
        names = [*SCHEDULES, *(["adaptive"] if name == "max_kl_schedule" else [])]
        if schedule not in names and not _is_schedule(schedule):
            raise UsageError(
                f"{name}={schedule!r}; write one of {', '.join(names)}, or "
                "an Optax schedule, as optax.linear_schedule(1.0, 0.0, num_updates)."
            )
    for name in ("policy_optimizer", "critic_optimizer"):
        given = getattr(config, name)
        try:
            optimizer = make_optimizer(given)(1e-3)
        except (AttributeError, TypeError):
            optimizer = None
        if not isinstance(optimizer, optax.GradientTransformation):
            raise UsageError(
                f"{name} is {describe_type(given)}, not in Optax; write one of its "
                "names, as 'adam' or 'rmsprop', or a function of the learning rate "
                "that returns an Optax optimiser, as optax.adam without arguments."
            )


def _is_schedule(schedule: Any) -> bool:
    """Return whether `schedule` maps an update to one number."""
    if not callable(schedule):
        return False
    try:
        factor = jax.eval_shape(schedule, jax.ShapeDtypeStruct((), np.int32))
    except TypeError:  # it takes other arguments, or does not return numbers
        return False
    return getattr(factor, "shape", None) == ()
