"""Sources behind URIs, and the cache of conversions: once per node, whole, the same everywhere."""

import contextlib
import functools
import hashlib
import http.server
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlparse

import h5py
import numpy as np
import pytest
from waiting import DEADLINE_S, wait_for

from raymimic.data.convert import FormatReader, convert_dataset, export_dataset, register_format
from raymimic.data.convert.cached import trainable_file
from raymimic.data.convert.heads import Head
from raymimic.data.metadata import content_digest, read_metadata
from raymimic.data.writer import RecordedEpisode
from raymimic.errors import DatasetError, OutputError

EPISODES, STEPS = 4, 10


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYMIMIC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_d4rl(path: Path, first: float = 0.0) -> Path:
    with h5py.File(path, "w") as file:
        rows = first + np.arange(EPISODES * STEPS * 2, dtype=np.float32).reshape(-1, 2)
        file["observations"] = rows
        file["actions"] = rows / rows.max()
        file["rewards"] = rows[:, 0]
        file["terminals"] = np.arange(len(rows)) % STEPS == STEPS - 1
    return path


@register_format("test_slow")
class SlowReader(FormatReader):
    """Episodes that come when a file allows the next one."""

    env_meta: ClassVar[dict[str, Any]] = {}

    @classmethod
    def recognises(cls, head: Head) -> bool:
        return head.source.endswith(".slow")

    def episodes(self) -> Iterator[RecordedEpisode]:
        for i in range(EPISODES):
            Path(f"{self.source}.reads-{os.getpid()}-{i}").touch()
            wait_for(lambda: Path(f"{self.source}.go").exists(), "the test lets it go on")
            rows = np.full((STEPS, 2), float(i))
            yield RecordedEpisode(obs={"flat": rows}, actions=rows)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """Serves the folder `site` on loopback."""
    (tmp_path / "site").mkdir()
    with serving(functools.partial(Quiet, directory=str(tmp_path / "site"))) as address:
        yield address


@contextlib.contextmanager
def serving(handler: Any) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as Hugging Face's hub does, for one repository of data, `org/name`."""

    protocol_version = "HTTP/1.1"
    root: ClassVar[Path]

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path, api = unquote(urlparse(self.path).path), "/api/datasets/org/name"
        if path == api:
            self.answer(json.dumps({"id": "org/name", "sha": "a" * 40, "siblings": []}).encode())
        elif path.startswith(f"{api}/tree/main"):
            folder = self.root / path.removeprefix(f"{api}/tree/main").strip("/")
            entries = [
                {
                    "type": "file",
                    "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
                    "size": file.stat().st_size,
                    "path": file.relative_to(self.root).as_posix(),
                }
                for file in sorted(folder.rglob("*.*"))
            ]
            self.answer(json.dumps(entries or {}).encode(), 200 if entries else 404)
        elif path.startswith("/datasets/org/name/resolve/main/"):
            content = (
                self.root / path.removeprefix("/datasets/org/name/resolve/main/")
            ).read_bytes()
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            self.answer(content[first : last + 1], 206)
        else:
            self.answer(b"{}", 404)

    def answer(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        self.wfile.write(content)


@pytest.mark.slow
def test_a_folder_of_hugging_faces_hub_is_fetched_and_converted(
    tmp_path: Path, cache: Path
) -> None:
    """Its library reads the hub's address when it is imported: in a process of its own."""
    pytest.importorskip("huggingface_hub")
    source = write_d4rl(tmp_path / "source.hdf5")
    export_dataset(source, tmp_path / "hub/data/set", "lerobot")
    with serving(type("OwnHub", (Hub,), {"root": tmp_path / "hub"})) as address:
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf")}

        def convert(uri: str, name: str) -> subprocess.CompletedProcess[str]:
            words = ["raymimic", "dataset", "convert", uri, str(tmp_path / name)]
            return subprocess.run(
                [sys.executable, "-m", *words],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )

        ran = convert("hf://datasets/org/name/data/set/", "out.hdf5")
        missing = convert("hf://datasets/org/name/data/sets/", "none.hdf5")
    assert ran.returncode == 0, ran.stderr
    with h5py.File(source) as old, h5py.File(tmp_path / "out.hdf5") as new:
        rows = np.concatenate([new[f"data/demo_{i}/obs/flat"] for i in range(EPISODES)])
        np.testing.assert_array_equal(rows, old["observations"])
    assert missing.returncode == 2
    (line,) = missing.stderr.splitlines()
    assert "'hf://datasets/org/name/data/sets/' does not exist: check the URI" in line
    assert list((cache / "datasets").glob("*/set/meta/info.json"))


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files; the listing of `/hostile/` leads out of it."""

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path != "/hostile/":
            super().do_GET()
            return
        body = b'<a href="data.hdf5">x</a> <a href="../../../../tmp/evil.hdf5">x</a>'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(body)


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_a_remote_folder_is_fetched_once_and_converted(
    site: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minari = pytest.importorskip("minari")
    import gymnasium
    from minari.data_collector.episode_buffer import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "site"))
    rows = np.arange(22, dtype=np.float64).reshape(11, 2)
    episode = EpisodeBuffer(
        id=0,
        observations=rows,
        actions=rows[:10].astype(np.float32),
        rewards=np.zeros(10),
        terminations=np.zeros(10, bool),
        truncations=np.zeros(10, bool),
    )
    box = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    minari.create_dataset_from_buffers(
        "remote/set-v0", [episode], observation_space=box, action_space=box
    )
    uri = f"{site}/remote/set-v0/"
    done = convert_dataset(uri, tmp_path / "out.hdf5")
    assert done.format == "minari"
    with h5py.File(done.path) as file:
        np.testing.assert_array_equal(file["data/demo_0/obs/flat"], rows[:-1])
    (copy,) = (cache / "datasets").glob("*/set-v0/data/metadata.json")
    before = copy.stat().st_mtime_ns
    assert read_metadata(trainable_file(uri)).num_transitions == 10
    assert copy.stat().st_mtime_ns == before
    assert not list((cache / "datasets").glob("*/.partial"))


def test_a_listing_that_leads_out_of_its_folder_is_refused(site: str, cache: Path) -> None:
    with pytest.raises(DatasetError, match="lies outside of it"):
        trainable_file(f"{site}/hostile/")
    assert not list((cache / "datasets").glob("*/*"))


def test_a_conversion_is_the_same_in_every_cache_and_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = []
    for node in ("a", "b"):
        (tmp_path / node).mkdir()
        monkeypatch.setenv("RAYMIMIC_CACHE", str(tmp_path / node / "cache"))
        source = write_d4rl(tmp_path / node / "play.hdf5")
        os.utime(source, (0, 0) if node == "a" else None)
        digests.append(content_digest(trainable_file(str(source))))
    assert digests[0] == digests[1]


def test_a_source_that_changed_is_converted_again(tmp_path: Path) -> None:
    source = write_d4rl(tmp_path / "play.hdf5")
    first = trainable_file(str(source))
    assert trainable_file(str(source)) == first
    write_d4rl(source, first=5.0)
    second = trainable_file(str(source))
    assert second != first
    with h5py.File(second) as file:
        assert file["data/demo_0/obs/flat"][0, 0] == 5.0


def convert_here(source: str) -> None:
    trainable_file(source)


def test_of_several_processes_one_converts_and_a_killed_one_leaves_nothing(
    tmp_path: Path, cache: Path
) -> None:
    source = tmp_path / "logs.slow"
    source.write_text("x")
    context = multiprocessing.get_context("fork")

    def reading() -> set[int]:
        return {int(path.name.split("-")[1]) for path in tmp_path.glob("logs.slow.reads-*-0")}

    first = context.Process(target=convert_here, args=(str(source),))
    first.start()
    wait_for(lambda: bool(reading()), "the first process reads")
    others = [context.Process(target=convert_here, args=(str(source),)) for _ in range(3)]
    for process in others:
        process.start()
    assert reading() == {first.pid}
    os.kill(first.pid, signal.SIGKILL)
    first.join(DEADLINE_S)
    wait_for(lambda: len(reading()) == 2, "another process takes over")
    Path(f"{source}.go").touch()
    for process in others:
        process.join(DEADLINE_S)
        assert process.exitcode == 0
    assert len(reading()) == 2  # the rest found the file
    (made,) = (cache / "converted").glob("*/*.hdf5")
    assert read_metadata(made).num_demos == EPISODES
    left = [path.name for path in made.parent.iterdir()]
    assert sorted(left) == ["lock", made.name]


def test_a_cache_that_cannot_be_written_names_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAYMIMIC_CACHE", str(tmp_path / "file" / "cache"))
    source = write_d4rl(tmp_path / "play.hdf5")
    with pytest.raises(OutputError, match="RAYMIMIC_CACHE"):
        trainable_file(str(source))


@pytest.mark.parametrize("size", [1000, 2500, 4000, 9000])
def test_a_full_disk_is_told_and_leaves_nothing(size: int, tmp_path: Path) -> None:
    """`RLIMIT_FSIZE` ends a file as a full disk does; HDF5 itself ends the process there."""
    source = write_d4rl(tmp_path / "play.hdf5")
    whole = convert_dataset(source, tmp_path / "whole.hdf5")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        with pytest.raises(OutputError, match="File too large; make room"):
            trainable_file(str(source))
        with pytest.raises(OutputError, match="File too large; make room"):
            export_dataset(whole.path, tmp_path / "back-v0", "minari")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert not list((tmp_path / "cache").rglob("*.hdf5*"))
    assert not list(tmp_path.glob("*back*"))
    assert content_digest(trainable_file(str(source))) == whole.digest
