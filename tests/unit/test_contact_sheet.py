"""Contact sheets: the pictures are those of the file, and faults of cameras are told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from checks import assert_refused
from image_files import LENGTHS, replace_key, write_cameras
from numpy.typing import NDArray
from PIL import Image
from tiny import Ran, small_config

from raymimic.config import BaseConfig
from raymimic.data.hdf5 import DatasetFile
from raymimic.models.vision.randomizers import Randomizer, register_randomizer
from raymimic.recording.contact_sheet import ContactSheets, contact_sheets
from raymimic.recording.painting import picture

CAMERAS = {"camera_0": "rgb", "camera_1": "rgb"}
DEMOS = [f"demo_{i}" for i in range(len(LENGTHS))]
Array = NDArray[Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_cameras(tmp_path / "cameras.hdf5")


def drawn(path: Path, config: BaseConfig | None = None) -> ContactSheets:
    return contact_sheets(DatasetFile.locate(path), DEMOS, CAMERAS, config)


def tiles(path: Path, config: BaseConfig | None = None) -> dict[tuple[int, int, int], Array]:
    """The pictures of a sheet's PNG, each pixel of a frame once, by camera, demo and column."""
    sheets = drawn(path, config)
    (png,) = sheets.write(str(path.with_suffix(".png")))
    page = np.asarray(Image.open(png))
    found = {}
    for where, (left, top, right, bottom) in sheets.sheets[""].places.items():
        whole = page[top:bottom, left:right]
        factor = 16 if where[0] == 0 else 24  # 192 pixels, by the longer side
        pixels = whole[::factor, ::factor]
        np.testing.assert_array_equal(whole, pixels.repeat(factor, 0).repeat(factor, 1))
        found[where] = pixels
    return found


def test_pictures_are_the_frames_of_the_file_and_those_of_a_flipped_file_are_flipped(
    path: Path,
) -> None:
    found = tiles(path)
    with h5py.File(path) as file:
        expected = {
            (camera, demo, column): file[f"data/demo_{demo}/obs/camera_{camera}"][index]
            for camera in (0, 1)
            for demo, length in enumerate(LENGTHS)
            for column, index in enumerate((0, length // 2, length - 1))
        }
    assert found.keys() == expected.keys()
    for where, frame in expected.items():
        np.testing.assert_array_equal(found[where], frame)
    replace_key(path, "camera_0", lambda x: x[:, ::-1])
    for where, pixels in tiles(path).items():
        frame = expected[where]
        np.testing.assert_array_equal(pixels, frame if where[0] else frame[::-1])


def test_distances_and_large_images() -> None:
    distances = np.linspace(2.0, 4.0, 20 * 30).reshape(20, 30, 1)
    image, extent = picture(distances)
    grey = np.asarray(image)[::6, ::6]
    assert extent == (2.0, 4.0)
    np.testing.assert_array_equal(grey[..., 0], np.round((distances[..., 0] - 2) / 2 * 255))
    large = np.random.default_rng(0).integers(0, 256, (640, 320, 3), dtype=np.uint8)
    means = large.reshape(320, 2, 160, 2, 3).mean(axis=(1, 3))
    assert np.abs(np.asarray(picture(large)[0]) - means).max() <= 0.5


def camera_config(names: list[str], kwargs: list[dict[str, Any]]) -> BaseConfig:
    config = small_config("bc")
    config.observation.modalities.obs.rgb = ["camera_0"]
    config.observation.encoder.rgb.obs_randomizer_class = names
    config.observation.encoder.rgb.obs_randomizer_kwargs = kwargs
    return config


def test_randomizers_change_the_middle_frames_and_draw_the_same_picture_again(path: Path) -> None:
    crop = {"crop_height": 7, "crop_width": 6, "num_crops": 2}
    half = {"brightness": [0.5, 0.5], "contrast": None, "saturation": None, "hue": None}
    config = camera_config(["CropRandomizer", "ColorRandomizer"], [crop, half])
    found = tiles(path, config)
    again = path.with_suffix(".png").read_bytes()
    places = []
    for demo in range(len(DEMOS)):
        frame, cropped = found[0, demo, 1], found[0, demo, 3]
        windows = np.lib.stride_tricks.sliding_window_view(frame, (7, 6, 3))[:, :, 0]
        (place,) = np.argwhere((windows == cropped).all(axis=(2, 3, 4)))
        places.append(tuple(place))
        assert np.abs(found[0, demo, 4] - 0.5 * cropped.astype(float)).max() <= 0.5 + 1e-3
    assert len(set(places)) > 1
    assert {where for where in found if where[0] == 1} == {
        (1, demo, column) for demo in range(3) for column in range(3)
    }
    state = np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    tiles(path, config)
    assert path.with_suffix(".png").read_bytes() == again
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index, union-attr]
    with config.values_unlocked():
        config.train.seed += 1
    tiles(path, config)
    assert path.with_suffix(".png").read_bytes() != again


@register_randomizer
class Broken(Randomizer):
    def __init__(self, input_shape: Any) -> None:
        super().__init__()

    def _forward_in(self, x: Any) -> Any:
        raise ValueError("out of paint")


def test_a_randomizer_that_fails_is_named_in_its_place(path: Path) -> None:
    sheets = drawn(path, camera_config(["RandomShift", "Broken", "RandomShift"], [{}, {}, {}]))
    assert {where[2] for where in sheets.sheets[""].places} == {0, 1, 2, 3}
    assert sheets.warnings == ["obs/camera_0 Broken fails: ValueError: out of paint"]


def info(cli: Callable[..., Ran], path: Path, *args: str) -> list[str]:
    ran = cli("dataset", "info", str(path), "--images", *args)
    assert ran.status == 0, ran.err
    return ran.out.splitlines()


def test_faults_of_cameras_are_told(cli: Callable[..., Ran], path: Path) -> None:
    with h5py.File(path, "r+") as file:
        for name in DEMOS:
            demo = file[f"data/{name}/obs"]
            frames = demo["camera_0"][()]
            demo["black"] = frames * 0 + 3
            demo["twin"] = frames
            demo["frozen"] = frames[:1].repeat(len(frames), axis=0)
            demo["far"] = np.ones((*frames.shape[:3], 1), np.float32)
            demo["scan"] = np.random.default_rng(0).random((len(frames), 40, 2))
        del file["data/demo_1/obs/camera_1"]
        chunk = file["data/demo_2/obs"].create_dataset(
            "torn", data=frames, chunks=(30, 12, 10, 3), compression="gzip"
        )
        chunk = chunk.id.get_chunk_info(0)
    with path.open("r+b") as stream:
        stream.seek(chunk.byte_offset)
        stream.write(b"\xff" * chunk.size)
    out = path.with_name("sheet.png")
    out.write_text("an older one")
    lines = info(cli, path, "--out", str(out))
    warnings = [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]
    assert "obs/black is black in 9 of 9 frames" in warnings
    assert "obs/twin is equal to obs/camera_0 in 9 of 9 frames" in warnings
    assert "obs/frozen is the same in all frames of each demo" in warnings
    assert "obs/far is constant in 9 of 9 frames" in warnings
    (lost,) = [text for text in warnings if text.startswith("obs/camera_1 ")]
    assert lost.startswith("obs/camera_1 cannot be drawn: demo 'demo_1' has no observation")
    (lost,) = [text for text in warnings if text.startswith("obs/torn ")]
    assert lost.startswith("obs/torn cannot be drawn: demo 'demo_0' has no observation")
    assert lost.endswith("(the first of 3 faults)")
    assert not any(text.startswith(("obs/scan", "obs/camera_0")) for text in warnings)
    assert lines[-1].startswith("images: ")
    assert lines[-1].endswith("sheet.png")
    assert Image.open(out).size[0] > 1000


def test_a_config_may_list_another_name(cli: Callable[..., Ran], path: Path) -> None:
    config = camera_config(["CropRandomizer"], [{"crop_height": 70, "crop_width": 6}])
    config.observation.modalities.obs.rgb = ["camera_0", "wrist"]
    path.with_name("c.json").write_text(json.dumps(config.to_dict()))
    ran = cli("dataset", "info", str(path), "--images", "--json", "--config", "c.json")
    images = json.loads(ran.out)["images"]
    assert images["files"] == [str(path.with_name("cameras_images.png"))]
    size, name = images["warnings"]
    assert "does not fit into images of 12x10" in size
    assert "obs/wrist cannot be drawn: demo 'demo_0' has no observation 'wrist'" in name


def test_what_cannot_be_drawn_is_refused(cli: Callable[..., Ran], path: Path) -> None:
    for args, words in (
        (("--images", "--out", str(path)), ["--out", "end it in .png"]),
        (("--out", "x.png"), ["--out", "add --images"]),
    ):
        assert_refused(cli("dataset", "info", str(path), *args), *words)
    replace_key(path, "camera_0", lambda x: x[..., 0])
    replace_key(path, "camera_1", lambda x: np.moveaxis(x, -1, 1))
    ran = cli("dataset", "info", str(path), "--images")
    assert_refused(ran, f"dataset '{path}' holds no images", "obs/camera_1 is not rgb")
    assert not list(path.parent.glob("*.png"))


def test_names_and_sizes_of_strangers(path: Path) -> None:
    odd = "\u202e" + "k" * 3000 + "\n/../x"
    with h5py.File(path, "r+") as file:
        for name in DEMOS:
            obs = file[f"data/{name}/obs"]
            obs[odd] = obs["camera_0"]
            obs.create_dataset("vast", (10, 2**20, 2**20, 3), np.uint8, chunks=(1, 2**10, 2**10, 3))
            obs.create_dataset("row", (10, 1, 30_000, 3), np.uint8)
    keys = {odd: "rgb", "vast": "rgb", "row": "rgb"}
    sheets = contact_sheets(DatasetFile.locate(path), DEMOS, keys)
    assert np.prod(sheets.sheets[""].size) < 4e6
    (vast,) = [text for text in sheets.warnings if text.startswith("obs/vast cannot be drawn")]
    assert "to read one row is to read" in vast
    many = {f"camera_{i}": "rgb" for i in range(40)}
    sheets = contact_sheets(DatasetFile.locate(path), [*DEMOS, "none"], many)
    assert any("40 observations are images; 32 are drawn" in text for text in sheets.warnings)
