"""Fixtures of several test modules."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tiny import Ran, process_as_it_was, write_hopper

if TYPE_CHECKING:  # they import MLflow and Ray
    from mlflow_server import Server
    from sweeps import Tune

# Settings of the user that say where commands run and where they record.
USERS_VARIABLES = ("RAY_ADDRESS", *(f"MLFLOW_{name}" for name in ("EXPERIMENT_NAME", "RUN_ID")))
USERS_VARIABLES += tuple(
    f"MLFLOW_TRACKING_{name}" for name in ("URI", "USERNAME", "PASSWORD", "TOKEN")
)

# Two test processes share two cores: more threads would wait for each other. Read when torch is
# imported, in the processes that tests start too.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start a cluster or a server are slow, and begin before the quick ones."""
    for item in items:
        if item.get_closest_marker("ray") or item.get_closest_marker("mlflow"):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def _no_clusters_and_servers_of_the_user(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYMIMIC_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        for name in USERS_VARIABLES:
            patch.delenv(name, raising=False)
        # Ray's workers would get next to nothing of a core beside a test that computes.
        patch.setenv("RAY_worker_niceness", "0")
        yield


@pytest.fixture(autouse=True)
def _own_table_of_modalities() -> Iterator[None]:
    """A test knows no keys that an earlier one told to robomimic's functions of observations."""
    yield
    if (obs_utils := sys.modules.get("raymimic.utils.obs_utils")) is not None:
        obs_utils.OBS_KEYS_TO_MODALITIES.clear()
        obs_utils.OBS_MODALITIES_TO_KEYS.clear()
        obs_utils.DEFAULT_ENCODER_KWARGS.clear()
        obs_utils.DepthModality.set_obs_processor(None)
        obs_utils.DepthModality.set_obs_unprocessor(None)


@pytest.fixture(scope="session")
def hopper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 120 transitions, see `write_hopper`; not to be changed."""
    return write_hopper(tmp_path_factory.mktemp("data") / "hopper.hdf5")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Server]":
    """The MLflow server of all test modules of this process; each of their experiments has a name.

    A test that needs it calls `start()`, as another one may have killed it.
    """
    from mlflow_server import Server

    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture(scope="session")
def renderer() -> None:
    """Lets this process draw; its tests are skipped where OpenGL is missing.

    They fail instead where `RAYMIMIC_REQUIRE_RENDERER=1`.
    """
    from raymimic.envs.rendering import use_renderer
    from raymimic.errors import EnvError

    try:
        use_renderer()
    except EnvError as error:
        if os.environ.get("RAYMIMIC_REQUIRE_RENDERER") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture
def evaluations_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plays evaluations in this process, as trials of sweeps do; another would import torch."""
    from raymimic.rollout.local import LocalEvaluator

    monkeypatch.setattr(
        "raymimic.training.trainer.LocalEvaluator",
        lambda num_envs, imports, apart: LocalEvaluator(num_envs, imports, apart=False),
    )


@pytest.fixture
def tune(tmp_path: Path) -> "Iterator[Callable[..., Tune]]":
    """Starts `raymimic tune` in `tmp_path`: see `Tune`. It does not outlive the test."""
    from sweeps import Tune

    started: list[Tune] = []

    def start(name: str, sweep: dict[str, Any] | None, *args: str) -> Tune:
        started.append(Tune(tmp_path, name, sweep, *args))
        return started[-1]

    yield start
    for sweep in started:
        sweep.kill()


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ran]]:
    """The command line in this process, with `tmp_path` as current directory."""
    from raymimic.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> Ran:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(args)
        said = capfd.readouterr()
        return Ran(ended.value.code, said.out, said.err)

    with process_as_it_was():
        yield run
