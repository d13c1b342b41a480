import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from raymimic.config.base_config import config_from_file
from raymimic.errors import OutputError, TrainingError
from raymimic.sweep.outcome import pictures
from raymimic.sweep.outcome.note import sweep_note
from raymimic.sweep.outcome.report import sweep_report_lines, write_report
from raymimic.sweep.outcome.result import FinalScore, TrialResult
from raymimic.sweep.outcome.table import (
    SweepOutcome,
    describe,
    table,
    table_csv,
    table_lines,
)
from raymimic.sweep.spec.sweep_file import sweep_from_dict
from raymimic.sweep.spec.sweep_spec import SweepSpec, Trial
from raymimic.terminal import readable
from raymimic.tracking.figures import COLOURS

ALPHA, TAU = "algo.alpha", "algo.target_tau"
METRIC = "Rollout/Return/Walker2d-v5"


def trial(setting_id: str, alpha: float, seed: int, *scores: float, **more: Any) -> TrialResult:
    finite = [score for score in scores if math.isfinite(score)]
    values: dict[str, Any] = {
        "status": "finished",
        "curve": [(100 * (i + 1), score) for i, score in enumerate(scores)],
        "best": max(finite) if finite else None,
        "last": scores[-1] if scores else None,
        "best_checkpoint": f"/runs/{setting_id}/{seed}.pth" if finite else None,
        "episodes": 10 * len(scores),
    }
    begun = TrialResult.begun(
        Trial(setting_id, {ALPHA: alpha, TAU: 0.005}, seed), f"/runs/{setting_id}"
    )
    return replace(begun, **values | more)


def sweep(space: dict[str, Any], **keys: Any) -> SweepSpec:
    common = {"name": "alpha_tau", "algo": "td3_bc", "dataset": "/data/walker.hdf5"}
    return sweep_from_dict(common | {"space": space, "metric": METRIC} | keys)


GRID = sweep({ALPHA: {"grid": [1.0, 2.5, 5.0]}, TAU: {"grid": [0.005, 0.02]}}, seeds=[1, 2])


def image_of(figure: Figure | None) -> np.ndarray:
    assert figure is not None
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)


def pixels_of(figure: Figure | None, colour: str) -> int:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(image_of(figure) - wanted).max(axis=-1) <= 2).sum())


def words_of(figure: Figure | None) -> set[str]:
    """All that is written in a picture."""
    assert figure is not None
    figure.canvas.draw()
    texts = figure.findobj(lambda artist: hasattr(artist, "get_text") and artist.get_visible())
    return {artist.get_text() for artist in texts} - {""}


# -- results --


def test_a_result_survives_json() -> None:
    schedule = [{"step": 200, "from": "b_seed1", "setting": {ALPHA: 3.0}}]
    result = trial("a", 2.5, 1, 10.0, 30.0, episode_scores=[29.0, 31.0], schedule=schedule)
    assert TrialResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_a_diverged_score_becomes_null_and_comes_back_as_no_number() -> None:
    result = trial("a", 2.5, 1, 10.0, math.nan)
    line = json.dumps(result.to_dict(), allow_nan=False)
    back = TrialResult.from_dict(json.loads(line))
    assert back.curve[0] == (100, 10.0)
    assert math.isnan(back.curve[1][1])
    assert (back.best, back.last) == (10.0, None)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"colour": 1}, "'colour'"), ({"status": "lost"}, "'lost'"), ({"seed": None}, "'seed'")],
)
def test_a_damaged_result_is_refused_with_its_name(change: dict[str, Any], named: str) -> None:
    values = trial("a", 2.5, 1, 10.0).to_dict() | change
    if change == {"seed": None}:
        del values["seed"]
    with pytest.raises(OutputError, match=named) as caught:
        TrialResult.from_dict(values)
    assert "a_seed1" in str(caught.value)


# -- the table --


def test_settings_are_ranked_by_their_mean_not_by_a_lucky_seed() -> None:
    rows = table(
        [
            trial("lucky", 1.0, 1, 900.0),
            trial("lucky", 1.0, 2, 100.0),
            trial("steady", 2.5, 2, 560.0, 500.0),
            trial("steady", 2.5, 1, 600.0, 580.0),
        ]
    )
    assert [(row.rank, row.setting_id) for row in rows] == [(1, "steady"), (2, "lucky")]
    steady = rows[0]
    assert steady.score is not None
    assert (steady.score.mean, steady.score.low, steady.score.high) == (580.0, 560.0, 600.0)
    assert steady.last == 540.0
    assert steady.by_seed == {1: 600.0, 2: 560.0}
    assert steady.last_by_seed == {1: 580.0, 2: 500.0}
    assert steady.episodes == 40
    assert steady.best_checkpoint == "/runs/steady/1.pth"
    assert steady.trials == {"finished": 2}


def test_less_is_better_in_mode_min() -> None:
    results = [trial("a", 1.0, 1, 5.0), trial("a", 1.0, 2, 4.0), trial("b", 2.0, 1, 3.0)]
    rows = table(results, "min")
    assert [row.setting_id for row in rows] == ["b", "a"]
    assert rows[1].best_checkpoint == "/runs/a/2.pth"


def test_a_setting_that_lost_a_seed_ranks_after_the_whole_ones() -> None:
    results = [
        trial("survivor", 1.0, 1, 900.0),
        trial("survivor", 1.0, 2, status="failed", error="out of memory"),
        trial("unstarted", 2.0, 1, 800.0),
        trial("whole", 3.0, 1, 10.0),
        trial("whole", 3.0, 2, 20.0),
        trial("empty", 4.0, 1, status="running"),
    ]
    rows = table(results, seeds=(1, 2))
    assert [(row.setting_id, row.complete) for row in rows] == [
        ("whole", True),
        ("survivor", False),
        ("unstarted", False),
        ("empty", False),
    ]
    assert rows[1].trials == {"finished": 1, "failed": 1}
    assert rows[3].rank is None
    assert rows[3].score is None


def test_what_the_budget_stopped_is_not_whole_what_the_scheduler_stopped_is() -> None:
    budget = trial("a", 1.0, 1, 9.0, status="stopped", error="the sweep's 2 hours were over")
    scheduler = trial("b", 2.0, 1, 8.0, status="stopped")
    rows = table([budget, scheduler])
    assert [(row.setting_id, row.complete) for row in rows] == [("b", True), ("a", False)]


def test_a_last_checkpoint_that_diverged_gives_no_flattering_mean() -> None:
    (row,) = table([trial("a", 1.0, 1, 500.0, 400.0), trial("a", 1.0, 2, 500.0, math.nan)])
    assert row.score is not None
    assert row.score.mean == 500.0
    assert row.last is None
    assert row.last_by_seed == {1: 400.0}


def test_the_table_for_a_terminal() -> None:
    rows = table(
        [
            *(trial("a", 2.5, 1, 1230.0), trial("a", 2.5, 2, 1220.0)),
            trial("b", 10.0, 1, status="running"),
            trial("c", 5.0, 1, 800.0, status="running"),  # one number has no interval
            *(trial("d", 1.0, 1, 700.0), trial("d", 1.0, 2, status="failed")),
        ]
    )
    assert table_lines(GRID, rows) == [
        "#  alpha  target_tau  mean  95% interval   IQM  last  seeds",
        "1    2.5       0.005  1225  [1220, 1230]  1225  1225      2",
        "2      5       0.005   800             -   800   800      1  1 running",
        "3      1       0.005   700             -   700   700      1  1 failed",
        "-     10       0.005     -             -     -     -      0  1 running",
    ]
    assert table_lines(GRID, rows, limit=2)[2:] == [
        "2      5       0.005   800             -   800   800      1  1 running",
        "and 2 settings more",
    ]


def test_settings_are_written_by_the_names_that_the_sweep_gives_them() -> None:
    data = [f"/a/long/way/to/the/folder/of/{task}/ph/low_dim.hdf5" for task in ("lift", "can")]
    sizes = {"grid": [[64], [256, 256]], "together": "x"}
    spec = sweep(
        {
            "train.data": {"choice": data},
            "algo.actor_layer_dims": {**sizes, "value_names": ["small", "big"], "label": "net"},
            "train.batch_size": {"grid": [16, 100], "together": "x", "hidden": True},
            "algo.gmm.enabled": {"choice": [True, False]},
            "algo.gmm.num_modes": {"randint": [2, 9], "when": {"algo.gmm.enabled": True}},
        },
        algo="bc",
        dataset=None,
        search="random",
        budget={"trials": 4},
    )
    setting = {
        "train.data": data[1],
        "algo.actor_layer_dims": [256, 256],
        "train.batch_size": 100,
        "algo.gmm.enabled": False,
    }
    assert describe(spec, setting) == "data can, net big, gmm False"
    lines = table_lines(spec, table([trial("a", 1.0, 1, 5.0, setting=setting)]))
    assert lines[0].split()[:5] == ["#", "data", "net", "gmm", "num_modes"]
    assert lines[1].split()[:5] == ["1", "can", "big", "False", "5"]  # no num_modes; the mean


def test_numbers_keep_the_digits_that_mean_something() -> None:
    assert [readable(v) for v in (1234.56, 99.96, 12.34, 0.98765, None, math.nan)] == [
        *("1235", "100.0", "12.3", "0.988"),
        *("-", "-"),
    ]


def test_csv_has_whole_paths_and_a_column_for_each_seed() -> None:
    rows = table([trial("a", 2.5, 3, 1.0, 0.1 + 0.2), trial("a", 2.5, 7, 2.0)])
    (line,) = csv.DictReader(table_csv(GRID, rows).splitlines())
    assert line[ALPHA] == "2.5"
    assert (line["mean"], line["complete"]) == ("1.5", "true")
    assert (line["best_seed_3"], line["best_seed_7"]) == ("1.0", "2.0")
    assert float(line["last_seed_3"]) == 0.1 + 0.2


# -- the report --


def grid_results() -> list[TrialResult]:
    """The best is alpha 2.5 with tau 0.02; alpha matters, tau hardly does."""
    results = []
    for one in GRID.trials():
        top = 1000 - 300 * abs(one.setting[ALPHA] - 2.5) + 1000 * one.setting[TAU] + one.seed
        results.append(
            replace(
                trial(one.setting_id, 0.0, one.seed, top / 2, top, top - 50),
                setting=one.setting,
                episode_scores=[top - 5, top + 5],
            )
        )
    return results


def test_the_report_holds_all_and_its_config_trains(tmp_path: Path) -> None:
    results = grid_results()
    winner = results[3].setting_id
    assert results[3].setting == {ALPHA: 2.5, TAU: 0.02}
    final: FinalScore = {
        "setting_id": winner,
        "mean": 912.3,
        "low": 880.0,
        "high": 950.0,
        "episodes": 50,
        "by_seed": {"1": 910.0, "2": 914.6},
    }
    report = write_report(GRID, results, tmp_path / "sweep", final)

    assert report.best_setting_id == winner
    assert report.table[0]["mean"] == pytest.approx(1021.5)
    assert report.table[0]["last"] == pytest.approx(971.5)
    assert report.episodes == 12 * 30
    assert report.headline == (
        "best: alpha 2.5, target_tau 0.02: return 912, 95% interval [880, 950], "
        "in 50 episodes that the search never saw (seeds of training: 1, 2)"
    )
    assert {file.name for file in report.files} == {
        *("table.csv", "table.json", "best_config.json", "learning_curves.png"),
        *("online_budget.png", "heat_map.png", "parallel_coordinates.png", "importance.png"),
    }
    assert all(file.stat().st_size > 0 for file in report.files)

    outcome = json.loads((tmp_path / "sweep" / "table.json").read_text())
    assert outcome["final"] == final
    assert outcome["settings"] == report.table
    means = [row["mean"] for row in report.table]
    budget = outcome["expected_online_performance"]["best"]
    assert budget["expected"][0] == pytest.approx(np.mean(means))
    assert budget["expected"][-1] < means[0]
    assert [one["path"] for one in outcome["importance"]] == [ALPHA, TAU]
    assert outcome["importance"][0]["share"] > 0.8
    assert outcome["notes"] == [
        "2 seeds each: a bootstrap of so few is too narrow; its 95% interval may hold the true "
        "mean in only 50% of cases"
    ]

    config = config_from_file(str(tmp_path / "sweep" / "best_config.json"))
    assert (config.algo.alpha, config.algo.target_tau, config.train.seed) == (2.5, 0.02, 1)

    lines = sweep_report_lines(GRID, report)
    assert lines[-1] == report.headline
    assert "the search consumed 360 evaluation episodes" in lines
    assert f"expected best of n settings tried online: {np.mean(means):.0f} (1), " in "\n".join(
        lines
    )


def test_a_sweeps_note_has_the_table_of_settings(tmp_path: Path) -> None:
    results = [replace(r, best_checkpoint=f"/x/{r.trial_id}.pth") for r in grid_results()]
    report = write_report(GRID, results, tmp_path)
    note = sweep_note(GRID, report, "s3://bucket/s", "walker.hdf5")
    title, headline, table, code = note.split("\n\n")
    assert title == f"**td3_bc** on `walker.hdf5`: {len(report.rows)} settings, seeds 1, 2"
    assert headline == report.headline
    rows = table.splitlines()[2:]
    assert len(rows) == len(report.rows)
    first = [cell.strip() for cell in rows[0].split("|")[1:-1]]
    assert first[:2] == ["1", "`alpha 2.5, target_tau 0.02`"]
    assert (first[2], first[5]) == (readable(report.rows[0].to_dict()["mean"]), "2")
    assert f"raymimic evaluate {report.rows[0].best_checkpoint}  #" in code
    assert "raymimic train --config s3://bucket/s/best_config.json  #" in code
    many = replace(report, outcome=replace(report.outcome, rows=report.rows * 9))
    note = sweep_note(GRID, many, "/s", "walker.hdf5")
    assert f"and {len(report.rows) * 9 - 20} settings more" in note
    assert len(note) < 8000


def test_without_new_episodes_the_headline_says_that_it_flatters(tmp_path: Path) -> None:
    report = write_report(GRID, grid_results()[:1], tmp_path)
    assert "flattered" in report.headline
    # One setting is neither compared nor drawn with others.
    assert [f.name for f in report.files if f.suffix == ".png"] == ["learning_curves.png"]
    notes = json.loads((tmp_path / "table.json").read_text())["notes"]
    assert notes[0].startswith("1 of 1 settings lack trials")


def test_no_score_at_all_is_said(tmp_path: Path) -> None:
    failed = [replace(r, best=None, last=None, curve=[]) for r in grid_results()]
    with pytest.raises(TrainingError, match="no trial of sweep 'alpha_tau' has a score"):
        write_report(GRID, failed, tmp_path)


def test_settings_without_a_score_are_counted(tmp_path: Path) -> None:
    results = grid_results()
    lost = results[0].setting_id
    results = [
        replace(r, best=None, last=None, curve=[], status="failed", error="diverged")
        if r.setting_id == lost
        else replace(r, last=math.nan, episode_scores=[math.nan, 1.0])
        for r in results
    ]
    write_report(GRID, results, tmp_path)
    outcome = json.loads((tmp_path / "table.json").read_text())
    assert len(outcome["expected_online_performance"]["best"]["expected"]) == 5
    assert outcome["expected_online_performance"]["last"] is None
    assert outcome["settings"][-1]["mean"] is None
    assert "1 of 6 settings have no score" in " ".join(outcome["notes"])


def test_a_population_has_schedules_and_no_importances(tmp_path: Path) -> None:
    spec, results = population()
    report = write_report(spec, results, tmp_path)
    assert {f.name for f in report.files if f.suffix == ".png"} == {
        *("learning_curves.png", "online_budget.png", "schedules.png"),
    }
    outcome = json.loads((tmp_path / "table.json").read_text())
    assert outcome["importance"] == []
    assert outcome["schedules"]["c_seed1"] == results[2].schedule
    config = config_from_file(str(tmp_path / "best_config.json"))
    assert config.algo.alpha == 3.0  # the winner's at its best score


# -- pictures --


def population() -> tuple[SweepSpec, list[TrialResult]]:
    """At step 200 `b` takes over `a`, at 400 `c` takes over `b` and wins at 500."""
    spec = sweep(
        {ALPHA: {"uniform": [0.5, 30.0]}},
        search="random",
        scheduler="pbt",
        seeds=[1],
        budget={"trials": 3},
    )

    def at(step: int, alpha: float, donor: str | None = None) -> dict[str, Any]:
        return {"step": step, "from": donor, "setting": {ALPHA: alpha}}

    a, b, c = at(0, 1.0), at(0, 9.0), at(0, 20.0)
    schedules = ([a], [b, at(200, 2.0, "a_seed1")], [c, at(400, 3.0, "b_seed1")])
    tops = ([1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 1.0, 2.0, 5.0, 4.0], [0.0, 0.5, 1.0, 1.5, 9.0, 8.0])
    return spec, [
        replace(trial(name, 0.0, 1, *top), schedule=done, setting=done[-1]["setting"])
        for name, top, done in zip("abc", tops, schedules, strict=True)
    ]


def test_the_winners_schedule_leads_back_through_its_weights_origins() -> None:
    figure = pictures.schedules(SweepOutcome.of(*population()))
    assert figure is not None
    lines = figure.axes[0].lines
    assert [line.get_xydata().tolist() for line in lines[:3]] == [
        [[0, 1.0], [500, 1.0]],
        [[0, 9.0], [200, 2.0], [500, 2.0]],
        [[0, 20.0], [400, 3.0], [600, 3.0]],
    ]
    (won,) = [line for line in lines if line.get_linewidth() > 2]
    assert won.get_xydata().tolist() == [[0, 1.0], [200, 2.0], [400, 3.0], [500, 3.0]]
    (crosses,) = [line for line in lines if line.get_marker() == "x"]
    assert crosses.get_xydata().tolist() == [[200, 2.0], [400, 3.0]]
    assert pictures.schedules(SweepOutcome.of(GRID, grid_results())) is None


def test_curves_have_bands_where_there_are_seeds() -> None:
    results = [trial("a", 1.0, 1, 100.0, 300.0), trial("a", 1.0, 2, 200.0, 500.0)]
    one = pictures.learning_curves(SweepOutcome.of(GRID, results[:1]))
    two = pictures.learning_curves(SweepOutcome.of(GRID, results))
    assert image_of(two).shape == (900, 1500, 3)
    band = "#E0EDF5"  # 12% of the blue on white
    assert pixels_of(one, band) < 300
    assert pixels_of(two, band) > 20_000
    assert pixels_of(two, COLOURS[0]) > 2000
    assert pixels_of(two, pictures.GREY) < 1000  # edges of letters alone


def test_references_stand_in_the_picture_and_leave_the_curves_their_place() -> None:
    results = [trial("a", 1.0, 1, 100.0, 300.0), trial("b", 2.5, 1, 150.0, 200.0)]
    outcome = SweepOutcome.of(GRID, results, {"data": 350.0, "expert": 4000.0})
    figure = pictures.learning_curves(outcome)
    assert {
        "data: 350",
        "expert: 4000, beyond the axis",
        "alpha_tau · td3_bc · walker.hdf5",
    } <= words_of(figure)
    (axes,) = figure.axes
    flat = [line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1]
    assert flat == [350.0, 4000.0]
    bottom, top = axes.get_ylim()
    assert bottom < 100 < 350 < top  # the data's mean is near, the expert's far above
    assert top - bottom < 2 * (300 - 100)


def test_curves_beyond_the_best_five_are_grey() -> None:
    results = [trial(f"s{i}", float(i), 1, 10.0 * i, 100.0 * i) for i in range(8)]
    figure = pictures.learning_curves(SweepOutcome.of(GRID, results))
    assert all(pixels_of(figure, colour) > 1000 for colour in COLOURS[:5])
    assert pixels_of(figure, pictures.GREY) > 2000
    assert {"alpha 7, target_tau 0.005", "other settings"} <= words_of(figure)


def test_a_grid_is_drawn_as_cells_and_random_settings_as_points() -> None:
    grid = [
        trial(f"s{a}{t}", 0.0, 1, 100.0 * a + t, setting={ALPHA: a, TAU: t})
        for a in (1.0, 2.0)
        for t in (0.1, 0.2)
    ]
    scattered = [
        trial(f"s{i}", 0.0, 1, float(i), setting={ALPHA: 1.0 + i, TAU: 0.1 + i / 10})
        for i in range(4)
    ]
    cells = pictures.heat_map(SweepOutcome.of(GRID, grid))
    points = pictures.heat_map(SweepOutcome.of(GRID, scattered))
    bright, dark = "#FDE725", "#440154"
    # Two cells at each end of the scale, of which one has exactly its colour; points are small.
    assert pixels_of(cells, bright) > 150_000
    assert pixels_of(cells, dark) > 150_000
    assert 500 < pixels_of(points, bright) < 20_000
    assert pixels_of(points, COLOURS[1]) > 200  # the ring round the best
    assert pixels_of(cells, COLOURS[1]) == 0
    assert {"alpha", "target_tau", "Return, Walker2d-v5, mean over seeds"} <= words_of(cells)


def test_two_that_always_change_together_are_no_map() -> None:
    paths = (ALPHA, TAU, "train.batch_size")
    values = [(a, a / 100, b) for a in (1.0, 2.0) for b in (16, 32, 64)]
    results = [
        trial(f"s{i}", 0.0, 1, 100.0 * v[0] + i, setting=dict(zip(paths, v, strict=True)))
        for i, v in enumerate(values)
    ]
    spec = sweep(
        {
            ALPHA: {"grid": [1.0, 2.0], "together": "x", "label": "", "value_names": ["a", "b"]},
            TAU: {"grid": [0.01, 0.02], "together": "x", "hidden": True},
            "train.batch_size": {"grid": [16, 32, 64]},
        }
    )
    outcome = SweepOutcome.of(spec, results)
    assert [one.path for one in outcome.importances] == list(paths)
    assert {"alpha", "batch_size"} <= words_of(pictures.heat_map(outcome))
    assert table_lines(spec, outcome.rows)[0].split()[:3] == ["#", "setting", "batch_size"]
    assert describe(spec, outcome.rows[0].setting) == "b, batch_size 64"


def test_what_is_good_is_bright_and_on_top_in_both_modes() -> None:
    results = [trial("good", 1.0, 1, 1.0), trial("bad", 9.0, 1, 5.0)]
    held_out = {"experiment.validate": True, "train.hdf5_filter_key": "train"}
    spec = sweep(
        {ALPHA: {"grid": [1.0, 9.0]}},
        metric="Valid/Loss",
        mode="min",
        set={**held_out, "train.hdf5_validation_filter_key": "valid"},
    )
    image = image_of(pictures.parallel_coordinates(SweepOutcome.of(spec, results)))
    bright = np.abs(image - [0xFD, 0xE7, 0x25]).max(axis=-1) <= 2
    heights = np.nonzero(bright)[0] / len(image)
    # The best comes from the low value on the left and ends at the top on the right.
    assert heights.min() < 0.2
    assert heights.max() > 0.75


def test_axes_hold_words_and_gaps_below_numbers() -> None:
    heights, ticks = pictures._axis(["absent", 1.0, 10.0, 100.0])
    assert heights == pytest.approx([0.06, 0.12, 0.56, 1.0])  # 100 is 10 times 10: logarithmic
    assert [label for _, label in ticks] == ["absent", "1", "10", "100"]
    heights, ticks = pictures._axis(["b", "a", "b"])
    assert heights == [0.75, 0.25, 0.75]
    assert ticks == [(0.25, "a"), (0.75, "b")]
    heights, _ = pictures._axis([5.0, 500.0, 5.0], score="min")
    assert heights == [1.0, 0.0, 1.0]
    assert pictures._axis([3.0, 3.0])[0] == [0.0, 0.0]


def test_settings_with_words_lists_and_gaps_are_drawn() -> None:
    spec = sweep(
        {
            "algo.gmm.enabled": {"choice": [True, False]},
            "algo.gmm.num_modes": {"randint": [2, 20], "when": {"algo.gmm.enabled": True}},
            "algo.actor_layer_dims": {"choice": [[64], [256, 256]]},
        },
        algo="bc",
        search="random",
        budget={"trials": 30},
    )
    results = [
        trial(f"s{i}", 0.0, 1, float(i), setting=setting) for i, setting in enumerate(spec.settings)
    ]
    outcome = SweepOutcome.of(spec, results)
    # Numbers that some lack are grouped among themselves.
    assert all(one.share is not None for one in outcome.importances)
    words = words_of(pictures.parallel_coordinates(outcome))
    assert {"True", "False", "absent", "[64]", "[256, 256]", "gmm", "num_modes"} <= words
    assert pictures.heat_map(outcome) is None  # of one number alone
