"""The smaller parts of robomimic's `utils`, and its wrappers of environments."""

import argparse
import http.server
import sys
import threading
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.distributions import (
    Categorical,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

import raymimic
from raymimic import macros
from raymimic.algo import RolloutPolicy, algo_factory
from raymimic.checkpoints.policy import policy_from_checkpoint
from raymimic.config import config_factory
from raymimic.envs.env_base import EnvBase
from raymimic.envs.kinds import register_env_kind
from raymimic.envs.wrappers import FrameStackWrapper
from raymimic.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    EnvError,
    OutputError,
)
from raymimic.scripts import train as train_script
from raymimic.utils import (
    env_utils,
    file_utils,
    lang_utils,
    log_utils,
    loss_utils,
    obs_utils,
    python_utils,
    test_utils,
    train_utils,
    vis_utils,
)

HOPPER = {"env_name": "Hopper-v5", "type": 2, "env_kwargs": {}}


@register_env_kind("of robomimic's documentation")
class TheirEnv(EnvBase):
    """Written by robomimic's documentation: all that is abstract there, and nothing more."""

    def __init__(self, env_name, render=False, use_image_obs=False, **kwargs):
        self._name, self.kwargs, self.steps = env_name, kwargs, 0

    def step(self, action):
        self.steps += 1
        return self.get_observation(), 1.0, self.is_done(), {}

    def reset(self):
        self.steps = 0
        return self.get_observation()

    def reset_to(self, state):
        self.steps = state["states"]
        return self.get_observation()

    def render(self, mode="human", height=None, width=None, camera_name=None):
        return np.full((height or 8, width or 8, 3), self.steps, np.uint8)

    def get_observation(self):
        return {"flat": np.array([self.steps, 0.5], np.float32)}

    def get_state(self):
        return {"states": self.steps}

    def get_reward(self):
        return 1.0

    def get_goal(self):
        return self.get_observation()

    def set_goal(self, **kwargs):
        pass

    def is_done(self):
        return self.steps >= 4

    def is_success(self):
        return {"task": self.steps == 2, "late": self.steps > 2}

    @property
    def action_dimension(self):
        return 2

    @property
    def name(self):
        return self._name

    @property
    def type(self):
        return "of robomimic's documentation"

    def serialize(self):
        return {"env_name": self._name, "type": self.type, "env_kwargs": self.kwargs}

    @classmethod
    def create_for_data_processing(cls, env_name, camera_names, reward_shaping, **kwargs):
        return cls(env_name, shaped=reward_shaping, cameras=camera_names)

    @property
    def rollout_exceptions(self):
        return (ZeroDivisionError,)

    @property
    def base_env(self):
        return self


def policy() -> RolloutPolicy:
    config = config_factory("bc")
    config.observation.modalities.obs.low_dim = ["flat"]
    config.algo.actor_layer_dims = [4]
    return RolloutPolicy(algo_factory("bc", config, {"flat": [2]}, 2, "cpu"))


# -------------------------------------------------------------------------------- environments


def test_an_environment_by_robomimics_documentation_is_made_and_played():
    meta = {"env_name": "Theirs", "type": "of robomimic's documentation", "env_kwargs": {"a": 1}}
    env = env_utils.create_env_from_metadata(env_meta=meta, render_offscreen=True)
    assert (env.name, env.kwargs, env.version, env.base_env) == ("Theirs", {"a": 1}, None, env)
    assert env_utils.get_env_class(env=env) is TheirEnv
    assert env_utils.create_env(env.type, "Other", b=2).kwargs == {"b": 2}
    logs = train_utils.run_rollout(policy(), env, horizon=10)
    assert logs == {"Return": 4.0, "Horizon": 4, "Success_Rate": 1.0, "late_Success_Rate": 1.0}
    logs = train_utils.run_rollout(policy(), env, horizon=10, terminate_on_success=True)
    assert logs["Horizon"] == 2
    made = env_utils.create_env_for_data_processing(
        meta, ["front"], 84, 84, reward_shaping=True, env_class=TheirEnv
    )
    assert made.kwargs == {"shaped": True, "cameras": ["front"]}


def test_rollouts_are_averaged_and_filmed(tmp_path: Path):
    envs = {"a": TheirEnv("A"), "b": TheirEnv("B")}
    logs, films = train_utils.rollout_with_stats(
        policy(), envs, 3, num_episodes=2, video_dir=tmp_path, epoch=7, video_skip=1
    )
    assert logs["a"]["Return"] == 3.0
    assert logs["a"]["time"] * 2 / 60 == pytest.approx(logs["a"]["Time_Episode"])
    assert films["b"] == str(tmp_path / "b_epoch_7.mp4")
    assert Path(films["b"]).read_bytes()[4:8] == b"ftyp"
    with pytest.raises(EnvError, match="num_episodes"):
        train_utils.rollout_with_stats(policy(), envs, 3)
    with pytest.raises(EnvError, match="one of them"):
        train_utils.rollout_with_stats(policy(), envs, 3, video_dir="a", video_path="b")


def test_an_exception_that_an_environment_names_ends_the_episode(capsys):
    class Failing(TheirEnv):
        def step(self, action):
            if self.steps == 2:
                raise ZeroDivisionError("too fast")
            return super().step(action)

    logs = train_utils.run_rollout(policy(), Failing("F"), horizon=10)
    assert (logs["Horizon"], logs["Return"]) == (2, 2.0)
    assert "too fast" in capsys.readouterr().out


def test_kinds_and_windows():
    assert env_utils.get_env_type(env_meta=HOPPER) == 2
    assert env_utils.is_robosuite_env(env_type=1)
    assert not env_utils.is_robosuite_env(HOPPER)
    with pytest.raises(EnvError, match="one of env_meta"):
        env_utils.get_env_type()
    with pytest.raises(EnvError, match="the known types are"):
        env_utils.get_env_class(env_type=3)
    meta = {**HOPPER, "type": "of robomimic's documentation", "render": {"cameras": ["x"]}}
    with pytest.raises(EnvError, match="its class takes none"):
        env_utils.create_env_from_metadata(meta)


def test_versions_of_simulators_are_compared(capsys):
    class Versioned(TheirEnv):
        version = "1.5"

    env_utils.check_env_version(Versioned("V"), {"env_version": "1.4"})
    env_utils.check_env_version(Versioned("V"), {})
    env_utils.check_env_version(Versioned("V"), {"env_version": "1.5"})
    env_utils.check_env_version(TheirEnv("V"), {})
    out = capsys.readouterr().out
    assert out.count("WARNING") == 2
    assert "version 1.4 of the simulator, and 1.5" in out
    log_utils.WARNINGS_BUFFER.clear()


def test_frames_are_stacked_as_robomimic_does():
    env = FrameStackWrapper(TheirEnv("A"), num_frames=3)
    assert env.reset()["flat"][:, 0].tolist() == [0, 0, 0]
    env.step(np.array([1.0, 2.0]))
    obs, *_ = env.step(np.array([3.0, 4.0]))
    assert obs["flat"][:, 0].tolist() == [0, 1, 2]
    assert obs["timesteps"][:, 0].tolist() == [0, 1, 2]
    assert obs["actions"].tolist() == [[0, 0], [1, 2], [3, 4]]
    assert isinstance(env.unwrapped, TheirEnv)
    assert env.name == "A"  # the environment's own
    env.cache_obs_history()
    env.step(np.zeros(2))
    env.uncache_obs_history()
    assert env.step(np.zeros(2))[0]["flat"][:, 0].tolist() == [1, 2, 4]
    assert env.reset_to({"states": 3})["flat"][:, 0].tolist() == [3, 3, 3]
    assert "num_frames=3" in repr(env)
    with pytest.raises(ValueError, match="at least 2"):
        FrameStackWrapper(TheirEnv("A"), 1)
    with pytest.raises(TypeError, match="not int"):
        FrameStackWrapper(3, 2)


# --------------------------------------------------------------------- datasets and checkpoints


def test_filter_keys_are_written_and_read(tmp_path: Path):
    file = tmp_path / "demos.hdf5"
    with h5py.File(file, "w") as handle:
        for i in range(3):
            handle[f"data/demo_{i}/actions"] = np.zeros((i + 2, 1))
            handle[f"data/demo_{i}"].attrs["num_samples"] = i + 2
    assert file_utils.create_hdf5_filter_key(file, ["demo_2", "demo_0"], "some") == [2, 4]
    assert file_utils.get_demos_for_filter_key(file, "some") == ["demo_0", "demo_2"]
    assert file_utils.create_hdf5_filter_key(str(file), ["demo_1"], "some") == [3]
    assert file_utils.get_demos_for_filter_key(file, "some") == ["demo_1"]
    with pytest.raises(DatasetError, match="cannot name demo 'demo_9'"):
        file_utils.create_hdf5_filter_key(file, ["demo_9"], "some")
    assert file_utils.get_demos_for_filter_key(file, "some") == ["demo_1"]
    with pytest.raises(DatasetError, match="no filter key 'sone'"):
        file_utils.get_demos_for_filter_key(file, "sone")
    with pytest.raises(DatasetError, match="does not say in which environment"):
        file_utils.get_env_metadata_from_dataset(file)


def test_a_checkpoint_of_a_script_is_one(tmp_path: Path, hopper: Path):
    config = config_factory("bc")
    config.observation.modalities.obs.low_dim = ["flat"]
    config.algo.actor_layer_dims = [4]
    obs_utils.initialize_obs_utils_with_config(config)
    shapes = file_utils.get_shape_metadata_from_dataset(
        {"path": str(hopper)}, ["actions"], ["flat"]
    )
    assert file_utils.get_shape_metadata_from_dataset(dataset_path=hopper) == shapes
    model = algo_factory("bc", config, shapes["all_shapes"], shapes["ac_dim"], "cpu")
    path = tmp_path / "model.pth"
    stats = {"flat": {"offset": np.zeros((1, 11)), "scale": np.full((1, 11), 2.0)}}
    train_utils.save_model(
        model, config, HOPPER, shapes, path, {"epoch": 3}, obs_normalization_stats=stats
    )
    obs = {"flat": np.linspace(-1, 1, 11).astype(np.float32)}
    actions = []
    for given in ((path,), (str(path),), ("cpu", path), (torch.device("cpu"), str(path))):
        read, ckpt = policy_from_checkpoint(*given)
        actions.append(read(obs))
    assert ckpt["variable_state"]["epoch"] == 3
    assert np.ptp(actions, axis=0).max() == 0
    assert read.obs_normalization_stats["flat"]["scale"].max() == 2
    env, _ = file_utils.env_from_checkpoint(ckpt_path=path, env_name="Walker2d-v5")
    assert env.name == "Walker2d-v5"
    with pytest.raises(CheckpointError, match="names no environment"):
        file_utils.env_from_checkpoint(ckpt_dict={**ckpt, "env_metadata": None})
    with pytest.raises(CheckpointError, match="model_2"):
        policy_from_checkpoint(str(tmp_path / "model_2.pth"))


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str
)
def test_a_policy_takes_tensors_of_any_float_type(dtype: torch.dtype):
    x = torch.tensor([0.5, -0.25], dtype=dtype)  # which all types hold exactly
    np.testing.assert_array_equal(
        policy_of_zero()({"flat": x}), policy_of_zero()({"flat": x.float()})
    )


def policy_of_zero() -> RolloutPolicy:
    torch.manual_seed(0)
    return policy()


# -------------------------------------------------------------------------------- training loops


def loop(tmp_path: Path, hopper: Path, **settings):
    config = config_factory("bc")
    config.train.output_dir = str(tmp_path)
    config.train.data = [{"path": str(hopper)}]
    config.experiment.name = "run"
    for key, value in settings.items():
        config.set_path(key.replace("__", "."), value)
    return config


def test_folders_of_runs(tmp_path: Path, hopper: Path):
    config = loop(tmp_path, hopper)
    logs, models, videos, run = train_utils.get_exp_dir(config)
    assert [Path(f).parent == Path(run) for f in (logs, models, videos)] == [True] * 3
    assert Path(run).parent == tmp_path / "run"
    assert train_utils.get_exp_dir(config, resume=True)[3] == run
    later = train_utils.get_exp_dir(config)[3]
    assert sorted(path.name for path in (tmp_path / "run").iterdir())[-1] == Path(later).name
    config.train.data = str(hopper)  # as up to robomimic 0.4
    config.experiment.save.enabled = False
    logs, models, videos = train_utils.get_exp_dir(config, auto_remove_exp_dir=True)
    assert models is None
    assert len(list((tmp_path / "run").iterdir())) == 1
    with pytest.raises(ConfigError, match="to resume"):
        train_utils.get_exp_dir(loop(tmp_path, hopper, experiment__name="other"), resume=True)
    outside = loop(tmp_path / "a", hopper, experiment__name="../run")
    with pytest.raises(ConfigError, match="no run can be named"):
        train_utils.get_exp_dir(outside, auto_remove_exp_dir=True)
    assert (tmp_path / "run").exists()


def test_an_epoch_averages_the_metrics_of_its_batches():
    class Model:
        steps = 0
        mode = None

        def set_train(self):
            self.mode = "train"

        def set_eval(self):
            self.mode = "eval"

        def process_batch_for_training(self, batch):
            return batch

        def postprocess_batch_for_training(self, batch, obs_normalization_stats):
            return batch

        def train_on_batch(self, batch, epoch, validate=False):
            return {"x": batch, "validate": validate}

        def log_info(self, info):
            return {"Loss": torch.tensor(float(info["x"])), "Validate": float(info["validate"])}

        def on_gradient_step(self):
            self.steps += 1

    model = Model()
    logs = train_utils.run_epoch(model, [1, 2, 6], epoch=1, num_steps=4)
    assert (logs["Loss"], logs["Validate"], model.steps, model.mode) == (2.5, 0.0, 4, "train")
    assert logs["Time_Epoch"] >= sum(v for k, v in logs.items() if k.startswith("Time_")) / 2 > 0
    logs = train_utils.run_epoch(model, [1, 2, 6], epoch=1, validate=True)
    assert (logs["Loss"], logs["Validate"], model.steps, model.mode) == (3.0, 1.0, 4, "eval")
    with pytest.raises(ConfigError, match="no whole batch"):
        train_utils.run_epoch(model, [], epoch=1)


def test_best_scores_are_reasons_to_save():
    logs = {"a": {"Return": 2.0, "Success_Rate": 0.5}, "b": {"Return": 1.0, "Success_Rate": 0.0}}
    best = {"a": 1.0, "b": 3.0}
    rates = {"a": 0.5, "b": 0.0}
    told = train_utils.should_save_from_rollout_logs(logs, best, rates, "model", True, True)
    assert told["epoch_ckpt_name"] == "model_a_return_2.0"
    assert (told["should_save_ckpt"], told["ckpt_reason"]) == (True, "return")
    assert told["best_return"] == {"a": 2.0, "b": 3.0}
    told = train_utils.should_save_from_rollout_logs(logs, best, {"a": 0, "b": 0}, "m", True, False)
    assert (told["should_save_ckpt"], told["ckpt_reason"]) == (False, None)
    assert [train_utils.is_every_n_steps(2, i, skip_zero=True) for i in range(3)] == [0, 0, 1]
    assert not train_utils.is_every_n_steps(None, 4)


# ---------------------------------------------------------------------- logs, words, pictures


def test_logs(tmp_path: Path, capsys, monkeypatch):
    logger = log_utils.DataLogger(tmp_path, config=None, log_tb=True)
    for epoch, value in enumerate((1.0, 3.0), 1):
        logger.record("a", value, epoch, log_stats=True)
    logger.record("picture", np.zeros((4, 4, 3)), 1, data_type="image")
    assert logger.get_stats("a") == {"mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0}
    with pytest.raises(ValueError, match="neither"):
        logger.record("a", 1.0, 1, data_type="text")
    logger.close()
    (events,) = (tmp_path / "tb").iterdir()
    assert b"a-mean" in events.read_bytes()
    monkeypatch.setattr(sys, "stdout", log_utils.PrintLogger(tmp_path / "log.txt"))
    print("to both")
    assert not sys.stdout.isatty()
    monkeypatch.undo()
    assert (tmp_path / "log.txt").read_text() == "to both\n"
    with log_utils.silence_stdout():
        print("to none")
    log_utils.log_warning("soon", print_now=False)
    log_utils.log_warning("now")
    assert list(log_utils.custom_tqdm(range(3))) == [0, 1, 2]
    out = capsys.readouterr().out
    assert out.count("now") == 1
    assert "to none" not in out
    assert "3/3" in out
    log_utils.flush_warnings()
    assert capsys.readouterr().out.count("WARNING") == 2
    assert log_utils.WARNINGS_BUFFER == []


def test_arguments_of_constructors(caplog, monkeypatch):
    class Made:
        def __init__(self, a, b=1):
            pass

    values = {"a": [1], "c": 2}
    assert python_utils.get_class_init_kwargs(Made) == ["a", "b"]
    assert python_utils.extract_class_init_kwargs_from_dict(Made, values) == {"a": [1]}
    assert "Made" not in caplog.text
    monkeypatch.setattr(macros, "DEBUG", True)
    copied = python_utils.extract_class_init_kwargs_from_dict(cls=Made, dic=values, copy=True)
    assert copied["a"] is not values["a"]
    assert "takes no ['c'], and is not given ['b']" in caplog.text
    assert python_utils.deep_update({"a": {"b": 1}}, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}


def test_parts_of_actions():
    parts = {"arm": np.arange(12.0).reshape(2, 6), "hand": np.ones((2, 1))}
    vector = python_utils.action_dict_to_vector(parts, ["hand", "arm"])
    assert vector.shape == (2, 7)
    shapes = {"hand": (1,), "arm": (2, 3)}
    back = python_utils.vector_to_action_dict(vector, shapes, ["hand", "arm"])
    np.testing.assert_array_equal(back["arm"], parts["arm"].reshape(2, 2, 3))
    np.testing.assert_array_equal(python_utils.action_dict_to_vector(parts)[:, 6], 1)


def test_losses_are_torchs():
    torch.manual_seed(0)
    mean, logvar, other, others = torch.randn(4, 5, 3, dtype=torch.float64).unbind(0)
    one, two = Normal(mean, (logvar / 2).exp()), Normal(other, (others / 2).exp())
    wanted = kl_divergence(one, two).sum(1).mean()
    torch.testing.assert_close(loss_utils.KLD_gaussian_loss(mean, logvar, other, others), wanted)
    standard = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    wanted = kl_divergence(one, standard).sum(1).mean()
    torch.testing.assert_close(loss_utils.KLD_0_1_loss(mean, logvar), wanted)
    var, x = others.exp(), torch.randn(5, 3, dtype=torch.float64)
    wanted = MultivariateNormal(other, torch.diag_embed(var)).log_prob(x)
    torch.testing.assert_close(loss_utils.log_normal(x, other, var), wanted)
    means, variances = torch.randn(5, 4, 3, dtype=torch.float64), torch.rand(5, 4, 3).double() + 0.1
    weights = torch.rand(5, 4).double().softmax(1)
    parts = MultivariateNormal(means, torch.diag_embed(variances))
    for given, probs in (
        ({"w": weights}, weights),
        ({"log_w": weights.log()}, weights),
        ({}, None),
    ):
        chances = torch.full((5, 4), 0.25).double() if probs is None else probs
        wanted = MixtureSameFamily(Categorical(probs=chances), parts).log_prob(x)
        got = loss_utils.log_normal_mixture(x, means, variances, **given)
        torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(loss_utils.log_mean_exp(x, 1), x.exp().mean(1).log())
    torch.testing.assert_close(loss_utils.log_sum_exp(x), x.exp().sum(0).log())
    halves = loss_utils.project_values_onto_atoms(
        torch.tensor([[0.25]]), torch.tensor([[1.0]]), torch.tensor([[0.0, 1.0, 2.0]])
    )
    assert halves.tolist() == [[0.75, 0.25, 0.0]]


def test_pictures(tmp_path: Path):
    image = torch.zeros(2, 3, 4, 5)
    image[0, 0] = 1.0
    vis_utils.image_tensor_to_disk(image, tmp_path / "image.png")
    from PIL import Image

    picture = np.asarray(Image.open(tmp_path / "image.png"))
    assert picture.shape == (4, 5, 3)
    assert picture[0, 0].tolist() == [255, 0, 0]
    colours = vis_utils.depth_to_rgb(np.array([[[1.0], [3.0]], [[2.0], [3.0]]]))
    assert colours.shape == (2, 2, 3)
    assert colours[0, 0].sum() < colours[1, 0].sum() < colours[0, 1].sum() == 3 * 255
    figure = vis_utils.visualize_image_randomizer(
        np.zeros((1, 4, 5, 3)), np.zeros((1, 2, 4, 5, 3)), "crop"
    )
    assert len(figure.axes) == 3


def test_instructions_need_a_folder_of_their_text_encoder():
    assert lang_utils.get_lang_emb(None) is None
    for ask in (lambda: lang_utils.get_lang_emb("lift"), lang_utils.get_lang_emb_shape):
        with pytest.raises(ConfigError, match="no folder on this machine"):
            ask()


# --------------------------------------------------------------------------------- downloads


@pytest.fixture
def address(tmp_path: Path):
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "data.bin").write_bytes(b"x" * 3_000_000)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_downloads_lie_under_their_names(address: str, tmp_path: Path):
    assert file_utils.url_is_alive(f"{address}/data.bin")
    assert not file_utils.url_is_alive(f"{address}/none.bin")
    assert not file_utils.url_is_alive(f"file://{tmp_path}")
    folder = tmp_path / "new" / "folder"
    file_utils.download_url(f"{address}/data.bin?download=true", folder)
    assert (folder / "data.bin").stat().st_size == 3_000_000
    with pytest.raises(OutputError, match="exists"):
        file_utils.download_url(f"{address}/data.bin", folder)
    file_utils.download_url(f"{address}/data.bin", str(folder), check_overwrite=False)
    with pytest.raises(DatasetError, match=r"none\.bin.*File not found"):
        file_utils.download_url(f"{address}/none.bin", folder)
    with pytest.raises(DatasetError, match="no URL of http"):
        file_utils.download_url("/etc/passwd", folder)
    assert [path.name for path in folder.iterdir()] == ["data.bin"]


# -------------------------------------------------------------------------- tests of algorithms


def test_the_registry_of_data_sets():
    lift = raymimic.DATASET_REGISTRY["lift"]
    assert lift["ph"]["low_dim"] == {"url": "v1.5/lift/ph/low_dim_v15.hdf5", "horizon": 400}
    assert lift["mg"]["image_dense"]["url"] is None
    assert raymimic.DATASET_REGISTRY["transport"]["mh"]["raw"]["horizon"] == 1100
    kinds = [kind for types in raymimic.DATASET_REGISTRY.values() for kind in types.values()]
    assert sum(map(len, kinds)) == 43
    assert raymimic.MOMART_DATASET_REGISTRY["unload_dishwasher"]["sample"]["size"] == 1.0


def test_configs_of_short_trainings(monkeypatch, tmp_path: Path, hopper: Path):
    monkeypatch.setattr(test_utils, "example_dataset_path", lambda: str(hopper))
    base = test_utils.get_base_config("bc_rnn")

    def change(config):
        config.algo.rnn.hidden_dim = 7
        return config

    config = test_utils.config_from_modifier(base, change)
    assert (config.algo.rnn.hidden_dim, config.train.num_epochs) == (7, 1)
    with pytest.raises(RuntimeError):
        config.algo.rnn.hidden_dim = 8
    with pytest.raises(CheckpointError, match="no checkpoint"):
        test_utils.checkpoint_path_from_test_run()
    failed = test_utils.test_run(base, lambda config: 1 / 0)
    assert failed.startswith("failed with error")
    assert "ZeroDivisionError" in failed

    def shorten(config):
        config.observation.modalities.obs.low_dim = ["flat"]
        config.experiment.rollout.enabled = False
        config.train.batch_size = 16
        return change(config)

    monkeypatch.chdir(tmp_path)
    assert "passed!" in test_utils.test_run(base, shorten)
    assert not Path(test_utils.temp_model_dir_path()).exists()
    assert not list(tmp_path.glob("ml*"))  # of MLflow
    test_utils.maybe_remove_dir(test_utils.temp_model_dir_path())
    test_utils.maybe_remove_file(test_utils.temp_video_path())


def test_training_under_robomimics_name(tmp_path: Path, hopper: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = {"ray__num_workers": 0, "mlflow__enabled": False}
    config = loop(tmp_path, hopper, experiment__rollout__enabled=False, **quick)
    config.observation.modalities.obs.low_dim = ["flat"]
    config.algo.actor_layer_dims = [4]
    config.experiment.epoch_every_n_steps = 2
    config.train.num_epochs = 1
    config.lock()
    first = train_script.train(config, device=torch.device("cpu"))
    assert Path(first.last_checkpoint).exists()
    assert config.train.cuda  # the caller's own config stays
    config.unlock()
    config.train.num_epochs = 2
    again = train_script.train(config, "cpu", resume=True)
    assert again.run_dir == first.run_dir
    assert "model_epoch_2" in again.last_checkpoint
    words = {"config": None, "algo": "bcc", "name": None, "dataset": str(hopper)}
    with pytest.raises(ConfigError, match="bcc"):  # returns, and raises, as a function does
        train_script.main(argparse.Namespace(**words, debug=True, resume=False))
