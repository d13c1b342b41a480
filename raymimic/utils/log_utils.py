"""robomimic's `log_utils`: output on the terminal and in files, TensorBoard, warnings."""

import contextlib
import logging
import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm  # type: ignore[import-untyped]

logger = logging.getLogger(__name__)

# Colours of ANSI terminals.
_COLOURS = {
    name: 30 + number
    for number, name in enumerate(
        ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")
    )
}

WARNINGS_BUFFER: list[str] = []
"""The warnings since the last `flush_warnings`; the only state of this module, as in robomimic."""


def colored(text: str, color: str) -> str:
    """Colours a text for a terminal; elsewhere it stays as it is."""
    if color not in _COLOURS or not sys.stdout.isatty():
        return text
    return f"\033[{_COLOURS[color]}m{text}\033[0m"


class PrintLogger:
    """Writes everything to standard output and to a file: `sys.stdout = PrintLogger(path)`.

    Args:
        log_file: the file, which is appended to.
    """

    def __init__(self, log_file: str | Path) -> None:
        self.terminal: IO[str] = sys.stdout
        self.log_file = Path(log_file).open("a")  # noqa: SIM115 # open as long as the process

    def write(self, message: str) -> int:
        """Writes a text to both."""
        self.log_file.write(message)
        self.log_file.flush()
        return self.terminal.write(message)

    def flush(self) -> None:
        """Flushes standard output."""
        self.terminal.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)  # isatty, encoding, fileno, …


class DataLogger:
    """Logs metrics to TensorBoard, and keeps statistics of them.

    Args:
        log_dir: TensorBoard's files lie in its folder `tb`.
        config: the training's config; robomimic names its run of Weights & Biases by it.
        log_tb: whether to write TensorBoard's files.
        log_wandb: has no effect, and a warning says so: raymimic does not log there.
    """

    def __init__(
        self, log_dir: str | Path, config: Any, log_tb: bool = True, log_wandb: bool = False
    ) -> None:
        self._tb_logger: Any = None
        self._data: dict[str, list[float]] = {}
        if log_tb:
            from tensorboardX import SummaryWriter

            self._tb_logger = SummaryWriter(str(Path(log_dir) / "tb"))
        if log_wandb:
            logger.warning(
                "DataLogger: log_wandb has no effect; metrics go to TensorBoard, and those of "
                "raymimic's own trainings to MLflow"
            )

    def record(
        self,
        k: str,
        v: float | npt.NDArray[Any],
        epoch: int,
        data_type: str = "scalar",
        log_stats: bool = False,
    ) -> None:
        """Logs a value.

        Args:
            k: its name.
            v: a number, or an image `[H, W, 3]` or `[B, H, W, 3]`.
            epoch: the number of the epoch.
            data_type: `"scalar"` or `"image"`.
            log_stats: keep it for `get_stats`, as the later values of this name, and log its
                statistics too.

        Raises:
            ValueError: for another `data_type`.
        """
        if data_type == "image":
            if self._tb_logger is not None:
                images = np.asarray(v)
                images = images[None] if images.ndim == 3 else images
                self._tb_logger.add_images(k, images, epoch, dataformats="NHWC")
            return
        if data_type != "scalar":
            raise ValueError(f"data_type '{data_type}' is neither 'scalar' nor 'image'")
        values = {k: float(v)}
        if log_stats or k in self._data:
            self._data.setdefault(k, []).append(float(v))
        if log_stats:
            values |= {f"{k}-{name}": number for name, number in self.get_stats(k).items()}
        if self._tb_logger is not None:
            for name, number in values.items():
                self._tb_logger.add_scalar(name, number, epoch)

    def get_stats(self, k: str) -> dict[str, float]:
        """Returns `mean`, `std`, `min` and `max` of all values that were kept of a name."""
        values = self._data[k]
        return {name: float(getattr(np, name)(values)) for name in ("mean", "std", "min", "max")}

    def close(self) -> None:
        """Writes the last values."""
        if self._tb_logger is not None:
            self._tb_logger.close()


class custom_tqdm(tqdm):  # type: ignore[misc]
    """A progress bar on standard output; `tqdm` itself writes to standard error."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, file=sys.stdout, **kwargs)


@contextlib.contextmanager
def silence_stdout() -> Iterator[IO[str]]:
    """Scope in which nothing is printed to standard output."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield nowhere


def log_warning(message: str, color: str = "yellow", print_now: bool = True) -> None:
    """Keeps a warning for `flush_warnings`.

    Args:
        message: the warning.
        color: on a terminal.
        print_now: print it now too.
    """
    text = colored(f"WARNING(\n{textwrap.indent(message, '    ')}\n)", color)
    WARNINGS_BUFFER.append(text)
    if print_now:
        print(text)


def flush_warnings() -> None:
    """Prints all warnings that were kept, and forgets them."""
    for text in WARNINGS_BUFFER:
        print(text)
    WARNINGS_BUFFER.clear()
