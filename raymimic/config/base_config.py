"""Settings that all algorithms share, and the registry of algorithm configs.

The trailing (or preceding) comment of an assignment in a config class documents the key:
`raymimic config ALGO` prints it, for a user's own classes too.
"""

from __future__ import annotations

import importlib
import json
import logging
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from math import inf
from pathlib import Path
from typing import Any, ClassVar

from raymimic import storage
from raymimic.config.config import Config
from raymimic.config.sections import (
    ABOVE_0,
    BELOW_1,
    AnyOf,
    EncoderSection,
    OptimizerSection,
    Section,
    SettingRules,
)
from raymimic.errors import ConfigError, RaymimicError, perhaps
from raymimic.observations.shapes import modalities_of
from raymimic.storage import parse_json
from raymimic.user_modules import modules_of, place_in_own_code, same_definition

logger = logging.getLogger(__name__)

REGISTERED_CONFIGS: dict[str, type[BaseConfig]] = {}


@dataclass(frozen=True)
class Place:
    """A place in a config whose keys have rules and comments of another class.

    Attributes:
        cls: the class of the config itself, of a part's config, or of a section.
        inside: path, in that class, of the section that stands here; empty: the whole.
        path: path of the place in the config; empty: the config itself.
    """

    cls: type[SettingRules]
    inside: str
    path: str

    def of(self, key: str) -> str | None:
        """Returns the path in the config of a key, or pattern, of the class; None: it has none."""
        prefix = f"{self.inside}." if self.inside else ""
        if not key.startswith(prefix):
            return None
        key = key.removeprefix(prefix)
        return f"{self.path}.{key}" if self.path else key


class BaseConfig(SettingRules, Config):
    """Base of all algorithms' configs; a subclass fills `self.algo` in `algo_config`.

    A subclass that sets `ALGO_NAME` is registered under that name, for `config_factory`. Each
    `<section>_config` method fills one section and may be extended. Keys are locked afterwards.
    Sections and keys are robomimic 0.5's (`robomimic/config/base_config.py`) and those in
    `OWN_KEYS`; `train.output_dir` is relative to the current directory instead of the package's.

    Args:
        dict_to_load: values that replace the defaults, such as a parsed JSON config.

    Attributes:
        ALGO_NAME: name of the algorithm.
        IN_ROBOMIMIC: whether robomimic has an algorithm of this name. A subclass with a name of its
            own does not inherit it.
        OWN_KEYS: keys that robomimic's config lacks.
        RANGES, CHOICES, EXAMPLES, NULLABLE, PERTURBABLE: rules for the keys that the class itself
            adds; see `SettingRules`. A section (`self.algo.vae = VAESection()`) or a part that is
            another algorithm (`self.algo.actor = BCConfig().algo`) has the rules of its own class.
        SEES_STACKS: whether the policy gets the last `train.frame_stack` observations, or the key
            that switches this on; None: the algorithm decides, and refuses stacks if it takes
            single steps.

    Raises:
        ConfigError: `dict_to_load` names an unknown key.
    """

    __slots__ = ()

    ALGO_NAME: ClassVar[str]
    IN_ROBOMIMIC: ClassVar[bool] = False
    OWN_KEYS: ClassVar[tuple[str, ...]] = (
        *("experiment.rollout.seed", "train.dtype", "train.imports", "train.allow_links"),
        *("train.text_encoder", "train.validation_fraction", "train.cut_depth", "ray", "mlflow"),
    )
    SEES_STACKS: ClassVar[bool | str | None] = None
    RANGES = {
        "experiment.save.every_n_seconds": (0, inf),
        "experiment.save.every_n_epochs": (1, inf),
        "experiment.save.epochs": (1, inf),
        "experiment.epoch_every_n_steps": (1, inf),
        "experiment.validation_epoch_every_n_steps": (1, inf),
        "experiment.video_skip": (1, inf),
        "experiment.rollout.n": (1, 2**16),  # the seeds of one evaluation
        "experiment.rollout.horizon": (1, inf),
        "experiment.rollout.rate": (1, inf),
        "experiment.rollout.warmstart": (0, inf),
        "experiment.rollout.seed": (0, inf),
        "train.num_data_workers": (0, inf),
        "train.seq_length": (1, inf),
        "train.frame_stack": (1, inf),
        "train.batch_size": (1, inf),
        "train.num_epochs": (1, inf),
        "train.seed": (0, inf),
        "train.max_grad_norm": (ABOVE_0, inf),
        "train.validation_fraction": (ABOVE_0, BELOW_1),
        "ray.num_workers": (0, inf),
        "ray.cpus_per_worker": (0.001, inf),
        "ray.gpus_per_worker": (0, inf),
        "ray.threads_per_worker": (1, inf),
        "ray.commit_interval_s": (0, inf),
        "ray.max_failures": (-1, inf),
        "ray.placement_timeout_s": (0, inf),
        "ray.rollout_actors": (1, inf),
        "ray.envs_per_actor": (1, inf),
        "ray.cpus_per_actor": (0, inf),
    }
    CHOICES = {
        "train.dtype": ("float32", "float64"),
        "train.goal_mode": (None, "last"),
        "train.hdf5_cache_mode": (None, "auto", "all", "low_dim"),
        "train.action_config.*.normalization": (None, "min_max", "gaussian"),
        "ray.data_placement": ("replicate", "shard"),
    }
    EXAMPLES = {
        "experiment.save.every_n_seconds": 1.0,
        "experiment.save.epochs": [1],
        "experiment.env": "Walker2d-v5",
        "experiment.additional_envs": ["Walker2d-v5"],
        "experiment.rollout.seed": 1,
        "experiment.ckpt_path": "model.pth",
        "train.imports": ["module"],
        "train.allow_links": ["folder"],
        "train.text_encoder": "folder",
        "train.hdf5_filter_key": "train",
        "train.hdf5_validation_filter_key": "valid",
        "train.validation_fraction": 0.1,
        "train.cut_depth": True,
        "train.goal_mode": "last",
        "train.max_grad_norm": 1.0,
        "observation.*modalities.*": ["flat"],
        "observation.*core_class": "VisualCore",
        "observation.*obs_randomizer_class": AnyOf(("CropRandomizer", ["CropRandomizer"])),
        "observation.*obs_randomizer_kwargs": AnyOf(({}, [{}])),
        "meta.hp_keys": ["train.seed"],
        "meta.hp_base_config_file": "base.json",
        "ray.address": "auto",
        "ray.gpus_per_worker": 1.0,
        "ray.threads_per_worker": 1,
        "ray.storage_path": "s3://bucket",
        "mlflow.tracking_uri": "http://server",
        "mlflow.experiment_name": "raymimic",
        "mlflow.run_name": "run",
    }
    NULLABLE: ClassVar[tuple[str, ...]] = (
        "experiment.save.every_n_epochs",
        "experiment.epoch_every_n_steps",
        "experiment.validation_epoch_every_n_steps",
        "train.hdf5_cache_mode",
        "observation.*core_class",
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        name = cls.__dict__.get("ALGO_NAME")
        if name is None:
            return
        if "IN_ROBOMIMIC" not in cls.__dict__:
            cls.IN_ROBOMIMIC = False
        other = REGISTERED_CONFIGS.get(name, cls)
        if not same_definition(other, cls):
            raise ConfigError(
                f"ALGO_NAME '{name}' of {cls.__module__}.{cls.__qualname__} is taken by "
                f"{other.__module__}.{other.__qualname__}: choose another name"
            )
        REGISTERED_CONFIGS[name] = cls

    def __setitem__(self, key: str, value: Any) -> None:
        own = type(self).ALGO_NAME
        if key == "algo_name" and value != own:
            raise ConfigError(
                f"'algo_name' of a config for '{own}' cannot become {value!r}: begin with the "
                "other algorithm's config (--algo, or the file's 'algo_name')"
            )
        super().__setitem__(key, value)

    def __init__(self, dict_to_load: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.algo_name = type(self).ALGO_NAME
        self.experiment_config()
        self.train_config()
        self.algo_config()
        self.observation_config()
        self.meta_config()
        self.ray_config()
        self.mlflow_config()
        for _, optim_params in sections_named(self, "optim_params"):
            for name, net in optim_params.items():
                if isinstance(net, Config) and not isinstance(net, OptimizerSection):
                    optim_params[name] = net.recast(OptimizerSection)
                    optim_params[name].declare_optional()
        for name in ("algo", "observation"):
            if name in self:
                self[name]._origin = (type(self), name)
        self.lock_keys()
        if dict_to_load is not None:
            self.update(dict_to_load)

    # The sections' methods only assign; a comment beside each key gives its meaning.

    def experiment_config(self) -> None:
        """Fills `experiment`: name, logging, checkpoints and evaluation rollouts."""
        self.experiment.name = "test"  # results go to <train.output_dir>/<name>/<time>
        self.experiment.validate = False  # compute losses on held-out demos after each epoch
        self.experiment.logging.terminal_output_to_txt = True  # keep the printed lines in logs/
        self.experiment.logging.log_tb = True  # write TensorBoard events to logs/tb
        self.experiment.logging.log_wandb = False  # no effect: metrics go to MLflow
        self.experiment.logging.wandb_proj_name = "debug"  # no effect: see mlflow.experiment_name

        self.experiment.save.enabled = True  # keep checkpoints besides the last one
        self.experiment.save.every_n_seconds = None  # keep a checkpoint after this many seconds
        self.experiment.save.every_n_epochs = 50  # keep a checkpoint every so many epochs
        self.experiment.save.epochs = []  # keep the checkpoints of these epochs (the first is 1)
        self.experiment.save.on_best_validation = False  # keep the best by validation loss
        self.experiment.save.on_best_rollout_return = False  # keep the best by mean return
        self.experiment.save.on_best_rollout_success_rate = True  # keep the best by success rate

        self.experiment.epoch_every_n_steps = 100  # gradient steps in an epoch; null: one pass
        self.experiment.validation_epoch_every_n_steps = 10  # batches in a validation; null: all

        self.experiment.env = None  # evaluate in the environment of this name, not the dataset's
        self.experiment.additional_envs = None  # names of further environments to evaluate in
        self.experiment.render = False  # no effect: evaluation runs without a screen
        self.experiment.render_video = True  # film the first episode of each evaluation
        self.experiment.keep_all_videos = False  # keep videos of epochs without a checkpoint too
        self.experiment.video_skip = 5  # environment steps between two frames of a video

        self.experiment.rollout.enabled = True  # evaluate while training
        self.experiment.rollout.n = 50  # episodes of one evaluation, in each environment
        self.experiment.rollout.horizon = 400  # longest episode, in environment steps
        self.experiment.rollout.rate = 50  # evaluate every so many epochs
        self.experiment.rollout.warmstart = 0  # epochs before the first evaluation
        self.experiment.rollout.terminate_on_success = True  # end an episode at its success
        self.experiment.rollout.seed = None  # seeds of the episodes; null: from train.seed
        # Keys of DexMimicGen's branch of robomimic, see `envs_per_actor`.
        self.experiment.rollout.optional_keys(batched=None, num_batch_envs=None)

        self.experiment.env_meta_update_dict = {}  # changes to the dataset's env_args
        self.experiment.ckpt_path = None  # start from the weights of this checkpoint

        # One of robomimic's own templates holds this key, which nothing reads.
        self.experiment.optional_keys(mse=None)

    def train_config(self) -> None:
        """Fills `train`: data, batches, length and numerics of the training."""
        # Path or URI of a dataset, or a list of datasets with options: [{"path", "weight",
        # "filter_key", "validation_filter_key", "demo_limit", "eval", "key", "lang"}, ...].
        self.train.data = None
        self.train.output_dir = f"{self.algo_name}_trained_models"  # relative to the current folder
        self.train.imports = []  # modules to import in every process (--import)
        # Further folders, besides the dataset's own, that its links may lead into.
        self.train.allow_links = []
        # Folder of a CLIP text model that embeds the instructions train.data[].lang.
        self.train.text_encoder = None

        self.train.normalize_weights_by_ds_size = False  # divide datasets' weights by their sizes
        self.train.num_data_workers = 0  # no effect: batches are gathered without processes
        # Place of the data. "all": the GPU or memory; "low_dim": images in cache files, the rest in
        # memory; null: all in cache files; "auto": the first of these with room.
        self.train.hdf5_cache_mode = "auto"
        self.train.hdf5_use_swmr = True  # no effect: the file is read once, then closed
        self.train.hdf5_load_next_obs = True  # load next_obs (where the algorithm uses it)
        self.train.hdf5_normalize_obs = False  # normalise observations by training statistics
        self.train.cut_depth = None  # clip depth to [0, 1]; null: unless robosuite recorded it
        self.train.hdf5_filter_key = None  # train on the demos of this filter key; null: on all
        self.train.hdf5_validation_filter_key = None  # validate on the demos of this filter key
        self.train.validation_fraction = None  # hold out this share of the demos, drawn by the seed

        self.train.seq_length = 1  # time steps in a sample
        self.train.pad_seq_length = True  # repeat the last step where a demo ends too early
        self.train.frame_stack = 1  # observations in a stack: the current one and those before it
        self.train.pad_frame_stack = True  # repeat the first step where a demo starts too late
        self.train.dataset_keys = ("actions", "rewards", "dones")  # arrays besides observations
        self.train.action_keys = ["actions"]  # arrays that form the action vector, in this order
        # How each action key is normalised: null, "min_max" (to [-1, 1]) or "gaussian". Format
        # "rot_6d": six numbers of a rotation; convert_at_runtime "rot_axis_angle" or "rot_euler".
        self.train.action_config = {"actions": {"normalization": None}}
        self.train.goal_mode = None  # "last": a demo's last observation is its goal

        self.train.cuda = True  # use GPUs where there are any
        self.train.dtype = "float32"  # type of networks and data; "float64": exact comparisons
        self.train.batch_size = 100  # samples of a gradient step, over all workers
        self.train.num_epochs = 2000  # number of epochs
        self.train.seed = 1  # seed of all random draws
        self.train.max_grad_norm = None  # clip each network's gradient to this L2 norm

    def algo_config(self) -> None:
        """Fills `algo`, the settings of the algorithm; for subclasses."""

    def observation_config(self) -> None:
        """Fills `observation`: keys of each modality, and their encoders."""
        # Keys by modality that the policy sees.
        self.observation.modalities.obs.low_dim = [
            "robot0_eef_pos",
            "robot0_eef_quat",
            "robot0_gripper_qpos",
            "object",
        ]
        self.observation.modalities.obs.rgb = []  # colour images
        self.observation.modalities.obs.depth = []  # depth images
        self.observation.modalities.obs.scan = []  # laser scans
        self.observation.modalities.goal.low_dim = []  # keys by modality that make up the goal
        self.observation.modalities.goal.rgb = []  # colour images of the goal
        self.observation.modalities.goal.depth = []  # depth images of the goal
        self.observation.modalities.goal.scan = []  # laser scans of the goal

        # How the keys of each modality are encoded.
        self.observation.encoder.low_dim = EncoderSection()
        self.observation.encoder.rgb = EncoderSection("VisualCore")
        self.observation.encoder.depth = EncoderSection("VisualCore")
        self.observation.encoder.scan = EncoderSection("ScanCore")

        # Modalities of the user's own may be added.
        self.observation.modalities.obs.do_not_lock_keys()
        self.observation.modalities.goal.do_not_lock_keys()
        self.observation.encoder.do_not_lock_keys()

    def meta_config(self) -> None:
        """Fills `meta`: notes of robomimic's sweeps."""
        self.meta.hp_base_config_file = None  # config that a sweep started from
        self.meta.hp_keys = []  # keys that a sweep varied
        self.meta.hp_values = []  # and their values in this run

    def ray_config(self) -> None:
        """Fills `ray`: processes, resources and storage on the cluster."""
        self.ray.address = None  # address of a cluster; null: RAY_ADDRESS, else start one here
        self.ray.num_workers = 1  # processes that train together; 0: the command's, without Ray
        self.ray.cpus_per_worker = 1.0  # CPUs reserved for each worker; may be a fraction
        self.ray.gpus_per_worker = None  # null: 1 with train.cuda and GPUs in the cluster, else 0
        self.ray.threads_per_worker = None  # torch threads; null: cpus_per_worker, at least 1
        self.ray.data_placement = "replicate"  # all data on each worker; "shard": 1/N of them
        self.ray.storage_path = None  # folder or URI for results; null: train.output_dir
        self.ray.commit_interval_s = 2.0  # least seconds between two commits of the last checkpoint
        self.ray.max_failures = 3  # restarts after lost workers before the training fails
        self.ray.placement_timeout_s = 300  # seconds to wait for resources that an autoscaler adds
        self.ray.rollout_actors = 2  # processes that evaluate during the training
        self.ray.envs_per_actor = 8  # environments in each actor, stepped with one forward pass
        self.ray.cpus_per_actor = 1.0  # CPUs reserved for each actor; may be a fraction

    def mlflow_config(self) -> None:
        """Fills `mlflow`: the tracking server, and the names of the run."""
        self.mlflow.enabled = True  # log parameters, metrics and results to MLflow
        # Server or database; null: MLFLOW_TRACKING_URI, else ./mlflow.db.
        self.mlflow.tracking_uri = None
        self.mlflow.experiment_name = None  # null: MLFLOW_EXPERIMENT_NAME, else "raymimic"
        self.mlflow.run_name = None  # null: experiment.name
        self.mlflow.tags = {}  # tags of your own, name to value

    def problems(self) -> Iterable[str]:
        """Returns one sentence for each contradiction between settings of the algorithm.

        A subclass adds its sentences to those of `super().problems()`. They are reported with all
        other mistakes, before anything starts. All types and ranges are right when this runs. Name
        a key by `self.algo.dotted("alpha")`: as a part of another algorithm it has a longer path.
        """
        return ()

    def warnings(self) -> Iterable[str]:
        """Returns one sentence for each setting of the algorithm with a surprising effect.

        A subclass adds its sentences to those of `super().warnings()`.
        """
        return ()

    def parts(self) -> Iterator[BaseConfig]:
        """Yields the config of each algorithm that is a part of this one, at any depth.

        It shares all sections with this config; its `algo` and `observation` are the part's.
        """
        algo = self.get("algo", Config())
        depth = len(algo._path)
        for section in algo._sections():
            cls, name = section._origin or (None, "")
            if section is algo or name != "algo" or cls is None:
                continue
            try:
                observation = self.observation.get_path(".".join(section._path[depth:]))
            except ConfigError:
                observation = self.observation
            part = cls.__new__(cls)
            content = {"algo_name": cls.ALGO_NAME, "algo": section, "observation": observation}
            dict.update(part, {**self, **content})
            part._keys_locked = True
            yield part

    def shared_sections(self) -> Iterator[Section]:
        """Yields all sections with rules of their own, at any depth."""
        yield from (section for section in self._sections() if isinstance(section, Section))

    def places(self) -> Iterator[Place]:
        """Yields all places with rules and comments, the outermost first."""
        yield Place(type(self), "", "")
        for section in self._sections():
            path = section.dotted()
            if isinstance(section, Section):
                yield Place(type(section), "", path)
            elif section._origin is not None and section._origin != (type(self), path):
                yield Place(*section._origin, path)

    def without_own_keys(self) -> dict[str, Any]:
        """Returns the content as plain JSON values, without the keys that robomimic lacks."""
        content: dict[str, Any] = json.loads(self.dump())
        for path in self.OWN_KEYS:
            *sections, key = path.split(".")
            section = content
            for name in sections:
                section = section.get(name, {})
            section.pop(key, None)
        return content

    @property
    def envs_per_actor(self) -> int:
        """Environments that one actor steps together.

        `ray.envs_per_actor`; as long as that has its default, `experiment.rollout.batched` and
        `num_batch_envs` count, where a config has them: the number, or 1 without batches.
        """
        own, rollout = int(self.ray.envs_per_actor), self.experiment.rollout
        if rollout.batched is None or own != type(self)().ray.envs_per_actor:
            return own
        return int(rollout.num_batch_envs or own) if rollout.batched else 1

    @property
    def cuts_depth(self) -> bool:
        """Whether networks see depth cut off at 0 and 1.

        `train.cut_depth`, which a training sets where it is null
        (`raymimic.data.training_data.settle_depth`). Runs and checkpoints of versions without it
        cut.
        """
        return self.train.cut_depth is not False

    @property
    def leaves_depth_to_data(self) -> bool:
        """Whether depth is seen, and the data decide whether it is cut off."""
        return self.train.cut_depth is None and "depth" in self.all_modalities.values()

    @property
    def use_goals(self) -> bool:
        """Whether the policy gets goals."""
        return bool(self.goals_from_env)

    @property
    def goals_from_env(self) -> dict[str, str]:
        """The modality of each goal that the policy gets, by key.

        In a hierarchy, whose parts have observations of their own, those of the parts that plan
        subgoals: the goals of the others are subgoals.
        """
        parts: dict[str, list[Config]] = {}
        for path, section in sections_named(self.observation, "modalities"):
            parts.setdefault(path.partition(".")[0], []).append(section)
        planning = [own for own in parts.values() if any("subgoal" in section for section in own)]
        return modalities_by_key(chain(*(planning or parts.values())), "goal")

    @property
    def obs_from_env(self) -> dict[str, str]:
        """The modality of each observation that the policy reads when it acts, by key."""
        sections = sections_named(self.observation, "modalities")
        return modalities_by_key((section for _, section in sections), "obs")

    @property
    def all_modalities(self) -> dict[str, str]:
        """The modality of each observation key, of all parts and groups.

        Raises:
            ConfigError: one key has two.
        """
        groups = [
            group
            for _, section in sections_named(self.observation, "modalities")
            for group in section.values()
        ]
        return {key: name for g in groups for key, name in modalities_of(g).items()}

    @property
    def converted_actions(self) -> dict[str, str]:
        """The action keys that are rotations of six numbers, and the form in which they are played.

        `format` is `rot_6d`; `convert_at_runtime` is `rot_axis_angle` (the default, as in
        robomimic) or `rot_euler`. Both forms have three numbers.
        """
        options = {key: self.train.action_config.get(key) or {} for key in self.train.action_keys}
        return {
            key: own.get("convert_at_runtime") or "rot_axis_angle"
            for key, own in options.items()
            if own.get("format") == "rot_6d"
        }

    @property
    def all_obs_keys(self) -> list[str]:
        """All observation keys, of all parts, groups and modalities, sorted."""
        return sorted(
            {
                key
                for _, groups in sections_named(self.observation, "modalities")
                for group in groups.values()
                for keys in group.values()
                for key in keys
            }
        )


def modalities_by_key(sections: Iterable[Config], group: str) -> dict[str, str]:
    """The modality of each key that a group (`obs`, `goal`) of some `modalities` lists."""
    return {
        key: modality
        for section in sections
        for modality, keys in section.get(group, {}).items()
        for key in keys
    }


def get_all_registered_configs() -> dict[str, type[BaseConfig]]:
    """Returns the config class of each algorithm name."""
    return dict(REGISTERED_CONFIGS)


def config_factory(algo_name: str, dic: Mapping[str, Any] | None = None) -> BaseConfig:
    """Makes the config of an algorithm.

    Args:
        algo_name: the `ALGO_NAME` of its class.
        dic: values that replace the defaults, such as a parsed robomimic JSON config.

    Raises:
        ConfigError: the algorithm or a key is unknown, or `dic` is another algorithm's.
    """
    if algo_name not in REGISTERED_CONFIGS:
        raise ConfigError(
            f"unknown algorithm '{algo_name}'{perhaps(algo_name, REGISTERED_CONFIGS)}: known are "
            f"{', '.join(sorted(REGISTERED_CONFIGS))}; if a module of yours defines it, name the "
            "module with --import"
        )
    if dic is not None and dic.get("algo_name", algo_name) != algo_name:
        raise ConfigError(
            f"'algo_name' is '{dic['algo_name']}' in a config for '{algo_name}': remove or "
            "correct it"
        )
    return REGISTERED_CONFIGS[algo_name](dic)


def config_from_file(path: str | Path) -> BaseConfig:
    """Reads a JSON config, raymimic's or robomimic's (0.3 to 0.5), from a path or URI.

    The user passes this file, so the modules that it names (`train.imports`, and those of
    environments) are imported first: they may define the algorithm.

    Raises:
        ConfigError: the file cannot be read, is not JSON, has no `algo_name`, or names an unknown
            algorithm or key. Each sentence names the file.
    """
    content = json_from_file(path)
    if not isinstance(content.get("algo_name"), str):
        raise ConfigError(f"{path}: 'algo_name' is missing; a config is a JSON object that has it")
    try:
        import_modules(modules_of(content))
        return config_factory(content["algo_name"], content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def json_from_file(path: str | Path) -> dict[str, Any]:
    """Reads a JSON object, such as a config, from a path or URI, and checks nothing in it.

    Raises:
        ConfigError: the file cannot be read, or is no JSON object.
    """
    try:
        text = storage.read_bytes(storage.absolute(str(path)))
        if storage.is_lfs_pointer(text):
            raise ConfigError(f"{path} is not a config but {storage.LFS_POINTER}")
        content = parse_json(text, unique_keys=True)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg})"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {storage.unread(error)}") from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"cannot read config {path}: not a text file; name a file of JSON"
        ) from None
    except (ValueError, RecursionError) as error:  # a number too long, brackets too deep, NUL
        raise ConfigError(f"cannot read config {path}: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: 'algo_name' is missing; a config is a JSON object that has it")
    return content


def import_modules(names: Iterable[str]) -> None:
    """Imports a user's modules, which register algorithms and configs.

    Raises:
        ConfigError: one of them does not exist on the path, or fails while it is imported.
    """
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(
                f"'{name}' (--import, train.imports) is no name of a module: a file my_env.py in "
                "the current folder is named my_env, and pkg/my_env.py is pkg.my_env"
            )
        try:
            importlib.import_module(name)
        except RaymimicError:
            raise
        except Exception as error:  # a module may raise anything
            module = f"module '{name}' (--import, train.imports)"
            absent = error.name if isinstance(error, ModuleNotFoundError) else None
            if absent and f"{name}.".startswith(f"{absent}."):
                hint = f" (did you mean '{name[:-3]}'?)" if name.endswith(".py") else ""
                raise ConfigError(
                    f"{module} is not on the Python path{hint}: put its folder on PYTHONPATH, "
                    "install it, or, if it is in the current folder, name it with --import"
                ) from error
            remedy = "fix it there"
            if absent == "robomimic":
                remedy = "put `import raymimic.as_robomimic` above it, which gives raymimic"
            raise ConfigError(
                f"{module} fails when it is imported: {type(error).__name__}: {error}"
                f"{_place(error)}; {remedy}"
            ) from error


def _place(error: Exception) -> str:
    """Returns file and line of an error, unless its message names them."""
    if isinstance(error, SyntaxError):
        return ""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({place_in_own_code(error) or f'{frame.filename}, line {frame.lineno}'})"


def parse_set(assignment: str) -> tuple[str, Any]:
    """Splits a command line's `key=value`.

    Args:
        assignment: a dotted key and a JSON value, such as `algo.alpha=5`. Python's `None`,
            `True` and `False` are understood too, and lists without the quotes that a shell
            takes away (`[a,b]`); anything else is a string.

    Returns:
        The dotted key and the value.

    Raises:
        ConfigError: there is no `=` or nothing before it.
    """
    path, equals, text = assignment.partition("=")
    path, text = path.strip(), text.strip()
    if not equals or not path:
        raise ConfigError(f"--set takes key=value, such as algo.alpha=5, not '{assignment}'")
    return path, _value(text)


def _value(text: str) -> Any:
    """The value that a word of the command line stands for."""
    python = {"None": None, "True": True, "False": False}
    if text in python:
        return python[text]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # no JSON, or none that Python reads
        inner = text[1:-1]
        if text[:1] + text[-1:] != "[]" or set('[]{}"') & set(inner):
            return text
        return [_value(_unquoted(word.strip())) for word in inner.split(",") if word.strip()]


def _unquoted(word: str) -> str:
    return word[1:-1] if len(word) > 1 and word[0] == word[-1] == "'" else word


def sections_named(config: Config, name: str) -> Iterator[tuple[str, Config]]:
    """Yields `(dotted path, section)` of the outermost sections of that name, however deep."""
    for key, value in config.items():
        if isinstance(value, Config):
            if key == name:
                yield key, value
            else:
                yield from ((f"{key}.{p}", s) for p, s in sections_named(value, name))
