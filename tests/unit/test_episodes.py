"""An episode is a function of its seed, not of episodes beside it."""

from types import MappingProxyType

import gymnasium
import numpy as np
import pytest
import robomimic_idiom  # noqa: F401 # registers its algorithms
import torch
from tiny import small_config
from torch import nn

from raymimic.algo import PolicyAlgo, RolloutPolicy, algo_factory
from raymimic.config import config_factory
from raymimic.envs.seeds import evaluation_seeds
from raymimic.errors import EnvError
from raymimic.rollout.episodes import WIDTH, Film, Rules, run_episodes
from raymimic.rollout.evaluation import EvalJob, EvalResult, Video

HOPPER = {"env_name": "Hopper-v5", "type": 2}


class TinyPolicy:
    """A network of a shape whose last bits depend on the row of the batch (17 → 6 likewise)."""

    obs_keys, goal_keys, modalities = ("flat",), (), MappingProxyType({"flat": "low_dim"})
    acts_in_batches = True

    def __init__(self, obs_dim=11, ac_dim=3):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(obs_dim, ac_dim), nn.Tanh())
        self.batches, self.masks = [], []

    def start_episode(self, mask=None, seeds=None):
        self.masks.append(None if mask is None else mask.copy())

    @torch.no_grad()
    def __call__(self, ob, goal=None, batched_ob=False):
        assert batched_ob
        self.batches.append(len(ob["flat"]))
        return self.net(torch.as_tensor(ob["flat"]).float()).numpy()


class TimedEnv(gymnasium.Env):
    """Runs for ``seed % 5 + 2`` steps, each of reward 1; solved at ``solved``."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (3,))

    def __init__(self, solved=-1, render_mode=None):
        self.solved, self.render_mode = solved, render_mode

    def reset(self, *, seed=None, options=None):
        self.left, self.steps = seed % 5 + 2, 0
        return np.zeros(2), {}

    def step(self, action):
        self.left -= 1
        self.steps += 1
        return np.zeros(2), 1.0, self.left == 0, False, {"success": self.steps == self.solved}

    def render(self):
        return np.full((16, 16, 3), self.steps, np.uint8)


@pytest.fixture(autouse=True)
def _timed_env():
    gymnasium.register("Timed-v0", entry_point=TimedEnv, order_enforce=False)
    yield
    gymnasium.registry.pop("Timed-v0")


def timed(**kwargs):
    return {"env_name": "Timed-v0", "type": 2, "env_kwargs": kwargs}


def outcome(episodes):
    return [(e.seed, e.episode_return, e.length, e.terminated) for e in episodes]


def test_one_environment_and_eight_play_the_same_episodes():
    seeds = evaluation_seeds(base_seed=1, epoch=3, n=20)
    alone = run_episodes(TinyPolicy(), HOPPER, seeds, Rules(150), num_envs=1)
    together = run_episodes(TinyPolicy(), HOPPER, seeds, Rules(150), num_envs=8)
    halves = [
        e
        for s in (seeds[:7], seeds[7:])
        for e in run_episodes(TinyPolicy(), HOPPER, s, Rules(150), num_envs=3)
    ]
    assert outcome(alone) == outcome(together) == outcome(halves)
    assert len({e.episode_return for e in alone}) == 20


class Wanderer(PolicyAlgo):
    """Remembers and rolls dice: a hidden state, and every three steps a new random heading."""

    def _create_networks(self):
        dim = self.obs_shapes["flat"][0]
        self.nets["policy"] = nn.GRUCell(dim, 8)
        self.nets["head"] = nn.Linear(8 + self.ac_dim, self.ac_dim)
        self.hidden = None

    def reset(self, mask=None):
        if mask is None:
            self.hidden = None
        elif self.hidden is not None:
            self.hidden[mask], self.heading[mask], self.steps[mask] = 0.0, 0.0, 0

    def get_action(self, obs_dict, goal_dict=None):
        batch = len(obs_dict["flat"])
        if self.hidden is None:
            self.hidden, self.steps = torch.zeros(batch, 8), torch.zeros(batch, dtype=torch.long)
            self.heading = torch.zeros(batch, self.ac_dim)
        turns = self.steps % 3 == 0
        if turns.any():
            with self._noise_only(turns):
                heading = torch.distributions.Normal(self.heading, 0.5).sample()
            self.heading = torch.where(turns[:, None], heading, self.heading)
        self.steps = self.steps + 1
        self.hidden = self.nets["policy"](obs_dict["flat"], self.hidden)
        mean = self.nets["head"](torch.cat([self.hidden, self.heading], dim=1))
        return torch.tanh(mean + 0.1 * torch.randn_like(mean))


def test_a_policy_that_remembers_and_rolls_dice_plays_the_same_episodes():
    config = config_factory("bc")
    config.observation.modalities.obs.low_dim = ["flat"]
    torch.manual_seed(0)
    algo = Wanderer(config.algo, config.observation, config, {"flat": [11]}, 3, torch.device("cpu"))
    policy = RolloutPolicy(algo)
    seeds = evaluation_seeds(base_seed=1, epoch=3, n=20)
    alone = run_episodes(policy, HOPPER, seeds, Rules(60), num_envs=1)
    together = run_episodes(policy, HOPPER, seeds, Rules(60), num_envs=8)
    halves = [
        e for s in (seeds[:7], seeds[7:]) for e in run_episodes(policy, HOPPER, s, Rules(60), 8)
    ]
    assert outcome(alone) == outcome(together) == outcome(halves)
    assert len({e.episode_return for e in alone}) == 20
    assert (
        outcome(run_episodes(policy, HOPPER, [s + 1 for s in seeds], Rules(60), 8))[:-1]
        == outcome(together)[1:]
    )  # an episode is its seed's, wherever it stands


@pytest.mark.parametrize(("inputs", "outputs"), [(11, 3), (17, 6), (257, 7), (17, 256), (64, 64)])
def test_a_row_of_fixed_width_does_not_depend_on_the_others(inputs, outputs):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, 6), nn.Sigmoid())
    row = torch.randn(inputs)
    with torch.no_grad():
        for position in range(WIDTH):
            seen = set()
            for other in (0.0, 1e6, float("nan"), None):
                batch = (
                    torch.randn(WIDTH, inputs)
                    if other is None
                    else torch.full((WIDTH, inputs), other)
                )
                batch[position] = row
                seen.add(net(batch)[position].numpy().tobytes())
            assert len(seen) == 1
    torch.set_num_threads(threads)


def test_every_forward_pass_is_as_wide_and_runs_on_one_thread():
    policy = TinyPolicy(obs_dim=2)
    threads = torch.get_num_threads()
    run_episodes(policy, timed(), range(5), Rules(100), num_envs=3)
    assert set(policy.batches) == {WIDTH}
    assert torch.get_num_threads() == threads


def test_each_start_is_announced_by_its_row_and_idle_rows_start_along():
    policy = TinyPolicy(obs_dim=2)
    run_episodes(policy, timed(), [4, 5, 6, 8], Rules(100), num_envs=2)  # lengths 6, 2, 3, 5
    assert policy.masks[0] is None
    kept = [np.flatnonzero(~mask).tolist() for mask in policy.masks[1:]]
    assert kept == [[], [4], [4]]  # 4 and 5 start, then 6 and 8 while 4 is under way


class Planner:
    """Makes a plan of four steps for whom it has none, and counts how often."""

    obs_keys, goal_keys, modalities = ("flat",), (), MappingProxyType({"flat": "low_dim"})
    acts_in_batches = True

    def __init__(self):
        self.left = torch.zeros(WIDTH, dtype=torch.int64)
        self.plans = 0

    def start_episode(self, mask=None, seeds=None):
        self.left[slice(None) if mask is None else torch.as_tensor(mask)] = 0

    def __call__(self, ob, goal=None, batched_ob=False):
        self.plans += bool((self.left == 0).any())
        self.left = torch.where(self.left == 0, 4, self.left) - 1
        return np.zeros((WIDTH, 3))


def test_idle_rows_ask_for_no_plans_of_their_own():
    planner = Planner()
    run_episodes(planner, timed(), [0, 4], Rules(100), num_envs=1)  # of 2 and of 6 steps
    assert planner.plans == 1 + 2


def test_an_algorithm_whose_reset_takes_no_mask_plays_one_environment_at_a_time():
    config = small_config("idiom_hierarchy")
    torch.manual_seed(0)
    algo = algo_factory("idiom_hierarchy", config, {"flat": [2]}, 3, "cpu")
    batches = []
    act = algo.get_action
    algo.get_action = lambda obs, goal: batches.append(len(obs["flat"])) or act(obs, goal)
    seeds = [4, 5, 6, 8]  # lengths 6, 2, 3, 5
    first, second = (
        run_episodes(RolloutPolicy(algo), timed(), order, Rules(100), num_envs=8)
        for order in (seeds, seeds[::-1])
    )
    assert outcome(first) == outcome(second[::-1])
    assert set(batches) == {1}
    policy = RolloutPolicy(algo)
    policy.start_episode(seeds=[0, 1])
    with pytest.raises(EnvError, match=r"Hierarchy.reset has no argument 'mask'"):
        policy.start_episode(np.array([True, False]), seeds=[0, 1])


def test_episodes_that_share_a_row_take_turns():
    seeds = [1, 1 + WIDTH, 1 + 2 * WIDTH]
    episodes = run_episodes(TinyPolicy(obs_dim=2), timed(), seeds, Rules(100), num_envs=3)
    assert [e.length for e in episodes] == [seed % 5 + 2 for seed in seeds]


def test_horizon_termination_and_success():
    def play(horizon, terminate_on_success=True, **kwargs):
        policy = TinyPolicy(obs_dim=2)
        return run_episodes(
            policy,
            timed(**kwargs),
            [0, 4],
            Rules(horizon, terminate_on_success=terminate_on_success),
            2,
        )

    long, short = play(horizon=100), play(horizon=3)
    assert outcome(long) == [(0, 2.0, 2, True), (4, 6.0, 6, True)]
    assert outcome(short) == [(0, 2.0, 2, True), (4, 3.0, 3, False)]
    solved = play(horizon=100, solved=3)
    assert outcome(solved) == [(0, 2.0, 2, True), (4, 3.0, 3, False)]
    assert [e.success for e in solved] == [False, True]
    solved = play(horizon=100, solved=3, terminate_on_success=False)
    assert outcome(solved) == outcome(long)  # solved once counts, though not at the end
    assert [e.success for e in solved] == [False, True]


def test_film_keeps_every_nth_frame_of_the_chosen_episodes():
    film = Film(seeds=[4], skip=2)
    run_episodes(TinyPolicy(obs_dim=2), timed(), [0, 4, 5], Rules(100), num_envs=2, film=film)
    assert {
        seed: [(int(f.picture[0, 0, 0]), f.step, f.episode_return) for f in frames]
        for seed, frames in film.frames.items()
    } == {4: [(1, 1, 1.0), (3, 3, 3.0), (5, 5, 5.0)]}


def test_a_job_splits_into_parts_that_merge_in_order():
    seeds = list(range(10, 21))
    job = EvalJob("x.pth", {"a": timed(), "b": timed()}, seeds, horizon=5, film=5)
    parts = job.split(4)
    assert [s for part in parts for s in part.seeds] == seeds
    assert [len(part.seeds) for part in parts] == [2, 3, 3, 3]
    assert [part.film for part in parts] == [2, 3, 0, 0]
    assert [len(p.seeds) for p in EvalJob("x", {}, [1, 2], 5).split(4)] == [1, 1]

    def play(part):
        episodes = run_episodes(TinyPolicy(obs_dim=2), timed(), part.seeds, Rules(5), 2)
        film = [Video("a", seed, b"") for seed in part.seeds[: part.film]]
        return EvalResult(part, {"a": episodes, "b": episodes}, part.seeds[0] / 10, film)

    whole = EvalResult.merge(job, [play(part) for part in parts])
    assert whole.job is job
    assert [e.seed for e in whole.episodes["b"]] == seeds
    assert [video.seed for video in whole.videos] == seeds[:5]
    assert whole.seconds == 1.8
