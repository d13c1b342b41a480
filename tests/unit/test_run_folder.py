"""A run's place, its only writer, and its files behind a URI."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import small_config
from waiting import DEADLINE_S

from raymimic import storage
from raymimic.config import BaseConfig
from raymimic.errors import ConfigError, LeaseLostError
from raymimic.training.run_folder import RunFolder, config_of_run, find_run, run_base


@pytest.fixture
def config(tmp_path: Path) -> BaseConfig:
    made = small_config("bc")
    made.train.output_dir = str(tmp_path / "out")
    made.experiment.name = "name"
    return made


def test_two_runs_of_one_name_do_not_share_a_folder(config: BaseConfig, tmp_path: Path) -> None:
    first, second = RunFolder.create(config), RunFolder.create(config)
    assert first.uri != second.uri
    assert Path(first.uri).parent == tmp_path / "out" / "name"
    assert {p.name for p in Path(first.uri).iterdir()} == {
        *("config.json", "logs", "models", "videos")
    }
    assert find_run(config) == max(first.uri, second.uri)
    assert max(Path(first.uri).parent.iterdir()) == Path(second.uri)  # as scripts find the newest
    assert config_of_run(first.uri).dump() == config.dump()
    for run in (first, second):
        run.release()


def test_a_run_is_held_by_one_process(config: BaseConfig) -> None:
    run = RunFolder.create(config)
    program = (
        "import sys\n"
        "from raymimic.training.run_folder import RunFolder, config_of_run\n"
        "RunFolder.at(sys.argv[1], config_of_run(sys.argv[1])).prepare()\n"
    )
    command = [sys.executable, "-c", program, run.uri]
    refused = subprocess.run(
        command, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert f"the run '{run.uri}' is being trained by another process" in refused.stderr
    run.release()
    subprocess.run(command, timeout=DEADLINE_S, check=True)


def test_a_run_of_which_nothing_came_leaves_no_folder(config: BaseConfig, tmp_path: Path) -> None:
    other = RunFolder.create(config)
    RunFolder.create(config).discard()
    assert [str(p) for p in (tmp_path / "out" / "name").iterdir()] == [other.uri]
    other.discard()
    assert list(tmp_path.iterdir()) == []


def test_files_of_the_driver_reach_a_remote_storage(config: BaseConfig, tmp_path: Path) -> None:
    config.ray.storage_path = f"local://{tmp_path}/store"
    run = RunFolder.create(config)
    try:
        assert run.uri.startswith(f"local://{tmp_path}/store/name/")
        assert run.local.is_relative_to(tmp_path / "out" / "name")
        (run.local / "videos" / "a.mp4").write_bytes(b"film")
        (run.local / "logs" / "mlflow").mkdir()
        (run.local / "logs" / "mlflow" / "journal.jsonl").write_text("{}")
        run.mirror()
        assert storage.read_bytes(storage.join(run.uri, "videos", "a.mp4")) == b"film"
        assert not storage.exists(storage.join(run.uri, "logs", "mlflow"))
        assert not storage.exists(storage.join(run.uri, "logs", ".lock"))
        log = run.local / "logs" / "log.txt"
        log.write_text("epoch")
        run.mirror()
        written = log.stat().st_mtime_ns
        log.write_text("epoch 1")
        os.utime(log, ns=(written, written))  # within one tick of the file system's clock
        run.mirror()
        assert storage.read_bytes(storage.join(run.uri, "logs", "log.txt")) == b"epoch 1"
    finally:
        run.release()

    # Another machine has no local folder yet.
    config.train.output_dir = str(tmp_path / "elsewhere")
    again = RunFolder.at(run.uri, config)
    again.prepare()
    try:
        assert (again.local / "logs" / "log.txt").read_text() == "epoch 1"
        assert not (again.local / "models").exists()
        lease = json.loads(storage.read_bytes(storage.join(again.uri, ".lease")))
        content = json.dumps(lease | {"owner": "another"}).encode()
        storage.write_bytes(storage.join(again.uri, ".lease"), content)
        (again.local / "logs" / "log.txt").write_text("epoch 2")
        with pytest.raises(LeaseLostError):
            again.mirror()
        with pytest.raises(LeaseLostError):
            again.write_config(config)
        assert storage.read_bytes(storage.join(again.uri, "logs", "log.txt")) == b"epoch 1"
    finally:
        again.release()


def test_results_never_go_to_a_folder_that_vanishes_with_a_job(
    config: BaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert run_base(config) == config.train.output_dir
    config.train.output_dir = "results"
    with pytest.raises(ConfigError, match="in this Ray job's working directory"):
        run_base(config)


def test_a_folder_that_is_no_run_is_refused(config: BaseConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"it has no config\.json"):
        config_of_run(str(tmp_path))
    with pytest.raises(ConfigError, match="no run named 'name' to resume"):
        find_run(config)
