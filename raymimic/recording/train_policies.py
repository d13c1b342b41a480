"""Makes the policies that ship in `raymimic/recording/policies` and play the demonstrations.

Walker2d and Hopper: PPO (stable-baselines3, two tanh layers of 64, normalised observations).
HalfCheetah: augmented random search, "V2-t" of Mania et al. 2018 (arXiv:1803.07055). Snapshots
are played over 20 seeds while training; the most reliable one becomes the expert, and an earlier
one with about half of its return the medium policy.

Needs the development extra: `pip install -e '.[policies]'`. A few minutes per task on one core::

    python -m raymimic.recording.train_policies walker2d hopper halfcheetah --seed 0
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from raymimic.recording.source_policy import FloatArray, SourcePolicy

EVALUATION_SEEDS = range(10_000, 10_020)
MEDIUM_RANGE = (0.30, 0.55)
"""Medium return over the expert's return. 25 to 60 % are promised, as seeds differ."""
MARGIN = 1.02
"""Training ends when the mean return less one standard deviation is that much above the goal."""
DEFAULT_OUT = Path(__file__).parent / "policies"


@dataclass(frozen=True)
class TrainingRecipe:
    """How the policies of one task are made.

    Attributes:
        env_name: gymnasium id.
        expert_return: least mean return of the expert.
        budget: environment steps (PPO) or iterations (ARS).
        snapshot_every: between two snapshots, in the unit of `budget`.
        action_noise: standard deviation of the noise with which the demonstrations are played, so
            that an expert is chosen that bears it.
    """

    env_name: str
    expert_return: float
    budget: int
    snapshot_every: int
    action_noise: float = 0.1


RECIPES = {
    "walker2d": TrainingRecipe("Walker2d-v5", 4000.0, budget=1_200_000, snapshot_every=40_000),
    "hopper": TrainingRecipe("Hopper-v5", 3000.0, budget=1_200_000, snapshot_every=40_000),
    "halfcheetah": TrainingRecipe("HalfCheetah-v5", 4000.0, budget=240, snapshot_every=8),
}


def play(policy: SourcePolicy, env: gymnasium.Env[Any, Any], seed: int, noise: float) -> float:
    """Plays one episode and returns its undiscounted return."""
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed)
    episode_return, done = 0.0, False
    while not done:
        action = policy(obs)
        action = np.clip(action + noise * rng.standard_normal(action.shape), -1.0, 1.0)
        obs, reward, terminated, truncated, _ = env.step(action)
        episode_return += float(reward)
        done = terminated or truncated
    return episode_return


def ppo_snapshots(recipe: TrainingRecipe, seed: int) -> Iterator[SourcePolicy]:
    """Trains PPO with a linearly decaying learning rate and yields a policy at each snapshot."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(1)
    envs = VecNormalize(make_vec_env(recipe.env_name, n_envs=4, seed=seed))
    obs_rms: Any = envs.obs_rms
    rate = 3e-4
    model = PPO(
        "MlpPolicy",
        envs,
        learning_rate=lambda _: rate,
        n_steps=512,
        batch_size=64,
        seed=seed,
        device="cpu",
    )

    while model.num_timesteps < recipe.budget:
        done = model.num_timesteps / recipe.budget
        rate = 3e-4 * (1.0 - 0.95 * done)  # read at the next update
        model.learn(recipe.snapshot_every, reset_num_timesteps=False)
        network = [*model.policy.mlp_extractor.policy_net, model.policy.action_net]
        layers: list[Any] = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
        yield SourcePolicy(
            obs_mean=obs_rms.mean.copy(),
            obs_std=np.sqrt(obs_rms.var + envs.epsilon),
            weights=tuple(layer.weight.detach().numpy().T.copy() for layer in layers),
            biases=tuple(layer.bias.detach().numpy().copy() for layer in layers),
        )


def ars_snapshots(
    recipe: TrainingRecipe,
    seed: int,
    directions: int = 8,
    best: int = 4,
    step_size: float = 0.02,
    noise: float = 0.03,
) -> Iterator[SourcePolicy]:
    """Trains a linear policy by augmented random search and yields it at each snapshot."""
    rng = np.random.default_rng(seed)
    env = gymnasium.make(recipe.env_name)
    obs_dim, ac_dim = env.observation_space.shape[0], env.action_space.shape[0]  # type: ignore[index]
    weight = np.zeros((obs_dim, ac_dim))
    count, mean, sum_sq = 0, np.zeros(obs_dim), np.zeros(obs_dim)

    def rollout(candidate: FloatArray, std: FloatArray) -> tuple[float, FloatArray]:
        policy = SourcePolicy(mean, std, (candidate,), (np.zeros(ac_dim),))
        obs, _ = env.reset(seed=int(rng.integers(2**31)))
        seen, episode_return, done = [obs], 0.0, False
        while not done:
            obs, reward, terminated, truncated, _ = env.step(np.clip(policy(obs), -1.0, 1.0))
            seen.append(obs)
            episode_return += float(reward)
            done = terminated or truncated
        return episode_return, np.asarray(seen)

    for iteration in range(recipe.budget):
        std = np.sqrt(sum_sq / count) + 1e-6 if count else np.ones(obs_dim)
        deltas = rng.standard_normal((directions, obs_dim, ac_dim))
        returns = np.empty((directions, 2))
        observations = []
        for i, delta in enumerate(deltas):
            for j, sign in enumerate((1.0, -1.0)):
                returns[i, j], seen = rollout(weight + sign * noise * delta, std)
                observations.append(seen)
        top = np.argsort(-returns.max(axis=1))[:best]
        slope = returns[top, 0] - returns[top, 1]
        step = np.tensordot(slope, deltas[top], axes=1) / (best * returns[top].std())
        weight = weight + step_size * step
        if (iteration + 1) % recipe.snapshot_every == 0:
            yield SourcePolicy(mean, std, (weight.copy(),), (np.zeros(ac_dim),))
        for seen in observations:  # Chan's parallel update of mean and variance
            delta_mean = seen.mean(axis=0) - mean
            total = count + len(seen)
            sum_sq = (
                sum_sq + seen.var(axis=0) * len(seen) + delta_mean**2 * (count * len(seen) / total)
            )
            mean = mean + delta_mean * (len(seen) / total)
            count = total


def choose(scores: FloatArray) -> tuple[int, int]:
    """Picks the expert and the medium snapshot.

    Args:
        scores: `[S, 20]` returns of each snapshot over the evaluation seeds.

    Returns:
        Index of the expert, the best mean minus standard deviation (an expert that rarely falls),
        and of the steadiest snapshot before it with about half of its return.
    """
    means, stds = scores.mean(axis=1), scores.std(axis=1)
    expert = int(np.argmax(means - stds))
    earlier = means[: expert + 1] / means[expert]
    fitting = np.flatnonzero((earlier >= MEDIUM_RANGE[0]) & (earlier <= MEDIUM_RANGE[1]))
    if len(fitting) == 0:
        return expert, int(np.argmin(np.abs(earlier - np.mean(MEDIUM_RANGE))))
    return expert, int(fitting[np.argmin(stds[fitting])])


def make(task: str, seed: int, out: Path) -> bool:
    """Trains, chooses and writes both policies of one task; False if a threshold is missed."""
    recipe = RECIPES[task]
    env = gymnasium.make(recipe.env_name)
    snapshots, scores = [], []
    start = time.monotonic()
    train = ars_snapshots if task == "halfcheetah" else ppo_snapshots
    for policy in train(recipe, seed):
        snapshots.append(policy)
        scores.append([play(policy, env, s, recipe.action_noise) for s in EVALUATION_SEEDS])
        print(
            f"{task} snapshot {len(snapshots)}: {np.mean(scores[-1]):.0f} "
            f"± {np.std(scores[-1]):.0f}, {time.monotonic() - start:.0f} s",
            flush=True,
        )
        if np.mean(scores[-1]) - np.std(scores[-1]) > MARGIN * recipe.expert_return:
            break
    expert, medium = choose(np.asarray(scores))
    expert_return, medium_return = float(np.mean(scores[expert])), float(np.mean(scores[medium]))
    for level, index in (("expert", expert), ("medium", medium)):
        snapshots[index].save(out / f"{task}-{level}.npz")
    low, high = MEDIUM_RANGE
    good = expert_return >= recipe.expert_return and (
        low * expert_return <= medium_return <= high * expert_return
    )
    print(
        f"{task}: expert {expert_return:.0f} (snapshot {expert + 1}), medium {medium_return:.0f} "
        f"(snapshot {medium + 1}): {'good' if good else 'misses its thresholds, try another seed'}"
    )
    return good


def main() -> int:
    """Command line; the exit status is 1 if a task misses its thresholds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tasks", nargs="+", choices=sorted(RECIPES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of the .npz files")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    missed = [task for task in args.tasks if not make(task, args.seed, args.out)]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
