import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from raymimic.tracking.figures import COLOURS, learning_curve, series

RETURNS = "Rollout/Return/Walker2d-v5"


def history(envs: tuple[str, ...] = ("Walker2d-v5",), epochs: int = 10) -> list[dict[str, float]]:
    rows = []
    for epoch in range(1, epochs + 1):
        row: dict[str, float] = {"epoch": epoch, "step": 100 * epoch, "Train/Loss": 1 / epoch}
        for index, env in enumerate(envs):
            value = 100.0 * epoch + 500 * index
            row[f"Rollout/Return/{env}"] = value
            row[f"Rollout/Return_CI_Low/{env}"] = value - 50
            row[f"Rollout/Return_CI_High/{env}"] = value + 50
        rows.append(row)
    return rows


def pixels_of(path: Path, colour: str, top: float = 0.0, bottom: float = 1.0) -> int:
    """How many pixels have a colour, between two heights given as parts of the picture."""
    image = (imread(path)[..., :3] * 255).round().astype(int)
    image = image[int(top * len(image)) : int(bottom * len(image))]
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(image - wanted).max(axis=-1) <= 2).sum())


def test_series_keeps_finite_values_in_order_and_the_later_of_two() -> None:
    rows = [
        {"epoch": 3, RETURNS: 30.0},
        {"epoch": 1, RETURNS: 10.0},
        {"epoch": 2, RETURNS: float("nan")},
        {"epoch": 4, "Train/Loss": 1.0},
        {"epoch": 3, RETURNS: 33.0},
    ]
    assert series(rows, RETURNS) == ([1, 3], [10.0, 33.0])
    assert series(rows, "absent") == ([], [])


def test_picture_shows_each_environment_its_band_and_the_loss(tmp_path: Path) -> None:
    one, two = tmp_path / "new" / "one.png", tmp_path / "two.png"
    learning_curve(history(), one)
    learning_curve(history(("Walker2d-v5", "Hopper-v5")), two)
    assert imread(one).shape == (1140, 1500, 4)
    assert pixels_of(one, COLOURS[0], 0.0, 0.6) > 2000  # the returns
    assert pixels_of(one, COLOURS[0], 0.65, 1.0) > 1000  # the loss
    assert pixels_of(one, "#CCE3F0") > 5000  # the band: a fifth of the blue on white
    assert pixels_of(one, COLOURS[1]) == 0
    assert pixels_of(two, COLOURS[1], 0.0, 0.6) > 2000


def test_reference_line_is_where_its_value_is(tmp_path: Path) -> None:
    plain, marked = tmp_path / "plain.png", tmp_path / "marked.png"
    # The top and bottom marks fix the scale of both pictures.
    rows = [{"epoch": 1, RETURNS: 0.0}, {"epoch": 2, RETURNS: 400.0}]
    learning_curve(rows, plain, {"a": 0.0, "b": 400.0})
    learning_curve(rows, marked, {"a": 0.0, "b": 100.0})
    plain_rows, marked_rows = (dark_rows(path) for path in (plain, marked))
    assert len(plain_rows) == len(marked_rows) == 2
    (high, low), (quarter, low_again) = plain_rows, marked_rows
    assert low == pytest.approx(low_again, abs=2)
    assert (low - quarter) / (low - high) == pytest.approx(0.25, abs=0.01)


def dark_rows(path: Path) -> list[int]:
    """Heights of the horizontal lines that cross the picture in the colour of references."""
    image = (imread(path)[..., :3] * 255).round()
    share = ((image < 120).all(axis=-1)).mean(axis=1)
    rows = np.flatnonzero(share > 0.3)
    return [int(group.mean()) for group in np.split(rows, np.flatnonzero(np.diff(rows) > 2) + 1)]


@pytest.mark.parametrize("rows", [[], [{"epoch": 1, "step": 5}], history((), 1)])
def test_nothing_to_draw_yet_is_no_error(rows: list[dict[str, float]], tmp_path: Path) -> None:
    learning_curve(rows, tmp_path / "curve.png", {"expert": 10.0}, "title")
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


def test_no_global_state_of_matplotlib_takes_part() -> None:
    code = "import sys, raymimic.tracking.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
