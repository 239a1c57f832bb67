"""Configuration of a run: names, sizes and counts (static), and floats (traced)."""

import dataclasses
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from trpo_jax.environments import make_environment
from trpo_jax.errors import UsageTypeError
from trpo_jax.networks import Network, NNXModule, RecurrentNetwork, as_network
from trpo_jax.training.config_checks import (
    FLOATS,
    OPTIONAL_FLOAT,
    PLAIN,
    check_adaptive,
    check_costs,
    check_counts,
    check_devices,
    check_fractions,
    check_functions,
    check_host,
    check_ignored,
    check_memory,
    check_parts,
    check_staggered,
    check_static,
    check_types,
    check_update,
    check_variants,
    plain,
)
from trpo_jax.training.hyperparameters import Hyperparameters, check_hyperparameters


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class TRPOConfig:
    """Configuration of a run. Validated when made, static under `jit`.

    It is a pytree without leaves, so it passes through `jit` and `vmap` as it is.
    """

    env: Any = "CartPole-v1"
    """Gymnax id, one of another suite such as "brax/ant", an (environment, params) pair
    of gymnax, Craftax or XLand-MiniGrid, or an `Environment`."""
    total_timesteps: int = 102_400
    """Environment steps to train for, rounded up to whole rollouts of num_envs ×
    rollout_length: the field has the true number."""
    num_envs: int = 8
    """Environments stepped in parallel."""
    rollout_length: int = 128
    """Steps in each environment per rollout."""
    staggered_starts: bool = False
    """Whether the first episode of each environment begins with a random part of its
    time limit used up. Where most episodes last until the limit, a batch then has
    states of all their phases; otherwise all environments are reset together. Recorded
    returns of first episodes are of the part that is left."""
    seed: int = 0
    """Seed of all randomness."""
    num_seeds: int = 1
    """Independent runs trained in parallel by one program."""
    devices: int | Mesh | None = None
    """Devices to train on: a number, or a mesh with the axes "agents" (which divides
    num_seeds) and "environments" (which divides num_envs). None: as many of all devices
    as divide them; one for environments on the host."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    """Width of each hidden layer, for policy and critic."""
    activation: Literal["elu", "gelu", "relu", "silu", "tanh"] = "tanh"
    """Activation after each layer."""
    channels: tuple[int, ...] = ()
    """Filters of each 3 × 3 convolution before these layers, for image observations."""
    convolution_stride: int = 1
    """Stride of these convolutions, in pixels."""
    memory_size: int = 0
    """Units of a memory after these layers, for partially observable environments; 0
    for none."""
    memory: Literal["gru", "lru"] = "gru"
    """Kind of this memory: a GRU, or a linear recurrent unit, whose recurrence is a
    parallel scan over the rollout."""
    policy_observation: str | tuple[str, ...] | None = None
    """Entries that the policy sees, of observations that have entries, as a dict has:
    one by its name, a dict of several by a tuple of names, or None for all."""
    critic_observation: str | tuple[str, ...] | None = None
    """Entries that the critic sees, likewise; they may be hidden from the policy."""
    action_distribution: Literal[
        "gaussian", "state_dependent_gaussian", "gsde", "tanh_gaussian"
    ] = "gaussian"
    """Distribution of continuous actions: a Gaussian with one σ for each dimension, or
    with bounded σ(s); generalised state-dependent exploration; or a Gaussian squashed
    by tanh into the environment's bounds. Discrete actions are categorical."""
    initial_log_std: float = 0.0
    """Initial log σ of continuous actions, in units of the action."""
    noise_period: int = 1
    """Steps for which exploration noise is kept before it is resampled; 4 is usual with
    gsde."""
    initialization: Literal["orthogonal", "xavier_uniform", "lecun_normal"] = (
        "orthogonal"
    )
    """Initial weights of dense layers and convolutions: orthogonal, with a scale for
    each layer; or by the rule of Glorot (Xavier) or LeCun, the same for each layer. A
    memory's are orthogonal."""
    policy: Network | RecurrentNetwork | NNXModule | None = None
    """Your own policy network, such as a Flax module of Linen or NNX, which returns
    distributions; replaces the fields above. If its actions are to be squashed by tanh,
    also set action_distribution="tanh_gaussian"."""
    critic: Network | RecurrentNetwork | NNXModule | None = None
    """Your own critic network, which returns values; replaces the fields above."""

    update: Any = "trpo"
    """Policy update: "trpo"; without a line search "npg" (natural gradient of a fixed
    step size) or "tnpg" (of the step size for max_kl); "ppo" (clipped) or "ppo_penalty"
    (adaptive penalty on the KL); "projection" (a trust region in every state, best with
    max_kl=0.05 and policy_learning_rate=3e-3); or a function (policy_fn, params, batch,
    key, hyperparameters) ↦ params. With cost_limits: "cpo" (constrained policy
    optimisation), "pcpo" (its relative by projection), "trpo_lagrangian" or "trpo_pid"
    (multipliers by dual ascent, or by a PID controller), "crpo" (on the reward, or on a
    cost above its limit)."""
    max_kl: float = 0.01
    """δ, the radius of the trust region: KL(old ‖ new) in nats, its mean over states;
    of update="projection" its maximum."""
    max_kl_schedule: Any = "constant"
    """Factor of max_kl: constant, linear or cosine decay to 0 over the run, or an Optax
    schedule of the update, which holds its last value after the run's last. Or
    adaptive: smaller after an update whose gain may be noise, larger after one that
    went as predicted, within a factor of 10."""
    damping: float = 0.1
    """λ, added to the diagonal of the Fisher information."""
    damping_schedule: Literal["constant", "adaptive"] = "constant"
    """Factor of damping: constant; or adaptive, larger after an update with a KL far
    above the predicted one, smaller after one with a KL near or below it, within a
    factor of 100."""
    entropy_coefficient: float = 0.0
    """Weight of the policy's mean entropy beside the surrogate of standardised
    advantages: more than 0 keeps a policy from settling early."""
    entropy_coefficient_schedule: Any = "constant"
    """Factor of entropy_coefficient: as max_kl_schedule, but not adaptive; linear lets
    a policy explore first and settle by the end of the run."""
    fisher_operator: Literal["gauss_newton", "kl_hessian", "empirical"] = "gauss_newton"
    """Product with the Fisher information: JᵀMJ, or `jvp` over `grad` of the mean KL,
    which are equal, and the first is faster; or with the empirical Fisher information
    of the sampled actions, whose expectation it is."""
    cg_iterations: int = 10
    """Largest number of Fisher-vector products in one update."""
    cg_tolerance: float = 1e-5
    """Relative residual at which conjugate gradient stops earlier, here and in the
    critic's fit."""
    preconditioner_groups: int = 0
    """Number of gradients, of groups of transitions, that precondition the solve; 0 for
    none. With 32, half as many products suffice where the progress line says "poor"."""
    preconditioner: Literal["score", "diagonal", "kronecker"] = "score"
    """Preconditioner of these gradients: of the directions that they span, of each
    parameter alone, or of the rows and columns of each layer's weights."""
    fisher_stride: int | None = None
    """Compute the Fisher information over every n-th state of each environment, or over
    every n-th sequence if the policy has a memory. None: the largest n up to 10 that
    leaves two hundred states; all sequences."""
    micro_batch_size: int | None = None
    """Transitions that the policy update and the critic's values process at a time.
    None: 8,192 on a CPU, all on an accelerator; reduce it if memory runs out."""
    step_size_curvature: Literal["undamped", "damped"] = "undamped"
    """Curvature in the step size: xᵀFx, or xᵀ(F + λI)x, which undershoots δ."""
    line_search: Literal["interpolation", "backtracking"] = "interpolation"
    """How the line search finds its next fraction: from the KL of the one before, so
    that it lands near δ; or as backtrack_factor times the one before."""
    max_backtracks: int = 10
    """Largest number of step fractions that the line search tries."""
    backtrack_factor: float = 0.5
    """Ratio of each fraction to the one before."""
    line_search_width: int = 1
    """Candidates that the line search evaluates at once."""

    cost_limits: tuple[float, ...] | None = None
    """Limit of each cost of the environment, summed over an episode without a discount:
    one number, or one for each of several costs, which the update keeps."""
    cost_correction: float = 0.2
    """Rate of a running mean of what the predictions of update="cpo" and "pcpo" have
    missed, which is added to the excess if it is positive; 0 as in their papers."""
    cost_discount: float | None = None
    """γ of the critics and advantages of costs; None: that of the reward."""
    cost_gae_lambda: float | None = None
    """λ of the advantages of costs; None: that of the reward."""
    multiplier_learning_rate: float = 0.1
    """Step size of the multipliers of update="trpo_lagrangian" and "trpo_pid" (their
    integral gain), for excesses in units of the limit."""
    multiplier_proportional_gain: float = 0.5
    """Proportional gain of these multipliers in update="trpo_pid"."""
    multiplier_derivative_gain: float = 0.2
    """Their derivative gain, for costs that rise."""

    natural_step_size: float = 1.0
    """β, the step size of update="npg" along the natural gradient of standardised
    advantages."""
    clip_ratio: float = 0.2
    """ε of update="ppo": probability ratios count up to 1 ± ε."""
    kl_coefficient: float = 1.0
    """Initial weight of the KL in update="ppo_penalty"."""
    policy_epochs: int = 10
    """Epochs of update="ppo", "ppo_penalty" and "projection" over each rollout."""
    policy_minibatches: int | None = None
    """Minibatches in each of these epochs. None: four, or the largest smaller number
    that divides the rollout."""
    policy_optimizer: Any = "adam"
    """Optimiser of these updates, as critic_optimizer."""
    policy_learning_rate: float = 3e-4
    """Step size of this optimiser."""
    policy_learning_rate_schedule: Any = "constant"
    """Factor of policy_learning_rate: as max_kl_schedule, but not adaptive."""
    policy_max_gradient_norm: float = 0.0
    """Largest global norm of the gradient before this optimiser, beyond which it is
    scaled down; 0.5 is usual, 0 for none."""

    discount: float = 0.99
    """γ, the discount of future rewards."""
    gae_lambda: float = 0.95
    """λ of generalised advantage estimation: 0 is TD, 1 Monte-Carlo."""

    critic_fit: Literal["trust_region", "first_order"] = "trust_region"
    """How the critic is fitted to each rollout: by a Gauss–Newton step in a trust
    region of its own, or by epochs of an Optax optimiser."""
    critic_max_kl: float = 0.2
    """ε, the radius of the critic's trust region: mean squared change of its values,
    over twice their mean squared error."""
    critic_damping: float = 0.1
    """λ of the critic's curvature, in units of its mean squared error."""
    critic_cg_iterations: int = 10
    """Largest number of products with the critic's curvature in one fit."""
    critic_stride: int | None = None
    """Compute the critic's curvature over every n-th state, as fisher_stride."""
    critic_epochs: int | None = None
    """Epochs of a first-order fit to each rollout. None: ten for a small rollout, four
    for a large one."""
    critic_minibatches: int | None = None
    """Minibatches in each epoch. None: eight, or the largest smaller number that
    divides the rollout."""
    critic_optimizer: Any = "adam"
    """Name of an Optax optimiser, or a function learning rate ↦ optimiser."""
    critic_learning_rate: float = 1e-3
    """Step size of the critic's optimiser."""
    critic_learning_rate_schedule: Any = "constant"
    """Factor of critic_learning_rate: as max_kl_schedule, but not adaptive."""
    critic_max_gradient_norm: float = 0.0
    """Largest global norm of the gradient before this optimiser, as
    policy_max_gradient_norm."""
    critic_value_clipping: float = 0.0
    """ε of value clipping in a first-order fit: the loss counts values up to ±ε from
    those before the fit, where that is worse; in units of the critic's output, 0 for
    none."""

    normalize_observations: bool = False
    """Whether to standardise observations by their running mean and variance."""
    normalize_returns: bool = False
    """Whether the critic predicts returns standardised by their running moments."""
    scale_rewards: bool = False
    """Whether rewards are divided by the running standard deviation of the discounted
    return, for advantages and critic; what is recorded stays in units of reward."""

    def __post_init__(self) -> None:
        """Raise UsageError or UsageTypeError for values that could only fail later."""
        check_static(self)
        if not isinstance(self.env, str):
            object.__setattr__(self, "env", make_environment(self.env))
        for field in dataclasses.fields(self):
            if field.type in PLAIN:
                object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        if isinstance(self.cost_limits, float | int):
            object.__setattr__(self, "cost_limits", (self.cost_limits,))
        object.__setattr__(self, "policy", as_network(self.policy))
        object.__setattr__(self, "critic", as_network(self.critic))
        check_types(self)
        check_hyperparameters(self.hyperparameters)
        check_update(self)
        # Before any advice on fields that would be ignored.
        check_ignored(self)
        check_counts(self)
        check_host(self)
        check_devices(self)
        check_fractions(self)
        check_functions(self)
        check_variants(self)
        check_staggered(self)
        check_parts(self)
        check_costs(self)
        check_memory(self)
        check_adaptive(self)
        # Python's floats, so that equal configs share a program and a file.
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is float or (
                field.type == OPTIONAL_FLOAT and value is not None
            ):
                object.__setattr__(self, field.name, float(value))
            elif field.type == FLOATS and value is not None:
                object.__setattr__(self, field.name, tuple(map(float, value)))
        whole = -(-self.total_timesteps // self.batch_size) * self.batch_size
        object.__setattr__(self, "total_timesteps", whole)

    @property
    def hyperparameters(self) -> Hyperparameters:
        """The floats that `init` puts into the state, where they are traced."""
        return Hyperparameters(*(getattr(self, n) for n in Hyperparameters._fields))

    @property
    def critic_rows(self) -> int:
        """Rows of the critic's batch: transitions, or sequences if it has a memory."""
        return self.num_envs if self.critic_has_memory else self.batch_size

    @property
    def policy_rows(self) -> int:
        """Rows of the policy's batch: transitions, or sequences if it has a memory."""
        return self.num_envs if self.policy_has_memory else self.batch_size

    @property
    def critic_has_memory(self) -> bool:
        """Whether the critic is fitted to whole sequences."""
        return self._has_memory(self.critic)

    @property
    def policy_has_memory(self) -> bool:
        """Whether the policy update takes whole sequences."""
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
        """Number of rollouts, and of policy updates, in a run."""
        return self.total_timesteps // self.batch_size


def check_config(config: TRPOConfig) -> None:
    """Raise UsageTypeError unless `config` is a `TRPOConfig`."""
    if isinstance(config, TRPOConfig):
        return
    instead = "a trpo_jax.TRPOConfig"
    if isinstance(config, str):
        instead = f"trpo_jax.preset({config!r}) or trpo_jax.TRPOConfig(env={config!r})"
    raise UsageTypeError(f"config is of type {type(config).__name__}; write {instead}.")
