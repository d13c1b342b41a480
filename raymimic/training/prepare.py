"""Everything that is checked before a training starts, and its outcome: a `Prepared`."""

import json
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from raymimic import storage
from raymimic.algo import algo_class, algo_factory
from raymimic.algo.rollout_policy import can_act
from raymimic.checkpoints.digests import MANIFEST
from raymimic.checkpoints.sources import absolute_source, fetched
from raymimic.config import BaseConfig, config_factory
from raymimic.config.base_config import config_from_file, import_modules
from raymimic.config.checks import check_config, warnings_for
from raymimic.credentials import ServerUri
from raymimic.data.convert import absolute_dataset
from raymimic.data.training_data import DataInfo, action_range, inspect_data, settle_depth
from raymimic.envs.fit import PolicyInterface, TriedEnv, clipping_warnings
from raymimic.envs.kinds import read_env_meta
from raymimic.errors import DatasetError, RaymimicError
from raymimic.models.vision.weights import weights_follow
from raymimic.rollout.tryout import Tryout, TryoutProcess
from raymimic.tracking.model_files import is_model_uri
from raymimic.training.language import embeddings_for, embeddings_of_run
from raymimic.training.run_folder import RunFolder, config_of_run
from raymimic.training.worker import WorkerSpec, fill_in_schedule_lengths
from raymimic.user_modules import ImportPath, module_of, modules_of

logger = logging.getLogger(__name__)

# The file of a run's folder that holds a model of MLflow to begin with.
INITIAL = "initial.pth"

Configured = BaseConfig | Mapping[str, Any] | str | Path
"""A config, its dictionary, or the path of its JSON file."""


@dataclass(frozen=True)
class Prepared:
    """A training that was checked as far as a driver can check it.

    Attributes:
        config: a locked copy of the caller's config, with absolute paths and without passwords.
        data: structure of the datasets; none of their values has been read.
        envs: metadata of each environment to evaluate in, by the name in its metrics.
    """

    config: BaseConfig
    data: DataInfo
    envs: dict[str, dict[str, Any]]

    @property
    def imports(self) -> tuple[str, ...]:
        """The modules that all processes of the training import; this one has imported them."""
        of_envs = (module_of(env_meta.get("env_name")) for env_meta in self.envs.values())
        return tuple(dict.fromkeys([*modules_of(self.config), *filter(None, of_envs)]))

    def tryout(self) -> Tryout | None:
        """The trial of the environments; None if there are none."""
        if not self.envs:
            return None
        return Tryout(
            envs=self.envs,
            policy=PolicyInterface.of(self.config, self.data.shape_meta),
            remedy=(
                "play another environment (experiment.env), or train without playing "
                "(experiment.rollout.enabled=false)"
            ),
            placement_timeout_s=self.config.ray.placement_timeout_s,
        )

    def try_environments(self) -> dict[str, TriedEnv]:
        """Tries the environments now, in a process of its own.

        Returns:
            the environments, by their names in the metrics.

        Raises:
            RaymimicError: one cannot be made, or does not fit the policy.
        """
        tryout = self.tryout()
        if tryout is None:
            return {}
        process = TryoutProcess(tryout, self.imports)
        try:
            return process.wait()
        finally:
            process.close()

    def clipping_warnings(self, tried: Mapping[str, TriedEnv]) -> list[str]:
        """A warning for each environment that takes less than the actions of the data.

        Args:
            tried: the environments; without any, the data are not read.
        """
        if not tried:
            return []
        return clipping_warnings(*action_range(self.config, self.data.train), tried)

    def fetch_initial_weights(self, folder: RunFolder) -> None:
        """Copies a model of MLflow that `experiment.ckpt_path` names into the run's folder.

        So workers need neither MLflow nor its password.

        Args:
            folder: the run's folder, which this process holds.

        Raises:
            CheckpointError: MLflow has no such model, or does not answer.
            OutputError: the folder cannot be written.
        """
        source, path = self.config.experiment.ckpt_path, self._initial_weights(folder)
        if path is None or path == source:
            return
        begun = (storage.exists(storage.join(folder.uri, name)) for name in (INITIAL, MANIFEST))
        if not any(begun):
            with fetched(source, self.config.mlflow.tracking_uri) as file:
                storage.upload(Path(file), path)

    def _initial_weights(self, folder: RunFolder) -> str | None:
        """Path or URI of the checkpoint to begin with, if there is one."""
        source: str | None = self.config.experiment.ckpt_path
        if source is None or not is_model_uri(source):
            return source
        return storage.join(folder.uri, INITIAL)

    def worker_spec(self, folder: RunFolder) -> WorkerSpec:
        """The training as plain data, for its workers.

        Args:
            folder: the run's folder, which this process holds.
        """
        eval_envs = self.data.eval_envs
        return WorkerSpec(
            algo_name=self.config.algo_name,
            config=json.dumps(self.config.to_dict()),
            run_dir=folder.uri,
            import_path=ImportPath.of_this_process(),
            evaluates=bool(self.envs),
            env_metadata=eval_envs[0].meta if eval_envs else {},
            dataset_digest=self.data.digest,
            imports=self.imports,
            lease=None if folder.lease is None else folder.lease.owner,
            initial_weights=self._initial_weights(folder),
            language=self.data.language,
        )


def prepare(config: Configured, run: str | None = None) -> Prepared:
    """Finds every mistake that can be found before a training.

    Args:
        config: the training.
        run: folder or URI of the run that goes on; it may have the embeddings of instructions.

    Raises:
        RaymimicError: the user can correct it; one sentence tells how.
    """
    config = _own_config(config)
    for warning in warnings_for(config):
        logger.warning(warning)
    import_modules(modules_of(config))
    settle_depth(config)
    algo = algo_class(config.algo_name, config)
    known = {} if run is None else embeddings_of_run(run, config)
    data = inspect_data(config, algo.reads(config), embeddings_for(config, known))
    begun = run is not None or config.experiment.ckpt_path is not None
    _try_networks(config, data.shape_meta, begun)
    envs: dict[str, dict[str, Any]] = {}
    if config.experiment.rollout.enabled:
        if can_act(algo):
            envs = _environments(data)
        if not envs:
            logger.warning(
                "nothing is evaluated: the data name no environment (env_args) to evaluate in; "
                "experiment.env names one"
                if can_act(algo)
                else f"nothing is evaluated: {config.algo_name} plans, but does not act"
            )
    return Prepared(config, data, envs)


def prepare_resumed(config: Configured, run: str) -> Prepared:
    """Like `prepare`, for a run that sees depth as before, and whose dataset may have been moved.

    Args:
        config: the training.
        run: folder or URI of the run.

    Raises:
        RaymimicError: as `prepare`; the sentence about a lost dataset names `--dataset`.
    """
    config = _own_config(config)
    if config.leaves_depth_to_data:
        with config.values_unlocked():
            config.train.cut_depth = config_of_run(run, config.train.imports).cuts_depth
    try:
        return prepare(config, run)
    except DatasetError as error:
        if "does not exist" in str(error):
            raise DatasetError(
                f"{error}; if the dataset was moved, name its new place with --dataset"
            ) from error
        raise


def _own_config(config: Configured) -> BaseConfig:
    """Copies and checks the config, and makes its paths absolute."""
    if isinstance(config, str | Path):
        config = config_from_file(config)
    elif not isinstance(config, BaseConfig):
        import_modules(modules_of(config))
        config = config_factory(str(config.get("algo_name")), config)
    own = config_factory(config.algo_name, config.to_dict())
    check_config(own)
    with own.unlocked():
        data = own.train.data
        if isinstance(data, str):
            own.train.data = absolute_dataset(data)
        elif data is not None:
            own.train.data = [{**d, "path": absolute_dataset(d["path"])} for d in data]
        own.train.allow_links = list(map(storage.absolute, own.train.allow_links))
        if own.train.text_encoder is not None:
            own.train.text_encoder = storage.absolute(own.train.text_encoder)
        if own.experiment.ckpt_path is not None:
            own.experiment.ckpt_path = absolute_source(own.experiment.ckpt_path)
        if isinstance(own.mlflow.tracking_uri, str):
            # From here on the password is in no config, and so in nothing that is written.
            own.mlflow.tracking_uri = ServerUri.of(own.mlflow.tracking_uri)
    own.lock()
    return own


def _try_networks(config: BaseConfig, shape_meta: Mapping[str, Any], begun: bool) -> None:
    """Makes the networks without memory: a mistake in them shows before data are read.

    Files of pretrained weights are read, too, unless the weights are those of a checkpoint.

    Args:
        config: the training.
        shape_meta: shapes of its data.
        begun: whether the training begins with a checkpoint.

    Raises:
        RaymimicError: they cannot be made.
    """
    trial = config_factory(config.algo_name, config.to_dict())
    fill_in_schedule_lengths(trial, config.experiment.epoch_every_n_steps or 1)
    trial.lock()
    meta = torch.device("meta")
    try:
        with meta, weights_follow() if begun else nullcontext():
            shapes, ac_dim = shape_meta["all_shapes"], shape_meta["ac_dim"]
            algo_factory(config.algo_name, trial, shapes, ac_dim, meta)
    except RaymimicError:
        raise
    except Exception as error:  # a user's algorithm may ask for values, which workers have
        logger.debug("the networks were not tried: %r", error)


def _environments(data: DataInfo) -> dict[str, dict[str, Any]]:
    """The environments to evaluate in, by the name in their metrics; each has valid metadata.

    They are made and tried later, in the processes that play them.
    """
    envs = {env.key: env.meta for env in data.eval_envs if env.evaluate}
    for env_meta in envs.values():
        read_env_meta(env_meta)
    return envs
