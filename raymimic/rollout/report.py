"""The evaluation of one checkpoint, as numbers and as text: `raymimic evaluate`."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from raymimic import storage
from raymimic.checkpoints.sources import fetched
from raymimic.config import BaseConfig
from raymimic.envs.seeds import final_seeds
from raymimic.errors import ConfigError, EnvError, OutputError, did_you_mean
from raymimic.rollout.episodes import Episode
from raymimic.rollout.evaluation import EvalJob, EvalResult, Evaluator
from raymimic.rollout.local import LocalEvaluator
from raymimic.rollout.playable import Playable
from raymimic.rollout.stats import failures, summarize
from raymimic.rollout.tryout import Tryout
from raymimic.terminal import shown

_POLL_S = 0.02


@dataclass(frozen=True)
class EvaluationReport:
    """The result of evaluating a checkpoint.

    Attributes:
        checkpoint: the checkpoint's path or URI.
        env: the environment's name.
        seed: base seed of the episodes.
        summary: averages and 95 % intervals, see `raymimic.rollout.stats.summarize`.
        episodes: every episode, in the order of the seeds.
        video: path of the film of the first episode, if there is one.
        no_video: why there is none, if one was asked for.
    """

    checkpoint: str
    env: str
    seed: int
    summary: dict[str, float]
    episodes: list[Episode]
    video: str | None
    no_video: str | None

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class NewEpisodes:
    """Episodes with seeds that neither data nor training has used.

    Attributes:
        number: how many.
        seed: their base seed.
        horizon: longest episode in steps; the training's own unless given.
        env: another environment of the same kind as the checkpoint's.
        blank: observations that the policy sees as zeros, such as black images.
    """

    number: int = 50
    seed: int = 0
    horizon: int | None = None
    env: str | None = None
    blank: Sequence[str] = ()


def evaluate_checkpoint(
    checkpoint: str,
    new: NewEpisodes,
    *,
    num_actors: int = 2,
    video: str | None = None,
    imports: Sequence[str] = (),
) -> EvaluationReport:
    """Plays new episodes with a checkpoint's policy.

    Args:
        checkpoint: path or URI of a checkpoint of raymimic or robomimic, or a model of MLflow
            (`runs:/…`, `models:/…`).
        new: the episodes.
        num_actors: Ray actors that play; 0 plays without Ray. The result is the same.
        video: path for a film of the first episode (mp4).
        imports: the user's own modules, which are imported already.

    Raises:
        CheckpointError: the checkpoint cannot be read, or is not one of a policy.
        ModuleNotImportedError: the checkpoint names a module that is not imported.
        ConfigError: an observation to be blanked is none of the policy's.
        EnvError: it names no environment, or one that cannot be made, does not fit the policy, or
            fails in every episode.
        OutputError: the video cannot be written.
    """
    if video is not None and not video.endswith(".mp4"):
        raise OutputError(f"--video '{video}': videos are mp4 files; end the name in .mp4")
    with fetched(checkpoint) as file:
        report = _evaluate(file, new, num_actors, video, imports)
    return replace(report, checkpoint=checkpoint)


def _evaluate(
    checkpoint: str,
    new: NewEpisodes,
    num_actors: int,
    video: str | None,
    imports: Sequence[str],
) -> EvaluationReport:
    """As `evaluate_checkpoint`, for a checkpoint that storage has."""
    playable = Playable.read(checkpoint, new.env, imports)
    name, config = playable.env_name, playable.config
    job = EvalJob(
        checkpoint=playable.checkpoint,
        env_metas={name: playable.env_meta},
        seeds=final_seeds(new.seed, new.number),
        horizon=new.horizon or config.experiment.rollout.horizon,
        terminate_on_success=config.experiment.rollout.terminate_on_success,
        use_goals=config.use_goals,
        film=int(video is not None),
        video_skip=config.experiment.video_skip,
        blank=_blank(new.blank, config),
    )
    tryout = Tryout(
        envs={name: playable.env_meta},
        policy=playable.interface,
        remedy="play another environment (--env)",
        placement_timeout_s=config.ray.placement_timeout_s,
    )
    result = _play(job, tryout, config, num_actors, playable.imports)
    if video is not None and result.videos:
        storage.write_bytes(video, result.videos[0].mp4)
    played = result.episodes[name]
    if all(episode.error is not None for episode in played):
        raise EnvError(f"environment '{name}': {failures(played)}")
    return EvaluationReport(
        checkpoint=checkpoint,
        env=name,
        seed=new.seed,
        summary=summarize(played),
        episodes=played,
        video=video if result.videos else None,
        no_video=result.no_video,
    )


def _blank(keys: Sequence[str], config: BaseConfig) -> Sequence[str]:
    """Checks that the policy reads the observations."""
    read = [key for names in config.observation.modalities.obs.values() for key in names]
    for key in keys:
        if key not in read:
            raise ConfigError(
                f"--blank '{key}': the policy reads no such observation{did_you_mean(key, read)}"
            )
    return tuple(keys)


def _play(
    job: EvalJob, tryout: Tryout, config: BaseConfig, num_actors: int, imports: tuple[str, ...]
) -> EvalResult:
    settings = config.ray
    with config.values_unlocked():
        # A cluster and its members run each other's code: no file may choose a cluster.
        settings.address = None
    if num_actors == 0:
        return _tried_and_played(LocalEvaluator(settings.envs_per_actor, imports), tryout, job)
    # Importing Ray takes a second, which an evaluation without it saves.
    import ray

    from raymimic.cluster.placement import share_of_cpus
    from raymimic.cluster.session import ray_session
    from raymimic.rollout.actors import RolloutPool

    with ray_session(config) as cluster:
        cpus = ray.cluster_resources().get("CPU", 1.0)  # type: ignore[no-untyped-call]
        number = min(num_actors, len(job.seeds))
        pool = RolloutPool(
            number, settings.envs_per_actor, share_of_cpus(cpus, number), imports, cluster
        )
        return _tried_and_played(pool, tryout, job)


def _tried_and_played(evaluator: Evaluator, tryout: Tryout, job: EvalJob) -> EvalResult:
    try:
        evaluator.begin_tryout(tryout)
        while evaluator.tried() is None:
            time.sleep(_POLL_S)
        evaluator.submit(job)
        results: list[EvalResult] = []
        while not results:
            results = evaluator.poll(timeout=1.0)
        return results[0]
    finally:
        evaluator.close()


def evaluation_lines(report: EvaluationReport, every_episode: bool) -> list[str]:
    """The report as lines of text.

    Args:
        report: of an evaluation.
        every_episode: begin with a line for each episode.
    """
    lines = []
    if every_episode:
        lines.append(f"{'episode':>7} {'seed':>14} {'return':>10} {'length':>6} success")
        for i, e in enumerate(report.episodes):
            success = "yes" if e.success else "no"
            success = success if e.error is None else f"failed: {e.error}"
            lines.append(f"{i:>7} {e.seed:>14} {e.episode_return:>10.2f} {e.length:>6} {success}")
    s = report.summary
    lines += [
        f"{len(report.episodes)} episodes in {report.env}, base seed {report.seed}",
        f"return  mean {s['Return']:.2f}, 95 % interval [{s['Return_CI_Low']:.2f}, "
        f"{s['Return_CI_High']:.2f}], median {s['Return_Median']:.2f}, interquartile mean "
        f"{s['Return_IQM']:.2f}, standard deviation {s['Return_Std']:.2f}",
        f"length  mean {s['Horizon']:.1f}",
        f"success rate {s['Success_Rate']:.3f}, 95 % interval [{s['Success_Rate_CI_Low']:.3f}, "
        f"{s['Success_Rate_CI_High']:.3f}]",
    ]
    if (failed := failures(report.episodes)) is not None:
        lines.append(f"{failed}: they count as not solved; other averages leave them out")
    if report.video is not None:
        lines.append(f"video: {shown(report.video)}")
    elif report.no_video is not None:
        lines.append(f"no video: {report.no_video}")
    return lines
