"""Dataset formats: a reader is a class and a line, and the file appears whole or not at all."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from demo_files import write_demos
from tiny import Ran, train_args

from raymimic.data.convert import (
    FormatReader,
    convert_dataset,
    register_format,
    registered_formats,
)
from raymimic.data.metadata import content_digest, read_metadata
from raymimic.data.writer import RecordedEpisode, writing_dataset
from raymimic.errors import ConfigError, DatasetError, OutputError


@register_format("toy_text")
class ToyReader(FormatReader):
    """Lines of JSON, one for each step: the episode's name, observation, action, reward."""

    @property
    def env_meta(self) -> dict[str, Any]:
        return {"env_name": "Hopper-v5", "type": 2, "env_kwargs": {}}

    def episodes(self) -> Iterator[RecordedEpisode]:
        steps: dict[str, list[dict[str, Any]]] = {}
        for line in Path(self.source).read_text().splitlines():
            step = json.loads(line)
            steps.setdefault(step["episode"], []).append(step)
        for name, rows in steps.items():
            yield RecordedEpisode(
                obs={"flat": np.array([row["obs"] for row in rows], np.float32)},
                actions=np.array([row["action"] for row in rows], np.float32),
                rewards=np.array([row["reward"] for row in rows]),
                dones=np.zeros(len(rows)),
                filter_keys=(name[0],),
            )


def write_toy(path: Path) -> Path:
    rng = np.random.default_rng(0)
    lines = [
        {
            "episode": name,
            "obs": rng.normal(size=11).tolist(),
            "action": rng.uniform(-1, 1, 3).tolist(),
            "reward": step,
        }
        for name in ("a1", "a2", "b1")
        for step in range(20)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_a_format_of_ones_own_becomes_a_dataset_that_trains(cli: Any, tmp_path: Path) -> None:
    made = convert_dataset(write_toy(tmp_path / "toy.txt"), tmp_path / "toy.hdf5", "toy_text")
    assert (made.num_demos, made.num_transitions) == (3, 60)
    meta = read_metadata(made.path)
    assert made.digest == content_digest(made.path) == meta.digest
    assert meta.env_meta["env_name"] == "Hopper-v5"
    assert meta.filter_keys == {"a": ["demo_0", "demo_1"], "b": ["demo_2"]}
    assert not meta.problems
    with h5py.File(made.path) as file:
        assert file["data"].attrs["total"] == 60
        assert file["data/demo_2/rewards"][()].tolist() == list(range(20))
    ran: Ran = cli(*train_args(made.path, 'train.hdf5_filter_key="a"'))
    assert ran.status == 0, ran.err


def test_a_robomimic_file_is_copied_without_its_links_and_gaps(tmp_path: Path) -> None:
    other = write_demos(tmp_path / "other.hdf5", (6,))
    source = write_demos(
        tmp_path / "source.hdf5", (5, 7), names=["demo_3", "demo_10"], masks={"best": ["demo_10"]}
    )
    with h5py.File(source, "r+") as file:
        data = file["data"]
        data["demo_7"] = h5py.ExternalLink("other.hdf5", "data/demo_0")
        data["demo_3"].attrs["model_file"] = "<mujoco/>"
        data["demo_3/action_dict/grip"] = np.arange(5, dtype=np.float16)
        data["demo_3/obs/camera"] = np.full((5, 4, 4, 3), 200, np.uint8)
        data.attrs["total"], data.attrs["expert_return"] = 3, 7.5
    made = convert_dataset(source, tmp_path / "copy.hdf5", "robomimic")
    assert made.num_transitions == 18
    other.unlink()
    meta = read_metadata(made.path)
    assert (meta.filter_keys, meta.attrs) == ({"best": ["demo_2"]}, {"expert_return": 7.5})
    assert not meta.linked
    with h5py.File(made.path) as file, h5py.File(source) as original:
        first = file["data/demo_0"]
        assert first.attrs["model_file"] == "<mujoco/>"
        assert first["action_dict/grip"].dtype == np.float16
        assert first["obs/camera"].dtype == np.uint8
        assert file["data/demo_1"].attrs["num_samples"] == 6
        for key in ("obs/flat", "next_obs/flat", "actions", "rewards", "dones"):
            copied, there = file["data/demo_2"][key], original["data/demo_10"][key]
            np.testing.assert_array_equal(copied[()], there[()])
            assert copied.dtype == there.dtype


def episode(**changes: Any) -> RecordedEpisode:
    given = {"obs": {"flat": np.zeros((4, 2))}, "actions": np.zeros((4, 1))} | changes
    return RecordedEpisode(**given)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (episode(rewards=np.zeros(3)), "demo_1: 'rewards' has 3 rows, but 'actions' has 4"),
        (episode(obs={}, actions=np.zeros((0, 1))), "demo_1 has no steps"),
    ],
)
def test_nothing_is_left_of_a_dataset_that_fails(
    tmp_path: Path, wrong: RecordedEpisode, message: str
) -> None:
    target = tmp_path / "made.hdf5"
    target.write_bytes(b"an older file")

    def write() -> None:
        with writing_dataset(target, {}) as writer:
            writer.add(episode())
            writer.add(wrong)

    with pytest.raises(DatasetError, match=message):
        write()
    assert [p.name for p in tmp_path.iterdir()] == ["made.hdf5"]
    assert target.read_bytes() == b"an older file"


def test_wrong_names_places_and_empty_sources(tmp_path: Path) -> None:
    source = write_toy(tmp_path / "toy.txt")
    with pytest.raises(ConfigError, match="unknown dataset format 'toy'; did you mean 'toy_text'"):
        convert_dataset(source, tmp_path / "x.hdf5", "toy")
    with pytest.raises(OutputError, match="cannot write dataset"):
        convert_dataset(source, source / "x.hdf5", "toy_text")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DatasetError, match="holds no episodes"):
        convert_dataset(tmp_path / "empty.txt", tmp_path / "x.hdf5", "toy_text")
    assert not (tmp_path / "x.hdf5").exists()
    assert "robomimic" in registered_formats()
    with pytest.raises(ConfigError, match="'toy_text' is registered already"):
        register_format("toy_text")(type("Other", (ToyReader,), {}))
