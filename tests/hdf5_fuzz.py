"""Changes HDF5 files at random and reads them.

`python hdf5_fuzz.py structure|bytes FIRST LAST FOLDER` prints of each file `N said "READ"`, `N said
"<the sentence>"` or, where bytes were changed and HDF5 itself crashed, `N killed SIGNAL`. Anything
else that raymimic raises is a traceback on stderr.
"""

import json
import logging
import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import torch
from demo_files import write_demos

from raymimic.config.base_config import config_factory
from raymimic.data.metadata import read_metadata
from raymimic.data.reads import one_window
from raymimic.data.training_data import make_loaders
from raymimic.errors import RaymimicError

NEEDS = (frozenset(), frozenset({"next_obs", "rewards", "dones"}))
DTYPES = (
    *("f2", "f4", ">f8", "i1", ">u8", "?", "c8", "S3", "V2", "f8"),
    *(np.longdouble, [("a", "f4"), ("b", "i2")], np.dtype(("f4", (2,)))),
    *(h5py.string_dtype(), h5py.vlen_dtype("f4"), h5py.ref_dtype, h5py.opaque_dtype("M8[s]")),
    h5py.enum_dtype({"A": 0, "B": 1}),
)
VALUES = (
    *(-1, 0, 3, 2**62, 2.5, np.nan, "", "5", "{}", b"\xff", [1], [], ["a", "b"], 1j, True),
    *('{"env_name": "Hopper-v5"}', "[" * 2000, h5py.Empty("f4"), np.zeros((2, 2)), "null"),
)
NAMES = ("flat", "demo_0", "demo_7", b"\xff", "a\nb", "mask", "..", "é", "obs", "x" * 300)
ACTIONS = (
    *("delete", "dataset", "fill", "attribute", "attribute", "soft", "external", "virtual"),
    *("raw", "rename", "group", "alias", "filter", "huge", "mask", "dtype", "rows"),
)
FILES = ("demos.hdf5", "other.hdf5", "none.hdf5", "../up.hdf5", "/etc/passwd", "", "text", "folder")


def paths(file: h5py.File) -> list[str]:
    found: list[str] = []
    file.visit(found.append)
    return [path for path in found if isinstance(path, str)]


def mutate(file: h5py.File, rng: np.random.Generator) -> None:
    """One change of the structure; some cannot be made, and do nothing."""

    def one(choices):
        return choices[rng.integers(len(choices))]

    path = one(paths(file))
    shape = tuple(int(n) for n in rng.integers(0, 8, rng.integers(0, 4)))
    action = one(ACTIONS)
    target = file if path == "" else file[path]
    if action == "attribute":
        name = one(["num_samples", "env_args", "total", "notes", "é\n"])
        place = one([file["data"], target, file["data/demo_0"], file["data/demo_1"]])
        place.attrs[name] = one(VALUES)
        return
    if action == "fill" and isinstance(target, h5py.Dataset) and target.size:
        target[...] = one([np.nan, np.inf, 1e300, -1, 300])
        return
    old = target[()] if isinstance(target, h5py.Dataset) else None
    if action == "rename":
        file.move(path, one(NAMES))
        return
    if action == "group":
        file.create_group(f"{one(['data', 'mask', path])}/{one(['new', 'demo_9', 'a/b/c'])}")
        return
    if action == "alias":
        file[f"{one(['data', 'mask', 'data/demo_0/obs'])}/alias"] = target
        return
    if action == "mask":
        path, old = "mask/some", None
    if path in file:
        del file[path]
    if action == "delete":
        return
    if action == "soft":
        file[path] = h5py.SoftLink(one([*paths(file), "/", path, "/none", ".", "..", "flat"]))
    elif action == "external":
        file[path] = h5py.ExternalLink(one(FILES), one([path, "/", "/none", "data/demo_1"]))
    elif action == "virtual":
        like = (7, 3) if old is None else old.shape
        layout = h5py.VirtualLayout(like, "f4")
        cut = slice(0, int(rng.integers(1, 8)))
        layout[cut] = h5py.VirtualSource(one(FILES), one([path, "data/demo_1/obs/flat"]), like)[cut]
        file.create_virtual_dataset(path, layout)
    elif action == "raw":
        file.create_dataset(path, (7, 3), "u1", external=[(one(["/etc/passwd", "none"]), 0, 21)])
    elif action == "filter":
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk((7, 3))
        settings.set_filter(int(rng.integers(256, 512)), h5py.h5z.FLAG_OPTIONAL)
        space = h5py.h5s.create_simple((7, 3))
        h5py.h5d.create(file.id, path.encode(), h5py.h5t.IEEE_F32LE, space, dcpl=settings)
    elif action == "huge":
        dims = tuple(int(n) for n in 2 ** rng.integers(0, 45, rng.integers(1, 4)))
        file.create_dataset(path, dims, one(["u1", "f8"]), chunks=(1,) * len(dims))
    elif action == "mask":
        names = [one(["demo_0", "demo_1", "demo_9", "é", ""]) for _ in range(rng.integers(4))]
        file[path] = np.array([name.encode("latin-1") for name in names], dtype="S8")
    elif action == "rows" and old is not None:
        file[path] = old[: len(old) // 2] if old.ndim else old
    else:
        file.create_dataset(path, shape if old is None else one([shape, old.shape]), one(DTYPES))


def flip(path: Path, rng: np.random.Generator) -> None:
    """Some changes of bytes: altered, overwritten by others, cut off."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.integers(1, 12)):
        at = int(rng.integers(len(content)))
        how = rng.integers(4)
        if how == 0:
            content[at] ^= 1 << rng.integers(8)
        elif how == 1:
            content[at : at + 8] = rng.bytes(8)
        elif how == 2:
            content[at] = rng.choice([0, 255, 127, 128])
        else:
            begin = int(rng.integers(len(content)))
            content[at : at + 16] = content[begin : begin + 16]
    if rng.integers(20) == 0:
        del content[int(rng.integers(len(content))) :]
    path.write_bytes(content)


def write_base(folder: Path, rng: np.random.Generator) -> Path:
    """A dataset that trains, in one of HDF5's two formats, with links, chunks and compression."""
    path = write_demos(folder / "plain.hdf5", masks={"train": ["demo_0", "demo_1"]})
    made = folder / "demos.hdf5"
    latest = bool(rng.integers(2))
    with (
        h5py.File(path) as plain,
        h5py.File(made, "w", libver="latest" if latest else None) as file,
    ):
        plain.copy("data", file)
        plain.copy("mask", file)
        demo = file["data/demo_1"]
        values = demo["obs/flat"][()]
        del demo["obs/flat"], file["data/demo_2/obs"]
        demo.create_dataset("obs/flat", data=values, chunks=(2, 3), compression="gzip")
        file["data/demo_2/obs"] = h5py.ExternalLink("other.hdf5", "data/demo_2/obs")
        rewards = h5py.VirtualLayout((7,), "f8")
        rewards[:] = h5py.VirtualSource("other.hdf5", "data/demo_1/rewards", (7,))
        del demo["rewards"]
        demo.create_virtual_dataset("rewards", rewards)
    return made


def read(path: Path, rng: np.random.Generator) -> str:
    """The result of a training's reading: `READ`, or one sentence."""
    config = config_factory("bc")
    config.train.data, config.train.batch_size = str(path), 2
    config.train.hdf5_filter_key = [*[None] * 5, "train", "train", "some"][rng.integers(8)]
    config.experiment.rollout.enabled = bool(rng.integers(2))
    config.observation.modalities.obs.low_dim = ["flat"]
    needs = NEEDS[rng.integers(2)]
    outcomes = []
    for action in (
        lambda: read_metadata(path),
        lambda: make_loaders(config, one_window(config.train, needs), torch.device("cpu")),
    ):
        try:
            result = action()
        except RaymimicError as error:
            message = str(error)
            assert message.isprintable(), repr(message)
            assert str(path.parent) in message, message
            outcomes.append(message)
        else:
            outcomes.append("READ")
    if outcomes[1] == "READ":
        batch, n, _ = next(result.train.epoch(1))
        assert n == 2
        assert batch["obs"]["flat"].isfinite().all()
        assert batch["actions"].shape[0] == 2
        assert needs <= batch.keys()
        assert result.digest.startswith("sha256")
    return outcomes[1]


def attempt(kind: str, seed: int, folder: Path) -> None:
    rng = np.random.default_rng([seed, len(kind)])
    write_demos(folder / "other.hdf5")
    path = write_base(folder, rng)
    if kind == "bytes":
        flip(folder / ["demos.hdf5", "demos.hdf5", "other.hdf5"][rng.integers(3)], rng)
    else:
        with h5py.File(path, "r+") as file:
            for _ in range(rng.integers(1, 4)):
                with suppress(Exception):  # h5py cannot write that
                    mutate(file, rng)
    print(f"{seed} said {json.dumps(read(path, rng))}", flush=True)


def main(kind: str, first: int, last: int, folder: Path) -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    (folder / "folder").mkdir(exist_ok=True)
    (folder / "text").write_text("no HDF5")
    for seed in range(first, last):
        if kind == "structure":
            attempt(kind, seed, folder)
            continue
        pid = os.fork()  # nothing is open, and there are no threads
        if pid == 0:
            signal.alarm(30)
            try:
                attempt(kind, seed, folder)
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            print(f"{seed} killed {signal.Signals(os.WTERMSIG(status)).name}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
