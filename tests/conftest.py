"""Fixtures of several test modules."""

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny import Ran, write_hopper


@pytest.fixture(scope="session")
def hopper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 120 transitions, see `write_hopper`; not to be changed."""
    return write_hopper(tmp_path_factory.mktemp("data") / "hopper.hdf5")


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ran]]:
    """The command line in this process, with `tmp_path` as current directory."""
    from raymimic.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    handler = signal.getsignal(signal.SIGTERM)

    def run(*args: str) -> Ran:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(args)
        said = capfd.readouterr()
        return Ran(ended.value.code, said.out, said.err)

    yield run
    signal.signal(signal.SIGTERM, handler)
