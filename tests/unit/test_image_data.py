"""Images are bytes from the file to the device, and floating-point numbers only there."""

import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from image_files import LENGTHS, replace_key, write_cameras
from torch import Tensor
from torch.overrides import TorchFunctionMode

from raymimic.config import BaseConfig, config_factory
from raymimic.data.columns import ColumnRequest, DemoSource
from raymimic.data.reads import Reads, Window, one_window
from raymimic.data.sequence import SequenceDataset
from raymimic.data.store import DemoStore
from raymimic.data.training_data import TrainData, inspect_data, make_loaders
from raymimic.errors import ConfigError
from raymimic.observations.modality import process_obs

CPU = torch.device("cpu")
SIZES = {"camera_0": (12, 10), "camera_1": (8, 8)}
REQUEST = ColumnRequest(
    obs_keys=(*SIZES, "flat"),
    needs=frozenset({"next_obs"}),
    modalities={**dict.fromkeys(SIZES, "rgb"), "flat": "low_dim"},
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cameras(tmp_path_factory.mktemp("data") / "cameras.hdf5")


def frames_of(path: Path, key: str, group: str = "obs") -> Tensor:
    """All frames of a camera, as the file has them."""
    with h5py.File(path) as file:
        parts = [file[f"data/demo_{i}/{group}/{key}"][()] for i in range(len(LENGTHS))]
    return torch.from_numpy(np.concatenate(parts))


def config_for(path: Path, **settings: Any) -> BaseConfig:
    config = config_factory("bc")
    config.observation.modalities.obs.low_dim = ["flat"]
    config.observation.modalities.obs.rgb = list(SIZES)
    config.experiment.rollout.enabled = False
    config.experiment.epoch_every_n_steps = None  # one pass
    config.train.data, config.train.batch_size = str(path), 8
    for key, value in settings.items():
        config.set_path(key, value)
    return config


def loaders(config: BaseConfig, reads: Reads | None = None, **where: Any) -> TrainData:
    return make_loaders(config, reads or one_window(config.train, {"next_obs"}), CPU, **where)


def images_in(batch: Mapping[str, Any]) -> Iterator[Tensor]:
    for group in ("obs", "next_obs", "goal_obs"):
        yield from (x for key, x in batch.get(group, {}).items() if key in SIZES)


class FloatImages(TorchFunctionMode):
    """Notes each floating-point tensor whose rows are images."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            image = isinstance(x, Tensor) and {*x.shape[-3:]} in ({*s, 3} for s in SIZES.values())
            if image and x.is_floating_point():
                self.made.append(str(func))
        return out


def test_a_store_holds_the_bytes_of_the_file(path: Path) -> None:
    store = DemoStore.load([DemoSource(str(path))], REQUEST, torch.float64)
    for group in ("obs", "next_obs"):
        for key, (height, width) in SIZES.items():
            column = store.columns[f"{group}/{key}"]
            assert column.dtype == torch.uint8
            assert column.shape == (100, height, width, 3)
            assert torch.equal(column, frames_of(path, key, group))
    pixels = 3 * (12 * 10 + 8 * 8)
    assert store.num_bytes == 100 * (2 * pixels + 8 * (2 * 3 + 2 + 1 + 1))


@pytest.mark.parametrize("options", [{}, {"chunks": (7, 48, 48, 1), "compression": "gzip"}])
def test_reading_makes_no_copy_of_images(tmp_path: Path, options: dict[str, Any]) -> None:
    path = write_cameras(tmp_path / "cameras.hdf5", sizes=[(48, 48)], **options)
    request = ColumnRequest(obs_keys=("camera_0",), modalities={"camera_0": "rgb"})
    tracemalloc.start()
    try:
        store = DemoStore.load([DemoSource(str(path))], request)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    one_demo = 40 * 48 * 48 * 3
    assert store.num_bytes > 200 * 48 * 48 * 3
    assert peak < store.num_bytes + one_demo  # as float32 a demo would take four times as much


@pytest.mark.parametrize("next_obs", [True, False])
@pytest.mark.parametrize("frame_stack", [1, 3])
def test_windows_of_images_are_the_bytes_of_their_steps(
    tmp_path: Path, next_obs: bool, frame_stack: int
) -> None:
    path = write_cameras(tmp_path / "cameras.hdf5", next_obs=next_obs)
    store = DemoStore.load([DemoSource(str(path))], REQUEST)
    dataset = SequenceDataset(store, seq_length=4, frame_stack=frame_stack, goal_mode="last")
    ends = np.cumsum(LENGTHS)
    samples = [0, 29, 30, 68, 69, 99]
    batch = dataset.gather(torch.tensor(samples))
    for key, (height, width) in SIZES.items():
        frames = frames_of(path, key)
        after = frames_of(path, key, "next_obs") if next_obs else None
        for x in (batch["obs"][key], batch["next_obs"][key], batch["goal_obs"][key]):
            assert x.dtype == torch.uint8
            assert x.shape[-3:] == (height, width, 3)
        for i, sample in enumerate(samples):
            end = int(ends[np.searchsorted(ends, sample, side="right")])
            begin = end - LENGTHS[int(np.searchsorted(ends, sample, side="right"))]
            steps = np.arange(sample - frame_stack + 1, sample + 4).clip(begin, end - 1)
            assert torch.equal(batch["obs"][key][i], frames[steps])
            if after is None:
                following = frames[np.minimum(steps + 1, end - 1)]
                goal = frames[end - 1]
            else:
                following, goal = after[steps], after[end - 1]
            assert torch.equal(batch["next_obs"][key][i], following)
            assert torch.equal(batch["goal_obs"][key][i], goal)
    item = dataset[68]
    assert item["obs"]["camera_0"].dtype == torch.uint8
    assert torch.equal(item["obs"]["camera_0"], batch["obs"]["camera_0"][3])


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "float64": {"train.dtype": "float64"},
    "sequences": {"train.seq_length": 5, "train.frame_stack": 2},
    "goals": {"train.goal_mode": "last", "observation.modalities.goal.rgb": ["camera_1"]},
    "normalised": {"train.hdf5_normalize_obs": True},
    "validated": {"experiment.validate": True, "train.validation_fraction": 0.3},
    "actions": {"train.action_config": {"actions": {"normalization": "min_max"}}},
}


@pytest.mark.parametrize("placement", ["replicate", "shard"])
@pytest.mark.parametrize("name", SETTINGS)
def test_batches_come_as_bytes_and_nothing_else_is_made(
    path: Path, name: str, placement: str
) -> None:
    config = config_for(path, **SETTINGS[name], **{"ray.data_placement": placement})
    frames = {key: frames_of(path, key) for key in SIZES}
    seen: list[int] = []
    for rank in range(2):
        data = loaders(config, rank=rank, world_size=2)
        served = [data.train] + ([data.valid] if data.valid is not None else [])
        with FloatImages() as floats:
            for loader in served:
                for batch, count, _ in loader.epoch(1):
                    images = list(images_in(batch))
                    assert len(images) == 2 * (2 + ("goal_obs" in batch))
                    assert {x.dtype for x in images} == {torch.uint8}
                    if loader is data.train and count:
                        now = batch["obs"]["camera_0"][:, config.train.frame_stack - 1]
                        seen += (256 * now[:, 0, 0, 1].int() + now[:, 0, 0, 2]).tolist()
                        rows = torch.tensor(seen[-len(now) :])
                        assert torch.equal(now, frames["camera_0"][rows])
        assert floats.made == []
        whole = sum(LENGTHS) * 2 * 3 * (12 * 10 + 8 * 8)
        if placement == "replicate" and data.valid is None:
            columns = data.train.dataset.store.columns
            assert sum(x.nbytes for k, x in columns.items() if "camera" in k) == whole
    assert len(seen) == len(set(seen)) == 8 * (data.train.num_samples // 8)


def test_an_algorithm_that_reads_no_next_images_does_not_load_them(path: Path) -> None:
    config = config_for(path)
    now = Window(0, 1)
    store = loaders(config, Reads(obs=now, actions=now)).train.dataset.store
    assert {key for key in store.columns if "camera" in key} == {"obs/camera_0", "obs/camera_1"}


def test_statistics_beyond_a_checkpoint_are_refused(tmp_path: Path) -> None:
    """Two numbers for each of 3 x 1300 x 1200 values."""
    path = write_cameras(tmp_path / "large.hdf5", [1], [(1300, 1200), (8, 8)])
    now = Window(0, 1)
    reads = Reads(obs=now, actions=now)
    inspect_data(config_for(path), reads)
    with pytest.raises(ConfigError, match=r"hdf5_normalize_obs.* \('camera_0' alone has 9,360,000"):
        inspect_data(config_for(path, **{"train.hdf5_normalize_obs": True}), reads)
    path = write_cameras(tmp_path / "smaller.hdf5", [1], [(1100, 1200), (8, 8)])
    inspect_data(config_for(path, **{"train.hdf5_normalize_obs": True}), reads)


def test_statistics_of_images_are_those_of_robomimic(path: Path) -> None:
    # Each pixel of the processed image, over all frames: mean, and deviation plus 1e-3.
    stats = loaders(config_for(path, **{"train.hdf5_normalize_obs": True})).obs_normalization_stats
    assert stats is not None
    frames = frames_of(path, "camera_0").double().permute(0, 3, 1, 2).numpy() / 255
    offset, scale = stats["camera_0"]["offset"], stats["camera_0"]["scale"]
    assert offset.shape == scale.shape == (1, 3, 12, 10)
    np.testing.assert_allclose(offset[0], frames.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(scale[0], frames.std(axis=0) + 1e-3, atol=1e-6)


@pytest.mark.parametrize("leading", [(8,), (4, 2)])
def test_a_processed_image_keeps_its_channels_together(leading: tuple[int, ...]) -> None:
    raw = torch.randint(0, 256, (*leading, 6, 5, 3), dtype=torch.uint8)
    image = process_obs(raw, "rgb")
    assert image.dtype == torch.float32
    assert torch.equal(image, raw.float().movedim(-1, -3) / 255)
    # No transposed copy: a convolution reads it as `channels_last`, which is faster.
    flat = image.flatten(0, len(leading) - 1)
    assert flat.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_distances_that_are_cut_off_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, scale: float
) -> None:
    path = write_cameras(tmp_path / "cameras.hdf5", sizes=[(4, 4)])
    replace_key(path, "camera_0", lambda x: x[..., :1] / np.float32(255) * scale)
    request = ColumnRequest(obs_keys=("camera_0",), modalities={"camera_0": "depth"})
    column = DemoStore.load([DemoSource(str(path))], request).columns["obs/camera_0"]
    assert column.dtype == torch.float32
    assert column.max() == pytest.approx(scale)
    told = [r.getMessage() for r in caplog.records]
    message = (
        f"dataset '{path}': 'obs/camera_0' holds 0 to 2.5, and networks see it clipped to 0 to 1"
    )
    assert [m.startswith(message) for m in told] == ([] if scale == 1.0 else [True])
    assert all("train.cut_depth=false" in m for m in told)
