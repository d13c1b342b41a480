"""The files in `cluster/` fit Ray and KubeRay, and name commands that raymimic knows."""

import argparse
import json
import re
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml

from raymimic.cli import train
from raymimic.config import config_factory
from raymimic.config.base_config import parse_set

FOLDER = Path(__file__).parents[2] / "cluster"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def rayjob() -> dict[str, Any]:
    return next(d for d in documents("rayjob.yaml") if d["kind"] == "RayJob")


def readme_commands() -> list[str]:
    text = (FOLDER / "README.md").read_text().replace("\\\n", " ")
    return re.findall(r"raymimic train --algo [^\n`]*", text)


@pytest.mark.parametrize("command", [rayjob()["spec"]["entrypoint"], *readme_commands()])
def test_train_commands_are_known(command: str) -> None:
    program, subcommand, *arguments = shlex.split(command)
    assert [program, subcommand] == ["raymimic", "train"]
    parser = argparse.ArgumentParser(exit_on_error=False)
    train.arguments(parser)
    args = parser.parse_args(arguments)
    config = config_factory(args.algo)
    with config.values_unlocked():
        for assignment in args.set:
            config.set_path(*parse_set(assignment))
    storage = config.ray.storage_path
    assert storage.startswith(("/shared/", "s3://"))
    assert args.dataset.startswith(("/shared/", "s3://"))


def test_rayjob_fits_together() -> None:
    job = rayjob()
    cluster = job["spec"]["rayClusterSpec"]
    assert job["apiVersion"] == "ray.io/v1"
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    (claim,) = [d for d in documents("rayjob.yaml") if d["kind"] == "PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = set()
    for group in groups:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        images.add(container["image"])
        assert container["resources"]["requests"] == container["resources"]["limits"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert mounts == {"shared": "/shared", "shm": "/dev/shm"}
        assert volumes.keys() == mounts.keys()
        assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert len(images) == 1
    # Each worker takes one GPU.
    (workers,) = cluster["workerGroupSpecs"]
    gpus = int(
        workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    )
    assert f"--workers {workers['replicas'] * gpus} " in job["spec"]["entrypoint"]


def test_ray_up_file_keeps_rays_schema() -> None:
    (config,) = documents("ray-up.yaml")
    schema = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    jsonschema.validate(config, json.loads(schema.read_text()))
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    assert types["gpu"]["max_workers"] <= config["max_workers"]
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    for command in (c for c in starts if "ray start" in c):
        assert "RAY_AUTH_MODE=token ray start" in command
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


def test_image_has_the_tested_ray() -> None:
    constraints = (FOLDER.parent / "constraints.txt").read_text()
    (pinned,) = re.findall(r"^ray==(\S+)$", constraints, re.MULTILINE)
    assert f"FROM rayproject/ray:{pinned}-py3" in (FOLDER / "Dockerfile").read_text()
    assert rayjob()["spec"]["rayClusterSpec"]["rayVersion"] == pinned
