"""A cluster whose autoscaler declares its limits in a file, as `ray up` makes it."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from head import BIN, environment, free_port, ray_head, short_folder
from tiny import train_args
from waiting import DEADLINE_S

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class Cluster:
    """One node of one CPU, and an autoscaler that may add two more."""

    address: str
    home: Path

    def train(self, dataset: Path, workers: int) -> subprocess.CompletedProcess[str]:
        command = [BIN / "raymimic", *train_args(dataset, algo="bc"), "--workers", str(workers)]
        return subprocess.run(
            command,
            cwd=self.home,
            env=environment(self.home, RAY_ADDRESS=self.address),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    address = f"127.0.0.1:{free_port()}"
    cpu = {"resources": {"CPU": 1}, "node_config": {}}
    config = {
        "cluster_name": "fake",
        "max_workers": 2,
        "provider": {"type": "fake_multinode", "gcs_address": address},
        "available_node_types": {
            "ray.head.default": {**cpu, "max_workers": 0},
            "one": {**cpu, "max_workers": 2},
            "other": {**cpu, "max_workers": 2},
        },
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "docker": {},
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        **{
            f"{part}_commands": []
            for part in (
                *("initialization", "setup", "head_setup", "worker_setup"),
                *("head_start_ray", "worker_start_ray"),
            )
        },
    }
    with short_folder() as home:
        path = home / "autoscaling.json"
        path.write_text(json.dumps(config))
        options = [f"--port={address.split(':')[1]}", "--num-cpus=1", "--include-dashboard=false"]
        variables = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        with ray_head(home, *options, f"--autoscaling-config={path}", **variables):
            yield Cluster(address, home)


def test_more_workers_than_may_be_added_are_refused(cluster: Cluster, hopper: Path) -> None:
    # Two node types of two nodes each, but two nodes in all.
    ran = cluster.train(hopper, 4)
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert "never place 4 workers" in ran.stderr
    assert "its autoscaler may add nodes for 3; use --workers 3" in ran.stderr


def test_fewer_workers_wait_for_the_nodes(cluster: Cluster, hopper: Path) -> None:
    ran = cluster.train(hopper, 2)
    assert ran.returncode == 0, ran.stderr
    assert "epoch 2/2" in ran.stdout
    assert "no maximum" not in ran.stderr
