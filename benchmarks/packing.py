#!/usr/bin/env python3
"""How far images of datasets are compressed without loss in the cache, and whether that pays here.

For each camera: the size as it is by that of compressed blocks, and the bytes that one core unpacks
in a second (best of five). Then the rate of the disk, and the windows of how many steps come more
quickly out of blocks. The last line is JSON.

usage: packing.py DATASET... [--folder FOLDER]
"""

import argparse
import json
from pathlib import Path

import h5py
import numpy as np

from raymimic.data.cache.packing import disk_rate, gain

WINDOWS = (1, 2, 4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("datasets", nargs="+", type=Path, help="HDF5 files with images")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on the disk of the cache")
    args = parser.parse_args()
    disk, found = disk_rate(args.folder), {}
    for path in args.datasets:
        with h5py.File(path) as file:
            demos = list(file["data"].values())[:10]
            cameras = [key for key, x in demos[0]["obs"].items() if x.ndim == 4]
            samples = {key: np.concatenate([x[f"obs/{key}"][()] for x in demos]) for key in cameras}
        for key, frames in samples.items():
            best = max((gain(frames, disk, 1) for _ in range(5)), key=lambda x: x.unpacked)
            found[f"{path.name} {key}"] = {
                "ratio": round(best.ratio, 2),
                "unpacked_mb_per_s": round(best.unpacked / 1e6),
                "pays_for_windows_of": [n for n in WINDOWS if best._replace(window=n).pays],
            }
            print(f"{path.name} {key}: {found[f'{path.name} {key}']}")
    print(json.dumps({"disk_mb_per_s": round(disk / 1e6), "images": found}))


if __name__ == "__main__":
    main()
