"""robomimic's `get_dataset_info` under its name."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from checks import assert_refused
from demo_files import write_demos
from tiny import run_process

from raymimic.cli.entry import run_script
from raymimic.errors import DatasetError
from raymimic.scripts.get_dataset_info import arguments, dataset_info, main


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_demos(tmp_path / "demos.hdf5", (5, 7, 4), masks={"few": ["demo_0", "demo_2"]})


def test_lines(path: Path) -> None:
    lines = list(dataset_info(str(path)))
    with h5py.File(path) as file:
        actions = np.concatenate([demo["actions"] for demo in file["data"].values()])
    for line in (
        "total transitions: 16",
        "total trajectories: 3",
        f"traj length mean: {16 / 3}",
        f"traj length std: {np.std([5, 7, 4])}",
        "traj length min: 4",
        "traj length max: 7",
        f"action min: {actions.min()}",
        f"action max: {actions.max()}",
        "filter key few with 2 demos",
        '    "env_name": "Walker2d-v5",',
        "episode demo_0 with 5 transitions",
        "    key: actions with shape (5, 2)",
        "    key: obs",
        "        observation key flat with shape (5, 3)",
    ):
        assert line in lines
    assert not any("demo_1" in line for line in lines)


def test_a_filter_key_and_all_demos(path: Path) -> None:
    lines = list(dataset_info(str(path), "few", verbose=True))
    assert lines[:4] == [
        "NOTE: using filter key few",
        "",
        "total transitions: 9",
        "total trajectories: 2",
    ]
    assert "episode demo_2 with 4 transitions" in lines
    assert "filter_key few with 2 demos: ['demo_0', 'demo_2']" in list(
        dataset_info(str(path), verbose=True)
    )


def test_the_script_shows_all_demos(path: Path, capfd) -> None:
    with pytest.raises(SystemExit) as ended:
        run_script(arguments(), main, ["--dataset", str(path), "--verbose"])
    assert ended.value.code == 0
    assert "episode demo_2 with 4 transitions" in capfd.readouterr().out


@pytest.mark.parametrize("shape", [(1 << 25, 1 << 18), (0, 2)])
def test_actions_of_an_impossible_size(path: Path, shape: tuple[int, int]) -> None:
    with h5py.File(path, "r+") as file:
        del file["data/demo_1/actions"]
        file["data/demo_1"].create_dataset(
            "actions", shape, "f4", maxshape=(None, None), chunks=(1, 2)
        )
    with pytest.raises(DatasetError, match="demo_1"):
        list(dataset_info(str(path)))


def test_actions_beyond_the_range_end_with_an_error(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["data/demo_1/actions"][0] = -1.5
    lines = dataset_info(str(path))
    with pytest.raises(DatasetError, match=r"should have actions in \[-1, 1\]"):
        list(lines)
    ran = run_process(
        "-m", "raymimic.scripts.get_dataset_info", "--dataset", "demos.hdf5", cwd=path.parent
    )
    assert_refused(ran, "demos.hdf5", "-1.5")
    assert "action min: -1.5" in ran.out
