"""Minari's datasets, as its library writes and reads them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
from tiny import Ran, train_args

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")
minari = pytest.importorskip("minari")

from minari.data_collector.episode_buffer import EpisodeBuffer  # noqa: E402

from raymimic.data.convert import convert_dataset, export_dataset  # noqa: E402
from raymimic.data.metadata import read_metadata  # noqa: E402
from raymimic.errors import DatasetError  # noqa: E402

LENGTHS = (5, 7, 4)
IMAGE = (32, 40, 3)
SPACE = gymnasium.spaces.Dict(
    {
        "state": gymnasium.spaces.Dict(
            {"pos": gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)}
        ),
        "image": gymnasium.spaces.Box(0, 255, IMAGE, np.uint8),
        "say": gymnasium.spaces.Text(5),
    }
)
ACTIONS = gymnasium.spaces.Box(-1, 1, (3,), np.float32)


@pytest.fixture(autouse=True)
def local_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("RAYMIMIC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "minari"


def smooth_images(rows: int) -> np.ndarray:
    """Pictures that survive JPEG nearly unchanged."""
    x, y = np.meshgrid(np.arange(IMAGE[1]), np.arange(IMAGE[0]))
    frames = [np.stack([2 * x + i, 3 * y, x + y], -1) for i in range(rows)]
    return np.stack(frames).astype(np.uint8)


def buffers(nested: bool = False) -> list[Any]:
    rng = np.random.default_rng(0)
    made = []
    for i, steps in enumerate(LENGTHS):
        obs: Any = rng.normal(size=(steps + 1, 11))
        if nested:
            obs = {
                "state": {"pos": obs[:, :3].astype(np.float32)},
                "image": smooth_images(steps + 1),
                "say": ["hello"] * (steps + 1),
            }
        made.append(
            EpisodeBuffer(
                id=i,
                seed=10 + i,
                observations=obs,
                actions=rng.uniform(-1, 1, (steps, 3)).astype(np.float32),
                rewards=np.arange(steps, dtype=np.float64),
                terminations=np.arange(steps) == (steps - 1 if i == 0 else -1),
                truncations=np.arange(steps) == (steps - 1 if i == 1 else -1),
                infos={
                    "success": [i == 0 and step == steps for step in range(steps + 1)],
                    "qpos": rng.normal(size=(steps + 1, 6)),
                },
            )
        )
    return made


def write_flat(name: str = "hopper/test-v0") -> list[Any]:
    made = buffers()
    minari.create_dataset_from_buffers(name, made, env="Hopper-v5")
    return made


def write_nested(data_format: str = "hdf5", **options: Any) -> list[Any]:
    made = buffers(nested=True)
    minari.create_dataset_from_buffers(
        "dict/test-v0",
        made,
        observation_space=SPACE,
        action_space=ACTIONS,
        data_format=data_format,
        **options,
    )
    return made


def test_a_local_id_becomes_a_file_with_its_ends_apart(tmp_path: Path) -> None:
    made = write_flat()
    done = convert_dataset("hopper/test-v0", tmp_path / "out.hdf5")
    assert (done.num_demos, done.num_transitions) == (3, sum(LENGTHS))
    assert (done.terminated, done.truncated, done.format) == (1, 1, "minari")
    meta = read_metadata(done.path)
    assert meta.env_meta == {"env_name": "Hopper-v5", "type": 2, "env_kwargs": {}}
    source = json.loads(meta.attrs["source"])
    assert source["name"] == "hopper/test-v0"
    assert source["format"] == "minari"
    assert source["version"] == minari.__version__
    assert source["digest"].startswith("sha256-folder:")
    with h5py.File(done.path) as file:
        for i, episode in enumerate(made):
            demo = file[f"data/demo_{i}"]
            np.testing.assert_array_equal(demo["obs/flat"], episode.observations[:-1])
            np.testing.assert_array_equal(demo["next_obs/flat"], episode.observations[1:])
            np.testing.assert_array_equal(demo["actions"], episode.actions)
            np.testing.assert_array_equal(demo["rewards"], episode.rewards)
            np.testing.assert_array_equal(demo["dones"], episode.terminations)
            np.testing.assert_array_equal(demo["truncated"], episode.truncations)
            np.testing.assert_array_equal(demo["infos/qpos"], episode.infos["qpos"][1:])
            assert demo.attrs["seed"] == 10 + i
            assert demo.attrs["success"] == (i == 0)
    assert "observations -> obs/flat and, one step later, next_obs/flat [11] float64" in (
        done.mapping
    )


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
@pytest.mark.parametrize("jpeg", [True, False])
def test_nested_observations_and_pictures_are_those_that_the_library_reads(
    data_format: str, jpeg: bool, tmp_path: Path, local_datasets: Path
) -> None:
    write_nested(data_format, jpeg_encoding=jpeg)
    done = convert_dataset(local_datasets / "dict" / "test-v0", tmp_path / "out.hdf5")
    assert any("observations/say: left out" in line for line in done.mapping)
    assert any("decoded from JPEG" in line for line in done.mapping) == jpeg
    with h5py.File(done.path) as file:
        for episode in minari.load_dataset("dict/test-v0").iterate_episodes():
            demo = file[f"data/demo_{episode.id}"]
            for key, values in (
                ("state/pos", episode.observations["state"]["pos"]),
                ("image", episode.observations["image"]),
            ):
                np.testing.assert_array_equal(demo[f"obs/{key}"], values[:-1])
                np.testing.assert_array_equal(demo[f"next_obs/{key}"], values[1:])
            np.testing.assert_array_equal(demo["actions"], episode.actions)
            np.testing.assert_array_equal(demo["rewards"], episode.rewards)
            np.testing.assert_array_equal(demo["dones"], episode.terminations)
            np.testing.assert_array_equal(demo["truncated"], episode.truncations)
            np.testing.assert_array_equal(demo["infos/qpos"], episode.infos["qpos"][1:])


@pytest.mark.parametrize("nested", [False, True])
def test_the_way_there_and_back_is_exact(
    nested: bool, tmp_path: Path, local_datasets: Path
) -> None:
    made = write_nested(jpeg_encoding=False) if nested else write_flat("dict/test-v0")
    convert_dataset("dict/test-v0", tmp_path / "out.hdf5")
    back = export_dataset(tmp_path / "out.hdf5", local_datasets / "back" / "test-v3", "minari")
    assert back.num_transitions == sum(LENGTHS)
    dataset = minari.load_dataset("back/test-v3")
    assert dataset.total_episodes == 3
    if not nested:
        assert dataset.env_spec.id == "Hopper-v5"
    for was, now in zip(made, dataset.iterate_episodes(), strict=True):
        observations = now.observations
        if nested:
            assert set(observations) == {"state", "image"}
            np.testing.assert_array_equal(observations["image"], was.observations["image"])
            observations, was_seen = observations["state"]["pos"], was.observations["state"]["pos"]
        else:
            was_seen = was.observations
        np.testing.assert_array_equal(observations, was_seen)
        for name in ("actions", "rewards", "terminations", "truncations"):
            np.testing.assert_array_equal(getattr(now, name), getattr(was, name))
        np.testing.assert_array_equal(now.infos["qpos"], was.infos["qpos"])
        np.testing.assert_array_equal(now.infos["success"], was.infos["success"])
    assert [m["seed"] for m in dataset.storage.get_episode_metadata(range(3))] == [10, 11, 12]


def test_a_recorded_file_without_time_limits_ends_in_truncations(
    hopper: Path, local_datasets: Path
) -> None:
    back = export_dataset(hopper, local_datasets / "hopper-v0", "minari")
    for episode in minari.load_dataset("hopper-v0").iterate_episodes():
        assert bool(episode.terminations[-1]) != bool(episode.truncations[-1])
        assert not episode.truncations[:-1].any()
    assert any(line.startswith("truncations: at the last step") for line in back.mapping)


def test_a_dataset_of_another_format_goes_there_in_one_command(
    cli: Callable[..., Ran], tmp_path: Path, local_datasets: Path
) -> None:
    rows = np.arange(40, dtype=np.float32).reshape(20, 2)
    with h5py.File(tmp_path / "play.hdf5", "w") as file:
        file["observations"], file["actions"], file["rewards"] = rows, rows / 40, rows[:, 0]
        file["terminals"], file["timeouts"] = np.arange(20) == 9, np.arange(20) == 19
    ran = cli("dataset", "convert", "play.hdf5", str(local_datasets / "play-v0"), "--to", "minari")
    assert ran.status == 0, ran.err
    assert "2 episodes, 19 steps; 1 end in a done, 1 were truncated" in ran.out
    first, second = minari.load_dataset("play-v0").iterate_episodes()
    np.testing.assert_array_equal(first.observations[:-1], rows[:10])
    np.testing.assert_array_equal(second.observations, rows[10:])
    assert first.terminations[-1]
    assert second.truncations[-1]


def test_nothing_is_left_where_a_folder_holds_something_or_demos_differ(
    hopper: Path, tmp_path: Path, cli: Callable[..., Ran]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    ran = cli("dataset", "convert", str(hopper), str(tmp_path / "full"), "--to", "minari")
    assert ran.status == 2
    assert "is there already" in ran.err
    copy = shutil.copy(hopper, tmp_path / "differs.hdf5")
    with h5py.File(copy, "a") as file:
        file["data/demo_1/obs/more"] = np.zeros((len(file["data/demo_1/actions"]), 2))
    ran = cli("dataset", "convert", str(copy), str(tmp_path / "out-v0"), "--to", "minari")
    assert ran.status == 2
    assert "one space" in ran.err
    left = {path.name for path in tmp_path.iterdir()}
    assert not {name for name in left if name.startswith((".out", ".full", "out"))}


def test_a_training_takes_the_id_and_converts_once(
    cli: Callable[..., Ran], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_flat()
    for times in (1, 1):
        ran = cli(*train_args("hopper/test-v0", "train.batch_size=4"))  # type: ignore[arg-type]
        assert ran.status == 0, ran.err
        assert caplog.text.count("was converted once into") == times
    cached = list((tmp_path / "cache" / "converted").glob("*/*.hdf5"))
    assert [path.name for path in cached] == ["test-v0.hdf5"]


def test_info_names_the_format_and_the_command(cli: Callable[..., Ran], tmp_path: Path) -> None:
    write_flat()
    ran = cli("dataset", "info", "hopper/test-v0")
    assert ran.status == 0, ran.err
    assert "format 'minari'" in ran.out
    assert "Hopper-v5" in ran.out
    command = next(line for line in ran.out.splitlines() if line.startswith("convert: "))
    ran = cli(*command.removeprefix("convert: raymimic ").split())
    assert ran.status == 0, ran.err
    assert "3 episodes, 16 steps; 1 end in a done, 1 were truncated" in ran.out
    assert (tmp_path / "test-v0.hdf5").is_file()
    told = json.loads(cli("dataset", "info", "hopper/test-v0", "--json").out)
    assert (told["format"], told["episodes"]) == ("minari", 3)


# -- what strangers' files may hold --


def data_of(local_datasets: Path) -> Path:
    return local_datasets / "hopper" / "test-v0" / "data"


def link_out(data: Path) -> None:
    outside = data.parents[2] / "secret.hdf5"
    with h5py.File(outside, "w") as file:
        file["x"] = np.zeros((6, 11))
    with h5py.File(data / "main_data.hdf5", "a") as file:
        del file["episode_0/observations"]
        file["episode_0/observations"] = h5py.ExternalLink(str(outside), "x")


def virtual_out(data: Path) -> None:
    outside = data.parents[2] / "secret.hdf5"
    with h5py.File(outside, "w") as file:
        file["x"] = np.zeros((6, 11))
    layout = h5py.VirtualLayout((6, 11), np.float64)
    layout[:] = h5py.VirtualSource(outside, "x", (6, 11))
    with h5py.File(data / "main_data.hdf5", "a") as file:
        del file["episode_0/observations"]
        file["episode_0"].create_virtual_dataset("observations", layout)


def no_actions(data: Path) -> None:
    with h5py.File(data / "main_data.hdf5", "a") as file:
        del file["episode_1/actions"]
        file["episode_1/actions"] = np.zeros((0, 3), np.float32)


def lost_actions(data: Path) -> None:
    with h5py.File(data / "main_data.hdf5", "a") as file:
        del file["episode_1/actions"]


def objects(data: Path) -> None:
    with h5py.File(data / "main_data.hdf5", "a") as file:
        del file["episode_0/rewards"]
        file["episode_0"].create_dataset("rewards", (5,), h5py.ref_dtype)


def truncated(data: Path) -> None:
    path = data / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[:3000])


def lost(data: Path) -> None:
    (data / "main_data.hdf5").unlink()


def short_observations(data: Path) -> None:
    with h5py.File(data / "main_data.hdf5", "a") as file:
        file["episode_2/observations"].resize((4, 11))


def strange_format(data: Path) -> None:
    meta = json.loads((data / "metadata.json").read_text())
    (data / "metadata.json").write_text(json.dumps({**meta, "data_format": "pickle"}))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (link_out, "outside the dataset's folder"),
        (virtual_out, "outside the dataset's folder"),
        (no_actions, "has no actions"),
        (lost_actions, "has no 'actions'"),
        (objects, "not an array of numbers"),
        (truncated, "truncated"),
        (lost, "does not exist"),
        (short_observations, "one observation more than actions"),
        (strange_format, "'data_format' is 'pickle'"),
    ],
)
def test_a_bad_dataset_is_refused_in_a_sentence(
    harm: Callable[[Path], None],
    says: str,
    local_datasets: Path,
    tmp_path: Path,
    cli: Callable[..., Ran],
) -> None:
    write_flat()
    harm(data_of(local_datasets))
    ran = cli("dataset", "convert", "hopper/test-v0", "out.hdf5")
    assert ran.status == 2
    assert says in ran.err
    assert len(ran.err.splitlines()) == 1
    assert not list(tmp_path.glob("*out.hdf5*"))


@pytest.mark.parametrize("picture", [b"\x00" * 40, b"GIF89a" + b"\x00" * 60])
def test_a_picture_that_is_no_jpeg_of_its_size_is_refused(
    picture: bytes, local_datasets: Path, tmp_path: Path
) -> None:
    write_nested()
    with h5py.File(local_datasets / "dict/test-v0/data/main_data.hdf5", "a") as file:
        del file["episode_0/observations/image"]
        rows = np.tile(np.frombuffer(picture, np.uint8), (6, 1))
        file["episode_0/observations/image"] = rows
    with pytest.raises(DatasetError, match="row 0 is no picture"):
        convert_dataset("dict/test-v0", tmp_path / "out.hdf5")


def test_a_picture_of_a_claimed_size_takes_no_memory(local_datasets: Path, tmp_path: Path) -> None:
    write_nested()
    path = local_datasets / "dict/test-v0/data/metadata.json"
    meta = json.loads(path.read_text())
    space = json.loads(meta["observation_space"])
    space["subspaces"]["image"] |= {"shape": [10**6, 10**6, 3], "low": 0, "high": 255}
    path.write_text(json.dumps({**meta, "observation_space": json.dumps(space)}))
    with pytest.raises(DatasetError, match="it is 32x40"):
        convert_dataset("dict/test-v0", tmp_path / "out.hdf5")


def test_discrete_actions_are_refused(tmp_path: Path) -> None:
    made = [
        EpisodeBuffer(
            id=0,
            observations=np.zeros((4, 2)),
            actions=np.array([0, 1, 2]),
            rewards=np.zeros(3),
            terminations=np.zeros(3, bool),
            truncations=np.zeros(3, bool),
        )
    ]
    minari.create_dataset_from_buffers(
        "discrete-v0",
        made,
        observation_space=gymnasium.spaces.Box(-1, 1, (2,)),
        action_space=gymnasium.spaces.Discrete(3),
    )
    with pytest.raises(DatasetError, match="its actions are Discrete"):
        convert_dataset("discrete-v0", tmp_path / "out.hdf5")


def test_a_damaged_arrow_file_is_a_sentence(local_datasets: Path, tmp_path: Path) -> None:
    write_nested("arrow")
    (local_datasets / "dict/test-v0/data/1/part-0.arrow").write_bytes(b"ARROW1 is not here")
    with pytest.raises(DatasetError, match="damaged"):
        convert_dataset("dict/test-v0", tmp_path / "out.hdf5")
