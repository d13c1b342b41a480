"""D4RL's files and the forms of robomimic's: robosuite's, LIBERO's, mimicgen's, Isaac Lab's."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest
from checks import assert_refused
from tiny import LAYERS, SETTINGS, Ran, train_args

from raymimic.data.convert import convert_dataset, export_dataset, reader_of, recognised_format
from raymimic.data.convert.heads import Head
from raymimic.data.metadata import read_metadata
from raymimic.errors import DatasetError

STEPS = 40
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMIMIC_CACHE", str(tmp_path / "cache"))


# -- D4RL --


def write_d4rl(path: Path, *, timeouts: bool = True, following: bool = False) -> Path:
    """Episodes of 10 (terminal), 10 (time limit), 1 (time limit), 9 (terminal), 10 (file's end)."""
    ends = {9: "terminals", 19: "timeouts", 20: "timeouts", 29: "terminals"}
    with h5py.File(path, "w") as file:
        observations = np.arange(STEPS * 11, dtype=np.float32).reshape(STEPS, 11)
        file["observations"] = observations
        file["actions"] = RNG.uniform(-1, 1, (STEPS, 3)).astype(np.float32)
        file["rewards"] = np.arange(STEPS, dtype=np.float32)
        for name in ("terminals", "timeouts"):
            if name == "terminals" or timeouts:
                file[name] = np.array([ends.get(i) == name for i in range(STEPS)])
        if following:
            after = observations + 11
            for i in ends:
                after[i] = -1 - i
            file["next_observations"] = after
        file["infos/qpos"] = observations[:, :6]
        file["metadata/algorithm"] = "SAC"
    return path


def transitions_as_d4rl_has_them(path: Path) -> list[tuple[Any, ...]]:
    """The loop over steps of `qlearning_dataset`, in plain Python."""
    with h5py.File(path) as file:
        data = {name: file[name][()] for name in file if isinstance(file[name], h5py.Dataset)}
    return [
        (*data["observations"][i], *data["actions"][i], data["rewards"][i], data["terminals"][i])
        for i in range(STEPS - 1)
        if not data["timeouts"][i]
    ]


def test_d4rl_gives_its_own_transitions(tmp_path: Path) -> None:
    path = write_d4rl(tmp_path / "hopper_medium-v2.hdf5")
    done = convert_dataset(path, tmp_path / "out.hdf5")
    assert done.format == "d4rl"
    assert read_metadata(done.path).env_meta["env_name"] == "hopper-medium-v2"
    rows, following, ends = [], [], []
    with h5py.File(done.path) as file:
        assert sorted(file["data"]) == [f"demo_{i}" for i in range(4)]
        for i in range(4):
            demo = file[f"data/demo_{i}"]
            for name in ("obs/flat", "actions"):
                assert len(demo[name]) == len(demo["dones"])
            rows += [
                (*o, *a, r, d)
                for o, a, r, d in zip(
                    demo["obs/flat"], demo["actions"], demo["rewards"], demo["dones"], strict=True
                )
            ]
            going_on = demo["dones"][()] == 0
            following.append((demo["next_obs/flat"] - demo["obs/flat"][()])[going_on])
            ends.append((int(demo["dones"][-1]), int(demo["truncated"][-1])))
            np.testing.assert_array_equal(demo["infos/qpos"], demo["obs/flat"][:, :6])
    assert rows == transitions_as_d4rl_has_them(path)
    assert np.all(np.concatenate(following) == 11)  # one row further
    assert ends == [(1, 0), (0, 1), (1, 0), (0, 1)]


def test_d4rl_with_next_observations_keeps_every_step_and_finds_the_ends(tmp_path: Path) -> None:
    path = write_d4rl(tmp_path / "maze.hdf5", timeouts=False, following=True)
    done = convert_dataset(path, tmp_path / "out.hdf5")
    assert (done.num_demos, done.num_transitions) == (5, STEPS)
    assert (done.terminated, done.truncated) == (2, 3)
    with h5py.File(done.path) as file, h5py.File(path) as source:
        after = np.concatenate([file[f"data/demo_{i}/next_obs/flat"] for i in range(5)])
        np.testing.assert_array_equal(after, source["next_observations"])
    assert any("experiment.env" in line for line in done.mapping)


def test_the_commands_that_info_prints_work(
    cli: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_d4rl(tmp_path / "hopper-random-v2.hdf5").name
    ran = cli("dataset", "info", source, "--report", "page.html")
    assert_refused(ran, "raymimic dataset convert hopper-random-v2.hdf5")
    assert not (tmp_path / "page.html").exists()
    lines = cli("dataset", "info", source).out.splitlines()
    convert, train = (
        shlex.split(line.rpartition(": raymimic ")[2]) for line in lines if ": raymimic " in line
    )
    assert cli(*convert).status == 0
    ran = cli("train", "--workers", "0", *train[1:], *LAYERS["bc"], *SETTINGS)
    assert ran.status == 0, ran.err


def test_d4rl_trains_from_the_source(cli: Callable[..., Ran], tmp_path: Path) -> None:
    ran = cli(*train_args(write_d4rl(tmp_path / "hopper-random-v2.hdf5"), algo="bc"))
    assert ran.status == 0, ran.err
    (cached,) = (tmp_path / "cache" / "converted").glob("*/*.hdf5")
    assert json.loads(read_metadata(cached).attrs["source"])["name"] == "hopper-random-v2.hdf5"


def shorter(file: h5py.File) -> None:
    del file["rewards"]
    file["rewards"] = np.zeros(STEPS - 1)


def texts(file: h5py.File) -> None:
    del file["actions"]
    file["actions"] = np.array([b"left"] * STEPS)


def empty(file: h5py.File) -> None:
    for name in list(file):
        del file[name]
    for name in ("observations", "actions", "rewards", "terminals"):
        file[name] = np.zeros((0, 1))


def raw(file: h5py.File) -> None:
    del file["actions"]
    file.create_dataset("actions", (STEPS, 3), "f4", external=[("/etc/passwd", 0, 4 * STEPS * 3)])


def virtual(file: h5py.File) -> None:
    del file["actions"]
    layout = h5py.VirtualLayout((STEPS, 3), np.float32)
    layout[:] = h5py.VirtualSource("/nowhere/else.hdf5", "x", (STEPS, 3))
    file.create_virtual_dataset("actions", layout)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (shorter, "'rewards' has 39 rows, but 'actions' has 40"),
        (texts, "'actions' is not an array of numbers"),
        (empty, "has no actions"),
        (raw, "external raw storage"),
        (virtual, "there is no such file"),
    ],
)
def test_a_bad_d4rl_file_is_a_sentence(
    harm: Callable[[h5py.File], None], says: str, tmp_path: Path, cli: Callable[..., Ran]
) -> None:
    path = write_d4rl(tmp_path / "bad.hdf5")
    with h5py.File(path, "a") as file:
        harm(file)
    ran = cli("dataset", "convert", str(path), "out.hdf5")
    assert ran.status == 2
    assert says in ran.err
    assert len(ran.err.splitlines()) == 1
    assert not (tmp_path / "out.hdf5").exists()


# -- robosuite --


def write_robosuite(path: Path) -> Path:
    info = {"env_name": "Lift", "robots": "Panda", "controller_configs": {"type": "OSC_POSE"}}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for i, steps in enumerate((6, 8), 1):
            demo = data.create_group(f"demo_{i}")
            demo.attrs["model_file"] = f"<mujoco>{'x' * 100_000}</mujoco>"
            demo["states"] = RNG.normal(size=(steps, 32))
            demo["actions"] = RNG.uniform(-1, 1, (steps, 7))
        data.attrs["date"], data.attrs["time"] = "11-30-2026", "9:0:0"
        data.attrs["repository_version"] = "1.5.1"
        data.attrs["env"] = "Lift"
        data.attrs["env_info"] = json.dumps(info)
    return path


def test_robosuites_file_gains_env_args_and_says_how_to_go_on(
    tmp_path: Path, cli: Callable[..., Ran]
) -> None:
    path = write_robosuite(tmp_path / "demo.hdf5")
    ran = cli("dataset", "convert", str(path), "out.hdf5")
    assert ran.status == 0, ran.err
    assert "raymimic dataset extract-obs" in ran.out
    meta = read_metadata(tmp_path / "out.hdf5")
    assert meta.env_meta == {
        "env_name": "Lift",
        "env_version": "1.5.1",
        "type": 1,
        "env_kwargs": {"robots": "Panda", "controller_configs": {"type": "OSC_POSE"}},
    }
    with h5py.File(path) as was, h5py.File(tmp_path / "out.hdf5") as now:
        for i in range(2):
            old, new = was[f"data/demo_{i + 1}"], now[f"data/demo_{i}"]
            np.testing.assert_array_equal(old["states"], new["states"])
            np.testing.assert_array_equal(old["actions"], new["actions"])
            assert old.attrs["model_file"] == new.attrs["model_file"]
            assert new.attrs["num_samples"] == len(old["actions"])
    told = cli("dataset", "info", str(path))
    assert "form: robosuite_raw; raymimic dataset convert" in told.out


def test_robosuites_arguments_must_be_json(tmp_path: Path) -> None:
    path = write_robosuite(tmp_path / "demo.hdf5")
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_info"] = "__import__('os')"
    with pytest.raises(DatasetError, match=r"'env_info'\] is not JSON"):
        convert_dataset(path, tmp_path / "out.hdf5")
    with h5py.File(path, "a") as file:
        del file["data"].attrs["env"]
    with pytest.raises(DatasetError, match=r"'env'\] does not name"):
        convert_dataset(path, tmp_path / "out.hdf5", "robosuite_raw")


# -- LIBERO --


def write_libero(path: Path) -> Path:
    problem = {"problem_name": "libero_tabletop", "language_instruction": '"pick up the bowl"'}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(
            {"type": 1, "env_name": "Libero_Tabletop_Manipulation", "env_kwargs": {}}
        )
        data.attrs["problem_info"] = json.dumps(problem)
        data.attrs["bddl_file_name"] = "libero/bowl.bddl"
        data.attrs["macros_image_convention"] = "opengl"
        data.attrs["num_demos"], data.attrs["total"] = 1, 5
        demo = data.create_group("demo_0")
        demo.attrs["num_samples"], demo.attrs["model_file"] = 5, "<mujoco/>"
        demo.attrs["init_state"] = np.zeros(9)
        demo["obs/agentview_rgb"] = RNG.integers(0, 255, (5, 16, 16, 3), dtype=np.uint8)
        demo["obs/joint_states"] = RNG.normal(size=(5, 7))
        demo["robot_states"], demo["states"] = np.zeros((5, 9)), np.zeros((5, 40))
        demo["actions"] = RNG.uniform(-1, 1, (5, 7))
        demo["dones"] = demo["rewards"] = np.eye(1, 5, 4, dtype=np.uint8)[0]
    return path


def test_liberos_pictures_are_turned_and_its_instruction_is_told(tmp_path: Path) -> None:
    path = write_libero(tmp_path / "bowl_demo.hdf5")
    done = convert_dataset(path, tmp_path / "out.hdf5")
    assert done.format == "libero"
    assert any("lang='pick up the bowl'" in line for line in done.mapping)
    with h5py.File(path) as was, h5py.File(done.path) as now:
        old, new = was["data/demo_0/obs"], now["data/demo_0/obs"]
        np.testing.assert_array_equal(old["agentview_rgb"][()][:, ::-1], new["agentview_rgb"])
        np.testing.assert_array_equal(old["joint_states"], new["joint_states"])
        assert now["data"].attrs["lang"] == "pick up the bowl"
    again = convert_dataset(done.path, tmp_path / "again.hdf5")
    with h5py.File(done.path) as was, h5py.File(again.path) as now:
        key = "data/demo_0/obs/agentview_rgb"
        np.testing.assert_array_equal(was[key], now[key])  # not turned twice


# -- mimicgen --


def test_mimicgens_lists_of_source_demos_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "stack_d0.hdf5"
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"type": 1, "env_name": "Stack_D0", "env_kwargs": {}})
        demo = data.create_group("demo_0")
        demo["obs/object"], demo["actions"] = np.zeros((5, 4)), np.zeros((5, 7))
        demo["datagen_info/object_poses/cubeA"] = np.tile(np.eye(4), (5, 1, 1))
        demo["src_demo_inds"] = np.array([3, 4, 1])
        demo["src_demo_labels"] = np.zeros((5, 1), int)
    done = convert_dataset(path, tmp_path / "out.hdf5")
    assert done.format == "mimicgen"
    assert "src_demo_inds: left out, it has no row for each step" in done.mapping
    with h5py.File(done.path) as file:
        demo = file["data/demo_0"]
        assert demo["datagen_info/object_poses/cubeA"].shape == (5, 4, 4)
        assert "src_demo_inds" not in demo


# -- Isaac Lab --


def write_isaac(path: Path, *, one_array: bool = False, success: bool | None = True) -> Path:
    """As `HDF5DatasetFileHandler` writes the terms of `ActionStateRecorderManagerCfg`."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = 13
        data.attrs["env_args"] = json.dumps({"env_name": "Isaac-Stack-Cube-Franka-v0", "type": 2})
        for i, steps in enumerate((6, 7)):
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = steps
            if success is not None:
                demo.attrs["success"] = success
            pose = RNG.normal(size=(steps, 7)).astype(np.float32)
            demo.create_dataset("actions", data=pose, compression="gzip")
            demo.create_dataset("processed_actions", data=pose, compression="gzip")
            if one_array:
                demo["obs"] = pose
            else:
                demo["obs/joint_pos"] = pose
                demo["obs/datagen_info/object_pose/cube_1"] = np.zeros((steps, 4, 4), np.float32)
            demo["initial_state/articulation/robot/root_pose"] = pose[:1]
            demo["states/articulation/robot/root_pose"] = pose
    return path


def test_isaac_labs_success_becomes_rewards_and_dones(tmp_path: Path) -> None:
    path = write_isaac(tmp_path / "dataset.hdf5")
    done = convert_dataset(path, tmp_path / "out.hdf5")
    assert (done.format, done.num_transitions, done.terminated) == ("isaac_lab", 13, 2)
    with h5py.File(path) as was, h5py.File(done.path) as now:
        old, new = was["data/demo_1"], now["data/demo_1"]
        np.testing.assert_array_equal(old["obs/joint_pos"], new["obs/joint_pos"])
        assert new["obs/datagen_info/object_pose/cube_1"].shape == (7, 4, 4)
        assert new["rewards"][()].tolist() == new["dones"][()].tolist() == [0] * 6 + [1]
        name = "states/articulation/robot/root_pose"
        np.testing.assert_array_equal(old[name], new[f"scene_{name}"])
        assert "initial_state" not in new
        assert "next_obs" not in new


def test_isaac_lab_without_success_gains_no_rewards_and_one_array_is_named(
    tmp_path: Path,
) -> None:
    path = write_isaac(tmp_path / "dataset.hdf5", one_array=True, success=None)
    done = convert_dataset(path, tmp_path / "out.hdf5")
    assert any(line.startswith("no success, no rewards") for line in done.mapping)
    with h5py.File(done.path) as file:
        assert file["data/demo_0/obs/flat"].shape == (6, 7)
        assert "rewards" not in file["data/demo_0"]


def test_isaac_labs_recordings_train_as_they_are(cli: Callable[..., Ran], tmp_path: Path) -> None:
    path = write_isaac(tmp_path / "dataset.hdf5")
    keys = 'observation.modalities.obs.low_dim=["joint_pos"]'
    ran = cli(*train_args(path, keys, "train.batch_size=4", algo="bc"))
    assert ran.status == 0, ran.err
    assert not (tmp_path / "cache").exists()


# -- all --


def test_each_form_is_recognised_as_itself(tmp_path: Path, hopper: Path) -> None:
    for write, name in (
        (write_d4rl, "d4rl"),
        (write_robosuite, "robosuite_raw"),
        (write_libero, "libero"),
        (write_isaac, "isaac_lab"),
    ):
        path = write(tmp_path / f"{name}.hdf5")
        kind = recognised_format(path)
        assert kind is not None
        assert kind.format == name
    kind = recognised_format(hopper)
    assert kind is not None
    assert kind.format == "robomimic"


def test_a_file_of_no_format_is_told_so_with_the_formats(
    tmp_path: Path, cli: Callable[..., Ran]
) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    for name in ("notes.txt", "empty"):
        ran = cli("dataset", "convert", name, "out.hdf5")
        assert ran.status == 2
        assert "none of the formats" in ran.err
        assert "minari" in ran.err
    whole = write_d4rl(tmp_path / "whole.hdf5").read_bytes()
    (tmp_path / "cut.hdf5").write_bytes(whole[: len(whole) // 2])
    for to in ((), ("--to", "minari")):
        ran = cli("dataset", "convert", "cut.hdf5", "out.hdf5", *to)
        assert ran.status == 2
        assert "'cut.hdf5' is truncated" in ran.err
    ran = cli("dataset", "convert", "nowhere.hdf5", "out.hdf5")
    assert ran.status == 2
    assert "does not exist" in ran.err
    ran = cli("dataset", "convert", "notes.txt", "out.hdf5", "--format", "d4lr")
    assert ran.status == 2
    assert "did you mean 'd4rl'" in ran.err
    ran = cli("dataset", "convert", "notes.txt", "out", "--format", "d4rl")
    assert "end its name in .hdf5" in ran.err
    ran = cli("dataset", "convert", "whole.hdf5", "cut.hdf5")
    assert ran.status == 2
    assert "'cut.hdf5' exists already" in ran.err
    Path("link.hdf5").symlink_to("elsewhere.hdf5")
    assert "'link.hdf5' exists already" in cli("dataset", "convert", "whole.hdf5", "link.hdf5").err
    ran = cli("dataset", "convert", "whole.hdf5", "s3://bucket/x-v0", "--to", "minari")
    assert ran.status == 2
    assert "'s3://bucket/x-v0': write it to a local disk" in ran.err
    assert not Path("s3:").exists()


@pytest.mark.parametrize("name", ["d4rl", "robosuite_raw", "libero", "isaac_lab", "minari"])
def test_a_named_format_says_why_a_source_is_not_of_it(
    name: str, tmp_path: Path, hopper: Path
) -> None:
    (tmp_path / "empty.hdf5").write_bytes(b"")
    with h5py.File(tmp_path / "bare.hdf5", "w") as file:
        file["x"] = np.zeros(3)
    for path in ("empty.hdf5", "bare.hdf5"):
        with pytest.raises(DatasetError, match=path), reader_of(tmp_path / path, name) as reader:
            list(reader.episodes())


def test_a_folder_of_two_formats_is_refused(tmp_path: Path, cli: Callable[..., Ran]) -> None:
    from raymimic.data.convert import FormatReader, register_format

    @register_format("test_logs")
    class Logs(FormatReader):
        env_meta: ClassVar[dict[str, Any]] = {}

        @classmethod
        def recognises(cls, head: Head) -> bool:
            return (Path(head.source) / "logs.txt").is_file()

        def episodes(self) -> Any:
            yield from ()

    (tmp_path / "mixed" / "data").mkdir(parents=True)
    (tmp_path / "mixed" / "logs.txt").write_text("")
    (tmp_path / "mixed" / "data" / "metadata.json").write_text('{"data_format": "hdf5"}')
    for command in (
        ("dataset", "convert", "mixed", "out.hdf5"),
        ("dataset", "info", "mixed"),
        train_args("mixed"),
    ):
        ran = cli(*command)
        assert ran.status == 2
        assert "looks like 'minari' and 'test_logs' at once" in ran.err
        assert len(ran.err.splitlines()) == 1


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = write_d4rl(tmp_path / "hopper.hdf5")

    def touch(done: int, total: int | None) -> None:
        with path.open("ab") as file:
            file.write(b"\0")

    with pytest.raises(DatasetError, match="changed while it was read"):
        convert_dataset(path, tmp_path / "out.hdf5", progress=touch)
    with pytest.raises(DatasetError, match="changed while it was read"):
        export_dataset(path, tmp_path / "out", "lerobot", progress=touch)
    assert list(tmp_path.iterdir()) == [path]


def test_the_source_is_never_overwritten(tmp_path: Path) -> None:
    path = write_d4rl(tmp_path / "hopper.hdf5")
    before = path.read_bytes()
    with pytest.raises(DatasetError, match="is the source itself"):
        convert_dataset(path, path)
    assert path.read_bytes() == before


def test_observations_of_two_shapes_are_refused(tmp_path: Path) -> None:
    path = write_d4rl(tmp_path / "bad.hdf5", timeouts=False, following=True)
    with h5py.File(path, "a") as file:
        del file["next_observations"]
        file["next_observations"] = np.zeros((STEPS, 6))
    with pytest.raises(DatasetError, match=r"'next_observations' is \[40, 6\], but"):
        convert_dataset(path, tmp_path / "out.hdf5")


def test_an_array_that_claims_more_than_the_memory_is_refused_at_once(tmp_path: Path) -> None:
    path = write_d4rl(tmp_path / "huge.hdf5")
    with h5py.File(path, "a") as file:
        for name in ("observations", "actions", "rewards", "terminals"):
            del file[name]
            file.create_dataset(name, (2**44, 2), "u1", chunks=(2**10, 2))
        del file["timeouts"], file["infos"]
    with pytest.raises(DatasetError, match="claims 35,184,372,088,832 bytes, more than are free"):
        convert_dataset(path, tmp_path / "out.hdf5")
    path = write_isaac(tmp_path / "isaac.hdf5")
    with h5py.File(path, "a") as file:
        del file["data/demo_0/obs/joint_pos"]
        file["data/demo_0/obs"].create_dataset("joint_pos", (6, 2**44), "u1", chunks=(1, 2**10))
    with pytest.raises(DatasetError, match="more than are free"):
        convert_dataset(path, tmp_path / "out.hdf5")


def test_a_large_array_that_was_never_written_is_refused(tmp_path: Path) -> None:
    path = write_isaac(tmp_path / "isaac.hdf5")
    with h5py.File(path, "a") as file:
        file["data/demo_0/obs"].create_dataset("more", (6, 2**24), "f4", chunks=(1, 2**10))
    with pytest.raises(DatasetError, match="none was ever written"):
        convert_dataset(path, tmp_path / "out.hdf5")
