"""A checkpoint's evaluation as numbers and as text: `raymimic evaluate`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raymimic.algo import algo_class
from raymimic.algo.rollout_policy import can_act
from raymimic.config import BaseConfig
from raymimic.envs.env_base import check_env
from raymimic.envs.seeds import final_seeds
from raymimic.errors import CheckpointError, EnvError, OutputError
from raymimic.rollout.episodes import Episode
from raymimic.rollout.evaluation import EvalJob, EvalResult
from raymimic.rollout.local import LocalEvaluator
from raymimic.rollout.stats import summarize
from raymimic.utils import storage
from raymimic.utils.file_utils import config_from_checkpoint, maybe_dict_from_checkpoint


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Attributes:
        checkpoint: what was evaluated.
        env: the environment's name.
        seed: base seed of the episodes.
        summary: averages and 95 % intervals, see `raymimic.rollout.stats.summarize`.
        episodes: every episode, in the order of the seeds.
        video: the film of the first episode, if there is one.
        no_video: why there is none although it was asked for.
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


def evaluate_checkpoint(
    checkpoint: str,
    *,
    episodes: int = 50,
    num_actors: int = 2,
    seed: int = 0,
    horizon: int | None = None,
    env: str | None = None,
    video: str | None = None,
    imports: Sequence[str] = (),
) -> Report:
    """Plays episodes whose seeds neither data nor training has seen.

    Args:
        checkpoint: path or URI of a checkpoint of raymimic or robomimic.
        episodes: how many.
        num_actors: Ray actors that play; 0 plays in this process. The result is the same.
        seed: base seed of the episodes.
        horizon: longest episode in steps; the training's own unless given.
        env: another environment of the same kind than the checkpoint's.
        video: where a film of the first episode goes (mp4).
        imports: modules of the user's own.

    Raises:
        CheckpointError: the checkpoint cannot be read, or is not one of a policy.
        EnvError: it names no environment, or one that cannot be made.
        OutputError: the video cannot be written.
    """
    if video is not None and not video.endswith(".mp4"):
        raise OutputError(f"--video '{video}': videos are mp4 files; end the name in .mp4")
    ckpt = maybe_dict_from_checkpoint(ckpt_path=checkpoint)
    config, _ = config_from_checkpoint(ckpt_dict=ckpt)
    if not can_act(algo_class(config.algo_name, config)):
        raise CheckpointError(
            f"checkpoint '{checkpoint}' is one of {config.algo_name}, which plans, but does not "
            "act: evaluate one of a policy"
        )
    env_meta = dict(ckpt.get("env_metadata") or {})
    if env is not None:
        env_meta["env_name"] = env
    if not env_meta.get("env_name"):
        raise EnvError(f"checkpoint '{checkpoint}' names no environment; give one with --env")
    check_env(env_meta, goals=config.use_goals)  # what cannot be played is found before Ray starts
    name = str(env_meta["env_name"])
    job = EvalJob(
        epoch=0,
        checkpoint=storage.absolute(checkpoint),
        env_metas={name: env_meta},
        seeds=final_seeds(seed, episodes),
        horizon=horizon or config.experiment.rollout.horizon,
        terminate_on_success=config.experiment.rollout.terminate_on_success,
        use_goals=config.use_goals,
        film=int(video is not None),
        video_skip=config.experiment.video_skip,
    )
    result = _play(job, config, num_actors, tuple(imports) or tuple(config.train.imports))
    if video is not None and result.videos:
        storage.write_bytes(video, result.videos[0].mp4)
    played = result.episodes[name]
    return Report(
        checkpoint=checkpoint,
        env=name,
        seed=seed,
        summary=summarize(played),
        episodes=played,
        video=video if result.videos else None,
        no_video=result.no_video,
    )


def _play(
    job: EvalJob, config: BaseConfig, num_actors: int, imports: tuple[str, ...]
) -> EvalResult:
    settings = config.ray
    if num_actors == 0:
        local = LocalEvaluator(settings.envs_per_actor, imports)
        local.submit(job)
        return local.poll()[0]
    import ray

    from raymimic.rollout.actors import RolloutPool
    from raymimic.training.cluster import ray_session

    with ray_session(config):
        cpus = ray.cluster_resources().get("CPU", 1.0)  # type: ignore[no-untyped-call]
        pool = RolloutPool(
            num_actors, settings.envs_per_actor, min(1.0, cpus / num_actors), imports
        )
        try:
            pool.submit(job)
            results: list[EvalResult] = []
            while not results:
                results = pool.poll(timeout=1.0)
            return results[0]
        finally:
            pool.close()


def report_lines(report: Report, every_episode: bool) -> list[str]:
    """The report as lines of text.

    Args:
        report: what was found.
        every_episode: begin with a line for each episode.
    """
    lines = []
    if every_episode:
        lines.append(f"{'episode':>7} {'seed':>14} {'return':>10} {'length':>6} success")
        for i, e in enumerate(report.episodes):
            success = "yes" if e.success else "no"
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
    if report.video is not None:
        lines.append(f"video: {report.video}")
    elif report.no_video is not None:
        lines.append(f"no video: {report.no_video}")
    return lines
