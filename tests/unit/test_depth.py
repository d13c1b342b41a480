"""Depth is cut off at 0 and 1, but not in data of robosuite: as robomimic sees both."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from image_files import replace_key, write_cameras
from recording import RecordingLink

from raymimic.algo import algo_class, algo_factory
from raymimic.checkpoints.export import export_checkpoint
from raymimic.checkpoints.policy import policy_from_checkpoint
from raymimic.config import BaseConfig, config_factory
from raymimic.data.curation.validate import validate
from raymimic.data.training_data import make_loaders
from raymimic.errors import ConfigError
from raymimic.models.obs_nets import ObservationEncoder
from raymimic.recording.augmented import Augmentations, Augmented
from raymimic.training.link import Started
from raymimic.training.prepare import prepare, prepare_resumed
from raymimic.training.resume import check_resume
from raymimic.training.run_folder import RunFolder
from raymimic.training.trainable import demand_of
from raymimic.training.worker import train_loop
from raymimic.utils import file_utils, obs_utils, train_utils

ROBOSUITE, GYM = {"env_name": "Lift", "type": 1}, {"env_name": "Walker2d-v5", "type": 2}
FAR = 3.7
CPU = torch.device("cpu")


def write_depth(path: Path, env_args: dict[str, Any]) -> Path:
    """A file whose camera sees distances of 0.5 and of `FAR` metres, equally often."""
    write_cameras(path, lengths=(4, 4), sizes=[(4, 6)])
    seen = np.full((4, 4, 6, 1), FAR, np.float32)
    seen[::2] = 0.5
    replace_key(path, "camera_0", lambda _: seen)
    with h5py.File(path, "r+") as file:
        file["data"].attrs["env_args"] = json.dumps(env_args)
    return path


@pytest.fixture
def metres(tmp_path: Path) -> Path:
    return write_depth(tmp_path / "metres.hdf5", ROBOSUITE)


@pytest.fixture
def others(tmp_path: Path) -> Path:
    return write_depth(tmp_path / "others.hdf5", GYM)


def config_for(*paths: Path, algo: str = "bc", **settings: Any) -> BaseConfig:
    config = config_factory(algo)
    parts = [config.observation]
    if algo == "hbc":
        parts = [config.observation.planner, config.observation.actor]
        parts[0].modalities.subgoal.low_dim = ["flat"]
    for part in parts:
        part.modalities.obs.low_dim = ["flat"]
        part.modalities.obs.depth = ["camera_0"]
        part.encoder.depth.core_class = None
    config.experiment.rollout.enabled = False
    config.train.cuda = False
    config.train.data = [{"path": str(path)} for path in paths]
    config.train.batch_size = 8
    config.train.output_dir = str(paths[0].parent / "runs")
    for key, value in settings.items():
        config.set_path(key.replace("__", "."), value)
    return config


def settled(config: BaseConfig) -> BaseConfig:
    return prepare(config).config


def test_the_data_decide_unless_the_config_does(metres: Path, others: Path, tmp_path: Path) -> None:
    unknown = write_depth(tmp_path / "unknown.hdf5", {})
    for paths, cut in (
        ((metres,), False),
        ((others,), True),
        ((unknown,), True),
        ((others, metres), False),  # as in robomimic, where one dataset of robosuite decides
    ):
        config = config_for(*paths)
        assert settled(config).train.cut_depth is cut
        assert config.train.cut_depth is None  # the caller's own
    assert settled(config_for(metres, train__cut_depth=True)).train.cut_depth is True
    assert settled(config_for(others, train__cut_depth=False)).train.cut_depth is False
    blind = config_for(metres, observation__modalities__obs__depth=[])
    assert settled(blind).train.cut_depth is None
    with pytest.raises(ConfigError, match=r"'train\.cut_depth' is 2: it must be true or false"):
        prepare(config_for(metres, train__cut_depth=2))


def groups(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The groups of observations of a batch, wherever they are nested."""
    for name, value in batch.items():
        if name in ("obs", "next_obs", "goal_obs") and value is not None:
            yield value
        elif isinstance(value, dict):
            yield from groups(value)


@pytest.mark.parametrize(
    ("algo", "settings"),
    [("bc", {}), ("hbc", {"train__seq_length": 2, "algo__planner__subgoal_horizon": 2})],
)
def test_batches_and_statistics(
    metres: Path,
    others: Path,
    algo: str,
    settings: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for path, far in ((metres, FAR), (others, 1.0)):
        caplog.clear()
        config = settled(config_for(path, algo=algo, train__hdf5_normalize_obs=True, **settings))
        data = make_loaders(config, algo_class(algo, config).reads(config), CPU)
        made = algo_factory(algo, config, data.shape_meta["all_shapes"], 2, CPU)
        batch, _, _ = next(data.train.epoch(1))
        seen = made.postprocess_batch_for_training(made.process_batch_for_training(batch), None)
        depth = [float(obs["camera_0"].max()) for obs in groups(seen) if "camera_0" in obs]
        assert depth == [pytest.approx(far)] * len(depth)
        assert depth
        assert data.obs_normalization_stats is not None
        stats = data.obs_normalization_stats["camera_0"]
        np.testing.assert_allclose(stats["offset"], (0.5 + far) / 2, rtol=1e-6)
        np.testing.assert_allclose(stats["scale"], (far - 0.5) / 2 + 1e-3, rtol=1e-5)
        assert ("networks see it clipped to 0 to 1" in caplog.text) == (far == 1)


def depth_seen(checkpoint: Path) -> float:
    """The depth that the networks of a checkpoint's policy get of an observation at `FAR`."""
    policy, _ = policy_from_checkpoint(ckpt_path=checkpoint, device="cpu")
    seen: list[Any] = []
    (encoder,) = (m for m in policy.policy.nets.modules() if isinstance(m, ObservationEncoder))
    encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]["camera_0"]))
    policy.start_episode()
    policy({"flat": np.zeros(3, np.float32), "camera_0": np.full((4, 6, 1), FAR, np.float32)})
    assert seen[0].shape == (1, 1, 4, 6)
    return round(float(seen[0].max()), 5)


def write_checkpoint(
    path: Path, config: BaseConfig, env_meta: dict[str, Any], robomimic: bool = False
) -> dict[str, Any]:
    """Writes a checkpoint of raymimic, or one as robomimic 0.4 and 0.5 write them."""
    shapes = {"camera_0": [1, 4, 6], "flat": [3]}
    shape_meta = {"ac_dim": 2, "all_shapes": shapes, "use_depths": True}
    made = algo_factory(config.algo_name, config, shapes, 2, CPU)
    train_utils.save_model(made, config, env_meta, shape_meta, path)
    content: dict[str, Any] = torch.load(path, weights_only=True)
    if robomimic:
        del content["raymimic"]
        own = json.loads(content["config"])
        del own["train"]["cut_depth"]
        content["config"] = json.dumps(own)
        torch.save(content, path)
    return content


def test_a_policy_sees_depth_as_in_its_training(metres: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    for cut, far in ((False, FAR), (True, 1.0), (None, 1.0)):
        write_checkpoint(path, config_for(metres, train__cut_depth=cut), ROBOSUITE)
        assert depth_seen(path) == far
    for env_meta, far in ((ROBOSUITE, FAR), (GYM, 1.0)):
        content = write_checkpoint(path, config_for(metres), env_meta, robomimic=True)
        assert depth_seen(path) == far
    write_checkpoint(path, config_for(metres), ROBOSUITE, robomimic=True)
    content["env_metadata"] = ROBOSUITE
    del content["shape_metadata"]["use_depths"]  # robomimic 0.2 and 0.3, which cut all depth
    torch.save(content, path)
    assert depth_seen(path) == 1


def test_robomimic_is_not_given_the_setting(
    metres: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = tmp_path / "ours.pth", tmp_path / "theirs.pth"
    for cut, env_meta, remedy in (
        (False, ROBOSUITE, "set_env_specific_obs_processing(env_type=1)"),
        (True, ROBOSUITE, "DepthModality.set_obs_processor(None)"),
        (True, GYM, ""),
    ):
        caplog.clear()
        write_checkpoint(ours, config_for(metres, train__cut_depth=cut), env_meta)
        export_checkpoint(str(ours), str(theirs), force=True)
        exported = torch.load(theirs, weights_only=True)
        assert "cut_depth" not in json.loads(exported["config"])["train"]
        assert (remedy in caplog.text) if remedy else not caplog.text


def test_a_run_goes_on_as_it_began(metres: Path, tmp_path: Path) -> None:
    settings = {"train__output_dir": str(tmp_path), "mlflow__enabled": False}
    config = config_for(metres, **settings)
    begun = prepare(config)
    run = RunFolder.create(begun.config)
    run.release()
    file = Path(run.uri) / "config.json"
    assert json.loads(file.read_text())["train"]["cut_depth"] is False
    for cut in (False, True, None):
        content = json.loads(file.read_text())
        content["train"]["cut_depth"] = cut
        if cut is None:  # of a version without the setting, which always cut
            del content["train"]["cut_depth"]
        file.write_text(json.dumps(content))
        resumed = prepare_resumed(config, run.uri)
        assert resumed.config.train.cut_depth is (cut is not False)
        assert check_resume(resumed.config, run, resumed.data.digest, ())
    other = prepare_resumed(config_for(metres, train__cut_depth=False, **settings), run.uri)
    with pytest.raises(ConfigError, match=r"train\.cut_depth was True and now is False"):
        check_resume(other.config, run, other.data.digest, ())


def test_files_are_judged_by_their_environment(metres: Path, others: Path) -> None:
    for path, told in ((metres, False), (others, True)):
        for demand in (None, demand_of(config_for(path), str(path))):
            faults = [fault.kind for fault in validate(str(path), demand=demand).faults]
            assert ("cut off" in faults) == told


def test_pictures_of_randomizers_show_what_networks_see(metres: Path, others: Path) -> None:
    for path, far in ((metres, FAR), (others, 1.0)):
        config = config_for(path)
        config.observation.encoder.depth.obs_randomizer_class = "CropRandomizer"
        config.observation.encoder.depth.obs_randomizer_kwargs = {
            "crop_height": 3,
            "crop_width": 3,
        }
        made = Augmentations(settled(config), "camera_0", (4, 6, 1))
        (shown,) = made.apply(np.full((4, 6, 1), FAR, np.float32), 0)
        assert isinstance(shown, Augmented)
        assert float(shown.values.max()) == pytest.approx(far)


def test_a_loop_in_robomimics_form(metres: Path, others: Path) -> None:
    for path, far in ((others, 1.0), (metres, FAR)):
        config = config_for(path, train__hdf5_normalize_obs=True)
        obs_utils.initialize_obs_utils_with_config(config)
        config.lock()
        meta = file_utils.get_env_metadata_from_dataset(path)
        assert meta["type"] == (1 if far == FAR else 2)
        shapes = file_utils.get_shape_metadata_from_dataset(
            {"path": str(path)}, ["actions"], config.all_obs_keys
        )
        made = algo_factory("bc", config, shapes["all_shapes"], shapes["ac_dim"], CPU)
        data, _ = train_utils.load_data_for_training(config, config.all_obs_keys)
        stats = data.get_obs_normalization_stats()
        np.testing.assert_allclose(stats["camera_0"]["offset"], (0.5 + far) / 2, rtol=1e-6)
        batch = next(iter(torch.utils.data.DataLoader(data, batch_size=8)))
        batch = made.process_batch_for_training(batch)
        seen = made.postprocess_batch_for_training(batch, None)["obs"]["camera_0"]
        assert float(seen.max()) == pytest.approx(far)
        theirs = obs_utils.process_obs(np.full((4, 6, 1), FAR, np.float32), "depth")
        assert float(theirs.max()) == pytest.approx(far)


def test_weights_of_another_depth_are_told(metres: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    for learned, env_meta, robomimic, told in (
        (True, GYM, False, "depth cut off at 0 and 1, and this training shows it as it is: "),
        (False, GYM, False, ""),
        (None, ROBOSUITE, True, ""),
        (None, GYM, True, "train.cut_depth=true shows it as before"),
    ):
        config = config_for(metres, train__cut_depth=learned)
        write_checkpoint(weights, config, env_meta, robomimic)
        settings = {"experiment__ckpt_path": str(weights), "train__num_epochs": 1}
        settings |= {"experiment__epoch_every_n_steps": 1, "ray__threads_per_worker": 1}
        begun = prepare(config_for(metres, **settings))
        run = RunFolder.create(begun.config)
        link, threads = RecordingLink(), torch.get_num_threads()
        train_loop(begun.worker_spec(run), link, rank=0, world_size=1, device=CPU)
        torch.set_num_threads(threads)
        run.release()
        (started,) = (event for event in link.events if isinstance(event, Started))
        warnings = [text for text in started.info["warnings"] if "depth" in text]
        assert len(warnings) == bool(told)
        assert all(told in text and str(weights) in text for text in warnings)


def test_a_cache_of_another_depth_is_not_taken(
    others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whole depth in the cache has no record of its extent, of which a training that cuts warns."""
    monkeypatch.setenv("RAYMIMIC_CACHE", str(tmp_path / "cache"))
    for cut, far in ((False, FAR), (True, 1.0), (False, FAR)):
        caplog.clear()
        settings = {"train__hdf5_cache_mode": None, "train__cut_depth": cut}
        config = settled(config_for(others, **settings))
        data = make_loaders(config, algo_class("bc", config).reads(config), CPU)
        assert data.train.dataset.store.cache is not None
        made = algo_factory("bc", config, data.shape_meta["all_shapes"], 2, CPU)
        batch, _, _ = next(data.train.epoch(1))
        seen = made.postprocess_batch_for_training(made.process_batch_for_training(batch), None)
        assert float(seen["obs"]["camera_0"].max()) == pytest.approx(far)
        assert ("networks see it clipped to 0 to 1" in caplog.text) == cut
