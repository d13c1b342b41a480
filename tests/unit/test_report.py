"""The report of a dataset: its numbers are the file's, and no name of a file becomes markup."""

import base64
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np
import pytest
from checks import assert_refused
from demo_files import write_demos
from image_files import replace_key, write_cameras
from PIL import Image
from tiny import Ran

from raymimic.data.curation.profile import Profile, profile
from raymimic.data.curation.summary import summarize
from raymimic.data.hdf5 import DatasetFile
from raymimic.recording.report_files import kept_report

Cli = Callable[..., Ran]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("RAYMIMIC_CACHE", str(folder))
    return folder


def profiled(path: Path) -> Profile:
    return profile(DatasetFile.locate(path), summarize(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    path = write_demos(tmp_path / "demos.hdf5", [50] * 12)
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            n = len(demo["actions"])
            del demo["actions"], demo["obs/flat"]
            actions = np.clip(rng.normal(size=(n, 4)), -1, 1)
            actions[:, 1] = 0.25
            actions[:, 2] = np.sign(actions[:, 2])
            actions[:, 3] = rng.uniform(-0.5, 0.5, n)
            demo["actions"] = actions
            demo["obs/flat"] = rng.normal(size=(n, 3))
        file["data/demo_7/obs/flat"][9, 2] = 40
        file.copy("data/demo_3", "data/demo_12")
    return path


def test_the_numbers_are_those_of_the_file(path: Path) -> None:
    found = profiled(path)
    with h5py.File(path) as file:
        for key, name in (("actions", "actions"), ("obs/flat", "obs/flat")):
            rows = np.concatenate([file[f"data/demo_{i}/{name}"] for i in range(13)])
            quantity = found.quantities[key]
            np.testing.assert_array_equal(quantity.sample, rows)
            np.testing.assert_allclose(quantity.moments.mean, rows.mean(axis=0))
            np.testing.assert_allclose(quantity.moments.std, rows.std(axis=0))
            counts = np.histogram(rows[:, 0], 24, (rows[:, 0].min(), rows[:, 0].max()))[0]
            np.testing.assert_array_equal(quantity.histogram(0, 24), counts)
        actions = np.concatenate([demo["actions"] for demo in file["data"].values()])
    quantity = found.quantities["actions"]
    assert quantity.constant == [1]
    # Neither a gripper nor a component that is spread evenly.
    assert quantity.saturated() == {0: pytest.approx(np.mean(np.abs(actions[:, 0]) == 1))}
    assert found.copies == {"demo_12": "demo_3"}
    assert (found.outliers[0].demo, found.outliers[0].quantity) == ("demo_7", "obs/flat[2]")
    assert found.outliers[0].value == 40


def test_a_sample_is_spread_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymimic.data.curation.profile._MOST_ROWS", 5)
    path = write_demos(tmp_path / "demos.hdf5", (5, 7, 4, 1, 1, 1, 11))  # rows numbered through
    sample = profiled(path).quantities["obs/flat"].sample
    np.testing.assert_array_equal(sample[:, 0], np.arange(0, 30, 6))


def test_a_long_demo_among_equal_ones_is_an_outlier(tmp_path: Path) -> None:
    found = profiled(write_demos(tmp_path / "demos.hdf5", [10] * 9 + [90]))
    assert [(o.demo, o.value) for o in found.outliers if o.quantity == "length"] == [("demo_9", 90)]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        self.sources += [str(value) for name, value in attrs if name in ("src", "href", "data")]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        self.closed.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    for tag in {*tags.closed} - {"p"}:
        assert tags.opened.count(tag) == tags.closed.count(tag), tag
    return tags


def test_the_page_is_whole_by_itself_and_has_the_frames(tmp_path: Path, cli: Cli) -> None:
    path = write_cameras(tmp_path / "cameras.hdf5")
    replace_key(path, "camera_0", np.zeros_like, demo=0)
    ran = cli("dataset", "info", "cameras.hdf5", "--report", "out.html")
    assert (ran.status, ran.err) == (0, "")
    assert "report: out.html" in ran.out
    page = read(Path("out.html").read_text())
    assert "script" not in page.opened
    (source,) = page.sources
    picture = Image.open(
        io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,")))
    )
    assert picture.width > 500
    assert "obs/camera_0 is black in 3 of 9 frames" in page.text
    for text in ("cameras.hdf5", "100transitions", "Filter keys: train (2), valid (1)"):
        assert text in page.text


NAME = "<script>alert(1)<\u2215script>"  # a group's name holds no slash


def test_names_of_strangers_are_texts(tmp_path: Path, cli: Cli) -> None:
    path = write_demos(tmp_path / "&<i>x.hdf5", (60, 60, 60), masks={NAME: ["demo_0"]})
    with h5py.File(path, "r+") as file:
        file.copy("data/demo_0", f"data/{NAME}")
        file["data"].attrs["env_args"] = '{"env_name": "<img src=x onerror=y>", "type": 2}'
        for name, demo in file["data"].items():
            demo[f"obs/{NAME}"] = np.random.default_rng(len(name)).normal(size=(60, 1))
        file[f"data/{NAME}/obs/{NAME}"][3] = 1e9
        demo = file["data/demo_1"]
        demo["obs/\"'><b>"] = np.full((60, 2), np.nan)
    ran = cli("dataset", "info", path.name, "--report", "out.html", "--json")
    assert ran.status == 0
    assert ran.result["report"] == "out.html"
    page = read(Path("out.html").read_text())
    allowed = (
        "html head meta title style body h1 h2 h3 p div b span svg path table tr th td br ul li"
    )
    assert set(page.opened) <= set(allowed.split())
    assert page.sources == []
    assert page.text.count(NAME) >= 3
    assert "&<i>x.hdf5" in page.text
    assert "<img src=x" in page.text


def test_a_report_is_made_once_for_a_content(path: Path, cache: Path, cli: Cli) -> None:
    words = ["dataset", "info", "demos.hdf5", "--report"]
    assert cli(*words, "one.html").status == 0
    kept = kept_report(path, summarize(path).meta.digest)
    assert list((cache / "reports").iterdir()) == [kept]
    kept.write_bytes(kept.read_bytes() + b"<!-- kept -->")
    assert cli(*words, "two.html").status == 0
    assert Path("two.html").read_bytes() == kept.read_bytes()
    with h5py.File(path, "r+") as file:
        file["data/demo_0/rewards"][0] = 5
    assert cli(*words, "three.html").status == 0
    assert not Path("three.html").read_text().endswith("<!-- kept -->")
    assert len(list((cache / "reports").iterdir())) == 2


def test_a_report_is_written_without_a_cache(
    path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path.with_name("file").touch()
    monkeypatch.setenv("RAYMIMIC_CACHE", str(path.with_name("file")))
    ran = cli("dataset", "info", "demos.hdf5", "--report", "out.html")
    assert ran.status == 0
    assert "the report is not kept for later runs" in caplog.text
    assert Path("out.html").exists()


def test_spoiled_arrays_are_told_and_the_rest_is_shown(path: Path, cli: Cli) -> None:
    with h5py.File(path, "r+") as file:
        file["data/demo_2/obs/flat"][0] = np.nan
        file["data/demo_4"].pop("rewards")
    assert cli("dataset", "info", "demos.hdf5", "--report", "out.html").status == 0
    page = read(Path("out.html").read_text())
    assert "demo 'demo_2': 'obs/flat' holds NaN or infinity" in page.text
    assert "1 of 13 demos have no rewards" in page.text
    assert re.search(r"obs/flat \[3\]", page.text)


def test_arguments(path: Path, cli: Cli) -> None:
    assert_refused(cli("dataset", "info", "demos.hdf5", "--report", "out.png"), "end it in .html")
    ran = cli("dataset", "info", "demos.hdf5", "--report", "demos.hdf5/out.html")
    assert_refused(ran, "demos.hdf5/out.html")
    assert_refused(cli("dataset", "info", "none.hdf5", "--report", "out.html"), "none.hdf5")
    assert not Path("out.html").exists()
