"""Five hundred mutated checkpoints: each is refused in one sentence, or loads equal."""

import io
import json
import pickletools
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Ran
from waiting import DEADLINE_S

TESTS = Path(__file__).parents[1]
OLD = TESTS / "golden" / "data" / "checkpoints" / "old"
FILES = 50  # of each kind

Records = dict[str, bytes]


@cache
def originals() -> list[bytes]:
    """Checkpoints of several algorithms; of one, the statistics are numpy's arrays."""
    found = [(OLD / f"{name}.pth").read_bytes() for name in ("0.3_bcq_gmm", "0.4_iql", "0.2_hbc")]
    ckpt = torch.load(OLD / "0.2_bc_norm.pth", weights_only=True)
    stats = ckpt["obs_normalization_stats"]
    ckpt["obs_normalization_stats"] = {
        key: {name: np.array(x) for name, x in entry.items()} for key, entry in stats.items()
    }
    file = io.BytesIO()
    torch.save(ckpt, file)
    return [*found, file.getvalue()]


def unpacked(data: bytes) -> Records:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(records: Records) -> bytes:
    """A zip of records, whose checksums are right."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return file.getvalue()


def pickle_of(records: Records) -> str:
    return next(name for name in records if name.endswith("/data.pkl"))


# -- mutations --


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    altered = bytearray(data)
    for _ in range(rng.choice([1, 1, 3, 100])):
        altered[rng.randrange(len(altered))] ^= 1 << rng.randrange(8)
    return bytes(altered)


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def swap_bytes(data: bytes, rng: random.Random) -> bytes:
    altered = bytearray(data)
    length = rng.choice([1, 16, 500])
    one, other = (rng.randrange(len(data) - length) for _ in range(2))
    altered[one : one + length], altered[other : other + length] = (
        data[other : other + length],
        data[one : one + length],
    )
    return bytes(altered)


def flip_bits_of_the_directory(data: bytes, rng: random.Random) -> bytes:
    altered = bytearray(data)
    begin = data.index(b"PK\x01\x02")
    for _ in range(rng.choice([1, 2])):
        altered[rng.randrange(begin, len(altered))] ^= 1 << rng.randrange(8)
    return bytes(altered)


def splice_pickles(data: bytes, rng: random.Random) -> bytes:
    records = unpacked(data)
    name = pickle_of(records)
    other = unpacked(rng.choice(originals()))
    here, there = records[name], other[pickle_of(other)]
    cut, at = rng.randrange(len(here)), rng.randrange(len(there))
    return packed({**records, name: here[:cut] + there[at:]})


def flip_bits_of_the_pickle(data: bytes, rng: random.Random) -> bytes:
    records = unpacked(data)
    name = pickle_of(records)
    altered = bytearray(records[name])
    for _ in range(rng.choice([1, 1, 2, 5])):
        altered[rng.randrange(len(altered))] ^= 1 << rng.randrange(8)
    return packed({**records, name: bytes(altered)})


def change_instructions(data: bytes, rng: random.Random) -> bytes:
    """Replaces, repeats or leaves out whole instructions of the pickle."""
    records = unpacked(data)
    name = pickle_of(records)
    program = records[name]
    starts = [position for _, _, position in pickletools.genops(program)] + [len(program)]
    parts = [program[a:b] for a, b in pairwise(starts)]
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(parts))
        parts[at : at + 1] = rng.choice(
            [[], [parts[at]] * 2, [rng.choice(parts)], [bytes([rng.randrange(256)])]]
        )
    return packed({**records, name: b"".join(parts)})


def change_records(data: bytes, rng: random.Random) -> bytes:
    """Cuts, extends, exchanges or drops the bytes of tensors."""
    records = unpacked(data)
    names = [name for name in records if "/data/" in name]
    one, other = rng.choice(names), rng.choice(names)
    match rng.randrange(4):
        case 0:
            records[one] = records[one][: rng.randrange(1 + len(records[one]))]
        case 1:
            records[one] += bytes(rng.randrange(1, 64))
        case 2:
            records[one], records[other] = records[other], records[one]
        case _:
            del records[one]
    return packed(records)


HOSTILE: list[Any] = [
    *(None, True, -1, 0, 1e308, -1e308, float("nan"), float("inf"), 10**6, 10**9, 2**70, "", "no"),
    *([], {}, [0], [-1, 8], [10**6, 10**6], [[]], {"a": {"b": 1}}, "mod:Env-v0", "../../x", "\x00"),
]


def saved(ckpt: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save(ckpt, file)
    return file.getvalue()


def places(section: Any) -> list[tuple[Any, Any]]:
    """All keys of nested dicts and lists, each with its container."""
    if not isinstance(section, dict | list):
        return []
    keys = list(section) if isinstance(section, dict) else range(len(section))
    return [(section, key) for key in keys] + [p for key in keys for p in places(section[key])]


def read_back(data: bytes) -> dict[str, Any]:
    return torch.load(io.BytesIO(data), weights_only=False)  # our own file


def change_config(data: bytes, rng: random.Random) -> bytes:
    """Replaces values of the config; mostly those of the networks."""
    ckpt = read_back(data)
    config = json.loads(ckpt["config"])
    part = config if rng.random() < 0.2 else config[rng.choice(["algo", "observation"])]
    section, key = rng.choice(places(part))
    section[key] = rng.choice(HOSTILE)
    text = json.dumps(config)
    return saved({**ckpt, "config": text if rng.random() < 0.9 else text[: rng.randrange(2000)]})


def change_content(data: bytes, rng: random.Random) -> bytes:
    """Replaces values beside the networks' weights."""
    ckpt = read_back(data)
    stats = {"offset": [[0.0] * 7], "scale": [[1.0] * 7]}
    ckpt.setdefault("action_normalization_stats", {"actions": stats})
    ckpt.setdefault("raymimic", {"imports": [], "version": "1"})
    rest = {k: v for k, v in ckpt.items() if k != "model"}
    section, key = rng.choice([*places(rest), *places(rest), (ckpt, "model")])
    if section is rest:
        section = ckpt
    section[key] = rng.choice(HOSTILE[:-2]) if key != "config" else rng.choice(["{}", "[" * 9999])
    return saved(ckpt)


MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [
    *(flip_bits, truncate, swap_bytes, flip_bits_of_the_directory, splice_pickles),
    *(flip_bits_of_the_pickle, change_instructions, change_records, change_config, change_content),
]


@dataclass(frozen=True)
class Read:
    """The results of the process that read all mutated checkpoints."""

    folder: Path
    status: int
    errors: str
    results: list[dict[str, Any]]

    def of(self, mutation: str) -> list[dict[str, Any]]:
        found = [r for r in self.results if r.get("file", "").startswith(f"{mutation}-")]
        assert len(found) == FILES, (self.results[-1], self.errors)  # whose file ended the process
        return found


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Read:
    folder = tmp_path_factory.mktemp("mutated")
    (folder / "originals").mkdir()
    for mutate in MUTATIONS:
        rng = random.Random(mutate.__name__)
        for i in range(FILES):
            data, name = rng.choice(originals()), f"{mutate.__name__}-{i:02}.pth"
            (folder / name).write_bytes(mutate(data, rng))
            (folder / "originals" / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, str(TESTS / "read_checkpoints.py"), str(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    results = [json.loads(line) for line in done.stdout.splitlines() or ["{}"]]
    return Read(folder, done.returncode, done.stderr, results)


def test_no_checkpoint_ends_the_process_that_reads_it_or_fills_its_memory(read: Read) -> None:
    assert read.status == 0, (read.results[-1], read.errors)
    assert len(read.results) == len(MUTATIONS) * FILES + 1
    assert read.results[-1]["kilobytes"] < 2**20  # a gigabyte


@pytest.mark.parametrize("mutation", [mutate.__name__ for mutate in MUTATIONS])
def test_mutated_checkpoints(mutation: str, read: Read, cli: Callable[..., Ran]) -> None:
    results = read.of(mutation)
    wrong = [result for result in results if "wrong" in result]
    assert not wrong, "\n".join(f"{w['file']}: {w['wrong']}" for w in wrong)
    refused = [result for result in results if "refused" in result]
    assert all("\n" not in result["refused"] for result in refused)
    assert refused
    # One of them through the command line.
    chosen = read.folder / random.Random(mutation).choice(refused)["file"]
    ran = cli("evaluate", str(chosen), "--actors", "0", "--episodes", "1")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("raymimic: error: ")
