"""Observations of states: values, rewards and dones, dropped demos, resumption, bad input."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import ray
from checks import assert_refused
from killed_parts import killed_after_two
from rail_kind import KILLS, RAISES, record
from tiny import PROGRAMS, start_ray

from raymimic.data.curation.summary import summarize
from raymimic.data.writer import RecordedEpisode
from raymimic.envs.env_base import EnvType
from raymimic.errors import OutputError
from raymimic.recording.extract import Extraction, Extractor, extract_observations
from raymimic.recording.parts import keeping_parts
from raymimic.recording.playback import Playback, play_back
from raymimic.recording.source import Source

EXTRACT = ["dataset", "extract-obs"]
RAIL = ["--import", "rail_kind", "--actors", "0"]
IMAGES = {"cameras": ["front"], "height": 6, "width": 8}


def extracted(source: Path, out: Path, actors: int = 0, **settings) -> Path:
    args = (source, out, Extraction(**settings))
    extract_observations(*args, num_actors=actors, imports=["rail_kind"], progress=False)
    return out


def test_observations_and_everything_else_of_a_demo(tmp_path: Path) -> None:
    source = record(tmp_path / "states.hdf5")
    out = extracted(source, tmp_path / "obs.hdf5", render=IMAGES, done_mode=2)
    with h5py.File(source) as old, h5py.File(out) as new:
        assert list(new["data"]) == list(old["data"]) == [f"demo_{2 * i}" for i in range(5)]
        for name, demo in new["data"].items():
            states = old["data"][name]["states"][:]
            x = np.append(states[:, 0], states[-1, 0] + old["data"][name]["actions"][-1, 0])
            np.testing.assert_allclose(demo["obs/x"][:, 0], x[:-1], rtol=1e-6)
            np.testing.assert_allclose(demo["next_obs/x"][:, 0], x[1:], rtol=1e-6)
            image = demo["obs/front_image"]
            assert (image.shape, image.dtype) == ((4, 6, 8, 3), np.uint8)
            assert image[:, 0, 0, 0].tolist() == (50 * x[:-1]).astype(int).tolist()
            solved = x[1:] >= 1.0  # of the state after each step, as in robomimic
            assert demo["rewards"][:].tolist() == solved.tolist()
            assert demo["dones"][:].tolist() == [*solved[:-1].astype(int), 1]
            for key in ("actions", "states", "action_dict/x"):
                np.testing.assert_array_equal(demo[key], old["data"][name][key])
            assert dict(demo.attrs) == dict(old["data"][name].attrs)
            assert "old" not in demo["obs"]
        assert {key: list(mask) for key, mask in new["mask"].items()} == {
            key: list(mask) for key, mask in old["mask"].items()
        }
        attrs = new["data"].attrs
        assert (attrs["total"], attrs["expert"]) == (20, "a formula")
        env_args = json.loads(attrs["env_args"])
        assert env_args["render"].items() >= IMAGES.items()
        assert env_args["note"] == "kept"
    assert summarize(out, (), None).meta.problems == ()


@pytest.mark.parametrize(
    ("mode", "expected"), [(0, [0, 0, 1, 1]), (1, [0, 0, 0, 1]), (2, [0, 0, 1, 1])]
)
def test_done_modes_and_copies(tmp_path: Path, mode: int, expected: list[int]) -> None:
    source = Source.locate(record(tmp_path / "states.hdf5", demos=2))

    def played(**settings) -> RecordedEpisode:
        player = Extractor(source, source.env_meta(), Extraction(done_mode=mode, **settings), ())
        return player.play("demo_2")

    demo = played(copy_rewards=True, next_obs=False)
    assert demo.dones.tolist() == expected
    assert demo.rewards.tolist() == [0.5] * 4
    assert not demo.next_obs
    demo = played(copy_dones=True)
    assert demo.dones.tolist() == [0, 1, 0, 0]
    assert demo.rewards.tolist() == [0, 0, 1, 1]


def test_environments_without_rewards_of_states_keep_the_sources(cli, tmp_path: Path) -> None:
    source = record(tmp_path / "states.hdf5", demos=2, env_name="Steps")
    ran = cli(*EXTRACT, str(source), *RAIL, "--out", "obs.hdf5", "--done_mode", "2")
    assert ran.status == 0, ran.err
    assert "rewards and dones are the source's" in ran.out
    with h5py.File("obs.hdf5") as file:
        assert file["data/demo_2/rewards"][:].tolist() == [0.5] * 4
        assert file["data/demo_2/dones"][:].tolist() == [0, 1, 0, 1]


@pytest.fixture
def cluster() -> Iterator[None]:
    start_ray()
    yield
    ray.shutdown()


@pytest.mark.ray
def test_the_file_is_the_same_for_any_number_of_actors(cluster, cli, tmp_path: Path) -> None:
    """Demos that end a process, raise an exception, or cannot be read are left out."""
    source = record(tmp_path / "states.hdf5", demos=8, bad={2: KILLS, 4: RAISES})
    with h5py.File(source, "r+") as file:
        del file["data/demo_10/states"]
    cameras = ["--cameras", "front,side", "--height", "6", "--width", "8", "--compress"]
    ran = cli(*EXTRACT, str(source), *cameras, *RAIL, "--out", "one.hdf5")
    assert ran.status == 0, ran.err
    path, dropped, killed, raised, lacking, look = ran.out.splitlines()
    assert path.startswith("dataset: one.hdf5, 5 demos, 20 transitions")
    assert dropped == "left out: 3 demos that cannot be played back"
    assert killed.startswith("  demo_4: ")
    assert "SIGKILL" in killed
    assert raised.startswith("  demo_8: RuntimeError: the cart jams (")
    assert "rail_kind.py, line " in raised
    assert "demo 'demo_10' has no 'states'" in lacking
    assert look == "look at it: raymimic dataset info one.hdf5"
    two = tmp_path / "two.hdf5"
    quality = {"depth": False, "shadows": False, "reflections": False, "multisampling": 0}
    render = {**IMAGES, "cameras": ["front", "side"], **quality}
    extracted(source, two, actors=2, render=render, compress=True)
    assert (tmp_path / "one.hdf5").read_bytes() == two.read_bytes()
    with h5py.File(two) as file:
        kept = [f"demo_{2 * i}" for i in (0, 1, 3, 6, 7)]
        assert set(file["data"]) == set(kept)
        assert [name.decode() for name in file["mask/train"]] == kept[:-1]
        assert file["data"].attrs["num_dropped"] == 3
        assert file["data/demo_0/obs/side_image"].chunks == (1, 6, 8, 3)


def test_a_killed_run_goes_on(tmp_path: Path, cli) -> None:
    source = record(tmp_path / "states.hdf5", demos=6, pause=0.05)
    words = [*EXTRACT, str(source), *RAIL, "--out", "obs.hdf5"]
    parts = tmp_path / "obs.hdf5.parts"
    num_kept = killed_after_two(words, parts)
    kept = {part: part.stat().st_mtime_ns for part in parts.glob("0*.hdf5")}
    assert not (tmp_path / "obs.hdf5").exists()
    ran = cli(*words, "--done_mode", "1")
    assert_refused(ran, "obs.hdf5.parts", "another done_mode", "delete the folder")
    assert {part: part.stat().st_mtime_ns for part in parts.glob("0*.hdf5")} == kept
    ran = cli(*words)
    assert ran.status == 0, ran.err
    assert f"{num_kept} of the demos are from an earlier, interrupted run" in ran.out
    whole = extracted(source, tmp_path / "whole.hdf5")
    assert (tmp_path / "obs.hdf5").read_bytes() == whole.read_bytes()
    assert not parts.exists()


FULL_DISK = """
import resource, signal, sys
from rail_kind import record
from raymimic.cli import main

source = record("states.hdf5", demos=6)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write that is too large fails, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
main(sys.argv[1:])
"""


def test_a_full_disk_costs_nothing_that_is_finished(tmp_path: Path, cli) -> None:
    """A demo takes 170 kB here, so that demos fit and the file of all does not."""
    words = [*EXTRACT, "states.hdf5", *RAIL, "--cameras", "front", "--out", "obs.hdf5"]
    (tmp_path / "full.py").write_text(FULL_DISK)
    environment = {**os.environ, "PYTHONPATH": str(PROGRAMS.parent / "data")}
    command = [sys.executable, "full.py", *words]
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    *_, warning, error = ran.stderr.splitlines()
    assert "finished demos are kept in 'obs.hdf5.parts'" in warning
    assert error.startswith("raymimic: error: cannot write dataset 'obs.hdf5")
    assert not (tmp_path / "obs.hdf5").exists()
    done = cli(*words)
    assert done.status == 0, done.err
    assert "6 of the demos are from an earlier" in done.out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("full.py", "obs.hdf5", "states.hdf5")
    ]


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    with (
        keeping_parts(tmp_path / "a.hdf5", {}),
        pytest.raises(OutputError, match="another process is writing"),
        keeping_parts(tmp_path / "a.hdf5", {}),
    ):
        pass
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.hdf5.parts").mkdir()
    (tmp_path / "a.hdf5.parts" / "mine.txt").touch()
    with (
        pytest.raises(OutputError, match="holds other files, which this command would delete"),
        keeping_parts(tmp_path / "a.hdf5", {}),
    ):
        pass
    assert (tmp_path / "a.hdf5.parts" / "mine.txt").exists()


@pytest.mark.parametrize(
    ("recorded", "args", "names"),
    [
        ({}, ["--cameras", "frnt"], ["no camera 'frnt'", "did you mean 'front'"]),
        ({}, ["--size", "20"], ["--size is for images", "--cameras"]),
        ({}, ["--cameras", "front", "--size", "20", "--width", "3"], ["twice"]),
        ({}, ["--done_mode", "3"], ["invalid choice"]),
        ({}, ["--out", "s3://bucket/a.hdf5"], ["write it to a local disk"]),
        ({}, ["--shaped"], ["'Rail' has no shaped rewards", "--shaped"]),
        ({"width": 3}, [], ["'Rail' has states of shape (2,), not (3,)"]),
        ({"bad": {0: RAISES, 4: RAISES}, "steps": 1}, [], ["demo_0", "the cart jams"]),
    ],
)
def test_bad_input_is_one_sentence(cli, tmp_path: Path, recorded, args, names) -> None:
    source = record(tmp_path / "states.hdf5", **recorded)
    assert_refused(cli(*EXTRACT, str(source), *RAIL, "--out", "obs.hdf5", *args), *names)
    assert [path.name for path in tmp_path.iterdir()] == ["states.hdf5"]


def test_bad_files_are_one_sentence(cli, tmp_path: Path) -> None:
    source = record(tmp_path / "states.hdf5")
    out = ["--out", "obs.hdf5"]
    (tmp_path / "obs.hdf5").write_text("mine")
    assert_refused(cli(*EXTRACT, str(source), *RAIL, *out), "'obs.hdf5' exists already")
    (tmp_path / "obs.hdf5").unlink()
    assert_refused(cli(*EXTRACT, str(source), "--actors", "0", *out), "of type 'rail'", "--import")
    with h5py.File(source, "r+") as file:
        for demo in file["data"].values():
            demo["states"][0] = np.nan
    assert_refused(cli(*EXTRACT, str(source), *RAIL, *out), "'states' holds NaN")
    with h5py.File(source, "r+") as file:
        for demo in file["data"].values():
            del demo["states"]
            demo["states"] = np.zeros((3, 2))
    assert_refused(cli(*EXTRACT, str(source), *RAIL, *out), "do not fit", "[3, 2]")
    with h5py.File(source, "r+") as file:
        for demo in file["data"].values():
            del demo["states"]
    assert_refused(cli(*EXTRACT, str(source), *RAIL, *out), "holds no simulator states")
    with h5py.File(source, "r+") as file:
        del file["data"].attrs["env_args"]
        file["data/demo_0/states"] = np.zeros((4, 2))
    assert_refused(cli(*EXTRACT, str(source), *RAIL, *out), "does not say its environment")
    assert not (tmp_path / "obs.hdf5.parts").exists()


def test_robosuites_arguments_name_the_cameras() -> None:
    """Those of robomimic's own `dataset_states_to_obs`, beside `render`."""
    source = {
        "env_name": "Lift",
        "type": EnvType.ROBOSUITE_TYPE,
        "env_kwargs": {"robots": ["Panda"], "camera_names": "old", "reward_shaping": True},
    }
    meta = Extraction(render=IMAGES, shaped=False).env_meta(source)
    assert meta["env_kwargs"] == {
        "robots": ["Panda"],
        "reward_shaping": False,
        "use_camera_obs": True,
        "camera_names": ["front"],
        "camera_heights": 6,
        "camera_widths": 8,
        "camera_depths": False,
    }
    bare = Extraction(shaped=True).env_meta({**source, "render": {"cameras": ["old"]}})
    assert "render" not in bare
    assert bare["env_kwargs"] == {
        "robots": ["Panda"],
        "reward_shaping": True,
        "use_camera_obs": False,
    }


# -- the simulators --


def installed(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"needs {package}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "atol"),
    [
        pytest.param("metaworld-reach-v3", {}, 1e-6, marks=installed("metaworld")),
        pytest.param("robosuite-lift", {"horizon": 15}, 1e-4, marks=installed("robosuite")),
    ],
)
def test_states_give_the_recorded_observations_and_actions_the_states(
    name, options, atol, tmp_path: Path
) -> None:
    from raymimic.recording.demos import Recipe, record_demos

    recorded, out = tmp_path / "recorded.hdf5", tmp_path / "extracted.hdf5"
    recipe = Recipe(name, next_obs=True, **options)
    record_demos(recipe, recorded, 1, 0, keep_failures=True, progress=False)
    extract_observations(recorded, out, Extraction(), num_actors=0, progress=False)
    with h5py.File(recorded) as old, h5py.File(out) as new:
        demo, other = old["data/demo_0"], new["data/demo_0"]
        for group in ("obs", "next_obs"):
            assert set(demo[group]) == set(other[group])
            for key in demo[group]:
                before, after = demo[group][key][:], other[group][key][:]
                np.testing.assert_allclose(after[:-1], before[:-1], atol=1e-6, err_msg=key)
                if key.endswith(("eef_pos", "flat", "object")):  # the last action was played again
                    np.testing.assert_allclose(after[-1], before[-1], atol=atol, err_msg=key)
        np.testing.assert_array_equal(other["states"], demo["states"])
    playback = Playback(use_actions=True, film=False)
    drift = play_back(recorded, playback, num_actors=0, progress=False).drift["demo_0"]
    # robosuite's grippers have a memory that no state holds
    assert drift.most < (1e-6 if name.startswith("metaworld") else 0.5)
