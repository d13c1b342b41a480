"""robomimic's `train_utils`: the parts of a training loop that is a script's own.

`raymimic.train` trains with workers, evaluations beside the training, and resumption; it uses none
of these.
"""

import io
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raymimic import __version__, storage
from raymimic.algo import Algo, RolloutPolicy
from raymimic.checkpoints.content import CheckpointContent, TrainingSection, plain
from raymimic.config import BaseConfig
from raymimic.config.names import name_problem
from raymimic.data.training_data import dataset_entries, settle_depth
from raymimic.errors import ConfigError, EnvError, OutputError
from raymimic.observations.shapes import LANG_EMB_KEY
from raymimic.rollout.video import FPS, encode_mp4
from raymimic.training.run_folder import RunFolder, newest, run_base
from raymimic.user_modules import own_reason
from raymimic.utils.dataset import MetaDataset, SequenceDataset
from raymimic.utils.env_utils import AnyEnv
from raymimic.utils.log_utils import custom_tqdm

TrainingData = SequenceDataset | MetaDataset

_FILM_SIZE = 512  # robomimic's, in pixels


# ----------------------------------------------------------------------------------- folders


def get_exp_dir(
    config: BaseConfig, auto_remove_exp_dir: bool = False, resume: bool = False
) -> tuple[str | None, ...]:
    """Makes the folders of a run.

    A run gets a folder of its own beside earlier ones of its name. (robomimic asks whether to
    remove those.)

    Args:
        config: `train.output_dir`, relative to the current folder, and `experiment.name` name the
            place; without `experiment.save.enabled` there is no folder for models.
        auto_remove_exp_dir: remove the earlier runs of this name.
        resume: return the newest run's folders instead.

    Returns:
        the folders of logs, of models (or None), of videos, and the run's own; without the last
        where `train.data` is a path, as in configs of robomimic up to 0.4, whose scripts take
        three.

    Raises:
        ConfigError: there is no run to resume, no folder can have its name, or results would go to
            a URI.
        OutputError: the folders cannot be written.
    """
    if storage.is_uri(base := run_base(config)):
        raise ConfigError(f"get_exp_dir makes local folders, and results would go to '{base}'")
    name = str(config.experiment.name)
    if problem := name_problem(name):
        raise ConfigError(f"no run can be named '{name}': {problem}")
    if resume:
        found = newest(config, name, "logs")
        if found is None:
            raise ConfigError(f"no run named '{name}' to resume in '{base}'")
        run = Path(found)
    else:
        if auto_remove_exp_dir and (Path(base) / name).exists():
            shutil.rmtree(Path(base) / name)
        run = RunFolder.make(config, name).local
    folders = {part: run / part for part in ("logs", "models", "videos")}
    try:
        for part, folder in folders.items():
            if part != "models" or config.experiment.save.enabled:
                folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write to '{run}': {error.strerror or error}") from error
    models = str(folders["models"]) if config.experiment.save.enabled else None
    made = (str(folders["logs"]), models, str(folders["videos"]))
    return made if isinstance(config.train.data, str) else (*made, str(run))


# -------------------------------------------------------------------------------------- data


def load_data_for_training(
    config: BaseConfig, obs_keys: Sequence[str]
) -> tuple[TrainingData, TrainingData | None]:
    """Loads the data of a training.

    The config's algorithm sees depth of robosuite as it is from then on, see `settle_depth`.

    Args:
        config: sections `train` and `experiment` are read; `train.cut_depth` is set.
        obs_keys: observation keys.

    Returns:
        the data to train on, and those to validate on, None without `experiment.validate`.

    Raises:
        ConfigError: it is to validate, and the filter keys are not set or have demos in common.
        DatasetError: a file cannot be read or lacks a key.
    """
    settle_depth(config)
    train, key, valid_key = (
        config.train,
        config.train.hdf5_filter_key,
        config.train.hdf5_validation_filter_key,
    )
    if not config.experiment.validate:
        if valid_key is not None:
            raise ConfigError(
                "train.hdf5_validation_filter_key is set, and experiment.validate is false: set it "
                "to true, or the key to null"
            )
        return dataset_factory(config, obs_keys, key), None
    if key is None or valid_key is None:
        raise ConfigError(
            "experiment.validate needs train.hdf5_filter_key and train.hdf5_validation_filter_key"
        )
    training = dataset_factory(config, obs_keys, key)
    validation = dataset_factory(config, obs_keys, train.hdf5_validation_filter_key)
    common = set(_demos_of(training)) & set(_demos_of(validation))
    if common:
        path, demo = min(common)
        raise ConfigError(
            f"dataset '{path}': demo '{demo}' is among the training demos and the validation demos:"
            " choose filter keys that have none in common"
        )
    return training, validation


def _demos_of(data: TrainingData) -> list[tuple[str, str]]:
    parts = data.datasets if isinstance(data, MetaDataset) else [data]
    return [(part.hdf5_path, demo) for part in parts for demo in part.demos]


def dataset_factory(
    config: BaseConfig,
    obs_keys: Sequence[str],
    filter_by_attribute: str | None = None,
    dataset_path: str | Path | Sequence[Mapping[str, Any]] | None = None,
) -> TrainingData:
    """Loads data as a config describes them.

    Args:
        config: section `train` is read.
        obs_keys: observation keys.
        filter_by_attribute: filter key of the entries of `train.data` that have none of their own.
        dataset_path: another file, or another list of entries, than `train.data`.

    Raises:
        ConfigError: `train.data` cannot be understood.
        DatasetError: a file cannot be read or lacks a key.
    """
    train = config.train
    if dataset_path is None:
        entries = dataset_entries(config)
    elif isinstance(dataset_path, str | Path):
        entries = [{"path": str(dataset_path)}]
    else:
        entries = [dict(entry) for entry in dataset_path]
    told = LANG_EMB_KEY in obs_keys and any(entry.get("lang") for entry in entries)
    datasets = [
        SequenceDataset(
            hdf5_path=entry["path"],
            obs_keys=[key for key in obs_keys if not told or key != LANG_EMB_KEY],
            action_keys=train.action_keys,
            dataset_keys=train.dataset_keys,
            action_config=train.action_config,
            frame_stack=train.frame_stack,
            seq_length=train.seq_length,
            pad_frame_stack=train.pad_frame_stack,
            pad_seq_length=train.pad_seq_length,
            goal_mode=train.goal_mode,
            hdf5_cache_mode=train.hdf5_cache_mode,
            hdf5_use_swmr=train.hdf5_use_swmr,
            hdf5_normalize_obs=train.hdf5_normalize_obs,
            filter_by_attribute=entry.get("filter_key", filter_by_attribute),
            load_next_obs=train.hdf5_load_next_obs,
            lang=entry.get("lang", "dummy") if told else None,
            demo_limit=entry.get("demo_limit"),
        )
        for entry in entries
    ]
    if len(datasets) == 1:
        return datasets[0]
    weights = [float(entry.get("weight", 1.0)) for entry in entries]
    return MetaDataset(datasets, weights, train.normalize_weights_by_ds_size)


# ------------------------------------------------------------------------------------ epochs


def run_epoch(
    model: Algo,
    data_loader: Any,
    epoch: int,
    validate: bool = False,
    num_steps: int | None = None,
    obs_normalization_stats: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, float]:
    """Trains or validates for an epoch, in this process.

    Args:
        model: the algorithm.
        data_loader: serves batches, such as a torch `DataLoader` of a `SequenceDataset`.
        epoch: its number, from 1.
        validate: learn nothing.
        num_steps: number of batches; the loader begins again when it ends. None: all of its.
        obs_normalization_stats: `offset` and `scale` by key.

    Returns:
        each metric of `Algo.log_info`, averaged over the batches; and times `Time_…` in minutes.

    Raises:
        ConfigError: the loader has no batch.
    """
    started = time.perf_counter()
    (model.set_eval if validate else model.set_train)()
    total = len(data_loader) if num_steps is None else num_steps
    if total == 0 or len(data_loader) == 0:
        raise ConfigError("the data have no whole batch: lower train.batch_size")
    logs: dict[str, list[Any]] = {}
    seconds = dict.fromkeys(("Data_Loading", "Process_Batch", "Train_Batch", "Log_Info"), 0.0)
    batches = iter(data_loader)
    for _ in custom_tqdm(range(total)):
        times = [time.perf_counter()]
        batch = next(batches, None)
        if batch is None:
            batches = iter(data_loader)
            batch = next(batches)
        times.append(time.perf_counter())
        batch = model.process_batch_for_training(batch)
        batch = model.postprocess_batch_for_training(batch, obs_normalization_stats)
        times.append(time.perf_counter())
        info = model.train_on_batch(batch, epoch, validate=validate)
        times.append(time.perf_counter())
        if not validate:
            model.on_gradient_step()
        for name, value in model.log_info(info).items():
            logs.setdefault(name, []).append(value)
        times.append(time.perf_counter())
        for name, start, stop in zip(seconds, times[:-1], times[1:], strict=True):
            seconds[name] += stop - start
    averages = {name: float(np.mean([float(v) for v in values])) for name, values in logs.items()}
    averages |= {f"Time_{name}": value / 60.0 for name, value in seconds.items()}
    return {**averages, "Time_Epoch": (time.perf_counter() - started) / 60.0}


def is_every_n_steps(interval: int | None, current_step: int, skip_zero: bool = False) -> bool:
    """Whether a step is a multiple of an interval; never without one.

    Args:
        interval: the interval, at least 1, or None.
        current_step: the step, at least 0.
        skip_zero: whether step 0 is none.

    Raises:
        ValueError: the interval or the step is less.
    """
    if interval is None:
        return False
    if interval < 1 or current_step < 0:
        raise ValueError(f"interval {interval} and step {current_step} are not at least 1 and 0")
    return current_step % interval == 0 and not (skip_zero and current_step == 0)


# ------------------------------------------------------------------------------- checkpoints


def save_model(
    model: Algo,
    config: BaseConfig,
    env_meta: Any,
    shape_meta: Any,
    ckpt_path: str | Path,
    variable_state: Mapping[str, Any] | None = None,
    obs_normalization_stats: Mapping[str, Any] | None = None,
    action_normalization_stats: Mapping[str, Any] | None = None,
) -> None:
    """Writes a checkpoint, whole or not at all, which `policy_from_checkpoint` and robomimic read.

    Args:
        model: the algorithm.
        config: its config.
        env_meta: the environment of the data; of a list the first.
        shape_meta: `ac_dim` and `all_shapes`; of a list the first.
        ckpt_path: the file.
        variable_state: what a script wants to find in it, of plain values.
        obs_normalization_stats: `offset` and `scale` by key.
        action_normalization_stats: `offset` and `scale` by action key.

    Raises:
        OutputError: it cannot be written.
    """
    first_env = env_meta[0] if isinstance(env_meta, list) else env_meta
    shapes = shape_meta[0] if isinstance(shape_meta, list) else shape_meta
    content = CheckpointContent(
        model=model.serialize(),
        algo_name=config.algo_name,
        config=config.dump(),
        shape_metadata=plain(dict(shapes)),
        env_metadata=json.loads(json.dumps(first_env)),
        obs_normalization_stats=_plain_stats(obs_normalization_stats),
        action_normalization_stats=_plain_stats(action_normalization_stats),
        variable_state=None if variable_state is None else plain(dict(variable_state)),
        raymimic=TrainingSection(version=__version__),
    )
    data = io.BytesIO()
    torch.save(content.to_dict(), data)
    storage.write_bytes(storage.absolute(str(ckpt_path)), data.getbuffer())
    print(f"save checkpoint to {ckpt_path}")


def _plain_stats(stats: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if stats is None else {key: plain(dict(entry)) for key, entry in stats.items()}


def should_save_from_rollout_logs(
    all_rollout_logs: Mapping[str, Mapping[str, float]],
    best_return: dict[str, float],
    best_success_rate: dict[str, float],
    epoch_ckpt_name: str,
    save_on_best_rollout_return: bool,
    save_on_best_rollout_success_rate: bool,
) -> dict[str, Any]:
    """Decides whether an evaluation is a reason to save a checkpoint.

    Args:
        all_rollout_logs: of `rollout_with_stats`.
        best_return: of each environment so far; brought up to date.
        best_success_rate: of each environment so far; brought up to date.
        epoch_ckpt_name: name of the checkpoint, which tells of new best scores.
        save_on_best_rollout_return: whether a new best return is a reason.
        save_on_best_rollout_success_rate: whether a new best success rate is one.

    Returns:
        the arguments as they are now, `should_save_ckpt`, and `ckpt_reason` (`return` or
        `success`, or None).
    """
    ckpt_reason = None
    for env, logs in all_rollout_logs.items():
        for score, best, saves, word in (
            ("Return", best_return, save_on_best_rollout_return, "return"),
            ("Success_Rate", best_success_rate, save_on_best_rollout_success_rate, "success"),
        ):
            if logs[score] > best[env]:
                best[env] = logs[score]
                if saves:
                    epoch_ckpt_name += f"_{env}_{word}_{best[env]}"
                    ckpt_reason = word
    return {
        "best_return": best_return,
        "best_success_rate": best_success_rate,
        "epoch_ckpt_name": epoch_ckpt_name,
        "should_save_ckpt": ckpt_reason is not None,
        "ckpt_reason": ckpt_reason,
    }


# ---------------------------------------------------------------------------------- rollouts


def run_rollout(
    policy: RolloutPolicy,
    env: AnyEnv,
    horizon: int,
    use_goals: bool = False,
    render: bool = False,
    video_writer: Any = None,
    video_skip: int = 5,
    terminate_on_success: bool = False,
) -> dict[str, float]:
    """Plays an episode, in this process.

    `raymimic evaluate` plays seeded episodes, several at a time.

    Args:
        policy: the policy.
        env: the environment.
        horizon: most steps.
        use_goals: whether to give the policy the environment's goal.
        render: whether to call the environment's `render(mode="human")` after each step.
        video_writer: an imageio writer, or any object with `append_data`, for frames; None: none.
        video_skip: steps of a frame.
        terminate_on_success: whether success ends the episode.

    Returns:
        `Return`, `Horizon` (the steps), `Success_Rate` (0 or 1), and `<criterion>_Success_Rate` of
        each further criterion.
    """
    policy.start_episode()
    obs = env.reset()
    goal = env.get_goal() if use_goals else None
    total, steps = 0.0, 0
    success: dict[str, bool] = {"task": False}
    try:
        while steps < horizon:
            obs, reward, done, _ = env.step(policy(ob=obs, goal=goal))
            steps += 1
            total += float(reward)
            for name, met in env.is_success().items():
                success[name] = success.get(name, False) or bool(met)
            if render:
                env.render(mode="human")
            if video_writer is not None and (steps - 1) % video_skip == 0:
                frame = env.render(mode="rgb_array", height=_FILM_SIZE, width=_FILM_SIZE)
                video_writer.append_data(frame)
            if done or (terminate_on_success and success["task"]):
                break
    except tuple(env.rollout_exceptions) as error:
        print(f"WARNING: the episode ended by an exception: {own_reason(error)}")
    results = {"Return": total, "Horizon": steps, "Success_Rate": float(success.pop("task"))}
    return results | {f"{name}_Success_Rate": float(met) for name, met in success.items()}


class _Frames(list[Any]):
    """Frames of a film, in the place of an imageio writer."""

    append_data = list.append


def rollout_with_stats(
    policy: RolloutPolicy,
    envs: Mapping[str, AnyEnv],
    horizon: int,
    use_goals: bool = False,
    num_episodes: int | None = None,
    render: bool = False,
    video_dir: str | Path | None = None,
    video_path: str | Path | None = None,
    epoch: int | None = None,
    video_skip: int = 5,
    terminate_on_success: bool = False,
    verbose: bool = False,
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Plays episodes in each environment, in this process, and averages them.

    Args:
        policy: the policy.
        envs: environments by name.
        horizon: see `run_rollout`, as the other arguments of the same names.
        use_goals: see `run_rollout`.
        num_episodes: of each environment.
        render: see `run_rollout`.
        video_dir: folder of a film of each environment; None: none is made.
        video_path: file of one film of all environments instead.
        epoch: part of the films' names.
        video_skip: see `run_rollout`.
        terminate_on_success: see `run_rollout`.
        verbose: print each episode.

    Returns:
        averages of each environment, with `time`, the seconds of an episode, and `Time_Episode`,
        the minutes of all; and the films by environment.

    Raises:
        EnvError: both a folder and a file of films are given, or no number of episodes.
        OutputError: a film cannot be written.
    """
    if video_dir is not None and video_path is not None:
        raise EnvError("films go to video_dir or to video_path: give one of them")
    if not num_episodes:
        raise EnvError("rollout_with_stats plays num_episodes, which are not given")
    logs: dict[str, dict[str, float]] = {}
    films: dict[str, str] = {}
    filmed = video_dir is not None or video_path is not None
    together = _Frames()
    for name, env in envs.items():
        frames = together if video_path is not None else _Frames()
        episodes = []
        for number in custom_tqdm(range(num_episodes), disable=verbose):
            started = time.perf_counter()
            episode = run_rollout(
                policy,
                env,
                horizon,
                use_goals,
                render,
                frames if filmed else None,
                video_skip,
                terminate_on_success,
            )
            episodes.append({**episode, "time": time.perf_counter() - started})
            if verbose:
                print(f"Episode {number + 1}: {json.dumps(episodes[-1], sort_keys=True)}")
        keys = dict.fromkeys(key for episode in episodes for key in episode)
        logs[name] = {key: float(np.mean([e[key] for e in episodes if key in e])) for key in keys}
        logs[name]["Time_Episode"] = sum(e["time"] for e in episodes) / 60.0
        if video_dir is not None:
            ending = "" if epoch is None else f"_epoch_{epoch}"
            films[name] = str(Path(video_dir) / f"{name}{ending}.mp4")
            storage.write_bytes(storage.absolute(films[name]), encode_mp4(frames, FPS))
    if video_path is not None:
        films = dict.fromkeys(envs, str(video_path))
        storage.write_bytes(storage.absolute(str(video_path)), encode_mp4(together, FPS))
    return logs, films
