"""`raymimic dataset validate` and `repair`: each fault is told, and the repaired file trains."""

import json
import resource
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from checks import assert_refused
from demo_files import write_demos
from hdf5_fuzz import mutate, write_base
from image_files import replace_key, write_cameras
from tiny import Ran

from raymimic.algo import BC
from raymimic.config import config_factory
from raymimic.data.curation.repair import repair
from raymimic.data.curation.validate import Validation, validate
from raymimic.data.reads import one_window
from raymimic.data.training_data import inspect_data, make_loaders
from raymimic.errors import DatasetError

Cli = Callable[..., Ran]


def faults(found: Validation) -> set[tuple[str, str, str, bool]]:
    return {(fault.kind, fault.demo, fault.key, fault.is_error) for fault in found.faults}


def trains(path: Path) -> None:
    """A training takes all of the file."""
    config = config_factory("bc")
    config.train.data = str(path)
    config.observation.modalities.obs.low_dim = ["flat"]
    config.experiment.rollout.enabled = False
    assert inspect_data(config, BC.reads(config)).train.demos


def test_a_sound_file_has_no_faults(tmp_path: Path) -> None:
    assert validate(write_demos(tmp_path / "demos.hdf5")).faults == ()
    assert validate(write_cameras(tmp_path / "cameras.hdf5")).errors == []


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A file with many faults at once."""
    masks = {"train": ["demo_0", "demo_1", "demo_99"], "valid": ["demo_1"], "none": []}
    path = write_demos(tmp_path / "broken.hdf5", [5] * 11, masks=masks)
    with h5py.File(path, "r+") as file:
        data = file["data"]
        data["demo_0/actions"][0, 0] = 2.5
        data["demo_2/obs/flat"][0] = np.nan
        data["demo_3/actions"][1] = np.nan
        data["demo_3/rewards"][2] = np.inf
        del data["demo_4/rewards"]
        del data["demo_5/actions"]
        data["demo_6"].attrs["num_samples"] = 9
        del data["demo_7"].attrs["num_samples"]
        del data["demo_8/obs/flat"]
        data["demo_8/obs/flat"] = np.zeros((3, 3))
        data["demo_9/obs/rare"] = np.zeros((5, 3))
        data["demo_9/obs/words"] = np.array([b"lift"] * 5)
        data["demo_10/dones"][1] = 7
        data.attrs["total"] = 3
        data.attrs["env_args"] = "{"
        file.copy("data/demo_1", "data/demo_12")
        data["demo_13"] = h5py.SoftLink("/nowhere")
        data["notes"] = 1
    return path


def test_everything_that_is_wrong_is_listed(broken: Path) -> None:
    error, warning = True, False
    assert faults(validate(broken)) == {
        ("values", "demo_2", "obs/flat", error),
        ("values", "demo_3", "actions", error),
        ("values", "demo_3", "rewards", error),
        ("missing", "demo_4", "rewards", error),
        ("no actions", "demo_5", "actions", error),
        ("num_samples wrong", "demo_6", "", error),
        ("array", "demo_8", "obs/flat", error),
        ("rare", "", "obs/rare", error),
        ("values", "demo_10", "dones", error),
        ("link", "demo_13", "", error),
        ("mask names", "", "mask/train", error),
        ("env_args", "", "", error),
        ("total wrong", "", "", warning),
        ("gaps", "", "", warning),
        ("masks overlap", "", "mask/train", warning),
        ("mask empty", "", "mask/none", warning),
        ("no demo", "", "", warning),
        ("action range", "demo_0", "actions", warning),
        ("num_samples missing", "demo_7", "", warning),
        ("no numbers", "demo_9", "obs/words", warning),
        ("copy", "demo_12", "", warning),
    }


def test_the_repaired_file_trains_and_holds_the_rest_as_it_was(broken: Path) -> None:
    out = broken.with_name("new.hdf5")
    made = repair(broken, out)
    found = validate(out)
    assert found.errors == []
    trains(out)
    assert found.demos == ("demo_0", "demo_1", "demo_6", "demo_7", "demo_9", "demo_12")
    assert (made.num_demos, made.num_transitions) == (6, 30)
    for name in ("demo_2", "demo_3", "demo_4", "demo_5", "demo_8", "demo_10", "demo_13"):
        assert any(c.startswith(f"left out demo '{name}': ") for c in made.changes), name
    assert "demo 'demo_6': num_samples is 5" in made.changes
    assert "total is 30 (was 3)" in made.changes
    with h5py.File(broken) as old, h5py.File(out) as new:
        assert dict(new["data"].attrs) == {"total": 30}
        for name in found.demos:
            assert new[f"data/{name}"].attrs["num_samples"] == 5
            for key in ("obs/flat", "next_obs/flat", "actions", "rewards", "dones"):
                np.testing.assert_array_equal(new[f"data/{name}/{key}"], old[f"data/{name}/{key}"])
                assert new[f"data/{name}/{key}"].dtype == old[f"data/{name}/{key}"].dtype
        assert "obs/rare" not in new["data/demo_9"]
        assert list(new["data/demo_9/obs/words"]) == [b"lift"] * 5
        assert list(new["mask/train"]) == [b"demo_0", b"demo_1"]
        assert "none" not in new["mask"]


@pytest.mark.parametrize("how", ["clip", "rescale"])
def test_actions_change_only_when_told(tmp_path: Path, how: str) -> None:
    path = write_demos(tmp_path / "demos.hdf5")
    with h5py.File(path, "r+") as file:
        file["data/demo_0/actions"][0, 0], file["data/demo_1/actions"][2, 0] = 2.0, -4.0
        before = {name: demo["actions"][()] for name, demo in file["data"].items()}
    assert repair(path, tmp_path / "same.hdf5").changes == ()
    made = repair(path, tmp_path / "new.hdf5", actions=how)
    assert made.left.faults == ()
    with h5py.File(made.path) as file:
        for name, old in before.items():
            expected = np.clip(old, -1, 1) if how == "clip" else old / [4.0, 1.0]
            np.testing.assert_array_equal(file[f"data/{name}/actions"], expected)
        if how == "rescale":
            np.testing.assert_array_equal(file["data"].attrs["action_scale"], [4.0, 1.0])
    with h5py.File(tmp_path / "same.hdf5") as file:
        np.testing.assert_array_equal(file["data/demo_1/actions"], before["demo_1"])


def test_chunks_compression_and_attributes_are_kept(tmp_path: Path) -> None:
    path = write_cameras(tmp_path / "cameras.hdf5", chunks=(1, 4, 4, 3), compression="gzip")
    with h5py.File(path, "r+") as file:
        file["data/demo_0"].attrs["model_file"] = "<mujoco/>" * 10_000
        file["data/demo_0/obs"].attrs["note"] = [1, 2]
        file["data/demo_0/obs/flat"].attrs["unit"] = "m"
        size = file["data/demo_0/obs/camera_0"].id.get_storage_size()
    with h5py.File(repair(path, tmp_path / "new.hdf5").path) as file:
        camera = file["data/demo_0/obs/camera_0"]
        assert (camera.chunks, camera.compression) == ((1, 4, 4, 3), "gzip")
        assert camera.id.get_storage_size() == size
        assert file["data/demo_0"].attrs["model_file"] == "<mujoco/>" * 10_000
        assert list(file["data/demo_0/obs"].attrs["note"]) == [1, 2]
        assert file["data/demo_0/obs/flat"].attrs["unit"] == "m"


def test_links_become_arrays_and_stay_within_the_folder(tmp_path: Path, cli: Cli) -> None:
    other = write_demos(tmp_path / "other.hdf5")
    path = write_demos(tmp_path / "demos.hdf5")
    with h5py.File(path, "r+") as file:
        del file["data/demo_1/obs"], file["data/demo_2/rewards"]
        file["data/demo_1/obs"] = h5py.ExternalLink("other.hdf5", "data/demo_1/obs")
        rewards = h5py.VirtualLayout((4,), "f8")
        rewards[:] = h5py.VirtualSource("other.hdf5", "data/demo_2/rewards", (4,))
        file["data/demo_2"].create_virtual_dataset("rewards", rewards)
    assert faults(validate(path)) == {("linked file", "", "", False)}
    made = repair(path, tmp_path / "new.hdf5")
    other.rename(tmp_path / "gone.hdf5")
    assert made.left.faults == validate(made.path).faults == ()
    with h5py.File(tmp_path / "gone.hdf5") as old, h5py.File(made.path) as new:
        for key in ("data/demo_1/obs/flat", "data/demo_2/rewards"):
            np.testing.assert_array_equal(new[key], old[key])
    (tmp_path / "inner").mkdir()
    shutil.move(path, tmp_path / "inner/demos.hdf5")
    shutil.move(tmp_path / "gone.hdf5", tmp_path / "other.hdf5")
    with h5py.File(tmp_path / "inner/demos.hdf5", "r+") as file:
        del file["data/demo_1/obs"], file["data/demo_2"]
        file["data/demo_1/obs"] = h5py.ExternalLink("../other.hdf5", "data/demo_1/obs")
    ran = cli("dataset", "validate", "inner/demos.hdf5")
    assert ran.status == 2
    assert "error: demo 'demo_1': 'obs' is a link to " in ran.out
    assert "--allow-links" in ran.out


def test_images_that_show_nothing_or_have_a_strange_form_are_told(tmp_path: Path) -> None:
    path = write_cameras(tmp_path / "cameras.hdf5", next_obs=False)
    replace_key(path, "camera_0", np.zeros_like, demo=1)
    replace_key(path, "camera_1", lambda x: np.repeat(x[:1], len(x), axis=0), demo=2)
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            n = len(demo["actions"])
            demo["obs/high"] = np.zeros((n, 20, 20, 3), np.uint16)
            demo["obs/far"] = np.full((n, 20, 20, 1), 3.0) + np.arange(20)[:, None]
    found = faults(validate(path))
    assert ("frames black", "demo_1", "obs/camera_0", False) in found
    assert ("frozen", "demo_2", "obs/camera_1", False) in found
    for i in range(3):
        assert ("image form", f"demo_{i}", "obs/high", False) in found
        assert ("cut off", f"demo_{i}", "obs/far", False) in found
    assert not any(is_error for *_, is_error in found)


def test_demos_that_differ_from_the_greater_part(tmp_path: Path) -> None:
    path = write_cameras(tmp_path / "cameras.hdf5", lengths=(4, 5, 6, 7), next_obs=False)
    replace_key(path, "camera_1", lambda x: x[:, :7], demo=0)
    replace_key(path, "camera_0", lambda x: x.astype(np.float32), demo=2)
    replace_key(path, "flat", lambda x: x[:, :2], demo=2)
    found = validate(path)
    assert {f for f in faults(found) if f[3]} == {
        ("form", "demo_0", "obs/camera_1", True),
        ("form", "demo_2", "obs/camera_0", True),
        ("form", "demo_2", "obs/flat", True),
    }
    assert repair(path, tmp_path / "new.hdf5").left.errors == []


def test_a_config_judges_by_what_it_reads(broken: Path, cli: Cli) -> None:
    path = write_demos(broken.with_name("demos.hdf5"), masks={"train": ["demo_0", "demo_1"]})
    with h5py.File(path, "r+") as file:
        file["data/demo_0/actions"][0] = 3.0
        file["data/demo_1/rewards"][0] = np.nan
        file["data/demo_2/obs/flat"][0] = np.nan
        file["data/demo_0/obs/other"] = np.zeros((5, 1))
    assert cli("dataset", "validate", str(path)).status == 2

    def judged(algo: str, **settings: object) -> set[tuple[str, str]]:
        config = config_factory(algo)
        config.observation.modalities.obs.low_dim = ["flat"]
        for name, value in settings.items():
            config.train[name] = value
        config.dump(str(path.with_suffix(".json")))
        ran = cli("dataset", "validate", str(path), "--config", "demos.json", "--json")
        found = json.loads(ran.out)
        assert ran.status == (0 if found["trains"] else 2)
        return {(f["kind"], f["demo"]) for f in found["faults"] if f["is_error"]}

    assert judged("bc") == {("values", "demo_2")}
    assert judged("bc", hdf5_filter_key="train") == set()
    assert judged("iql") == {("values", "demo_1"), ("values", "demo_2")}
    assert ("action range", "demo_0") in judged("diffusion_policy")
    assert judged("bc", hdf5_filter_key="trian") == {("config", "")}


def test_texts_are_an_error_where_other_demos_hold_numbers(tmp_path: Path) -> None:
    path = write_demos(tmp_path / "demos.hdf5")
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/actions"], file["data/demo_1/obs/flat"]
        file["data/demo_0/actions"] = np.zeros((5, 2), complex)
        file["data/demo_1/obs/flat"] = np.array([b"x"] * 7)
    found = faults(validate(path))
    assert {f for f in found if f[0] == "no numbers"} == {
        ("no numbers", "demo_0", "actions", True),
        ("no numbers", "demo_1", "obs/flat", True),
    }
    assert repair(path, tmp_path / "new.hdf5").left.demos == ("demo_2",)


def test_files_that_were_changed_at_random(tmp_path: Path) -> None:
    """A file without errors can be read, and so can a repaired one, with all that it holds."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("no HDF5")
    sound = repaired = 0
    for seed in range(16):
        rng = np.random.default_rng([seed, 9])
        write_demos(tmp_path / "other.hdf5")
        path, out = write_base(tmp_path, rng), tmp_path / "new.hdf5"
        with h5py.File(path, "r+") as file:
            for _ in range(rng.integers(1, 4)):
                with suppress(Exception):  # h5py cannot write that
                    mutate(file, rng)
        with suppress(DatasetError):
            if not validate(path).errors:
                sound += 1
                read_all(path)
        out.unlink(missing_ok=True)
        with suppress(DatasetError):
            repair(path, out)
        if out.exists():
            repaired += 1
            read_all(out)
    assert sound >= 1
    assert repaired >= 10


def read_all(path: Path) -> None:
    """Reads all numbers of a file as a training does."""
    with h5py.File(path) as file:
        demo = next(iter(file["data"].values()))
        keys = [key for key, item in demo["obs"].items() if item.dtype.kind in "biuf"]
        needs = frozenset({"rewards", "dones", "next_obs"} & demo.keys())
    config = config_factory("bc")
    config.train.data, config.train.batch_size = str(path), 1
    config.observation.modalities.obs.low_dim = keys
    try:
        loaders = make_loaders(config, one_window(config.train, needs), torch.device("cpu"))
    except DatasetError as error:
        pytest.fail(f"{path.name} has no errors, but: {error}")
    assert needs <= next(loaders.train.epoch(1))[0].keys()


@pytest.mark.parametrize("command", ["repair", "merge"])
def test_a_full_disk_leaves_no_file(tmp_path: Path, cli: Cli, command: str) -> None:
    for name in ("demos", "other"):
        write_cameras(tmp_path / f"{name}.hdf5")
    files = ["demos.hdf5"] if command == "repair" else ["demos.hdf5", "other.hdf5"]
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        ran = cli("dataset", command, *files, "--out", "new.hdf5")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert_refused(ran, "new.hdf5", "make room")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demos.hdf5", "other.hdf5"]


def test_the_lines_of_the_command(broken: Path, cli: Cli) -> None:
    ran = cli("dataset", "validate", str(broken))
    assert ran.status == 2
    assert "warning: demo 'demo_0': 'actions' reach 2.5" in ran.out
    assert "error: demo 'demo_3': 'actions' holds NaN or infinity (first in row 1)" in ran.out
    assert ran.err.startswith(f"raymimic: error: dataset '{broken}' does not train: 13 demos, ")
    assert ran.err.count("\n") == 1
    assert "raymimic dataset repair" in ran.err
    ran = cli("dataset", "repair", str(broken), "--out", "new.hdf5")
    assert ran.status == 0
    assert "changed: left out demo 'demo_5': has no 'actions'" in ran.out
    assert "dataset: new.hdf5, 6 demos, 30 steps" in ran.out
    assert cli("dataset", "validate", "new.hdf5").status == 0
    assert_refused(cli("dataset", "repair", str(broken), "--out", "new.hdf5"), "exists already")


@pytest.mark.parametrize("content", [b"", b"no HDF5", None])
def test_files_that_cannot_be_opened(tmp_path: Path, cli: Cli, content: bytes | None) -> None:
    path = write_demos(tmp_path / "demos.hdf5")
    path.write_bytes(path.read_bytes()[:-2000] if content is None else content)
    ran = cli("dataset", "validate", "demos.hdf5", "--json")
    assert (ran.status, json.loads(ran.out)["trains"]) == (2, False)
    assert_refused(cli("dataset", "validate", "demos.hdf5"), "demos.hdf5")
    assert_refused(cli("dataset", "repair", "demos.hdf5", "--out", "new.hdf5"), "demos.hdf5")
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_without_a_sound_demo_is_not_repaired(tmp_path: Path, cli: Cli) -> None:
    path = write_demos(tmp_path / "demos.hdf5")
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            demo["actions"][0] = np.nan
    ran = cli("dataset", "repair", "demos.hdf5", "--out", "new.hdf5")
    assert_refused(ran, "demos.hdf5", "demo_0", "'actions' holds NaN")
    assert list(tmp_path.iterdir()) == [path]
