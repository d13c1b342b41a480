"""Reads untrusted videos, decoding each frame once, and writes videos for LeRobot."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from raymimic.data.hdf5 import reading
from raymimic.data.writer import Array
from raymimic.errors import DatasetError, pip_install

_ERRORS = "crccheck+bitstream+buffer+explode"
CODEC, PIXELS = "h264", "yuv420p"
_QUALITY = {"g": "2", "crf": "18"}  # a key frame each second one, as LeRobot has it


class VideoFrames:
    """The colour frames of an MP4 file, in the order of their times.

    The file is opened as MP4 whatever it holds, and by its content alone: FFmpeg would otherwise
    follow a playlist or a reference in it to other files and servers.

    Args:
        path: of the file.
        size: height and width that its frames must have.
        fps: frames in a second.

    Attributes:
        path: of the file.
        position: time of the last frame that was decoded [s]; -inf before the first.

    Raises:
        DatasetError: the file is damaged, or the package `av` is missing.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float) -> None:
        av = _library(path)
        self.path, self.position = path, -np.inf
        self._size, self._tolerance = size, 0.5 / fps
        self._count = 0
        self._file = path.open("rb")
        try:
            with reading(f"'{path}'"):
                self._container: Any = av.open(self._file, "r", format="mp4")
                streams = self._container.streams.video
                if not streams or streams[0].codec_context is None:
                    raise ValueError("it holds no video")
                # Decoders would put together a picture of what is left of a damaged one.
                streams[0].codec_context.options |= {"err_detect": _ERRORS}
                self._frames = iter(self._container.decode(streams[0]))
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Closes the file."""
        self._container.close()
        self._file.close()

    def take(self, times: Array) -> Array:
        """The frames at the given times.

        Args:
            times: `[T]`, rising, none before `position` [s].

        Returns:
            `[T, H, W, 3]`, uint8. Each is another frame, at most half a frame from its time.

        Raises:
            DatasetError: there are no such frames, or they are of another size.
        """
        frames = np.empty((len(times), *self._size, 3), np.uint8)
        for i, time in enumerate(times):
            frame = self._next(float(time))
            frames[i] = frame.to_ndarray(format="rgb24")
        return frames

    def _next(self, time: float) -> Any:
        while True:
            with reading(f"'{self.path}', after {self._count} frames,"):
                frame = next(self._frames, None)
            if frame is None:
                raise DatasetError(
                    f"'{self.path}' ends after {self._count} frames, and one at {time:.3f} s is"
                    " missing: it was copied or downloaded in part; fetch it again"
                )
            self._count += 1
            if frame.is_corrupt:
                raise DatasetError(
                    f"'{self.path}': frame {self._count} is damaged; copy or make the file again"
                )
            if (frame.height, frame.width) != self._size:
                raise DatasetError(
                    f"'{self.path}' has frames of {frame.height} x {frame.width}, but the dataset"
                    f" says {self._size[0]} x {self._size[1]}"
                )
            self.position = self.position if frame.time is None else float(frame.time)
            if self.position > time + self._tolerance:
                raise DatasetError(
                    f"'{self.path}' has no frame of its own at {time:.3f} s, the next is at"
                    f" {self.position:.3f} s: frames were lost; record or download it again"
                )
            if self.position >= time - self._tolerance:
                return frame


class VideoWriter:
    """Writes colour frames into an MP4 file (H.264), in which any frame is found quickly.

    Images that are read again differ a little from the written ones: colours have half the
    resolution.

    Args:
        path: of the file.
        size: height and width of the frames, both even.
        fps: frames in a second.

    Attributes:
        count: frames so far.

    Raises:
        DatasetError: such frames cannot be encoded, or the package `av` is missing.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float) -> None:
        self._av = _library(path)
        if any(n % 2 for n in size):
            raise DatasetError(
                f"images of {size[0]} x {size[1]} are no video (H.264), which has even heights and"
                " widths: write them as PNG, by --to lerobot"
            )
        self.count = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb")
        self._container: Any = self._av.open(self._file, "w", format="mp4")
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = self._container.add_stream("libx264", rate, options=_QUALITY)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = PIXELS

    @property
    def num_bytes(self) -> int:
        """Bytes that are written so far."""
        return self._file.tell()

    def add(self, frames: Array) -> None:
        """Writes frames `[T, H, W, 3]`, uint8.

        Raises:
            OSError: the file cannot be written.
        """
        for frame in frames:
            picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            self._container.mux(self._stream.encode(picture))
        self.count += len(frames)

    def close(self) -> None:
        """Writes the last frames and closes the file.

        Raises:
            OSError: the file cannot be written.
        """
        with self._file:
            try:
                self._container.mux(self._stream.encode())
            finally:
                self._container.close()


def _library(path: Path) -> Any:
    """The package `av`.

    Raises:
        DatasetError: it is missing.
    """
    try:
        import av
    except ImportError as error:
        raise DatasetError(
            f"'{path}' is a video, which needs the package 'av': {pip_install('lerobot')}"
        ) from error
    return av
