"""The smallest run, shared so that it is compiled once."""

import trpo_jax

CONFIG = trpo_jax.TRPOConfig(
    env="CartPole-v1",
    num_envs=2,
    rollout_length=8,
    total_timesteps=16 * 40,
    hidden_sizes=(4,),
    critic_epochs=1,
    critic_minibatches=1,
    normalize_observations=True,
    normalize_returns=True,
    max_kl_schedule="linear",
)
SETTINGS = trpo_jax.RunSettings(checkpoint_updates=10, evaluation_episodes=2)


def run(folder, config=CONFIG, settings=SETTINGS, **options):
    return trpo_jax.run(config, folder, settings, progress=False, **options)


def resume(folder, config=None, **options):
    return trpo_jax.resume(folder, config, progress=False, **options)
