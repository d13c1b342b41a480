"""Resumes a run: checks its settings, its data and its checkpoints."""

import json
import logging
import re
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from raymimic import storage
from raymimic.checkpoints.content import CheckpointContent
from raymimic.checkpoints.store import CheckpointStore
from raymimic.config import BaseConfig, config_factory
from raymimic.config.config import leaves
from raymimic.data.training_data import dataset_entries
from raymimic.errors import CheckpointError, ConfigError, DatasetError, OutputError
from raymimic.storage import read_json
from raymimic.tracking.journal import JOURNAL, RUN_FILE, spool_dir_of
from raymimic.training.run_folder import REPLACED, RunFolder, config_of_run, run_base

logger = logging.getLogger(__name__)

# May change when a run is resumed, as it changes neither the training nor the scores of
# evaluations. All else would make it another run.
FREE = (
    *("experiment.name", "experiment.logging.*", "experiment.save.*"),
    *("experiment.render", "experiment.render_video", "experiment.keep_all_videos"),
    *("experiment.video_skip", "experiment.rollout.enabled", "experiment.rollout.n"),
    *("experiment.rollout.rate", "experiment.rollout.seed", "experiment.rollout.warmstart"),
    *("train.num_epochs", "train.cuda", "train.imports", "train.allow_links"),
    "train.text_encoder",  # embeddings are the checkpoint's
    *("train.num_data_workers", "train.hdf5_cache_mode", "train.hdf5_use_swmr"),
    *("meta.*", "mlflow.*", "ray.*"),
    # Which the training itself fills in.
    *("algo.*optim_params.*.num_train_batches", "algo.*optim_params.*.num_epochs"),
)
# Changes the scores of evaluations: `best` would compare unlike numbers.
_EVALUATION = (
    *("experiment.env", "experiment.additional_envs", "experiment.env_meta_update_dict*"),
    *("experiment.rollout.horizon", "experiment.rollout.terminate_on_success"),
)
# Where a new run goes; a resumed one stays where it lies.
_PLACES = ("train.output_dir", "ray.storage_path")
_KEPT = ("ray.data_placement",)

# For the process that delivers the records of a killed training to MLflow to end.
_DELIVERY_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Resumed:
    """A run that goes on.

    Attributes:
        notes: sentences for the user.
        tags: facts for the tracker.
    """

    notes: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)


def check_resume(
    config: BaseConfig, run: RunFolder, digest: str, envs: Collection[str], *, newest: bool = True
) -> list[str]:
    """Refuses to resume a run as another one; writes nothing.

    Args:
        config: as the run shall go on.
        run: its folder.
        digest: of the data as they are now.
        envs: names of the environments to evaluate in.
        newest: the run goes on from its newest checkpoint.

    Returns:
        sentences for the user.

    Raises:
        ConfigError: a setting differs that may not.
        DatasetError: the data differ.
        CheckpointError: the list of checkpoints or all checkpoints are damaged or lost.
    """
    store = CheckpointStore(run.uri, config.experiment.save)
    _check_same(config_of_run(run.uri, config.train.imports), config, run, store)
    if not newest:
        return []
    content = store.load_last()
    if content is None:
        if _has_trained(run):
            raise CheckpointError(
                f"'{run.uri}' has trained, but '{store.folder}' holds no checkpoint any more; "
                "restore one there, or start a new run"
            )
        return ["the run has no checkpoint yet: training begins at the first epoch"]
    _check_checkpoint(content, config, run, store, digest, envs)
    return [f"training goes on after epoch {content.epoch} of {config.train.num_epochs}"]


def _check_checkpoint(
    content: CheckpointContent,
    config: BaseConfig,
    run: RunFolder,
    store: CheckpointStore,
    digest: str,
    envs: Collection[str],
) -> None:
    before = config_factory(content.algo_name, json.loads(content.config))
    _check_same(before, config, run, store)
    then = content.training.dataset_digest
    if then != digest:
        raise DatasetError(
            f"the data of '{run.uri}' have changed since it was started ({then} then, {digest} "
            "now); restore the earlier data, or start a new run for these"
        )
    played = {env for evaluation in store.evaluations for env in evaluation.returns}
    if envs and played and played != set(envs):
        raise ConfigError(
            f"the evaluations of '{run.uri}' are recorded for {', '.join(sorted(played))}, and now "
            f"would be for {', '.join(sorted(envs))}; give the entries of train.data a 'key' that "
            "names them as before"
        )


def _check_same(
    before: BaseConfig, now: BaseConfig, run: RunFolder, store: CheckpointStore
) -> None:
    if before.algo_name != now.algo_name:
        raise ConfigError(
            f"'{run.uri}' is a run of {before.algo_name}, not of {now.algo_name}; start a new run"
        )
    for key, old, new in changed(_with_anonymous_data(before), _with_anonymous_data(now)):
        remedy = "start a new run for it (experiment.ckpt_path takes the weights along)"
        if key in _PLACES:
            if _lies_there(run, now, key):
                continue
            remedy = (
                f"a resumed run stays where it lies; leave it out, or move '{run.uri}' and name "
                "its new place after --resume"
            )
        elif matches(key, _EVALUATION):
            if not store.evaluations:  # nothing that new scores would be compared with
                continue
            remedy = (
                "leave it as it was, as 'best' compares all evaluations of a run; raymimic "
                "evaluate CHECKPOINT scores a checkpoint otherwise (--horizon, --env)"
            )
        elif matches(key, FREE) and key not in _KEPT:
            continue
        raise ConfigError(
            f"a resumed run keeps its settings, but {key} was {old!r} and now is {new!r}; {remedy}"
        )


def matches(key: str, patterns: Collection[str]) -> bool:
    """Whether a dotted key is one of those meant."""
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Keys whose value is another one, with both values, sorted."""
    old, new = _comparable(before), _comparable(now)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield key, old.get(key), new.get(key)


def _comparable(content: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted key, with lists for tuples, as JSON has them, and without empty sections."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in leaves(content)
        if not isinstance(value, Mapping)
    }


def _with_anonymous_data(config: BaseConfig) -> dict[str, Any]:
    """The config without the names of data: a digest compares their content."""
    content = config.to_dict()
    content["train"]["cut_depth"] = config.cuts_depth  # runs without the key cut
    content["train"]["data"] = [
        {k: v for k, v in entry.items() if k not in ("path", "key")}
        for entry in dataset_entries(config)
    ]
    return content


def _lies_there(run: RunFolder, config: BaseConfig, key: str) -> bool:
    """Whether a run lies where a new one of that config would, as after it was moved."""
    remote = storage.is_uri(run.uri)
    if key == "train.output_dir" and remote:
        return True  # each machine has a local folder of its own
    return run.uri.startswith(f"{run_base(config).rstrip('/')}/")


def _has_trained(run: RunFolder) -> bool:
    """Whether the log of a run tells of epochs, which are logged when a checkpoint holds them."""
    try:
        log = storage.read_bytes(storage.join(run.uri, "logs", "log.txt")).decode(errors="replace")
    except OSError:
        return False
    return re.search(r"^\S+ \S+ epoch \d+/\d+ ", log, re.MULTILINE) is not None


# -- from an earlier checkpoint --


def go_back(
    config: BaseConfig, run: RunFolder, checkpoint: str, digest: str, envs: Collection[str]
) -> Resumed:
    """Makes a run go on from an earlier checkpoint, in a folder that this process holds.

    The run's later records are kept in `replaced/<number>` of its folder: the later checkpoints,
    manifest, epochs and evaluations as they were, and the record for MLflow. Then the run begins a
    new MLflow run, with the epochs up to the checkpoint: nothing is logged twice or with two
    values.

    Args:
        config: as the run shall go on.
        run: its folder.
        checkpoint: name of the file in the run's folder `models`, or its path or URI.
        digest: of the data as they are now.
        envs: names of the environments to evaluate in.

    Raises:
        CheckpointError: it is no checkpoint to go on from.
        ConfigError: it was trained with other settings.
        DatasetError: it was trained on other data.
        OutputError: the folder cannot be written.
    """
    store = CheckpointStore(run.uri, config.experiment.save, run.lease)
    name = _name_in(run, store.folder, checkpoint)
    entry, content = store.find(name)
    _check_checkpoint(content, config, run, store, digest, envs)
    store.load_history(content, store.path(entry))
    notes = [*store.notes, f"training goes on from '{name}', after epoch {entry.epoch}"]
    tags: dict[str, str] = {}
    number = str(1 + max((int(n) for n in _replaced(run) if n.isdigit()), default=0))
    aside = storage.join(run.uri, REPLACED, number)
    if any(e.epoch > entry.epoch for e in store.entries):
        tags = _replace_record(run, run.local / REPLACED / number, entry.epoch)
        notes.append(f"the records and checkpoints after it are kept in '{aside}'")
    store.go_back_to(entry, content, aside)
    return Resumed(notes, tags)


def _name_in(run: RunFolder, folder: str, checkpoint: str) -> str:
    """The name of a checkpoint within the folder of a run's checkpoints.

    Raises:
        CheckpointError: it lies elsewhere.
    """
    name = PurePosixPath(checkpoint).name
    given = {checkpoint} if storage.is_uri(checkpoint) else {storage.absolute(checkpoint)}
    if not storage.is_uri(checkpoint):
        given.add(storage.join(run.uri, checkpoint))
    inside = _resolved(storage.join(folder, name))
    if checkpoint != name and inside not in map(_resolved, given):
        raise CheckpointError(
            f"'{checkpoint}' is not a checkpoint of the run, whose checkpoints lie in '{folder}'; "
            "copy it there, or start a new run from its weights (experiment.ckpt_path)"
        )
    return name


def _resolved(path: str) -> str:
    return path if storage.is_uri(path) else str(Path(path).resolve())


def _replaced(run: RunFolder) -> list[str]:
    places = {storage.join(place, REPLACED) for place in (run.uri, str(run.local))}
    return [name for place in places for name in storage.subfolders(place)]


def _replace_record(run: RunFolder, aside: Path, epoch: int) -> dict[str, str]:
    """Lets a run begin a new MLflow run; missing records of the one before can still be delivered.

    Args:
        run: the run.
        aside: local folder that takes the record of the MLflow run before.
        epoch: after which training goes on.

    Returns:
        tags of the new one that name the one before.
    """
    before = read_json(run.local / RUN_FILE).get("run_id")
    if (spool_dir_of(run.local) / JOURNAL).exists():
        _deliver_rest(run, aside)
        storage.move(str(spool_dir_of(run.local)), str(spool_dir_of(aside)))
    if storage.is_uri(run.uri):
        storage.remove(storage.join(run.uri, RUN_FILE))
    storage.move(str(run.local / RUN_FILE), str(aside / RUN_FILE))
    if before is None:
        return {}
    return {"replaces.run_id": str(before), "replaces.from_epoch": str(epoch)}


def _deliver_rest(run: RunFolder, aside: Path) -> None:
    """Closes the MLflow run of a killed training and delivers missing records, if that can be."""
    from raymimic.tracking.mlflow_tracker import sync

    deadline = time.monotonic() + _DELIVERY_PATIENCE_S
    while True:
        try:
            report = sync(run.local)
            break
        except OutputError:  # the process of the killed training is still at it
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
    if report.left:
        logger.warning(
            "MLflow lacks %d records of this run so far (%s); deliver them with: "
            "raymimic mlflow sync '%s'",
            report.left,
            report.reason,
            aside,
        )
