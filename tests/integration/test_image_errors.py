"""Files of images that a training cannot read: one sentence, the remedy in it, status 2."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from checks import assert_refused
from image_files import replace_key, write_cameras
from tiny import SETTINGS, Ran

from raymimic.cli.commands import parse
from raymimic.cli.train import _config
from raymimic.training.prepare import prepare

CAMERAS = 'observation.modalities.obs.rgb=["camera_0","camera_1"]'
DEPTH = 'observation.modalities.obs.depth=["camera_0"]'


def train_args(path: Path, *settings: str) -> list[str]:
    return [
        *("train", "--algo", "bc", "--dataset", str(path), "--workers", "0"),
        *("--set", *SETTINGS, *settings),
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_cameras(tmp_path / "cameras.hdf5")


def as_float(x: Any) -> Any:
    return (x / 255).astype(np.float32)


def as_uint16(x: Any) -> Any:
    return x.astype(np.uint16) * 256


FAULTS: dict[str, tuple[str, Any, list[str]]] = {
    "uint16": (
        CAMERAS,
        as_uint16,
        ["listed as rgb, but holds uint16", "write (x >> 8).astype(np.uint8)"],
    ),
    "float": (
        CAMERAS,
        as_float,
        ["listed as rgb, but holds float32", "write (255 * x).astype(np.uint8)"],
    ),
    "int64": (CAMERAS, lambda x: x.astype(np.int64), ["holds int64", "write x.astype(np.uint8)"]),
    "vectors": (
        CAMERAS,
        lambda x: x[:, 0, 0],
        [
            "listed as rgb, but its rows have shape [3], and rgb images are [H, W, 3]",
            "list it under low_dim: --set 'observation.modalities.obs.low_dim=[",
        ],
    ),
    "no axis of channels": (
        CAMERAS,
        lambda x: x[..., 0],
        ["its rows have shape [12, 10]", "write np.repeat(x[..., None], 3, axis=-1)"],
    ),
    "one channel": (
        CAMERAS,
        lambda x: x[..., :1],
        ["its images [12, 10, 1] have one channel", "write np.repeat(x, 3, axis=-1)"],
    ),
    "four channels": (
        CAMERAS,
        lambda x: np.concatenate([x, x[..., :1]], axis=-1),
        ["its images [12, 10, 4] have 4 channels", "write x[..., :3]"],
    ),
    "several images a row": (
        CAMERAS,
        lambda x: x[:, None],
        ["its rows have shape [1, 12, 10, 3]", "write one image a row"],
    ),
    "channels first": (
        CAMERAS,
        lambda x: np.moveaxis(x, -1, 1),
        ["its images [3, 12, 10] have the channels first", "write np.moveaxis(x, 1, -1)"],
    ),
    "channels first under low_dim": (
        'observation.modalities.obs.low_dim=["flat","camera_0"]',
        lambda x: np.moveaxis(x, -1, 1),
        ["listed as low_dim, but holds images", "write np.moveaxis(x, 1, -1)"],
    ),
    "distances with the channel first": (
        DEPTH,
        lambda x: as_float(x[..., 0])[:, None],
        ["its images [1, 12, 10] have the channels first", "write np.moveaxis(x, 1, -1)"],
    ),
    "distances of uint8": (
        DEPTH,
        lambda x: x[..., :1],
        ["listed as depth, but holds uint8", "write x.astype(np.float32)"],
    ),
    "distances without an axis of channels": (
        DEPTH,
        lambda x: as_float(x[..., 0]),
        ["its rows have shape [12, 10]", "depth images are [H, W, 1]: write x[..., None]"],
    ),
    "distances of three channels": (
        DEPTH,
        as_float,
        ["its images [12, 10, 3] have 3 channels, and depth images", "write x[..., :1]"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_images_that_are_not_what_they_are_listed_as(
    cli: Callable[..., Ran], path: Path, fault: str
) -> None:
    settings, change, words = FAULTS[fault]
    replace_key(path, "camera_0", change)
    ran = cli(*train_args(path, settings))
    assert_refused(ran, f"dataset '{path}': demo 'demo_0': 'obs/camera_0' ", *words)


def test_a_camera_whose_size_differs_between_demos(cli: Callable[..., Ran], path: Path) -> None:
    replace_key(path, "camera_1", lambda x: x[:, :7], demo=2)
    ran = cli(*train_args(path, CAMERAS))
    words = "rows of 'obs/camera_1' have shape [7, 8, 3], but [8, 8, 3] in demo 'demo_0'"
    assert_refused(ran, f"demo 'demo_2' of dataset '{path}'", words, "convert or remove one")


@pytest.mark.parametrize(
    ("given", "fit", "change"),
    [
        (
            ['observation.modalities.obs.low_dim=["camera_1","flat","camera_0"]'],
            ['low_dim=["flat"]', 'rgb=["camera_1","camera_0"]'],
            None,
        ),
        (
            ['observation.modalities.obs.low_dim=["flat","camera_0"]'],
            ['low_dim=["flat"]', 'depth=["camera_0"]'],
            lambda x: np.ones((len(x), 16, 18, 1), np.float32),
        ),
        (
            ["observation.modalities.obs.low_dim=[]", 'observation.modalities.obs.rgb=["flat"]'],
            ['low_dim=["flat"]', "rgb=[]"],
            None,
        ),
        ([DEPTH], ['rgb=["camera_0"]', "depth=[]"], None),
        (
            ['observation.modalities.obs.depth=["flat"]', "observation.modalities.obs.low_dim=[]"],
            ['low_dim=["flat"]', "depth=[]"],
            None,
        ),
        (
            [CAMERAS],
            ['rgb=["camera_1"]', 'depth=["camera_0"]'],
            lambda x: as_float(x[..., :1]),
        ),
    ],
)
def test_the_argument_that_lists_an_observation_anew_works(
    cli: Callable[..., Ran], path: Path, given: list[str], fit: list[str], change: Any
) -> None:
    if change is not None:
        replace_key(path, "camera_0", change)
    ran = cli(*train_args(path, *given))
    assert_refused(ran, f"dataset '{path}': demo 'demo_0': 'obs/", "list it under ")
    words = shlex.split(ran.err.partition("--set ")[2])
    assert words == [f"observation.modalities.obs.{setting}" for setting in fit]
    prepared = prepare(_config(parse([*train_args(path, *given), *words])))
    listed = prepared.config.observation.modalities.obs
    for setting in fit:
        modality, _, keys = setting.partition("=")
        assert list(listed[modality]) == json.loads(keys)
    assert set(prepared.data.shape_meta["all_obs_keys"]) == set(prepared.config.all_obs_keys)


def test_a_corrupt_chunk(cli: Callable[..., Ran], tmp_path: Path) -> None:
    path = write_cameras(
        tmp_path / "c.hdf5", chunks=(10, 12, 10, 3), compression="gzip", sizes=[(12, 10)]
    )
    with h5py.File(path) as file:
        chunk = file["data/demo_1/obs/camera_0"].id.get_chunk_info(2)
    with path.open("r+b") as stream:
        stream.seek(chunk.byte_offset)
        stream.write(b"\xff" * chunk.size)
    ran = cli(*train_args(path, 'observation.modalities.obs.rgb=["camera_0"]'))
    assert_refused(
        ran,
        f"dataset '{path}': demo 'demo_1': 'obs/camera_0' cannot be read",
        "copy or make it again",
    )
