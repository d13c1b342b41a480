"""Columns in files of the cache: the batches of data in memory, whole files, one builder."""

import errno
import gc
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from image_files import write_cameras
from tiny import Ran
from torch import Tensor
from waiting import DEADLINE_S, wait_for

from raymimic.checkpoints.export import _robomimic_config
from raymimic.config import BaseConfig, config_factory
from raymimic.data import loader, placement
from raymimic.data.cache import build, packing, read, room
from raymimic.data.cache.read import DemoCache
from raymimic.data.cache.room import NoCacheError, entries
from raymimic.data.columns import ColumnRequest, DemoSource
from raymimic.data.layout import scan
from raymimic.data.reads import one_window
from raymimic.data.training_data import TrainData, make_loaders
from raymimic.errors import ConfigError, DatasetError

CPU = torch.device("cpu")
IMAGES = {"obs/camera_0", "obs/camera_1", "next_obs/camera_0", "next_obs/camera_1"}
REQUEST = ColumnRequest(
    obs_keys=("flat", "camera_0"), modalities={"flat": "low_dim", "camera_0": "rgb"}
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache."""
    monkeypatch.setenv("RAYMIMIC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(room.LIMIT, raising=False)
    return tmp_path / "cache" / "columns"


@pytest.fixture(params=["mapped", "read"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Data that fit into memory, and data that do not."""
    if request.param == "read":
        monkeypatch.setattr(read, "_MAX_SHARE", 0)
    return request.param


CHUNKS = {"chunks": (7, 8, 4, 1), "compression": "gzip"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cameras(tmp_path_factory.mktemp("data") / "cameras.hdf5", **CHUNKS)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that several tests fill."""
    return tmp_path_factory.mktemp("shared")


def config_for(path: Path | list[dict[str, Any]], mode: str | None, **settings: Any) -> BaseConfig:
    config = config_factory("bc")
    config.observation.modalities.obs.low_dim = ["flat"]
    config.observation.modalities.obs.rgb = ["camera_0", "camera_1"]
    config.experiment.rollout.enabled = False
    config.experiment.epoch_every_n_steps = None  # one pass
    config.train.data = path if isinstance(path, list) else str(path)
    config.train.batch_size = 8
    for key, value in {"train.hdf5_cache_mode": mode, **settings}.items():
        config.set_path(key, value)
    return config


def loaders(config: BaseConfig, **where: Any) -> TrainData:
    data = make_loaders(config, one_window(config.train, {"next_obs"}), CPU, **where)
    cache = data.train.dataset.store.cache
    if cache is not None and cache.maps is not None:
        assert cache.maps.ready.wait(DEADLINE_S)
    return data


def flat(batch: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in batch.items():
        if isinstance(value, dict):
            yield from flat(value, f"{key}/")
        else:
            yield f"{above}{key}", value


def served(data: TrainData) -> list[list[tuple[str, Tensor]]]:
    """All batches of two epochs, of training and validation."""
    sides = [data.train] + ([data.valid] if data.valid is not None else [])
    return [
        [*flat(batch), ("count", torch.tensor([count, total]))]
        for side, epoch in itertools.product(sides, (1, 2))
        for batch, count, total in side.epoch(epoch)
    ]


def assert_equal_data(one: TrainData, other: TrainData) -> None:
    for a, b in zip(served(one), served(other), strict=True):
        assert [key for key, _ in a] == [key for key, _ in b]
        for (key, x), (_, y) in zip(a, b, strict=True):
            assert x.dtype == y.dtype, key
            assert torch.equal(x, y), key
    for name in ("obs_normalization_stats", "action_normalization_stats"):
        stats, others = getattr(one, name), getattr(other, name)
        assert (stats is None) == (others is None)
        for key in stats or {}:
            for part in ("offset", "scale"):
                np.testing.assert_array_equal(stats[key][part], others[key][part])
    np.testing.assert_array_equal(one.action_range, other.action_range)


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "float64": {"train.dtype": "float64"},
    "sequences": {"train.seq_length": 5, "train.frame_stack": 2},
    "goals": {"train.goal_mode": "last", "observation.modalities.goal.rgb": ["camera_1"]},
    "normalised": {"train.hdf5_normalize_obs": True},
    "validated": {"experiment.validate": True, "train.validation_fraction": 0.3},
    "filtered": {
        "experiment.validate": True,
        "train.hdf5_filter_key": "valid",
        "train.hdf5_validation_filter_key": "train",
        "train.batch_size": 2,
    },
    "actions": {"train.action_config": {"actions": {"normalization": "min_max"}}},
}


@pytest.mark.parametrize("mode", ["low_dim", None])
@pytest.mark.parametrize("name", SETTINGS)
def test_batches_and_statistics_are_those_of_data_in_memory(
    path: Path, shared: Path, reader: str, name: str, mode: str | None, monkeypatch: Any
) -> None:
    monkeypatch.setenv("RAYMIMIC_CACHE", str(shared))
    placements = ["replicate"] if name == "filtered" else ["replicate", "shard"]
    for placed, rank in itertools.product(placements, range(2)):
        where = {"rank": rank, "world_size": 2}
        settings = {**SETTINGS[name], "ray.data_placement": placed}
        cached = loaders(config_for(path, mode, **settings), **where)
        columns = cached.train.dataset.store.columns
        on_disk = {key for key, x in columns.items() if isinstance(x, read.CachedColumn)}
        assert on_disk == (IMAGES if mode == "low_dim" else columns.keys())
        assert_equal_data(cached, loaders(config_for(path, "all", **settings), **where))


@pytest.mark.parametrize("mode", ["low_dim", None])
def test_several_datasets_share_batches(tmp_path: Path, reader: str, mode: str | None) -> None:
    options: dict[str, Any] = {"sizes": [(12, 10), (8, 8)], "next_obs": False}
    a = write_cameras(tmp_path / "a.hdf5", [9, 30], **options)
    b = write_cameras(tmp_path / "b.hdf5", [20, 5, 14], **options)
    entries = [
        {"path": str(a), "weight": 2.0},
        {"path": str(b), "filter_key": "valid"},
        {"path": str(b), "demo_limit": 2, "weight": 0.5},
    ]
    settings = {"train.seq_length": 3, "train.normalize_weights_by_ds_size": True}
    settings["experiment.epoch_every_n_steps"] = 20
    cached = loaders(config_for(entries, mode, **settings))
    assert_equal_data(cached, loaders(config_for(entries, "all", **settings)))


@pytest.mark.parametrize("mode", ["low_dim", None])
def test_of_several_datasets_those_that_fit_are_mapped_and_others_are_read(
    tmp_path: Path, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"next_obs": False}
    large = write_cameras(tmp_path / "large.hdf5", [90, 30], **options)
    small = write_cameras(tmp_path / "small.hdf5", [9, 12], **options)
    images = 21 * (12 * 10 * 3 + 8 * 8 * 3)
    monkeypatch.setattr(read, "free_memory", lambda: 3 * images)
    entries = [{"path": str(large)}, {"path": str(small), "weight": 2.0}]
    settings = {"train.seq_length": 3, "experiment.epoch_every_n_steps": 20}
    cached = loaders(config_for(entries, mode, **settings))
    cache = cached.train.dataset.store.cache
    assert cache is not None
    for key in ("obs/camera_0", "obs/camera_1"):
        is_mapped = [cache.maps.of(opened) is not None for opened in cache.files[key]]
        assert is_mapped == [False, True]
    assert " kB of the cache are mapped, " in cached.place
    assert_equal_data(cached, loaders(config_for(entries, "all", **settings)))


def test_instructions_of_one_file_stay_apart(path: Path) -> None:
    entries = [
        {"path": str(path), "filter_key": "train", "lang": "lift"},
        {"path": str(path), "filter_key": "valid", "lang": "stack"},
    ]
    settings = {"observation.modalities.obs.lang": ["lang_emb"], "train.text_encoder": "here"}
    language = {"lift": [1.0, 2.0], "stack": [3.0, 4.0]}
    cached = loaders(config_for(entries, None, **settings), language=language)
    assert_equal_data(cached, loaders(config_for(entries, "all", **settings), language=language))
    found = cached.train.dataset.store.columns["obs/lang_emb"][:]
    assert found.unique(dim=0).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert len(found) == 100


def test_a_large_file_that_was_written_again_gets_a_new_cache(
    tmp_path: Path, reads: list[tuple[str, str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its digest is of samples, which may miss a change.
    monkeypatch.setattr("raymimic.data.metadata._DIGEST_WHOLE_BYTES", 1)
    monkeypatch.setattr("raymimic.data.metadata._DIGEST_BLOCK_BYTES", 1)
    path = write_cameras(tmp_path / "cameras.hdf5")
    cache_of(path)
    once = len(reads)
    cache_of(path)
    assert len(reads) == once
    os.utime(path)
    cache_of(path)
    assert len(reads) == 2 * once
    os.utime(path)
    with pytest.raises(DatasetError, match="was changed while it was read"):
        cache_of(path, say=lambda text: os.utime(path))


@pytest.mark.parametrize("place", ["file", "below a file"])
def test_a_folder_that_cannot_be_used_is_said(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAYMIMIC_CACHE", str(tmp_path / "file" / ("" if place == "file" else "x")))
    data = loaders(config_for(path, None))
    assert data.place.endswith("or fix this one: the data are in memory instead")
    assert not data.train.dataset.store.is_cached


def test_a_second_training_reads_the_cache_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    first = served(loaders(config_for(path, None)))
    monkeypatch.setattr(build, "_build", None)
    again = served(loaders(config_for(path, None)))
    for a, b in zip(first, again, strict=True):
        assert all(torch.equal(x, y) for (_, x), (_, y) in zip(a, b, strict=True))
    assert {file.suffix for file in folder.iterdir()} == {".column", ".lock", ""}
    assert all(not file.stat().st_mode & 0o077 for file in folder.glob("*.column"))


# -- building --


def cache_of(path: Path, **settings: Any) -> DemoCache:
    """The columns of one camera and of vectors."""
    layout = scan([DemoSource(str(path))], REQUEST)
    return DemoCache.open([layout], set(layout.columns), np.float32, **settings)


def rows_of(cache: DemoCache, path: Path, key: str = "obs/camera_0") -> Tensor:
    layout = scan([DemoSource(str(path))], REQUEST)
    return cache.take(layout.demos)[key][:]


def frames_of(path: Path, key: str = "obs/camera_0") -> Tensor:
    with h5py.File(path) as file:
        return torch.from_numpy(np.concatenate([demo[key][()] for demo in file["data"].values()]))


def forked(work: Callable[[], object], folder: Path) -> int:
    """Does work in a process of its own, with a cache in a folder; returns its number."""
    child = os.fork()
    if child:
        return child
    try:
        os.environ["RAYMIMIC_CACHE"] = str(folder)
        work()
        os._exit(0)
    finally:
        os._exit(1)


@pytest.fixture(scope="module")
def left(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a builder that was killed once it had finished two of three demos."""
    folder = tmp_path_factory.mktemp("left")

    def die(text: str) -> None:
        if ": 2 of" in text:
            os.kill(os.getpid(), signal.SIGKILL)

    _, status = os.waitpid(forked(lambda: cache_of(path, say=die), folder), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    return folder / "columns"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """Notes demo, key and first row of each read of a builder in this process."""
    noted = []
    original = build.read_rows

    def note(demo: Any, opened: Any, key: str, column: Any, out: Any, rows: slice) -> None:
        noted.append((demo.name, key, rows.start))
        original(demo, opened, key, column, out, rows)

    monkeypatch.setattr(build, "read_rows", note)
    return noted


def test_a_killed_build_goes_on_after_its_last_demo(
    path: Path, left: Path, folder: Path, reads: list[tuple[str, str, int]]
) -> None:
    shutil.copytree(left, folder)
    assert {entry.is_whole for entry in entries()} == {False}
    cache = cache_of(path)
    assert {demo for demo, _, _ in reads} == {"demo_2"}
    assert torch.equal(rows_of(cache, path), frames_of(path))
    assert not [*folder.glob("*.partial"), *folder.glob("*.ledger")]
    cache_of(path)
    assert {demo for demo, _, _ in reads} == {"demo_2"}


@pytest.mark.parametrize("damage", ["rows", "ledger", "cut", "other"])
def test_what_a_killed_builder_left_is_not_trusted(
    path: Path, left: Path, folder: Path, reads: list[tuple[str, str, int]], damage: str
) -> None:
    shutil.copytree(left, folder)
    for partial in folder.glob("*.partial"):
        ledger = partial.with_suffix(".ledger")
        lines = ledger.read_text().splitlines()
        if damage == "rows":  # of the second demo: its first row is number 30
            data = bytearray(partial.read_bytes())
            data[4096 + 30 * (len(data) - 4096) // 100] ^= 1
            partial.write_bytes(data)
        elif damage == "ledger":
            ledger.write_text("\n".join([*lines[:2], lines[2][:9]]))
        elif damage == "cut":
            os.truncate(partial, 4096 + 35 * (partial.stat().st_size - 4096) // 100)
        else:
            ledger.write_text("\n".join(["{}", *lines[1:]]))
    assert torch.equal(rows_of(cache_of(path), path), frames_of(path))
    redone = {"demo_1", "demo_2"} | ({"demo_0"} if damage == "other" else set())
    assert {demo for demo, _, _ in reads} == redone


def test_large_demos_are_read_in_parts_of_whole_chunks(
    path: Path, reads: list[tuple[str, str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_BLOCK_BYTES", 10 * 12 * 10 * 3)  # rows; chunks have 7
    cache = cache_of(path)
    of_demo = [start for demo, key, start in reads if (demo, key) == ("demo_1", "obs/camera_0")]
    assert of_demo == [0, 14, 28]
    assert torch.equal(rows_of(cache, path), frames_of(path))


def test_of_many_workers_one_builds(path: Path, folder: Path, tmp_path: Path) -> None:
    def work() -> None:
        with pytest.MonkeyPatch.context() as patch:
            original = build._build
            patch.setattr(build, "_build", lambda *a: [built.append(1), original(*a)])
            built: list[int] = []
            assert torch.equal(rows_of(cache_of(path), path), frames_of(path))
        (tmp_path / f"built_{os.getpid()}").write_text(str(len(built)))

    workers = [forked(work, folder.parent) for _ in range(4)]
    assert [os.waitpid(worker, 0)[1] for worker in workers] == [0] * 4
    built = sorted(file.read_text() for file in tmp_path.glob("built_*"))
    assert built == ["0", "0", "0", "1"]


@pytest.mark.slow
def test_a_killed_builder_is_taken_over_by_one_that_waits(path: Path, folder: Path) -> None:
    program = (
        "import sys, time; sys.path[:0] = ['tests', 'tests/unit']; import test_cache as t;"
        f"t.cache_of(t.Path({str(path)!r}), say=lambda text:"
        " ': 1 of' in text and [print(flush=True), time.sleep(1000)])"
    )
    env = {**os.environ, "RAYMIMIC_CACHE": str(folder.parent)}
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        env=env,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout.readline()
            said: list[str] = []
            thread = threading.Thread(target=cache_of, args=(path,), kwargs={"say": said.append})
            thread.start()
            wait_for(lambda: "caching cameras.hdf5: 1 of 3 demos" in said, "a waiting builder")
            assert {entry.in_use for entry in entries()} == {True}
        finally:
            process.kill()
    thread.join(DEADLINE_S)
    assert "caching cameras.hdf5: 2 of 3 demos" in said
    assert torch.equal(rows_of(cache_of(path), path), frames_of(path))


def test_a_builder_that_is_stuck_is_named(
    path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_STUCK_S", 0.1)
    folder.mkdir(parents=True)

    def build_another(text: str) -> None:
        if ": 1 of" in text:
            with pytest.raises(DatasetError, match=rf"process {os.getpid()} builds its cache"):
                cache_of(path)

    cache_of(path, say=build_another)


@pytest.mark.parametrize("damage", ["magic", "header", "cut", "grown", "empty", "text"])
def test_a_damaged_file_is_built_anew(
    path: Path, folder: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    cache_of(path)
    files = list(folder.glob("*.column"))
    for file in files:
        data = file.read_bytes()
        place = data.index(b'"shape"')
        changed = {
            "magic": b"x" + data[1:],
            "header": data[:place] + b"x" + data[place + 1 :],
            "cut": data[:-1],
            "grown": data + b"x",
            "empty": b"",
            "text": b"raymimic column\n" + b"\xff" * 100,
        }
        file.unlink()  # those in use are never changed
        file.write_bytes(changed[damage])
    assert torch.equal(rows_of(cache_of(path), path), frames_of(path))
    assert sum("is damaged" in record.getMessage() for record in caplog.records) == len(files)


def test_another_file_under_the_same_path_has_a_cache_of_its_own(tmp_path: Path) -> None:
    path = write_cameras(tmp_path / "cameras.hdf5")
    before = rows_of(cache_of(path), path)
    write_cameras(path, [31, 40, 30])
    after = rows_of(cache_of(path), path)
    assert len(before) == 100
    assert torch.equal(after, frames_of(path))


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, folder: Path) -> None:
    path = write_cameras(tmp_path / "cameras.hdf5")

    def change(text: str) -> None:
        if ": 1 of" in text:
            with path.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                last = file.read(1)
                file.seek(-1, os.SEEK_END)
                file.write(bytes([last[0] ^ 1]))

    with pytest.raises(DatasetError, match=r"cameras.hdf5' was changed while it was read"):
        cache_of(path, say=change)
    assert not entries()


def test_a_value_that_is_not_allowed_is_named_with_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_BLOCK_BYTES", 10 * 3 * 4)  # 10 rows of `flat`
    path = write_cameras(tmp_path / "cameras.hdf5")
    with h5py.File(path, "r+") as file:
        file["data/demo_1/obs/flat"][25] = np.nan
    with pytest.raises(DatasetError, match=r"demo 'demo_1': 'obs/flat' holds NaN.*row 25\)"):
        cache_of(path)
    assert not entries()


@pytest.mark.parametrize("mode", ["low_dim", None])
def test_next_obs_that_nobody_needs_and_cannot_be_read_is_left_out(
    tmp_path: Path, mode: str | None
) -> None:
    path = write_cameras(tmp_path / "cameras.hdf5")
    with h5py.File(path, "r+") as file:
        file["data/demo_1/next_obs/flat"][25] = np.nan
    for cached in (mode, "all"):
        config = config_for(path, cached)
        data = make_loaders(config, one_window(config.train), CPU)
        batch, _, _ = next(data.train.epoch(1))
        assert "next_obs" not in batch
        assert set(batch["obs"]) == {"flat", "camera_0", "camera_1"}


# -- room --


def test_a_full_disk_leaves_nothing_and_the_data_go_to_memory(path: Path, folder: Path) -> None:
    # A file that may not grow is refused as one on a full disk is, while rows are written.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        data = loaders(config_for(path, None))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert not entries()
    assert not data.train.dataset.store.is_cached
    assert "cannot be used: File too large" in data.place
    assert data.place.endswith(": the data are in memory instead")
    assert_equal_data(data, loaders(config_for(path, "all")))


def test_without_room_anywhere_one_sentence_names_both(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(room.LIMIT, "0.00001")
    monkeypatch.setattr("raymimic.data.columns.free_memory", lambda: 10_000)
    with pytest.raises(NoCacheError) as refused:
        loaders(config_for(path, "low_dim"))
    message = str(refused.value)
    assert message.startswith("the cache of the data takes 1")
    assert "all caches together may take 10.0 kB (RAYMIMIC_CACHE_GB)" in message
    assert "more than the 10,000 bytes (0.0 GB) that are free on this machine" in message


@pytest.mark.usefixtures("slow_disk")
def test_a_disk_that_is_tried_has_room_and_a_full_one_is_not_tried(
    smooth: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_of(smooth)
    gc.collect()
    for file in folder.glob("*.column"):
        os.truncate(file, 1 << 20)  # damaged, and in the way
    monkeypatch.setenv(room.LIMIT, "0.005")

    def full(place: Path) -> float:
        assert sum(x.stat().st_size for x in place.glob("*.column")) < 5 << 20
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(build, "disk_rate", full)
    cache = cache_of(smooth)
    assert torch.equal(rows_of(cache, smooth), frames_of(smooth))
    assert all(x.blocks is None for files in cache.files.values() for x in files)


def test_a_link_in_the_place_of_a_file_is_never_followed(path: Path, folder: Path) -> None:
    cache_of(path)
    for file in folder.glob("*.column"):
        file.rename(file.with_suffix(".moved"))
        file.symlink_to(file.with_suffix(".moved"))
    with pytest.raises(NoCacheError, match="cannot be used"):
        cache_of(path)


def test_a_limit_that_is_no_number_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(room.LIMIT, "much")
    with pytest.raises(ConfigError, match=r"RAYMIMIC_CACHE_GB is 'much'"):
        cache_of(path)


def test_those_not_used_for_longest_make_room_but_never_those_in_use(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_cameras(tmp_path / f"{i}.hdf5", [30 + i], [(60, 60)]) for i in range(4)]

    def held() -> set[str]:
        images = (entry for entry in entries() if "camera" in entry.content["column"])
        return {Path(entry.content["dataset"]).stem for entry in images}

    kept = cache_of(paths[0])
    size = sum(entry.size for entry in entries())
    monkeypatch.setenv(room.LIMIT, str(3.5 * size / 1e9))
    for i, other in enumerate(paths[1:3]):
        cache_of(other)
        for entry in entries():
            if entry.content["dataset"] == str(other):
                os.utime(entry.path, (i, i))
    assert held() == {"0", "1", "2"}
    cache_of(paths[3])
    assert held() == {"0", "2", "3"}
    monkeypatch.setenv(room.LIMIT, str(1.5 * size / 1e9))
    with pytest.raises(NoCacheError, match="all caches together may take"):
        cache_of(paths[1])
    assert held() == {"0", "2", "3"}  # nothing was deleted in vain
    assert torch.equal(rows_of(kept, paths[0]), frames_of(paths[0]))


# -- the place of data --

GB = 10**9


@pytest.mark.parametrize(
    ("free", "whole", "workers", "gpu", "cached", "said"),
    [
        (10 * GB, 20 * GB, 1, 0, set(), "the data take 2.0 GB: in memory, as memory has 10.0 GB"),
        (3 * GB, 20 * GB, 1, 0, {"obs/camera"}, "1.5 GB in the cache file and 500.0 MB in"),
        (10 * GB, 20 * GB, 8, 0, {"obs/camera"}, "1.5 GB in the cache file"),
        (0.5 * GB, 20 * GB, 1, 0, {"obs/camera", "obs/flat"}, "2.0 GB in the cache file, as"),
        (3 * GB, 20 * GB, 1, 2 * GB, set(), "the data take 2.0 GB: on the GPU"),
        (3 * GB, 20 * GB, 1, GB, {"obs/camera"}, "1.5 GB in the cache file"),
    ],
)
def test_auto_chooses_by_what_there_is(
    monkeypatch: pytest.MonkeyPatch,
    free: float,
    whole: float,
    workers: int,
    gpu: int,
    cached: set[str],
    said: str,
) -> None:
    monkeypatch.setattr(placement, "free_memory", lambda: int(free))
    monkeypatch.setattr(placement, "total_memory", lambda: int(whole))
    columns = {
        "obs/camera": read.Column(("obs/camera",), (), (50, 100, 3), image=True),
        "obs/flat": read.Column(("obs/flat",), (), (1250,)),
    }
    demo = read.DemoRef(None, "demo_0", 100_000)
    found = placement.place("auto", [([demo], columns)], np.float32, workers, gpu)
    assert found.cached == cached
    assert said in found.line


def test_robomimic_gets_a_mode_that_it_knows(path: Path) -> None:
    config = config_for(path, "auto")
    assert _robomimic_config(config)["train"]["hdf5_cache_mode"] == "low_dim"
    config.observation.modalities.obs.rgb = []
    assert _robomimic_config(config)["train"]["hdf5_cache_mode"] == "all"
    config = config_for(path, None)
    assert _robomimic_config(config)["train"]["hdf5_cache_mode"] is None


# -- ahead of the steps --


@pytest.fixture
def step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch is gathered by itself, as large ones are."""
    monkeypatch.setattr(loader, "_CHUNK_BYTES", {"cpu": 1})


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("raymimic-loader")]


@pytest.mark.usefixtures("step_by_step")
def test_batches_are_gathered_ahead_and_no_thread_is_left(path: Path) -> None:
    data = loaders(config_for(path, None))
    for seen, _ in enumerate(data.train.epoch(1)):
        assert threads() or seen == data.train.num_steps - 1
        if seen == 3:
            break
    del _
    next(data.train.epoch(1))
    assert not threads()


@pytest.mark.usefixtures("step_by_step")
@pytest.mark.parametrize("mode", ["all", None])
def test_an_epoch_needs_the_memory_of_three_batches(path: Path, mode: str | None) -> None:
    data = loaders(config_for(path, mode))
    places, others = set(), []
    for batch, _, _ in data.train.epoch(1):
        places.add(batch["obs"]["camera_0"].data_ptr())
        others.append(torch.empty_like(batch["obs"]["camera_0"]))  # takes what was let go
    assert len(others) == 12
    assert len(places) <= 3  # one is gathered, one waits, one is used


@pytest.mark.usefixtures("step_by_step")
def test_an_error_of_the_thread_is_raised_by_the_step_that_needs_the_batch(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = loaders(config_for(path, None))
    gather, calls = data.train.dataset.gather, []

    def fail(indices: Tensor) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise OSError("the disk is gone")
        return gather(indices)

    monkeypatch.setattr(data.train.dataset, "gather", fail)
    steps = data.train.epoch(1)
    for _ in range(3):
        next(steps)
    with pytest.raises(OSError, match="the disk is gone"):
        next(steps)
    assert not threads()


def test_a_file_that_is_cut_while_it_is_read_is_named(
    path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "_MAX_SHARE", 0)
    cache = cache_of(path)
    for file in folder.glob("*.column"):
        os.truncate(file, 5000)
    with pytest.raises(DatasetError, match=r"'obs/camera_0' cannot be read \(it was cut\)"):
        rows_of(cache, path)


def test_rows_beyond_the_data_are_an_error(path: Path, reader: str) -> None:
    column = cache_of(path).take(scan([DemoSource(str(path))], REQUEST).demos)["obs/flat"]
    for rows in ([100], [-1]):
        with pytest.raises(IndexError):
            column.take_into(torch.tensor(rows), torch.empty(1, *column.shape[1:]))


# -- compressed columns --


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data do not fit into memory, the disk reads 1 kB/s, and a third of that is enough."""
    monkeypatch.setattr(read, "_MAX_SHARE", 0)
    monkeypatch.setattr(packing, "_LEAST_GAIN", 0.3)
    monkeypatch.setattr(build, "disk_rate", lambda folder: 1e3)
    monkeypatch.setattr(build, "LEAST_ROW_BYTES", 8 * 8 * 3)


@pytest.fixture(scope="module")
def smooth(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames of few colours, but for one demo of noise, whose blocks do not get smaller."""
    copy = Path(shutil.copy(path, tmp_path_factory.mktemp("smooth")))
    with h5py.File(copy, "r+") as file:
        for demo in ("demo_0", "demo_2"):
            for group in ("obs", "next_obs"):
                for camera in ("camera_0", "camera_1"):
                    file[f"data/{demo}/{group}/{camera}"][:, 1:] = 7
    return copy


@pytest.mark.usefixtures("slow_disk")
@pytest.mark.parametrize("name", ["plain", "sequences", "goals", "validated"])
def test_compressed_columns_give_the_same_batches(
    smooth: Path, shared: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYMIMIC_CACHE", str(shared))
    for placed in ("replicate", "shard"):
        where = {"rank": 1, "world_size": 2}
        settings = {**SETTINGS[name], "ray.data_placement": placed}
        cached = loaders(config_for(smooth, None, **settings), **where)
        files = cached.train.dataset.store.cache.files
        assert {key for key, (file,) in files.items() if file.blocks is not None} == IMAGES
        assert_equal_data(cached, loaders(config_for(smooth, "all", **settings), **where))
    assert "; the cache is read; 4 of 9 columns are compressed from 126.8 kB to " in cached.place
    assert ", as the disk reads 1.0 kB/s and a core unpacks " in cached.place
    noise = 40 * (12 * 10 * 3 + 8 * 8 * 3) * 2
    packed = sum(int(file.blocks[-1, 1]) for key in IMAGES for file in files[key])
    assert noise < packed < 1.3 * noise


@pytest.mark.usefixtures("slow_disk")
def test_columns_that_do_not_get_smaller_stay_as_they_are(path: Path) -> None:
    assert {x.blocks for (x,) in cache_of(path).files.values()} == {None}


@pytest.mark.usefixtures("slow_disk")
@pytest.mark.parametrize("damage", [False, True])
def test_a_killed_build_of_compressed_columns_goes_on(
    smooth: Path, folder: Path, reads: list[tuple[str, str, int]], damage: bool
) -> None:
    def die(text: str) -> None:
        if ": 2 of" in text:
            os.kill(os.getpid(), signal.SIGKILL)

    _, status = os.waitpid(forked(lambda: cache_of(smooth, say=die), folder.parent), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    for partial in folder.glob("*.partial") if damage else ():
        with partial.open("r+b") as file:
            file.seek(4096)
            file.write(b"damage")
    cache = cache_of(smooth)
    redone = {demo for demo, _, _ in reads[2:]}  # two cameras were tried
    assert redone == ({"demo_0", "demo_1", "demo_2"} if damage else {"demo_2"})
    assert cache.files["obs/camera_0"][0].blocks is not None
    assert torch.equal(rows_of(cache, smooth), frames_of(smooth))


@pytest.mark.usefixtures("slow_disk")
@pytest.mark.parametrize("place", ["index", "block"])
def test_damage_of_compressed_columns_is_noticed(
    smooth: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    (opened,) = cache_of(smooth).files["obs/camera_0"]
    end = int(opened.blocks[1, 1])
    with opened.file.path().open("r+b") as file:  # a few bits, which Zstandard itself takes
        at = -16 if place == "index" else opened.file.offset + end // 2
        file.seek(at, 0 if place == "block" else 2)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 16]))
    cache = cache_of(smooth)
    if place == "block":
        with pytest.raises(DatasetError, match=r"'obs/camera_0' cannot be read \(the block of row"):
            rows_of(cache, smooth)
        return
    assert "is damaged (the index of its blocks is damaged)" in caplog.text
    assert torch.equal(rows_of(cache, smooth), frames_of(smooth))


@pytest.mark.parametrize(
    ("found", "pays"),
    [
        (packing.Gain(ratio=4.0, unpacked=1.4e9, disk=0.5e9, cores=1, window=10), True),
        (packing.Gain(ratio=4.0, unpacked=1.4e9, disk=1.0e9, cores=1, window=10), False),
        (packing.Gain(ratio=4.0, unpacked=1.4e9, disk=3.0e9, cores=4, window=10), True),
        (packing.Gain(ratio=1.4, unpacked=1.4e9, disk=0.1e9, cores=8, window=10), False),
        (packing.Gain(ratio=4.0, unpacked=1.4e9, disk=0.1e9, cores=8, window=1), False),
    ],
)
def test_rows_are_compressed_where_disk_and_processor_make_that_quicker(
    found: packing.Gain, pays: bool
) -> None:
    assert found.pays == pays


def test_disk_and_compression_are_measured(tmp_path: Path) -> None:
    disk = packing.disk_rate(tmp_path)
    assert disk > 0
    assert not list(tmp_path.iterdir())
    frames = np.zeros((30, 84, 84, 3), np.uint8)
    frames[:, :42] = np.random.default_rng(0).integers(0, 256, (42, 84, 3))  # the same in each
    found = packing.gain(frames, disk, window=2)
    assert 6 < found.ratio < 9  # half of one frame of the four of a block
    assert found.unpacked > 0
    assert (found.disk, found.window) == (disk, 2)


# -- raymimic dataset cache --


def test_the_command_lists_and_clears(
    path: Path, folder: Path, cli: Callable[..., Ran], left: Path
) -> None:
    ran = cli("dataset", "cache", "--list")
    assert (ran.status, ran.out) == (0, f"{folder}: 0.0 kB\n")
    assert cli("dataset", "cache", "--clear").out == f"deleted 0.0 kB from {folder}\n"
    shutil.copytree(left, folder)
    found = json.loads(cli("dataset", "cache", "--list", "--json").out)
    assert found["datasets"][0]["unfinished"] == 7
    cache = cache_of(path)
    found = json.loads(cli("dataset", "cache", "--list", "--json").out)
    (dataset,) = found["datasets"]
    assert (dataset["dataset"], dataset["in_use"]) == (str(path), True)
    assert dataset["columns"] == sorted(cache.columns)
    assert (
        found["bytes"] == dataset["size"] == sum(x.stat().st_size for x in folder.glob("*.column"))
    )
    ran = cli("dataset", "cache", "--clear")
    assert ran.out.startswith(f"deleted 0.0 kB from {folder}\nin use, not deleted: {path}: ")
    assert torch.equal(rows_of(cache, path), frames_of(path))
    del cache
    gc.collect()
    (folder / "x.column").write_text("")  # nobody knows of what
    (folder / "y.column").symlink_to(path)
    lines = cli("dataset", "cache", "--list").out.splitlines()
    assert len(lines) == 3
    assert f"{path}: " in "".join(lines)
    assert " s ago, 7 columns: actions, dones, next_obs/camera_0" in "".join(lines)
    assert cli("dataset", "cache", "--clear").status == 0
    assert not entries()
    assert path.exists()


def test_the_command_asks_for_one_of_both(cli: Callable[..., Ran]) -> None:
    ran = cli("dataset", "cache")
    assert ran.status == 2
    assert "one of the arguments --list --clear is required" in ran.err
