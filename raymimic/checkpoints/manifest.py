"""The content of `checkpoints.json`: which checkpoints a run has, and why each is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from raymimic.checkpoints.records import Evaluation
from raymimic.checkpoints.typed_json import UnknownFieldError, from_json, known_keys
from raymimic.errors import CheckpointError


@dataclass
class StoredCheckpoint:
    """One committed checkpoint.

    Attributes:
        epoch: the epoch at whose end it was taken.
        file: its name in the folder `models`.
        keep: why it is kept beyond being one of the last two: `epochs`, `time`,
            `best_validation`, `best_return/<env>`, `best_success_rate/<env>`, `best`; `found`
            where a rebuilt manifest does not say, `chosen` where the user chose it.
        pending: its evaluation has not come back yet.
        sha256: of its content, in hexadecimal; `None` where it is not known, as in 0.1.0.
        evaluated: its evaluation has come back.
    """

    epoch: int
    file: str
    keep: list[str] = field(default_factory=list)
    pending: bool = False
    sha256: str | None = None
    evaluated: bool = False


@dataclass
class Scores:
    """The best scores so far, the first three under the names of robomimic's `variable_state`.

    Attributes:
        best_valid_loss: the least validation loss.
        best_return: the highest average return, by environment.
        best_success_rate: likewise of the success rate.
        best: of the best evaluation, the success rate if the run saves by it, then the return.
    """

    best_valid_loss: float | None = None
    best_return: dict[str, float] = field(default_factory=dict)
    best_success_rate: dict[str, float] = field(default_factory=dict)
    best: list[float] | None = None

    def record_validation(self, loss: float) -> bool:
        """Notes an epoch's validation loss; returns whether it is the best so far."""
        if not math.isfinite(loss):
            return False
        if self.best_valid_loss is not None and not loss < self.best_valid_loss:
            return False
        self.best_valid_loss = loss
        return True


@dataclass
class Manifest:
    """The content of `checkpoints.json`.

    Attributes:
        checkpoints: all that exist.
        outcomes: all evaluations so far, in the order in which they came back. In the file only
            where the run has the layout of 0.1.0; otherwise they stand in `evaluations.jsonl`.
        scores: the best of them.
        dropped: checkpoints that are no longer needed, whose files are deleted next.
    """

    checkpoints: list[StoredCheckpoint] = field(default_factory=list)
    outcomes: list[Evaluation] = field(default_factory=list)
    scores: Scores = field(default_factory=Scores)
    dropped: list[StoredCheckpoint] = field(default_factory=list)

    @classmethod
    def parse(cls, content: bytes | str, path: str) -> Manifest:
        """Reads a manifest, which may come from anywhere.

        Raises:
            CheckpointError: it is damaged, no manifest, or one of a newer version.
        """
        remedy = "move it away, and --resume rebuilds it from the run's checkpoints"
        try:
            manifest = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"'{path}' is damaged ({error}); {remedy}") from error
        try:
            values = {"outcomes": [], "dropped": [], **known_keys(cls, manifest)}
            for name in ("checkpoints", "outcomes", "dropped"):
                if not isinstance(values[name], list):
                    raise TypeError(f"'{name}' is {json.dumps(values[name])[:40]}")
            parsed = cls(
                [from_json(StoredCheckpoint, entry) for entry in values["checkpoints"]],
                [from_json(Evaluation, evaluation) for evaluation in values["outcomes"]],
                from_json(Scores, values["scores"]),
                [from_json(StoredCheckpoint, entry) for entry in values["dropped"]],
            )
            _check_names([e.file for e in (*parsed.checkpoints, *parsed.dropped)])
            _check_unique("epoch", [e.epoch for e in parsed.checkpoints])
            _check_unique("file", [e.file for e in parsed.checkpoints])
        except UnknownFieldError as error:
            raise CheckpointError(
                f"'{path}' {error}, which this version of raymimic does not know: go on with the "
                f"newer version that wrote it, or {remedy}"
            ) from error
        except (KeyError, TypeError, ValueError) as error:
            reason = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else error
            raise CheckpointError(
                f"'{path}' is not a list of a run's checkpoints: {reason}; {remedy}"
            ) from error
        return parsed

    def dump(self, as_0_1: bool) -> str:
        """Returns the manifest as JSON.

        Args:
            as_0_1: in the layout of 0.1.0, with all evaluations.
        """
        content: dict[str, Any] = asdict(self)
        if as_0_1:
            for entry in (*content["checkpoints"], *content["dropped"]):
                del entry["evaluated"]
        else:
            del content["outcomes"]
        return json.dumps(content, indent=2)


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if not name.endswith(".pth") or any(sign in name for sign in "/\\\0"):
            raise ValueError(f"it names {name!r}, which is no checkpoint in this folder")


def _check_unique(what: str, values: list[Any]) -> None:
    if repeated := {value for value in values if values.count(value) > 1}:
        raise ValueError(f"it names the {what} {min(repeated)!r} twice")
