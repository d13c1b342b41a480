"""An environment that does not fit a policy is refused in one sentence; one that does is played."""

import re
import signal
from typing import Any

import gymnasium
import numpy as np
import odd_envs
import pytest
import reach_env

from raymimic.config import config_factory
from raymimic.envs.fit import PolicyInterface, check_fit
from raymimic.envs.kinds import env_from_metadata, read_env_meta
from raymimic.errors import EnvError
from raymimic.rollout.episodes import Rules, run_episodes
from raymimic.rollout.stats import failures, summarize

POLICY = PolicyInterface(obs={"flat": [3]}, goals={}, action_dim=2)


def odd(what: str = "", env_name: str = "Odd-v0", **kwargs: Any) -> dict[str, Any]:
    kwargs = {"odd": what, **kwargs} if env_name != "Old-v0" else kwargs
    return {"env_name": env_name, "type": 2, "env_kwargs": kwargs}


class Reader:
    """Plays the first observation's numbers, far beyond any limit."""

    acts_in_batches = True

    def __init__(self, *keys: str) -> None:
        self.obs_keys, self.goal_keys = keys or ("flat",), ()
        self.modalities = dict.fromkeys(self.obs_keys, "low_dim")
        self.seen: list[np.ndarray] = []

    def start_episode(self, mask: Any = None, seeds: Any = None) -> None:
        pass

    def __call__(self, ob: Any, goal: Any = None, batched_ob: bool = False) -> Any:
        assert set(ob) == set(self.obs_keys)
        self.seen.append(ob[self.obs_keys[-1]][0].copy())
        return np.tile(np.float32([-9, 9]), (len(ob["flat"]), 1))


IN_FILE = r" \(/.*/odd_envs\.py, line \d+\)$"
MISFITS = {
    "width": r"gives observation 'flat' of shape \[4\], and the policy reads \[3\]",
    "five actions": "takes actions of 5 components, and the policy gives 2",
    "matrix": "only vectors can be played",
    "discrete": r"Discrete\(2\), and only vectors can be played",
    "dict of actions": "only vectors can be played",
    "constructor": "'Odd-v0' cannot be made: RuntimeError: no licence",
    "constructor without a word": r"'Odd-v0' cannot be made: RuntimeError" + IN_FILE,
    "constructor exits": r"'Odd-v0' cannot be made: it calls sys.exit\(no licence\)",
    "reset raises": r"'Odd-v0' fails in its reset: ValueError: the arm collides" + IN_FILE,
    "coloured": r"fails in its reset: ValueError: \\x1b\[31mred" + IN_FILE,
    "step raises": r"'Odd-v0' fails in its step: ZeroDivisionError" + IN_FILE,
    "step exits": r"'Odd-v0' fails in its step: it calls sys.exit\(0\)" + IN_FILE,
    "step panics": r"'Odd-v0' fails in its step: it raises PanicException: index out of bounds"
    + IN_FILE,
    "info of another type": "gives info as a value of type list: it must be a dictionary$",
    "old reset": r"returns from its reset an array of shape \[3\], as old gym's do.*shimmy",
    "old step": "returns from its step a tuple of 4 values.*shimmy",
    "tuple": "after its reset: .* 'flat', which is no array of numbers, but of type tuple",
    "text": "'flat', which is no array of numbers, but of type str",
    "NaN": "observation 'flat' holds NaN",
    "no text": "'flat', which is no array of numbers, but of type <U1",
    "beyond float32": "observation 'flat' holds numbers beyond float32",
    "beyond floats": "'flat', which is no array of numbers, but of type int",
    "other names": "the policy reads observation 'flat', which the environment does not give",
    "vanishes": "after its step: the policy reads observation 'flat', which",
    "reward of two": r"gives reward as an array of shape \[2\]",
    "no reward": "gives reward as None: it must be one finite number",
    "NaN reward": "gives reward as nan: it must be one finite number",
    "array of flags": r"info\['success'\] as an array of shape \[2\]: it must be true or false",
    "criteria": r"gives info\['success'\] as criteria \(grasp\) without 'task'",
    "text as a criterion": r"info\['success'\]\['grasp'\] as 'firm': it must be true or false",
    "text of success": r"gives info\['is_success'\] as 'False'",
    "share of success": r"gives info\['success'\] as 0.4",
}


@pytest.mark.parametrize("what", MISFITS)
def test_a_misfit_is_said_in_one_sentence(what: str) -> None:
    with pytest.raises(EnvError, match=MISFITS[what]) as refused:
        check_fit(odd(what), POLICY)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_old_gym_is_said_where_gymnasiums_wrappers_stumble_over_it() -> None:
    with pytest.raises(EnvError, match="returns from its step other values than gymnasium's five"):
        check_fit(odd("old step", "OddLimited-v0"), POLICY)
    with pytest.raises(EnvError, match="has a reset without gymnasium's arguments 'seed'"):
        check_fit(odd(env_name="Old-v0"), POLICY)


FITS = [
    *("", "no info", "reward of one", "not solved", "solved", "solved by an array"),
    *("box of [0, 1]", "unbounded", "unread keys", "whole numbers first", "bytes"),
    *("unusual floats", "list", "objects", "last observation", "whole actions"),
    *("flags as actions", "reward as a fraction", "unknown criterion"),
]


@pytest.mark.parametrize("what", FITS)
def test_what_can_be_played_is_played_to_its_end(what: str) -> None:
    found = check_fit(odd(what), POLICY)
    told = ("not solved", "solved", "solved by an array", "unknown criterion")
    assert found.knows_success == (what in told)
    (episode,) = run_episodes(Reader(), odd(what), [3], Rules(100, terminate_on_success=False), 1)
    assert (episode.error, episode.episode_return, episode.length) == (None, 10.0, 10)
    assert episode.terminated
    assert episode.success == (what in ("solved", "solved by an array"))
    grasped = what in ("not solved", "unknown criterion")
    assert episode.successes == ({"grasp": True} if grasped else {})


def test_a_scalar_is_a_vector_of_one() -> None:
    policy = PolicyInterface(obs={"flat": [3], "height": [1]}, goals={}, action_dim=2)
    check_fit(odd("scalar"), policy)
    reader = Reader("flat", "height")
    run_episodes(reader, odd("scalar"), [0], Rules(3), 1)
    assert [seen.tolist() for seen in reader.seen] == [[0.5], [1.5], [2.5]]


def test_a_blank_observation_is_seen_as_zeros_alone() -> None:
    reader = Reader("flat", "height")
    run_episodes(reader, odd("scalar"), [0], Rules(3, blank=["height"]), 1)
    assert [seen.tolist() for seen in reader.seen] == [[0.0], [0.0], [0.0]]
    reader = Reader("height", "flat")
    run_episodes(reader, odd("scalar"), [0], Rules(3, blank=["height"]), 1)
    assert all(seen.any() for seen in reader.seen[1:])


def test_fractions_survive_whole_numbers() -> None:
    reader = Reader()
    run_episodes(reader, odd("whole numbers first"), [0], Rules(3), 1)
    np.testing.assert_allclose([seen[0] for seen in reader.seen], [0, 0.1, 0.2], atol=1e-7)


def test_actions_are_clipped_to_the_box_and_have_its_type() -> None:
    env = env_from_metadata(odd("box of [0, 1]"))
    clipped = env.clip(np.array([-0.3, 7.0]))
    assert clipped.tolist() == [0.0, 1.0]
    assert clipped.dtype == np.float32
    bounds = check_fit(odd("box of [0, 1]"), POLICY)
    assert (bounds.low, bounds.high) == ([0.0, 0.0], [1.0, 1.0])
    inside = np.float32([0.1, 0.7])
    np.testing.assert_array_equal(env.clip(inside), inside)
    unbounded = env_from_metadata(odd("unbounded"))
    assert unbounded.clip(np.float32([-1e9, 1e9])).tolist() == [-1e9, 1e9]
    whole = env_from_metadata(odd("whole actions")).clip(np.float32([-0.7, 9]))
    assert (whole.tolist(), whole.dtype) == ([-1, 3], np.int64)


def test_a_stack_made_by_the_environment_fits_a_policy_of_stacks() -> None:
    policy = PolicyInterface(obs={"flat": [3]}, goals={}, action_dim=2, frame_stack=2)
    check_fit(odd(), policy)  # the policy makes the stack
    stacked = gymnasium.make("Odd-v0").spec
    assert stacked is not None
    stacked.additional_wrappers += (
        gymnasium.envs.registration.WrapperSpec(
            "FrameStack", "gymnasium.wrappers:FrameStackObservation", {"stack_size": 2}
        ),
    )
    gymnasium.registry["Stacked-v0"] = stacked
    try:
        check_fit({"env_name": "Stacked-v0"}, policy)
        with pytest.raises(EnvError, match=r"of shape \[2, 3\], and the policy reads \[3\]"):
            check_fit({"env_name": "Stacked-v0"}, POLICY)
    finally:
        gymnasium.registry.pop("Stacked-v0")


class CameraEnv(gymnasium.Env):
    """Gives an image [4, 5, 3] of a type, and of another one from the first step on."""

    observation_space = gymnasium.spaces.Dict(camera=gymnasium.spaces.Box(-np.inf, np.inf))
    action_space = gymnasium.spaces.Box(-1, 1, (2,))

    def __init__(self, first: str, later: str, render_mode: str | None = None) -> None:
        self.first, self.later, self.render_mode = first, later, render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return {"camera": np.zeros((4, 5, 3), self.first)}, {}

    def step(self, action: Any) -> Any:
        return {"camera": np.zeros((4, 5, 3), self.later)}, 0.0, False, False, {}


@pytest.mark.parametrize(
    ("modality", "first", "later", "fault"),
    [
        ("rgb", "uint8", "uint8", None),
        ("rgb", "uint8", "int64", None),
        ("rgb", "float32", "uint8", "float32, and colours are uint8, 0 to 255: convert it to"),
        ("rgb", "uint8", "float64", "float64, and colours are uint8"),
        ("rgb", "uint16", "uint8", "uint16, and colours are uint8"),
        ("depth", "float64", "float32", None),
        ("depth", "uint16", "uint16", "uint16, and distances are floating-point numbers: convert"),
        ("low_dim", "float32", "uint8", None),
    ],
)
def test_images_have_the_type_of_their_modality(
    modality: str, first: str, later: str, fault: str | None
) -> None:
    config = config_factory("bc")
    config.observation.modalities.obs.low_dim = []
    config.observation.modalities.obs[modality] = ["camera"]
    shape = [4, 5, 3] if modality == "low_dim" else [3, 4, 5]
    policy = PolicyInterface.of(config, {"all_shapes": {"camera": shape}, "ac_dim": 2})
    gymnasium.register("Camera-v0", CameraEnv)
    try:
        env = {"env_name": "Camera-v0", "env_kwargs": {"first": first, "later": later}}
        if fault is None:
            check_fit(env, policy)
            return
        with pytest.raises(EnvError) as refused:
            check_fit(env, policy)
    finally:
        gymnasium.registry.pop("Camera-v0")
    message = f"'Camera-v0' gives observation 'camera', which is listed as {modality} and holds "
    assert message + fault in str(refused.value)


def test_a_goal_that_is_missing_is_called_a_goal() -> None:
    reach = {"env_name": reach_env.NAME}
    obs = {"observation": [2]}
    check_fit(reach, PolicyInterface(obs, {"desired_goal": [2]}, 2))
    with pytest.raises(EnvError, match="the policy reads goal 'cube', which the environment does"):
        check_fit(reach, PolicyInterface(obs, {"cube": [2]}, 2))
    with pytest.raises(EnvError, match=r"gives goal 'desired_goal' of shape \[2\], and .* \[3\]"):
        check_fit(reach, PolicyInterface(obs, {"desired_goal": [3]}, 2))
    with pytest.raises(EnvError, match="has no goals for the policy"):
        check_fit(odd(), PolicyInterface({"flat": [3]}, {"flat": [3]}, 2))


def test_the_interface_is_what_the_policy_reads_of_its_environment() -> None:
    config = config_factory("hbc")
    planner, actor = config.observation.planner, config.observation.actor
    planner.modalities.obs.low_dim, planner.modalities.obs.rgb = ["a"], ["camera"]
    planner.modalities.subgoal.low_dim, planner.modalities.goal.low_dim = ["c"], ["d"]
    actor.modalities.obs.low_dim, actor.modalities.goal.low_dim = ["b"], ["c"]
    shapes = {"a": [1], "b": [2], "c": [3], "d": [4], "camera": [3, 84, 90]}
    found = PolicyInterface.of(config, {"all_shapes": shapes, "ac_dim": 5})
    assert found.obs == {"a": [1], "b": [2], "camera": [84, 90, 3]}
    assert found.goals == {"d": [4]}  # the actor's goals are the planner's subgoals
    assert (found.action_dim, found.frame_stack) == (5, 1)


# -- episodes that fail --


def test_an_episode_that_raises_fails_and_no_other() -> None:
    seeds = list(range(10, 30))
    whole = run_episodes(Reader(), odd(), seeds, Rules(100), 4)
    episodes = run_episodes(Reader(), odd(crash_seeds=[12, 13, 28]), seeds, Rules(100), 4)
    assert [e.seed for e in episodes] == seeds
    assert {e.seed for e in episodes if e.error} == {12, 13, 28}
    broken = episodes[2]
    assert re.fullmatch("RuntimeError: the simulation is unstable" + IN_FILE, broken.error)
    assert (broken.length, broken.episode_return, broken.success) == (4, 4.0, False)
    played = [(e.seed, e.episode_return, e.length) for e in episodes if not e.error]
    assert played == [
        (e.seed, e.episode_return, e.length) for e in whole if e.seed not in (12, 13, 28)
    ]


def test_a_simulator_that_ends_the_process_fails_its_episode() -> None:
    crashing = odd("episodes exit", crash_seeds=[1])
    episodes = run_episodes(Reader(), crashing, range(4), Rules(100), 2)
    assert [e.episode_return for e in episodes] == [10.0, 4.0, 10.0, 10.0]
    fault = r"environment 'Odd-v0' fails in its step: it calls sys.exit\(0\)"
    assert re.fullmatch(fault + IN_FILE, episodes[1].error)


def test_a_signal_ends_the_process_whatever_the_simulator_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def end(signum: int, frame: Any) -> None:
        raise SystemExit(128 + signum)

    def step(self: Any, action: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(odd_envs.OddEnv, "step", step)
    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(SystemExit) as ended:
            run_episodes(Reader(), odd(), range(4), Rules(100), 2)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 128 + signal.SIGTERM


@pytest.mark.parametrize("what", ["reset raises", "constructor", "NaN", "NaN reward", "vanishes"])
def test_all_episodes_may_fail(what: str) -> None:
    episodes = run_episodes(Reader(), odd(what), range(5), Rules(100), 2)
    assert len(episodes) == 5
    assert all(episode.error for episode in episodes)
    assert summarize(episodes) == {"Failed_Episodes": 5.0}
    assert str(failures(episodes)).startswith("all 5 episodes failed (")


def test_fewer_environments_play_where_not_all_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Scarce(odd_envs.OddEnv):
        def __init__(self) -> None:
            if len(made) == 2:
                raise MemoryError("no more")
            made.append(self)
            super().__init__()

    gymnasium.register("Scarce-v0", Scarce)
    try:
        episodes = run_episodes(Reader(), {"env_name": "Scarce-v0"}, range(9), Rules(100), 4)
    finally:
        gymnasium.registry.pop("Scarce-v0")
    assert [e.error for e in episodes] == [None] * 9


def test_a_policy_that_gives_no_numbers_fails_its_episodes() -> None:
    class Lost(Reader):
        def __call__(self, ob: Any, goal: Any = None, batched_ob: bool = False) -> Any:
            return np.full((len(ob["flat"]), 2), np.nan)

    (episode,) = run_episodes(Lost(), odd(), [0], Rules(5), 1)
    assert episode.error == "the policy's action holds NaN or infinite numbers"


def test_failed_episodes_count_as_not_solved_and_in_no_other_average() -> None:
    episodes = run_episodes(Reader(), odd("solved", crash_seeds=[1]), range(4), Rules(100), 2)
    assert not any(e.error for e in episodes)  # solved at the first step
    episodes = run_episodes(
        Reader(),
        odd("solved", crash_seeds=[1]),
        range(4),
        Rules(100, terminate_on_success=False),
        2,
    )
    log = summarize(episodes)
    assert (log["Failed_Episodes"], log["Return"], log["Horizon"]) == (1.0, 10.0, 10.0)
    assert log["Success_Rate"] == 0.75
    assert log["Success_Rate_CI_High"] < 1.0
    assert re.fullmatch(
        r"1 of 4 episodes failed \(RuntimeError: the simulation is unstable "
        r"\(/.*/odd_envs\.py, line \d+\)\)",
        failures(episodes),
    )


# -- descriptions --


def test_arguments_that_are_raymimics_own_do_not_override_it() -> None:
    theirs: dict[str, Any] = dict.fromkeys(
        ["env_name", "render_mode", "render", "render_offscreen", "id", "self"], "human"
    )
    theirs |= {"odd": "solved", "disable_env_checker": False, "max_episode_steps": 3}
    meta = {"env_name": "Odd-v0", "type": 2, "env_kwargs": theirs}
    assert read_env_meta(meta) == ("Odd-v0", {"odd": "solved", "max_episode_steps": 3})
    env = env_from_metadata(meta)
    assert env.name == "Odd-v0"
    env.reset(seed=0)
    assert [env.step(np.zeros(2))[2] for _ in range(3)] == [False, False, True]
    assert "render_mode" not in env.serialize()["env_kwargs"]
    assert env_from_metadata(meta, render=True).env.render_mode == "rgb_array"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env_kwargs": ["odd"]}, "'env_kwargs' of environment 'Odd-v0' are"),
        ({"env_kwargs": "x"}, "must be an object"),
        ({"env_kwargs": {3: 4}}, "must be an object of arguments by name"),
        ({"env_kwargs": {"vector_kwargs": {}}}, "cannot be made: .*vector_kwargs"),
        ({"env_kwargs": {"max_episode_steps": "many"}}, "cannot be made"),
        ({"type": "2"}, "is of type '2'"),
        ({"type": True}, "is of type True"),
        ({"type": [2]}, r"is of type \[2\]"),
        ({"env_name": 5}, "is no text: 5"),
        ({"env_name": ["Odd-v0"]}, "is no text"),
        ({"env_name": ""}, "lacks 'env_name'"),
        ({"env_name": "Odd-v0\0"}, r"is no text: 'Odd-v0\\x00'"),
        ({"env_name": "Odd-v7"}, r"'Odd-v7' is registered \(did you mean 'Odd-v0'\?\)"),
        ({"env_name": "Isaac-Lift-v0"}, "install Isaac Lab.*--import isaaclab_tasks"),
        ({"env_name": "CartPole-v99"}, "no environment 'CartPole-v99' is registered"),
    ],
)
def test_odd_descriptions(change: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvError, match=message) as refused:
        env_from_metadata(odd() | change)
    assert "\n" not in str(refused.value)


def test_what_a_description_leaves_open() -> None:
    for absent in ({"type": None}, {"env_kwargs": None}):
        assert env_from_metadata({"env_name": "Odd-v0", **absent}).name == "Odd-v0"
