import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from raymimic.tracking.figures import COLOURS, learning_curve, loss_panels, series

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
    assert imread(one).shape == (1080, 1500, 4)
    assert pixels_of(one, COLOURS[0], 0.0, 0.6) > 2000  # the returns
    assert pixels_of(one, COLOURS[0], 0.65, 1.0) > 1000  # the loss
    assert pixels_of(one, "#CCE3F0") > 5000  # the band: a fifth of the blue on white
    assert pixels_of(one, COLOURS[1]) == 0
    assert pixels_of(two, COLOURS[1], 0.0, 0.6) > 2000


def test_reference_line_is_where_its_value_is(tmp_path: Path) -> None:
    plain, marked = tmp_path / "plain.png", tmp_path / "marked.png"
    # The top and bottom marks fix the scale of both pictures.
    rows = [{"epoch": 1, RETURNS: 0.0}, {"epoch": 2, RETURNS: 400.0}]
    learning_curve(rows, plain, {"Walker2d-v5": {"a": 0.0, "b": 400.0}})
    learning_curve(rows, marked, {"Walker2d-v5": {"a": 0.0, "b": 100.0}, "Hopper-v5": {"c": 9.0}})
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


@pytest.mark.parametrize("rows", [[], [{"epoch": 1, "step": 5}], [{"epoch": 1, "Train/Loss": 0.0}]])
def test_nothing_to_draw_leaves_no_file(rows: list[dict[str, float]], tmp_path: Path) -> None:
    assert not learning_curve(rows, tmp_path / "curve.png", {"Walker2d-v5": {"a": 1.0}}, "title")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_has_no_empty_panel(tmp_path: Path) -> None:
    sizes = {}
    never = [{**row, "Rollout/Success_Rate/Walker2d-v5": 0.0} for row in history()]
    for name, rows in {
        "losses": history(()),
        "returns": [{k: v for k, v in row.items() if k != "Train/Loss"} for row in history()],
        "both": history(),
        "unsolved": never,
        "solved": [*never, {"epoch": 10, "Rollout/Success_Rate/Walker2d-v5": 0.5}],
    }.items():
        assert learning_curve(rows, tmp_path / "curve.png", {}, "$ a $ run_1")
        sizes[name] = imread(tmp_path / "curve.png").shape[0]
    assert sizes == {"losses": 450, "returns": 720, "both": 1080, "unsolved": 1080, "solved": 1710}


def losses(**values: float | list[float]) -> list[dict[str, float]]:
    """Two epochs of metrics; `__` stands for a slash."""
    named = {name.replace("__", "/"): value for name, value in values.items()}
    return [
        {"epoch": 1 + i, **{k: v[i] if isinstance(v, list) else v + i for k, v in named.items()}}
        for i in range(2)
    ]


def test_losses_of_one_kind_share_a_panel_and_totals_need_none() -> None:
    td3_bc = losses(
        Train__Critic__Critic1_Loss=1.0,
        Train__Critic__Critic2_Loss=2.0,
        Train__Critic__Q_Targets=5.0,
        Train__Actor__Loss=-1.0,
        Train__Loss=2.5,
    )
    critics = ["Critic/Critic1_Loss", "Critic/Critic2_Loss"]
    assert loss_panels(td3_bc) == [critics, ["Actor/Loss"]]
    # A validation chooses checkpoints by the total.
    td3_bc += losses(Valid__Loss=3.0)
    assert loss_panels(td3_bc) == [critics, ["Actor/Loss"], ["Loss"]]
    iql = losses(Train__Loss=9.0, Train__vf__v_loss=1.0, Train__vf__v_pred__mean=2.0)
    assert loss_panels(iql) == [["vf/v_loss"]]
    planner = losses(Train__Planner__Loss=1.0, Train__Planner__Critic__Loss=2.0, Train__Loss=3.5)
    assert loss_panels(planner) == [["Planner/Critic/Loss"]]


def test_a_loss_that_repeats_another_or_is_always_zero_has_no_panel() -> None:
    bc = losses(Train__Loss=1.0, Train__L2_Loss=1.0, Train__L1_Loss=3.0, Train__Loss_Weight=2.0)
    assert loss_panels(bc) == [["Loss"], ["L1_Loss"]]
    assert loss_panels(losses(Train__Loss=[0.0, 0.0])) == []
    assert loss_panels([{"epoch": 1, "Train/Loss": float("nan")}]) == []


def test_no_global_state_of_matplotlib_takes_part() -> None:
    code = "import sys, raymimic.tracking.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
