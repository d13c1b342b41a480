"""Downloads from a server on this machine that cuts them off, redirects and changes its files."""

import contextlib
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from raymimic.cli.entry import run_script
from raymimic.data import download as module
from raymimic.data.download import download
from raymimic.data.robomimic_datasets import DATASET_REGISTRY, MOMART_DATASET_REGISTRY
from raymimic.errors import DatasetError, OutputError
from raymimic.scripts import download_datasets, download_momart_datasets


class Server(http.server.ThreadingHTTPServer):
    """Serves one file at any address.

    Attributes:
        content: of the file.
        tag: its `ETag`; empty: none.
        portion: the connection is cut after so many bytes; None: it is not.
        left: bytes of all answers together, after which nothing more is sent.
        has_ranges: whether `Range` is heeded.
        shift: bytes between the begin of a range that is sent and of the one asked for.
        has_sizes: whether answers tell their size.
        digest: `X-Linked-ETag` of a redirection from `/linked/…`.
        asked: `Range` of each request.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.tag, self.digest = content, '"first"', ""
        self.portion: int | None = None
        self.left, self.has_ranges = 1 << 40, True
        self.shift, self.has_sizes = 0, True
        self.asked: list[str | None] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        ours = self.server
        if self.path.startswith("/linked/"):
            self.send_response(302)
            self.send_header("Location", ours.url(self.path.removeprefix("/linked/")))
            self.send_header("X-Linked-ETag", f'"{ours.digest}"')
            self.end_headers()
            return
        wanted = self.headers.get("Range")
        ours.asked.append(wanted)
        is_same = self.headers.get("If-Range", ours.tag) == ours.tag
        start = 0
        if wanted and ours.has_ranges and is_same:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        start += ours.shift if start else 0
        if wanted:
            end = len(ours.content)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        if ours.has_sizes:
            self.send_header("Content-Length", str(len(ours.content) - start))
        if ours.tag:
            self.send_header("ETag", ours.tag)
        self.end_headers()
        body = ours.content[start:][: min(ours.portion or 1 << 40, ours.left)]
        ours.left -= len(body)
        with contextlib.suppress(ConnectionError):  # the client wants none of it
            self.wfile.write(body)


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    with h5py.File(tmp_path / "made.hdf5", "w") as file:
        file["x"] = np.random.default_rng(0).random(400_000)
    return (tmp_path / "made.hdf5").read_bytes()


@pytest.fixture
def server(content: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "_PAUSES_S", (0.0, 0.0))
    served = Server(content)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out" / "data.hdf5"


def test_a_download_that_is_cut_off_again_and_again_goes_on(server: Server, target: Path):
    server.portion = 1_000_000
    download(server.url("data.hdf5"), target)
    assert target.read_bytes() == server.content
    assert server.asked == [None, *(f"bytes={n}000000-" for n in (1, 2, 3))]
    assert [path.name for path in target.parent.iterdir()] == ["data.hdf5"]


def test_a_later_call_goes_on(server: Server, target: Path):
    server.left = 1_500_000
    with pytest.raises(DatasetError, match=r"ended after 1,500,000 of 3,2.*goes on from there"):
        download(server.url("data.hdf5"), target)
    assert not target.exists()
    server.left, server.asked = 1 << 40, []
    download(server.url("data.hdf5"), target)
    assert target.read_bytes() == server.content
    assert server.asked == [None, "bytes=1500000-"]


@pytest.mark.parametrize("tag", ['"second"', ""])
def test_bytes_of_another_version_are_not_taken(server: Server, target: Path, tag: str):
    server.tag, server.left = tag and '"first"', 1_500_000
    with pytest.raises(DatasetError, match="ended after"):
        download(server.url("data.hdf5"), target)
    server.content = server.content[:-8] + b"another!"
    server.tag, server.left = tag, 1 << 40
    download(server.url("data.hdf5"), target)
    assert target.read_bytes() == server.content


def test_a_file_that_changes_meanwhile_is_refused(server: Server, target: Path):
    class Changed(Handler):
        def do_GET(self) -> None:
            super().do_GET()
            self.server.tag = '"second"'

    server.RequestHandlerClass = Changed
    server.portion = 1_000_000
    with pytest.raises(DatasetError, match="changed during the download"):
        download(server.url("data.hdf5"), target)


def test_a_server_without_ranges_begins_anew(server: Server, target: Path):
    server.has_ranges, server.left = False, len(server.content) + 1_000_000
    server.portion = 1_000_000
    with pytest.raises(DatasetError, match="ended after 1,000,000"):
        download(server.url("data.hdf5"), target)
    server.portion, server.left = None, 1 << 40
    download(server.url("data.hdf5"), target)
    assert target.read_bytes() == server.content


def test_a_server_of_other_ranges_than_asked_for_begins_anew(server: Server, target: Path):
    server.shift, server.portion = -1000, 1_500_000
    with pytest.raises(DatasetError, match="other bytes than requested"):
        download(server.url("data.bin"), target)
    assert not target.exists()
    server.portion = None
    download(server.url("data.bin"), target)
    assert target.read_bytes() == server.content


def test_a_file_of_unknown_size_begins_anew(server: Server, target: Path):
    class CutOff(Handler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.send_header("ETag", self.server.tag)
            self.end_headers()
            self.wfile.write(b"200000\r\n" + bytes(1 << 21) + b"\r\n")  # and no last chunk
            self.close_connection = True

    target = target.with_suffix(".pth")
    server.RequestHandlerClass = CutOff
    with pytest.raises(DatasetError, match="cannot be downloaded"):
        download(server.url("model.pth"), target)
    server.RequestHandlerClass, server.has_sizes = Handler, False
    download(server.url("model.pth"), target)
    assert target.read_bytes() == server.content


def test_the_digest_of_a_redirection_is_checked(server: Server, target: Path):
    server.portion = 2_000_000
    server.digest = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(DatasetError, match=r"damaged \(its SHA-256"):
        download(server.url("linked/data.hdf5"), target)
    assert list(target.parent.iterdir()) == []
    server.digest = hashlib.sha256(server.content).hexdigest()
    download(server.url("linked/data.hdf5"), target)
    assert target.read_bytes() == server.content


def test_what_is_no_hdf5_is_refused(server: Server, target: Path):
    server.content = b"<html>sign in</html>"
    with pytest.raises(DatasetError, match=r"damaged \(it is no HDF5 file"):
        download(server.url("data.hdf5"), target)
    assert list(target.parent.iterdir()) == []
    download(server.url("page.html"), target.with_suffix(".html"))
    assert target.with_suffix(".html").read_bytes() == server.content


def test_a_file_that_is_being_downloaded_is_left_alone(server: Server, target: Path):
    server.left = 0
    with pytest.raises(DatasetError, match="ended after 0"):
        download(server.url("data.hdf5"), target)
    server.left = 1 << 40
    (part,) = target.parent.iterdir()
    with part.open("ab") as file:
        module.storage.lock(file)
        with pytest.raises(OutputError, match="by another process"):
            download(server.url("data.hdf5"), target)
    download(server.url("data.hdf5"), target)
    assert target.exists()


def test_a_full_disk_is_told_beforehand(server: Server, target: Path, monkeypatch):
    usage = module.shutil.disk_usage(target.parent.parent)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=2_000_000))
    with pytest.raises(OutputError, match=r"needs 3\.2 MB and its disk has 2\.0 MB"):
        download(server.url("data.hdf5"), target)


# ----------------------------------------------------------------------------- scripts


def call(script, *words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        run_script(script.arguments(), script.main, words)
    return int(ended.value.code)


def test_the_script_downloads_the_datasets_it_is_asked_for(
    server: Server, tmp_path: Path, monkeypatch, capfd
):
    files = {"low_dim": {"url": server.url("low_dim_v15.hdf5"), "horizon": 400}}
    files["image"] = {"url": None, "horizon": 400}
    monkeypatch.setitem(DATASET_REGISTRY, "lift", {"ph": files})
    folder = tmp_path / "d"
    words = ["--download_dir", str(folder), "--hdf5_types", "all"]
    assert call(download_datasets, *words, "--dry_run") == 0
    assert "would go to" in capfd.readouterr().out
    assert not folder.exists()
    assert call(download_datasets, *words) == 0
    said = capfd.readouterr()
    assert "lift ph image: lies nowhere" in said.out
    assert "low_dim_v15.hdf5: 100%" in said.err
    file = folder / "lift" / "ph" / "low_dim_v15.hdf5"
    assert file.read_bytes() == server.content
    assert call(download_datasets, *words) == 0
    assert "is there already" in capfd.readouterr().out
    file.write_bytes(server.content[:1000])
    assert call(download_datasets, *words) == 2
    assert "no whole HDF5 file" in capfd.readouterr().err


def test_the_script_for_momart(server: Server, tmp_path: Path, monkeypatch, capfd):
    url = server.url("unload_dishwasher_sample.hdf5")
    monkeypatch.setitem(
        MOMART_DATASET_REGISTRY, "unload_dishwasher", {"sample": {"url": url, "size": 1.0}}
    )
    words = ["--tasks", "unload_dishwasher", "--dataset_types", "all"]
    assert call(download_momart_datasets, *words, "--download_dir", str(tmp_path / "d")) == 0
    assert "unload_dishwasher sample (1 GB)" in capfd.readouterr().out
    assert (tmp_path / "d/unload_dishwasher/sample/unload_dishwasher_sample.hdf5").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "lfit"], "'lfit'; did you mean 'lift'"),
        (["--tasks", "sim", "lift"], "--tasks sim stands alone"),
        (["--dataset_types", "paired"], "no such dataset"),
        ([], "cannot be downloaded (Connection refused): check the address"),
    ],
)
def test_one_sentence_says_why_there_is_no_dataset(
    tmp_path: Path, monkeypatch, capfd, words: list[str], said: str
):
    link = "http://127.0.0.1:9/low_dim.hdf5"
    monkeypatch.setitem(DATASET_REGISTRY["lift"]["ph"], "low_dim", {"url": link, "horizon": 1})
    assert call(download_datasets, *words, "--download_dir", str(tmp_path / "d")) == 2
    error = capfd.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "d").exists()


def test_the_registry_names_hugging_face(capfd):
    assert call(download_datasets, "--tasks", "all", "--dry_run") == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 5  # the tasks of robosuite that one proficient human played
    base = "https://huggingface.co/datasets/robomimic/robomimic_datasets/resolve/main/v1.5"
    assert f"{base}/lift/ph/low_dim_v15.hdf5" in lines[0]
