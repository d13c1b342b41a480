"""Configs of the experiments of robomimic's paper, under robomimic's names.

`python -m raymimic.scripts.generate_paper_configs` writes those of all 531 trainings and a shell
script for each group of experiments, as robomimic's script does. They hold robomimic's keys alone,
so that both programs train from them.

Mandlekar et al., "What Matters in Learning from Offline Human Demonstrations for Robot
Manipulation" (2021), https://arxiv.org/abs/2108.03298.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Any, TypeVar

from raymimic import storage
from raymimic.cli.entry import run_script
from raymimic.cli.shared import Parser
from raymimic.config import BaseConfig, config_factory
from raymimic.config.base_config import sections_named
from raymimic.data.robomimic_datasets import DATASET_REGISTRY
from raymimic.errors import ConfigError, did_you_mean
from raymimic.sweep.spec.config_generator import train_command, write_text

C = TypeVar("C", bound=BaseConfig)
Settings = dict[str, Any]
"""Values by their paths in a config."""

_ARM = ("eef_pos", "eef_quat", "gripper_qpos")
_LOW_DIM = "observation.modalities.obs.low_dim"
_RGB = "observation.modalities.obs.rgb"


def _proprioception(arms: int = 1) -> list[str]:
    return [f"robot{arm}_{name}" for arm in range(arms) for name in _ARM]


def _set(config: BaseConfig, settings: Settings) -> None:
    with config.values_unlocked():
        for path, value in settings.items():
            if value == {}:
                config.get_path(path).clear()
            else:
                config.set_path(path, value)


def _schedule(every: int, steps: int, epochs: int, batch_size: int) -> Settings:
    """Settings of a training that is evaluated and saved together."""
    return {
        "experiment.save.enabled": True,
        "experiment.save.every_n_epochs": every,
        "experiment.epoch_every_n_steps": steps,
        "experiment.validation_epoch_every_n_steps": steps // 10,
        "experiment.rollout.enabled": True,
        "experiment.rollout.n": 50,
        "experiment.rollout.horizon": 400,
        "experiment.rollout.rate": every,
        "experiment.rollout.warmstart": 0,
        "experiment.rollout.terminate_on_success": True,
        "train.batch_size": batch_size,
        "train.num_epochs": epochs,
    }


def modify_config_for_default_low_dim_exp(config: C) -> C:
    """Gives a config the settings of the paper's experiments on low-dimensional observations.

    Args:
        config: changed in place.

    Returns:
        The config.
    """
    _set(config, _schedule(every=50, steps=100, epochs=2000, batch_size=100))
    _set(config, {"train.num_data_workers": 0, "train.hdf5_cache_mode": "all"})
    _set_low_dim(config, [*_proprioception(), "object"])
    return config


def _set_low_dim(config: BaseConfig, keys: Sequence[str]) -> None:
    """Has all networks see these keys, and planners of hierarchies plan them."""
    with config.observation.values_unlocked():
        for _, modalities in sections_named(config.observation, "modalities"):
            groups = [modalities.obs]
            if config.algo_name in ("hbc", "iris") and "subgoal" in modalities:
                groups.append(modalities.subgoal)
            for group in groups:
                group.low_dim, group.rgb = list(keys), []


def modify_config_for_default_image_exp(config: C) -> C:
    """Gives a config the settings of the paper's experiments on images.

    Args:
        config: changed in place.

    Returns:
        The config.

    Raises:
        ConfigError: for HBC and IRIS, which have none.
    """
    if config.algo_name in ("hbc", "iris"):
        raise ConfigError(f"robomimic's paper trains no {config.algo_name} on images")
    _set(config, _schedule(every=20, steps=500, epochs=600, batch_size=16))
    _set(config, {"train.num_data_workers": 2, "train.hdf5_cache_mode": "low_dim"})
    core, crop = "observation.encoder.rgb.core_kwargs", "observation.encoder.rgb.obs_randomizer"
    _set(
        config,
        {
            _LOW_DIM: _proprioception(),
            _RGB: ["agentview_image", "robot0_eye_in_hand_image"],
            "observation.modalities.goal.low_dim": [],
            "observation.modalities.goal.rgb": [],
            "observation.encoder.rgb.core_class": "VisualCore",
            f"{core}.feature_dimension": 64,
            f"{core}.backbone_class": "ResNet18Conv",
            f"{core}.backbone_kwargs.pretrained": False,
            f"{core}.backbone_kwargs.input_coord_conv": False,
            f"{core}.pool_class": "SpatialSoftmax",
            f"{core}.pool_kwargs.num_kp": 32,
            f"{core}.pool_kwargs.learnable_temperature": False,
            f"{core}.pool_kwargs.temperature": 1.0,
            f"{core}.pool_kwargs.noise_std": 0.0,
            f"{crop}_class": "CropRandomizer",
            f"{crop}_kwargs.crop_height": 76,
            f"{crop}_kwargs.crop_width": 76,
            f"{crop}_kwargs.num_crops": 1,
            f"{crop}_kwargs.pos_enc": False,
        },
    )
    return config


def _known(name: str, names: Sequence[str], kind: str) -> str:
    if name not in names:
        raise ConfigError(f"there is no {kind} '{name}' of robomimic{did_you_mean(name, names)}")
    return name


def modify_config_for_dataset(
    config: C,
    task_name: str,
    dataset_type: str,
    hdf5_type: str,
    base_dataset_dir: str | Path,
    filter_key: str | None = None,
) -> C:
    """Gives a config the settings of one of robomimic's data sets.

    Args:
        config: changed in place.
        task_name: such as `lift`, see `raymimic.DATASET_REGISTRY`.
        dataset_type: such as `ph`.
        hdf5_type: such as `low_dim`.
        base_dataset_dir: folder of the data sets, which lie in `<task>/<type>/` there.
        filter_key: trains on these demos; it has a `<key>_train` and a `<key>_valid`.

    Returns:
        The config.

    Raises:
        ConfigError: there is no such data set, or the paper does not train on it.
    """
    types = DATASET_REGISTRY[_known(task_name, [*DATASET_REGISTRY], "task")]
    files = types[_known(dataset_type, [*types], "type of data")]
    file = files[_known(hdf5_type, [*files], "file")]
    is_real, has_images = "real" in task_name, hdf5_type.startswith("image")
    if is_real and config.algo_name != "bc":
        raise ConfigError("robomimic's paper trains bc alone on a real robot's data")
    if hdf5_type == "raw" and not is_real:
        raise ConfigError("raw demonstrations hold no observations to train on: extract them first")
    # Files with images are extracted, under this name in robomimic.
    name = file["url"].split("/")[-1] if file["url"] else f"{hdf5_type}_v141.hdf5"
    validate = dataset_type != "mg"
    part = "" if filter_key is None else f"{filter_key}_"
    settings = {
        "experiment.rollout.horizon": file["horizon"],
        "experiment.validate": validate,
        "train.data": storage.join(str(base_dataset_dir), task_name, dataset_type, name),
        "train.hdf5_filter_key": f"{part}train" if validate else filter_key,
        "train.hdf5_validation_filter_key": f"{part}valid" if validate else None,
    }
    if is_real:
        settings["experiment.rollout.enabled"] = False
    _set(config, settings)
    _set_observations(config, task_name, is_real, has_images)
    return config


def _set_observations(config: BaseConfig, task_name: str, is_real: bool, has_images: bool) -> None:
    """Names the observations of a data set, where they are not those of the default experiments."""
    size = None
    if is_real:
        hangs = task_name == "tool_hang_real"
        first = "image_side" if hangs else "image"
        cameras, size = [first, "image_wrist"], 216 if hangs else 108
        _set(config, {_LOW_DIM: ["ee_pose", "gripper_position"], _RGB: cameras})
    elif task_name == "transport" and has_images:
        views = ["shouldercamera0_image", "robot0_eye_in_hand_image"]
        views += ["shouldercamera1_image", "robot1_eye_in_hand_image"]
        _set(config, {_LOW_DIM: _proprioception(2), _RGB: views})
    elif task_name == "tool_hang" and has_images:
        size = 216
        _set(config, {_RGB: ["sideview_image", "robot0_eye_in_hand_image"]})
    elif task_name == "transport":
        _set_low_dim(config, [*_proprioception(2), "object"])
    if size is not None:
        crop = "observation.encoder.rgb.obs_randomizer_kwargs"
        _set(config, {f"{crop}.crop_height": size, f"{crop}.crop_width": size})


# ------------------------------------------------- settings of the algorithms
#
# Each function takes the type of data (ph, mh, mg, paired) and whether observations are
# low-dimensional.

_SMALL, _LARGE = (300, 400), (1024, 1024)
_RATE = "learning_rate.initial"


def _under(section: str, settings: Settings) -> Settings:
    return {f"{section}.{path}": value for path, value in settings.items()}


def _bc(dataset_type: str, low_dim: bool) -> Settings:
    is_made = dataset_type == "mg"
    return {
        f"algo.optim_params.policy.{_RATE}": 1e-3 if is_made and low_dim else 1e-4,
        "algo.actor_layer_dims": _LARGE,
        "algo.gmm.enabled": not is_made,
    }


def _bc_rnn(dataset_type: str, low_dim: bool) -> Settings:
    return {
        "train.seq_length": 10,
        "algo.rnn.enabled": True,
        "algo.rnn.horizon": 10,
        "algo.rnn.hidden_dim": 400 if low_dim else 1000,
        f"algo.optim_params.policy.{_RATE}": 1e-4,
        "algo.actor_layer_dims": (),
        "algo.gmm.enabled": dataset_type != "mg",
    }


def _bcq(dataset_type: str, low_dim: bool) -> Settings:
    is_made, is_mixed = dataset_type == "mg", dataset_type in ("mh", "paired")
    learns_prior = is_mixed and low_dim
    sampler_sizes = _SMALL if is_made or (low_dim and not is_mixed) else _LARGE
    critic_rate = 1e-4 if is_mixed or (low_dim and not is_made) else 1e-3
    vae: Settings = {
        "enabled": True,
        "kl_weight": 0.5 if is_made or learns_prior else 0.05,
        "latent_dim": 14,
        "encoder_layer_dims": sampler_sizes,
        "decoder_layer_dims": sampler_sizes,
        "prior.learn": learns_prior,
    }
    if learns_prior:
        vae |= {"prior_layer_dims": _LARGE, **_GMM_PRIOR}
    return {
        f"algo.optim_params.critic.{_RATE}": critic_rate,
        f"algo.optim_params.action_sampler.{_RATE}": 1e-3 if is_made else 1e-4,
        f"algo.optim_params.actor.{_RATE}": 1e-3,
        "algo.actor.enabled": is_made and low_dim,
        "algo.actor.layer_dims": _SMALL,
        "algo.action_sampler.gmm.enabled": False,
        **_under("algo.action_sampler.vae", vae),
        "algo.critic.layer_dims": _LARGE if is_mixed else _SMALL,
        "algo.critic.num_action_samples": 10,
        "algo.critic.num_action_samples_rollout": 100,
        "algo.target_tau": 5e-3 if is_made else 5e-4,
        "algo.discount": 0.99,
    }


def _cql(dataset_type: str, low_dim: bool) -> Settings:
    return {
        "train.batch_size": 1024 if low_dim else 8,
        f"algo.optim_params.critic.{_RATE}": 1e-3,
        f"algo.optim_params.actor.{_RATE}": 3e-4 if low_dim else 1e-4,
        "algo.actor.target_entropy": "default",
        "algo.actor.layer_dims": _SMALL,
        "algo.critic.deterministic_backup": True,
        "algo.critic.target_q_gap": 5.0,
        "algo.critic.min_q_weight": 1.0,
        "algo.critic.layer_dims": _SMALL,
        "algo.target_tau": 5e-3,
        "algo.discount": 0.99,
    }


_GMM_PRIOR: Settings = {
    "prior.learn": True,
    "prior.is_conditioned": True,
    "prior.use_gmm": True,
    "prior.gmm_learn_weights": True,
}


def _planner(latent_dim: int) -> Settings:
    vae = {
        "enabled": True,
        "kl_weight": 5e-4,
        "latent_dim": latent_dim,
        "encoder_layer_dims": _LARGE,
        "decoder_layer_dims": _LARGE,
        "prior_layer_dims": _LARGE,
        "prior.gmm_num_modes": 10,
        **_GMM_PRIOR,
    }
    return {f"optim_params.goal_network.{_RATE}": 1e-3, **_under("vae", vae)}


def _actor(hidden_dim: int, layer_dims: Sequence[int]) -> Settings:
    return {
        f"algo.actor.optim_params.policy.{_RATE}": 1e-3,
        "algo.actor.rnn.hidden_dim": hidden_dim,
        "algo.actor.actor_layer_dims": layer_dims,
    }


def _hbc(dataset_type: str, low_dim: bool) -> Settings:
    actor = _actor(100, _LARGE) if dataset_type == "mg" else _actor(400, ())
    return {**_under("algo.planner", _planner(latent_dim=16)), **actor}


def _iris(dataset_type: str, low_dim: bool) -> Settings:
    is_made, is_mixed = dataset_type == "mg", dataset_type in ("mh", "paired")
    value: Settings = {
        f"optim_params.critic.{_RATE}": 1e-4 if is_mixed else 1e-3,
        f"optim_params.action_sampler.{_RATE}": 1e-4,
        "target_tau": 5e-3 if is_made else 5e-4,
        "action_sampler.vae.kl_weight": 0.05 if is_mixed else 0.5,
        "action_sampler.vae.latent_dim": 16,
        "action_sampler.actor_layer_dims": _SMALL,
    }
    if is_made:
        value |= {"actor.enabled": True, f"optim_params.actor.{_RATE}": 1e-3}
    return {
        **_under("algo.value_planner.planner", _planner(latent_dim=14)),
        **_under("algo.value_planner.value", value),
        **_actor(400, ()),
    }


_ALGORITHMS: dict[str, Callable[[str, bool], Settings]] = {
    "bc": _bc,
    "bc_rnn": _bc_rnn,
    "bcq": _bcq,
    "cql": _cql,
    "hbc": _hbc,
    "iris": _iris,
}
_OF_IMAGES = ("bc", "bc_rnn", "bcq", "cql")

_D4RL: dict[str, Settings] = {
    "bcq": {
        **{
            f"algo.optim_params.{net}.{_RATE}": 1e-3
            for net in ("critic", "action_sampler", "actor")
        },
        "algo.actor.enabled": True,
        "algo.action_sampler.vae.kl_weight": 0.5,
    },
    # As TD3-BC's authors trained it.
    "cql": {
        f"algo.optim_params.critic.{_RATE}": 3e-4,
        f"algo.optim_params.actor.{_RATE}": 3e-5,
        "algo.actor.bc_start_steps": 40000,
        "algo.actor.layer_dims": (256, 256, 256),
        "algo.critic.layer_dims": (256, 256, 256),
        "algo.critic.target_q_gap": None,
        "algo.critic.cql_weight": 10.0,
        "algo.critic.min_q_weight": 1.0,
        "algo.critic.deterministic_backup": True,
    },
    "td3_bc": {},
    # IQL's own.
    "iql": {
        **{f"algo.optim_params.{net}.{_RATE}": 3e-4 for net in ("critic", "vf", "actor")},
        "algo.target_tau": 0.005,
        "algo.vf_quantile": 0.7,
        "algo.adv.beta": 3.0,
        "algo.actor.layer_dims": (256, 256, 256),
        "algo.critic.layer_dims": (256, 256, 256),
    },
}

# ----------------------------------------------------- changes in ablations


def _more_low_dim(config: BaseConfig, names: Sequence[str]) -> Settings:
    """The observations, and further ones of each arm."""
    keys = list(config.observation.modalities.obs.low_dim)
    arms = 2 if "robot1_eef_pos" in keys else 1
    return {_LOW_DIM: [*keys, *(f"robot{arm}_{name}" for arm in range(arms) for name in names)]}


_CHANGES: dict[str, Callable[[BaseConfig], Settings]] = {
    "add_eef_vel": lambda c: _more_low_dim(c, ("eef_vel_lin", "eef_vel_ang", "gripper_qvel")),
    "add_proprio": lambda c: _more_low_dim(c, ("joint_pos_cos", "joint_pos_sin", "joint_vel")),
    "remove_wrist": lambda c: {
        _RGB: [key for key in c.observation.modalities.obs.rgb if "eye_in_hand" not in key]
    },
    "remove_rand": lambda _: {"observation.encoder.rgb.obs_randomizer_class": None},
    "change_lr": lambda _: {f"algo.optim_params.policy.{_RATE}": 1e-3},
    "change_gmm": lambda _: {"algo.gmm.enabled": False},
    "change_mlp": lambda _: {"algo.actor_layer_dims": _LARGE},
    "change_conv": lambda _: _under(
        "observation.encoder.rgb", {"core_class": "ShallowConv", "core_kwargs": {}}
    ),
    "change_rnnd_low_dim": lambda _: {"algo.rnn.hidden_dim": 100},
    "change_rnnd_image": lambda _: {"algo.rnn.hidden_dim": 400},
}
_OF_OBSERVATIONS = {
    "low_dim": ("add_eef_vel", "add_proprio"),
    "image": ("add_eef_vel", "add_proprio", "remove_wrist", "remove_rand"),
}
_OF_HYPERPARAMETERS = {
    "low_dim": ("change_lr", "change_gmm", "change_mlp", "change_rnnd_low_dim"),
    "image": ("change_lr", "change_gmm", "change_conv", "change_rnnd_image"),
}

# ------------------------------------------------------------- experiments


@dataclass(frozen=True)
class Experiment:
    """A training of the paper.

    Attributes:
        group: experiments that belong together, such as `core`.
        algo: name of the algorithm; `bc_rnn` is `bc` with a recurrent network.
        task: such as `lift`, or the environment of D4RL.
        dataset_type: such as `ph`; empty for D4RL, as `hdf5_type`.
        hdf5_type: such as `low_dim`.
        filter_key: trains on these demos; empty: on all.
        change: of an ablation, by name; empty: none.
    """

    group: str
    algo: str
    task: str
    dataset_type: str = ""
    hdf5_type: str = ""
    filter_key: str = ""
    change: str = ""

    @property
    def name(self) -> str:
        """The experiment's name."""
        return "_".join(filter(None, (self.group, self.algo, *self.data, self.change)))

    @property
    def data(self) -> tuple[str, ...]:
        """Task, type of data and file, as parts of paths."""
        parts = (self.task, self.dataset_type, self.filter_key, self.hdf5_type)
        return tuple(filter(None, parts))

    @property
    def file(self) -> Path:
        """Place of the config below the folder of all."""
        name = "_".join(filter(None, (self.algo, self.change)))
        return Path(self.group, *self.data, f"{name}.json")

    def config(self, dataset_dir: str, output_dir: str | None = None) -> BaseConfig:
        """Makes the config.

        Args:
            dataset_dir: folder or URI of the datasets.
            output_dir: folder for the results of all; None: the algorithm's default.
        """
        make = self._config_of_d4rl if self.group == "d4rl" else self._config_of_robomimic
        config = make(dataset_dir)
        results = output_dir or config_factory(config.algo_name).train.output_dir
        below = (self.group, self.algo, *self.data, "trained_models")
        _set(
            config,
            {
                "experiment.name": self.name,
                "train.output_dir": storage.join(results, *below),
            },
        )
        return config

    def _config_of_robomimic(self, dataset_dir: str) -> BaseConfig:
        low_dim = self.hdf5_type.startswith("low_dim")
        config = config_factory("bc" if self.algo == "bc_rnn" else self.algo)
        if low_dim:
            modify_config_for_default_low_dim_exp(config)
        else:
            modify_config_for_default_image_exp(config)
        data = (self.task, self.dataset_type, self.hdf5_type)
        modify_config_for_dataset(config, *data, dataset_dir, self.filter_key or None)
        _set(config, _ALGORITHMS[self.algo](self.dataset_type, low_dim))
        if self.change:
            _set(config, _CHANGES[self.change](config))
        return config

    def _config_of_d4rl(self, dataset_dir: str) -> BaseConfig:
        """All train on TD3-BC's observations, as long, and play as many episodes."""
        config, like = config_factory(self.algo), config_factory("td3_bc")
        file = f"{self.task.replace('-', '_')}.hdf5"
        with config.values_unlocked():
            for section in ("experiment", "train", "observation"):
                config[section].update(like[section])
        _set(
            config,
            {
                "experiment.save.on_best_rollout_success_rate": False,
                "train.hdf5_normalize_obs": self.algo == "td3_bc",
                "train.hdf5_cache_mode": "all",
                "train.data": storage.join(dataset_dir, "d4rl", "converted", file),
                **_D4RL[self.algo],
            },
        )
        return config


def experiments() -> Iterator[Experiment]:
    """Yields all trainings of the paper, group by group."""
    for task, types in DATASET_REGISTRY.items():
        for dataset_type, files in types.items():
            for hdf5_type in files:
                if "real" in task:
                    algos: Sequence[str] = ("bc_rnn",)
                elif hdf5_type == "raw":
                    continue
                else:
                    algos = [*_ALGORITHMS] if hdf5_type.startswith("low_dim") else _OF_IMAGES
                for algo in algos:
                    yield Experiment("core", algo, task, dataset_type, hdf5_type)
    kinds = ("low_dim", "image")
    tasks = ("lift", "can", "square", "transport")
    subsets = ("worse", "okay", "better", "worse_okay", "worse_better", "okay_better")
    for task, key, kind in product(tasks, subsets, kinds):
        for algo in _ALGORITHMS if kind == "low_dim" else _OF_IMAGES:
            yield Experiment("subopt", algo, task, "mh", kind, filter_key=key)
    sizes = ("20_percent", "50_percent")
    for task, source, key, kind in product(tasks, ("ph", "mh"), sizes, kinds):
        yield Experiment("dataset_size", "bc_rnn", task, source, kind, filter_key=key)
    hard = [*product(("square", "transport"), ("ph", "mh"), kinds)]
    for (task, source, kind), algo in product(hard, ("bc", "bc_rnn")):
        for change in _OF_OBSERVATIONS[kind]:
            yield Experiment("obs_ablation", algo, task, source, kind, change=change)
    for task, source, kind in hard:
        for change in _OF_HYPERPARAMETERS[kind]:
            yield Experiment("hyper_ablation", "bc_rnn", task, source, kind, change=change)
    for level, robot in product(
        ("medium", "expert", "medium-expert"), ("halfcheetah", "hopper", "walker2d")
    ):
        for algo in _D4RL:
            yield Experiment("d4rl", algo, f"{robot}-{level}-v2")


def generate_paper_configs(
    config_dir: str | Path, dataset_dir: str, output_dir: str | None = None
) -> list[Path]:
    """Writes the config of each training, and a script with the trainings of each group.

    Args:
        config_dir: folder for them.
        dataset_dir: see `Experiment.config`, as `output_dir`.
        output_dir: see `Experiment.config`.

    Returns:
        the paths of the configs.

    Raises:
        OutputError: they cannot be written.
    """
    written: list[Path] = []
    for group, members in groupby(experiments(), lambda experiment: experiment.group):
        lines = ["#!/bin/bash", "", f"# {'=' * 10}{group}{'=' * 10}"]
        for data, of_data in groupby(members, lambda e: e.data):
            lines += ["", f"# {' '.join(data)}"]
            for experiment in of_data:
                path = Path(config_dir) / experiment.file
                content = experiment.config(dataset_dir, output_dir).without_own_keys()
                write_text(path, f"{json.dumps(content, indent=4)}\n")
                lines.append(train_command(str(path)))
                written.append(path)
        write_text(Path(config_dir) / f"{group}.sh", "\n".join([*lines, ""]))
    return written


def main(args: argparse.Namespace) -> None:
    """Writes the configs of the trainings of robomimic's paper."""
    config_dir = storage.absolute(args.config_dir)
    dataset_dir = storage.absolute(args.dataset_dir)
    written = generate_paper_configs(config_dir, dataset_dir, args.output_dir)
    print(f"{len(written)} configs, and a script of each group, are in {config_dir}")


def arguments() -> argparse.ArgumentParser:
    """The parser of robomimic's arguments."""
    parser = Parser(prog="generate_paper_configs", description=main.__doc__)
    parser.add_argument("--config_dir", default="exps/paper", help="folder for them (exps/paper)")
    parser.add_argument("--dataset_dir", default="datasets", help="of the datasets (datasets)")
    parser.add_argument("--output_dir", help="of the results (default: each algorithm's)")
    return parser


if __name__ == "__main__":
    run_script(arguments(), main)
