"""Filter keys: robomimic's draws, conditions, and a change in place that outlives a kill."""

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from checks import assert_refused
from demo_files import write_demos
from tiny import PROGRAMS, Ran, run_process

from raymimic.data.curation.masks import write_masks
from raymimic.data.in_place import changing, journal_of
from raymimic.data.metadata import read_metadata
from raymimic.errors import ConfigError, DatasetError, OutputError
from raymimic.scripts.filter_dataset_size import filter_dataset_size
from raymimic.scripts.split_train_val import split_train_val_from_hdf5
from raymimic.utils.file_utils import create_hdf5_filter_key

Cli = Callable[..., Ran]


def masks(path: Path) -> dict[str, list[str]]:
    """The filter keys, in the order of the file."""
    with h5py.File(path) as file:
        return {key: [n.decode() for n in names] for key, names in file["mask"].items()}


def drawn_by_robomimic(names: list[str], number: int) -> list[str]:
    """The demos that robomimic's scripts choose next with numpy's global generator."""
    chosen = np.zeros(len(names))
    chosen[:number] = 1.0
    np.random.shuffle(chosen)
    return [sorted(names)[i] for i in chosen.nonzero()[0]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    few = [f"demo_{i}" for i in range(3, 15)]
    return write_demos(tmp_path / "demos.hdf5", range(3, 23), masks={"few": few})


def test_a_split_is_that_of_robomimic(path: Path, cli: Cli) -> None:
    names = [f"demo_{i}" for i in range(20)]
    np.random.seed(0)
    valid = drawn_by_robomimic(names, 5)
    ran = cli("dataset", "split", str(path), "--ratio", "0.25")
    assert ran.status == 0
    assert masks(path)["valid"] == valid
    assert masks(path)["train"] == sorted(set(names) - set(valid))
    steps = sum(int(name[5:]) + 3 for name in valid)
    assert f"filter key 'valid': 5 demos, {steps} steps" in ran.out
    np.random.seed(0)
    split_train_val_from_hdf5(str(path), 0.25)
    assert masks(path)["valid"] == valid
    few = masks(path)["few"]
    np.random.seed(7)
    expected = drawn_by_robomimic(few, 3)
    words = ["--ratio", "0.25", "--filter-key", "few", "--seed", "7"]
    assert cli("dataset", "split", "demos.hdf5", *words).status == 0
    assert masks(path)["few_valid"] == expected
    assert sorted(masks(path)["few_train"] + expected) == sorted(few)


def test_subsets_are_those_of_robomimic(path: Path, cli: Cli) -> None:
    names = [f"demo_{i}" for i in range(20)]
    np.random.seed(0)
    expected = [drawn_by_robomimic(names, number) for number in (5, 10)]
    ran = cli("dataset", "filter", str(path), "--demos", "5", "10", "--json")
    assert json.loads(ran.out)["replaced"] == []
    assert json.loads(ran.out)["filter_keys"].keys() == {"5_demos", "10_demos"}
    assert [masks(path)["5_demos"], masks(path)["10_demos"]] == expected
    np.random.seed(0)
    filter_dataset_size(str(path), 5)
    filter_dataset_size(str(path), 10, output_filter_key="half")
    filter_dataset_size(str(path), 4, input_filter_key="few")
    assert [masks(path)["5_demos"], masks(path)["half"]] == expected
    assert set(masks(path)["few_4_demos"]) < set(masks(path)["few"])
    before = masks(path)
    for number in (0, -1):
        with pytest.raises(ConfigError, match=f"{number} demos make no filter key"):
            filter_dataset_size(str(path), number)
    assert masks(path) == before


@pytest.mark.slow
def test_the_scripts_take_the_arguments_of_robomimic(path: Path) -> None:
    module = "raymimic.scripts.filter_dataset_size"
    words = ["-m", module, "--dataset", str(path), "--num_demos", "2", "--input_filter_key", "few"]
    ran = run_process(*words, cwd=path.parent)
    assert ran.status == 0, ran.err
    np.random.seed(0)
    assert masks(path)["few_2_demos"] == drawn_by_robomimic(masks(path)["few"], 2)
    words = ["-m", "raymimic.scripts.split_train_val", "--dataset", "none.hdf5", "--ratio", "0.2"]
    assert_refused(run_process(*words, cwd=path.parent), "none.hdf5")


def test_the_function_of_robomimic(path: Path) -> None:
    lengths = create_hdf5_filter_key(str(path), ["demo_2", "demo_10"], "mine")
    assert lengths == [13, 5]  # of demo_10 and demo_2, as robomimic sorts them
    assert masks(path)["mine"] == ["demo_2", "demo_10"]
    before = path.read_bytes()
    with pytest.raises(DatasetError, match=r"cannot name demo 'demo_20'.*did you mean"):
        create_hdf5_filter_key(str(path), ["demo_20"], "mine")
    assert path.read_bytes() == before


def test_conditions(path: Path, cli: Cli) -> None:
    def chosen(*words: str) -> set[str]:
        before = set(read_metadata(path).filter_keys)
        ran = cli("dataset", "filter", str(path), *words)
        assert ran.status == 0, ran.err
        (key,) = read_metadata(path).filter_keys.keys() - before
        return {key, *masks(path)[key]}

    # A demo of n steps has the rewards 0, …, n - 1.
    assert chosen("--min-return", "200", "--max-length", "21") == {
        *("min_return_200_max_length_21", "demo_18")
    }
    assert chosen("--max-length", "4") == {"max_length_4", "demo_0", "demo_1"}
    assert chosen("--filter-key", "few", "--min-length", "17", "--name", "long") == {
        *("few_long", "demo_14")
    }
    assert_refused(cli("dataset", "filter", "demos.hdf5", "--success"), "demo_0", "--min-return")
    with h5py.File(path, "r+") as file:
        for name, demo in file["data"].items():
            demo["rewards"][:] = 0
            demo["rewards"][-1] = name == "demo_4"
    assert chosen("--success") == {"success", "demo_4"}
    with h5py.File(path, "r+") as file:
        for name, demo in file["data"].items():
            demo.attrs["success"] = name in ("demo_1", "demo_3")
    assert chosen("--success", "--name", "told") == {"told", "demo_1", "demo_3"}
    assert len(chosen("--success", "--demos", "1")) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("split --ratio 0", "between 0 and 1"),
        ("split --ratio 0.01", "raise the ratio to 0.05"),
        ("split --filter-key fwe", "did you mean 'few'"),
        ("filter", "nothing to choose demos by"),
        ("filter --demos 21", "has 20 demos, not 21"),
        ("filter --demos 2 --min-return 1e9", "no demo meets the conditions"),
        ("filter --min-return 1e9", "no demo meets the conditions"),
        ("filter --demos 21 --min-length 1", "20 demos that meet the conditions, not 21"),
        ("filter --demos 2 3 --name a", "cannot all be called 'a'"),
        ("filter --demos 2 --name a/b", "no name of a filter key"),
    ],
)
def test_what_cannot_be_written_changes_nothing(path: Path, cli: Cli, words: str, said: str):
    before = path.read_bytes()
    command, *rest = words.split()
    assert_refused(cli("dataset", command, str(path), *rest), said)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_other_data_stay_as_they_are(path: Path) -> None:
    with h5py.File(path) as file:
        before = {key: file[key][()] for key in ("data/demo_3/obs/flat", "data/demo_19/actions")}
    for number in range(30):
        write_masks(path, {f"key_{number % 7}": [f"demo_{i}" for i in range(number % 20 + 1)]})
    with h5py.File(path) as file:
        for key, values in before.items():
            np.testing.assert_array_equal(file[key], values)
    found = masks(path)
    assert len(found["key_1"]) == 30 - 1 - 20 + 1
    assert len(found["few"]) == 12


def test_a_kill_at_any_write_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    old = {"old": ["demo_0"], "train": ["demo_1", "demo_2"]}
    new = {**old, "new": ["demo_0", "demo_2"], "old": ["demo_1"]}
    source = write_demos(tmp_path / "demos.hdf5", masks=old)
    copy = tmp_path / "copy.hdf5"
    ran = run_process(str(PROGRAMS / "killed_change.py"), str(source), str(copy), cwd=tmp_path)
    assert ran.status == 0, ran.err
    ends = [json.loads(line) for line in ran.out.splitlines()]
    assert [end["killed"] for end in ends] == [True] * (len(ends) - 1) + [False]
    assert len(ends) > 6
    for end in ends:
        assert end["then"] in (old, new)
        if isinstance(end["found"], str):  # in the midst of the change
            assert "when a process was killed" in end["found"]
            assert end["then"] == new
        else:
            assert end["found"] == end["then"]
    states = [end["then"] == new for end in ends]
    assert states == sorted(states)  # first the old one, then the new one
    assert any(isinstance(end["found"], str) for end in ends)
    left = {p.name for p in tmp_path.iterdir() if p.suffix != ".tmp"}
    assert left == {"copy.hdf5", "demos.hdf5"}


def test_a_file_that_is_read_is_not_changed(path: Path, cli: Cli) -> None:
    with h5py.File(path):
        assert_refused(cli("dataset", "split", str(path)), "in use")
    assert "train" not in masks(path)


def test_a_strange_journal_changes_nothing(path: Path, cli: Cli) -> None:
    with changing(path) as file:
        file.create_group("mask/x")
        wanted = journal_of(path)
    other = write_demos(path.with_name("other.hdf5"), (9, 9, 9, 9))
    for content in (b"", b"raymimic journal 1\n", os.urandom(200)):
        wanted.write_bytes(content)
        before = path.read_bytes()
        assert_refused(cli("dataset", "split", str(path)), str(wanted), "remove it")
        assert path.read_bytes() == before
    wanted.unlink()
    assert cli("dataset", "split", str(other), "--ratio", "0.5").status == 0


def test_a_full_disk_changes_nothing(path: Path) -> None:
    before = path.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), limit[1]))
    try:
        with pytest.raises(OutputError, match="make room"):
            write_masks(path, {f"key_{i}": ["demo_0"] * 50 for i in range(50)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_links_of_strangers_are_not_followed(path: Path, cli: Cli) -> None:
    other = write_demos(path.with_name("other.hdf5"), masks={"train": ["demo_0"]})
    before = other.read_bytes()
    with h5py.File(path, "r+") as file:
        file["mask/train"] = h5py.ExternalLink("other.hdf5", "mask/train")
    assert cli("dataset", "split", str(path)).status == 0
    assert len(masks(path)["train"]) == 18
    with h5py.File(path, "r+") as file:
        del file["mask"]
        file["mask"] = h5py.ExternalLink("other.hdf5", "mask")
    assert_refused(cli("dataset", "split", str(path)), "'mask' is a link")
    assert other.read_bytes() == before


def test_files_that_cannot_be_changed(path: Path, cli: Cli) -> None:
    assert_refused(cli("dataset", "split", "none.hdf5"), "none.hdf5")
    assert_refused(cli("dataset", "split", "memory://x.hdf5"), "URI")
    path.with_name("empty.hdf5").touch()
    assert_refused(cli("dataset", "split", "empty.hdf5"), "0 bytes")
