"""What a run is: names, sizes and counts (static), and floats (traced)."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import optax

from trpo_jax.environments import make_environment
from trpo_jax.errors import UsageTypeError
from trpo_jax.networks import Network, NNXModule, RecurrentNetwork, as_network
from trpo_jax.training.config_checks import (
    check_counts,
    check_fractions,
    check_functions,
    coprime,
)
from trpo_jax.training.hyperparameters import Hyperparameters, check_hyperparameters
from trpo_jax.training.schedules import SCHEDULES, Schedule

Optimizer = Callable[[Any], optax.GradientTransformation]

# Optimisers to which a vector is the same as the tree that it was made from.
_ELEMENTWISE = ("adam", "adamw", "nadam", "radam", "rmsprop", "sgd")

# The paper takes a tenth of the states (appendix C). Two hundred of a thousand ended
# as well as all of them on CartPole, Acrobot and Pendulum, over 16 seeds.
_MAX_STRIDE = 10
_MIN_FISHER_STATES = 200

# The fastest of 1,024 … 16,384 at 64 × 64 units: so the gradient of 131,072 rows takes
# half the time that it takes all at once.
_CPU_MICRO_BATCH = 8192

# On CartPole and Acrobot ten passes learn faster than four from 1,024 transitions, and
# no faster from 8,192.
_CRITIC_PASSES = (4, 10)
_CRITIC_ROWS = 20_480
_MINIBATCHES = 8


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class TRPOConfig:
    """Everything a run is made from. Validated when made, static under `jit`.

    It is a pytree without leaves, so it passes through `jit` and `vmap` as it is.
    """

    env: Any = "CartPole-v1"
    """Gymnax id, one of another suite such as "brax/ant", a gymnax (environment,
    params) pair, or an `Environment`."""
    total_timesteps: int = 102_400
    """Environment steps to train for, a multiple of num_envs × rollout_length."""
    num_envs: int = 8
    """Environments stepped side by side."""
    rollout_length: int = 128
    """Steps in each environment between two policy updates."""
    seed: int = 0
    """Seed of all randomness."""
    num_seeds: int = 1
    """Independent runs trained side by side in one program."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    """Width of each hidden layer, of policy and critic alike."""
    activation: Literal["elu", "gelu", "relu", "silu", "tanh"] = "tanh"
    """Function after each layer."""
    channels: tuple[int, ...] = ()
    """Filters of each 3 × 3 convolution before these layers, for images."""
    convolution_stride: int = 1
    """Pixels from one patch of a convolution to the next."""
    memory_size: int = 0
    """Units of a GRU after these layers, for what one observation does not tell; 0 for
    none."""
    action_distribution: Literal[
        "gaussian", "state_dependent_gaussian", "gsde", "tanh_gaussian"
    ] = "gaussian"
    """Continuous actions: one σ for each dimension; σ(s) between bounds; generalised
    state-dependent exploration; or squashed into the environment's bounds by tanh."""
    initial_log_std: float = 0.0
    """log σ of continuous actions before training, in units of the action."""
    noise_period: int = 1
    """Steps for which actions are drawn with the same noise, 4 is usual with gsde."""
    policy: Network | RecurrentNetwork | NNXModule | None = None
    """A `Network` that returns distributions, such as a Flax module of Linen or NNX, in
    place of all this. Where its actions are to be squashed by tanh, write
    action_distribution="tanh_gaussian" beside it."""
    critic: Network | RecurrentNetwork | NNXModule | None = None
    """A `Network` that returns values, in place of all this."""

    max_kl: float = 0.01
    """δ, the radius of the trust region: mean KL(old ‖ new) in nats."""
    max_kl_schedule: Any = "constant"
    """Multiplies max_kl: constant, linear, cosine; or an Optax schedule of updates."""
    damping: float = 0.1
    """λ, added to the diagonal of the Fisher information."""
    entropy_coefficient: float = 0.0
    """Weight of the policy's mean entropy beside the surrogate of standardised
    advantages: more than 0 keeps a policy from settling early."""
    cg_iterations: int = 10
    """Fisher-vector products in one update, at most."""
    cg_tolerance: float = 1e-5
    """Relative residual at which conjugate gradient stops earlier."""
    fisher_stride: int | None = None
    """Take the Fisher information over every n-th state only, coprime with num_envs, or
    over every n-th sequence if the policy has a memory. None: the largest such n up to
    10 that leaves two hundred states; all sequences."""
    micro_batch_size: int | None = None
    """Transitions that the policy update and the critic's values take at a time. None:
    8,192 on a CPU, all on an accelerator; write less where memory runs out."""
    step_size_curvature: Literal["undamped", "damped"] = "undamped"
    """Curvature under the step length: xᵀFx, or xᵀ(F + λI)x, which falls short of δ."""
    max_backtracks: int = 10
    """Step fractions that the line search tries, at most."""
    backtrack_factor: float = 0.5
    """Ratio of each fraction to the one before."""
    line_search_width: int = 1
    """Candidates evaluated at once."""

    discount: float = 0.99
    """γ, the discount of future rewards."""
    gae_lambda: float = 0.95
    """λ of generalised advantage estimation: 0 is TD, 1 Monte-Carlo."""

    critic_epochs: int | None = None
    """Passes of the critic's optimiser over each rollout. None: ten over a small one,
    four over a large one."""
    critic_minibatches: int | None = None
    """Gradient steps in each of those passes. None: eight, or the next number below
    that divides the rollout."""
    critic_optimizer: Any = "adam"
    """Name of an Optax optimiser, or a function learning rate ↦ optimiser."""
    critic_learning_rate: float = 1e-3
    """Step size of the critic's optimiser."""
    critic_learning_rate_schedule: Any = "constant"
    """Multiplies critic_learning_rate: as max_kl_schedule."""

    normalize_observations: bool = False
    """Standardise observations by their running mean and variance."""
    normalize_returns: bool = False
    """Have the critic predict returns standardised by their running moments."""

    def __post_init__(self) -> None:
        """Raise ValueError or TypeError for what could only fail later."""
        if not isinstance(self.env, str):
            object.__setattr__(self, "env", make_environment(self.env))
        object.__setattr__(self, "policy", as_network(self.policy))
        object.__setattr__(self, "critic", as_network(self.critic))
        check_counts(self)
        check_fractions(self)
        check_functions(self)
        check_hyperparameters(self.hyperparameters)
        # Python's own, so that equal configs are the same program, and the same file.
        for field in dataclasses.fields(self):
            if field.type == "float" or field.type is float:
                value = float(getattr(self, field.name))
                object.__setattr__(self, field.name, value)

    @property
    def hyperparameters(self) -> Hyperparameters:
        """The floats that `init` puts into the state, where they are traced."""
        return Hyperparameters(
            **{name: getattr(self, name) for name in Hyperparameters._fields}
        )

    @property
    def max_kl_factor(self) -> Schedule:
        """What multiplies max_kl, as a function of the update."""
        return self._schedule(self.max_kl_schedule)

    @property
    def critic_learning_rate_factor(self) -> Schedule:
        """What multiplies critic_learning_rate, as a function of the update."""
        return self._schedule(self.critic_learning_rate_schedule)

    def _schedule(self, value: Any) -> Schedule:
        return SCHEDULES[value](self.num_updates) if isinstance(value, str) else value

    @property
    def optimizer(self) -> Optimizer:
        """The critic's optimiser as a function of its learning rate."""
        value = self.critic_optimizer
        if not isinstance(value, str):
            return value
        named = getattr(optax, value)
        if value not in _ELEMENTWISE:
            return named
        # As one vector: a tenth less time in small minibatches, and a smaller program.
        return lambda learning_rate: optax.flatten(named(learning_rate))

    @property
    def curvature_stride(self) -> int:
        """The stride that `fisher_stride` stands for."""
        if self.fisher_stride is not None:
            return self.fisher_stride
        if self.policy_has_memory:
            return 1
        most = max(1, min(_MAX_STRIDE, self.batch_size // _MIN_FISHER_STATES))
        return coprime(most, self.num_envs)

    @property
    def steps_at_once(self) -> int | None:
        """What `micro_batch_size` stands for, None being all transitions."""
        if self.micro_batch_size is None and jax.default_backend() == "cpu":
            return _CPU_MICRO_BATCH
        return self.micro_batch_size

    @property
    def critic_passes(self) -> int:
        """What `critic_epochs` stands for."""
        if self.critic_epochs is not None:
            return self.critic_epochs
        fewest, most = _CRITIC_PASSES
        return min(max(_CRITIC_ROWS // self.batch_size, fewest), most)

    @property
    def critic_steps(self) -> int:
        """What `critic_minibatches` stands for: the gradient steps in one pass."""
        if self.critic_minibatches is not None:
            return self.critic_minibatches
        rows = self.critic_rows
        return next(n for n in range(_MINIBATCHES, 0, -1) if rows % n == 0)

    @property
    def critic_rows(self) -> int:
        """What the critic's minibatches are made of: transitions, or sequences."""
        return self.num_envs if self._has_memory(self.critic) else self.batch_size

    @property
    def policy_has_memory(self) -> bool:
        """Whether the policy update's batch is made of sequences."""
        return self._has_memory(self.policy)

    def _has_memory(self, network: Any) -> bool:
        if network is None:
            return self.memory_size > 0
        return isinstance(network, RecurrentNetwork)

    @property
    def batch_size(self) -> int:
        """N = num_envs × rollout_length, the transitions of one update."""
        return self.num_envs * self.rollout_length

    @property
    def all_env_steps(self) -> int:
        """Environment steps of all seeds together."""
        return self.num_seeds * self.total_timesteps

    @property
    def num_updates(self) -> int:
        """How many rollouts, and policy updates, a run has."""
        return self.total_timesteps // self.batch_size


def check_config(config: TRPOConfig) -> None:
    """Raise TypeError if `config` is no `TRPOConfig`, as when an id was passed."""
    if isinstance(config, TRPOConfig):
        return
    instead = "a trpo_jax.TRPOConfig"
    if isinstance(config, str):
        instead = f"trpo_jax.preset({config!r}) or trpo_jax.TRPOConfig(env={config!r})"
    raise UsageTypeError(f"config is of type {type(config).__name__}; write {instead}.")
