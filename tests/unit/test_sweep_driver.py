"""The driver of a sweep without Ray: its results, messages and requests."""

import json
from pathlib import Path
from typing import Any

import pytest
from sweeps import result_of, small_spec

from raymimic.checkpoints.store import CheckpointStore
from raymimic.errors import ConfigError, DatasetError
from raymimic.sweep.outcome.result import TrialResult
from raymimic.sweep.spec.sweep_spec import SweepSpec, Trial
from raymimic.sweep.trials import live, messages
from raymimic.sweep.trials.folder import RESULTS, SweepFolder
from raymimic.sweep.trials.ledger import TrialLedger
from raymimic.sweep.trials.messages import ORDER_KEY, Ended, TuneTracker, score_of, trial_order
from raymimic.sweep.trials.optuna_search import OptunaSettings
from raymimic.sweep.trials.records import SweepRecords
from raymimic.sweep.trials.stopping import AshaScheduler, MedianScheduler
from raymimic.sweep.trials.trial import trial_config
from raymimic.tracking.episode_rows import EpisodeRow
from raymimic.training.trainer import train_in_folder

RETURN = "Rollout/Return/Hopper-v5"


@pytest.fixture
def spec(tmp_path: Path) -> SweepSpec:
    return small_spec(tmp_path)


class RayTrial:
    """As much of Ray Tune's trial as the board looks at."""

    status = "TERMINATED"
    error_file: str | None = None

    def __init__(self, trial: Trial) -> None:
        self.config = {ORDER_KEY: trial_order(trial)}
        self.name = self.trial_id = trial.trial_id

    def __str__(self) -> str:
        return self.name


def report(step: int, score: float, epoch: int, episodes: int) -> dict[str, Any]:
    metrics = {"gradient_steps": step, "score": score, "epoch": epoch, "episodes": episodes}
    return metrics | {"epochs": [(epoch, step, {RETURN: score}, {})]}


def board_of(spec: SweepSpec, folder: SweepFolder, quiet: bool = True) -> TrialLedger:
    return TrialLedger(spec, folder, SweepRecords(spec, {}), quiet)


def folder_of(spec: SweepSpec) -> SweepFolder:
    return SweepFolder.create(spec)


# -- a trial --


def test_a_score_counts_for_the_step_of_the_checkpoint_that_was_evaluated() -> None:
    told: list[dict[str, Any]] = []
    reports = TuneTracker("Rollout/Return", rollouts=4, report=told.append)
    reports.log_epoch(1, 100, {"Train/Loss": 3.0})
    reports.log_epoch(2, 200, {"Train/Loss": 2.0})
    reports.log_epoch(3, 300, {"Train/Loss": 1.0})  # trained while epoch 2 was being evaluated
    episode = EpisodeRow(seed=1, episode_return=7.0, length=5, success=None, error=None)
    scores = {RETURN: 7.0, "Rollout/Return_Std/Hopper-v5": 9.0}
    reports.log_evaluation(2, 200, scores, {"Hopper-v5": [episode]})
    (only,) = told
    assert (only["gradient_steps"], only["score"], only["epoch"]) == (200, 7.0, 2)
    assert only["episodes"] == 4
    assert [(epoch, step, episodes) for epoch, step, _, episodes in only["epochs"]] == [
        (1, 100, {}),
        (2, 200, {}),
        (3, 300, {}),
        (2, 200, {"Hopper-v5": [episode]}),
    ]


def test_a_trial_that_waits_long_for_a_score_tells_how_far_it_is(
    spec: SweepSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(messages, "_SIGN_OF_LIFE_S", -1.0)
    monkeypatch.setattr(live, "_PLAIN_INTERVAL_S", 0.0)
    told: list[dict[str, Any]] = []
    reports = TuneTracker("Rollout/Return", rollouts=4, report=told.append)
    for epoch in (1, 2):
        reports.log_epoch(epoch, 100 * epoch, {"Train/Loss": 3.0})
    assert [result["epochs"][0][0] for result in told] == [1, 2]
    board, trial = board_of(spec, folder_of(spec), quiet=False), RayTrial(spec.trials()[0])
    board.on_trial_start(0, [], trial)
    for result in told:
        board.on_trial_result(0, [], trial, result)
    board.on_step_end(0, [])
    assert board.results[str(trial)].curve == []
    assert "alpha_1, seed 1: epoch 2/200" in capsys.readouterr().out


def test_a_metric_without_environment_is_the_mean_over_them() -> None:
    metrics = {"Rollout/Return/a": 1.0, "Rollout/Return/b": 4.0, "Rollout/Return_Std/a": 50.0}
    assert score_of("Rollout/Return", metrics) == 2.5
    assert score_of("Rollout/Return/b", metrics) == 4.0
    assert score_of("Rollout/Success_Rate", metrics) is None


def test_a_trial_of_one_worker_needs_no_nested_trainer(tmp_path: Path) -> None:
    spec = small_spec(tmp_path)
    alone = trial_config(spec, spec.trials()[0])
    assert (alone.ray.num_workers, alone.algo.alpha, alone.train.seed) == (0, 1.0, 1)
    pair = small_spec(tmp_path, resources={"workers": 2})
    assert trial_config(pair, pair.trials()[0]).ray.num_workers == 2


def test_an_evaluation_upon_which_a_trial_is_stopped_is_not_played_again(tmp_path: Path) -> None:
    def stop(metrics: dict[str, Any]) -> None:
        if "score" in metrics:
            raise SystemExit  # as Ray Tune ends a trial that it stops or pauses

    settings = {
        "observation.modalities.obs.low_dim": ["flat"],
        "algo.actor.layer_dims": [8],
        "algo.critic.layer_dims": [8],
        "experiment.epoch_every_n_steps": 2,
        "experiment.rollout.n": 2,
        "experiment.rollout.horizon": 5,
        "experiment.rollout.rate": 1,
        "train.batch_size": 8,
        "train.num_epochs": 3,
        "train.cuda": False,
    }
    spec = small_spec(tmp_path, set=settings)
    config = trial_config(spec, spec.trials()[0])
    with pytest.raises(SystemExit):
        train_in_folder(config, str(tmp_path / "t"), TuneTracker(spec.metric, 2, stop), 0.0)
    store = CheckpointStore(str(tmp_path / "t"), config.experiment.save)
    assert [trial_order.epoch for trial_order in store.entries] == [1]
    assert store.pending == []
    assert [evaluation.epoch for evaluation in store.evaluations] == [1]
    assert "best" in store.entries[0].keep


# -- the folder --


def test_two_sweeps_of_one_name_do_not_share_a_folder(spec: SweepSpec) -> None:
    first, second = folder_of(spec), folder_of(spec)
    assert first.uri != second.uri
    assert first.local.parent == second.local.parent


def test_a_sweep_that_runs_cannot_be_resumed(spec: SweepSpec) -> None:
    folder = folder_of(spec)
    with pytest.raises(ConfigError, match="being run by another process"):
        SweepFolder.find(spec)
    folder.release()
    assert SweepFolder.find(spec).uri == folder.uri


def test_another_sweep_is_not_resumed_under_its_name(tmp_path: Path, spec: SweepSpec) -> None:
    folder_of(spec).release()
    other = small_spec(tmp_path, space={"algo.alpha": {"grid": [1.0, 3.0]}})
    with pytest.raises(
        ConfigError, match=r"space.algo.alpha.grid was \[1.0, 2.0\] and now is \[1.0, 3.0\]"
    ):
        SweepFolder.find(other)
    longer = small_spec(tmp_path, final_episodes=3, max_concurrent=1, budget={"hours": 2.0})
    longer.base_config["mlflow"]["tracking_uri"] = "http://moved:5000"
    SweepFolder.find(longer)


def test_the_same_data_elsewhere_are_a_sweeps_same_data(tmp_path: Path, spec: SweepSpec) -> None:
    SweepFolder.create(spec, "sha256:1").release()
    moved = small_spec(tmp_path)
    moved.base_config["train"]["data"] = str(tmp_path / "moved.hdf5")
    moved.base_config["experiment"]["logging"]["log_tb"] = False
    with pytest.raises(DatasetError, match="sha256:1 then, sha256:2 now"):
        SweepFolder.find(moved, "sha256:2")
    with pytest.raises(ConfigError, match=r"config\.train\.data was"):
        SweepFolder.find(moved)  # nobody says whether they are the same
    SweepFolder.find(moved, "sha256:1").release()


@pytest.mark.parametrize("content", ["", "null", '{"name": ', "[1]"])
def test_a_damaged_sweep_is_said_in_one_sentence(spec: SweepSpec, content: str) -> None:
    folder = folder_of(spec)
    folder.release()
    (folder.local / "sweep.json").write_text(content)
    with pytest.raises(ConfigError, match=r"sweep\.json' is damaged .*start a new sweep") as error:
        SweepFolder.find(spec)
    assert "\n" not in str(error.value)


def test_half_a_line_of_a_killed_driver_does_no_harm(spec: SweepSpec) -> None:
    folder = folder_of(spec)
    board = board_of(spec, folder)
    trial = spec.trials()[0]
    board.on_trial_start(0, [], RayTrial(trial))
    path = folder.local / RESULTS
    path.write_bytes(path.read_bytes() + b'{"trial_id": "' + trial.trial_id.encode())
    board.on_trial_result(0, [], RayTrial(trial), report(100, 5.0, 1, 4))
    assert folder.results()[trial.trial_id].curve == [(100, 5.0)]


# -- the board --


def test_what_a_restarted_trial_tells_again_counts_once(spec: SweepSpec) -> None:
    folder = folder_of(spec)
    trial = spec.trials()[0]
    board = board_of(spec, folder)
    board.on_trial_start(0, [], RayTrial(trial))
    board.on_trial_result(0, [], RayTrial(trial), report(100, 5.0, 1, 4))
    board.on_trial_result(0, [], RayTrial(trial), report(200, 3.0, 2, 8))
    again = board_of(spec, folder)  # another session
    assert again.results[trial.trial_id].status == "running"
    again.on_trial_start(0, [], RayTrial(trial))
    for step, score, epoch in ((100, 5.0, 1), (200, 3.0, 2), (300, 4.0, 3)):
        again.on_trial_result(0, [], RayTrial(trial), report(step, score, epoch, 4 * epoch))
    result = again.results[trial.trial_id]
    assert result.curve == [(100, 5.0), (200, 3.0), (300, 4.0)]
    assert (result.best, result.last, result.episodes) == (5.0, 4.0, 12)
    assert result.best_checkpoint == f"{result.run_dir}/models/model_epoch_1.pth"


@pytest.mark.parametrize(
    ("last", "told"),
    [
        ("The actor died unexpectedly\n\tpid: 12", "its process was lost"),
        ("ray::f() (pid=12)\n  File ...\nKeyError: 'x'\nKeyError: 'x' (/a.py, line 3)\n", None),
    ],
)
def test_the_last_error_of_a_trial_is_told(
    spec: SweepSpec, tmp_path: Path, last: str, told: str | None
) -> None:
    board, trial = board_of(spec, folder_of(spec)), RayTrial(spec.trials()[0])
    file = tmp_path / "error.txt"
    file.write_text(
        f"Failure # 1 (occurred at 1)\nray::f()\nValueError: early\nFailure # 2 (at 2)\n{last}\n"
    )
    trial.error_file = str(file)
    board.on_trial_start(0, [], trial)
    board.on_trial_error(0, [], trial)
    result = board.results[trial.trial_id]
    assert (result.status, result.error) == ("failed", told or "KeyError: 'x' (/a.py, line 3)")


def test_trials_end_in_different_ways(spec: SweepSpec) -> None:
    board = board_of(spec, folder_of(spec))
    finished, failed, stopped, lost = spec.trials()
    for trial in spec.trials():
        board.on_trial_start(0, [], RayTrial(trial))
        board.on_trial_result(0, [], RayTrial(trial), report(100, 5.0, 1, 4))
    for trial, ended in ((finished, Ended(None)), (failed, Ended("the loss is not a number"))):
        Path(board.home(trial.trial_id)).mkdir(parents=True, exist_ok=True)
        ended.write(board.home(trial.trial_id))
    for trial in (finished, failed, stopped):
        board.on_trial_complete(0, [], RayTrial(trial))
    board.on_trial_error(0, [], RayTrial(lost))
    found = {
        t.trial_id: (r.status, r.error) for t in spec.trials() for r in [board.results[t.trial_id]]
    }
    assert list(found.values()) == [
        ("finished", None),
        ("failed", "the loss is not a number"),
        ("stopped", None),
        ("failed", "its process was lost"),
    ]
    # A resumed sweep tries those again that failed; a scheduler hears of the others.
    left = [told["trial"]["setting"] | told["trial"] for told in board.left(spec.trials())]
    assert [one["seed"] for one in left] == [spec.trials()[1].seed, spec.trials()[3].seed]
    assert board.replays() == []  # no scheduler compares


def test_a_budget_of_episodes_ends_the_sweep(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, budget={"episodes": 8})
    board = board_of(spec, folder_of(spec))
    first, second, *_ = spec.trials()
    for trial in (first, second):
        assert not board.budget.stop_all()
        board.on_trial_start(0, [], RayTrial(trial))
        board.on_trial_result(0, [], RayTrial(trial), report(100, 5.0, 1, 4))
    assert board.budget.stop_all()
    board.on_trial_complete(0, [], RayTrial(first))
    board.on_experiment_end([RayTrial(trial) for trial in spec.trials()])  # two had not begun
    assert list(board.results) == [first.trial_id, second.trial_id]
    for result in board.results.values():
        assert result.status == "stopped"
        assert result.error == "the sweep's 8 evaluation episodes were played"
    assert not board.has_ended(first)


def test_the_episodes_behind_the_best_score_are_kept(spec: SweepSpec) -> None:
    board = board_of(spec, folder_of(spec))
    trial = spec.trials()[0]
    board.on_trial_start(0, [], RayTrial(trial))
    board.on_trial_result(0, [], RayTrial(trial), report(100, 5.0, 1, 2))
    models = Path(board.home(trial.trial_id)) / "models"
    models.mkdir(parents=True, exist_ok=True)
    outcome = {"epoch": 1, "metrics": {}, "returns": {}, "success_rates": {}}
    outcomes = [outcome | {"episodes": {"Hopper-v5": [4.0, 6.0], "Ant-v5": [0.0, 8.0]}}]
    kept = [{"epoch": 1, "file": "model_epoch_1.pth", "keep": ["best"], "pending": False}]
    manifest = {"checkpoints": kept, "outcomes": outcomes, "scores": {}}
    (models / "checkpoints.json").write_text(json.dumps(manifest))
    assert CheckpointStore(board.home(trial.trial_id), None).evaluations[0].epoch == 1
    board.on_trial_complete(0, [], RayTrial(trial))
    # The score is a mean over environments, and so is an episode's.
    assert board.results[trial.trial_id].episode_scores == [2.0, 7.0]


def test_a_trial_that_is_stopped_upon_its_best_score_keeps_that_checkpoint(
    spec: SweepSpec,
) -> None:
    board = board_of(spec, folder_of(spec))
    trial = spec.trials()[0]
    board.on_trial_start(0, [], RayTrial(trial))
    board.on_trial_result(0, [], RayTrial(trial), report(100, 5.0, 1, 2))
    board.on_trial_result(0, [], RayTrial(trial), report(200, 8.0, 2, 4))
    models = Path(board.home(trial.trial_id)) / "models"
    models.mkdir(parents=True, exist_ok=True)
    outcome = {"epoch": 1, "metrics": {RETURN: 5.0}, "returns": {}, "success_rates": {}}
    outcomes = [outcome | {"episodes": {"Hopper-v5": [4.0, 6.0]}}]
    # The evaluation of epoch 2 was told, but the trial was stopped before it was settled.
    kept = [
        {"epoch": 1, "file": "model_epoch_1.pth", "keep": ["best"], "pending": False},
        {"epoch": 2, "file": "model_epoch_2.pth", "keep": [], "pending": True},
    ]
    manifest = {"checkpoints": kept, "outcomes": outcomes, "scores": {}}
    (models / "checkpoints.json").write_text(json.dumps(manifest))
    board.on_trial_complete(0, [], RayTrial(trial))
    result = board.results[trial.trial_id]
    assert result.best_checkpoint == str(models / "model_epoch_2.pth")
    assert result.episode_scores == []  # the score is not of epoch 1's episodes


def test_a_used_up_budget_ends_trials_that_this_session_has_not_begun(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, budget={"episodes": 8})
    folder = folder_of(spec)
    killed = board_of(spec, folder)
    first, second, *_ = spec.trials()
    for trial in (first, second):
        killed.on_trial_start(0, [], RayTrial(trial))
        killed.on_trial_result(0, [], RayTrial(trial), report(100, 5.0, 1, 4))
    board = board_of(spec, folder)  # another session, which may play no more
    assert board.budget.stop_all()
    board.on_experiment_end([RayTrial(trial) for trial in spec.trials()])
    assert {result.status for result in board.results.values()} == {"stopped"}


# -- early stopping --


class Live:
    """As much of Ray Tune's controller as a scheduler asks."""

    def __init__(self, *trials: Any) -> None:
        self.trials = list(trials)

    def get_live_trials(self) -> list[Any]:
        return self.trials


def stopping_sweep(tmp_path: Path, scheduler: dict[str, Any]) -> SweepSpec:
    settings = {
        "observation.modalities.obs.low_dim": ["flat"],
        "train.output_dir": str(tmp_path / "out"),
        "mlflow.enabled": False,
        "experiment.epoch_every_n_steps": 100,
        "experiment.rollout.rate": 1,
        "train.num_epochs": 9,
    }
    return small_spec(tmp_path, seeds=[1], scheduler=scheduler, set=settings)


def told(step: int, score: float) -> dict[str, Any]:
    return {"gradient_steps": step, "score": score}


def test_what_has_trained_to_its_end_is_not_stopped_there(tmp_path: Path) -> None:
    spec = stopping_sweep(tmp_path, {"asha": {"grace_steps": 100, "reduction_factor": 3}})
    asha = AshaScheduler(spec)
    asha.set_search_properties("score", "max")
    trials = [RayTrial(trial) for trial in spec.trials()]
    for trial in trials:
        asha.on_trial_add(Live(), trial)
    good, bad = trials
    assert asha.on_trial_result(Live(), good, told(900, 2.0)) == "CONTINUE"
    assert asha.on_trial_result(Live(), bad, told(900, 1.0)) == "CONTINUE"  # a rung is there


def test_the_median_bears_trials_that_end_without_a_score(tmp_path: Path) -> None:
    spec = stopping_sweep(tmp_path, {"median": {"grace_steps": 100, "min_samples": 1}})
    median = MedianScheduler(spec)
    median.set_search_properties("score", "max")
    good, failed, bad = (RayTrial(trial) for trial in [*spec.trials(), spec.trials()[0]])
    controller = Live()
    median.on_trial_complete(controller, failed, {})
    for step in (100, 200, 300):
        assert median.on_trial_result(controller, good, told(step, 5.0)) == "CONTINUE"
    median.on_trial_complete(controller, good, told(300, 5.0))
    # Told again after a restart: counts once.
    assert median.on_trial_result(controller, good, told(100, -50.0)) == "CONTINUE"
    assert median.on_trial_result(controller, bad, told(100, 4.0)) == "STOP"


# -- Optuna --


def optuna_sweep(tmp_path: Path) -> SweepSpec:
    space = {"algo.alpha": {"loguniform": [0.5, 10]}}
    return small_spec(tmp_path, search="optuna", space=space, budget={"trials": 6})


def test_optuna_hears_the_mean_over_seeds(tmp_path: Path) -> None:
    spec, known = optuna_sweep(tmp_path), dict[str, TrialResult]()
    search = OptunaSettings(spec, tmp_path / "study.log", known.get)
    trials = []
    for number in range(6):
        trial = Trial(**search.suggest(f"t{number}")[ORDER_KEY]["trial"])
        trials.append(trial)
        score = None if number == 5 else float(number)
        status = "failed" if score is None else "finished"
        known[trial.trial_id] = result_of(trial, status=status, best=score, last=score)
        search.on_trial_complete(f"t{number}")
    assert [trial.seed for trial in trials] == [1, 2] * 3
    assert len({trial.setting_id for trial in trials}) == 3
    assert search.suggest("more") == "FINISHED"
    # A setting of which a seed failed has no mean that could be compared.
    assert [one.value for one in search.study.trials] == [0.5, 2.5, None]


def test_a_resumed_search_goes_on_with_what_optuna_knew(tmp_path: Path) -> None:
    spec, known = optuna_sweep(tmp_path), dict[str, TrialResult]()
    first = OptunaSettings(spec, tmp_path / "study.log", known.get)
    begun = []
    for number in range(3):
        begun.append(Trial(**first.suggest(f"t{number}")[ORDER_KEY]["trial"]))
    for number in range(2):
        known[begun[number].trial_id] = result_of(begun[number], best=1.0)
        first.on_trial_complete(f"t{number}")
    del first  # killed, while the second setting's first seed was training
    second = OptunaSettings(spec, tmp_path / "study.log", known.get)
    rest = [Trial(**second.suggest(f"u{n}")[ORDER_KEY]["trial"]) for n in range(4)]
    assert rest[0] == begun[2]
    assert (rest[1].setting_id, rest[1].seed) == (begun[2].setting_id, 2)
    assert rest[2].setting_id not in {trial.setting_id for trial in begun}
    assert second.suggest("more") == "FINISHED"


def test_optuna_tries_all_of_a_small_space(tmp_path: Path) -> None:
    space = {
        "algo.alpha": {"choice": [0.5, 1.0, 2.0, 4.0]},
        "algo.actor.update_freq": {"choice": [1, 2, 3]},
    }
    spec = small_spec(tmp_path, search="optuna", seeds=[1], space=space, budget={"trials": 12})
    known: dict[str, TrialResult] = {}
    search = OptunaSettings(spec, tmp_path / "study.log", known.get)
    tried = set()
    for number in range(12):
        suggested = search.suggest(f"t{number}")
        assert isinstance(suggested, dict), f"only {number} settings"
        trial = Trial(**suggested[ORDER_KEY]["trial"])
        tried.add(trial.setting_id)
        alpha, steps = trial.setting["algo.alpha"], trial.setting["algo.actor.update_freq"]
        known[trial.trial_id] = result_of(trial, best=-abs(alpha - 1.0) - steps)
        search.on_trial_complete(f"t{number}")
    assert len(tried) == 12


def test_a_scheduler_hears_first_of_what_optuna_had_tried(tmp_path: Path) -> None:
    spec = optuna_sweep(tmp_path)
    replay = {"replay": [(100, 1.0)]}
    search = OptunaSettings(spec, tmp_path / "study.log", lambda _: None, [replay])
    assert search.suggest("r") == {ORDER_KEY: replay}
    assert search.suggest("t")[ORDER_KEY]["replay"] is None
