"""Lower bounds on the improvement by an update, from its evidence."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from trpo_jax.training.advantages import standardize
from trpo_jax.trust_region import (
    UpdateInfo,
    improvement_bound,
    mean_kl_improvement_bound,
)
from trpo_jax.trust_region.certificate import root


def improvement_bounds(
    info: UpdateInfo,
    advantages: Float[Array, "T B"],
    *,
    discount: Float[Array, ""] | float,
    entropy_coefficient: Float[Array, ""] | float,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return `improvement_bound` and `mean_kl_improvement_bound` of an update.

    They are estimates, not guarantees: over the states visited, undiscounted; with
    estimated advantages; and with the largest |A − Ā| of the actions taken for both ε
    and ε′ ≤ ε, because the mean Ā of true advantages is 0. In practice they are far
    below 0.

    Args:
        info: Evidence of the update, with standardised advantages.
        advantages: The same advantages in units of return, float[T, B].
        discount: γ in [0, 1].
        entropy_coefficient: c of the entropy bonus, which is not part of the return.

    Returns:
        Both bounds, scalars in the units of the advantages: 0 if the update was
        rejected, −∞ for γ = 1, where neither exists.
    """
    bonus = entropy_coefficient * (info.entropy - info.entropy_before)
    gain = info.surrogate_after - info.surrogate_before
    deviation = root(jnp.var(advantages))
    expected_advantage = (gain - bonus) * deviation
    # From the standardised ones, which the update has: the largest of the others costs
    # 2 % of a step at 64 × 128 on two cores, where XLA orders its work differently.
    most = deviation * root(jnp.max(jnp.square(standardize(advantages))))
    exist = jnp.asarray(discount) < 1
    below_1 = jnp.where(exist, discount, 0)
    bounds = (
        improvement_bound(expected_advantage, info.kl_max, most, discount=below_1),
        mean_kl_improvement_bound(expected_advantage, info.kl, most, discount=below_1),
    )
    return optax.tree.where(exist, bounds, (-jnp.inf, -jnp.inf))
