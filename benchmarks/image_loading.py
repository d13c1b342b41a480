#!/usr/bin/env python3
"""Speed and memory of loading windows of images from files of the cache.

Two cameras of 84 x 84, batches of 64 windows of T steps. One dataset is written as robomimic's
`dataset_states_to_obs --compress` writes it (gzip, h5py's own chunks), and read in two ways:

- `robomimic`: each window of each camera by a read of the compressed file, as robomimic does with
  `hdf5_cache_mode` "low_dim"; without its other work and without processes that help;
- `raymimic`: the batches of `raymimic.data.loader.Loader` with `hdf5_cache_mode` "low_dim".

`gather` takes windows into buffers of the loader that are there already, on one thread, each page
touched before; `copy` copies as many bytes from one buffer to another, which is the least that it
can take.
`cold` reads batches of files that the system was told to forget (`posix_fadvise`), beside one read
of the same files in order. `packed` are the same figures of files whose rows are compressed.
`waits` is the share of time that a loop waits for batches which does nothing else for 10 ms a
batch; the cold one forgets the files again and again, as if they were larger than memory. Its
`bound` is the share that remains if rows that are not compressed come as quickly as the disk gives
anything. `choice` tells how raymimic itself would store the columns here. `memory` runs both kinds
under a limit of anonymous memory (RLIMIT_DATA), that after imports and a bound: 1.3 times the
images in memory, and 2 GiB and two batches with files that do not fit.

CPU seconds are of the process with all its threads: other programs change them less than seconds of
the clock. The last line is JSON.

usage: image_loading.py [--frames 20000] [--folder FOLDER]
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from raymimic.config import BaseConfig, config_factory
from raymimic.data.buffers import Buffers
from raymimic.data.cache import build, packing, read
from raymimic.data.reads import one_window
from raymimic.data.training_data import TrainData, make_loaders

SIDE, CAMERAS, BATCH, LENGTH = 84, 2, 64, 200
FRAME = SIDE * SIDE * 3
STEP_S = 0.010
LEAST_GAIN = packing._LEAST_GAIN


def write_dataset(path: Path, frames: int) -> None:
    """Smooth backgrounds, a moving square and a little noise: gzip makes them a fifth as large."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    with h5py.File(path, "w") as file:
        for i in range(frames // LENGTH):
            demo = file.create_group(f"data/demo_{i}")
            demo.attrs["num_samples"] = LENGTH
            for camera in range(CAMERAS):
                images = np.empty((LENGTH, SIDE, SIDE, 3), np.uint8)
                images[:] = np.stack([x, y, x + y], -1) + 10 * camera
                for t, (top, left) in enumerate(rng.integers(0, SIDE - 12, (LENGTH, 2))):
                    images[t, top : top + 12, left : left + 12] = 200
                images += rng.random(images.shape) < 0.05
                demo.create_dataset(f"obs/camera_{camera}", data=images, compression="gzip")
            demo["obs/vector"] = rng.standard_normal((LENGTH, 9), dtype=np.float32)
            demo["actions"] = rng.uniform(-1, 1, (LENGTH, 7)).astype(np.float32)


def config_for(path: Path, steps: int, mode: str | None = "low_dim") -> BaseConfig:
    config = config_factory("bc")
    config.train.data, config.train.batch_size = str(path), BATCH
    config.train.hdf5_cache_mode, config.train.seq_length = mode, steps
    config.experiment.rollout.enabled = False
    config.observation.modalities.obs.low_dim = ["vector"]
    config.observation.modalities.obs.rgb = [f"camera_{i}" for i in range(CAMERAS)]
    return config


def load(
    path: Path, steps: int, fits: bool = True, mode: str | None = "low_dim", packed: bool = False
) -> TrainData:
    config = config_for(path, steps, mode)
    read.free_memory = (lambda: 1 << 50) if fits else (lambda: 0)  # whether files are mapped
    build.disk_rate = lambda folder: 1.0 if packed else 1e18  # whether they are compressed,
    packing._LEAST_GAIN = 0.5  # be the windows as short as they are
    data = make_loaders(config, one_window(config.train), torch.device("cpu"))
    cache = data.train.dataset.store.cache
    if cache is not None and cache.maps is not None:
        cache.maps.ready.wait()
    return data


def batches(data: TrainData) -> Iterator[Any]:
    for epoch in range(1, 1 << 30):
        yield from data.train.epoch(epoch)


def measured(work: Callable[[], object], times: int) -> tuple[float, float]:
    """CPU seconds of the process, and seconds of the clock, of one call."""
    clock, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - cpu) / times, (time.perf_counter() - clock) / times


def robomimic_way(path: Path, steps: int, times: int) -> tuple[float, float]:
    """Seconds of a batch that is read from the compressed file."""
    rng = np.random.default_rng(1)
    with h5py.File(path, "r", swmr=True) as file:
        demos = [file[f"data/{name}"] for name in file["data"]]

        def batch() -> None:
            windows: dict[str, list[Any]] = {f"obs/camera_{i}": [] for i in range(CAMERAS)}
            for _ in range(BATCH):
                demo, start = demos[rng.integers(len(demos))], rng.integers(LENGTH - steps + 1)
                for key, found in windows.items():
                    found.append(demo[key][start : start + steps])
            for found in windows.values():
                torch.from_numpy(np.stack(found))

        batch()
        return measured(batch, times)


def loader_way(data: TrainData, times: int) -> tuple[float, float]:
    """Seconds of a batch of the loader, whose thread ends with it."""
    stream = batches(data)
    for _ in range(10):
        next(stream)
    found = measured(lambda: next(stream), times)
    stream.close()
    return found


def gather_way(data: TrainData, steps: int, times: int) -> tuple[float, float]:
    """Seconds to gather the images of a batch into buffers that are there already."""
    columns = data.train.dataset.store.columns
    cameras = [columns[f"obs/camera_{i}"] for i in range(CAMERAS)]
    shape = (BATCH * steps, SIDE, SIDE, 3)
    buffers = [Buffers().empty(shape, torch.uint8) for _ in cameras]
    rng = np.random.default_rng(2)
    demos = len(cameras[0]) // LENGTH

    def batch() -> None:
        first = rng.integers(demos, size=BATCH) * LENGTH
        first += rng.integers(LENGTH - steps + 1, size=BATCH)
        rows = torch.from_numpy((first[:, None] + np.arange(steps)).reshape(-1))
        for camera, buffer in zip(cameras, buffers, strict=True):
            assert isinstance(camera, read.CachedColumn)
            camera.take_into(rows, buffer)

    for _ in range(20):
        batch()
    return measured(batch, times)


def copy_way(steps: int, times: int) -> tuple[float, float]:
    """Seconds to copy as many bytes as a batch has."""
    source, target = np.ones((2, CAMERAS * BATCH * steps * FRAME), np.uint8)
    return measured(lambda: np.copyto(target, source), times)


def files_of(data: TrainData) -> list[Path]:
    cache = data.train.dataset.store.cache
    assert cache is not None
    return [opened.file.path() for files in cache.files.values() for opened in files]


def forget(files: list[Path]) -> None:
    for file in files:
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_order(files: list[Path]) -> float:
    """Bytes per second of one read of all files."""
    forget(files)
    begin, size, buffer = time.perf_counter(), 0, bytearray(1 << 23)
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while count := stream.readinto(buffer):
                size += count
    return size / (time.perf_counter() - begin)


def cold(data: TrainData, steps: int, times: int) -> tuple[float, float]:
    """Bytes per second of batches of forgotten files, and of a read of the same in order."""
    files = files_of(data)
    forget(files)
    indices = np.random.default_rng(3).integers(data.train.num_samples, size=(times, BATCH))
    begin = time.perf_counter()
    for batch in torch.from_numpy(indices):
        data.train.dataset.gather(batch)
    rate = times * BATCH * steps * CAMERAS * FRAME / (time.perf_counter() - begin)
    return rate, in_order(files)


def waits(data: TrainData, times: int, is_cold: bool) -> float:
    """Share of the time that a loop waits for batches."""
    files = files_of(data)
    stream = batches(data)
    next(stream)
    waited, begin = 0.0, time.perf_counter()
    forgetting = 0.0
    for i in range(times):
        if is_cold and i % 10 == 0:
            start = time.perf_counter()
            forget(files)
            forgetting += time.perf_counter() - start
        start = time.perf_counter()
        next(stream)
        waited += time.perf_counter() - start
        time.sleep(STEP_S)
    stream.close()
    return waited / (time.perf_counter() - begin - forgetting)


def bound(steps: int, disk: float) -> float:
    """Least share of the time that a loop waits which reads each batch from the disk."""
    seconds = BATCH * steps * CAMERAS * FRAME / disk
    return max(0.0, 1 - STEP_S / seconds)


def packed_figures(path: Path, folder: Path, steps: int, frames: int) -> dict[str, float]:
    """The figures of files whose rows are compressed."""
    common, os.environ["RAYMIMIC_CACHE"] = os.environ["RAYMIMIC_CACHE"], str(folder / "packed")
    data = load(path, steps, fits=False, packed=True)
    os.environ["RAYMIMIC_CACHE"] = common
    files = data.train.dataset.store.cache.files
    size = sum(int(x.blocks[-1, 1]) for column in files.values() for x in column)
    cpu, _ = loader_way(data, 50)
    random, _ = cold(data, steps, 4 * frames // (BATCH * steps * 10))
    return {
        "packed_ratio": frames * CAMERAS * FRAME / size,
        "packed_loader_ms": 1e3 * cpu,
        "packed_cold_mb_per_s": random / 1e6,
        "packed_waits_cold": waits(data, 100, is_cold=True),
    }


def choice(path: Path, steps: int, disk: float) -> dict[str, Any]:
    """How raymimic would store the columns if they did not fit into memory."""
    packing._LEAST_GAIN = LEAST_GAIN
    with h5py.File(path) as file:
        found = packing.gain(file["data/demo_0/obs/camera_0"][()], disk, steps)
    return {**found._asdict(), "packed": found.pays}


def under_limit(path: Path, mode: str, fits: bool, bound: int) -> None:
    """Loads and serves 50 batches of T=10 within a bound of anonymous memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    held = 1024 * next(int(x.split()[1]) for x in lines if x.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (held + bound, held + bound))
    stream = batches(load(path, 10, fits, None if mode == "null" else mode))
    for _ in range(50):
        next(stream)
    stream.close()


def memory(path: Path, images: int) -> dict[str, bool]:
    """Whether each way stays within its bound; the caches are there already."""
    two_batches = 2 * BATCH * 10 * CAMERAS * FRAME
    cases = {
        "in memory, 1.3 x images": ("all", True, int(1.3 * images)),
        "mapped, 1.3 x images": ("null", True, int(1.3 * images)),
        "read, 2 GiB + 2 batches": ("null", False, (2 << 30) + two_batches),
        "read, 1/4 GiB + 2 batches": ("null", False, (1 << 28) + two_batches),
    }
    found = {}
    for name, (mode, fits, bound) in cases.items():
        call = f"il.under_limit(Path({str(path)!r}), {mode!r}, {fits}, {bound})"
        program = f"import image_loading as il; from pathlib import Path; {call}"
        folder = Path(__file__).parent
        ended = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True)
        found[name] = ended.returncode == 0
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=20_000, help="of each camera")
    parser.add_argument("--folder", help="for dataset and cache: a disk (default: temporary)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        os.environ["RAYMIMIC_CACHE"] = folder
        path, images = Path(folder) / "cameras.hdf5", args.frames * CAMERAS * FRAME
        write_dataset(path, args.frames)
        stored = path.stat().st_size
        cpu, clock = measured(lambda: load(path, 1), 1)
        print(
            f"{images / 1e6:.0f} MB of images in {stored / 1e6:.0f} MB;"
            f" the cache takes {clock:.1f} s"
        )
        results["build"] = {"cpu_s": cpu, "s": clock, "mb_per_s": images / clock / 1e6}
        for steps in (1, 10):
            slow = robomimic_way(path, steps, times=5)
            data = load(path, steps)
            quick, gather = loader_way(data, 200), gather_way(data, steps, 200)
            data = load(path, steps, fits=False)
            by_reads = loader_way(data, 200)
            disk = packing.disk_rate(Path(folder))
            random, sequential = cold(data, steps, 4 * args.frames // (BATCH * steps * 10))
            found = {
                "robomimic_ms": 1e3 * slow[0],
                "loader_ms": 1e3 * quick[0],
                "times_robomimic": slow[0] / quick[0],
                "loader_by_reads_ms": 1e3 * by_reads[0],
                "gather_ms": 1e3 * gather[0],
                "copy_ms": 1e3 * copy_way(steps, 200)[0],
                "windows_per_s_and_core": BATCH / gather[0],
                "cold_mb_per_s": random / 1e6,
                "in_order_mb_per_s": sequential / 1e6,
                "cold_share": random / sequential,
                "waits_warm": waits(load(path, steps), 100, is_cold=False),
                "waits_cold": waits(data, 100, is_cold=True),
                "waits_cold_bound": bound(steps, max(disk, sequential)),
                "disk_mb_per_s": disk / 1e6,
                **packed_figures(path, Path(folder), steps, args.frames),
            }
            results[f"T={steps}"] = {key: float(f"{x:.3g}") for key, x in found.items()}
            results[f"T={steps}"]["choice"] = choice(path, steps, disk)
            print(f"T={steps}: {results[f'T={steps}']}", flush=True)
        results["memory"] = memory(path, images)
        print(f"memory: {results['memory']}")
    machine = platform.processor() or platform.machine()
    about = {"batch": BATCH, "frames": args.frames, "machine": machine}
    print(json.dumps({"results": results, **about, "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
