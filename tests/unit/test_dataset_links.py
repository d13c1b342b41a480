"""Other files that a dataset leads into: only those that it may, none that is lost in silence."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from demo_files import write_demos
from waiting import DEADLINE_S

from raymimic.config.base_config import config_factory
from raymimic.data.columns import ColumnRequest, DemoSource
from raymimic.data.hdf5 import DatasetFile, open_dataset
from raymimic.data.layout import scan
from raymimic.data.metadata import read_metadata
from raymimic.data.reads import one_window
from raymimic.data.store import DemoStore
from raymimic.data.training_data import inspect_data
from raymimic.errors import ConfigError, DatasetError

FLAT = ColumnRequest(obs_keys=("flat",))
ROWS = [*range(16)]


def load(path, request=FLAT, **kwargs):
    return DemoStore.load([DemoSource(str(path), **kwargs)], request)


def rows(path, **kwargs):
    """The first number of each row of observations."""
    return load(path, **kwargs).columns["obs/flat"][:, 0].tolist()


def complaint(path, **kwargs):
    with pytest.raises(DatasetError) as caught:
        load(path, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def replace_obs(path, make, demo="demo_1"):
    """Puts something else in the place of a demo's observation `flat`."""
    with h5py.File(path, "r+") as file:
        del file[f"data/{demo}/obs/flat"]
        make(file[f"data/{demo}/obs"])


@pytest.fixture
def parts(tmp_path):
    """A dataset whose demos 1 and 2 lie in other files, one of them in a folder below."""
    whole = write_demos(tmp_path / "whole.hdf5")
    (tmp_path / "merged" / "more").mkdir(parents=True)
    path = tmp_path / "merged" / "demos.hdf5"
    with h5py.File(whole) as source, h5py.File(path, "w") as file:
        source.copy("data", file)
        for demo, part in (("demo_1", "part.hdf5"), ("demo_2", "more/part.hdf5")):
            del file["data"][demo]
            with h5py.File(path.parent / part, "w") as other:
                source.copy(f"data/{demo}", other, name=f"there/{demo}")
            file["data"][demo] = h5py.ExternalLink(part, f"/there/{demo}")
    whole.unlink()
    return path


# -- links that may be followed --


def test_links_below_the_own_folder_are_followed(parts):
    assert rows(parts) == ROWS
    meta = read_metadata(parts)
    assert (meta.num_demos, meta.num_transitions) == (3, 16)
    assert meta.linked == {parts.parent / "part.hdf5", parts.parent / "more" / "part.hdf5"}


def test_the_current_folder_and_the_environment_do_not_matter(parts, tmp_path, monkeypatch):
    other = tmp_path / "elsewhere"
    other.mkdir()
    write_demos(other / "part.hdf5")
    for variable in ("HDF5_EXT_PREFIX", "HDF5_VDS_PREFIX"):
        monkeypatch.setenv(variable, str(other))
    monkeypatch.chdir(other)
    assert rows(parts) == ROWS
    (parts.parent / "part.hdf5").unlink()
    assert "there is no such file in the dataset's folder" in complaint(parts)


def test_an_absolute_link_of_a_folder_that_was_moved(parts, tmp_path):
    with h5py.File(parts, "r+") as file:
        del file["data/demo_1"]
        file["data/demo_1"] = h5py.ExternalLink("/old/place/part.hdf5", "/there/demo_1")
    assert rows(parts) == ROWS


def test_a_dataset_may_be_a_symbolic_link(parts, tmp_path):
    link = tmp_path / "link.hdf5"
    link.symlink_to(parts)
    assert rows(link) == ROWS
    assert read_metadata(link).digest == read_metadata(parts).digest


def test_chains_through_files_and_soft_links(tmp_path):
    path = write_demos(tmp_path / "demos.hdf5")
    with h5py.File(path, "r+") as file:
        for i in range(3):
            demo = file[f"data/demo_{i}"]
            demo.move("obs/flat", "hidden/flat")
            demo["obs/flat"] = h5py.SoftLink(f"/by/file{i}/hidden/flat")
            file[f"by/file{i}"] = h5py.ExternalLink("one.hdf5", f"to/demo_{i}")
    with h5py.File(tmp_path / "one.hdf5", "w") as file:
        file["to"] = h5py.ExternalLink("two.hdf5", "/")
    with h5py.File(tmp_path / "two.hdf5", "w") as file:
        for i in range(3):
            file[f"demo_{i}"] = h5py.ExternalLink("demos.hdf5", f"data/demo_{i}")
    assert rows(path) == ROWS
    meta = read_metadata(path)
    assert meta.obs_shapes == {"flat": (3,)}  # h5py's visititems would not see it
    assert {file.name for file in meta.linked} == {"one.hdf5", "two.hdf5"}


def test_more_linked_files_than_may_be_open_at_a_time(tmp_path):
    path = write_demos(tmp_path / "demos.hdf5", (2,) * 150)
    with h5py.File(path, "r+") as file:
        for i in range(150):
            with h5py.File(tmp_path / f"part_{i}.hdf5", "w") as part:
                file.copy(f"data/demo_{i}", part, name="demo")
            del file[f"data/demo_{i}"]
            file[f"data/demo_{i}"] = h5py.ExternalLink(f"part_{i}.hdf5", "demo")
    assert rows(path) == [*range(300)]
    before = len(list(Path("/proc/self/fd").iterdir()))
    with open_dataset(path) as reader:
        for i in range(150):
            assert reader.demo(f"demo_{i}").length() == 2
            assert len(list(Path("/proc/self/fd").iterdir())) < before + 80


# -- links that may not --


@pytest.mark.parametrize("how", ["absolute", "..", "symbolic link"])
def test_links_out_of_the_folder_are_refused_unless_allowed(tmp_path, how):
    outside = tmp_path / "outside"
    inside = tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    target = write_demos(outside / "secret.hdf5")
    path = write_demos(inside / "demos.hdf5")
    name = {"absolute": str(target), "..": "../outside/secret.hdf5", "symbolic link": "s.hdf5"}[how]
    if how == "symbolic link":
        (inside / name).symlink_to(target)
    with h5py.File(path, "r+") as file:
        del file["data/demo_1"]
        file["data/demo_1"] = h5py.ExternalLink(name, "/data/demo_1")
    message = complaint(path)
    assert f"'data/demo_1' is a link to '/data/demo_1' in file '{name}' ('{target}')" in message
    assert "outside the dataset's folder: if you trust the dataset, allow it by" in message
    assert f"--allow-links {outside} (train.allow_links)" in message
    assert rows(path, allow_links=(str(outside),)) == ROWS
    (problem,) = read_metadata(path).problems
    assert "outside the dataset's folder" in problem
    assert read_metadata(path, [outside]).num_demos == 3


def test_a_file_of_a_linked_file_is_held_to_the_same_folders(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    write_demos(tmp_path / "secret.hdf5")
    path = write_demos(tmp_path / "in" / "demos.hdf5")
    with h5py.File(tmp_path / "out" / "a.hdf5", "w") as file:
        file["x"] = h5py.ExternalLink("../secret.hdf5", "/data/demo_1")
    with h5py.File(path, "r+") as file:
        del file["data/demo_1"]
        file["data/demo_1"] = h5py.ExternalLink("../out/a.hdf5", "x")
    allowed = (str(tmp_path / "out"),)
    assert f"('{tmp_path}/secret.hdf5'), which is outside" in complaint(path, allow_links=allowed)
    assert rows(path, allow_links=(str(tmp_path),)) == ROWS


def test_no_special_file_is_opened(tmp_path):
    path = write_demos(tmp_path / "demos.hdf5")
    os.mkfifo(tmp_path / "pipe")  # whoever opens it waits for ever
    with h5py.File(path, "r+") as file:
        del file["data/demo_1"]
        file["data/demo_1"] = h5py.ExternalLink("pipe", "/")
    assert "which is not a file" in complaint(path)
    replace_virtually(path, "pipe", demo="demo_0")
    assert "which is not a file" in complaint(path)
    assert "is not a file" in complaint(tmp_path / "pipe")


def test_allowed_folders_are_searched_and_have_to_exist(parts, tmp_path):
    (tmp_path / "store").mkdir()
    (parts.parent / "part.hdf5").rename(tmp_path / "store" / "part.hdf5")
    assert "there is no such file" in complaint(parts)
    assert rows(parts, allow_links=(str(tmp_path / "store"),)) == ROWS
    with pytest.raises(ConfigError, match=r"train\.allow_links .*'/none/such', which is not a"):
        load(parts, allow_links=("/none/such",))


def test_the_config_allows_folders(parts, tmp_path):
    (tmp_path / "store").mkdir()
    (parts.parent / "part.hdf5").rename(tmp_path / "store" / "part.hdf5")
    config = config_factory("bc")
    config.train.data = str(parts)
    config.observation.modalities.obs.low_dim = ["flat"]
    with pytest.raises(DatasetError, match="no such file"):
        inspect_data(config, one_window(config.train, frozenset()))
    config.train.allow_links = [str(tmp_path / "store")]
    assert len(inspect_data(config, one_window(config.train, frozenset())).train.demos) == 3


def test_a_fetched_copy_has_no_folder_of_its_own(tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("RAYMIMIC_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.pipe("/links/other.hdf5", write_demos(tmp_path / "other.hdf5").read_bytes())
    cached = read_metadata("memory://links/other.hdf5").path
    neighbour = f"../{cached.parent.name}/{cached.name}"
    path = write_demos(tmp_path / "demos.hdf5")
    with h5py.File(path, "r+") as file:
        del file["data/demo_1"]
        file["data/demo_1"] = h5py.ExternalLink(neighbour, "/data/demo_1")
    memory.pipe("/links/demos.hdf5", path.read_bytes())
    assert "outside the dataset's folder" in complaint("memory://links/demos.hdf5")
    with h5py.File(path, "r+") as file:
        del file["data/demo_1"]
        file["data/demo_1"] = h5py.ExternalLink("other.hdf5", "/data/demo_1")
    memory.pipe("/links/demos.hdf5", path.read_bytes())
    assert "fetched without the files that it leads to" in complaint("memory://links/demos.hdf5")
    assert rows("memory://links/demos.hdf5", allow_links=(str(tmp_path),)) == ROWS


# -- external raw storage --


def external_raw(group, name="flat"):
    """Twelve numbers that are in truth the text of /etc/passwd."""
    group.create_dataset(name, (7, 3), "u1", external=[("/etc/passwd", 0, 21)])


def test_external_raw_storage_is_refused_wherever_it_is(tmp_path):
    with h5py.File(tmp_path / "raw.hdf5", "w") as file:
        external_raw(file)
        assert file["flat"][0].tobytes() == Path("/etc/passwd").read_bytes()[:3]  # HDF5 reads it
    cases = {
        "plain": external_raw,
        "link": lambda obs: obs.update({"flat": h5py.ExternalLink("raw.hdf5", "flat")}),
        "virtual": lambda obs: virtual(obs, "raw.hdf5", "flat"),
    }
    for name, make in cases.items():
        path = write_demos(tmp_path / f"{name}.hdf5")
        replace_obs(path, make)
        message = complaint(path)
        assert "'obs/flat'" in message
        assert "'/etc/passwd', as external raw storage" in message


@pytest.mark.parametrize("where", ["mask/train", "data/demo_1/actions", "data/demo_1/rewards"])
def test_external_raw_storage_of_other_datasets(tmp_path, where, caplog):
    path = write_demos(tmp_path / "demos.hdf5", masks={"train": ["demo_1"]})
    with h5py.File(path, "r+") as file:
        del file[where]
        kind = "S8" if where.startswith("mask") else "u1"
        file.create_dataset(where, (7,), kind, external=[("/etc/passwd", 0, 56)])
    if where.endswith("rewards"):  # which nothing needs here
        assert "rewards" not in load(path).columns
        assert "as external raw storage" in caplog.text
        needy = ColumnRequest(obs_keys=("flat",), needs=frozenset({"rewards"}))
        assert "'/etc/passwd'" in complaint(path, request=needy)
        return
    message = complaint(path, filter_key="train")
    assert "'/etc/passwd', as external raw storage" in message
    assert "root:" not in message


# -- links to nowhere --


def test_a_demo_whose_file_is_gone_does_not_vanish(parts):
    (parts.parent / "more" / "part.hdf5").unlink()
    message = complaint(parts)
    assert str(parts) in message
    assert "'data/demo_2' is a link to '/there/demo_2' in file 'more/part.hdf5'" in message
    assert read_metadata(parts).problems == (message,)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        (h5py.SoftLink("/nothing"), "is a link to '/nothing', where there is no such"),
        (h5py.ExternalLink("part.hdf5", "/no"), "link to '/no' in file 'part.hdf5', where there"),
        (h5py.ExternalLink(".", "/no"), "which is not a file"),
    ],
)
@pytest.mark.parametrize("key", ["data/demo_1", "data/demo_1/obs", "data/demo_1/actions", "data"])
def test_links_to_objects_that_are_not_there(tmp_path, link, target, key):
    path = write_demos(tmp_path / "demos.hdf5")
    write_demos(tmp_path / "part.hdf5")
    with h5py.File(path, "r+") as file:
        del file[key]
        file[key] = link
    message = complaint(path)
    assert target in message
    assert f"'{key.removeprefix('data/demo_1/')}' is a link" in message


def test_only_links_that_are_read_count(parts):
    (parts.parent / "part.hdf5").unlink()
    with h5py.File(parts, "r+") as file:
        file["mask/here"] = np.array(["demo_0", "demo_2"], "S")
        file["mask/gone"] = h5py.SoftLink("/nowhere")
        file["data/demo_0/obs/unused"] = h5py.SoftLink("/nowhere")
    assert len(rows(parts, filter_key="here")) == 9
    assert "in 'mask': 'gone' is a link to '/nowhere'" in complaint(parts, filter_key="gone")


CIRCLES = {
    "a link to itself": lambda file: file["data"].update({"demo_3": h5py.SoftLink("demo_3")}),
    "two links": lambda file: file["data"].update(
        {"demo_3": h5py.SoftLink("demo_4"), "demo_4": h5py.SoftLink("demo_3")}
    ),
    "through a file": lambda file: file["data"].update(
        {"demo_3": h5py.ExternalLink("demos.hdf5", "data/demo_3")}
    ),
    "ever more": lambda file: file["data"].update(
        {"demo_3": h5py.SoftLink("l0")}
        | {f"l{i}": h5py.SoftLink("/".join([f"l{i + 1}"] * 9)) for i in range(30)}
        | {"l30": h5py.SoftLink("/data")}
    ),
}


@pytest.mark.parametrize("circle", CIRCLES)
def test_links_in_a_circle(tmp_path, circle):
    path = write_demos(tmp_path / "demos.hdf5")
    with h5py.File(path, "r+") as file:
        CIRCLES[circle](file)
    assert "is a link that leads in a circle" in complaint(path)


def test_groups_in_a_circle_are_listed_once(tmp_path):
    path = write_demos(tmp_path / "demos.hdf5")
    with h5py.File(path, "r+") as file:
        obs = file["data/demo_0/obs"]
        obs["up"] = file["data/demo_1"]
        file["data/demo_1/up"] = obs
        obs["self"] = h5py.SoftLink("/data/demo_0/obs")
        obs["again"] = h5py.SoftLink("flat")
    shapes = read_metadata(path).obs_shapes
    assert {"flat", "again", "up/actions"} <= shapes.keys()
    assert "self/flat" not in shapes
    assert rows(path) == ROWS


# -- virtual datasets --


def virtual(group, filename, name, shape=(7, 3), key="flat", dtype="f8", cut=slice(None)):
    layout = h5py.VirtualLayout(shape, dtype)
    layout[cut] = h5py.VirtualSource(filename, name, shape)[cut]
    group.create_virtual_dataset(key, layout, fillvalue=0)


def replace_virtually(path, filename, name="/data/demo_1/obs/flat", demo="demo_1", **kwargs):
    shape = {"demo_0": (5, 3), "demo_1": (7, 3)}[demo]
    replace_obs(path, lambda obs: virtual(obs, filename, name, shape, **kwargs), demo)


@pytest.fixture
def virtually(tmp_path):
    """A dataset of which one demo's observations come from `source.hdf5`."""
    path = write_demos(tmp_path / "demos.hdf5")
    write_demos(tmp_path / "source.hdf5")
    replace_virtually(path, "source.hdf5")
    return path


def test_virtual_datasets_are_read(virtually):
    assert rows(virtually) == ROWS
    assert read_metadata(virtually).obs_shapes == {"flat": (3,)}
    digest = scan([DemoSource(str(virtually))], FLAT).linked
    assert digest == (frozenset({virtually.parent / "source.hdf5"}),)


def test_virtual_datasets_of_several_pieces_and_of_their_own_file(tmp_path):
    path = write_demos(tmp_path / "demos.hdf5")
    with h5py.File(path) as file:
        values = file["data/demo_1/obs/flat"][()]
    with h5py.File(tmp_path / "100%.hdf5", "w") as file:
        file["odd"] = values[1::2].astype(">f4")
        for i, part in enumerate(values[::2]):
            file[f"even_{i}"] = part.astype("f2")

    def make(obs):
        layout = h5py.VirtualLayout((7, 3), "f8")
        layout[1::2] = h5py.VirtualSource("100%%.hdf5", "odd", (3, 3))
        for i in range(4):
            layout[2 * i] = h5py.VirtualSource("100%%.hdf5", f"even_{i}", (3,))
        obs.create_virtual_dataset("inner", layout)
        layout = h5py.VirtualLayout((7, 3), "f4")
        layout[:, 1:] = h5py.VirtualSource(obs["inner"])[:, 1:]
        layout[:, :1] = h5py.VirtualSource(".", obs["inner"].name, (7, 3))[:, :1]
        obs.create_virtual_dataset("flat", layout)

    replace_obs(path, make)
    np.testing.assert_array_equal(load(path).columns["obs/flat"][5:12].numpy(), values)


LOST = {
    "file": (lambda source: source.unlink(), "there is no such file"),
    "dataset": (lambda source: edit(source, h5py.Group.pop), "where there is no such dataset"),
    "rows": (
        lambda source: edit(source, lambda obs, key: obs.update({key: obs.pop(key)[:5]})),
        "whose shape [5, 3] is no longer that of which it was made",
    ),
    "group": (
        lambda source: edit(source, lambda obs, key: (obs.pop(key), obs.create_group(key))),
        "where there is no such dataset",
    ),
}


def edit(path, change):
    with h5py.File(path, "r+") as file:
        obs = file["data/demo_1/obs"]
        if change is h5py.Group.pop:
            del obs["flat"]
        else:
            change(obs, "flat")


@pytest.mark.parametrize("lost", LOST)
def test_virtual_datasets_whose_source_is_gone_are_not_zeros(virtually, lost):
    damage, reason = LOST[lost]
    damage(virtually.parent / "source.hdf5")
    if lost in ("file", "dataset"):
        with h5py.File(virtually) as file:
            assert not file["data/demo_1/obs/flat"][()].any()  # as HDF5 fills the gap
    message = complaint(virtually)
    assert "'obs/flat' is a virtual dataset of '/data/demo_1/obs/flat' in file 'source" in message
    assert reason in message


def test_virtual_datasets_with_gaps(virtually):
    replace_virtually(virtually, "source.hdf5", cut=slice(1, None))
    assert "sources give 18 of its 21 values; the others would be made up" in complaint(virtually)

    def overlap(obs):
        layout = h5py.VirtualLayout((7, 3), "f8")
        source = h5py.VirtualSource("source.hdf5", "/data/demo_1/obs/flat", (7, 3))
        for _ in range(2):
            layout[1:] = source[1:]
        obs.create_virtual_dataset("flat", layout, fillvalue=0)

    replace_obs(virtually, overlap)
    assert "holds NaN" in complaint(virtually)


def test_virtual_datasets_in_a_circle(virtually):
    replace_virtually(virtually, ".")
    assert "virtual dataset of virtual datasets" in complaint(virtually)


def test_virtual_datasets_without_a_fixed_size(virtually):
    def make(obs):
        end = h5py.h5s.UNLIMITED
        layout = h5py.VirtualLayout((7, 3), "f8", maxshape=(None, 3))
        source = h5py.VirtualSource("source.hdf5", "x", (7, 3), maxshape=(None, 3))
        layout[0:end, :] = source[0:end, :]
        obs.create_virtual_dataset("flat", layout)

    replace_obs(virtually, make)
    assert "without a fixed number of rows" in complaint(virtually)

    def make_of_many_files(obs):
        layout = h5py.VirtualLayout((7, 3), "f8", maxshape=(None, 3))
        layout[0 : h5py.h5s.UNLIMITED, :] = h5py.VirtualSource("/etc/%b.hdf5", "x", (1, 3))
        obs.create_virtual_dataset("flat", layout)

    replace_obs(virtually, make_of_many_files)
    assert "without a fixed number of rows" in complaint(virtually)


def test_virtual_datasets_of_files_outside(tmp_path):
    (tmp_path / "in").mkdir()
    write_demos(tmp_path / "source.hdf5")
    path = write_demos(tmp_path / "in" / "demos.hdf5")
    replace_virtually(path, "../source.hdf5")
    assert "outside the dataset's folder" in complaint(path)
    assert rows(path, allow_links=(str(tmp_path),)) == ROWS


# -- digests --


def test_linked_and_virtual_files_belong_to_the_digest(parts, virtually):
    for path, other in ((parts, "more/part.hdf5"), (virtually, "source.hdf5")):
        config = config_factory("bc")
        config.train.data = str(path)
        config.observation.modalities.obs.low_dim = ["flat"]
        before = inspect_data(config, one_window(config.train, frozenset())).digest
        assert before == read_metadata(path).digest
        assert before == inspect_data(config, one_window(config.train, frozenset())).digest
        assert before.startswith("sha256-linked:")
        with h5py.File(path.parent / other, "r+") as file:
            file.attrs["new"] = 1
        after = inspect_data(config, one_window(config.train, frozenset())).digest
        assert after != before
        path.parent.rename(path.parent.with_name("moved"))  # content, not names
        moved = path.parent.with_name("moved") / path.name
        config.train.data = str(moved)
        assert inspect_data(config, one_window(config.train, frozenset())).digest == after
        if path is parts:
            moved.parent.rename(path.parent)


def test_the_digest_of_a_plain_file_is_that_of_its_bytes(tmp_path):
    import hashlib

    path = write_demos(tmp_path / "demos.hdf5")
    expected = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert read_metadata(path).digest == expected


# -- files left open --

WRITER = """
import h5py, sys, time
with h5py.File(sys.argv[1], "r+", libver="latest") as file:
    print("open", flush=True)
    sys.stdin.readline()
    file.swmr_mode = True
    print("shared", flush=True)
    time.sleep(1000)
"""


def test_a_file_that_is_written_and_that_a_killed_writer_left_open(tmp_path):
    path = tmp_path / "demos.hdf5"
    with h5py.File(path, "w", libver="latest") as file:
        file["data/demo_0/actions"] = np.zeros((3, 2))
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, path], stdin=pipe, stdout=pipe, bufsize=0
    ) as writer:
        assert writer.stdout.readline() == b"open\n"
        assert "is locked: wait until nothing writes it" in complaint(path)
        writer.stdin.write(b"go on\n")
        assert writer.stdout.readline() == b"shared\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait(timeout=DEADLINE_S)
    assert f"h5clear -s {path}" in complaint(path)


def test_a_located_file_can_be_opened_again(parts):
    with open_dataset(DatasetFile.locate(parts)) as reader:
        assert reader.demo("demo_2").length() == 4
        assert reader.demo("demo_9") is None
        assert reader.demo("demo_2/obs") is None
