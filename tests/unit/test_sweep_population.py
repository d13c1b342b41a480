"""When a population meets next, and whom a process goes on from."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.tune.schedulers.pbt import _PBTTrialState
from sweeps import result_of, small_spec

from raymimic.checkpoints.store import CheckpointStore
from raymimic.sweep.outcome.result import TrialResult
from raymimic.sweep.spec.sweep_spec import SweepSpec, Trial
from raymimic.sweep.trials.lineage import Adoption, Lineage, find_offered
from raymimic.sweep.trials.messages import ORDER_KEY, trial_order
from raymimic.sweep.trials.population import PbtScheduler


@pytest.fixture
def spec(tmp_path: Path) -> SweepSpec:
    return small_spec(
        tmp_path,
        seeds=[1],
        search="random",
        space={"algo.alpha": {"loguniform": [0.5, 5]}},
        scheduler={"pbt": {"interval_steps": 200}},
        budget={"trials": 3},
        set=sweep_settings(tmp_path),
    )


def sweep_settings(tmp_path: Path) -> dict[str, object]:
    return {
        "observation.modalities.obs.low_dim": ["flat"],
        "experiment.epoch_every_n_steps": 50,
        "experiment.rollout.rate": 2,
        "train.num_epochs": 20,
        "train.output_dir": str(tmp_path / "out"),
        "mlflow.enabled": False,
    }


@pytest.mark.parametrize(
    ("reached", "adopted", "meets"),
    [
        ((0, 0, 0), (), 200),
        ((100, 200, 200), (), 200),  # two wait for one
        ((200, 200, 200), (), 200),  # killed before, or while, they met: they meet again
        ((200, 200, 200), (200,), 400),
        ((200, 300, 200), (), 400),  # one has gone on
        ((500, 400, 400), (200,), 600),
    ],
)
def test_a_resumed_population_meets_as_if_it_had_not_been_killed(
    spec: SweepSpec, reached: tuple[int, ...], adopted: tuple[int, ...], meets: int
) -> None:
    known: dict[str, TrialResult] = {}
    for trial, steps in zip(spec.trials(), reached, strict=True):
        result = result_of(trial, best=1.0)
        result.curve.extend((step, 1.0) for step in range(100, steps + 1, 100))
        known[trial.trial_id] = result
    for step in adopted:
        first = next(iter(known.values()))
        first.schedule.append({"step": step, "from": "other", "setting": first.setting})
    population = PbtScheduler(spec, known, lambda *_: None)
    assert population._next_perturbation_sync == meets


def test_another_ones_checkpoint_begins_a_folder_of_its_own(tmp_path: Path) -> None:
    donor = Lineage("strong", str(tmp_path / "trials/strong"))
    CheckpointStore(donor.run_dir, None).adopt(b"weights", b'{"epoch": 4}\n{"epoch": 5}\n', 4)
    home = str(tmp_path / "trials/weak")
    with donor.offered(4, 200) as checkpoint:
        assert checkpoint is not None
        kept = checkpoint.to_directory(str(tmp_path / "logs/tune/strong/checkpoint_0"))
        weak = Lineage("weak", home).after(checkpoint, home)
        assert donor.after(checkpoint, donor.run_dir) == Lineage("strong", donor.run_dir, 200)
    assert weak == Lineage("weak", f"{home}_from_strong_200", 200)
    store = CheckpointStore(weak.run_dir, None)
    assert store.last is not None
    assert store.last.epoch == 4
    assert Path(store.path(store.last)).read_bytes() == b"weights"
    assert Path(weak.run_dir, "epochs.jsonl").read_bytes() == b'{"epoch": 4}\n'
    assert find_offered(str(tmp_path / "logs"), Adoption("strong", 200)) == kept
    assert find_offered(str(tmp_path / "logs"), Adoption("strong", 400)) is None
    with donor.offered(2, 100) as gone:
        assert gone is None


class Member:
    """As much of Ray Tune's trial as the population looks at."""

    status = "PAUSED"
    checkpoint = None  # so that nothing can be taken over
    temporary_state = SimpleNamespace(saving_to=None)

    def __init__(self, spec: SweepSpec, trial: Trial) -> None:
        self.config = {ORDER_KEY: trial_order(trial)}
        self.name = trial.trial_id
        self.experiment_tag = ""

    def __str__(self) -> str:
        return self.name

    def is_finished(self) -> bool:
        return self.status == "ERROR"


class Controller:
    """As much of Ray Tune's controller as the population asks; those that failed count as live."""

    search_alg = None

    def __init__(self, members: list[Member]) -> None:
        self.members = members

    def get_trials(self) -> list[Member]:
        return self.members

    get_live_trials = get_trials


def population_of(spec: SweepSpec) -> tuple[PbtScheduler, Controller]:
    population = PbtScheduler(spec, {}, lambda *_: None)
    population.set_search_properties("score", "max")
    controller = Controller([Member(spec, trial) for trial in spec.trials()])
    for member in controller.members:
        population._trial_state[member] = _PBTTrialState(member)
    return population, controller


def test_a_population_goes_on_without_a_trial_that_failed_for_good(spec: SweepSpec) -> None:
    population, controller = population_of(spec)
    lost, one, other = controller.members

    def told(member: Member, step: int) -> None:
        population.on_trial_result(controller, member, {"gradient_steps": step, "score": 1.0})

    told(one, 200)
    told(other, 200)
    assert population._next_perturbation_sync == 200  # they wait for the third
    lost.status = "RUNNING"
    population.on_trial_error(controller, lost)
    lost.status = "ERROR"
    assert population._next_perturbation_sync == 400
    told(one, 100)  # a process that was started again repeats old scores
    assert population._next_perturbation_sync == 400
    told(one, 400)
    told(other, 400)
    assert population._next_perturbation_sync == 600
    assert population.choose_trial_to_run(controller) in (one, other)


def test_a_population_waits_for_a_trial_whose_process_is_started_again(spec: SweepSpec) -> None:
    population, controller = population_of(spec)
    lost, one, other = controller.members
    for member in (one, other):
        population.on_trial_result(controller, member, {"gradient_steps": 200, "score": 1.0})
    lost.status = "ERROR"  # so Ray Tune has it when it is about to start it again
    population.on_trial_error(controller, lost)
    state = population._trial_state[lost]
    population.on_trial_add(controller, lost)
    lost.status = "RUNNING"
    assert population._trial_state[lost] is state
    assert population._next_perturbation_sync == 200
    population.on_trial_result(controller, lost, {"gradient_steps": 200, "score": 1.0})
    assert population._next_perturbation_sync == 400
