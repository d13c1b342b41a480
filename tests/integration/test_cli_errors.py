"""Every mistake of a user: one sentence that names it, status 2, and nothing left behind."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from checks import assert_refused
from tiny import LAYERS, SETTINGS, Ran, run_process, train_args, train_here, write_hopper


@pytest.fixture
def refused(cli: Callable[..., Ran], tmp_path: Path) -> Callable[..., None]:
    """Runs a command that must be refused without a change to any file or folder."""

    def check(args: list[str], *names: str) -> None:
        before = tree(tmp_path)
        assert_refused(cli(*args), *names)
        assert tree(tmp_path) == before

    return check


def tree(folder: Path) -> dict[str, bytes | None]:
    """All files with their contents, and all folders."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
        if "__pycache__" not in p.parts
    }


# -- datasets --


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_actions(path: Path) -> None:
    with h5py.File(path, "a") as file:
        demo = file["data/demo_3"]
        actions = demo["actions"][:-1]
        del demo["actions"]
        demo["actions"] = actions


def poison_actions(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["data/demo_2/actions"][7, 1] = np.nan


def remove_demos(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("data")


DAMAGES = {
    "missing": (Path.unlink, ["does not exist", "train.data"]),
    "empty": (lambda path: path.write_bytes(b""), ["is empty (0 bytes)"]),
    "truncated": (halve, ["is truncated", "copy or make it again"]),
    "no HDF5": (lambda path: path.write_text("a,b\n" * 999), ["is not an HDF5 file"]),
    "no demos": (remove_demos, ["holds no demos"]),
    "lengths": (cut_actions, ["'demo_3'", "'actions' has 19 rows, the demo 20 samples"]),
    "NaN": (poison_actions, ["'demo_2'", "'actions'", "NaN", "7"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_dataset(refused, tmp_path, damage):
    path = write_hopper(tmp_path / "mine.hdf5")
    do, names = DAMAGES[damage]
    do(path)
    refused(train_args(path), str(path), *names)


def test_dataset_to_look_at(refused):
    refused(["dataset", "info", "none.hdf5"], "'none.hdf5'", "does not exist")


def merge(folder: Path) -> Path:
    """A dataset in `folder/in` of which a demo lies in `folder/out`."""
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    path = write_hopper(folder / "in" / "merged.hdf5")
    with h5py.File(path, "a") as file, h5py.File(folder / "out" / "part.hdf5", "w") as part:
        file.copy("data/demo_2", part, name="demo")
        del file["data/demo_2"]
        file["data/demo_2"] = h5py.ExternalLink("../out/part.hdf5", "demo")
    return path


def test_links_out_of_the_folder(cli, refused, tmp_path):
    path = merge(tmp_path)
    names = ["'data/demo_2'", "'../out/part.hdf5'", f"--allow-links {tmp_path}/out"]
    refused(train_args(path), str(path), *names)
    refused(["dataset", "info", str(path)], *names)
    ran = cli("dataset", "info", str(path), "--allow-links", "out")
    assert ran.status == 0, ran
    assert "6 demos, 120 transitions" in ran.out
    assert f"linked file: {tmp_path}/out/part.hdf5" in ran.out
    ran = cli(*train_args(path), "--allow-links", "out", "--name", "linked")
    assert ran.status == 0, ran
    (run,) = (tmp_path / "td3_bc_trained_models" / "linked").iterdir()
    assert json.loads((run / "config.json").read_text())["train"]["allow_links"] == [
        str(tmp_path / "out")
    ]
    # Links that may be followed change no result.
    (tmp_path / "in" / "part.hdf5").write_bytes((tmp_path / "out" / "part.hdf5").read_bytes())
    more = ["train", "--resume", str(run), "--allow-links", "in", "--set", "train.num_epochs=3"]
    assert cli(*more).status == 0
    with h5py.File(tmp_path / "out" / "part.hdf5", "a") as part:
        part["demo/actions"][0] = 0.5
    more[-1] = "train.num_epochs=4"
    assert_refused(cli(*more), "the data of", "have changed")


def test_looking_at_a_dataset_that_is_not_whole(cli, tmp_path):
    path = merge(tmp_path)
    (tmp_path / "out" / "part.hdf5").unlink()
    ran = cli("dataset", "info", str(path))
    assert ran.status == 2
    assert "5 demos, 100 transitions" in ran.out
    assert "'data/demo_2' is a link to 'demo' in file '../out/part.hdf5', but" in ran.err


FILTER = """
import ctypes, h5py

PROTOTYPE = ctypes.CFUNCTYPE(
    ctypes.c_size_t, ctypes.c_uint, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t,
    ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p),
)


@PROTOTYPE
def invert(flags, count, values, size, capacity, buffer):
    data = (ctypes.c_ubyte * size).from_address(buffer[0])
    data[:] = bytes(255 - byte for byte in data)
    return size


class Filter(ctypes.Structure):  # H5Z_class2_t
    _fields_ = [
        ("version", ctypes.c_int), ("id", ctypes.c_int), ("encodes", ctypes.c_uint),
        ("decodes", ctypes.c_uint), ("name", ctypes.c_char_p), ("can_apply", ctypes.c_void_p),
        ("set_local", ctypes.c_void_p), ("filter", PROTOTYPE),
    ]


FILTER = Filter(1, 305, 1, 1, b"invert", None, None, invert)
h5py.h5z.register_filter(ctypes.addressof(FILTER))
"""


def test_a_compression_that_a_module_brings(cli, refused, tmp_path):
    path = write_hopper(tmp_path / "mine.hdf5")
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            values = demo["actions"][()]
            del demo["actions"]
            settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            settings.set_chunk(values.shape)
            settings.set_filter(305, h5py.h5z.FLAG_OPTIONAL)
            space = h5py.h5s.create_simple(values.shape)
            kind = h5py.h5t.py_create(values.dtype)
            new = h5py.h5d.create(demo.id, b"actions", kind, space, dcpl=settings)
            new.write_direct_chunk((0, 0), bytes(255 - byte for byte in values.tobytes()))
    (tmp_path / "my_filter.py").write_text(FILTER)
    refused(train_args(path), "'actions'", "HDF5 filter 305", "--import hdf5plugin")
    ran = cli(*train_args(path), "--import", "my_filter")
    assert ran.status == 0, ran


def test_observation_key(refused, hopper):
    setting = 'observation.modalities.obs.low_dim=["flta"]'
    refused(train_args(hopper, setting), str(hopper), "'flta'", "did you mean 'flat'?")


def test_filter_key(refused, hopper):
    setting = "train.hdf5_filter_key=trian"
    refused(train_args(hopper, setting), str(hopper), "'trian'", "did you mean 'train'?")


def test_batch_larger_than_the_data(refused, hopper):
    refused(train_args(hopper, "train.batch_size=121"), "train.batch_size", "121", "120")


def test_actions_out_of_reach_of_diffusion(refused, tmp_path):
    path = write_hopper(tmp_path / "mine.hdf5")
    with h5py.File(path, "a") as file:
        file["data/demo_1/actions"][-1, 0] = -1.5
    refused(train_args(path, algo="diffusion_policy"), "[-1, 1]", "reaches 1.5", "'min_max'")


# -- config --


def test_unknown_key(refused, hopper):
    refused(train_args(hopper, "algo.alhpa=5"), "'algo.alhpa'", "did you mean 'alpha'?")


def test_unknown_key_in_a_file(refused, hopper, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"algo_name": "bc", "train": {"batchsize": 5}}))
    names = [str(path), "'train.batchsize'", "did you mean 'batch_size'?"]
    refused(["train", "--config", str(path), "--dataset", str(hopper)], *names)


def test_json_syntax(refused, hopper, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{\n  "algo_name": "bc",\n  "train": {"seed": }\n}')
    refused(["train", "--config", str(path)], f"{path}, line 3, column 21: not valid JSON")


def test_config_missing(refused):
    refused(["train", "--config", "none.json"], "none.json", "No such file")


def test_nothing_to_train(refused):
    refused(["train"], "--config", "--algo")


def test_no_dataset(refused):
    refused(["train", "--algo", "bc"], "train.data", "--dataset")


@pytest.mark.parametrize("command", [["train", "--algo", "td3_cb"], ["config", "td3_cb"]])
def test_unknown_algorithm(refused, command):
    refused(
        command,
        "'td3_cb' (did you mean 'td3_bc'?)",
        "known are bc, bcq, ",
        "td3_bc, and the templates bc_rnn, ",
    )


@pytest.mark.parametrize("setting", ["algo.alpha", "=5", "algo.alpha:5"])
def test_set_syntax(refused, hopper, setting):
    refused(train_args(hopper, setting), "--set takes key=value", f"'{setting}'")


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["train", "--workers", "two"], ["--workers", "'two' is not a whole number"]),
        (["evaluate", "x.pth", "--episodes", "0"], ["--episodes", "'0' is not a whole number"]),
        (["dataset", "split", "x", "--seed", str(2**32)], ["--seed", "from 0 to 4294967295"]),
        (["dataset", "filter", "x", "--seed", str(2**32)], ["--seed", "from 0 to 4294967295"]),
        (["quickstart", "--seed", str(2**32)], ["--seed", "from 0 to 4294967295"]),
        (["train", "--datset", "x"], ["--datset"]),
        (["tarin"], ["'tarin'", "train"]),
        ([], ["COMMAND"]),
    ],
)
def test_arguments(refused, args, names):
    refused(args, *names, "--help")


@pytest.mark.parametrize("value", ["bc", "5", "null"])
def test_another_algorithm_by_set(refused, hopper, value):
    refused(train_args(hopper, f"algo_name={value}"), "'algo_name'", "'td3_bc'", "--algo")


@pytest.mark.parametrize("name", ["../mine", "a/b", ".mine", "my module", ""])
def test_import_of_no_module(refused, hopper, name):
    refused([*train_args(hopper), "--import", name], f"'{name}'", "--import", "my_env.py")


def test_import_of_a_file(refused, hopper):
    refused([*train_args(hopper), "--import", "mine.py"], "did you mean 'mine'?")


def test_a_number_too_long(refused, hopper, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"algo_name": "bc", "train": {"seed": ' + "9" * 5000 + "}}")
    refused(["train", "--config", str(path)], str(path), "a number has more than 4,300 digits")


def test_a_key_that_comes_twice(refused, hopper, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"algo_name": "bc", "train": {"seed": 1, "seed": 2}}')
    refused(
        ["train", "--config", str(path), "--dataset", str(hopper)], str(path), "'seed'", "twice"
    )


@pytest.mark.parametrize(
    ("code", "names"),
    [
        (None, ["is not on the Python path", "PYTHONPATH"]),
        ("import no_such_library", ["no_such_library", "mine_1.py, line 1", "fix it"]),
        ("x = 1\nx.y()\n", ["AttributeError", "mine_2.py, line 2"]),
        ("def f(:\n", ["SyntaxError", "mine_3.py, line 1"]),
    ],
)
def test_import(refused, hopper, tmp_path, code, names):
    module = "mine_0" if code is None else names[1].partition(".")[0]
    if code is not None:
        (tmp_path / f"{module}.py").write_text(code)
    refused([*train_args(hopper), "--import", module], f"'{module}'", "--import", *names)


def test_tracking_uri(refused, hopper):
    settings = ["mlflow.enabled=true", "mlflow.tracking_uri=htps://server"]
    refused(train_args(hopper, *settings), "mlflow.tracking_uri 'htps://server'", "'https'?")


# -- checkpoints --


@pytest.fixture(scope="module")
def checkpoint(hopper: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a training; not to be changed."""
    run = train_here(tmp_path_factory.mktemp("run"), *train_args(hopper))
    return run / "models" / "model_epoch_2.pth"


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


def with_payload(checkpoint: Path, path: Path, mark: Path) -> None:
    torch.save({**torch.load(checkpoint, weights_only=True), "extra": Payload(mark)}, path)


def pickled_payload(checkpoint: Path, path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps({"model": Payload(mark), "algo_name": "td3_bc"}))


def old_format_payload(checkpoint: Path, path: Path, mark: Path) -> None:
    content = {"model": Payload(mark), "algo_name": "td3_bc"}
    torch.save(content, path, _use_new_zipfile_serialization=False)


def test_checkpoint_missing(refused):
    refused(["evaluate", "none.pth", "--actors", "0"], "'none.pth'", "models/")


@pytest.mark.parametrize("size", [0, 100, 2000, -100])
def test_checkpoint_truncated(refused, checkpoint, tmp_path, size):
    path = tmp_path / "cut.pth"
    path.write_bytes(checkpoint.read_bytes()[:size])
    refused(["evaluate", str(path), "--actors", "0"], f"'{path}'", "damaged", "another checkpoint")


def test_checkpoint_of_something_else(refused, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.pth")
    refused(["evaluate", "other.pth"], "'other.pth'", "no checkpoint of raymimic or robomimic")


@pytest.mark.parametrize("config", ["{", "[]", "{}", 5])
def test_checkpoint_with_another_config(refused, checkpoint, tmp_path, config):
    torch.save({**torch.load(checkpoint, weights_only=True), "config": config}, "other.pth")
    refused(["evaluate", "other.pth"], "cannot use 'other.pth'", "'config'")


@pytest.mark.parametrize("write", [with_payload, pickled_payload, old_format_payload])
def test_checkpoint_with_code(refused, hopper, checkpoint, tmp_path, write):
    path, mark = tmp_path / "evil.pth", tmp_path / "executed"
    write(checkpoint, path, mark)
    refused(["evaluate", str(path), "--actors", "0"], f"'{path}'")
    refused(train_args(hopper, f"experiment.ckpt_path={path}"), f"'{path}'")
    assert not mark.exists()
    if write is pickled_payload:
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert mark.exists()  # the payload is a real one


def test_checkpoint_of_other_sizes(refused, hopper, checkpoint):
    settings = ["algo.actor.layer_dims=[9,8]", f"experiment.ckpt_path={checkpoint}"]
    refused(train_args(hopper, *settings), str(checkpoint), "does not fit", "size mismatch")


def test_checkpoint_of_another_algorithm(refused, hopper, checkpoint):
    args = train_args(hopper, f"experiment.ckpt_path={checkpoint}", algo="bc")
    refused(args, str(checkpoint), "it is one of td3_bc, and its networks are not bc's")


def test_checkpoint_that_does_not_act(cli, hopper):
    ran = cli(*train_args(hopper, algo="gl"), "--json")
    assert ran.status == 0, ran.err
    path = ran.result["last_checkpoint"]
    assert_refused(cli("evaluate", path), path, "one of gl, which plans, but does not act")


def test_results_in_the_place_of_the_file_that_is_read(refused, checkpoint, tmp_path):
    shutil.copy(checkpoint, tmp_path / "mine.pth")
    (tmp_path / "again.pth").hardlink_to(tmp_path / "mine.pth")
    data = write_hopper(tmp_path / "mine.hdf5")
    for out in ("mine.pth", "again.pth"):
        said = (f"cannot write '{out}'", "the command reads this file")
        refused(["evaluate", "mine.pth", "--actors", "0", "--json", out], *said)
        refused(["export", "mine.pth", out, "--force"], *said)
    verify = ["dataset", "playback", str(data), "--verify", "--json", str(data)]
    refused(verify, f"cannot write '{data}'", "the command reads this file")


@pytest.mark.parametrize("out", ["/dev/null", "/dev/stdout", "pipe", "link"])
def test_results_in_the_place_of_no_file(refused, checkpoint, tmp_path, out):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("elsewhere")
    args = ["evaluate", str(checkpoint), "--actors", "0", "--json", out]
    refused(args, f"cannot write '{out}'", "a link, a pipe or a device")


def test_export_into_a_folder(refused, checkpoint):
    args = ["export", str(checkpoint), ".", "--force"]
    refused(args, "cannot write '.'", "Is a directory")


def test_too_many_episodes(refused, checkpoint):
    args = ["evaluate", str(checkpoint), "--actors", "0", "--episodes", "65537"]
    refused(args, "65,537 episodes", "at most 65,536")


# -- resuming --


@pytest.fixture
def run_dir(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    copy = tmp_path / "td3_bc_trained_models" / "test" / checkpoint.parents[1].name
    shutil.copytree(checkpoint.parents[1], copy)
    return copy


def test_resume_without_a_name(refused):
    refused(["train", "--resume"], "--resume", "--name")


def test_resume_of_an_unknown_name(refused, run_dir):
    refused(["train", "--algo", "td3_bc", "--name", "tset", "--resume"], "'tset'", "--name")


def test_resume_of_no_run(refused, tmp_path):
    refused(["train", "--resume", str(tmp_path)], f"'{tmp_path}'", "config.json")


def test_resume_with_another_setting(refused, run_dir):
    args = ["train", "--resume", str(run_dir), "--set", "algo.alpha=5"]
    refused(args, "algo.alpha was 2.5 and now is 5", "start a new run")


def test_resume_with_another_config_file(refused, run_dir, tmp_path):
    config = json.loads((run_dir / "config.json").read_text())
    config["algo"]["alpha"] = 5
    (tmp_path / "mine.json").write_text(json.dumps(config))
    args = ["train", "--config", "mine.json", "--resume", str(run_dir)]
    refused(args, "algo.alpha was 2.5 and now is 5")


def test_resume_with_another_algorithm(refused, run_dir):
    args = ["train", "--resume", str(run_dir), "--algo", "bc"]
    refused(args, str(run_dir), "td3_bc", "not of bc")


def test_resume_with_other_data(refused, cli, tmp_path):
    path = write_hopper(tmp_path / "mine.hdf5")
    assert cli(*train_args(path)).status == 0
    write_hopper(path, seed=1)
    args = ["train", "--algo", "td3_bc", "--resume", "--set", "train.num_epochs=3"]
    refused(args, "td3_bc_trained_models/test/", "the data", "have changed", "start a new run")


def test_resume_from_a_damaged_checkpoint(refused, run_dir):
    halve(run_dir / "models" / "model_epoch_2.pth")
    args = ["train", "--resume", str(run_dir), "--set", "train.num_epochs=3"]
    refused(args, "model_epoch_2.pth", "truncated or damaged")


def test_resume_from_a_damaged_list(refused, run_dir):
    halve(run_dir / "checkpoints.json")
    args = ["train", "--resume", str(run_dir), "--set", "train.num_epochs=3"]
    refused(args, "checkpoints.json", "damaged")


# -- places for results --


@pytest.mark.parametrize("key", ["train.output_dir", "ray.storage_path"])
def test_output_below_a_file(refused, hopper, tmp_path, key):
    (tmp_path / "file").write_text("")
    setting = f"{key}={tmp_path}/file/below"
    refused(train_args(hopper, setting), f"{tmp_path}/file/below", "Not a directory", key)


def test_output_that_the_system_refuses(refused, hopper):
    refused(train_args(hopper, "train.output_dir=/proc/none"), "/proc/none", "train.output_dir")


def test_storage_of_an_unknown_kind(refused, hopper):
    refused(train_args(hopper, "ray.storage_path=s4://bucket/runs"), "'s4://bucket/runs", "s4")


@pytest.mark.parametrize(
    ("out", "why"),
    [("file/out", "Not a directory"), ("x" * 260, "File name too long"), ("folder", "directory")],
)
@pytest.mark.parametrize("option", ["--json", "--video"])
def test_evaluation_that_cannot_be_written(refused, tmp_path, option, out, why):
    """Found before the first episode, even before the checkpoint is read."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    out += ".mp4"
    refused(["evaluate", "none.pth", option, out.replace("file/", "file/sub/")], why)


LONG = "x" * 300


@pytest.mark.parametrize(
    "args",
    [
        ["train", "--algo", "td3_bc", "--dataset", LONG],
        ["train", "--resume", LONG],
        ["tune", "--configs", LONG],
        ["dataset", "info", LONG],
        ["mlflow", "sync", LONG],
        ["evaluate", LONG],
        ["export", LONG, "out.pth"],
        ["export", "in.pth", LONG],
    ],
    ids=" ".join,
)
def test_names_that_are_too_long(refused, args):
    refused(args, "too long")


@pytest.mark.parametrize("name", ["..", "/abs", "../../esc", "a\nb", LONG, " a", "\udcff"])
@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_names_of_runs(refused, hopper, name, resume):
    refused([*train_args(hopper), f"--name={name}", *resume], "name")


def test_a_run_within_a_project(cli, hopper, tmp_path):
    ran = cli(*train_args(hopper, "train.num_epochs=1"), "--name", "project/run", "--json")
    assert ran.status == 0, ran.err
    folder = Path(ran.result["run_dir"])
    assert folder.parent == tmp_path / "td3_bc_trained_models" / "project" / "run"


@pytest.mark.parametrize("name", ["..", ".", LONG, "a/b", "\udcff"])
def test_names_of_sweeps(refused, hopper, tmp_path, name):
    sweep = {"algo": "td3_bc", "dataset": str(hopper), "space": {"algo.alpha": {"grid": [1.0]}}}
    (tmp_path / "s.yaml").write_text(json.dumps(sweep | {"name": name}))
    refused(["tune", "s.yaml"], "a sweep's folder has this name")


def test_two_outputs_of_one_name(refused, checkpoint):
    args = ["evaluate", str(checkpoint), "--json", "out.mp4", "--video", "./out.mp4"]
    refused(args, "--json and --video name the same file")


def test_results_to_a_store_that_cannot_be_used(refused, checkpoint):
    """The store is tried first: later, the environment would be refused."""
    args = ["evaluate", str(checkpoint), "--json", "nosuchscheme://bucket/a.json"]
    refused([*args, "--env", "no_such_env"], "cannot use storage 'nosuchscheme://bucket/a.json'")


def test_video_of_another_kind(refused, checkpoint):
    refused(["evaluate", str(checkpoint), "--video", "out.avi"], "'out.avi'", ".mp4")


def test_dataset_written_below_a_file(cli, tmp_path):
    (tmp_path / "file").write_text("")
    args = ["dataset", "make", "hopper-medium-expert", "--out", "file/out.hdf5"]
    assert_refused(cli(*args), "file/out.hdf5", "Not a directory")


def test_unknown_dataset(refused):
    refused(["dataset", "make", "hoper-medium-expert"], "'hoper-medium-expert'", "did you mean")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1.5 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1536k", "none", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


# Checkpoints of about 1 MB.
LARGE = ["algo.actor.layer_dims=[130,130]", "algo.critic.layer_dims=[130,130]"]


def test_full_disk(cli, hopper, small_disk):
    settings = [*LARGE, f"train.output_dir={small_disk}", "ray.commit_interval_s=0"]
    ran = cli(*train_args(hopper, *settings))
    assert_refused(ran, "model_epoch_2.pth", "No space left on device", "train.output_dir")
    (run,) = (small_disk / "test").iterdir()
    assert {p.name for p in (run / "models").iterdir()} == {"model_epoch_1.pth"}

    remount = ["mount", "-o", "remount,size=9m", str(small_disk)]
    subprocess.run(remount, check=True)
    ran = cli("train", "--resume", str(run), "--json")
    assert ran.status == 0
    assert ran.result["metrics"]["epoch"] == 2


def test_file_size_limit(hopper, tmp_path):
    """As on a full disk, but in a process of its own and for everybody."""
    limit = "import resource, raymimic.cli, sys;"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
    limit += "raymimic.cli.main(sys.argv[1:])"
    ran = run_process("-c", limit, *train_args(hopper, *LARGE), cwd=tmp_path)
    assert_refused(ran, "model_epoch_2.pth", "File too large", "train.output_dir")
    assert not list(tmp_path.rglob("*.pth"))
    assert not list(tmp_path.rglob("*.tmp"))


# -- environments and clusters --


def test_environment(refused, hopper):
    settings = ["experiment.rollout.enabled=true", "experiment.env=Hoper-v5"]
    refused(train_args(hopper, *settings), "'Hoper-v5'", "did you mean 'Hopper-v5'?")


def test_environment_of_an_evaluation(refused, checkpoint):
    refused(["evaluate", str(checkpoint), "--actors", "0", "--env", "Hoper-v5"], "'Hoper-v5'")


def test_cluster_that_does_not_answer(refused, hopper):
    args = [*train_args(hopper, "ray.address=127.0.0.1:1"), "--workers", "1"]
    refused(args, "'127.0.0.1:1'", "Connection refused", "ray.address")


# -- how it is said --


def test_a_process_says_one_line(tmp_path):
    args = ["train", "--algo", "bc", "--workers", "0", "--set", *LAYERS["bc"]]
    ran = run_process("-m", "raymimic", *args, "--dataset", "none.hdf5", cwd=tmp_path)
    assert_refused(ran, "none.hdf5", "does not exist")
    assert ran.out == ""


def test_traceback_on_request(cli):
    ran = cli("train", "--algo", "td3_cb", "--traceback")
    assert ran.status == 2
    assert ran.err.startswith("Traceback (most recent call last):\n")
    assert "config_named" in ran.err
    assert ran.err.splitlines()[-1].startswith("raymimic: error: unknown algorithm 'td3_cb'")


# -- homes --

UNKNOWN = "~no-such-user/x"


@pytest.mark.parametrize(
    "args",
    [
        ["train", "--algo", "bc", "--dataset", "DATA", "--set", f"train.output_dir={UNKNOWN}"],
        ["train", "--algo", "bc", "--dataset", "DATA", "--set", f"ray.storage_path={UNKNOWN}"],
        ["train", "--algo", "bc", "--resume", UNKNOWN],
        ["tune", f"{UNKNOWN}.yaml"],
        ["tune", "--configs", UNKNOWN],
        ["dataset", "convert", UNKNOWN, "out.hdf5"],
        ["dataset", "info", "DATA", "--allow-links", UNKNOWN],
        ["mlflow", "sync", UNKNOWN],
    ],
    ids=lambda args: " ".join(args[:3]),
)
def test_the_home_of_an_unknown_user(refused, hopper: Path, args: list[str]) -> None:
    small = ["--set", *SETTINGS] if args[0] == "train" else []
    refused([str(hopper) if word == "DATA" else word for word in [*args, *small]], UNKNOWN)


def test_results_below_a_link_to_nowhere(refused, hopper: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    refused(train_args(hopper, f"train.output_dir={link}"), f"'{link}' is no folder")


def test_a_current_folder_whose_name_is_not_utf8(refused, hopper, tmp_path, monkeypatch) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    monkeypatch.chdir(folder)
    refused(train_args(hopper), "not valid UTF-8", "train.output_dir")


# -- shells --


def in_shell(line: str, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs raymimic as `"$@"` of a shell's line."""
    command = [sys.executable, "-m", "raymimic", *args]
    return subprocess.run(
        ["sh", "-c", line, "sh", *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    "closed",
    [*(pytest.param(one, marks=pytest.mark.slow) for one in (">&-", "2>&-")), "<&- >&- 2>&-"],
)
def test_closed_streams_are_nowhere(closed: str, hopper: Path, tmp_path: Path) -> None:
    done = in_shell(f'"$@" {closed}', *train_args(hopper, algo="bc"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    (last,) = tmp_path.rglob("last.pth")
    assert torch.load(last, weights_only=True)["raymimic"]["step"] == 10
    refused = in_shell(f'"$@" {closed}', "dataset", "info", "none.hdf5", cwd=tmp_path)
    assert refused.returncode == 2


@pytest.mark.parametrize("args", [["dataset", "info", "none.hdf5"], ["train", "--nothing"]])
def test_a_full_stderr_leaves_the_status(args: list[str], tmp_path: Path) -> None:
    assert in_shell('"$@" 2>/dev/full', *args, cwd=tmp_path).returncode == 2


@pytest.mark.parametrize("args", [["config", "bc"], ["dataset", "info", "none.hdf5"]])
def test_a_deleted_current_folder(args: list[str], tmp_path: Path) -> None:
    done = in_shell('mkdir gone && cd gone && rmdir ../gone && "$@"', *args, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "raymimic: error: the current folder has been deleted: go to another one\n"
    )
