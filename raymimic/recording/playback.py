"""Plays demos back: films of states, actions or images, and the drift of replayed actions.

As in robomimic's `playback_dataset`, a frame is taken after each state or action that is played.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from raymimic.config import import_modules
from raymimic.data.hdf5 import DemoReader, open_dataset
from raymimic.data.metadata import content_digest
from raymimic.envs.cameras import DEFAULT
from raymimic.envs.env_base import EnvBase, EnvType
from raymimic.envs.kinds import env_from_metadata, render_settings
from raymimic.envs.render_settings import IMAGE, RenderSettings
from raymimic.errors import DatasetError, EnvError, OutputError, perhaps, reason
from raymimic.recording.open_env import OpenEnv
from raymimic.recording.parts import Facts, keeping_parts
from raymimic.recording.players import Crash
from raymimic.recording.playing import playing
from raymimic.recording.progress import ProgressBar
from raymimic.recording.source import (
    Source,
    SourceDemo,
    SourcePlayer,
    begin,
    first_that_works,
)
from raymimic.rollout.video import FPS, Picture, writing_mp4
from raymimic.storage import check_local

SIZE = 512
"""Height and width of a view in a film, in pixels, as in robomimic."""

DEFAULT_CAMERAS: dict[Any, list[str]] = {
    EnvType.ROBOSUITE_TYPE: ["agentview"],
    EnvType.GYM_TYPE: [DEFAULT],
}
"""Cameras of a film by kind of environment, where neither the user nor the file names any."""


@dataclass(frozen=True)
class Playback:
    """The way in which demos are played back.

    Attributes:
        use_actions: plays the actions from the first state; otherwise each state is set.
        use_obs: shows the images of the file, without an environment.
        cameras: of the film; with `use_obs`, names of observations. None: those of the file.
        film: whether frames are taken.
        skip: steps per frame.
        first: only the first frame of each demo.
        height: of a view, in pixels.
        width: of a view, in pixels.
    """

    use_actions: bool = False
    use_obs: bool = False
    cameras: tuple[str, ...] | None = None
    film: bool = True
    skip: int = 5
    first: bool = False
    height: int = SIZE
    width: int = SIZE

    def env_meta(self, source: Mapping[str, Any]) -> dict[str, Any]:
        """The environment to play in, with the cameras of the film.

        Args:
            source: `env_args` of the source.
        """
        meta = dict(source)
        settings = render_settings(meta) or RenderSettings()
        cameras = self.cameras or settings.cameras or DEFAULT_CAMERAS.get(meta.get("type"), ())
        if cameras:
            meta["render"] = {**settings.serialize(), "cameras": list(cameras)}
        return meta

    def picture(self, env: EnvBase) -> Picture:
        """Takes a frame: the views of all cameras side by side, `[H, W, 3]`."""
        return env.render("rgb_array", self.height, self.width)


@dataclass(frozen=True)
class Drift:
    """The distance of replayed from recorded states: the Euclidean norm of their difference.

    Attributes:
        steps: of the demo.
        most: the largest distance.
        most_at: the step, from 1, after which it is reached.
        end: the distance in the last recorded state.
        solved: whether the replay solves the task at any step; None: the environment never says.
    """

    steps: int
    most: float
    most_at: int
    end: float
    solved: bool | None


@dataclass(frozen=True)
class Played:
    """A demo that was played back.

    Attributes:
        frames: of the film, each a PNG.
        drift: of its actions, if they were played.
    """

    frames: list[bytes] = field(default_factory=list)
    drift: Drift | None = None


@dataclass(frozen=True)
class Shown(Facts):
    """The facts about a demo that was played back.

    Attributes:
        drift: the fields of `Played.drift`.
        sizes: of its frames [bytes], which follow each other in the part of the demo.
    """

    drift: Mapping[str, Any] | None = None
    sizes: Sequence[int] = ()

    def split(self, data: bytes) -> Iterator[bytes]:
        """The frames of a part."""
        for size, end in zip(self.sizes, accumulate(self.sizes), strict=True):
            yield data[end - size : end]


@dataclass
class PlaybackReport:
    """The outcome of a playback.

    Attributes:
        source: the dataset.
        video: the film, if there is one.
        num_frames: of the film.
        drift: by demo, if actions were played.
        dropped: the reason for each demo that could not be played.
        resumed: demos of the film that an earlier, interrupted run had played.
    """

    source: str
    video: str | None = None
    num_frames: int = 0
    drift: dict[str, Drift] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    resumed: int = 0

    def summary(self) -> dict[str, Any]:
        """Numbers over all demos whose actions were played."""
        drifts = list(self.drift.values())
        if not drifts:
            return {}
        return {
            "demos": len(drifts),
            "exact": sum(drift.most == 0.0 for drift in drifts),
            "solved": sum(drift.solved is True for drift in drifts),
            "judged": sum(drift.solved is not None for drift in drifts),
            "largest_drift": max(drift.most for drift in drifts),
            "median_largest_drift": median(drift.most for drift in drifts),
            "median_drift_at_end": median(drift.end for drift in drifts),
        }


def play_back(
    source: str | Path,
    playback: Playback,
    video: str | Path | None = None,
    n: int | None = None,
    filter_key: str | None = None,
    num_actors: int | None = None,
    allow_links: Sequence[str] = (),
    imports: Sequence[str] = (),
    progress: bool = True,
) -> PlaybackReport:
    """Plays the demos of a dataset back.

    The film and the numbers follow from the dataset; actors only share the work. Pictures of
    finished demos are kept in the folder `<video>.parts` until the film is complete: a call that
    was interrupted goes on with them.

    Args:
        source: the dataset, a path or URI.
        playback: states, actions or images, and the film's cameras.
        video: the film (mp4) of all demos, one after the other; None: none.
        n: no more than so many demos; None: all.
        filter_key: the demos of this named subset; None: all.
        num_actors: Ray actors; 0: one process beside this one, without Ray; None: one actor for
            each CPU of the cluster.
        allow_links: further folders that the source's links may lead into.
        imports: modules to import first, which register environments.
        progress: shows a bar on a terminal, and prints a line now and then elsewhere.

    Raises:
        DatasetError: the source cannot be read, or lacks states or images.
        EnvError: the environment cannot be made or rendered, or no demo can be played.
        OutputError: the film cannot be written.
    """
    import_modules(imports)
    given = Source.locate(source, allow_links)
    if video is not None:
        check_local(video, reads=[given.path])
    names = given.demos(n, filter_key)
    if not playback.use_obs:
        given.check_states(names)
    player = _player(given, playback, (names[0], names[-1]))
    report = PlaybackReport(str(source))
    with ExitStack() as stack:
        players = stack.enter_context(playing(player, num_actors, imports))
        players.prepare()
        bar = stack.enter_context(ProgressBar(Path(given.path).name, len(names), "demos", progress))
        if video is None:
            for name, outcome in zip(names, players.play(names), strict=True):
                _note(report, name, _taken(outcome)[0])
                bar.update(1)
        else:
            plan = {"source": content_digest(given.path), "demos": names, **asdict(playback)}
            parts = stack.enter_context(keeping_parts(video, plan))
            report.video, report.resumed = str(video), parts.num_kept
            try:
                with (
                    parts.whole("mp4") as whole,
                    writing_mp4(whole, FPS) as add,
                    closing(parts.play(players, names, Shown, _taken)) as played,
                ):
                    for index, shown in played:
                        _note(report, names[index], shown)
                        for frame in shown.split(parts.read(index)) if shown.sizes else ():
                            add(np.asarray(Image.open(io.BytesIO(frame))))
                            report.num_frames += 1
                        bar.update(1)
                    _check_played(report, names)
            except ValueError as error:
                raise DatasetError(
                    f"dataset '{source}': the pictures of its demos make no film: {error}"
                ) from error
            except OSError as error:
                raise OutputError(
                    f"cannot write '{video}': {error.strerror or error}; make room there or "
                    "choose another place"
                ) from error
        _check_played(report, names)
    return report


def try_film(playback: Playback, env_args: Mapping[str, Any]) -> None:
    """Makes an environment and takes a picture of it, before demos are recorded to be filmed.

    Args:
        playback: of the states of the demos.
        env_args: of their dataset.

    Raises:
        EnvError: the environment has not got a camera, or cannot be rendered.
    """
    env = env_from_metadata(playback.env_meta(env_args), render=True, reads={})
    try:
        env.reset(seed=0)
        playback.picture(env)
    finally:
        env.close()


def _taken(outcome: Played | Crash) -> tuple[Shown, bytes | None]:
    if isinstance(outcome, Crash):
        return Shown(outcome.reason), None
    drift = None if outcome.drift is None else asdict(outcome.drift)
    sizes = [len(frame) for frame in outcome.frames]
    return Shown(drift=drift, sizes=sizes), b"".join(outcome.frames) if sizes else None


def _note(report: PlaybackReport, name: str, shown: Shown) -> None:
    """Adds the outcome of a demo to the report."""
    if shown.crash is not None:
        report.dropped[name] = shown.crash
    elif shown.drift is not None:
        report.drift[name] = Drift(**shown.drift)


def _check_played(report: PlaybackReport, names: Sequence[str]) -> None:
    if len(report.dropped) == len(names):
        name, why = next(iter(report.dropped.items()))
        raise EnvError(f"none of {len(names)} demos can be played back ('{name}': {why})")


def _player(source: Source, playback: Playback, trial: Sequence[str]) -> Any:
    if playback.use_obs:
        return ImagePlayer(source, playback, trial)
    return StatePlayer(source, playback, trial)


class StatePlayer(SourcePlayer[Played]):
    """Plays demos in their environment, by their states or their actions."""

    def __init__(self, source: Source, playback: Playback, trial: Sequence[str]) -> None:
        self._playback = playback
        env_meta = source.env_meta()
        if playback.film:
            env_meta = playback.env_meta(env_meta)
        make = partial(env_from_metadata, env_meta, render=playback.film, reads={})
        super().__init__(source, OpenEnv(make), trial)

    def prepare(self) -> None:
        """Makes the environment, plays the first state of a demo, and takes a picture."""
        env, _ = self.try_out()
        if self._playback.film:
            self._playback.picture(env)

    def played(self, env: EnvBase, demo: SourceDemo) -> Played:
        """Plays a demo, films it, and measures how far its actions lead from its states."""
        playback = self._playback
        frames: list[bytes] = []
        distances: list[float] = []
        solved: bool | None = None
        begin(env, demo)
        for row, action in enumerate(demo.actions[: 1 if playback.first else None]):
            if playback.use_actions:
                env.step(env.clip(action))
                if env.knows_success:
                    solved = bool(solved) or bool(env.is_success()["task"])
                if row + 1 < len(demo.states):
                    state = np.asarray(env.get_state()["states"])
                    distances.append(float(np.linalg.norm(state - demo.states[row + 1])))
            elif row:
                env.reset_to({"states": demo.states[row]})
            if playback.film and row % playback.skip == 0:
                frames.append(_png(playback.picture(env)))
        if not playback.use_actions:
            return Played(frames)
        distances = distances or [0.0]  # a demo of one step
        most = int(np.argmax(distances))
        drift = Drift(len(demo.actions), distances[most], most + 1, distances[-1], solved)
        return Played(frames, drift)


class ImagePlayer:
    """Shows the images of demos; a `raymimic.recording.players.Player` of their names."""

    def __init__(self, source: Source, playback: Playback, trial: Sequence[str]) -> None:
        self._source, self._playback, self._trial = source, playback, trial

    def prepare(self) -> None:
        """Reads a demo, so that a camera that is not there is an error."""
        first_that_works(self._trial, self._frames)

    def play(self, job: str) -> Played | Crash:
        """Reads the images of a demo; one that cannot be read has crashed."""
        try:
            return Played([_png(frame) for frame in self._frames(job)])
        except DatasetError as error:
            return Crash(reason(error))

    def close(self) -> None:
        """Nothing is open."""

    def _frames(self, name: str) -> list[Picture]:
        """The pictures of a demo, those of several cameras side by side."""
        source, playback = self._source, self._playback
        with open_dataset(source.path, source.allow_links) as reader:
            demo = reader.known_demo(name)
            keys = [_image_key(demo, camera) for camera in playback.cameras or _images(demo)]
            if not keys:
                raise DatasetError(f"{demo} holds no images: play its states back instead")
            views = [_pictures(demo, key) for key in keys]
            if len({view.shape[1] for view in views}) > 1:
                raise DatasetError(
                    f"{demo}: images of several heights do not fit side by side: name one camera"
                )
            kept = slice(0, 1) if playback.first else slice(0, None, playback.skip)
            return list(np.concatenate([view[kept] for view in views], axis=2))


def _images(demo: DemoReader) -> list[str]:
    """The observations of a demo that are colour pictures."""
    return [key for key, shape in demo.shapes("obs").items() if shape[2:] == (3,)]


def _image_key(demo: DemoReader, camera: str) -> str:
    """An observation by its name or that of its camera.

    Raises:
        DatasetError: the demo has no such observation.
    """
    for key in (f"{camera}{IMAGE}", camera):
        if demo.has(f"obs/{key}"):
            return key
    there = _images(demo)
    raise DatasetError(
        f"{demo} has no images of camera '{camera}': --cameras takes "
        f"{', '.join(there) or 'none'} of this file{perhaps(camera, there)}"
    )


def _pictures(demo: DemoReader, key: str) -> npt.NDArray[np.uint8]:
    """Pictures `[T, H, W, 3]`; of distances `[T, H, W, 1]` those from the nearest, black, on."""
    name = f"obs/{key}"
    array = demo.numbers(name)
    if len(array.shape) == 4 and array.shape[-1] == 1:
        distances = demo.reader.values(array.item, f"{demo}: '{name}'")
        low, high = float(np.nanmin(distances)), float(np.nanmax(distances))
        shares = (distances.astype(np.float32) - low) / (high - low if high > low else 1.0)
        greys: npt.NDArray[np.uint8] = (255 * np.nan_to_num(shares)).astype(np.uint8)
        return np.repeat(greys, 3, axis=-1)
    if array.dtype != np.uint8 or len(array.shape) != 4 or array.shape[-1] != 3:
        raise DatasetError(
            f"{demo}: '{name}' of shape {list(array.shape)} and type {array.dtype} is no film of "
            "pictures [T, H, W, 3] of bytes, or distances [T, H, W, 1]: name a camera"
        )
    return demo.reader.values(array.item, f"{demo}: '{name}'")


def _png(picture: Picture) -> bytes:
    """A picture in a file's form, a tenth of its size: many wait for earlier demos."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
