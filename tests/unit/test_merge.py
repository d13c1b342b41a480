"""`raymimic dataset merge`: all demos of all files, with the filter keys of each."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from checks import assert_refused
from demo_files import write_demos
from tiny import Ran

from raymimic.data.convert import convert_dataset
from raymimic.data.curation.merge import merge
from raymimic.data.curation.repair import repair
from raymimic.data.curation.validate import validate
from raymimic.data.metadata import read_metadata
from raymimic.errors import OutputError

Cli = Callable[..., Ran]


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    (tmp_path / "old").mkdir()
    masks = {"train": ["demo_0", "demo_2"], "few": ["demo_1"]}
    one = write_demos(tmp_path / "expert.hdf5", (5, 7, 4), masks=masks)
    names = [f"demo_{i}" for i in (3, 10, 4)]
    two = write_demos(
        tmp_path / "old/play.hdf5", (2, 3, 9), names=names, masks={"train": names[:1]}
    )
    return [str(one), str(two)]


def test_all_demos_with_the_names_of_their_files(paths: list[str], tmp_path: Path) -> None:
    out = tmp_path / "all.hdf5"
    made = merge(paths, out)
    assert (made.num_demos, made.num_transitions) == (6, 30)
    assert validate(out).faults == ()
    meta = read_metadata(out)
    assert meta.env_meta == read_metadata(paths[0]).env_meta
    assert meta.filter_keys == {
        "expert": ["demo_0", "demo_1", "demo_2"],
        "expert_train": ["demo_0", "demo_2"],
        "expert_few": ["demo_1"],
        "play": ["demo_3", "demo_4", "demo_5"],
        "play_train": ["demo_3"],
        "train": ["demo_0", "demo_2", "demo_3"],
    }
    origin = {3: "demo_3", 4: "demo_4", 5: "demo_10"}  # by number
    with h5py.File(out) as new, h5py.File(paths[0]) as one, h5py.File(paths[1]) as two:
        for i in range(6):
            old = one[f"data/demo_{i}"] if i < 3 else two[f"data/{origin[i]}"]
            for key in ("obs/flat", "next_obs/flat", "actions", "rewards", "dones"):
                np.testing.assert_array_equal(new[f"data/demo_{i}/{key}"], old[key])


def test_filter_keys_without_demos_are_left_out(paths: list[str], tmp_path: Path) -> None:
    with h5py.File(paths[0], "a") as file:
        file["mask/valid"] = np.array([], dtype="S1")
    made = merge(paths, tmp_path / "all.hdf5")
    assert made.notes == ("left out filter key 'expert_valid', which holds no demos",)
    assert "expert_valid" not in made.filter_keys
    assert validate(tmp_path / "all.hdf5").faults == ()


def test_files_of_one_name(paths: list[str], tmp_path: Path) -> None:
    same = Path(paths[1]).rename(tmp_path / "old/expert.hdf5")
    made = merge([paths[0], str(same)], tmp_path / "all.hdf5")
    assert {"expert-1", "expert-2", "expert-1_few", "train"} <= made.filter_keys.keys()


def test_environments_must_agree_or_one_is_chosen(paths: list[str], cli: Cli) -> None:
    with h5py.File(paths[1], "r+") as file:
        file["data"].attrs["env_args"] = '{"env_name": "Hopper-v5", "type": 2}'
        file["data"].attrs["note"] = "mine"
    words = ["dataset", "merge", *paths, "--out", "all.hdf5"]
    assert_refused(cli(*words), "'env_name'", "Hopper-v5", "Walker2d-v5", "--env-from")
    ran = cli(*words, "--env-from", paths[1])
    assert ran.status == 0
    assert "left out attributes in which the files differ: note" in ran.out
    assert read_metadata("all.hdf5").env_meta["env_name"] == "Hopper-v5"
    assert_refused(cli(*words), "all.hdf5", "exists already")


def change(path: str, kind: str) -> None:
    with h5py.File(path, "r+") as file:
        demo = file["data/demo_4"]
        if kind == "lacks":
            del demo["rewards"]
            demo["obs/z"] = np.zeros((9, 1))
        elif kind == "shape":
            del demo["obs/flat"]
            demo["obs/flat"] = np.zeros((9, 4))
        elif kind == "mask":
            file["mask/odd"] = np.array([b"demo_99"])
        elif kind == "link":
            demo["obs/z"] = h5py.SoftLink("/none")
        elif kind == "dones":
            demo.attrs["num_samples"] = "many"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("lacks", ["demo_4", "lacks 'rewards' and has 'obs/z' besides", "expert.hdf5"]),
        ("shape", ["demo_4", "'obs/flat' are [4], and [3]", "expert.hdf5"]),
        ("mask", ["play.hdf5", "'odd' names demo 'demo_99'"]),
        ("link", ["play.hdf5", "/none", "validate"]),
        ("dones", ["play.hdf5", "demo_4", "num_samples"]),
    ],
)
def test_files_that_do_not_fit(paths: list[str], cli: Cli, kind: str, said: list[str]) -> None:
    change(paths[1], kind)
    assert_refused(cli("dataset", "merge", *paths, "--out", "all.hdf5"), *said)
    assert not Path("all.hdf5").exists()
    assert not [path for path in Path().iterdir() if path.suffix == ".part"]


def test_arguments_that_make_no_sense(paths: list[str], cli: Cli) -> None:
    out = ["--out", "all.hdf5"]
    assert_refused(cli("dataset", "merge", paths[0], *out), "two datasets or more")
    assert_refused(cli("dataset", "merge", paths[0], paths[0], *out), "named twice")
    ran = cli("dataset", "merge", *paths, *out, "--env-from", "experd.hdf5")
    assert_refused(ran, "none of the datasets")


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_another_process_writes_meanwhile_stays(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    out = tmp_path / "all.hdf5"
    if not links:

        def refuse(self: Path, target: Path) -> None:
            raise PermissionError

        monkeypatch.setattr(Path, "hardlink_to", refuse)
    merge(paths, out)
    whole = out.read_bytes()
    out.unlink()

    def written_meanwhile(done: int, total: int) -> None:
        out.write_text("theirs")

    for write in (
        lambda: merge(paths, out, progress=written_meanwhile),
        lambda: repair(paths[0], out, progress=written_meanwhile),
        lambda: convert_dataset(paths[0], out, None, written_meanwhile, replace=False),
    ):
        with pytest.raises(OutputError, match=f"'{out}' exists already"):
            write()
        assert out.read_text() == "theirs"
        out.unlink()
    merge(paths, out)
    assert out.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.hdf5", "expert.hdf5", "old"]
