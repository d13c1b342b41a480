"""How a failed start of Ray's workers is understood, from the exceptions that Ray raises."""

import pytest
from ray.exceptions import ActorDiedError, OutOfDiskError, RayActorError
from ray.train import ControllerError, WorkerGroupError

from raymimic.training.on_ray import _failure_of


def group(*failures: Exception) -> WorkerGroupError:
    """As Ray Train raises it: the message quotes each rank's error."""
    quoted = "\n".join(f"[Rank {rank} Error Snippet]:\n{e}" for rank, e in enumerate(failures))
    return WorkerGroupError(quoted, dict(enumerate(failures)))


@pytest.mark.parametrize(
    ("error", "what", "counts"),
    [
        (group(ActorDiedError()), "a worker was lost", True),
        (group(RuntimeError("[gloo] connection closed by peer")), "a worker was lost", True),
        (group(RuntimeError("NCCL error: remote process exited")), "a worker was lost", True),
        (ControllerError(ActorDiedError()), "a worker was lost", True),
        (RayActorError(), "a worker was lost", True),
        (group(RayActorError(preempted=True)), "a node was taken back", False),
    ],
)
def test_a_lost_process_is_told_from_an_error(error: Exception, what: str, counts: bool) -> None:
    failure = _failure_of(error)
    assert (failure.what, failure.counts) == (what, counts)
    assert not failure.unplaced
    assert not failure.full_disk
    assert failure.why == ""


def test_an_error_of_the_code_is_explained() -> None:
    failure = _failure_of(group(ValueError("the batch\nis empty")))
    assert (failure.what, failure.counts, failure.explained) == ("a worker failed", True, True)
    assert failure.why == f" ({failure.reason})"
    assert "the batch" in failure.story


@pytest.mark.parametrize("error", [OutOfDiskError(), group(OSError(28, "No space left on device"))])
def test_a_full_disk_is_named(error: Exception) -> None:
    failure = _failure_of(error)
    assert failure.full_disk
    assert failure.what == "a worker could not write"


def test_workers_without_a_place_do_not_count_as_lost() -> None:
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    failure = _failure_of(ControllerError(WorkerGroupStartupTimeoutError(2)))
    assert failure.unplaced
    assert failure.what == "the workers were not placed"


def test_a_node_that_is_low_on_memory_explains_a_loss() -> None:
    failure = _failure_of(group(RuntimeError("killed due to the node running low on memory")))
    assert failure.what == "a worker was lost"
    assert failure.why == " (its node ran low on memory)"
