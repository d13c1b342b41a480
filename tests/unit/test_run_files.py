"""A run's folder of a stranger: pipes and links in the place of its files."""

import os
from pathlib import Path

import pytest
from tiny import small_config

from raymimic.checkpoints.store import CheckpointStore
from raymimic.errors import ConfigError, RaymimicError
from raymimic.training.run_folder import RunFolder, config_of_run

FILES = ["config.json", "mlflow_run.json", "logs/.lock", "logs/log.txt", "logs/mlflow/cursor.json"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for name in ("logs/mlflow", "models"):
        (folder / name).mkdir(parents=True)
    (folder / "config.json").write_text(small_config("bc").dump())
    return folder


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_is_refused_without_waiting(run: Path, name: str) -> None:
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    with pytest.raises(ConfigError, match="pipe"):
        config_of_run(str(run))
    with pytest.raises(ConfigError, match="pipe"):
        RunFolder.at(str(run), small_config("bc")).hold()


@pytest.mark.parametrize("name", [*FILES[1:], "logs"])
def test_a_link_that_leads_out_is_not_written_through(run: Path, name: str) -> None:
    victim = run.parent / "victim"
    victim.write_text("precious")
    if name == "logs":
        (run / "logs" / "mlflow").rmdir()
        (run / name).rmdir()
        (run.parent / "elsewhere").mkdir()
        victim = victim.rename(run.parent / "elsewhere" / ".lock")
        (run / name).symlink_to(run.parent / "elsewhere")
    else:
        (run / name).symlink_to(victim)
    with pytest.raises(ConfigError, match="leads out of the run's folder"):
        config_of_run(str(run))
    with pytest.raises(ConfigError, match="leads out of the run's folder"):
        RunFolder.at(str(run), small_config("bc")).hold()
    assert victim.read_text() == "precious"


def test_links_within_the_run_and_checkpoints_elsewhere_are_followed(run: Path) -> None:
    """As on a disk of their own, with the newest one linked beside the config."""
    (run / "models").rmdir()
    (run.parent / "disk").mkdir()
    (run / "models").symlink_to(run.parent / "disk")
    (run / "logs" / "latest.txt").symlink_to(run / "config.json")
    assert config_of_run(str(run)).algo_name == "bc"
    folder = RunFolder.at(str(run), small_config("bc"))
    folder.hold()
    folder.release()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_list_of_checkpoints_that_is_no_file_is_said(run: Path, make) -> None:
    make(run / "checkpoints.json")
    with pytest.raises(RaymimicError, match="move it away"):
        CheckpointStore(str(run), small_config("bc").experiment.save)
