"""The algorithm in NumPy float64 and plain loops, written from the papers.

A second opinion: it imports nothing of the package and nothing of JAX. Every policy
here has its derivatives written by hand, and every matrix is formed.
"""

import itertools
from typing import NamedTuple

import numpy as np

# Distributions, over the last axis ---------------------------------------------------


def log_softmax(logits):
    shifted = logits - np.max(logits, axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def categorical_log_prob(logits, actions):
    log_probs = log_softmax(logits)
    return np.take_along_axis(log_probs, np.asarray(actions)[..., None], -1)[..., 0]


def categorical_entropy(logits):
    log_probs = log_softmax(logits)
    return -np.sum(np.exp(log_probs) * log_probs, axis=-1)


def categorical_kl(old_logits, new_logits):
    old, new = log_softmax(old_logits), log_softmax(new_logits)
    return np.sum(np.exp(old) * (old - new), axis=-1)


def gaussian_log_prob(mean, log_std, actions):
    variance = np.exp(2 * log_std)
    densities = -((actions - mean) ** 2) / (2 * variance) - 0.5 * np.log(
        2 * np.pi * variance
    )
    return np.sum(densities, axis=-1)


def gaussian_entropy(mean, log_std):
    variance = np.exp(2 * log_std) * np.ones_like(mean)
    return np.sum(0.5 * np.log(2 * np.pi * np.e * variance), axis=-1)


def gaussian_kl(old_mean, old_log_std, new_mean, new_log_std):
    """KL(N(μ, σ²) ‖ N(μ′, σ′²)) = log σ′/σ + (σ² + (μ − μ′)²) / 2σ′² − ½."""
    squares = np.exp(2 * old_log_std) + (old_mean - new_mean) ** 2
    terms = new_log_std - old_log_std + squares / (2 * np.exp(2 * new_log_std)) - 0.5
    return np.sum(terms, axis=-1)


def gaussian_quadrature(mean, log_std, num_nodes=3):
    """Actions and weights whose sums are expectations, exact to degree 2·nodes − 1."""
    nodes, weights = np.polynomial.hermite.hermgauss(num_nodes)
    actions, products = [], []
    for index in itertools.product(range(num_nodes), repeat=mean.shape[-1]):
        noise = np.sqrt(2) * nodes[list(index)]
        actions.append(mean + np.exp(log_std) * noise)
        products.append(np.prod(weights[list(index)] / np.sqrt(np.pi)))
    return np.array(actions), np.array(products)


def mlp(params, observations):
    hidden = np.tanh(observations @ params["hidden"] + params["bias"])
    return hidden @ params["output"]


# Advantages --------------------------------------------------------------------------


def generalized_advantages(
    rewards, values, next_values, terminated, truncated, discount, gae_lambda
):
    """Schulman et al. 2016, equation 16, of one trajectory, backwards."""
    advantages = np.zeros(len(rewards))
    following = 0.0
    for t in reversed(range(len(rewards))):
        bootstrap = 0.0 if terminated[t] else next_values[t]
        error = rewards[t] + discount * bootstrap - values[t]
        if terminated[t] or truncated[t]:
            following = 0.0
        following = error + discount * gae_lambda * following
        advantages[t] = following
    return advantages


def advantages_by_definition(
    rewards, values, next_values, terminated, truncated, discount, gae_lambda
):
    """The exponential average of n-step returns, less the value; O(T²).

    (1 − λ) Σ_{n=1}^{H−1} λⁿ⁻¹ Gₙ + λᴴ⁻¹ G_H − V(sₜ), with H steps left to the end of
    the episode or of the rollout, and Gₙ bootstrapped from the state after n steps.
    """
    advantages = np.zeros(len(rewards))
    for start in range(len(rewards)):
        ends = [
            t
            for t in range(start, len(rewards))
            if terminated[t] or truncated[t] or t == len(rewards) - 1
        ]
        horizon = ends[0] - start + 1
        for n in range(1, horizon + 1):
            n_step_return = 0.0
            for k in range(n):
                n_step_return += discount**k * rewards[start + k]
            last = start + n - 1
            if not terminated[last]:
                n_step_return += discount**n * next_values[last]
            final = n == horizon
            weight = gae_lambda ** (n - 1) * (1.0 if final else 1 - gae_lambda)
            advantages[start] += weight * n_step_return
        advantages[start] -= values[start]
    return advantages


# Policies ----------------------------------------------------------------------------


class LinearSoftmax(NamedTuple):
    """π(a|s) ∝ exp(w_a · s); parameters are the rows w_a, one after the other."""

    num_actions: int

    def logits(self, params, state):
        return params.reshape(self.num_actions, -1) @ state

    def log_prob(self, params, state, action):
        return log_softmax(self.logits(params, state))[action]

    def score(self, params, state, action):
        probabilities = np.exp(log_softmax(self.logits(params, state)))
        gradient = np.zeros((self.num_actions, len(state)))
        for k in range(self.num_actions):
            gradient[k] = (float(k == action) - probabilities[k]) * state
        return gradient.ravel()

    def actions(self, params, state):
        probabilities = np.exp(log_softmax(self.logits(params, state)))
        return list(enumerate(probabilities))

    def entropy(self, params, state):
        return categorical_entropy(self.logits(params, state))

    def kl(self, old, new, state):
        return categorical_kl(self.logits(old, state), self.logits(new, state))


class LinearGaussian(NamedTuple):
    """N(W s, σ²): the rows of W one after the other, and then log σ."""

    num_dimensions: int

    def split(self, params, state):
        weights, log_std = np.split(params, [-self.num_dimensions])
        return weights.reshape(self.num_dimensions, -1) @ state, log_std

    def log_prob(self, params, state, action):
        return gaussian_log_prob(*self.split(params, state), action)

    def score(self, params, state, action):
        mean, log_std = self.split(params, state)
        rows, scales = [], []
        for d in range(self.num_dimensions):
            z = (action[d] - mean[d]) / np.exp(log_std[d])
            rows.append(z / np.exp(log_std[d]) * state)
            scales.append(z**2 - 1)
        return np.concatenate([*rows, scales])

    def actions(self, params, state):
        return list(zip(*gaussian_quadrature(*self.split(params, state)), strict=True))

    def entropy(self, params, state):
        return gaussian_entropy(*self.split(params, state))

    def kl(self, old, new, state):
        return gaussian_kl(*self.split(old, state), *self.split(new, state))


# The update --------------------------------------------------------------------------


def surrogate(log_probs, old_log_probs, advantages):
    return np.mean(surrogate_terms(log_probs, old_log_probs, advantages))


def surrogate_terms(log_probs, old_log_probs, advantages):
    rows = zip(log_probs, old_log_probs, advantages, strict=True)
    return [np.exp(new) / np.exp(old) * advantage for new, old, advantage in rows]


def surrogate_gradient(policy, params, observations, actions, log_probs, advantages):
    gradient = np.zeros(len(params))
    for n, state in enumerate(observations):
        log_prob = policy.log_prob(params, state, actions[n])
        ratio = np.exp(log_prob) / np.exp(log_probs[n])
        gradient += ratio * advantages[n] * policy.score(params, state, actions[n])
    return gradient / len(observations)


def fisher(policy, params, observations):
    """E[∇log π ∇log πᵀ], summed over every action of every state."""
    matrix = np.zeros((len(params), len(params)))
    for state in observations:
        for action, probability in policy.actions(params, state):
            score = policy.score(params, state, action)
            matrix += probability * np.outer(score, score)
    return matrix / len(observations)


def conjugate_gradient(matrix, b, max_iterations, tolerance):
    """Shewchuk 1994, algorithm B2; (x, iterations, ‖r‖ / ‖b‖)."""
    x = np.zeros_like(b)
    residual, direction = b.copy(), b.copy()
    iterations = 0
    while (
        iterations < max_iterations
        and np.linalg.norm(residual) > tolerance * np.linalg.norm(b)
        and direction @ matrix @ direction > 0
    ):
        product = matrix @ direction
        alpha = (residual @ residual) / (direction @ product)
        x = x + alpha * direction
        next_residual = residual - alpha * product
        beta = (next_residual @ next_residual) / (residual @ residual)
        direction = next_residual + beta * direction
        residual = next_residual
        iterations += 1
    return x, iterations, np.linalg.norm(residual) / np.linalg.norm(b)


class Search(NamedTuple):
    accepted: bool
    fraction: float
    surrogate: float
    kl: float
    evaluations: int


def line_search(
    evaluate, surrogate_old, max_kl, max_backtracks, backtrack_factor, interpolate=True
):
    """Try fractions in turn; `evaluate` gives (surrogate, KL, parameters finite)."""
    best, smallest_refused, fraction = None, np.inf, 1.0
    for evaluations in range(1, max_backtracks + 1):
        value, kl, finite = evaluate(fraction)
        numbers = finite and np.isfinite(value) and np.isfinite(kl)
        good = numbers and kl <= max_kl and value > surrogate_old
        if best and not (good and value > best.surrogate):
            return best._replace(evaluations=evaluations)
        if good:
            best = Search(True, fraction, value, kl, evaluations)
            if not interpolate or kl >= 0.8 * max_kl:
                return best
        else:
            smallest_refused = min(smallest_refused, fraction)
        by_kl = interpolate and np.isfinite(kl) and (good or kl > max_kl)
        factor = np.sqrt(0.9 * max_kl / max(kl, 1e-300)) if by_kl else backtrack_factor
        fraction *= min(factor, 1 / backtrack_factor)
        if best and fraction >= smallest_refused:
            return best
    return best or Search(False, 0.0, value, kl, max_backtracks)


def trust_region_update(
    policy,
    params,
    observations,
    actions,
    log_probs,
    advantages,
    *,
    max_kl,
    damping,
    cg_iterations=10,
    cg_tolerance=1e-5,
    max_backtracks=10,
    backtrack_factor=0.5,
    interpolate=True,
    fisher_stride=1,
    damped_step=False,
):
    """Schulman et al. 2015, section 6 and appendix C; (params, evidence)."""

    def evaluate(candidate):
        new = [
            policy.log_prob(candidate, s, a)
            for s, a in zip(observations, actions, strict=True)
        ]
        divergences = [policy.kl(params, candidate, s) for s in observations]
        return surrogate_terms(new, log_probs, advantages), divergences

    terms_old, _ = evaluate(params)
    surrogate_old = np.mean(terms_old)
    gradient = surrogate_gradient(
        policy, params, observations, actions, log_probs, advantages
    )
    matrix = fisher(policy, params, observations[::fisher_stride])
    damped = matrix + damping * np.eye(len(params))
    x, iterations, residual = conjugate_gradient(
        damped, gradient, cg_iterations, cg_tolerance
    )
    curvature = x @ matrix @ x
    step_size = np.sqrt(2 * max_kl / (x @ damped @ x if damped_step else curvature))

    def try_fraction(fraction):
        terms, divergences = evaluate(params + fraction * step_size * x)
        return np.mean(terms), np.mean(divergences), True

    search = line_search(
        try_fraction,
        surrogate_old,
        max_kl,
        max_backtracks,
        backtrack_factor,
        interpolate,
    )
    kept = params + search.fraction * step_size * x
    terms, divergences = evaluate(kept)
    gains = np.subtract(terms, terms_old)
    evidence = {
        "surrogate_before": surrogate_old,
        "surrogate_after": np.mean(terms),
        "surrogate_standard_error": np.std(gains, ddof=1) / np.sqrt(len(gains)),
        "expected_improvement": search.fraction * step_size * (gradient @ x),
        "kl": np.mean(divergences),
        "kl_95": np.quantile(divergences, 0.95, method="inverted_cdf"),
        "kl_max": np.max(divergences),
        "share_beyond": np.mean(np.asarray(divergences) > max_kl),
        "kl_predicted": 0.5 * (search.fraction * step_size) ** 2 * curvature,
        "step_size": step_size,
        "accepted_fraction": search.fraction,
        "evaluations": search.evaluations,
        "cg_iterations": iterations,
        "cg_relative_residual": residual,
        "gradient_norm": np.linalg.norm(gradient),
        "entropy_before": np.mean([policy.entropy(params, s) for s in observations]),
        "entropy": np.mean([policy.entropy(kept, s) for s in observations]),
    }
    return kept, evidence


# Proximal policy optimisation --------------------------------------------------------


def entropy_gradient(policy, params, observations):
    """−Σ_a π log π ∇log π; the score's own expectation is 0."""
    gradient = np.zeros(len(params))
    for state in observations:
        for action, probability in policy.actions(params, state):
            log_prob = policy.log_prob(params, state, action)
            gradient -= probability * log_prob * policy.score(params, state, action)
    return gradient / len(observations)


def kl_gradient(policy, old, params, observations):
    """∇ KL(π_old ‖ π) = −Σ_a π_old ∇log π."""
    gradient = np.zeros(len(params))
    for state in observations:
        for action, probability in policy.actions(old, state):
            gradient -= probability * policy.score(params, state, action)
    return gradient / len(observations)


def clipped_objective(
    policy, params, observations, actions, log_probs, advantages, clip_ratio
):
    """Schulman et al. 2017, equation 7; (value, gradient, rows that are cut)."""
    value, gradient, cut = 0.0, np.zeros(len(params)), 0
    for n, state in enumerate(observations):
        log_prob = policy.log_prob(params, state, actions[n])
        ratio, advantage = np.exp(log_prob) / np.exp(log_probs[n]), advantages[n]
        bounded = min(max(ratio, 1 - clip_ratio), 1 + clip_ratio)
        value += min(ratio * advantage, bounded * advantage)
        # Cut where the ratio has gone too far in the direction of the advantage.
        if (ratio - 1) * advantage > 0 and ratio != bounded:
            cut += 1
        else:
            gradient += ratio * advantage * policy.score(params, state, actions[n])
    return value / len(observations), gradient / len(observations), cut


def adam(gradient_fn, params, minibatches, learning_rate):
    """Kingma & Ba 2015, algorithm 1, one step for each minibatch."""
    first, second = np.zeros_like(params), np.zeros_like(params)
    for step, minibatch in enumerate(minibatches, start=1):
        gradient = gradient_fn(params, minibatch)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        mean, square = first / (1 - 0.9**step), second / (1 - 0.999**step)
        params = params - learning_rate * mean / (np.sqrt(square) + 1e-8)
    return params


# Markov decision processes, solved exactly -------------------------------------------


class TabularMDP(NamedTuple):
    """P(s′|s, a) [S, A, S], r(s, a) [S, A], start distribution [S], γ."""

    transitions: np.ndarray
    rewards: np.ndarray
    start: np.ndarray
    discount: float


def random_mdp(rng, num_states, num_actions, discount):
    return TabularMDP(
        rng.dirichlet(np.full(num_states, 0.3), size=(num_states, num_actions)),
        rng.normal(size=(num_states, num_actions)),
        rng.dirichlet(np.ones(num_states)),
        discount,
    )


def _chain(mdp, policy):
    return np.einsum("sa,sat->st", policy, mdp.transitions)


def state_values(mdp, policy):
    """V = (I − γ P_π)⁻¹ r_π."""
    rewards = np.sum(policy * mdp.rewards, axis=1)
    identity = np.eye(len(mdp.start))
    return np.linalg.solve(identity - mdp.discount * _chain(mdp, policy), rewards)


def expected_return(mdp, policy):
    return mdp.start @ state_values(mdp, policy)


def exact_advantages(mdp, policy):
    values = state_values(mdp, policy)
    return mdp.rewards + mdp.discount * mdp.transitions @ values - values[:, None]


def discounted_states(mdp, policy):
    """d(s) = (1 − γ) Σ_t γᵗ P(s_t = s)."""
    identity = np.eye(len(mdp.start))
    system = identity - mdp.discount * _chain(mdp, policy).T
    return (1 - mdp.discount) * np.linalg.solve(system, mdp.start)


class PolicyChange(NamedTuple):
    """Exact improvement of a policy change, and the quantities that bound it."""

    improvement: float
    expected_advantage: float
    mean_kl: float
    max_kl: float
    max_advantage: float
    max_expected_advantage: float


def policy_change(mdp, old, new):
    advantages = exact_advantages(mdp, old)
    states = discounted_states(mdp, old)
    under_new = np.sum(new * advantages, axis=1)
    divergences = np.sum(old * np.log(old / new), axis=1)
    return PolicyChange(
        improvement=expected_return(mdp, new) - expected_return(mdp, old),
        expected_advantage=states @ under_new,
        mean_kl=states @ divergences,
        max_kl=np.max(divergences),
        max_advantage=np.max(np.abs(advantages)),
        max_expected_advantage=np.max(np.abs(under_new)),
    )


def improvement_bound(change, discount):
    """Schulman et al. 2015, theorem 1, less J(π_old)."""
    penalty = 4 * change.max_advantage * discount / (1 - discount) ** 2
    return change.expected_advantage / (1 - discount) - penalty * change.max_kl


def mean_kl_improvement_bound(change, discount):
    """Achiam et al. 2017, corollary 1, with D_TV ≤ √(KL/2) (Pinsker)."""
    total_variation = np.sqrt(change.mean_kl / 2)
    penalty = 2 * discount * change.max_expected_advantage / (1 - discount)
    return (change.expected_advantage - penalty * total_variation) / (1 - discount)
