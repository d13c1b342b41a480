"""From raw observations to actions."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from tiny import train_args, train_here

from raymimic.algo import PolicyAlgo, RolloutPolicy, ValueAlgo, algo_factory
from raymimic.checkpoints.policy import policy_from_checkpoint
from raymimic.config import config_factory
from raymimic.config.templates import config_named
from raymimic.errors import ConfigError, EnvError
from raymimic.models.obs_nets import EncoderCore, register_encoder_core
from raymimic.models.vision.batch_norm import GlobalBatchNorm2d

torch.set_num_threads(1)
OBS_DIM, ACTION_DIM = 17, 6
RNG = np.random.default_rng(0)


def make_algo(layer_dims: tuple[int, ...] = (256, 256), **train: Any) -> PolicyAlgo:
    torch.manual_seed(0)
    config = config_factory("td3_bc")
    config.algo.actor.layer_dims = layer_dims
    config.train.update(train)
    algo = algo_factory("td3_bc", config, {"flat": [OBS_DIM]}, ACTION_DIM, "cpu")
    assert isinstance(algo, PolicyAlgo)
    return algo


def test_observations_are_normalised_and_actions_scaled_back():
    algo = make_algo()
    obs_stats = {
        "flat": {"offset": RNG.normal(size=(1, OBS_DIM)), "scale": RNG.uniform(1, 2, (1, OBS_DIM))}
    }
    action_stats = {
        "actions": {
            "offset": RNG.normal(size=(1, ACTION_DIM)),
            "scale": RNG.uniform(1, 2, (1, ACTION_DIM)),
        }
    }
    policy = RolloutPolicy(algo, obs_stats, action_stats)
    policy.start_episode()
    obs = RNG.normal(size=(3, OBS_DIM))
    actions = policy({"flat": obs}, batched_ob=True)

    scaled = (obs - obs_stats["flat"]["offset"]) / obs_stats["flat"]["scale"]
    plain = algo.get_action({"flat": torch.tensor(scaled, dtype=torch.float32)}).detach().numpy()
    expected = plain * action_stats["actions"]["scale"] + action_stats["actions"]["offset"]
    np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(policy({"flat": obs[1]}), expected[1], rtol=1e-5, atol=1e-6)


def test_action_keys_are_scaled_each_by_its_own_in_their_order():
    keys = {"action/gripper": {"normalization": "min_max"}, "action/arm": {"normalization": None}}
    algo = make_algo(action_keys=["action/arm", "action/gripper"], action_config=keys)
    stats = {
        "action/gripper": {"offset": [[5.0]], "scale": [[0.0]]},
        "action/arm": {"offset": [[0.0] * 5], "scale": [[1.0] * 5]},
    }
    obs = {"flat": RNG.normal(size=OBS_DIM)}
    action, plain = RolloutPolicy(algo, None, stats)(obs), RolloutPolicy(algo)(obs)
    assert action[5] == 5.0
    np.testing.assert_array_equal(action[:5], plain[:5])


def test_episodes_of_a_batch_reset_by_mask():
    algo = make_algo(layer_dims=(8, 8))
    masks: list[Any] = []
    algo.reset = lambda mask=None: masks.append(mask)  # type: ignore[method-assign]
    policy = RolloutPolicy(algo)
    policy.start_episode()
    policy.start_episode(mask=np.array([True, True]))
    policy.start_episode(mask=np.array([False, True]))
    assert masks[:2] == [None, None]
    assert masks[2].tolist() == [False, True]
    assert not algo.nets.training


def test_seeds_make_the_random_numbers_of_each_row() -> None:
    algo = make_algo(layer_dims=(8, 8))
    algo.get_action = lambda obs, goal=None: torch.randn(len(obs["flat"]), ACTION_DIM)  # type: ignore[method-assign]
    policy = RolloutPolicy(algo)
    obs = {"flat": np.zeros((3, OBS_DIM))}

    def act(n: int) -> Any:
        return np.stack([policy(obs, batched_ob=True) for _ in range(n)])

    policy.start_episode(seeds=[4, 5, 6])
    first = act(2)
    policy.start_episode(np.array([False, True, False]), [0, 5, 0])
    second = act(2)
    np.testing.assert_array_equal(second[:, 1], first[:, 1])
    assert not np.isin(second[:, [0, 2]], first).any()  # the others drew on

    policy.start_episode(seeds=[6])
    np.testing.assert_array_equal(policy({"flat": np.zeros(OBS_DIM)}), first[0, 2])

    policy.start_episode()
    torch.manual_seed(0)
    expected = torch.randn(3, ACTION_DIM)
    torch.manual_seed(0)
    np.testing.assert_array_equal(act(1)[0], expected)  # without seeds: torch's own


def test_dtype_is_the_trainings():
    policy = RolloutPolicy(make_algo(dtype="float64"))
    assert policy({"flat": np.zeros(OBS_DIM, np.float32)}).dtype == np.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_observations_may_be_tensors_of_any_floating_type(dtype):
    policy = RolloutPolicy(make_algo())
    given = torch.linspace(-1, 1, OBS_DIM).to(dtype)
    action = policy({"flat": given})
    assert action.dtype == np.float32
    np.testing.assert_array_equal(action, policy({"flat": given.to(torch.float32).numpy()}))


class Elsewhere(PolicyAlgo):
    """Its device is one on which tensors have no values."""

    def _create_networks(self):
        self.nets["policy"] = torch.nn.Linear(OBS_DIM, ACTION_DIM)

    def get_action(self, obs_dict, goal_dict=None):
        seen = obs_dict["flat"]
        assert (seen.device.type, seen.dtype) == ("meta", torch.float32)
        return torch.zeros(self.nets["policy"](seen).shape)


@pytest.mark.parametrize("given", [np.zeros(OBS_DIM), torch.zeros(OBS_DIM, dtype=torch.bfloat16)])
def test_observations_are_brought_to_the_policys_device(given):
    algo = make_algo()
    policy = RolloutPolicy(
        Elsewhere(
            *(algo.algo_config, algo.obs_config, algo.global_config, algo.obs_key_shapes),
            *(ACTION_DIM, torch.device("meta")),
        ),
        {"flat": {"offset": np.zeros((1, OBS_DIM)), "scale": np.ones((1, OBS_DIM))}},
    )
    assert policy({"flat": given}).shape == (ACTION_DIM,)


def test_missing_observation_names_the_nearest():
    with pytest.raises(EnvError, match=r"needs observation 'flat'.*did you mean 'flat_obs'"):
        RolloutPolicy(make_algo())({"flat_obs": np.zeros(OBS_DIM)})


@pytest.mark.parametrize(
    ("ob", "batched", "message"),
    [
        ({"flat": np.zeros(16)}, False, r"'flat' has shape \[16\], and the policy reads \[17\]$"),
        ({"flat": np.zeros((3, 16))}, True, r"shape \[3, 16\], and the policy reads \[B, 17\]$"),
        ({"flat": np.zeros((3, 17))}, False, r"reads \[17\]: pass batched_ob=True for a batch"),
        ({"flat": np.zeros(17)}, True, r"reads \[B, 17\]: leave batched_ob out"),
        (
            {"flat": {"a": np.zeros(17)}},
            False,
            "'flat' is no array of numbers, but dict with keys a",
        ),
        ({"flat": "text"}, False, "'flat' is no array of numbers, but str"),
        ({"state": {"flat": np.zeros(17)}}, False, "needs observation 'flat'.*content of 'state'"),
        (np.zeros(17), False, r"a dict with each .* under its key \(flat\), not ndarray"),
        (({"flat": np.zeros(17)}, {}), False, r"under its key \(flat\), not tuple"),
    ],
)
@pytest.mark.parametrize("name", ["td3_bc", "bc_rnn"])
def test_wrong_observations_are_named(name, ob, batched, message):
    config = config_named(name)
    config.observation.modalities.obs.low_dim = ["flat"]
    shapes = {"flat": [OBS_DIM]}
    policy = RolloutPolicy(algo_factory(config.algo_name, config, shapes, ACTION_DIM, "cpu"))
    policy.start_episode()
    with pytest.raises(EnvError, match=message):
        policy(ob, batched_ob=batched)
    assert policy({"flat": torch.zeros(OBS_DIM)}).shape == (ACTION_DIM,)


def test_a_nested_dict_is_read_by_the_path_of_its_keys():
    config = config_factory("td3_bc")
    config.observation.modalities.obs.low_dim = ["robot/eef"]
    policy = RolloutPolicy(algo_factory("td3_bc", config, {"robot/eef": [3]}, ACTION_DIM, "cpu"))
    plain = policy({"robot/eef": [1.0, 2.0, 3.0]})
    np.testing.assert_array_equal(policy({"robot": {"eef": [1.0, 2.0, 3.0]}}), plain)


def test_what_cannot_act_is_no_policy():
    algo = make_algo(layer_dims=(8, 8))
    algo.__class__ = type("Critic", (ValueAlgo,), {})
    with pytest.raises(ConfigError, match="Critic is no policy"):
        RolloutPolicy(algo)


@pytest.mark.parametrize("form", [None, "rot_axis_angle", "rot_euler"])
def test_rotations_of_six_numbers_are_played_as_three(form):
    options = {"format": "rot_6d"} | ({} if form is None else {"convert_at_runtime": form})
    keys = {"rot": options, "pos": {}}
    torch.manual_seed(0)
    config = config_factory("td3_bc")
    config.train.update(action_keys=["pos", "rot"], action_config=keys)
    algo = algo_factory("td3_bc", config, {"flat": [OBS_DIM]}, 9, "cpu")
    offset = np.arange(6.0)
    stats = {
        "rot": {"offset": [offset], "scale": [np.full(6, 2.0)]},
        "pos": {"offset": [[1.0, 2.0, 3.0]], "scale": [[1.0] * 3]},
    }
    obs = {"flat": RNG.normal(size=(4, OBS_DIM))}
    tensors = {"flat": torch.as_tensor(obs["flat"], dtype=torch.float32)}
    raw = algo.get_action(tensors).detach().numpy()
    action = RolloutPolicy(algo, None, stats)(obs, batched_ob=True)
    assert (action.shape, action.dtype) == ((4, 6), np.float32)
    np.testing.assert_allclose(action[:, :3], raw[:, :3] + [1, 2, 3], rtol=1e-6)
    for row, six in zip(action, raw[:, 3:] * 2 + offset, strict=True):
        first = six[:3] / np.linalg.norm(six[:3])
        normal = np.cross(six[:3], six[3:])
        normal /= np.linalg.norm(normal)
        expected = Rotation.from_matrix([first, np.cross(normal, first), normal])
        made = Rotation.from_euler("XYZ", row[3:]) if form == "rot_euler" else None
        made = made or Rotation.from_rotvec(row[3:])
        assert (made.inv() * expected).magnitude() < 1e-5
    single = {"flat": obs["flat"][0]}
    np.testing.assert_allclose(RolloutPolicy(algo, None, stats)(single), action[0], atol=1e-5)
    with pytest.raises(ConfigError, match=r"\['rot'\].format is 'rot_6d', and the policy has no"):
        RolloutPolicy(algo)


def test_a_policy_with_goals_asks_for_one():
    torch.manual_seed(0)
    config = config_factory("bc")
    config.observation.modalities.obs.low_dim = ["flat"]
    config.observation.modalities.goal.low_dim = ["goal"]
    algo = algo_factory("bc", config, {"flat": [OBS_DIM], "goal": [2]}, ACTION_DIM, "cpu")
    policy, obs = RolloutPolicy(algo), {"flat": RNG.normal(size=OBS_DIM)}
    policy.start_episode()
    with pytest.raises(EnvError, match=r"needs a goal \(goal\): pass goal="):
        policy(obs)
    near, far = (policy(obs, goal={"goal": np.full(2, x)}) for x in (0.0, 5.0))
    assert np.abs(near - far).max() > 0.01


# -- images --

HEIGHT, WIDTH, CHANNELS_FIRST = 4, 6, (2, 0, 1)


@register_encoder_core
class Eye(EncoderCore):
    """An encoder whose output depends on its mode, and which notes its inputs."""

    output_dim = 3
    seen: ClassVar[list[torch.Tensor]] = []

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__(input_shape)
        self.norm = GlobalBatchNorm2d(3)
        assert self.norm.running_mean is not None
        self.norm.running_mean += 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        return self.norm(x).amax((2, 3))


def image_policy(modality: str = "rgb", height: int = HEIGHT, **settings: Any) -> RolloutPolicy:
    """A policy that sees an image, and pursues one."""
    torch.manual_seed(0)
    config = config_factory("bc")
    for group in (config.observation.modalities.obs, config.observation.modalities.goal):
        group.low_dim, group[modality] = [], ["camera"]
    config.observation.encoder[modality].core_class = "Eye"
    with config.values_unlocked():
        for key, value in settings.items():
            config.set_path(key.replace("__", "."), value)
    shapes = {"camera": [3, height, WIDTH if height == HEIGHT else height]}
    algo = algo_factory("bc", config, shapes, ACTION_DIM, "cpu")
    Eye.seen.clear()
    return RolloutPolicy(algo)


def images(*leading: int) -> Any:
    """Bytes `[*leading, H, W, C]` and the floats `[*leading, C, H, W]` that robomimic makes."""
    raw = RNG.integers(0, 256, (*leading, HEIGHT, WIDTH, 3), dtype=np.uint8)
    return raw, np.moveaxis(raw, -1, -3).astype(np.float32) / 255


@pytest.mark.parametrize("leading", [(), (5,)])
def test_bytes_and_prepared_images_are_one_observation(leading):
    policy = image_policy()
    (raw, prepared), (raw_goal, prepared_goal) = images(*leading), images(*leading)
    batched = bool(leading)
    expected = policy({"camera": raw}, {"camera": raw_goal}, batched)
    np.testing.assert_array_equal(Eye.seen[0].numpy(), prepared if batched else prepared[None])
    for ob, goal in [
        (prepared, prepared_goal),
        (prepared, raw_goal),
        (torch.tensor(prepared, dtype=torch.float64), torch.tensor(raw_goal)),
        (raw.astype(np.int64), prepared_goal),
    ]:
        np.testing.assert_allclose(
            policy({"camera": ob}, {"camera": goal}, batched), expected, rtol=1e-6
        )
    other, _ = images(*leading)
    assert not np.allclose(policy({"camera": other}, {"camera": raw_goal}, batched), expected)


def test_an_image_that_was_turned_around_is_taken():
    policy, (raw, _) = image_policy(), images()
    turned = policy({"camera": raw[::-1]}, {"camera": raw})
    np.testing.assert_array_equal(turned, policy({"camera": raw[::-1].copy()}, {"camera": raw}))


def test_where_shapes_do_not_tell_types_do():
    policy = image_policy(height=3)  # [3, 3, 3], as bytes and as floats
    raw = RNG.integers(0, 256, (3, 3, 3), dtype=np.uint8)
    prepared = raw.transpose(CHANNELS_FIRST).astype(np.float32) / 255
    expected = policy({"camera": raw}, {"camera": raw})
    np.testing.assert_array_equal(policy({"camera": prepared}, {"camera": prepared}), expected)


def test_distances_are_told_apart_by_their_shape():
    policy = image_policy("depth")
    raw = RNG.random((HEIGHT, WIDTH, 3)).astype(np.float32)
    prepared = raw.transpose(CHANNELS_FIRST)
    expected = policy({"camera": raw}, {"camera": raw})
    np.testing.assert_array_equal(policy({"camera": prepared}, {"camera": prepared}), expected)
    np.testing.assert_array_equal(Eye.seen[0][0].numpy(), prepared)


def test_a_policy_acts_in_evaluation_mode_from_the_beginning():
    policy, (raw, _) = image_policy(), images(5)
    norm = next(net for net in policy.policy.nets.modules() if isinstance(net, GlobalBatchNorm2d))
    together = policy({"camera": raw}, {"camera": raw}, batched_ob=True)
    alone = policy({"camera": raw[2]}, {"camera": raw[2]})
    np.testing.assert_allclose(together[2], alone, rtol=1e-5)
    assert norm.running_mean.tolist() == [0.5] * 3


def test_stacks_of_images_are_collected_and_taken():
    settings = {"algo__transformer__enabled": True, "algo__transformer__context_length": 3}
    policy = image_policy(train__frame_stack=3, **settings)
    (raw, prepared), (goal, _) = images(3, 1), images(1)
    policy.start_episode()
    for step in (raw[0], prepared[1], raw[2]):  # of one episode
        collected = policy({"camera": step}, {"camera": goal}, batched_ob=True)
    for stack in (raw.swapaxes(0, 1), prepared.swapaxes(0, 1)):
        taken = policy({"camera": stack}, {"camera": goal}, batched_ob=True)
        np.testing.assert_allclose(taken, collected, rtol=1e-5)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            np.zeros((3, 4, 6), np.uint8),
            r"shape \[3, 4, 6\], and the policy reads \[4, 6, 3\], or floating-point "
            r"numbers \[3, 4, 6\] that are prepared already$",
        ),
        (np.zeros((8, 6, 3), np.uint8), r"shape \[8, 6, 3\], and the policy reads \[4, 6, 3\]"),
        (np.zeros((3, 8, 6)), r"shape \[3, 8, 6\], and the policy reads \[4, 6, 3\], or floating"),
        (
            np.zeros((4, 6, 3)),
            r"image of floating-point numbers with the channels last.*pass bytes",
        ),
        (np.zeros((1, 4, 6, 3), np.uint8), r"reads \[4, 6, 3\]: pass batched_ob=True for a batch$"),
        (np.zeros((2, 3, 4, 6)), r"reads \[3, 4, 6\]: pass batched_ob=True for a batch$"),
        (np.zeros((6, 3), np.uint8), r"shape \[6, 3\], and the policy reads \[4, 6, 3\]"),
    ],
)
@pytest.mark.parametrize("kind", ["observation", "goal"])
def test_wrong_images_are_named(kind, image, message):
    policy, (raw, _) = image_policy(), images()
    given = {"observation": raw, "goal": raw} | {kind: image}
    with pytest.raises(EnvError, match=rf"^{kind} '.*{message}"):
        policy({"camera": given["observation"]}, {"camera": given["goal"]})


@pytest.mark.parametrize(
    ("modality", "image", "message"),
    [
        ("rgb", np.zeros((4, 6, 3), np.uint16), "holds uint16, and colours are uint8, 0 to 255: "),
        ("rgb", np.zeros((4, 6, 3), np.int8), "holds int8, and colours are uint8"),
        ("rgb", np.full((4, 6, 3), 256), r"holds colours of 256 to 256: pass bytes"),
        ("rgb", np.full((3, 4, 6), 255.0), r"holds colours of 255 to 255: pass bytes"),
        ("rgb", np.full((3, 4, 6), 1.01), r"holds colours of 1.01 to 1.01: pass bytes"),
        ("rgb", np.full((3, 4, 6), -0.5), r"holds colours of -0.5 to -0.5: pass bytes"),
        ("rgb", np.full((3, 4, 6), np.nan), r"holds colours of nan to nan: pass bytes"),
        ("depth", np.zeros((4, 6, 3), np.uint16), "holds uint16, and distances are floating-"),
        ("depth", np.zeros((4, 6, 3), np.int64), "holds int64, and distances are floating-"),
    ],
)
@pytest.mark.parametrize("kind", ["observation", "goal"])
def test_images_of_another_type_or_range_are_named(kind, modality, image, message):
    policy, right = image_policy(modality), np.zeros((3, 4, 6), np.float32)
    given = {"observation": right, "goal": right} | {kind: image}
    with pytest.raises(EnvError, match=rf"^{kind} 'camera' {message}"):
        policy({"camera": given["observation"]}, {"camera": given["goal"]})


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_colours_may_leave_their_range_by_rounding(dtype):
    policy, image = image_policy(), np.full((3, 4, 6), 1 + 1e-7, dtype)
    image[0, 0, 0] = -1e-7
    assert policy({"camera": image}, {"camera": image}).shape == (ACTION_DIM,)


def test_policies_are_loaded_beside_networks_of_other_threads(tmp_path: Path, hopper: Path):
    checkpoint = str(train_here(tmp_path, *train_args(hopper, algo="bc")) / "last.pth")
    faults: list[BaseException] = []
    loaded = threading.Event()

    def load() -> None:
        try:
            for _ in range(10):
                policy_from_checkpoint(ckpt_path=checkpoint, device="cpu")
        except Exception as error:
            faults.append(error)

    def make_others() -> None:
        try:
            while not loaded.is_set():  # each larger than the policy may be
                torch.nn.Linear(1500, 1500, device="meta")
        except Exception as error:
            faults.append(error)

    others = [threading.Thread(target=make_others) for _ in range(2)]
    loads = [threading.Thread(target=load) for _ in range(2)]
    for thread in others + loads:
        thread.start()
    for thread in loads:
        thread.join()
    loaded.set()
    for thread in others:
        thread.join()
    assert not faults
